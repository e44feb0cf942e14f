"""What frames of a web hand on: a defect that crosses their border is one, and its area that of all of it; pure.

The windows of two frames have rows of the web in common. Up to the first row that the later one judges a defect's
pixels are counted in the earlier frame, from there on in the later one: none twice. In the rows that both judge, what
either has above the map's threshold counts, as where tiles overlap. So a frame hands on which areas reach that row, and
how large they are up to there, with what was handed to it; the next one adds that to those of its own that touch them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Carry", "Chain", "Seam"]


class Seam(NamedTuple):
    """Where two windows meet, in rows of the prepared picture, which resizing rounds."""

    top: int
    """The first row of a window that is judged, where the frame before stands above it ..."""
    onward: int
    """... and the row of the frame before's window that shows the same of the web."""
    bottom: int
    """Behind the last row of a window that is judged."""


@dataclass(frozen=True)
class Carry:
    """What a frame hands on to the next one."""

    seam: Seam
    above: NDArray[np.bool_]
    """[1 + rows that both judge, W]: what is above the threshold; the first row is the last that the next frame does
    not judge."""
    labels: NDArray[np.int64]
    """[W]: the areas in its first row, 0 where there is none."""
    sizes: NDArray[np.float64]
    """[n]: how many pixels the area of each label has, up to that row."""

    @classmethod
    def nothing(cls, seam: Seam, width: int) -> Carry:
        """What is handed to a frame that does not follow one that was judged."""
        rows = 1 + seam.bottom - seam.onward
        return cls(seam, np.zeros((rows, width), bool), np.zeros(width, np.int64), np.zeros(1))

    def lay_over(self, above: NDArray[np.bool_]) -> None:
        """Add to `above` [H, W], what the next frame has above the threshold, what this one has in common rows."""
        top = self.seam.top
        above[top : top + len(self.above) - 1] |= self.above[1:]

    def add_to(
        self, above: NDArray[np.bool_], labels: NDArray[np.int32], pixels: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], Carry]:
        """The sizes [n] of the areas of the next frame with what was handed on to them, and what it hands on itself.

        `labels` [H, W]: the areas of `above`, as `lay_over` left it; `pixels` [n]: how many each has, 0 for label 0.
        """
        top, onward, bottom = self.seam
        whole, before = self._join(labels[top], len(pixels))
        sizes = np.bincount(whole, pixels, len(pixels)) + before
        beyond = np.bincount(labels[onward:].ravel(), minlength=len(pixels))
        beyond[0] = 0
        up_to = sizes - np.bincount(whole, beyond, len(pixels))
        last = onward - 1
        return sizes[whole], Carry(self.seam, above[last:bottom].copy(), whole[labels[last]], up_to)

    def _join(self, first: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """By label of the next frame, whose first judged row is `first` [W]: the label of the area that it is one with,
        through what both touch in this frame; and by these, how many pixels that has in this frame and before."""
        parent: dict[int, int] = {}  # labels of this frame are negative: the largest of an area is one of the next

        def root(i: int) -> int:
            while parent.setdefault(i, i) != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for ours, theirs in self._touching(first):
            low, high = sorted((root(-ours), root(theirs)))
            parent[low] = high
        whole, before = np.arange(count), np.zeros(count)
        for i in list(parent):
            if i > 0:
                whole[i] = root(i)
            else:
                before[root(i)] += self.sizes[-i]
        return whole, before

    def _touching(self, first: NDArray[np.int32]) -> set[tuple[int, int]]:
        """The pairs of labels, ours and those of `first` [W], of which pixels are neighbours, a corner included."""
        ours, pairs = self.labels, set[tuple[int, int]]()
        for a, b in ((ours, first), (ours[1:], first[:-1]), (ours[:-1], first[1:])):
            both = (a > 0) & (b > 0)
            pairs.update(zip(a[both].tolist(), b[both].tolist(), strict=True))
        return pairs


class Chain:
    """What is handed on from frame to frame of one web, as long as each is judged and follows the one before."""

    def __init__(self, nothing: Carry | None) -> None:
        """`nothing`: see `StationPlan.carry`."""
        self._nothing, self._newest = nothing, nothing
        self._number: int | None = None

    def before(self, number: int, rows_before: int) -> Carry | None:
        """What is handed to a frame; `rows_before`: see `FrameRef`. None where nothing is added up."""
        return self._newest if rows_before and self._number == number - 1 else self._nothing

    def keep(self, number: int, carry: Carry | None) -> None:
        """Keep what a frame that was judged hands on."""
        self._number, self._newest = number, carry
