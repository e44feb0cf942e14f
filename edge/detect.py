"""Detect: the one process that runs engines. Repaints the tiles of each frame, in the slot."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from calib.calibration import StationCalibration
from calib.thresholds import near_threshold
from edge.anomaly import ErrorMapper
from edge.messages import FrameRef
from edge.plan import LinePlan, StationPlan
from edge.processes import JUDGE
from edge.scores import view_score
from edge.verdict import Reason
from edge.worker import Worker
from engines.backends import Backend, open_backend

__all__ = ["CHEAP_PLAN", "Detector", "open_detectors", "run"]

CHEAP_PLAN, EXACT_PLAN = "x16", "x1"
"""The plans of a cascade: all tiles with the first, those near the threshold again with the second."""

FAILURES_IN_A_ROW = 3
"""An engine that fails so often is started anew, with its process."""


class Detector:
    """The engines of one station and how they are combined."""

    def __init__(self, plan: StationPlan, exact: Backend, cheap: Backend | None) -> None:
        self._exact, self._cheap, self._ignore = exact, cheap, plan.prepare.ignore_tiles
        self._manifest = plan.bundle.manifest
        count, height, width, channels = plan.prepare.tiles_shape
        self._mapper = ErrorMapper(self._manifest.error_map, (height, width, channels))
        self._maps = np.empty((count if cheap else 0, height, width), np.float32)
        self.info = {k: str(v) for k, v in asdict(exact.describe()).items()} | {"plan": plan.station.plan}

    def infer(
        self, tiles: NDArray[np.uint8], out: NDArray[np.float32], calibration: StationCalibration | None
    ) -> int | None:
        """Repaint `tiles` uint8 [N, h, w, C] into `out` float32 [N, h, w, C]; returns the backend's witness.

        A cascade repaints with the cheap plan, and with the exact one again where the cheap score is too near to the
        threshold to be sure what the exact score says. Without a calibration there is no near: all is exact.
        """
        if self._cheap is None or calibration is None or calibration.cascade_band is None:
            return self._exact.infer(tiles, out)
        self._cheap.infer(tiles, out)
        maps = self._mapper.fill(tiles, out, self._maps, self._ignore)
        scores = view_score(maps, self._manifest.score, calibration.map_threshold, self._ignore).tile_scores
        for i in np.flatnonzero(near_threshold(scores, calibration.score_threshold, calibration.cascade_band)):
            self._exact.infer(tiles[i : i + 1], out[i : i + 1])
        return None

    def keep_warm(self) -> None:
        """To be called while no part comes; see `Backend`."""
        for backend in filter(None, (self._exact, self._cheap)):
            backend.keep_warm()


def open_detectors(plan: LinePlan) -> dict[str, Detector]:
    """Load and warm up the engines of every station; stations with the same bundle and plan share one.

    Raises MasklineError when a backend cannot be had.
    """
    settings = plan.recipe.engine
    loaded: dict[tuple[str, str], Backend] = {}

    def engine(station: StationPlan, mask_plan: str) -> Backend:
        key = (station.bundle.sha256, mask_plan)
        if key not in loaded:
            backend = open_backend(settings.backend, null_delay_ms=settings.null_delay_ms)
            backend.load(station.bundle, mask_plan, precision=settings.precision, threads=settings.threads, batch=1)
            backend.warm_up()
            loaded[key] = backend
        return loaded[key]

    detectors = {}
    for name, station in plan.stations.items():
        cascade = station.station.plan == "cascade"
        exact = engine(station, EXACT_PLAN if cascade else station.station.plan)
        detectors[name] = Detector(station, exact, engine(station, CHEAP_PLAN) if cascade else None)
    return detectors


def run(worker: Worker) -> None:
    """The detect process."""
    worker.inbox()
    worker.beat()
    detectors = open_detectors(worker.plan)
    calibration = worker.calibration()
    failures, warned = 0, False
    worker.ready()

    def keep_warm() -> None:
        for detector in detectors.values():
            detector.keep_warm()

    for frame in worker.frames(each_turn=keep_warm):
        reason, witness = frame.reason, None
        if reason is None:
            arrays = worker.slab.arrays(frame.slot)
            limits = calibration.stations.get(frame.station) if calibration else None
            began = time.monotonic()
            try:
                witness = detectors[frame.station].infer(arrays["tiles"], arrays["reconstruction"], limits)
                failures = 0
            except Exception:  # whatever a backend throws: the part gets its reason, the next part its chance
                worker.log.exception("engine_error", station=frame.station, number=frame.number)
                worker.count("failed")
                reason, failures = Reason.ENGINE_ERROR, failures + 1
            took_ms, deadline_ms = (time.monotonic() - began) * 1e3, worker.recipe.deadline.deadline_ms
            if took_ms > deadline_ms and not warned:  # once: what it means for each part stands in the verdicts
                warned = True
                worker.log.warning("engine_slower_than_deadline", took_ms=round(took_ms), deadline_ms=deadline_ms)
        worker.pass_on(_done(frame, reason, witness, detectors[frame.station].info), JUDGE)
        if failures >= FAILURES_IN_A_ROW:
            raise RuntimeError(f"the engine failed {failures} times in a row")


def _done(frame: FrameRef, reason: Reason | None, witness: int | None, info: dict[str, str]) -> FrameRef:
    return replace(frame, reason=reason, witness=witness, engine=info, stamps=[*frame.stamps, time.monotonic_ns()])
