"""A camera's clock on the host's monotonic clock. Pure: it is told both times and asks no clock.

A frame carries the camera's time of its exposure (free running, or PTP) and arrives some delay later. Each frame gives
`arrival - exposure = offset + delay`, with a delay that is never negative, so the least of them is nearest to the
offset: the minimum-delay filter of NTP (RFC 5905, section 10), for one way only. Two clocks drift apart by no more than
`MAX_DRIFT`, so an old minimum may have grown by that much since; it is the lower envelope of Moon, Skelly and Towsley
("Estimation and removal of clock skew from network delay measurements", INFOCOM 1999) with the slope bounded instead of
fitted:

    offset(now) = min(offset(before) + MAX_DRIFT * (now - before), arrival - exposure)

So a mapped time is never after the arrival, and off by the shortest delay seen plus what MAX_DRIFT adds since then.

What cannot be noticed: a clock that is set back by less than MAX_DELAY_NS, and by less than the pause before the next
frame. That frame looks as if it had been under way for so long. Mapped times are too early by as much, until the offset
has grown by it: MAX_DRIFT makes up for one second in 83 minutes.
"""

from __future__ import annotations

__all__ = ["MAX_DELAY_NS", "MAX_DRIFT", "CameraClock"]

MAX_DRIFT = 200e-6
"""Of two quartz clocks against each other: 100 ppm each."""

MAX_DELAY_NS = 10_000_000_000
"""No frame is under way for so long: a larger step of the offset is a clock that was set or began anew."""


class CameraClock:
    """Maps the times of one camera; `resets` counts how often its clock began anew or was set."""

    def __init__(self) -> None:
        self.resets = 0
        self._offset_ns: float | None = None
        self._camera_ns = self._arrived_ns = 0

    def to_host(self, camera_ns: int, arrived_ns: int) -> int:
        """When, on the host's clock, the frame was exposed: at `camera_ns` of the camera, here at `arrived_ns`.

        Never after its arrival. A frame that shows a reset is mapped to its arrival.
        """
        seen_ns = arrived_ns - camera_ns
        if self._offset_ns is not None and self._is_reset(camera_ns, seen_ns):
            self.resets += 1
            self._offset_ns = None
        if self._offset_ns is None:
            self._offset_ns = seen_ns
        else:
            grown_ns = self._offset_ns + MAX_DRIFT * max(0, arrived_ns - self._arrived_ns)
            self._offset_ns = min(grown_ns, seen_ns)
        self._camera_ns, self._arrived_ns = camera_ns, arrived_ns
        return min(arrived_ns, camera_ns + round(self._offset_ns))

    def _is_reset(self, camera_ns: int, seen_ns: int) -> bool:
        assert self._offset_ns is not None
        return camera_ns < self._camera_ns or abs(seen_ns - self._offset_ns) > MAX_DELAY_NS
