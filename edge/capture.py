"""Capture: one process per camera. Tells the gate of each trigger, then puts the frame into a slot."""

from __future__ import annotations

import time

from edge.messages import FrameRef, SourceEnded, Trigger, ViewResult
from edge.processes import GATE, PREPARE
from edge.recorder.slots import RecordSlots
from edge.settings import Mode
from edge.slab import State
from edge.sources import Ended, Exposed, Image, Source, Triggered, open_source
from edge.validity import FrozenWatch, refuses_frozen
from edge.verdict import Decision, Reason
from edge.webs.stitching import Stitcher
from edge.worker import IDLE_MS, Worker

__all__ = ["run"]

_LOOK_AGAIN_S = 0.002
LAST_FRAME_NS = 1_000_000_000
"""On a stop, the frame of the last trigger is waited for so long."""


class Capture:
    """The capture process of one station."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.slab, self.me = worker, worker.slab, worker.process.index
        self.station = worker.recipe.station(worker.process.station)
        self.frame = self.station.frame
        self.stitcher = Stitcher(self.station, self._next_number)
        self.recorder = RecordSlots(worker, self.station.name) if worker.records else None
        self.frozen = FrozenWatch() if refuses_frozen(self.station) else None
        self.at_ns = 0  # of the newest trigger
        self._is_late = worker.line_started  # parts may have passed that this station did not count
        self._owes_frame = False
        self._stopping_since_ns = 0

    def try_source(self) -> None:
        """Open the source and close it again: one that is not there is found before the line says that it is ready."""
        open_source(self.station, time.monotonic_ns(), self._next_number).close()

    def open(self) -> Source:
        """Wait until the whole line is up, then open the source where an earlier capture process left off."""
        while not self.worker.line_started and not self.worker.stopping:
            self.worker.beat()
            time.sleep(_LOOK_AGAIN_S)
        others = len(self.worker.recipe.lane_views(self.station.lane)) > 1
        astray = others and (self._is_late or self._next_number > 0)
        return open_source(self.station, int(self.slab.head["start_ns"]), self._next_number, not others, astray)

    @property
    def _next_number(self) -> int:
        """The first trigger number not used yet. It lives in the slab, so that no restart uses one again."""
        return int(self.slab.head["next_trigger"][self.me])

    @_next_number.setter
    def _next_number(self, number: int) -> None:
        self.slab.head["next_trigger"][self.me] = number

    def has_room(self) -> bool:
        """Whether a lossless source may go on: it waits until a frame can be taken, and an engine is there for it."""
        if self.station.source.mode is Mode.LIVE:
            return True
        slots = self.slab.station_slots[self.station.name]
        recordable = self.recorder is None or self.recorder.has_room()
        return recordable and self.worker.engine_served and any(self.slab.is_free(s) for s in slots)

    def on_trigger(self, event: Triggered) -> None:
        """Tell the gate at once: from now on an answer is owed."""
        self.at_ns, self._next_number = event.at_ns, event.number + 1
        self._owes_frame = not event.missed
        trigger = Trigger(
            self.station.name, event.number, event.at_ns, event.missed, count=event.count, part_id=event.part_id
        )
        self.worker.send(GATE, trigger)
        self.worker.record(trigger)
        if not event.missed:
            self.stitcher.trigger(event.count)

    def on_frame(self, event: Exposed) -> None:
        """Put the frame into a slot and send it on its way, or say why it cannot be inspected."""
        self._owes_frame = False
        seen = event.image  # at this trigger; None: nothing, or what was seen at an earlier one
        if event.image is None:
            self._refuse(event.number, event.reason or Reason.BAD_IMAGE, event.detail)
        elif (found := _shape(event.image)) != self._declared:
            self._refuse(event.number, Reason.WRONG_SIZE, f"{found}, the recipe says {self._declared}")
        elif self.frozen is not None and self.frozen.is_frozen(event.image):
            self._refuse(event.number, Reason.FROZEN_FRAME, "the same bytes as the frame before")
            seen = None
        elif self.stitcher.lost:
            self._refuse(event.number, Reason.TRACKING, self.stitcher.lost)
        elif not self.worker.engine_served:
            self._answer(event.number, Reason.NOT_READY)
        elif (taken := self.slab.acquire(self.station.name, self.me)) is None:
            self._refuse(event.number, Reason.OVERLOAD, "no free slot")
        else:
            slot, generation = taken
            rows_before = self.stitcher.fill(event.number, event.image, self.slab.arrays(slot)["frame"])
            stamps = [time.monotonic_ns()]
            frame = FrameRef(
                self.station.name, event.number, slot, generation, self.at_ns, stamps, rows_before=rows_before
            )
            self.worker.pass_on(frame, PREPARE)
            self.worker.count("done")
        self.stitcher.keep(event.number, seen)
        if self.frozen is not None and event.image is not None and _shape(event.image) == self._declared:
            self.frozen.keep(event.image)
        if self.recorder is not None and event.image is not None:
            self.recorder.offer(event.number, self.at_ns, event.image)

    def is_over(self) -> bool:
        """Whether a stop was asked for, and the last trigger has its frame or waited long enough for it."""
        if not self.worker.stopping:
            return False
        now_ns = time.monotonic_ns()
        self._stopping_since_ns = self._stopping_since_ns or now_ns
        return not self._owes_frame or now_ns - self._stopping_since_ns > LAST_FRAME_NS

    @property
    def _declared(self) -> str:
        return _describe(self.frame.height_px, self.frame.width_px, self.frame.channels, self.frame.dtype)

    def _refuse(self, number: int, reason: Reason, detail: str) -> None:
        self.worker.count("failed")
        self.worker.log.warning(
            "frame_refused", station=self.station.name, number=number, reason=reason.value, detail=detail
        )
        self._answer(number, reason)

    def _answer(self, number: int, reason: Reason) -> None:
        result = ViewResult(self.station.name, number, self.at_ns, Decision.UNINSPECTED, reason)
        self.worker.send(GATE, result)
        self.worker.record(result)

    def end(self, next_number: int) -> None:
        """Say that the source has no more parts; the supervisor does not start this process again."""
        self._next_number = next_number
        self.worker.send(GATE, SourceEnded(self.station.name, next_number))
        self.worker.log.info("source_ended", station=self.station.name, parts=next_number)
        self.worker.report(State.DONE)


def _shape(image: Image) -> str:
    return _describe(image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1, image.dtype.name)


def _describe(height: int, width: int, channels: int, dtype: str) -> str:
    return f"{width} x {height} px, {channels} channel{'s' if channels > 1 else ''}, {dtype}"


def run(worker: Worker) -> None:
    """The capture process."""
    capture = Capture(worker)
    capture.try_source()
    worker.ready()
    source = capture.open()
    try:
        while not capture.is_over():
            worker.beat()
            if not capture.has_room():
                time.sleep(_LOOK_AGAIN_S)
                continue
            event = source.poll(IDLE_MS / 1000)
            if isinstance(event, Triggered):
                capture.on_trigger(event)
            elif isinstance(event, Exposed):
                capture.on_frame(event)
            elif isinstance(event, Ended):
                capture.end(event.next_number)
                return
    finally:
        source.close()
