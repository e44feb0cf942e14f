"""The ledger: which parts are open, and what must be said of each, when. No sockets, no clock, no disk.

A part opens with the first trigger of one of its views and closes once, with one verdict: when every expected view was
answered, or shortly before its deadline, whatever is missing then.

Views are joined by their numbers. One trigger that a station does not take shifts all its later numbers, so where the
recipe says how far behind the lane's first station another one is, each view must also lie where it belongs. From the
first one on that does not, no view of that station counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from edge.messages import SourceEnded, Trigger, View, ViewResult
from edge.settings import Mode, Recipe
from edge.verdict import Decision, Reason, worst

__all__ = ["MARGIN_NS", "MAX_GAP", "Answer", "Ledger", "Part", "view_of", "withdraw"]

MARGIN_NS = 5_000_000
"""The gate answers this long before the deadline, so that the answer is out on time."""

_MS = 1_000_000

MAX_GAP = 10_000
"""A larger jump of the trigger numbers is a broken counter, not so many missed parts: they are answered in one turn."""


@dataclass
class Part:
    """An open part."""

    lane: str
    number: int
    expected: tuple[str, ...]
    triggers: dict[str, Trigger] = field(default_factory=dict)  # by station
    results: dict[str, ViewResult] = field(default_factory=dict)

    @property
    def first_ns(self) -> int:
        return min(t.at_ns for t in self.triggers.values())

    @property
    def count(self) -> int | None:
        """The encoder's count at the lane's first station: all views have their own, and this one always counts."""
        first = self.triggers.get(self.expected[0])
        return first.count if first else None

    @property
    def part_id(self) -> int | None:
        return next((t.part_id for t in self.triggers.values() if t.part_id is not None), None)

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.expected)


class Answer(msgspec.Struct, frozen=True):
    """The verdict of a part, before it gets its numbers and provenance."""

    lane: str
    number: int
    decision: Decision
    reason: Reason | None
    score: float | None
    threshold: float | None
    views: list[ViewResult]
    trigger_ns: int
    deadline_ns: int
    count: int | None = None
    part_id: int | None = None
    seen_utc_ns: int | None = None  # where monotonic times of another boot say nothing


class _Way(NamedTuple):
    """How far behind the triggers of its lane's first station those of a station are."""

    first: str
    distance: int  # ns, or counts of the encoder
    window: int
    by_count: bool

    def off(self, first: Trigger, own: Trigger) -> int | None:
        """How far from where it belongs a trigger is; None: one of the two has no count."""
        if not self.by_count:
            return own.at_ns - first.at_ns - self.distance
        if first.count is None or own.count is None:
            return None
        return own.count - first.count - self.distance

    def in_words(self, off: int) -> str:
        went, distance, window = self.distance + off, self.distance, self.window
        if self.by_count:
            return f"{went} counts behind {self.first}, expected {distance} +- {window}"
        return f"{went / 1e6:.1f} ms behind {self.first}, expected {distance / 1e6:.0f} +- {window / 1e6:.0f}"


class Ledger:
    """Open parts of one run of the line."""

    def __init__(
        self,
        recipe: Recipe,
        next_numbers: dict[str, int],
        answered: Callable[[str, int], bool] = lambda *_: False,
        astray: Iterable[str] = (),
    ) -> None:
        """`next_numbers`: per station the first trigger number that was not seen yet. `answered(lane, number)` tells
        whether a part has its verdict already; it is asked only when a view comes after its part may have been closed.
        `astray`: the stations that a ledger before this one found to show other parts.
        """
        self._answered = answered
        self._lane_of = {s.name: s.lane for s in recipe.stations}
        self._views = {lane: recipe.lane_views(lane) for lane in recipe.lanes}
        self._next = {s.name: next_numbers.get(s.name, 0) for s in recipe.stations}
        self._deadline_ns = recipe.deadline.deadline_ms * 1_000_000
        self._view_timeout_ns = recipe.deadline.view_timeout_ms * 1_000_000
        self._ways = _ways(recipe)
        self._with_ids = {s.name for s in recipe.stations if s.part_ids}
        self.astray = dict.fromkeys(astray, "one that an earlier gate saw")
        """The stations of which nobody knows which parts they show, until the line is started again; and since when."""
        self._open: dict[tuple[str, int], Part] = {}
        self.counters: Counter[str] = Counter()

    @property
    def open_parts(self) -> int:
        return len(self._open)

    def next_number(self, station: str) -> int:
        """The first trigger number of a station that was not seen yet."""
        return self._next[station]

    def lane_of(self, station: str) -> str:
        return self._lane_of[station]

    def trigger(self, trigger: Trigger) -> list[Trigger]:
        """Take a trigger; returns those that are new and belong in the journal: itself, and before it every one that a
        gap in the numbers shows to be missed."""
        if trigger.station not in self._next:
            self.counters["unknown_station"] += 1
            return []
        if trigger.number < self._next[trigger.station]:
            self.counters["duplicate_trigger"] += 1
            return []
        seen = self._close_gap(trigger.station, trigger.number, trigger.at_ns)
        self._next[trigger.station] = trigger.number + 1
        self._see(trigger)
        return [*seen, trigger]

    def ended(self, end: SourceEnded, now_ns: int) -> list[Trigger]:
        """Take the end of a source; returns the triggers that were lost before it."""
        return self._close_gap(end.station, end.next_number, now_ns) if end.station in self._next else []

    def result(self, result: ViewResult) -> tuple[list[Trigger], bool]:
        """Take the answer for a view; returns (triggers seen through it, whether it was in time).

        A result whose trigger was lost on its way is as good as the trigger.
        """
        seen = self.trigger(Trigger(result.station, result.number, result.at_ns)) if self._unseen(result) else []
        part = self._open.get((self._lane_of.get(result.station, ""), result.number))
        if part is None:
            self.counters["late_results"] += 1
            return seen, False
        if result.station in part.results:
            self.counters["duplicate_results"] += 1
        else:
            part.results[result.station] = result
        return seen, True

    def due(self, now_ns: int) -> list[Answer]:
        """Close every part that is complete or out of time; its answer, in the order of the deadlines."""
        closing = [p for p in self._open.values() if p.complete or now_ns >= self._closing_ns(p)]
        closing.sort(key=lambda p: (self._due_ns(p), p.lane, p.number))
        return [self._close(part) for part in closing]

    def close_all(self, reason: Reason) -> list[Answer]:
        """Close every open part: what has no result gets `reason`."""
        for part in list(self._open.values()):
            self._fill(part, reason)
        return [self._close(part) for part in list(self._open.values())]

    def next_closing_ns(self) -> int | None:
        """When `due` must be asked next, at the latest; None when nothing is open."""
        return min(map(self._closing_ns, self._open.values()), default=None)

    def _unseen(self, result: ViewResult) -> bool:
        return result.number >= self._next.get(result.station, result.number + 1)

    def _close_gap(self, station: str, upto: int, at_ns: int) -> list[Trigger]:
        first = self._next[station]
        if upto - first > MAX_GAP:
            self.counters["trigger_counter_jumped"] += 1
            first = upto
        missed = [Trigger(station, number, at_ns, missed=True) for number in range(first, upto)]
        self._next[station] = max(upto, self._next[station])
        for trigger in missed:
            self._see(trigger)
        return missed

    def _see(self, trigger: Trigger) -> None:
        lane = self._lane_of[trigger.station]
        several = len(self._views[lane]) > 1
        if several and (lane, trigger.number) not in self._open and self._answered(lane, trigger.number):
            self.counters["late_views"] += 1
            return
        part = self._open.setdefault((lane, trigger.number), Part(lane, trigger.number, self._views[lane]))
        part.triggers[trigger.station] = trigger
        if trigger.part_id is None and trigger.station in self._with_ids:
            self.counters["triggers_without_part_id"] += 1
        if trigger.missed:
            self.counters["missed_triggers"] += 1
            part.results[trigger.station] = _unanswered(trigger.station, part, Reason.MISSED_FRAME)

    def _due_ns(self, part: Part) -> int:
        """The deadline runs from the last expected view; a view that does not come is waited for until its timeout."""
        if len(part.triggers) == len(part.expected):
            return max(t.at_ns for t in part.triggers.values()) + self._deadline_ns
        return part.first_ns + self._view_timeout_ns + self._deadline_ns

    def _closing_ns(self, part: Part) -> int:
        return self._due_ns(part) - MARGIN_NS

    def _fill(self, part: Part, reason: Reason) -> None:
        for station in part.expected:
            if station not in part.results:
                missing = reason is Reason.DEADLINE and station not in part.triggers
                part.results[station] = _unanswered(station, part, Reason.MISSING_VIEW if missing else reason)

    def _close(self, part: Part) -> Answer:
        deadline_ns = self._due_ns(part)
        self._fill(part, Reason.DEADLINE)
        del self._open[part.lane, part.number]
        views = [self._aligned(part, s) for s in part.expected]
        decision = worst([v.decision for v in views])
        scored = [v for v in views if v.score is not None]
        leading = max(scored, key=lambda v: (v.decision is decision, v.score or 0.0), default=None)
        return Answer(
            lane=part.lane,
            number=part.number,
            decision=decision,
            reason=next((v.reason for v in views if v.decision is decision), None),
            score=leading.score if leading else None,
            threshold=leading.threshold if leading else None,
            views=views,
            trigger_ns=part.first_ns,
            deadline_ns=deadline_ns,
            count=part.count,
            part_id=part.part_id,
        )

    def _aligned(self, part: Part, station: str) -> ViewResult:
        """The result of a station, if it is known to show this part; else what is left of it."""
        result, way = part.results[station], self._ways.get(station)
        if way is None or result.decision is Decision.UNINSPECTED:
            return result
        # What was not inspected may have the time at which its image was missed, and lets nothing pass as it is.
        if station not in self.astray and part.results[way.first].decision is not Decision.UNINSPECTED:
            off = way.off(part.triggers[way.first], part.triggers[station])
            if off is None:
                return _not_inspected(result, Reason.TRACKING)
            if abs(off) > way.window:
                self.astray[station] = f"part {part.number}, {way.in_words(off)}"
        if station not in self.astray:
            return result
        self.counters["views_not_aligned"] += 1
        return _not_inspected(result, Reason.FRAME_OUT_OF_ORDER)


def _ways(recipe: Recipe) -> dict[str, _Way]:
    """Of the stations whose triggers can be looked at. Lossless, a trigger has the time at which there was room."""
    ways = {}
    for station in recipe.stations:
        first = recipe.station(recipe.lane_views(station.lane)[0])
        behind, timed = station.behind, first.source.mode is station.source.mode is Mode.LIVE
        if behind and behind.distance_counts is not None and behind.window_counts is not None:
            ways[station.name] = _Way(first.name, behind.distance_counts, behind.window_counts, by_count=True)
        if timed and behind and behind.delay_ms is not None and behind.window_ms is not None:
            ways[station.name] = _Way(first.name, behind.delay_ms * _MS, behind.window_ms * _MS, by_count=False)
    return ways


def _not_inspected(result: ViewResult, reason: Reason) -> ViewResult:
    """What is left of a result that does not count."""
    return replace(result, decision=Decision.UNINSPECTED, reason=reason, score=None, boxes=[], areas_px=[])


def _unanswered(station: str, part: Part, reason: Reason) -> ViewResult:
    trigger = part.triggers.get(station)
    at_ns = trigger.at_ns if trigger else part.first_ns
    return ViewResult(station, part.number, at_ns, Decision.UNINSPECTED, reason)


def withdraw(answer: Answer) -> tuple[Answer, list[ViewResult]]:
    """What is left of an answer that could not be published before its deadline: no PASS, whatever has arrived.

    Returns the answer and the view results that it loses; they belong in the journal as late results.
    """
    if answer.decision is not Decision.PASS:
        return answer, []
    views = [_not_inspected(v, Reason.DEADLINE) for v in answer.views]
    withdrawn = replace(answer, decision=Decision.UNINSPECTED, reason=Reason.DEADLINE, score=None, views=views)
    return withdrawn, answer.views


def view_of(result: ViewResult, bundle: str, scale_mm_per_px: float | None = None) -> View:
    """A view result as it stands in the verdict."""
    return View(
        station=result.station,
        decision=result.decision,
        reason=result.reason,
        score=result.score,
        threshold=result.threshold,
        boxes=result.boxes,
        witness=result.witness,
        picture=result.picture,
        at_ns=result.at_ns,
        bundle=bundle,
        calibration=result.calibration,
        engine=result.engine,
        stamps=result.stamps,
        rows_before=result.rows_before,
        place=result.place,
        areas_px=result.areas_px,
        scale_mm_per_px=scale_mm_per_px,
    )
