"""Stations and clocks for sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.settings import Station
from edge.sources import Ended, Event, Exposed, Source, Triggered


class FakeClock:
    """A clock that only sleeping moves."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def make_station(kind: str, path: Path | None = None, frame: dict[str, Any] | None = None, **source: Any) -> Station:
    return Station.model_validate(
        {
            "name": "top",
            "bundle": "marker",
            "frame": {"width_px": 64, "height_px": 48, **(frame or {})},
            "source": {"kind": kind, "path": path, "mode": "lossless", **source},
        }
    )


def drain(source: Source) -> list[Event]:
    """All events of a source up to its last; images are copied, as they are valid until the next poll only."""
    events: list[Event] = []
    while not events or not isinstance(events[-1], Ended):
        event = source.poll(1.0)
        assert event is not None, "a source that has not ended said nothing"
        if isinstance(event, Exposed) and event.image is not None:
            event = Exposed(event.number, event.image.copy(), event.reason, event.detail)
        events.append(event)
    source.close()
    return events


def exposures(events: list[Event]) -> list[Exposed]:
    return [e for e in events if isinstance(e, Exposed)]


def triggers(events: list[Event]) -> list[Triggered]:
    return [e for e in events if isinstance(e, Triggered)]
