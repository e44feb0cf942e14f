"""The handshake with a PLC, as integrators know it: trigger ready, trigger and ack; busy; results valid and ack;
overrun, missed.

Pure: it knows neither sockets nor clocks nor threads. What the PLC wrote goes in, edges and a register image come out.
Every trigger is passed on as an edge, also one that comes while not ready: the part is there, and must be rejected.
What the PLC did not take in time is dropped, counted and never shown later: a stale result belongs to another part.
"""

from __future__ import annotations

import math
from collections import deque

from edge.actuators.driver import MAX_ID16, Edge, Fault, Input, PartOutcome, Status, id16
from edge.actuators.driver_settings import ModbusDriver
from edge.actuators.modbus_map import (
    CONTROL_WORDS,
    DECISIONS,
    GATE_STATES,
    NO_SCORE,
    RESULT,
    STATUS_WORDS,
    ControlBit,
    ControlWord,
    ResultFlag,
    StatusBit,
    StatusWord,
    why_code,
)
from edge.messages import Verdict
from edge.verdict import GateState

__all__ = ["Handshake"]

MAX_CONFIRMED_AT_ONCE = 64
"""A larger jump of the PLC's count of confirmations is a PLC that started again."""
_MS = 1_000_000
_ONCE = ControlBit.RESET | ControlBit.CHANGE_OVER
_LEVELS = {"bin_full": (ControlBit.BIN_FULL, Input.BIN_FULL), "air_ok": (ControlBit.AIR_OK, Input.AIR_OK)}


class Handshake:
    """Both sides' registers, and what follows from them."""

    def __init__(self, settings: ModbusDriver, *, eject: bool) -> None:
        """`eject`: what the bit EJECT says from the first image on."""
        self.silent = True  # until the PLC's heartbeat changes for the first time
        self.alive = False  # until ours does
        self._settings = settings
        self._control = [0] * CONTROL_WORDS
        self._words = [0] * STATUS_WORDS
        self._bits = StatusBit.PLC_SILENT
        self._status = Status(gate=None)
        self._heard: int | None = None  # the PLC's heartbeat word
        self._heard_ns = self._beat_ns = 0
        # A bit fires only after it was seen low. A reset that is stuck high resets nothing when we start again, and
        # a trigger that is high then is a part.
        self._armed = ControlBit.TRIGGER
        self._levels: dict[Input, bool] = {Input.COMMISSIONING: False}
        self._confirmed: int | None = None
        self._outstanding: deque[tuple[int, int]] = deque()  # acknowledged triggers: part id, when
        self._results: deque[list[int]] = deque()
        self._shown_ns = 0
        self._withdrawn: bool | None = None  # False: and the PLC has seen RESULTS_VALID low; None: nothing was
        self.eject(eject)

    def resume(self, image: list[int]) -> None:
        """What an earlier start left in the PLC's own registers: HEARTBEAT and LINE_OK go on from there, and our first
        image changes neither."""
        self._words[StatusWord.HEARTBEAT] = image[StatusWord.HEARTBEAT]
        self._flag(StatusBit.LINE_OK, bool(image[StatusWord.BITS] & StatusBit.LINE_OK))

    def written(self, offset: int, values: list[int], now_ns: int) -> list[Edge]:
        """The PLC wrote `values` from `offset` of the control block on; what that means."""
        self.advance(now_ns)
        self._control[offset : offset + len(values)] = values
        covers = range(offset, offset + len(values))
        if ControlWord.HEARTBEAT in covers:
            self._heartbeat(self._control[ControlWord.HEARTBEAT], now_ns)
        edges = self._confirmations(now_ns) if ControlWord.CONFIRMED in covers else []
        if ControlWord.BITS in covers:
            edges += self._bits_written(ControlBit(self._control[ControlWord.BITS] & 0x7F), now_ns)
        self._show(now_ns)
        return edges

    def image(self, now_ns: int) -> list[int]:
        """The status block now, result block included: it changes only while RESULTS_VALID is low."""
        self.advance(now_ns)
        self._flag(StatusBit.TRIGGER_READY, self._ready())
        self._flag(StatusBit.BUSY, bool(self._outstanding))
        self._words[StatusWord.BITS] = int(self._bits)
        self._words[StatusWord.BUFFERED] = len(self._results)
        return self._words[:]

    def seen(self, image: list[int]) -> None:
        """The PLC has the bits of this image."""
        if self._withdrawn and not image[StatusWord.BITS] & StatusBit.RESULTS_VALID:
            self._withdrawn = False

    def tell(self, verdict: Verdict | None, part: PartOutcome, now_ns: int) -> None:
        """A part's result for the PLC: shown when those before it are taken."""
        self.advance(now_ns)
        triggered_as = 0 if part.part_id is None else part.id16
        answered = next((t for t in self._outstanding if t[0] == triggered_as), None)
        if answered:
            self._outstanding.remove(answered)
        if self.silent or len(self._results) >= self._settings.buffered_results:
            self._miss(1)
            return
        self._results.append(_result(verdict, part))
        self._show(now_ns)

    def report(self, status: Status) -> None:
        """What the actuator is doing."""
        self._status = status
        self._words[StatusWord.GATE_STATE] = GATE_STATES[status.gate]
        self._words[StatusWord.FAULT] = int(status.fault)
        self._words[StatusWord.RECIPE] = status.recipe & MAX_ID16
        self._flag(StatusBit.FAULT, status.fault is not Fault.NONE)
        self._flag(StatusBit.COMMISSIONING, status.commissioning)

    def eject(self, on: bool) -> None:
        """The ejector's output."""
        self._flag(StatusBit.EJECT, on)

    def line_ok(self, level: bool) -> None:
        """The LINE-OK output."""
        self._flag(StatusBit.LINE_OK, level)

    def beat(self, now_ns: int) -> bool:
        """The loop is alive: our heartbeat word changes when it is due. Returns whether it did."""
        if now_ns - self._beat_ns < self._settings.heartbeat_ms * _MS:
            return False
        self.alive, self._beat_ns = True, now_ns
        self._words[StatusWord.HEARTBEAT] = (self._words[StatusWord.HEARTBEAT] + 1) & 0xFFFF
        return True

    def advance(self, now_ns: int) -> None:
        """What only time brings: silence, results that nobody takes, triggers that get none."""
        if not self.silent and now_ns - self._heard_ns > self._settings.heartbeat_timeout_ms * _MS:
            self._fall_silent()
        if self._bits & StatusBit.RESULTS_VALID and now_ns - self._shown_ns > self._settings.ack_timeout_ms * _MS:
            self._withdraw()
        while self._outstanding and now_ns - self._outstanding[0][1] > self._settings.result_timeout_ms * _MS:
            self._outstanding.popleft()
            self._miss(1)

    def _ready(self) -> bool:
        return (
            not self.silent
            and self._status.gate in (GateState.READY, GateState.DEGRADED)
            and self._status.fault is Fault.NONE
            and len(self._outstanding) < self._settings.parts_in_flight
            and not self._bits & (StatusBit.TRIGGER_ACK | StatusBit.CHANGE_OVER_ACK)
        )

    def _bits_written(self, bits: ControlBit, now_ns: int) -> list[Edge]:
        rising = bits & self._armed
        edges = self._level_edges(bits, now_ns)
        if rising & ControlBit.TRIGGER:
            edges.append(self._triggered(now_ns))
        elif not bits & ControlBit.TRIGGER and not self._armed & ControlBit.TRIGGER:
            self._flag(StatusBit.TRIGGER_ACK, False)
            edges.append(Edge(Input.SENSOR, False, now_ns))
        if rising & ControlBit.RESET:
            self._flag(StatusBit.OVERRUN | StatusBit.MISSED, False)
            edges.append(Edge(Input.RESET, True, now_ns))
        if rising & ControlBit.CHANGE_OVER:
            edges.append(Edge(Input.CHANGE_OVER, True, now_ns, recipe=self._control[ControlWord.RECIPE]))
            self._flag(StatusBit.CHANGE_OVER_ACK, True)
        elif not bits & ControlBit.CHANGE_OVER:
            self._flag(StatusBit.CHANGE_OVER_ACK, False)
        if bits & ControlBit.RESULTS_ACK:
            self._flag(StatusBit.RESULTS_VALID, False)
        self._armed = ~bits & (ControlBit.TRIGGER | _ONCE)
        return edges

    def _triggered(self, now_ns: int) -> Edge:
        part_id = self._control[ControlWord.PART_ID]
        if self._ready():
            self._outstanding.append((part_id, now_ns))
            self._words[StatusWord.TRIGGER_ID] = part_id
            self._flag(StatusBit.TRIGGER_ACK, True)
        else:
            self._count(StatusWord.OVERRUNS, 1)
            self._flag(StatusBit.OVERRUN, True)
        return Edge(Input.SENSOR, True, now_ns, part_id=part_id or None)

    def _level_edges(self, bits: ControlBit, now_ns: int) -> list[Edge]:
        wired = [_LEVELS[name] for name in sorted(set(self._settings.inputs)) if name in _LEVELS]
        edges = []
        for bit, which in [*wired, (ControlBit.COMMISSIONING, Input.COMMISSIONING)]:
            level = bool(bits & bit)
            if self._levels.get(which) is not level:
                self._levels[which] = level
                edges.append(Edge(which, level, now_ns))
        return edges

    def _confirmations(self, now_ns: int) -> list[Edge]:
        count = self._control[ControlWord.CONFIRMED]
        more = 0 if self._confirmed is None else (count - self._confirmed) & 0xFFFF
        self._confirmed = count
        if "confirm" not in self._settings.inputs or more > MAX_CONFIRMED_AT_ONCE:
            return []
        return [Edge(Input.CONFIRM, True, now_ns)] * more

    def _heartbeat(self, word: int, now_ns: int) -> None:
        before, self._heard = self._heard, word
        if before in (None, word):  # the first value may have stood there for days
            return
        self._heard_ns = now_ns
        self.silent = False
        self._flag(StatusBit.PLC_SILENT, False)
        if self._withdrawn is False:  # a whole turn of the PLC's program since: its ack cannot be for that result
            self._withdrawn = None

    def _fall_silent(self) -> None:
        self.silent = True
        self._flag(StatusBit.PLC_SILENT, True)
        self._armed &= ~_ONCE
        self._miss(len(self._results) + len(self._outstanding))
        self._results.clear()
        self._outstanding.clear()
        if self._bits & StatusBit.RESULTS_VALID:
            self._withdraw()

    def _withdraw(self) -> None:
        self._miss(1)
        self._flag(StatusBit.RESULTS_VALID, False)
        self._withdrawn = True

    def _show(self, now_ns: int) -> None:
        taken = not self._control[ControlWord.BITS] & ControlBit.RESULTS_ACK
        if not self._results or not taken or self._bits & StatusBit.RESULTS_VALID or self._withdrawn is not None:
            return
        number = id16(self._words[StatusWord.RESULT_HEAD] + 1)
        self._words[RESULT] = [number, *self._results.popleft(), number]
        self._flag(StatusBit.RESULTS_VALID, True)
        self._shown_ns = now_ns

    def _miss(self, results: int) -> None:
        if results:
            self._count(StatusWord.MISSES, results)
            self._flag(StatusBit.MISSED, True)

    def _count(self, word: StatusWord, more: int) -> None:
        self._words[word] = (self._words[word] + more) & 0xFFFF

    def _flag(self, bit: StatusBit, on: bool) -> None:
        self._bits = self._bits | bit if on else self._bits & ~bit


def _result(verdict: Verdict | None, part: PartOutcome) -> list[int]:
    """The result block between its head and its tail."""
    flags, score, defects = ResultFlag(0), NO_SCORE, 0
    if part.ejected:
        flags |= ResultFlag.EJECTED
    if verdict is not None:
        flags |= ResultFlag.LATE if verdict.late else ResultFlag(0)
        flags |= ResultFlag.SIMULATED if verdict.simulated else ResultFlag(0)
        score = _permille(verdict.score, verdict.threshold)
        defects = min(sum(len(v.boxes) for v in verdict.views), 0xFFFF)
    return [part.id16, DECISIONS[part.decision], why_code(part.why), int(flags), score, defects]


def _permille(score: float | None, threshold: float | None) -> int:
    if score is None or not threshold or not math.isfinite(score) or not math.isfinite(threshold):
        return NO_SCORE
    return max(0, min(round(1000 * score / threshold), NO_SCORE - 1))
