"""Where the part lies in a frame: by its edge (`edge.place.by_edge`) or by a template (`edge.place.by_template`).

Pure functions on arrays. Both answer with a `Place`, rounded to what they can tell and more, so that the numbers in a
verdict are those that the tiles were cut with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import RecipeError
from edge.place.geometry import Box, Place
from edge.place.settings import EdgeLocate, Locate
from edge.section import Region
from edge.settings import Station
from edge.verdict import Reason

__all__ = ["Located", "Locator", "make_locator"]

_DECIMALS = 3  # of a pixel; of a degree one more


@dataclass(frozen=True)
class Located:
    """What was found in a frame. With a reason, the part is not to be judged; `place` then is set if it is known."""

    place: Place | None = None
    reason: Reason | None = None
    detail: str = ""
    """For the log: what is wrong, in words."""


class Finder(Protocol):
    """Finds the part of one reference."""

    def find(self, frame: NDArray[Any]) -> Located:
        """`frame`: [H, W, C], what is searched. Limits are not looked at here."""
        ...


class Locator:
    """Finds the part of a station in its frames, and says when it lies beyond the recipe's limits."""

    def __init__(self, finder: Finder, locate: Locate, region: Box, frame_size: tuple[int, int]) -> None:
        """`region`: what moves with the part, in frame pixels. `frame_size`: height and width."""
        self._finder, self._locate, self._region = finder, locate, region
        self._height, self._width = frame_size

    def find(self, frame: NDArray[Any]) -> Located:
        """Find the part in `frame` [H, W, C]."""
        found = self._finder.find(frame)
        if found.reason is not None or found.place is None:
            return found
        place = Place(
            round(found.place.dx_px, _DECIMALS),
            round(found.place.dy_px, _DECIMALS),
            round(found.place.angle_deg, _DECIMALS + 1),
        )
        beyond = self._beyond(place)
        return Located(place, Reason.MISPLACED, beyond) if beyond else Located(place)

    def _beyond(self, place: Place) -> str:
        """Which limit the place is beyond, in words; empty if none."""
        shift = math.hypot(place.dx_px, place.dy_px)
        if shift > self._locate.max_shift_px:
            return f"shifted by {shift:.1f} px, allowed are {self._locate.max_shift_px:g}"
        if abs(place.angle_deg) > self._locate.max_angle_deg:
            return f"turned by {place.angle_deg:.2f} degrees, allowed are {self._locate.max_angle_deg:g}"
        corners = place.moved(self._region)
        if corners.min() < -0.5 or (corners > (self._width + 0.5, self._height + 0.5)).any():
            return "its region reaches over the edge of the frame"
        return ""


def make_locator(station: Station) -> Locator | None:
    """The locator of a station; None where parts lie where the region says. Raises RecipeError."""
    locate, region = station.locate, station.tiling.region
    if locate is None or region is None:
        return None
    frame = station.frame
    expected = (frame.height_px, frame.width_px, frame.channels)
    return _made(locate, region, expected, frame.bit_depth)


@lru_cache(maxsize=8)
def _made(locate: Locate, region: Region, expected: tuple[int, int, int], bit_depth: int) -> Locator:
    from edge.sources.folder import read_image
    from edge.sources.images import MAX_PIXELS, quiet_opencv

    quiet_opencv()
    shot = read_image(locate.reference, MAX_PIXELS)
    if shot.image is None:
        raise RecipeError(f"locate.reference: {shot.detail}; name a frame with a part in its place")
    reference = shot.image
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    if reference.shape != expected or reference.dtype != dtype:
        found, declared = _shape(reference.shape, reference.dtype.name), _shape(expected, dtype.__name__)
        raise RecipeError(f"locate.reference = {str(locate.reference)!r}: is {found}; the frame is {declared}")
    search = _box(locate.search, expected) if locate.search else Box(0, 0, expected[1], expected[0])
    where, full_scale = _box(region, expected), float((1 << bit_depth) - 1)
    finder: Finder
    if isinstance(locate, EdgeLocate):
        from edge.place.by_edge import EdgeFinder

        finder = EdgeFinder(reference, locate, where, search, full_scale)
    else:
        from edge.place.by_template import TemplateFinder

        finder = TemplateFinder(reference, locate, where, search, full_scale)
    itself = finder.find(reference)
    if itself.reason is not None:
        raise RecipeError(
            f"locate.reference = {str(locate.reference)!r}: in it itself {itself.reason.value}: {itself.detail}; take "
            "another reference, or name a template that looks like nothing else in it"
        )
    return Locator(finder, locate, where, expected[:2])


def _shape(shape: tuple[int, ...], dtype: str) -> str:
    return f"{shape[1]} x {shape[0]} px, {shape[2]} channel{'s' if shape[2] > 1 else ''}, {dtype}"


def _box(region: Region, frame: tuple[int, int, int]) -> Box:
    box = Box(region.x_px, region.y_px, region.width_px, region.height_px)
    if box.x + box.width > frame[1] or box.y + box.height > frame[0]:
        raise RecipeError(f"locate: a region of {box} does not lie inside the frame of {frame[1]} x {frame[0]} px")
    return box
