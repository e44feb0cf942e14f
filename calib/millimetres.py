"""Where defects are and how large, in words: millimetres beside pixels where the station has a scale."""

from __future__ import annotations

from itertools import zip_longest

from calib.report_data import ReportView
from edge.place.geometry import Box, boxes_to_region

__all__ = ["where_words"]

_SHOWN = 3


def where_words(view: ReportView, region: Box | None) -> list[str]:
    """One line on how the part lay, where it is located, and one on each of the largest defects.

    Positions are those of the boxes' centres from the upper left corner of the region, along its sides: they lie on the
    part, wherever it lay.
    """
    lines = [_place_words(view)] if view.place else []
    boxes = [Box(*box) for box in view.boxes]
    corner = (region.x, region.y) if region else (0, 0)
    where = boxes_to_region(boxes, region, view.place) if region and view.place else boxes
    for (x, y, width, height), area_px in list(zip_longest(where, view.areas_px[: len(boxes)]))[:_SHOWN]:
        middle = (x + width / 2 - corner[0], y + height / 2 - corner[1])
        in_px = _defect_words(area_px, (width, height), middle, (1.0, 1.0), "px")
        scale = _scale(view)
        lines.append(f"{_defect_words(area_px, (width, height), middle, scale, 'mm')} ({in_px})" if scale else in_px)
    if len(boxes) > _SHOWN:
        lines.append(f"and {len(boxes) - _SHOWN} more")
    return lines


def _scale(view: ReportView) -> tuple[float, float] | None:
    """What a pixel measures in x and in y; lines of a web have a pitch of their own."""
    across = view.scale_mm_per_px
    return (across, view.mm_per_line or across) if across else None


def _place_words(view: ReportView) -> str:
    assert view.place is not None
    x, y, angle = view.place
    scale = view.scale_mm_per_px
    in_mm = f" ({_number(x * scale)}, {_number(y * scale)} mm)" if scale else ""
    return f"shifted by {x:.1f}, {y:.1f} px{in_mm}, turned by {angle:.2f} degrees"


def _defect_words(
    area_px: float | None,
    size: tuple[float, float],
    middle: tuple[float, float],
    scale: tuple[float, float],
    unit: str,
) -> str:
    area = "" if area_px is None else f"{_number(area_px * scale[0] * scale[1])} {unit}\N{SUPERSCRIPT TWO} in "
    (width, x), (height, y) = ((_number(a * s), _number(b * s)) for a, b, s in zip(size, middle, scale, strict=True))
    return f"{area}{width} x {height} {unit} at {x}, {y}"


def _number(value: float) -> str:
    """Three figures, and no exponent for what a part may measure."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
