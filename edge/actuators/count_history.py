"""What this box's encoder said at a moment that is past: whether two counters still have one zero.

The camera's trigger is counted by the camera or its light barrier, the part at the sensor by the actuator's box. Each
of the two counters starts again by itself: with the power of its device, at its own width. Behind such a jump any part
may fit the verdict of any other, and on a regular belt go on to fit it. But both count one encoder: what the camera's
counter said at a trigger, ours must have said at that time.

Pure: no clock, no hardware.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

__all__ = ["CountHistory"]


class CountHistory:
    """Counts of one encoder, to within `step` counts, as far back as `keep_ns`."""

    def __init__(self, step: int, keep_ns: int) -> None:
        self._step, self._keep_ns = step, keep_ns
        self._samples: deque[tuple[int, int]] = deque()  # ns, count

    def add(self, now_ns: int, count: int) -> None:
        """What the encoder says now; times never fall."""
        if not self._samples or abs(count - self._samples[-1][1]) >= self._step:
            self._samples.append((now_ns, count))
        while len(self._samples) > 1 and self._samples[1][0] < now_ns - self._keep_ns:
            self._samples.popleft()

    def clear(self) -> None:
        """Nothing is known any more: the encoder says nothing."""
        self._samples.clear()

    def fits(self, count: int, at_ns: int, bound_ns: int, tolerance: int) -> bool | None:
        """Whether the encoder may have said `count`, `tolerance` more or less, at `at_ns`, `bound_ns` more or less.

        None where nothing is known of that time.
        """
        samples = self._samples
        if not samples or at_ns - bound_ns < samples[0][0]:
            return None
        first = bisect_left(samples, (at_ns - bound_ns, 0)) - 1
        last = bisect_left(samples, (at_ns + bound_ns, 0))
        counts = [samples[i][1] for i in range(max(0, first), min(last, len(samples) - 1) + 1)]
        return min(counts) - self._step - tolerance <= count <= max(counts) + self._step + tolerance
