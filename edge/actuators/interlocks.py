"""What makes an actuator stop trusting itself: a fault, which stays until somebody with the right to do so resets it.

Pure. What is decided and what the inputs say goes in; new faults come out. Keeping them through a restart is
edge/actuators/latch.py.
"""

from __future__ import annotations

from collections import Counter, deque

from edge.actuators.driver import Edge, Fault, Input
from edge.actuators.in_flight import Decided
from edge.actuators.settings import Actuator

__all__ = ["UNTRACKED", "Interlocks"]

UNTRACKED = frozenset(
    {"no verdict", "ambiguous", "out of order", "tracking lost", "too close", "too young", "no count", "counts differ"}
)
"""Reasons that mean that parts and verdicts were not told apart."""
_MS = 1_000_000


class Interlocks:
    """The conditions of one actuator."""

    def __init__(self, actuator: Actuator) -> None:
        self._actuator = actuator
        self._levels: dict[Input, bool] = {}
        self._late = self._rejects = self._untracked = self._mismatches = 0
        self._due: deque[int] = deque(maxlen=1024)  # commanded ejections: until when each must be confirmed
        self._settled_ns = 0  # until then parts land that the ejector had nothing to do with
        self.counters: Counter[str] = Counter()

    def level(self, which: Input) -> bool | None:
        """What an input says; None: nothing yet."""
        return self._levels.get(which)

    def unknown(self) -> list[str]:
        """Watched inputs that have said nothing yet: nothing may pass until they have."""
        return [name for name in self._actuator.watch if Input(name) not in self._levels]

    def decided(self, decided: Decided, now_ns: int) -> list[tuple[Fault, str]]:
        """Take what was decided about a part; the faults that follow."""
        outcome, limits = decided.outcome, self._actuator
        faults = self.late() if decided.late else []
        if not decided.late:
            self._late = 0
        passed = not outcome.why
        self._rejects = 0 if passed else self._rejects + 1
        self._untracked = self._untracked + 1 if outcome.why in UNTRACKED else 0
        if limits.max_rejects is not None and self._rejects >= limits.max_rejects:
            faults.append((Fault.CONSECUTIVE_REJECTS, f"{self._rejects} parts in a row were rejected"))
        if limits.max_untracked is not None and self._untracked >= limits.max_untracked:
            faults.append((Fault.TRACKING, f"{self._untracked} parts in a row could not be told apart"))
        if outcome.ejected and limits.confirmation:
            self.counters["commanded"] += 1
            self._due.append(now_ns + limits.confirmation.within_ms * _MS)
        return faults

    def late(self) -> list[tuple[Fault, str]]:
        """An action came too late; the fault if that is one too many in a row."""
        self._late += 1
        if self._late < self._actuator.late_limit:
            return []
        return [(Fault.LATE, f"{self._late} actions in a row came too late")]

    def edge(self, edge: Edge, held: bool) -> list[tuple[Fault, str]]:
        """Take an input's edge. `held`: the ejector is held at reject, so that parts come uncommanded."""
        if edge.input is not Input.CONFIRM:
            self._levels[edge.input] = edge.level
        if edge.input is Input.CONFIRM and edge.level and self._actuator.confirmation:
            self.counters["confirmed"] += 1
            if self._due:
                self._due.popleft()
                self._mismatches = 0
            elif not held and edge.at_ns >= self._settled_ns:
                return self._mismatch("a part in the reject bin that was not ejected")
        return []

    def advance(self, now_ns: int, held: bool) -> list[tuple[Fault, str]]:
        """What time and levels make a fault."""
        faults = []
        while self._due and self._due[0] < now_ns:
            self._due.popleft()
            if not held:
                faults += self._mismatch("an ejected part that did not arrive in the reject bin")
        if "bin_full" in self._actuator.watch and self._levels.get(Input.BIN_FULL):
            faults.append((Fault.BIN_FULL, "the reject bin is full"))
        if "air_ok" in self._actuator.watch and self._levels.get(Input.AIR_OK) is False:
            faults.append((Fault.AIR, "the air pressure is too low to eject"))
        return faults

    def inhibited(self, now_ns: int) -> None:
        """The ejector rests whatever is decided: parts that land now, or are on their way, agree with no command."""
        self._due.clear()
        if self._actuator.confirmation:
            self._settled_ns = now_ns + self._actuator.confirmation.within_ms * _MS

    def reset(self) -> None:
        """Start counting again."""
        self._late = self._rejects = self._untracked = self._mismatches = 0
        self._due.clear()

    def _mismatch(self, what: str) -> list[tuple[Fault, str]]:
        self.counters["mismatches"] += 1
        self._mismatches += 1
        limits = self._actuator.confirmation
        if limits is None or self._mismatches < limits.mismatches:
            return []
        return [(Fault.CONFIRMATION, f"{what}; {self._mismatches} times in a row, commanded and confirmed disagree")]
