"""Frames as they are recorded: raw rows, PNG or zstd, which lose nothing, or JPEG with a stated quality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import zstandard

from edge.recording.format import take
from edge.sources import Image
from edge.sources.images import MAX_PIXELS, BadImageError, decode_image

__all__ = ["ENCODINGS", "RecordedFrame", "encode_frame", "frame_of"]

ENCODINGS = ("png", "raw", "zstd", "jpeg")
_PNG_LEVEL = 3
_ZSTD_LEVEL = 1
_MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}


@dataclass(frozen=True)
class RecordedFrame:
    """The frame of a trigger, still encoded."""

    number: int
    at_ns: int  # UTC
    encoding: str  # png, raw (rows of height x width x channels, little-endian), zstd (of the raw rows), jpeg
    height: int
    width: int
    channels: int
    dtype: str
    data: bytes = field(repr=False)
    quality: int | None = None  # of a JPEG: 1 to 100

    @property
    def lossless(self) -> bool:
        """Whether `decode` gives the pixels that the camera gave."""
        return self.encoding != "jpeg"

    def decode(self, max_pixels: int = MAX_PIXELS) -> Image:
        """The pixels: uint8 or uint16 [H, W, C]. Raises BadImageError for too many, or for a content that is wrong."""
        shape = (self.height, self.width, self.channels)
        if min(shape) < 1 or self.height * self.width > max_pixels or self.channels not in (1, 3):
            raise BadImageError(f"the shape {shape}; decoded are up to {max_pixels} pixels of 1 or 3 channels")
        if self.encoding not in ENCODINGS or self.dtype not in ("uint8", "uint16"):
            raise BadImageError(
                f"encoding {self.encoding!r} of {self.dtype!r}; read are {', '.join(ENCODINGS)}, uint8 and uint16"
            )
        if self.encoding in _MAGIC:
            if not self.data.startswith(_MAGIC[self.encoding]):
                raise BadImageError(f"recorded as {self.encoding}, and is none")
            image = decode_image(self.data, self.height * self.width)
            if image.shape != shape or str(image.dtype) != self.dtype:
                raise BadImageError(f"decodes to {image.dtype} {image.shape}, recorded as {self.dtype} {shape}")
            return image
        pixel = np.dtype(self.dtype).newbyteorder("<")
        nbytes = self.height * self.width * self.channels * pixel.itemsize
        rows = self.data if self.encoding == "raw" else _decompress(self.data, nbytes)
        if len(rows) != nbytes:
            raise BadImageError(f"{len(rows)} bytes are no {self.dtype} image of the shape {shape}")
        return np.frombuffer(rows, pixel).astype(self.dtype, copy=False).reshape(shape)


def encode_frame(image: Image, encoding: str, quality: int) -> dict[str, Any]:
    """The fields of a frame's message; `image`: uint8 or uint16 [H, W, C], C = 1 or 3 (RGB).

    Raises ValueError for an image or an encoding that no recording has.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16) or not image.size:
        raise ValueError(f"an image {image.dtype} {image.shape}; recorded are uint8 and uint16 [H, W, 1 or 3]")
    height, width, channels = image.shape
    fields = {"encoding": encoding, "height": height, "width": width, "channels": channels, "dtype": str(image.dtype)}
    if encoding == "png":
        return {**fields, "data": _encode(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])}
    if encoding == "jpeg":
        if image.dtype != np.uint8 or not 1 <= quality <= 100:
            raise ValueError(f"a JPEG of {image.dtype} with quality {quality}; it takes uint8, and 1 to 100")
        data = _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
        return {**fields, "quality": quality, "data": data}
    rows = np.ascontiguousarray(image, image.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    if encoding == "raw":
        return {**fields, "data": rows}
    if encoding == "zstd":
        return {**fields, "data": zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(rows)}
    raise ValueError(f"encoding {encoding!r}; there are {', '.join(ENCODINGS)}")


def frame_of(number: int, at_ns: int, fields: dict[str, Any]) -> RecordedFrame:
    """Raises ValueError."""
    height, width, channels = (take(fields, name, int) for name in ("height", "width", "channels"))
    encoding, dtype, data = take(fields, "encoding", str), take(fields, "dtype", str), take(fields, "data", bytes)
    quality = take(fields, "quality", int) if encoding == "jpeg" else None
    return RecordedFrame(number, at_ns, encoding, height, width, channels, dtype, data, quality)


def _encode(image: Image, suffix: str, options: list[int]) -> bytes:
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise ValueError(f"a {image.dtype} image of the shape {image.shape} does not encode as {suffix}")
    return bytes(data.tobytes())


def _decompress(data: bytes, nbytes: int) -> bytes:
    """The rows in a zstd frame that declares just their size; nothing is allocated for any other."""
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared != nbytes:
            raise BadImageError(f"{declared} bytes when decompressed, recorded as {nbytes}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=nbytes)
    except zstandard.ZstdError as error:
        raise BadImageError(f"does not decompress: {error}") from error
