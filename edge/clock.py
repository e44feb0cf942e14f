"""How far another box's clock is from ours, and how well that is known.

A question leaves at `sent`, is answered with the other clock's `server`, and the answer is here at `received`. Whatever
the ways took, the other clock's lead lies between `server - received` and `server - sent`. Every sample narrows this,
and loses its worth with age, as clocks drift. Pure: no clock is read here.
"""

from __future__ import annotations

from collections import deque

__all__ = ["DRIFT_PPM", "ClockOffset"]

DRIFT_PPM = 500
"""Of one monotonic clock against another: as much as NTP may slew, and crystals are ten times better."""

SAMPLES = 64
"""Kept at most: 16 s of heartbeats. An older one has lost 8 ms of its worth."""


class ClockOffset:
    """The offset of a server's monotonic clock to ours, with its bound, out of round trips."""

    def __init__(self, drift_ppm: int = DRIFT_PPM) -> None:
        self._drift_ppm = drift_ppm
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=SAMPLES)  # sent, and the lead's least and most
        self.boot_id = ""
        """Of the box whose clock it is: an offset means nothing after its next boot."""

    def add(self, sent_ns: int, server_ns: int, received_ns: int, boot_id: str = "") -> None:
        """Take a sample: our clock at the question and at its answer, the server's in between.

        Raises ValueError for an answer before its question.
        """
        if received_ns < sent_ns:
            raise ValueError(f"answered {sent_ns - received_ns} ns before it was asked")
        if boot_id != self.boot_id:
            self._samples.clear()
            self.boot_id = boot_id
        # The server looked at its clock at some time since the question: so old is what it said.
        self._samples.append((sent_ns, server_ns - received_ns, server_ns - sent_ns))
        low, high = self.range(received_ns)
        if low > high:  # one of the clocks stood still or was slewed faster than any drift: what was known is void
            newest = self._samples[-1]
            self._samples.clear()
            self._samples.append(newest)

    @property
    def known(self) -> bool:
        """Whether there is a sample at all."""
        return bool(self._samples)

    def range(self, now_ns: int) -> tuple[int, int]:
        """The least and the most that the server's clock may lead ours at `now_ns` of ours, ns.

        Raises ValueError while nothing is known.
        """
        drifted = [(now_ns - at_ns) * self._drift_ppm // 1_000_000 for at_ns, _, _ in self._samples]
        low = max(least - d for (_, least, _), d in zip(self._samples, drifted, strict=True))
        high = min(most + d for (_, _, most), d in zip(self._samples, drifted, strict=True))
        return low, high

    def offset_ns(self, now_ns: int) -> int:
        """What to add to our clock's time to have the server's; off by at most `bound_ns`. ValueError: not known."""
        low, high = self.range(now_ns)
        return (low + high) // 2

    def bound_ns(self, now_ns: int) -> int:
        """How far off `offset_ns` may be. ValueError: not known."""
        low, high = self.range(now_ns)
        return (high - low + 1) // 2
