"""Prepare: from the frame in a slot to the tiles in the same slot, found first where the recipe says how."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edge.place.locate import Located
from edge.plan import StationPlan
from edge.processes import DETECT
from edge.tiling import prepare
from edge.worker import Worker

__all__ = ["prepare_view", "run"]


def prepare_view(frame: NDArray[Any], plan: StationPlan, out: NDArray[np.uint8]) -> Located:
    """Find the part in a frame [H, W, C], where the station locates it, and fill the tiles `out` with what is there.

    The one way from a frame to tiles, on the line and in calibration. With a reason the part is not to be judged: the
    tiles then show what lies where it should be.
    """
    found = plan.locator.find(frame) if plan.locator else Located()
    prepare(frame, plan.prepare, out, found.place if found.reason is None else None)
    return found


def run(worker: Worker) -> None:
    """The prepare process."""
    cv2.setNumThreads(1)
    worker.inbox()
    worker.ready()
    for frame in worker.frames():
        arrays = worker.slab.arrays(frame.slot)
        found = prepare_view(arrays["frame"], worker.plan.stations[frame.station], arrays["tiles"])
        if found.reason is not None:
            reason, detail = found.reason.value, found.detail
            worker.log.warning(
                "part_not_in_place", station=frame.station, number=frame.number, reason=reason, detail=detail
            )
        stamps, place = [*frame.stamps, time.monotonic_ns()], list(found.place or ())
        worker.pass_on(replace(frame, reason=frame.reason or found.reason, place=place, stamps=stamps), DETECT)
