"""From the frames of a web to what is inspected: each with the last rows of the one before above it.

Pure but for the rows that are kept. A frame that does not follow the one before without a gap (the first one, the first
of a new capture process, one after a frame that is missing or frozen) has its own first rows there a second time, as
surroundings: nothing is judged in them, nor in a rim of `tiling.margin_px` below. Not mirrored: a mirrored twill runs
the other way, and good fabric below the seam scored 1.3 to 1.6 instead of 1.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.settings import Station
from edge.webs.settings import Web

__all__ = ["Stitcher", "Tracker"]

Image = NDArray[Any]


class Tracker:
    """Whether the encoder moved by whole frames from one trigger to the next."""

    def __init__(self, web: Web, frame_px: int, first_number: int) -> None:
        """`first_number`: the first trigger number of this capture process; not 0 when there was one before."""
        assert web.mm_per_count is not None
        self._lines_per_count = web.mm_per_count / web.mm_per_line
        self._frame_px, self._tolerance = frame_px, web.tolerance_lines
        self._starts = first_number == 0
        self._last: int | None = None  # the encoder's count at the newest trigger

    def step(self, count: int | None) -> tuple[int, str]:
        """Take a trigger's count. Returns by how many frames the web moved, and why its place is not known; empty: it
        is. The first trigger of a run begins the web; that of a later capture process has nothing to be held against.
        """
        last, self._last = self._last, count
        if count is None:
            return 0, "the trigger has no count of the encoder"
        if last is None:
            starts, self._starts = self._starts, False
            return 0, "" if starts else "no count before this one to hold it against"
        lines = (count - last) * self._lines_per_count
        frames = round(lines / self._frame_px)
        if lines < 0:
            return 0, f"the encoder went back by {-lines:.1f} lines"
        if frames < 1 or abs(lines - frames * self._frame_px) > self._tolerance:
            return 0, f"the encoder moved by {lines:.1f} lines, which is no multiple of a frame of {self._frame_px}"
        return frames, ""


class Stitcher:
    """The frames of one station on their way into slots. Without a web it copies them as they are."""

    def __init__(self, station: Station, first_number: int) -> None:
        """`first_number`: see `Tracker`."""
        web, frame = station.web, station.frame
        self._rows = web.overlap_px if web else 0
        self._kept = np.empty((self._rows, frame.width_px, frame.channels), frame.dtype)
        self._kept_number: int | None = None
        self._declared = ((frame.height_px, frame.width_px, frame.channels), frame.dtype)
        self._tracker = Tracker(web, frame.height_px, first_number) if web and web.mm_per_count else None
        self._moved = 1
        self.lost = ""
        """Why the place of the newest trigger on the web is not known; empty: it is."""

    def trigger(self, count: int | None) -> None:
        """Take the encoder's count at the trigger of a frame; not of one that was missed."""
        if self._tracker:
            self._moved, self.lost = self._tracker.step(count)

    def fill(self, number: int, image: Image, out: Image) -> int:
        """Put `image` [H, W, C], the frame of the newest trigger, into `out` [rows + H, W, C] below the rows before it.

        Returns how many rows of the frame before stand there: all, or 0 where it is not the one right before.
        """
        rows = self._rows
        np.copyto(out[rows:], image)
        if rows == 0:
            return 0
        if self._kept_number == number - 1 and self._moved == 1:
            np.copyto(out[:rows], self._kept)
            return rows
        np.copyto(out[:rows], image[:rows])
        return 0

    def keep(self, number: int, image: Image | None) -> None:
        """Keep the last rows of a frame for the next one, whether or not it is inspected itself. None: no image of
        this stretch came, or one that shows another (frozen). There is nothing to keep of one of another size."""
        if self._rows and image is not None and (image.shape, image.dtype.name) == self._declared:
            np.copyto(self._kept, image[-self._rows :])
            self._kept_number = number
