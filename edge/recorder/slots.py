"""What a line that records does for the recorder, and what it knows of it.

Capture copies a frame once more, after the frame was sent on its way, into a slot that only the recorder reads. Without
a free one the frame is not recorded: nothing on the way to a verdict ever waits for a disk.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from edge.messages import FrameRef
from edge.plan import record_slots
from edge.processes import RECORD
from edge.sources import Image

if TYPE_CHECKING:
    from edge.worker import Worker

__all__ = ["RecordSlots", "RecordTrouble", "recording_counters", "recording_trouble"]


class RecordTrouble(IntEnum):
    """Why the recorder does not record, in its row of the slab."""

    NO = 0
    FULL = 1
    REFUSED = 2
    BEHIND = 3


_WORDS = {
    RecordTrouble.FULL: "the recording has stopped: its disk is full",
    RecordTrouble.REFUSED: "the recording has stopped: its folder cannot be written",
    RecordTrouble.BEHIND: "the recording is not whole: its disk is too slow, or frames are not as the recipe says",
}


class RecordSlots:
    """The slots of one station for the recorder, as its capture process uses them."""

    def __init__(self, worker: Worker, station: str) -> None:
        self._worker, self._station = worker, station
        self._slab, self._slots = worker.slab, record_slots(station)

    def has_room(self) -> bool:
        """Whether a frame can be recorded now: a lossless source waits for it."""
        return any(self._slab.is_free(s) for s in self._slab.station_slots[self._slots])

    def offer(self, number: int, at_ns: int, image: Image) -> None:
        """Copy the frame of a trigger and hand it to the recorder, or count it as not recorded."""
        self._worker.count("frames_offered")
        shape = self._slab.arrays(self._slab.station_slots[self._slots][0])["frame"]
        taken = self._slab.acquire(self._slots, self._worker.process.index) if _alike(shape, image) else None
        if taken is None:
            self._worker.count("frames_unrecorded")
            return
        slot, generation = taken
        arrived_ns = time.monotonic_ns()
        np.copyto(self._slab.arrays(slot)["frame"], image)
        self._worker.pass_on(FrameRef(self._station, number, slot, generation, at_ns, [arrived_ns]), RECORD)


def recording_trouble(worker: Worker) -> list[str]:
    """What is wrong with the recording of this line, in words; empty when nothing is, or when it does not record."""
    if not worker.records:
        return []
    trouble = RecordTrouble(int(worker.slab.row(worker.index_of(RECORD))["trouble"]))
    return [] if trouble is RecordTrouble.NO else [_WORDS[trouble]]


def recording_counters(worker: Worker) -> dict[str, int]:
    """What ought to have been recorded since the start of the line and is not; empty when it does not record."""
    if not worker.records:
        return {}
    rows = [worker.slab.row(p.index) for p in worker.plan.processes]
    return {name: sum(int(row[name]) for row in rows) for name in ("frames_unrecorded", "messages_unrecorded")}


def _alike(slot: Image, image: Image) -> bool:
    return slot.shape == image.shape and slot.dtype == image.dtype
