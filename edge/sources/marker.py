"""Simulated frames with a machine-readable marker: the part's number and its truth, in the pixels.

Nothing but the marker changes between frames, so large frames cost little. Stations with the same seed see the same
good and bad parts.
"""

from __future__ import annotations

import numpy as np

from edge.errors import SourceError
from edge.marker import MARKER_CELLS, SMALLEST_CELL_PX, draw
from edge.settings import Frame, Region, Station
from edge.sources import Image
from edge.sources.pacing import Part, Rate, Shot
from edge.sources.truth import truth_is_bad

__all__ = ["MarkerFeed", "background"]

_CELL_PX = 8
_MARGIN_PX = 8
_BACKGROUND = 0.6  # of full scale


class MarkerFeed:
    """Frames of the recipe's size with a marker in the upper left of the inspected region; endless."""

    def __init__(self, station: Station) -> None:
        frame, region = station.frame, station.tiling.region
        region = region or Region(x_px=0, y_px=0, width_px=frame.width_px, height_px=frame.height_px)
        shorter_px = min(region.width_px, region.height_px)
        cell_px = min(_CELL_PX, shorter_px // MARKER_CELLS)
        if cell_px < SMALLEST_CELL_PX:
            raise SourceError(
                f"{station.name}: a marker needs {MARKER_CELLS * SMALLEST_CELL_PX} px, and the inspected region has "
                f"{region.width_px} x {region.height_px} px; make it larger or name another source"
            )
        margin_px = min(_MARGIN_PX, shorter_px - MARKER_CELLS * cell_px)
        self._place = {"x": region.x_px + margin_px, "y": region.y_px + margin_px, "cell_px": cell_px}
        self._image = background(frame)
        self._rate = Rate(station.source.rate_hz)
        self._seed, self._share = station.source.seed, station.source.defect_share

    def part(self, number: int) -> Part | None:
        return self._rate.part(number, lambda: self._load(number))

    def first_due(self, elapsed_ns: int, number: int) -> int:
        return self._rate.first_due(elapsed_ns, number)

    def close(self) -> None: ...

    def _load(self, number: int) -> Shot:
        draw(self._image, number, truth_is_bad(self._seed, number, self._share), **self._place)
        return Shot(self._image)


def background(frame: Frame) -> Image:
    """An even image of the recipe's size and depth, neither black nor saturated."""
    full_scale = (1 << frame.bit_depth) - 1
    return np.full((frame.height_px, frame.width_px, frame.channels), round(_BACKGROUND * full_scale), frame.dtype)
