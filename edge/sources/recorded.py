"""A recording as a stream: the parts of one of its stations, at their recorded times.

Recorded numbers count from wherever the recording began: `first_number` of the feed becomes 0. A number that is in
neither the triggers nor the frames is a gap. A trigger without a frame is a part whose frame was missed, unless the
recorded results say otherwise. A frame may stand behind the triggers of later parts. Time begins with the first part of
the recording, whichever station saw it, so that stations keep their distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from edge.errors import SourceError
from edge.recording import RecordedFrame, RecordedRefusal, RecordedTrigger, Recording
from edge.settings import Station
from edge.sources.folder import max_pixels
from edge.sources.images import BadImageError, quiet_opencv
from edge.sources.pacing import QUEUE, Part, Shot
from edge.verdict import Reason

__all__ = ["MAX_GAP", "RecordedFeed"]

MAX_GAP = 10_000
"""More numbers missing in a row are no gap, but a recording that does not belong together."""

LOOKAHEAD = 64
"""A trigger waits for its frame while so many triggers follow."""

_HELD_NS = 1_000_000_000


@dataclass
class _Pair:
    number: int
    trigger_ns: int
    frame: RecordedFrame | None = None
    missed_ns: int = 0  # when it was known that no frame would come
    trigger: RecordedTrigger | None = None
    reason: Reason = Reason.MISSED_FRAME  # where there is no frame


class RecordedFeed:
    """The parts of a recorded station. Compare `edge.sources.pacing.Feed`.

    `first_number`: the recorded number of part 0; the source's `first`, or the first one that was recorded.
    """

    def __init__(self, station: Station) -> None:
        assert station.source.path is not None
        quiet_opencv()
        self._name = station.source.channel or station.name
        self._max_pixels = max_pixels(station.frame)
        self._independent = station.source.triggers == "independent"
        self._recording = Recording(station.source.path)
        if self._name not in self._recording.stations:
            there = ", ".join(self._recording.stations) or "none"
            raise SourceError(
                f"{self._recording.path}: no station {self._name!r} in this recording; it has: {there}. "
                "Name one of them in the source's channel"
            )
        self._events = self._recording.inputs(self._name)
        self._pairs: list[_Pair] = []  # the heads of the stream, with rising numbers
        self._over = False
        self._interval_ns = 0
        self._next = 0  # the number after the last pair that was taken
        self._head_is_settled()
        first = station.source.first
        self.first_number = first if first is not None else self._pairs[0].number if self._pairs else 0
        began = [next(self._recording.events(name), None) for name in self._recording.stations]
        self._start_ns = min((event.at_ns for event in began if event), default=0)

    def part(self, number: int) -> Part | None:
        recorded = number + self.first_number
        while self._head_is_settled() and self._pairs[0].number < recorded:
            self._take()
        if not self._pairs:
            return None
        head = self._pairs[0]
        if head.number > recorded:
            noticed_ns = (head.frame.at_ns if head.frame else head.trigger_ns) - self._start_ns
            return Part(noticed_ns, noticed_ns, _HELD_NS, lambda: Shot(None), missed=True)
        self._take()
        frame_ns = head.frame.at_ns if head.frame else head.missed_ns
        told = head.trigger or RecordedTrigger(head.number, head.trigger_ns)
        return Part(
            head.trigger_ns - self._start_ns,
            frame_ns - self._start_ns,
            held_ns=max(QUEUE * self._interval_ns, _HELD_NS),
            load=lambda: self._load(head),
            missed=told.missed,
            count=told.count,
            part_id=told.part_id,
        )

    def first_due(self, elapsed_ns: int, number: int) -> int:
        while self._head_is_settled() and self._pairs[0].trigger_ns - self._start_ns < elapsed_ns:
            self._take()
        following = self._pairs[0].number if self._pairs else self._next
        return max(number, following - self.first_number)

    def close(self) -> None:
        self._over = True
        self._pairs = []

    def _take(self) -> None:
        head = self._pairs.pop(0)
        self._next = head.number + 1
        if self._head_is_settled():
            follower = self._pairs[0]
            self._interval_ns = follower.trigger_ns - head.trigger_ns
            if follower.number - head.number > MAX_GAP:
                raise SourceError(
                    f"{self._recording.path}: {self._name}: part {follower.number} follows part {head.number}; at most "
                    f"{MAX_GAP} numbers may be missing in a row"
                )

    def _head_is_settled(self) -> bool:
        """Read on until it is known what became of the first pair; False at the end of the stream."""
        while not self._over and not (self._pairs and self._settled(self._pairs[0])):
            event = next(self._events, None)
            if event is None:
                self._over = True
                self._say_what_is_damaged()
            else:
                self._add(event)
        if self._pairs and not self._pairs[0].missed_ns:
            self._pairs[0].missed_ns = self._pairs[0].trigger_ns
        return bool(self._pairs)

    def _settled(self, pair: _Pair) -> bool:
        return pair.frame is not None or pair.missed_ns > 0

    def _add(self, event: RecordedTrigger | RecordedFrame | RecordedRefusal) -> None:
        last = self._pairs[-1].number if self._pairs else self._next - 1
        if isinstance(event, RecordedRefusal):
            for pair in self._pairs:
                if pair.number == event.number:
                    pair.reason = event.reason
            return
        if isinstance(event, RecordedTrigger):
            if event.number <= last:
                raise SourceError(
                    f"{self._recording.path}: {self._name}: trigger {event.number} follows {last}; numbers must rise"
                )
            missed_ns = event.at_ns if event.missed else 0
            self._pairs.append(_Pair(event.number, event.at_ns, missed_ns=missed_ns, trigger=event))
            if len(self._pairs) > LOOKAHEAD:
                self._give_up(self._pairs[0], event.at_ns)
            return
        if event.number > last:
            self._pairs.append(_Pair(event.number, event.at_ns))
        for pair in self._pairs:
            if pair.number == event.number:
                pair.frame = event
            elif pair.number < event.number and not self._settled(pair):
                self._give_up(pair, event.at_ns)

    def _give_up(self, pair: _Pair, now_ns: int) -> None:
        """No frame will come for this pair. An independent trigger knows it when the next one comes."""
        follower = self._pairs[self._pairs.index(pair) + 1]
        pair.missed_ns = follower.trigger_ns if self._independent else now_ns

    def _load(self, pair: _Pair) -> Shot:
        where = f"{self._recording.path}: frame {pair.number} of {self._name}"
        if pair.frame is None:
            return Shot(None, pair.reason, f"{where} was not recorded")
        try:
            return Shot(pair.frame.decode(self._max_pixels))
        except BadImageError as error:
            return Shot(None, Reason.BAD_IMAGE, f"{where}: {error}")

    def _say_what_is_damaged(self) -> None:
        if self._recording.damage:
            structlog.get_logger().warning(
                "recording_damaged", path=str(self._recording.path), damage=self._recording.damage
            )
