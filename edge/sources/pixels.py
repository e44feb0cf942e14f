"""The bytes of a camera's buffer as an image. Formats are named as in GenICam's Pixel Format Naming Convention."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import RecipeError
from edge.settings import Frame
from edge.sources import Image

__all__ = ["PFNC", "Pixels"]

PFNC = {
    "Mono8": 0x01080001,
    "Mono10": 0x01100003,
    "Mono12": 0x01100005,
    "Mono16": 0x01100007,
    "BayerGR8": 0x01080008,
    "BayerRG8": 0x01080009,
    "BayerGB8": 0x0108000A,
    "BayerBG8": 0x0108000B,
    "BayerGR10": 0x0110000C,
    "BayerRG10": 0x0110000D,
    "BayerGB10": 0x0110000E,
    "BayerBG10": 0x0110000F,
    "BayerGR12": 0x01100010,
    "BayerRG12": 0x01100011,
    "BayerGB12": 0x01100012,
    "BayerBG12": 0x01100013,
    "BayerGR16": 0x0110002E,
    "BayerRG16": 0x0110002F,
    "BayerGB16": 0x01100030,
    "BayerBG16": 0x01100031,
    "RGB8": 0x02180014,
    "BGR8": 0x02180015,
}
"""The formats that are read, and their codes in a buffer. Packed ones are not: 10 and 12 bits come in 16."""

# OpenCV names a mosaic by the second and third pixel of its second row.
_TO_RGB = {
    "RG": cv2.COLOR_BayerBG2RGB,
    "GR": cv2.COLOR_BayerGB2RGB,
    "GB": cv2.COLOR_BayerGR2RGB,
    "BG": cv2.COLOR_BayerRG2RGB,
}


class Pixels:
    """What the buffers of one camera hold: a pixel format and the size of the recipe's frame."""

    def __init__(self, name: str, frame: Frame) -> None:
        """Raises RecipeError for a format that is not read here or does not give the recipe's frame."""
        if name not in PFNC:
            raise RecipeError(f"source.camera.pixel_format = {name!r}: read are {', '.join(PFNC)}")
        self.name, self.code = name, PFNC[name]
        self._bayer = name[5:7] if name.startswith("Bayer") else ""
        colour = self._bayer or name in ("RGB8", "BGR8")
        bits = int("".join(c for c in name if c.isdigit()))
        if (3 if colour else 1) != frame.channels or bits != frame.bit_depth:
            raise RecipeError(
                f"source.camera.pixel_format = {name!r}: gives {3 if colour else 1} channels of {bits} bits, the frame "
                f"has channels = {frame.channels} and bit_depth = {frame.bit_depth}"
            )
        self._shape = (frame.height_px, frame.width_px, 1 if not colour or self._bayer else 3)
        self._dtype = np.dtype(frame.dtype)
        self._colour = np.empty((frame.height_px, frame.width_px, 3), self._dtype) if colour else None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self._shape[1], self._shape[0]

    @property
    def row_bytes(self) -> int:
        """Of one row, without padding."""
        return self._shape[1] * self._shape[2] * self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Of one frame, without padding."""
        return self._shape[0] * self.row_bytes

    def image(self, buffer: NDArray[np.uint8], row_padding: int = 0) -> Image:
        """uint8 or uint16 [H, W, C] of a buffer of bytes: a view of it, or of one array that the next call overwrites.

        `row_padding`: bytes after each row. The buffer must be long enough.
        """
        height, stride = self._shape[0], self.row_bytes + row_padding
        rows = buffer[: height * stride].reshape(height, stride)[:, : self.row_bytes]
        image: NDArray[Any] = rows.view(self._dtype).reshape(self._shape)
        if self._colour is None:
            return image
        code = _TO_RGB[self._bayer] if self._bayer else cv2.COLOR_BGR2RGB
        return image if self.name == "RGB8" else cv2.cvtColor(image, code, dst=self._colour)
