"""Judge: from reconstruction to anomaly map to decision, per view. A PASS needs a score below a threshold that was
calibrated for exactly this bundle, recipe, backend and precision."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import cv2
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from calib.calibration import Provenance, StationCalibration, levels_trouble, mismatch, sharpness_trouble
from edge.anomaly import ErrorMapper, NotFiniteError
from edge.archive import backlog_limit, picture_path, wanted
from edge.messages import Boxes, FrameRef, ViewResult
from edge.plan import StationPlan
from edge.processes import ARCHIVE, GATE
from edge.scores import SPECK_PX, view_defects, view_score
from edge.settings import Mode, scoring_sha256
from edge.tiling import Box, Place, frame_levels
from edge.validity import sharpness
from edge.verdict import Decision, Reason
from edge.webs.carry import Carry, Chain
from edge.worker import Worker

__all__ = ["Judge", "Judgement", "provenance", "run", "view_result"]


@dataclass(frozen=True)
class Judgement:
    """What the judge says of one view."""

    decision: Decision
    reason: Reason | None = None
    score: float | None = None
    threshold: float | None = None
    boxes: Boxes | None = None
    areas_px: list[float] | None = None


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
    """The judge of one station: pure but for its buffers, and for what a frame of a web hands on to the next."""

    def __init__(self, plan: StationPlan, limits: StationCalibration | None, *, forgot: bool = False) -> None:
        """`forgot`: another judge came before this one, and what it knew of the newest frame is lost."""
        self._plan, self._limits = plan, limits
        self._chain, self._forgot = Chain(plan.carry), forgot and plan.carry is not None
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
        place: Place | None = None,
        rows_before: int = 0,
        number: int = 0,
    ) -> Judgement:
        """Fill `maps` float32 [N, h, w] from `tiles` uint8 [N, h, w, C] and `reconstruction` float32, which is what the
        engine answered (`Manifest.answer_shape`); decide. `place`: how the part lay, where it is located.
        `rows_before`: of a web, see `FrameRef`. `number`: of the frame; those of a web come in this order."""
        limits = self._limits if self.mismatch(engine) is None else None
        ignore, before = self._plan.ignored(rows_before), self._chain.before(number, rows_before)
        forgot, self._forgot = self._forgot and rows_before > 0, False
        try:
            self._mapper.fill(tiles, reconstruction, maps, ignore)
            map_threshold = limits.map_threshold if limits else float("inf")
            found = view_score(maps, self._manifest.score, map_threshold, ignore, self._plan.joined, before)
            score = found.score
        except NotFiniteError:
            return Judgement(Decision.UNINSPECTED, Reason.ENGINE_ERROR)
        if limits is None:
            return Judgement(Decision.UNINSPECTED, Reason.UNCALIBRATED, score)
        if trouble := levels_trouble(limits.levels, frame_levels(tiles)) or self._defocused(limits, tiles):
            return Judgement(Decision.UNINSPECTED, trouble, score, limits.score_threshold)
        if forgot and score <= limits.score_threshold:
            return Judgement(Decision.UNINSPECTED, Reason.NOT_READY, score, limits.score_threshold)
        self._chain.keep(number, found.carry)
        if score <= limits.score_threshold:
            return Judgement(Decision.PASS, None, score, limits.score_threshold)
        shown = self._shown(limits, maps, place, before)
        boxes, areas_px = [list(box) for box, _ in shown], [area for _, area in shown]
        return Judgement(Decision.REJECT, None, score, limits.score_threshold, boxes, areas_px)

    def _defocused(self, limits: StationCalibration, tiles: NDArray[np.uint8]) -> Reason | None:
        if limits.sharpness is None or not self._plan.station.validity.defocused:
            return None
        return sharpness_trouble(limits.sharpness, sharpness(tiles))

    def _shown(
        self, limits: StationCalibration, maps: NDArray[np.float32], place: Place | None, before: Carry | None
    ) -> list[tuple[Box, float]]:
        """The defects that are shown, none smaller than the smallest that counts; but the largest of a rejected part
        is, however small: its score may be no area."""
        prepare, smallest = self._plan.prepare, max(SPECK_PX, math.ceil(self._plan.smallest_defect_px))
        if self._manifest.score.kind == "area":  # those that a part is rejected for
            smallest = max(smallest, int(limits.score_threshold) + 1)
        found = view_defects(maps, limits.map_threshold, prepare, smallest, place, before)
        return found or view_defects(maps, limits.map_threshold, prepare, SPECK_PX, place, before)[:1]

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
    again = worker.line_started  # there was a judge before this one
    judges = {name: Judge(plan, limits.get(name), forgot=again) for name, plan in worker.plan.stations.items()}
    warned: set[str] = set()
    worker.ready()
    for frame in worker.frames():
        arrays, judge = worker.slab.arrays(frame.slot), judges[frame.station]
        if frame.reason is not None:
            arrays["map"].fill(0)
            arrays["reconstruction"].fill(0)
            judgement = Judgement(Decision.UNINSPECTED, frame.reason)
        else:
            place = Place(*frame.place) if frame.place else None
            judgement = judge.judge(
                *(arrays["tiles"], arrays["reconstruction"], arrays["map"]),
                frame.engine,
                place,
                frame.rows_before,
                frame.number,
            )
            if judgement.reason is Reason.UNCALIBRATED and frame.station not in warned:
                warned.add(frame.station)
                worker.log.warning("uncalibrated", station=frame.station, why=judge.mismatch(frame.engine))
        _answer(worker, frame, judgement, calibration_sha256)


def view_result(frame: FrameRef, judgement: Judgement, calibration: str, picture: str = "") -> ViewResult:
    """The answer for a view; `calibration`: its hash, `picture`: where its images are kept, if they are."""
    return ViewResult(
        station=frame.station,
        number=frame.number,
        at_ns=frame.at_ns,
        decision=judgement.decision,
        reason=judgement.reason,
        score=judgement.score,
        threshold=judgement.threshold,
        boxes=judgement.boxes or [],
        witness=frame.witness,
        picture=picture,
        engine=frame.engine,
        calibration=calibration,
        stamps=frame.stamps,
        rows_before=frame.rows_before,
        place=frame.place,
        areas_px=judgement.areas_px or [],
    )


def _answer(worker: Worker, frame: FrameRef, judgement: Judgement, calibration: str) -> None:
    """Send the result to the gate; then let the archive have the slot if its pictures are wanted, or release it."""
    keep = _keeps(worker, frame, judgement.decision)
    frame = replace(
        frame, decision=judgement.decision, reason=judgement.reason, stamps=[*frame.stamps, time.monotonic_ns()]
    )
    picture = picture_path(worker.slab.server_id, frame.station, frame.number) if keep else ""
    result = view_result(frame, judgement, calibration, picture)
    worker.send(GATE, result)
    worker.record(result)
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
