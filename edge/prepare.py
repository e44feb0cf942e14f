"""Prepare: from the frame in a slot to the tiles in the same slot."""

from __future__ import annotations

import time
from dataclasses import replace

import cv2

from edge.processes import DETECT
from edge.tiling import prepare
from edge.worker import Worker

__all__ = ["run"]


def run(worker: Worker) -> None:
    """The prepare process."""
    cv2.setNumThreads(1)
    worker.inbox()
    worker.ready()
    for frame in worker.frames():
        arrays = worker.slab.arrays(frame.slot)
        prepare(arrays["frame"], worker.plan.stations[frame.station].prepare, arrays["tiles"])
        worker.pass_on(replace(frame, stamps=[*frame.stamps, time.monotonic_ns()]), DETECT)
