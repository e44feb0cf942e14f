"""Parts in flight, and what the ejector does about each: reject by default.

Pure: no clock, no socket, no hardware. A part enters when the sensor sees it. When it reaches the ejector, it is let
pass only if one verdict, and no other part, belongs to it, and that verdict is a PASS of this start of the line, in
time, young enough, and next in number to the verdict of the part before it.

The last condition finds what a window cannot: an encoder that slips by just the distance between two parts gives every
part its neighbour's verdict. The first part that this happens to comes out of order. From then on nothing that was on
its way is trusted: tracking is lost, and every part whose trigger lies before that moment is rejected. So a part that
was taken off the belt, or one that the camera missed, costs the parts in flight behind it.

And where parts are matched by counts, a verdict's count must be what our own encoder said at the time of its trigger: a
camera's counter that starts again with its power would fit every part to another one's verdict, in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edge.actuators.answers import Answers, Seen, Waiting
from edge.actuators.count_history import CountHistory
from edge.actuators.driver import PartOutcome
from edge.actuators.in_flight import Decided, InFlight, Now
from edge.actuators.settings import Actuator, MatchByCount, MatchById, MatchByWeb
from edge.messages import Verdict
from edge.verdict import Decision

__all__ = ["MAX_PARTS", "Fifo"]

MAX_PARTS = 256
"""Parts between sensor and ejector. More are no parts: the sensor chatters while the belt stands."""
MAX_UNFIRED = 3
"""The same for an ejector that rests at pass. Two parts never wait for it: its encoder stands while the belt runs."""
_MS = 1_000_000


@dataclass
class _Part:
    """A part from the sensor on."""

    seen: Seen
    position: int  # of the sensor's edge, in counts or ns
    spoilt: str = ""  # why it is rejected, whatever its verdict says
    decided: bool = False
    passes: bool = False
    late: bool = False  # too late to act for it


class Fifo(InFlight):
    """The parts in flight of one ejector."""

    def __init__(self, actuator: Actuator, start_ns: int) -> None:
        """See InFlight."""
        super().__init__(actuator.lane, start_ns)
        self._at_rest = actuator.at_rest
        self._max_age_ns, self._min_age_ns = actuator.max_age_ms * _MS, actuator.min_age_ms * _MS
        timing = actuator.timing
        self._counts = timing.unit == "counts"
        unit = 1 if self._counts else _MS
        self._delay, self._pulse = timing.delay * unit, timing.pulse * unit
        self._tolerance, self._min_spacing = timing.tolerance * unit, timing.min_spacing * unit
        self._by_id = isinstance(actuator.match, MatchById)
        by_count = isinstance(actuator.match, MatchByCount)
        self._encoder = self._counts or by_count
        self._slack = actuator.match.window_counts if isinstance(actuator.match, MatchByCount) else timing.tolerance
        assert not isinstance(actuator.match, MatchByWeb)  # a marker follows no parts: edge/actuators/web_marker.py
        self._answers = Answers(actuator.match)
        self._most = MAX_UNFIRED if self._at_rest == "pass" and actuator.has_ejector else MAX_PARTS
        self._history: CountHistory | None = None
        if isinstance(actuator.match, MatchByCount):  # the verdict of a neighbour is at least `apart` counts off
            apart = timing.min_spacing - actuator.match.window_counts
            step = max(1, apart // 8)
            self._history, self._apart = CountHistory(step, 2 * self._max_age_ns), apart - 2 * step
        self._parts: deque[_Part] = deque()
        self._last_position: int | None = None  # of the sensor's newest edge
        self._peak: int | None = None  # of the encoder
        self._blind = False  # the encoder says nothing
        self._number: int | None = None  # of the part that was decided last, if it had one verdict

    @property
    def parts(self) -> int:
        """Parts between sensor and ejector."""
        return len(self._parts)

    @property
    def full(self) -> bool:
        """Whether more edges came than parts can be."""
        return len(self._parts) >= self._most

    def sense(self, seen: Seen, now_ns: int) -> None:
        """A part is at the sensor."""
        self.counters["sensed"] += 1
        position = seen.count if self._counts else seen.at_ns
        part = _Part(seen, position if position is not None else self._last_position or 0)
        if position is None:
            part.spoilt = "no count"
            self.lose("the encoder says nothing", now_ns)
        before, self._last_position = self._last_position, part.position
        if before is not None and part.position - before < self._min_spacing:
            part.spoilt = "too close"
            self.lose("two parts closer than min_spacing", now_ns)
        if self.full:
            self.lose("more parts than can be", now_ns)
            self.counters["overflow"] += 1
            return
        self._parts.append(part)

    def advance(self, now: Now, unable: str) -> list[Decided]:
        """Decide on every part that has reached the ejector. `unable`: why nothing may pass now; empty: it may."""
        self._watch_encoder(now)
        self._answers.forget_before(now.ns - self._max_age_ns)
        here = self._here(now)
        if here is None:
            return []
        while self._parts and self._parts[0].decided and here >= self._end(self._parts[0]):
            self._parts.popleft()
        return [
            self._decide(part, now, here, unable)
            for part in list(self._parts)
            if not part.decided and here >= self._start(part)
        ]

    def ejects(self, now: Now) -> bool:
        """Whether the ejector must be at reject now."""
        here = self._here(now)
        if here is None:
            return self._at_rest == "reject"
        there = [p for p in self._parts if p.decided and self._start(p) <= here < self._end(p)]
        if self._at_rest == "reject":
            return not there or any(p.spoilt or not p.passes or p.late for p in there)
        return any((p.spoilt or not p.passes) and not p.late for p in there)

    def overrun(self, now: Now) -> bool:
        """Whether a part that was let pass was there so long ago that the way was open for another one."""
        here = self._here(now)
        return here is not None and any(p.passes and here > self._end(p) + self._tolerance for p in self._parts)

    def next_ns(self) -> int | None:
        """When the ejector must be switched next, by the clock; None: nothing is due, or an encoder says when."""
        if self._counts:
            return None
        return min((self._end(p) if p.decided else self._start(p) for p in self._parts), default=None)

    def _forget(self) -> None:
        self._answers.clear()

    def _take(self, verdict: Verdict, trigger_ns: int | None, bound_ns: int) -> bool:
        return self._answers.add(Waiting(verdict, trigger_ns, bound_ns))

    def _spoil(self) -> None:
        self._number = None
        for part in self._parts:
            if part.passes and not part.spoilt:
                self.counters["revoked"] += 1
            part.spoilt = part.spoilt or "tracking lost"

    def _watch_encoder(self, now: Now) -> None:
        if not self._encoder:
            return
        if self._history and now.count is not None:
            self._history.add(now.ns, now.count)
        blind, self._blind = self._blind, now.count is None
        if now.count is None or blind:
            if self._history:
                self._history.clear()
            if self._blind is not blind:
                self.lose("the encoder says nothing", now.ns)
        elif self._peak is None or now.count > self._peak:
            self._peak = now.count
        elif now.count < self._peak - self._slack:
            self._peak = now.count
            self.lose("the encoder went back", now.ns)

    def _decide(self, part: _Part, now: Now, here: int, unable: str) -> Decided:
        part.decided, spoilt = True, part.spoilt  # losing tracking now spoils it, and is not why
        answer, why = self._own_answer(part, now)
        why = spoilt or why or (self._worth(answer, now) if answer else "no verdict") or unable
        too_late = here > self._start(part) + self._tolerance
        part.passes = not why and not too_late
        wanted_to_act = (not why) if self._at_rest == "reject" else bool(why)
        part.late = too_late and wanted_to_act
        if part.late:
            self.counters["late"] += 1
        self.counters["passed" if part.passes else "rejected"] += 1
        if not part.passes:
            self.counters[f"rejected.{why or 'late'}"] += 1
        verdict = answer.verdict if answer else None
        said = verdict.decision if verdict and verdict.decision is not Decision.PASS else Decision.UNINSPECTED
        outcome = PartOutcome(
            number=verdict.part if verdict else None,
            lane=self._lane,
            part_id=part.seen.part_id,
            decision=Decision.PASS if part.passes else said,
            why="" if part.passes else why or "late",
            ejected=not part.passes and not (part.late and self._at_rest == "pass"),
        )
        return Decided(outcome, verdict, part.late)

    def _own_answer(self, part: _Part, now: Now) -> tuple[Waiting | None, str]:
        """The verdict of this part, and why it cannot be trusted to be its own; empty: it can."""
        found = self._answers.find(part.seen)
        shared = len(found) > 1 or any(w.taken_by is not None for w in found)
        for answer in found:
            answer.taken_by = part.seen
        if not found:
            if not self._by_id:
                self.lose("a part without a verdict", now.ns)
            return None, "no verdict"
        if shared:
            self.counters["ambiguous"] += 1
            if not self._by_id:
                self.lose("parts and verdicts cannot be told apart", now.ns)
            return None, "ambiguous"
        answer, number = found[0], found[0].verdict.part
        doubt = ""
        if not self._by_id and self._number != number - 1:
            doubt = "out of order"
            self.lose("a part out of order", now.ns)
        elif not self._counts_agree(answer):
            doubt = "counts differ"
            self.lose("the camera's counter and ours differ", now.ns)
        self._number = number
        return answer, doubt

    def _counts_agree(self, answer: Waiting) -> bool:
        """Whether our encoder said at the trigger what the camera's counter said then, or nobody knows: of a time so
        long ago, or before tracking was lost, no verdict counts anyway."""
        count, at_ns = answer.verdict.count, answer.trigger_ns
        if self._history is None or count is None or at_ns is None:
            return True
        return self._history.fits(count, at_ns, answer.bound_ns, self._apart) is not False

    def _worth(self, answer: Waiting, now: Now) -> str:
        """Why this verdict lets nothing pass; empty: it is a PASS that counts."""
        verdict = answer.verdict
        if verdict.decision is not Decision.PASS:
            return verdict.reason.value if verdict.reason else verdict.decision.value.lower()
        untimely = self._untimely(verdict, answer.trigger_ns, answer.bound_ns)
        if untimely or answer.trigger_ns is None:
            return untimely
        age_ns = now.ns - answer.trigger_ns
        if age_ns + answer.bound_ns > self._max_age_ns:
            return "too old"
        if age_ns - answer.bound_ns < self._min_age_ns:
            self.lose("a part that came too fast", now.ns)
            return "too young"
        return ""

    def _here(self, now: Now) -> int | None:
        return now.count if self._counts else now.ns

    def _start(self, part: _Part) -> int:
        return part.position + self._delay

    def _end(self, part: _Part) -> int:
        return part.position + self._delay + self._pulse
