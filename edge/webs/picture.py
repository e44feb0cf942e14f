"""The roll map as a picture: along the web from left to right, across it from top to bottom."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import ResourceError
from edge.tiling import Box
from edge.webs.roll import RollMap
from edge.webs.table import summary

__all__ = ["draw", "write_picture"]

MAP_WIDTH_PX = 1600
MAP_HEIGHT_PX = (120, 480)
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 50, 70
SMALLEST_PX = 4
"""A defect is drawn at least so large."""

_PAPER, _INK, _FAINT = (255, 255, 255), (40, 40, 40), (150, 150, 150)  # B, G, R
_GOOD, _NOT_JUDGED, _UNSEEN, _DEFECT = (214, 232, 214), (225, 225, 225), (60, 170, 245), (40, 30, 200)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Picture = NDArray[Any]


class _Sheet:
    """The picture, and where the web lies in it."""

    def __init__(self, roll: RollMap) -> None:
        geometry = roll.geometry
        self.roll, self.lines = roll, max(1, roll.end - roll.start)
        ratio = geometry.width_px * geometry.mm_per_px / (self.lines * geometry.mm_per_line)
        self.height = int(np.clip(MAP_WIDTH_PX * ratio, *MAP_HEIGHT_PX))
        size = (TOP + self.height + BOTTOM, LEFT + MAP_WIDTH_PX + RIGHT, 3)
        self.picture: Picture = np.full(size, _PAPER, np.uint8)

    def x(self, line: float) -> int:
        return LEFT + round((line - self.roll.start) * MAP_WIDTH_PX / self.lines)

    def y(self, column: float) -> int:
        return TOP + round(column * self.height / self.roll.geometry.width_px)

    def fill(self, start: int, end: int, left: int, right: int, colour: tuple[int, int, int]) -> None:
        """From line `start` to `end` and column `left` to `right`; at least one pixel of each."""
        x, y = self.x(start), self.y(left)
        self.picture[y : max(y + 1, self.y(right)), x : max(x + 1, self.x(end))] = colour

    def text(self, words: str, x: int, y: int, colour: tuple[int, int, int] = _INK) -> None:
        cv2.putText(self.picture, words, (x, y), _FONT, 0.45, colour, 1, cv2.LINE_AA)

    def defect(self, box: Box, filled: bool) -> None:
        x, y = self.x(box.y), self.y(box.x)
        right, bottom = (
            max(x + SMALLEST_PX, self.x(box.y + box.height)),
            max(y + SMALLEST_PX, self.y(box.x + box.width)),
        )
        cv2.rectangle(self.picture, (x, y), (right - 1, bottom - 1), _DEFECT, cv2.FILLED if filled else 1)


def draw(roll: RollMap, title: str) -> Picture:
    """The roll map, uint8 [H, W, 3] (BGR): what was inspected green, what was not orange, defects red."""
    sheet, geometry = _Sheet(roll), roll.geometry
    sheet.fill(roll.start, roll.end, 0, geometry.width_px, _NOT_JUDGED)
    sheet.fill(roll.start, roll.end, geometry.left, geometry.right, _GOOD)
    for gap in roll.gaps:
        sheet.fill(gap.start, gap.end, 0, geometry.width_px, _UNSEEN)
    for rejected in roll.rejected:
        sheet.defect(rejected.box, filled=False)
    for defect in roll.defects:
        sheet.defect(defect.box, filled=True)
    _axes(sheet)
    sheet.text(title, LEFT, 20)
    sheet.text(summary(roll), LEFT, 40)
    _legend(sheet)
    return sheet.picture


def _axes(sheet: _Sheet) -> None:
    geometry, roll = sheet.roll.geometry, sheet.roll
    bottom = TOP + sheet.height
    cv2.rectangle(sheet.picture, (LEFT - 1, TOP - 1), (LEFT + MAP_WIDTH_PX, bottom), _FAINT, 1)
    first, last = geometry.metres(roll.start), geometry.metres(roll.end)
    step = _step(last - first, 12)
    for k in range(math.ceil(first / step), math.floor(last / step) + 1):
        x = sheet.x(k * step * 1000 / geometry.mm_per_line)
        cv2.line(sheet.picture, (x, bottom), (x, bottom + 5), _INK, 1)
        sheet.text(f"{k * step:g} m", x - 14, bottom + 20)
    width_mm = geometry.width_px * geometry.mm_per_px
    step = _step(width_mm, 4)
    for k in range(math.floor(width_mm / step) + 1):
        y = sheet.y(k * step / geometry.mm_per_px)
        cv2.line(sheet.picture, (LEFT - 6, y), (LEFT - 1, y), _INK, 1)
        sheet.text(f"{k * step:g}", 8, y + 4)
    sheet.text("mm", 8, bottom + 20)


def _legend(sheet: _Sheet) -> None:
    x, y = LEFT, TOP + sheet.height + 50
    for words, colour in (
        ("inspected", _GOOD),
        ("not inspected", _UNSEEN),
        ("outside of what is judged", _NOT_JUDGED),
        ("defect (an outline: a frame rejected as a whole)", _DEFECT),
    ):
        cv2.rectangle(sheet.picture, (x, y - 10), (x + 12, y + 2), colour, cv2.FILLED)
        sheet.text(words, x + 18, y)
        x += 40 + 9 * len(words)


def _step(span: float, ticks: int) -> float:
    """A round distance between ticks, so that there are about `ticks`."""
    raw = max(span, 1e-9) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture as PNG. Raises ResourceError that names a file which cannot be written."""
    _, data = cv2.imencode(".png", picture)
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise ResourceError(f"{path}: cannot write the roll map there: {error.strerror}") from error
