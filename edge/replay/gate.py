"""The gate alone: the ledger of a line, from the triggers and results that were recorded, at their recorded times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edge.ledger import Answer, Ledger, view_of
from edge.messages import Trigger, ViewResult
from edge.recording import RecordedFrame, Recording
from edge.replay.outcome import Outcome, plain_outcome
from edge.replay.setup import Survey, channel_of, recorded_bundles
from edge.settings import Recipe

__all__ = ["replay_gate"]

Event = tuple[int, Trigger | ViewResult]
"""When it came, UTC."""


def replay_gate(recording: Recording, recipe: Recipe, found: Survey) -> list[Outcome]:
    """What the ledger says of each part. Times are UTC here: what the recording knows of a trigger.

    A result came when the judge was done with it, which its stamps say against its trigger's time.
    """
    first = {s.name: found.lanes[s.lane].start for s in recipe.stations}
    answered: set[tuple[str, int]] = set()
    ledger = Ledger(recipe, first, lambda lane, number: (lane, number) in answered)
    answers: list[Answer] = []

    def close(due: list[Answer]) -> None:
        answers.extend(due)
        answered.update((a.lane, a.number) for a in due)

    for at_ns, message in sorted(_events(recording, recipe, found), key=lambda event: event[0]):
        while (closing_ns := ledger.next_closing_ns()) is not None and closing_ns <= at_ns:
            close(ledger.due(closing_ns))
        if isinstance(message, Trigger):
            ledger.trigger(message)
        else:
            ledger.result(message)
    while (closing_ns := ledger.next_closing_ns()) is not None:
        close(ledger.due(closing_ns))
    bundles = recorded_bundles(recording)
    return [_outcome(a, recipe, bundles) for a in answers if a.number in found.lanes[a.lane]]


def _events(recording: Recording, recipe: Recipe, found: Survey) -> Iterator[Event]:
    triggers: dict[tuple[str, int], int] = {}
    names = {channel_of(s): s for s in recipe.stations}
    for channel, station in names.items():
        for event in recording.events(channel):
            if isinstance(event, RecordedFrame) or event.number not in found.lanes[station.lane]:
                continue
            triggers[station.name, event.number] = event.at_ns
            yield (
                event.at_ns,
                Trigger(station.name, event.number, event.at_ns, event.missed, event.count, event.part_id),
            )
    for logged_ns, result in recording.results():
        if result.station not in names or result.number not in found.lanes[names[result.station].lane]:
            continue
        name = names[result.station].name
        trigger_ns = triggers.get((name, result.number), logged_ns)
        took_ns = result.stamps[-1] - result.at_ns if result.stamps else 0
        yield trigger_ns + took_ns, replace(result, station=name, at_ns=trigger_ns)


def _outcome(answer: Answer, recipe: Recipe, bundles: dict[str, str]) -> Outcome:
    told = {n: v for n, v in vars(answer).items() if n not in ("number", "views", "seen_utc_ns")}
    scales = {s.name: s.scale_mm_per_px for s in recipe.stations}
    views = [view_of(v, bundles.get(v.station, ""), scales[v.station]) for v in answer.views]
    return plain_outcome({**told, "part": answer.number}, views)
