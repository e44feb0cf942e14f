"""Where the rows of a frame lie on the web, in lines and pixels; pure.

A line is one row of the web. Line 0 is the first row of the first frame; frames are `frame_px` lines apart. What is
inspected with a frame, its window, has `overlap_px` rows more: those of the frame before, above its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.place.geometry import Box
from edge.settings import Region, Station

__all__ = ["WebGeometry", "on_web", "web_geometry"]


@dataclass(frozen=True)
class WebGeometry:
    """A station over a web."""

    frame_px: int
    overlap_px: int
    top: int  # the window is judged from this row on ...
    bottom: int  # ... to the one before this
    left: int
    right: int
    margin_px: int
    width_px: int
    mm_per_line: float
    mm_per_px: float  # across; where the recipe has no scale, a pixel is taken to be as wide as a line is long
    lines_per_count: float | None  # None: no encoder
    tolerance_lines: int

    def judged(self, rows_before: int) -> tuple[int, int]:
        """The lines that are judged with a frame, from its own first row on: from the first up to the second. Without
        rows of the frame before, its own begin with a rim that is not."""
        begin = self.top if rows_before or not self.overlap_px else max(self.top, self.overlap_px + self.margin_px)
        return begin - self.overlap_px, self.bottom - self.overlap_px

    def metres(self, lines: float) -> float:
        """A position along the web."""
        return lines * self.mm_per_line / 1000


def web_geometry(station: Station) -> WebGeometry:
    """The geometry of a station with a web."""
    web, tiling, window = station.web, station.tiling, station.window
    assert web is not None
    region = tiling.region or Region(x_px=0, y_px=0, width_px=window.width_px, height_px=window.height_px)
    return WebGeometry(
        frame_px=station.frame.height_px,
        overlap_px=web.overlap_px,
        top=region.y_px + tiling.margin_px,
        bottom=region.y_px + region.height_px - tiling.margin_px,
        left=region.x_px + tiling.margin_px,
        right=region.x_px + region.width_px - tiling.margin_px,
        margin_px=tiling.margin_px,
        width_px=window.width_px,
        mm_per_line=web.mm_per_line,
        mm_per_px=station.scale_mm_per_px or web.mm_per_line,
        lines_per_count=None if web.mm_per_count is None else web.mm_per_count / web.mm_per_line,
        tolerance_lines=web.tolerance_lines if web.mm_per_count is not None else 0,
    )


def on_web(box: Box, first_line: int, overlap_px: int) -> Box:
    """A box in pixels of a window, on the web, where the frame's own first row lies at `first_line`."""
    return Box(box.x, first_line - overlap_px + box.y, box.width, box.height)
