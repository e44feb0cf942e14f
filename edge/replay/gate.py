"""The gate alone: the ledger of a line, from the triggers and results that were recorded, at their recorded times.

A deadline is a decision here, and no chance: when an answer came is part of the input. What the recording does not know
to the last millisecond is told apart (`_excused`), and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from msgspec.structs import asdict, replace

from edge.ledger import MARGIN_NS, Answer, Ledger, view_of
from edge.messages import Trigger, Verdict, View, ViewResult
from edge.recording import RecordedFrame, Recording
from edge.replay.compare import Comparison, Rules, Why, compare
from edge.replay.outcome import Outcome, outcome, plain_outcome
from edge.replay.run import recorded_verdicts
from edge.replay.setup import Survey, channel_of, recorded_bundles
from edge.settings import Recipe
from edge.verdict import Decision, Reason

__all__ = ["replay_gate"]

_FROM_OUTSIDE = frozenset(r.value for r in (Reason.RESTART, Reason.CHANGE_OVER, Reason.STOPPING))
"""Reasons that a gate is given by the end of a line or of a process, which no recording holds."""


def replay_gate(
    recording: Recording, recipe: Recipe, found: Survey, ignore: Collection[str] = ()
) -> tuple[list[Outcome], Comparison]:
    """What the ledger says of each part, and that against the recorded verdicts. Raises ReplayError without these."""
    verdicts = recorded_verdicts(recording)
    told = _Told.read(recording, recipe, found)
    bundles = recorded_bundles(recording)

    def replayed(delay_ns: int) -> list[Outcome]:
        answers = _answers(told, recipe, found, delay_ns)
        return [_outcome(a, recipe, bundles) for a in answers if a.number in found.lanes[a.lane]]

    said, on_the_edge = replayed(0), [*replayed(-MARGIN_NS), *replayed(MARGIN_NS)]
    fields = set(said[0]) if said else set()
    expected = [{n: v for n, v in outcome(verdict).items() if n in fields} for verdict in verdicts]
    comparison = compare(
        expected,
        said,
        Rules(frozenset(ignore), clock=_FROM_OUTSIDE, complete=False),
        excused=_excused(verdicts, told, on_the_edge),
        outside=[(v.lane, v.part) for v in verdicts if v.part not in found.lanes.get(v.lane, ())],
    )
    return said, comparison


@dataclass
class _Told:
    """What the gate was told of the parts that are replayed. Times are UTC: what the recording knows of a trigger."""

    events: list[tuple[int, Trigger | ViewResult]] = field(default_factory=list)  # when each came, in that order
    triggers: dict[tuple[str, int], int] = field(default_factory=dict)  # station and number -> its time
    timed: dict[tuple[str, int], bool] = field(default_factory=dict)  # the results, and whether their stamps say when

    @classmethod
    def read(cls, recording: Recording, recipe: Recipe, found: Survey) -> _Told:
        told, names = cls(), {channel_of(s): s for s in recipe.stations}
        for channel, station in names.items():
            for event in recording.events(channel):
                if isinstance(event, RecordedFrame) or event.number not in found.lanes[station.lane]:
                    continue
                told.triggers[station.name, event.number] = event.at_ns
                trigger = Trigger(
                    station.name, event.number, event.at_ns, event.missed, count=event.count, part_id=event.part_id
                )
                told.events.append((event.at_ns, trigger))
        for logged_ns, result in recording.results():
            if result.station in names and result.number in found.lanes[names[result.station].lane]:
                told._hear(replace(result, station=names[result.station].name), logged_ns)
        told.events.sort(key=lambda event: event[0])
        return told

    def _hear(self, result: ViewResult, logged_ns: int) -> None:
        """A result came when the judge was done with it, which its stamps say against its trigger's time."""
        key = (result.station, result.number)
        trigger_ns = self.triggers.get(key, logged_ns)
        took_ns = result.stamps[-1] - result.at_ns if result.stamps else 0
        self.timed[key] = bool(result.stamps)
        self.events.append((trigger_ns + took_ns, replace(result, at_ns=trigger_ns)))


def _answers(told: _Told, recipe: Recipe, found: Survey, delay_ns: int) -> list[Answer]:
    """What the ledger says where all that it was told came `delay_ns` later."""
    first = {s.name: found.lanes[s.lane].start for s in recipe.stations}
    answered: set[tuple[str, int]] = set()
    ledger = Ledger(recipe, first, lambda lane, number: (lane, number) in answered)
    answers: list[Answer] = []

    def close(due: list[Answer]) -> None:
        answers.extend(due)
        answered.update((a.lane, a.number) for a in due)

    for at_ns, message in told.events:
        while (closing_ns := ledger.next_closing_ns()) is not None and closing_ns <= at_ns + delay_ns:
            close(ledger.due(closing_ns))
        if isinstance(message, Trigger):
            ledger.trigger(message)
        else:
            ledger.result(message)
    while (closing_ns := ledger.next_closing_ns()) is not None:
        close(ledger.due(closing_ns))
    return answers


def _excused(verdicts: Iterable[Verdict], told: _Told, on_the_edge: list[Outcome]) -> dict[tuple[str, int], Why]:
    """The views of which the recording does not say what the gate knew, and when.

    The judge's stamp says when an answer was there, and the gate had it a moment later: by MARGIN_NS at most, or its
    way is a fault worth showing. The other way round a gate that woke late may take an answer until the deadline, which
    is MARGIN_NS after it should have closed. `on_the_edge`: what the ledger says of answers that came so much later or
    earlier; a view is excused only if it was decided as one of these.
    """
    near = {(v["station"], o["part"], v["decision"], v["reason"]) for o in on_the_edge for v in o["views"]}
    excused = {}
    for verdict in verdicts:
        for view in verdict.views:
            if why := _why_excused(verdict, view, told):
                excused[view.station, verdict.part] = why
            elif (view.station, verdict.part, view.decision.value, view.reason and view.reason.value) in near:
                excused[view.station, verdict.part] = Why.ON_THE_EDGE
    return excused


def _why_excused(verdict: Verdict, view: View, told: _Told) -> Why | None:
    key = (view.station, verdict.part)
    unanswered = view.reason in (Reason.DEADLINE, Reason.MISSING_VIEW)
    if verdict.late and verdict.decision is not Decision.PASS:  # a late PASS is none, whatever held it up
        return Why.HELD_UP
    if not unanswered and (key not in told.triggers or key not in told.timed):
        return Why.UNTOLD
    if view.reason is Reason.DEADLINE and not told.timed.get(key, True):
        return Why.UNTIMED
    return None


def _outcome(answer: Answer, recipe: Recipe, bundles: dict[str, str]) -> Outcome:
    told = {n: v for n, v in asdict(answer).items() if n not in ("number", "views", "seen_utc_ns")}
    scales = {s.name: s.scale_mm_per_px for s in recipe.stations}
    views = [view_of(v, bundles.get(v.station, ""), scales[v.station]) for v in answer.views]
    return plain_outcome({**told, "part": answer.number}, views)
