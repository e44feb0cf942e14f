"""Encoded images to pixels, and nothing that is not whole.

OpenCV returns the upper half of a cut JPEG with a line on stderr, and allocates what a header asks for. Here the header
is read first, sizes are capped before anything is allocated, and a file that is cut is an error. So is a damaged
PNG; JPEG, TIFF and BMP carry no checksums, so bytes that changed within their pixels come through as other pixels.
"""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from edge.sources import Image

__all__ = ["MAX_PIXELS", "MAX_SIDE_PX", "BadImageError", "as_image", "declared_size", "decode_image", "quiet_opencv"]

MAX_SIDE_PX = 32768
MAX_PIXELS = 1 << 28

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


class BadImageError(ValueError):
    """The bytes are no whole image of a kind that is read here; the message says what is wrong with them."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a PNG, JPEG, TIFF or BMP file: uint8 or uint16 [H, W, C], C = 1 or 3 (RGB), as it was stored.

    Raises BadImageError for anything else: another format, other pixels (float, alpha), more than MAX_SIDE_PX a side or
    `max_pixels` in all, a file that is cut or whose checksums do not match.
    """
    width, height = declared_size(data)
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise BadImageError(f"{width} x {height} px; allowed are 1 to {MAX_SIDE_PX} px a side")
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} px; at most {max_pixels} pixels are decoded here")
    _refuse_cut(data)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImageError(f"does not decode: {error.err or error}") from error
    if decoded is None:
        raise BadImageError("does not decode")
    if decoded.shape[:2] != (height, width):
        raise BadImageError(
            f"decodes to {decoded.shape[1]} x {decoded.shape[0]} px, its header says {width} x {height}"
        )
    return as_image(decoded)


def as_image(pixels: Image) -> Image:
    """What OpenCV decoded ([H, W] or BGR) as [H, W, C], C = 1 or 3 (RGB). Raises BadImageError for other pixels."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"{pixels.dtype} pixels; read are 8 and 16 bits per channel")
    if pixels.ndim == 2:
        return pixels[:, :, np.newaxis]
    if pixels.shape[2] == 1:
        return pixels
    if pixels.shape[2] == 3:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    raise BadImageError(f"{pixels.shape[2]} channels; read are grey and RGB without alpha")


def declared_size(data: bytes) -> tuple[int, int]:
    """Width and height [px] that the header declares. Raises BadImageError if it is no PNG, JPEG, TIFF or BMP."""
    try:
        if data[:8] == _PNG:
            if data[12:16] != b"IHDR":
                raise BadImageError("a PNG without a header")
            width, height = struct.unpack_from(">II", data, 16)
        elif data[:3] == b"\xff\xd8\xff":
            width, height = _jpeg_size(data)
        elif data[:2] == b"BM":
            width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
        elif data[:4] in (b"II*\0", b"MM\0*"):
            width, height = _tiff_size(data)
        else:
            raise BadImageError("neither PNG, JPEG, TIFF nor BMP")
    except (struct.error, IndexError) as error:
        raise BadImageError(f"cut within its header ({len(data)} bytes)") from error
    return int(width), abs(int(height))


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise BadImageError("a JPEG with a damaged header")
        marker = data[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, first)
    found: dict[int, int] = {}
    for at in range(first + 2, first + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 257):
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 8)
    if len(found) != 2:
        raise BadImageError("a TIFF without a size")
    return found[256], found[257]


def _refuse_cut(data: bytes) -> None:
    """Raise BadImageError where OpenCV would return a picture that is only partly there."""
    if data[:8] == _PNG:
        _check_png(data)
    elif data[:3] == b"\xff\xd8\xff" and not data.rstrip(b"\0\r\n").endswith(b"\xff\xd9"):
        raise BadImageError(f"a JPEG cut after {len(data)} bytes: no end marker")
    elif data[:2] == b"BM" and len(data) < struct.unpack_from("<I", data, 2)[0]:
        raise BadImageError(f"a BMP cut after {len(data)} of {struct.unpack_from('<I', data, 2)[0]} bytes")


def _check_png(data: bytes) -> None:
    """Walk the chunks of a PNG (ISO/IEC 15948, 5.3) and compare their checksums."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BadImageError(f"a damaged PNG: the checksum at byte {end - 4} does not match")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise BadImageError(f"a PNG cut after {len(data)} bytes: no end chunk")


def quiet_opencv() -> None:
    """Keep OpenCV from writing to stderr: what it says there comes back as an error here."""
    # The function moved between OpenCV 4.8 and 5.0; 0 is "silent" in both places.
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_level(0)
