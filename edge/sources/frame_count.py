"""Frame ids for cameras that give none: from the times of their frames. Pure.

A frame that comes two intervals after the one before shows that one is missing between them. How long an interval is,
the stream tells: the median of the last ones, so that a rate that changes is followed, and until there are enough, what
the stream declares. What cannot be noticed: missing frames of a camera whose rate varies by half or more, and those
before the first frame.
"""

from __future__ import annotations

import statistics
from collections import deque

__all__ = ["FrameCount"]

_ENOUGH = 8
_LAST = 31
_GAP = 1.5
"""Intervals: what is longer misses at least one frame."""


class FrameCount:
    """Counts the frames of one stream, those that are missing included."""

    def __init__(self, declared_hz: float | None = None) -> None:
        """`declared_hz`: the rate that the stream says of itself; None or nonsense: it has to be learnt."""
        self._declared_ns = 1e9 / declared_hz if declared_hz and 0.1 <= declared_hz <= 1000 else None
        self._intervals: deque[int] = deque(maxlen=_LAST)
        self._last_ns: int | None = None
        self.last = -1
        """The id of the newest frame."""

    def next(self, at_ns: int | None) -> int:
        """The id of the frame that was exposed at `at_ns` of the camera's clock; by one more where no time is known.

        A clock that stands or goes back shows nothing, and is no reason to doubt the frame's place.
        """
        before, self._last_ns = self._last_ns, at_ns
        step = 1
        if at_ns is not None and before is not None and at_ns > before:
            if (interval_ns := self._interval_ns()) and at_ns - before > _GAP * interval_ns:
                step = round((at_ns - before) / interval_ns)
            self._intervals.append(at_ns - before)
        self.last += step
        return self.last

    def _interval_ns(self) -> float | None:
        if len(self._intervals) < _ENOUGH:
            return self._declared_ns
        return statistics.median(self._intervals)
