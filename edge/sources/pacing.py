"""From a feed of parts to the events of a source: when each is said, and what is said of those that nobody saw.

A feed knows what passes as part `number`, and when; it knows no clock. `PacedSource` adds the clock. Live, events are
due at fixed times, so a late poll delays nothing that follows; a frame stays in the camera's queue while the next QUEUE
parts pass, then it is lost. Lossless, the next event is due whenever it is asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from edge.settings import Mode
from edge.settings import Source as SourceSettings
from edge.sources import Ended, Event, Exposed, Image, Triggered
from edge.verdict import Reason

__all__ = ["QUEUE", "Feed", "PacedSource", "Part", "Rate", "Shot"]

QUEUE = 32
"""Frames that a live source holds for a late poll, like the buffers of a camera's driver."""


@dataclass(frozen=True)
class Shot:
    """What became of the exposure of a part: its image, valid until the next one is loaded, or why there is none."""

    image: Image | None
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """One part as the feed knows it; times are nanoseconds after trigger 0 was due."""

    trigger_ns: int
    frame_ns: int
    held_ns: int  # so long after `frame_ns` the image can still be had
    load: Callable[[], Shot]
    missed: bool = False  # a gap: there is no frame, and a trigger only where one was recorded
    count: int | None = None  # of the line's encoder at the trigger
    part_id: int | None = None  # where a PLC gave parts their ids


class Feed(Protocol):
    """The parts of a stream, in order."""

    def part(self, number: int) -> Part | None:
        """What passes as part `number`, or None when the stream ends before it. Asked with rising numbers only."""
        ...

    def first_due(self, elapsed_ns: int, number: int) -> int:
        """The first part from `number` on that has not passed `elapsed_ns` after trigger 0."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Rate:
    """The schedule of a feed whose parts come at a fixed rate."""

    rate_hz: float

    def part(self, number: int, load: Callable[[], Shot]) -> Part:
        due_ns = self.due_ns(number)
        return Part(due_ns, due_ns, self.due_ns(QUEUE), load)

    def due_ns(self, number: int) -> int:
        return round(number * 1e9 / self.rate_hz)

    def first_due(self, elapsed_ns: int, number: int) -> int:
        passed = max(0, int(elapsed_ns * self.rate_hz / 1e9))
        while self.due_ns(passed) < elapsed_ns:
            passed += 1
        return max(number, passed)


class PacedSource:
    """A source that says the parts of a feed when they are due; see `edge.sources.Source`."""

    def __init__(
        self,
        feed: Feed,
        settings: SourceSettings,
        start_ns: int,
        first_number: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._feed = feed
        self._live = settings.mode is Mode.LIVE
        self._independent = settings.triggers == "independent"
        self._parts = settings.parts
        self._start_ns = start_ns
        self._clock = clock
        self._sleep = sleep
        self._queue: deque[tuple[int, Event]] = deque()
        self._ended = False
        self._number = first_number
        if self._live and first_number > 0:  # from 0 on, the line owes every part an answer
            self._number = feed.first_due(clock() - start_ns, first_number)
            if self._parts is not None:
                self._number = min(self._number, max(first_number, self._parts))

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, or None when none was due for `timeout_s`. Raises SourceError when the feed cannot go on."""
        if not self._queue:
            if self._ended:
                self._sleep(timeout_s)
                return None
            self._queue.extend(self._next_events())
        due_ns, event = self._queue[0]
        if self._live:
            wait_s = (due_ns - self._clock()) / 1e9
            if wait_s > 0:
                self._sleep(min(wait_s, timeout_s))
            if wait_s > timeout_s:
                return None
        elif isinstance(event, Triggered):
            event = replace(event, at_ns=self._clock())
        self._queue.popleft()
        return event

    def close(self) -> None:
        self._feed.close()

    def _next_events(self) -> list[tuple[int, Event]]:
        """The events of the next part, each with the time at which it is due. Loads the image ahead of that time."""
        number = self._number
        part = None if self._parts is not None and number >= self._parts else self._feed.part(number)
        if part is None:
            self._ended = True
            return [(0, Ended(number))]
        self._number = number + 1
        trigger_ns, frame_ns = self._start_ns + part.trigger_ns, self._start_ns + part.frame_ns
        if self._live and self._clock() > frame_ns + part.held_ns:
            shot = Shot(None, Reason.MISSED_FRAME, "polled so late that later frames had taken its place")
        elif part.missed:
            return [(frame_ns, _triggered(number, frame_ns, part, missed=True))]
        else:
            shot = part.load()
        exposed = Exposed(number, shot.image, shot.reason, shot.detail)
        if self._independent:
            return [(trigger_ns, _triggered(number, trigger_ns, part)), (frame_ns, exposed)]
        if shot.reason is Reason.MISSED_FRAME:
            return [(frame_ns, _triggered(number, frame_ns, part, missed=True))]
        return [(frame_ns, _triggered(number, frame_ns, part)), (frame_ns, exposed)]


def _triggered(number: int, at_ns: int, part: Part, missed: bool = False) -> Triggered:
    return Triggered(number, at_ns, missed, part.count, part.part_id)
