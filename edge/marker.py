"""Machine-readable markers in simulated frames: part number and truth, drawn into the pixels.

A verdict that was made from another part's pixels, or a false PASS, can then be seen by a test. A marker is a square of
12 x 12 cells: a white rim, a black rim, and 8 x 8 cells (white is 1) that hold a constant, the part number, the truth
and a checksum. Cells of 8 pixels survive halving, and any tiling that leaves the marker whole in one tile.
"""

from __future__ import annotations

import binascii
import struct
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["MARKER_CELLS", "Marker", "MarkerFound", "draw", "find", "read"]

MARKER_CELLS = 12
"""Side of a marker in cells, rims included."""
SMALLEST_CELL_PX = 3
_DATA = 8
_VERSION = 0xA5
_GOOD, _BAD = 0x0F, 0xF0


class Marker(NamedTuple):
    """What is drawn: the part's number (32 bit) and whether it is bad."""

    part: int
    bad: bool


class MarkerFound(NamedTuple):
    """A marker and the box of its black rim, in pixels."""

    marker: Marker
    x: int
    y: int
    side: int


def draw(image: npt.NDArray[Any], part: int, bad: bool, *, x: int = 8, y: int = 8, cell_px: int = 8) -> None:
    """Draws a marker into `image` (uint8 or uint16 [H, W, C] or [H, W]), its upper left corner at (x, y), in place.

    It covers MARKER_CELLS * cell_px pixels each way. Raises ValueError if it does not fit, the part number is not
    0..2**32 - 1, or the cells are smaller than 3 pixels.
    """
    side = MARKER_CELLS * cell_px
    if not 0 <= part < 1 << 32:
        raise ValueError(f"part {part} does not fit into 32 bits")
    if cell_px < SMALLEST_CELL_PX or x < 0 or y < 0 or y + side > image.shape[0] or x + side > image.shape[1]:
        raise ValueError(f"a marker of {side} pixels at ({x}, {y}) does not fit into an image of {image.shape[:2]}")
    body = struct.pack(">BIB", _VERSION, part, _BAD if bad else _GOOD)
    bits = np.unpackbits(np.frombuffer(body + struct.pack(">H", binascii.crc_hqx(body, 0xFFFF)), np.uint8))
    cells = np.ones((MARKER_CELLS, MARKER_CELLS), np.uint8)
    cells[1:-1, 1:-1] = 0
    cells[2:-2, 2:-2] = bits.reshape(_DATA, _DATA)
    pixels = np.kron(cells, np.ones((cell_px, cell_px), np.uint8)).astype(image.dtype) * np.iinfo(image.dtype).max
    image[y : y + side, x : x + side] = pixels if image.ndim == 2 else pixels[..., None]


def find(image: npt.NDArray[Any]) -> MarkerFound | None:
    """The first intact marker in `image` (uint8 or uint16 [h, w, C] or [h, w]), by row, or None."""
    grey = image if image.ndim == 2 else image[..., 0]
    dark = (grey < np.iinfo(grey.dtype).max // 2 + 1).astype(np.uint8)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    smallest = (_DATA + 2) * SMALLEST_CELL_PX
    for x, y, width, height, _ in boxes[1:].tolist():
        if abs(width - height) <= 2 and smallest <= min(width, height):
            marker = _decode(grey[y : y + height, x : x + width])
            if marker is not None:
                return MarkerFound(marker, x, y, max(width, height))
    return None


def read(image: npt.NDArray[Any]) -> Marker | None:
    """What the first intact marker in a frame or tile says (see `find`), or None."""
    found = find(image)
    return None if found is None else found.marker


def _decode(box: npt.NDArray[Any]) -> Marker | None:
    """Reads the cells of a black rim and what it holds, [h, w]; None unless rim, constant and checksum are right."""
    cells = _DATA + 2
    rows, columns = (((np.arange(cells) + 0.5) * n / cells).astype(int) for n in box.shape)
    bits = (box[np.ix_(rows, columns)] > np.iinfo(box.dtype).max // 2).astype(np.uint8)
    rim = np.ones((cells, cells), bool)
    rim[1:-1, 1:-1] = False
    if bits[rim].any():
        return None
    data = np.packbits(bits[1:-1, 1:-1].ravel()).tobytes()
    version, part, truth = struct.unpack(">BIB", data[:6])
    (checksum,) = struct.unpack(">H", data[6:])
    if version != _VERSION or truth not in (_GOOD, _BAD) or checksum != binascii.crc_hqx(data[:6], 0xFFFF):
        return None
    return Marker(part, truth == _BAD)
