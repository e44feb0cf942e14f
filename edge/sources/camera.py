"""What all live cameras share: from the frames that a camera delivers to parts with numbers.

A camera counts: its frames (*inferred* triggers), or the edges at its trigger input, in the chunk data of each frame
(*independent* triggers). Each step of that counter is a part. A step of more than one shows parts without an image:
UNINSPECTED(missed_frame). An id that is repeated, that falls or that jumps says nothing about which part the frame
shows. Such a frame is a part of its own, UNINSPECTED(repeated_frame) or (frame_out_of_order), and counting goes on from
its id. That is safe where the station alone sees the parts of its lane: a number too many costs an actuator the parts
in flight (edge/actuators/fifo.py). Where other stations see them too, a shift would join views of different parts, so
from then on, and after every restart of the capture process, no frame of this station is inspected until the line is
started again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import structlog

from edge.errors import SourceError
from edge.settings import Station
from edge.sources import Event, Exposed, Image, Triggered
from edge.sources.camera_time import CameraClock
from edge.sources.part_ids import PartIdReader
from edge.verdict import Reason

__all__ = ["MAX_GAP", "Camera", "CameraSource", "CountsTriggers", "Grabbed"]

MAX_GAP = 10_000
"""A larger step is a broken counter, not so many missed parts."""

EARLY = 16
"""Triggers between the start of the camera and the first look at its counter: nobody was told of them."""

LOOK_S = 0.01
"""So often a camera that counts its triggers is asked, while no image comes."""

WAITED_NS = 5_000_000
"""A frame that was waited for as long as this came just then, and had not been there for nobody knows how long."""

SETTLED = 2
"""After so many of them, one of which came without a delay of its own, the camera's clock is known on the host's."""


@dataclass(frozen=True)
class Grabbed:
    """One frame of a camera, or what is left of it."""

    image: Image | None  # uint8 or uint16 [H, W, C], C = 1 or 3 (RGB); valid until the next grab
    arrived_ns: int  # monotonic clock of the host
    frame_id: int | None = None  # rises by one with each exposure; None: the camera does not count, or the id is lost
    camera_ns: int | None = None  # when it was exposed, on the camera's own clock
    reason: Reason | None = None  # why the image cannot be used; the image is ignored then
    detail: str = ""  # the same in words
    trigger_id: int | None = None  # the camera's counter of trigger edges, this one included
    count: int | None = None  # the line's encoder, as the camera counts it


class Camera(Protocol):
    """A camera that is open and delivers."""

    def grab(self, timeout_s: float) -> Grabbed | None:
        """The next frame, or None when none came in time. Raises SourceError when the camera is gone."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class CountsTriggers(Protocol):
    """A camera whose counter of trigger edges can be asked, so that a trigger without an image is noticed."""

    def triggers(self) -> int | None:
        """The counter now; None: this camera has none. Raises SourceError."""
        ...


@dataclass
class _Part:
    """A part that has no answer yet."""

    at_ns: int
    trigger_id: int | None = None  # of an independent trigger
    unseen: bool = False  # a gap in the frame ids: there will be no image
    grabbed: Grabbed | None = None  # its answer
    part_id: int | None = None
    number: int | None = None  # once its trigger was said


class CameraSource:
    """The parts that a camera sees; see `edge.sources.Source`."""

    def __init__(
        self,
        camera: Camera,
        station: Station,
        first_number: int,
        alone: bool = True,
        astray: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        ids: PartIdReader | None = None,
    ) -> None:
        """`alone`: no other station sees the parts of this lane. `astray`: others do, and parts may have passed that
        this station did not count. `ids`: of the parts, from a PLC; closed with the source."""
        self._camera, self._name, self._alone, self._clock, self._ids = camera, station.name, alone, clock, ids
        self._independent = station.source.triggers == "independent"
        self._timeout_ns = station.source.frame_timeout_ms * 1_000_000
        self._counts = camera if self._independent and isinstance(camera, CountsTriggers) else None
        self._asked_ns = clock()  # then the counter was asked last
        self._last_id = self._counts.triggers() if self._counts else None
        self._framed_id: int | None = None  # of the newest frame
        chunks = station.source.camera.chunks if station.source.camera else None
        self._holds = bool(chunks and chunks.encoder)  # a trigger is said with its count, which comes with the image
        self._next = first_number
        self._events: deque[Event] = deque()
        self._parts: deque[_Part] = deque()  # in order; all but the first wait for the answer of the one before
        self._given_up: deque[int] = deque(maxlen=MAX_GAP)  # trigger ids of parts that were answered without an image
        self._at_ns = 0  # of the newest trigger
        self._time = CameraClock()
        self._waited = False  # for the newest frame
        self._settling = 0  # frames that were waited for, since the camera's clock began
        self._gone: SourceError | None = None
        self._astray = ""  # why nobody knows which parts of the lane the frames show
        if astray:
            self._lose_place("its capture process was started while parts passed")

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, or None when nothing happened for `timeout_s`. Raises SourceError when the camera is gone."""
        give_up_ns = self._clock() + round(timeout_s * 1e9)
        while not self._events:
            if self._gone:
                raise self._gone
            left_s = max(0.0, (give_up_ns - self._clock()) / 1e9)
            try:
                self._look(min(left_s, LOOK_S) if self._independent else left_s)
            except SourceError as error:
                self._gone = error  # raised once the parts that wait have their answer
                self._give_up(f"the camera is gone: {error}", self._parts)
            self._say()
            if self._clock() >= give_up_ns:
                break
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        self._camera.close()
        if self._ids:
            self._ids.close()

    def _look(self, timeout_s: float) -> None:
        """Take a frame, or, while none comes, the triggers that the camera has counted."""
        asked_ns = self._clock()
        if grabbed := self._camera.grab(timeout_s):
            self._waited = grabbed.arrived_ns - asked_ns >= WAITED_NS
            if self._independent:
                self._take_triggered(grabbed)
            elif grabbed.frame_id is None:  # the camera does not count, or the id is in what was lost: the next one
                self._parts.append(self._shown(grabbed, self._exposed_ns(grabbed)))
                self._last_id = None if self._last_id is None else self._last_id + 1
            else:
                self._take_next(grabbed, grabbed.frame_id)
            return
        self._count_triggers()
        late = [p for p in self._parts if self._clock() - p.at_ns > self._timeout_ns]
        self._give_up(f"no image {self._timeout_ns // 1_000_000} ms after its trigger", late)

    def _count_triggers(self) -> None:
        """Ask the camera's counter: each step of it is a part that waits for its image."""
        earliest_ns, self._asked_ns = self._asked_ns, self._clock()
        counted = self._counts.triggers() if self._counts else None
        if counted is None or self._last_id is None:
            return
        if 0 <= (steps := counted - self._last_id) <= MAX_GAP:
            now_ns = self._clock()
            ids = [self._part_id(earliest_ns if steps == 1 else None, now_ns) for _ in range(steps)]
            self._parts.extend(_Part(now_ns, self._last_id + 1 + i, part_id=ids[i]) for i in range(steps))
        else:
            why = f"the trigger counter stands at {counted} after {self._last_id}"
            self._lose_place(why)
            self._give_up(why, self._parts)
        self._last_id = counted

    def _take_triggered(self, grabbed: Grabbed) -> None:
        """A frame of an independent trigger: of one that was counted already, or of the next."""
        found = grabbed.trigger_id
        waiting = [p for p in self._parts if p.grabbed is None]
        if found is None:
            if grabbed.reason is None:
                raise SourceError(
                    f"{self._name}: this camera sends no trigger counter with its frames; name one in "
                    'source.camera.chunks.trigger, or set source.triggers = "inferred"'
                )
            if waiting:  # the counter was in what is lost; if it was another's, that one is given up in time
                waiting[0].grabbed = grabbed
                self._given_up.append(waiting[0].trigger_id or 0)
            return
        earlier = [p for p in waiting if p.trigger_id is not None and p.trigger_id < found]
        if own := next((p for p in waiting if p.trigger_id == found), None):
            own.grabbed, self._framed_id = grabbed, found
            self._give_up("a later image came first", earlier)
        elif found in self._given_up:
            structlog.get_logger().warning("image_too_late", station=self._name, trigger_id=found)
        elif self._framed_id is None and 0 <= (self._last_id or 0) - found < EARLY:
            self._lose_place("a part passed while the camera was started")
        else:
            self._take_next(grabbed, found)

    def _take_next(self, grabbed: Grabbed, found: int) -> None:
        """A frame with an id that no part waits for: of the next part, of one after a gap, or nobody knows of which."""
        at_ns = self._exposed_ns(grabbed)
        if doubt := self._doubt(found):
            reason, detail = doubt
            self._lose_place(detail)
            grabbed = replace(grabbed, image=None, reason=reason, detail=detail)
            if self._counts:
                self._count_triggers()
            else:
                self._last_id = found
        elif self._last_id is None:
            self._last_id = found
        else:
            gap = range(self._last_id + 1, found)
            self._parts.extend(
                _Part(at_ns, i, unseen=not self._independent, part_id=self._part_id(None, at_ns)) for i in gap
            )
            self._give_up("a gap in the camera's counter", self._parts)
            self._last_id = found
        self._framed_id = found
        self._parts.append(self._shown(grabbed, at_ns))

    def _doubt(self, found: int) -> tuple[Reason, str] | None:
        """Why it is not known which part a frame with this id shows."""
        if self._last_id is None or 0 < found - self._last_id <= MAX_GAP + 1:
            return None
        counter = "trigger" if self._independent else "frame"
        if found == self._framed_id:
            return Reason.REPEATED_FRAME, f"{counter} id {found} came twice"
        return Reason.FRAME_OUT_OF_ORDER, f"{counter} id {found} came after {self._last_id}"

    def _lose_place(self, why: str) -> None:
        if self._alone or self._astray:
            return
        self._astray = f"which parts of the lane this station sees is not known since {why}; start the line again"
        structlog.get_logger().error("lane_not_aligned", station=self._name, why=why)

    def _give_up(self, why: str, parts: Iterable[_Part]) -> None:
        for part in parts:
            if part.grabbed is None:
                part.grabbed = _missed(why, part.at_ns)
                if self._independent and part.trigger_id is not None:
                    self._given_up.append(part.trigger_id)

    def _shown(self, grabbed: Grabbed, at_ns: int) -> _Part:
        """The part of a frame that was exposed then, and of which nothing was known before."""
        timed = grabbed.camera_ns is not None and self._settling >= SETTLED
        return _Part(at_ns, grabbed=grabbed, part_id=self._part_id(at_ns if timed else None, at_ns))

    def _part_id(self, earliest_ns: int | None, at_ns: int) -> int | None:
        """What the PLC calls the part that was triggered between these times; None: it is not known."""
        return self._ids.take(earliest_ns, at_ns) if self._ids else None

    def _exposed_ns(self, grabbed: Grabbed) -> int:
        if grabbed.camera_ns is None:
            return grabbed.arrived_ns
        resets = self._time.resets
        at_ns = self._time.to_host(grabbed.camera_ns, grabbed.arrived_ns)
        if self._time.resets > resets:
            self._settling = 0
            structlog.get_logger().warning("camera_clock_reset", station=self._name, camera_ns=grabbed.camera_ns)
        self._settling += self._waited
        return at_ns

    def _say(self) -> None:
        """Turn parts into events, up to the first that has no answer."""
        while self._parts:
            part = self._parts[0]
            if part.grabbed is None and self._holds:
                return
            if part.number is None:
                part.number, self._next = self._next, self._next + 1
                self._at_ns = max(self._at_ns, part.at_ns)  # times never fall
                count = part.grabbed.count if part.grabbed else None
                self._events.append(Triggered(part.number, self._at_ns, part.unseen, count, part.part_id))
            if part.grabbed is None:
                return
            self._parts.popleft()
            if not part.unseen:
                self._events.append(self._exposed(part.number, part.grabbed))

    def _exposed(self, number: int, grabbed: Grabbed) -> Exposed:
        if self._astray and grabbed.reason is None:
            return Exposed(number, None, Reason.FRAME_OUT_OF_ORDER, self._astray)
        return Exposed(number, None if grabbed.reason else grabbed.image, grabbed.reason, grabbed.detail)


def _missed(why: str, arrived_ns: int) -> Grabbed:
    return Grabbed(None, arrived_ns, reason=Reason.MISSED_FRAME, detail=why)
