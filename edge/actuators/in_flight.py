"""What is on its way from a lane's cameras to an actuator, and which verdicts count for it.

`Fifo` follows parts to an ejector, `WebMarker` a web to a marker; what makes a verdict worth anything is the same for
both, and stands here. A verdict counts only if it is of the journal, the boot and the start of the line whose
heartbeats arrive, if it was in time, and if its trigger lies after the moment when tracking was lost last.

Pure: no clock, no socket, no hardware.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

from edge.actuators.answers import Seen
from edge.actuators.driver import PartOutcome
from edge.messages import Verdict

__all__ = ["Decided", "InFlight", "Now"]


@dataclass(frozen=True)
class Now:
    """This moment."""

    ns: int  # monotonic clock
    count: int | None = None  # of the encoder


@dataclass(frozen=True)
class Decided:
    """What was decided about a part, or the web of a frame."""

    outcome: PartOutcome
    verdict: Verdict | None
    late: bool  # there was something to do for it, and it was too late


class InFlight(ABC):
    """What is in flight on one lane, in front of one actuator."""

    def __init__(self, lane: str, start_ns: int) -> None:
        """What was triggered before `start_ns` is rejected: nobody knows what became of it meanwhile."""
        self._lane = lane
        self._line: tuple[str, str] | None = None  # epoch and boot id of the heartbeats
        self._run = -1
        self._lost_ns = start_ns
        self.counters: Counter[str] = Counter()

    def line(self, epoch: str, boot_id: str, now_ns: int) -> None:
        """Whose heartbeats arrive: verdicts of another epoch or boot are of another line, or of another life of it."""
        if (epoch, boot_id) != self._line:
            self._line, self._run = (epoch, boot_id), -1
            self._forget()
            self.lose("another journal or boot", now_ns)

    def hear(self, verdict: Verdict, trigger_ns: int | None, bound_ns: int, now_ns: int) -> None:
        """Take a verdict. `trigger_ns`: its trigger by this box's clock, off by at most `bound_ns`; None: unknown."""
        if verdict.lane != self._lane:
            return
        if (verdict.epoch, verdict.boot_id) != self._line or verdict.run < self._run:
            self.counters["verdicts_of_another_run"] += 1
            return
        if verdict.run > self._run:
            first, self._run = self._run < 0, verdict.run
            self._forget()
            if not first:
                self.lose("the line was started again", now_ns)
        if not self._take(verdict, trigger_ns, bound_ns):
            self.counters["verdicts_sent_again"] += 1

    def lose(self, why: str, now_ns: int) -> None:
        """Tracking is lost: whatever is in flight is rejected."""
        self.counters["tracking_lost"] += 1
        self.counters[f"tracking_lost.{why}"] += 1
        self._lost_ns = max(self._lost_ns, now_ns)
        self._spoil()

    def _untimely(self, verdict: Verdict, trigger_ns: int | None, bound_ns: int) -> str:
        """Why this verdict counts for nothing, whatever it says; empty: it counts."""
        if verdict.late:
            return "late"
        if trigger_ns is None:
            return "clock"
        return "tracking lost" if trigger_ns - bound_ns <= self._lost_ns else ""

    @abstractmethod
    def _forget(self) -> None:
        """Another start of the line: no verdict of the one before counts."""

    @abstractmethod
    def _take(self, verdict: Verdict, trigger_ns: int | None, bound_ns: int) -> bool:
        """Take a verdict of this start of the line; False: it was taken before."""

    @abstractmethod
    def _spoil(self) -> None:
        """Reject all that is in flight."""

    @property
    @abstractmethod
    def parts(self) -> int:
        """How many parts, or frames of the web, are in flight."""

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether more came than can be."""

    @abstractmethod
    def sense(self, seen: Seen, now_ns: int) -> None:
        """A part is at the sensor."""

    @abstractmethod
    def advance(self, now: Now, unable: str) -> list[Decided]:
        """Decide on all that has reached the actuator. `unable`: why nothing may pass now; empty: it may."""

    @abstractmethod
    def ejects(self, now: Now) -> bool:
        """Whether the actuator must be at reject, or mark, now."""

    @abstractmethod
    def overrun(self, now: Now) -> bool:
        """Whether a part that was let pass was there so long ago that the way was open for another one."""

    @abstractmethod
    def next_ns(self) -> int | None:
        """When the actuator must be switched next, by the clock; None: nothing is due, or an encoder says when."""
