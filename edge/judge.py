"""Judge: from reconstruction to anomaly map to decision, per view. A PASS needs a score below a threshold that was
calibrated for exactly this bundle, recipe, backend and precision."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.calibration import Provenance, StationCalibration, levels_trouble, mismatch
from edge.anomaly import ErrorMapper, NotFiniteError
from edge.archive import backlog_limit, picture_path, wanted
from edge.messages import Boxes, FrameRef, ViewResult
from edge.plan import StationPlan
from edge.processes import ARCHIVE, GATE
from edge.scores import SPECK_PX, view_boxes, view_score
from edge.settings import Mode, scoring_sha256
from edge.tiling import frame_levels
from edge.verdict import Decision, Reason
from edge.worker import Worker

__all__ = ["Judge", "Judgement", "provenance", "run"]


@dataclass(frozen=True)
class Judgement:
    """What the judge says of one view."""

    decision: Decision
    reason: Reason | None = None
    score: float | None = None
    threshold: float | None = None
    boxes: Boxes | None = None


def provenance(plan: StationPlan, engine: dict[str, str]) -> Provenance:
    """What a score of this station depends on; `engine` is what the backend says of itself (`Detector.info`)."""
    return Provenance(
        bundle_sha256=plan.bundle.sha256,
        recipe_sha256=scoring_sha256(plan.station),
        backend=engine["backend"],
        backend_version=engine["version"],
        device=engine["device"],
        precision=engine["precision"],
        isa=engine["isa"],
        plan=engine["plan"],
    )


class Judge:
    """The judge of one station: pure but for its buffers."""

    def __init__(self, plan: StationPlan, limits: StationCalibration | None) -> None:
        self._plan, self._limits = plan, limits
        self._manifest = plan.bundle.manifest
        _, height, width, channels = plan.prepare.tiles_shape
        self._mapper = ErrorMapper(self._manifest.error_map, (height, width, channels))
        self._mismatches: dict[tuple[tuple[str, str], ...], str | None] = {}

    def judge(
        self,
        tiles: NDArray[np.uint8],
        reconstruction: NDArray[np.float32],
        maps: NDArray[np.float32],
        engine: dict[str, str],
    ) -> Judgement:
        """Fill `maps` float32 [N, h, w] from `tiles` uint8 [N, h, w, C] and `reconstruction` float32, which is what the
        engine answered (`Manifest.answer_shape`); decide."""
        limits = self._limits if self.mismatch(engine) is None else None
        ignore = self._plan.prepare.ignore_tiles
        try:
            self._mapper.fill(tiles, reconstruction, maps, ignore)
            map_threshold = limits.map_threshold if limits else float("inf")
            score = view_score(maps, self._manifest.score, map_threshold, ignore).score
        except NotFiniteError:
            return Judgement(Decision.UNINSPECTED, Reason.ENGINE_ERROR)
        if limits is None:
            return Judgement(Decision.UNINSPECTED, Reason.UNCALIBRATED, score)
        if trouble := levels_trouble(limits.levels, frame_levels(tiles)):
            return Judgement(Decision.UNINSPECTED, trouble, score, limits.score_threshold)
        if score <= limits.score_threshold:
            return Judgement(Decision.PASS, None, score, limits.score_threshold)
        boxes = [
            list(box) for box in view_boxes(maps, limits.map_threshold, self._plan.prepare, self._smallest_px(limits))
        ]
        return Judgement(Decision.REJECT, None, score, limits.score_threshold, boxes)

    def _smallest_px(self, limits: StationCalibration) -> int:
        """The smallest area that is shown in a box: where areas are the score, those that a part is rejected for."""
        return max(SPECK_PX, int(limits.score_threshold) + 1) if self._manifest.score.kind == "area" else SPECK_PX

    def mismatch(self, engine: dict[str, str]) -> str | None:
        """Why there are no thresholds for what computed this reconstruction; None when there are."""
        key = tuple(sorted(engine.items()))
        if key not in self._mismatches:
            missing = "there is no calibration for this station; `maskline calibrate` makes one"
            found = mismatch(self._limits, provenance(self._plan, engine)) if self._limits else missing
            self._mismatches[key] = found
        return self._mismatches[key]


def run(worker: Worker) -> None:
    """The judge process."""
    cv2.setNumThreads(1)
    worker.inbox()
    calibration = worker.calibration()
    limits, calibration_sha256 = (calibration.stations, calibration.sha256) if calibration else ({}, "")
    judges = {name: Judge(plan, limits.get(name)) for name, plan in worker.plan.stations.items()}
    warned: set[str] = set()
    worker.ready()
    for frame in worker.frames():
        arrays, judge = worker.slab.arrays(frame.slot), judges[frame.station]
        if frame.reason is not None:
            arrays["map"].fill(0)
            arrays["reconstruction"].fill(0)
            judgement = Judgement(Decision.UNINSPECTED, frame.reason)
        else:
            judgement = judge.judge(arrays["tiles"], arrays["reconstruction"], arrays["map"], frame.engine)
            if judgement.reason is Reason.UNCALIBRATED and frame.station not in warned:
                warned.add(frame.station)
                worker.log.warning("uncalibrated", station=frame.station, why=judge.mismatch(frame.engine))
        _answer(worker, frame, judgement, calibration_sha256)


def _answer(worker: Worker, frame: FrameRef, judgement: Judgement, calibration: str) -> None:
    """Send the result to the gate; then let the archive have the slot if its pictures are wanted, or release it."""
    keep = _keeps(worker, frame, judgement.decision)
    frame = replace(
        frame, decision=judgement.decision, reason=judgement.reason, stamps=[*frame.stamps, time.monotonic_ns()]
    )
    result = ViewResult(
        station=frame.station,
        number=frame.number,
        at_ns=frame.at_ns,
        decision=judgement.decision,
        reason=judgement.reason,
        score=judgement.score,
        threshold=judgement.threshold,
        boxes=judgement.boxes or [],
        witness=frame.witness,
        picture=picture_path(worker.slab.server_id, frame.station, frame.number) if keep else "",
        engine=frame.engine,
        calibration=calibration,
        stamps=frame.stamps,
    )
    worker.send(GATE, result)
    if keep:
        worker.pass_on(frame, ARCHIVE)
    else:
        worker.slab.release(frame.slot)


def _keeps(worker: Worker, frame: FrameRef, decision: Decision) -> bool:
    """Whether the pictures of this view are wanted, and the archive is not behind. A lossless source waits for it."""
    station = worker.recipe.station(frame.station)
    if not wanted(worker.recipe.pictures, decision, frame.number):
        return False
    if station.source.mode is Mode.LOSSLESS:
        return True
    slots = worker.slab.station_slots[frame.station]
    behind = sum(slot in slots for slot in worker.slab.held_by(worker.index_of(ARCHIVE)))
    return behind < backlog_limit(station)
