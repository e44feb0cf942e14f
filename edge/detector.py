"""The engines of a station and how they are combined: one of a plan, or the two of a cascade."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calib.calibration import StationCalibration
from calib.thresholds import near_threshold
from edge.anomaly import ErrorMapper
from edge.plan import LinePlan, StationPlan
from edge.scores import view_score, worst_blocks
from edge.settings import Engine
from edge.webs.carry import Chain
from engines.architecture import MaeArchitecture
from engines.backends import Backend, RepaintsBlocks, open_backend
from engines.bundle import Bundle
from engines.plans import CHEAP_PLAN, EXACT_PLAN, Index

__all__ = ["Detector", "Doubt", "load_engine", "mask_plans", "open_detectors"]


class Doubt(NamedTuple):
    """What the exact engine of a cascade must be asked for."""

    tiles: list[int]
    blocks: Index
    """int32 [len(tiles), B], of each tile; [len(tiles), 0]: the engine takes whole tiles only."""


class Detector:
    """The engines of one station and how they are combined."""

    def __init__(self, plan: StationPlan, exact: Backend, cheap: Backend | None) -> None:
        self.plan, self.exact, self.cheap = plan, exact, cheap
        self._manifest = plan.bundle.manifest
        count, height, width, channels = plan.prepare.tiles_shape
        self._mapper = ErrorMapper(self._manifest.error_map, (height, width, channels))
        self._maps = np.empty((count if cheap else 0, height, width), np.float32)
        self._chain = Chain(plan.carry)
        self._again = exact if cheap and isinstance(exact, RepaintsBlocks) and exact.blocks else None
        a = self._manifest.architecture
        self._block_px = a.block * a.patch_px if isinstance(a, MaeArchitecture) else 0  # nothing else has blocks
        self.info = {k: str(v) for k, v in asdict(exact.describe()).items()} | {"plan": plan.station.plan}

    def first(self, calibration: StationCalibration | None) -> Backend:
        """The engine that sees every tile: the cheap one of a cascade, when it is calibrated. Otherwise nothing is near
        a threshold, and all is exact."""
        near = calibration is not None and calibration.cascade_band is not None
        return self.cheap if self.cheap is not None and near else self.exact

    def doubtful(
        self,
        tiles: NDArray[np.uint8],
        out: NDArray[np.float32],
        calibration: StationCalibration | None,
        rows_before: int = 0,
        number: int = 0,
    ) -> Doubt:
        """Of the tiles that the cheap engine repainted: those whose score is too near to the threshold to be sure what
        the exact score says, and of these the blocks that matter most. They are for the exact engine.

        For `rows_before` see FrameRef; `number` is the frame's, and those of a web come in this order. Areas are added
        up as the cheap engine saw them. Raises NotFiniteError.
        """
        if calibration is None or calibration.cascade_band is None:
            return Doubt([], np.empty((0, 0), np.int32))
        ignore, before = self.plan.ignored(rows_before), self._chain.before(number, rows_before)
        maps = self._mapper.fill(tiles, out, self._maps, ignore)
        limit, joined = calibration.map_threshold, self.plan.joined
        found = view_score(maps, self._manifest.score, limit, ignore, joined, before)
        self._chain.keep(number, found.carry)
        near = near_threshold(found.tile_scores, calibration.score_threshold, calibration.cascade_band)
        doubtful = [int(i) for i in np.flatnonzero(near)]
        count = self._again.blocks if self._again else 0
        score, side = self._manifest.score, self._block_px
        blocks = [worst_blocks(maps[i], score, limit, side, count) for i in doubtful] if count else []
        return Doubt(doubtful, np.array(blocks, np.int32).reshape(len(doubtful), count))

    @property
    def asks_for_blocks(self) -> bool:
        """Whether the exact engine of this cascade takes blocks, and not whole tiles only."""
        return self._again is not None

    def look_again(self, tiles: NDArray[np.uint8], out: NDArray[np.float32], doubt: Doubt) -> None:
        """Have the exact engine repaint in `out` what is in doubt."""
        for i, blocks in zip(doubt.tiles, doubt.blocks, strict=True):
            one = slice(i, i + 1)
            if self._again:
                self._again.repaint(tiles[one], out[one], blocks[None])
            else:
                self.exact.infer(tiles[one], out[one])

    def infer(
        self,
        tiles: NDArray[np.uint8],
        out: NDArray[np.float32],
        calibration: StationCalibration | None,
        rows_before: int = 0,
        number: int = 0,
    ) -> int | None:
        """Repaint `tiles` uint8 [N, h, w, C] into `out` (`Manifest.answer_shape`), a frame alone, as the line does with
        many; returns the backend's witness."""
        first = self.first(calibration)
        witness = first.infer(tiles, out)
        if first is self.cheap:
            self.look_again(tiles, out, self.doubtful(tiles, out, calibration, rows_before, number))
        return witness


def mask_plans(station: StationPlan) -> tuple[str, ...]:
    """The mask plans of a station's engines; the exact one is the last."""
    plan = station.station.plan
    return (CHEAP_PLAN, EXACT_PLAN) if plan == "cascade" else (plan,)


def load_engine(settings: Engine, bundle: Bundle, mask_plan: str) -> Backend:
    """The backend that the recipe names, with a bundle's network, warmed up. Raises MasklineError."""
    backend = open_backend(
        settings.backend, null_delay_ms=settings.null_delay_ms, marker_build_ms=settings.marker_build_ms
    )
    backend.load(bundle, mask_plan, precision=settings.precision, threads=settings.threads, batch=settings.batch)
    backend.warm_up()
    return backend


def open_detectors(plan: LinePlan) -> dict[str, Detector]:
    """Load and warm up the engines of every station; stations with the same bundle and plan share one.

    Raises MasklineError when a backend cannot be had.
    """
    loaded: dict[tuple[str, str], Backend] = {}
    detectors = {}
    for name, station in plan.stations.items():
        engines = []
        for mask_plan in mask_plans(station):
            key = (station.bundle.sha256, mask_plan)
            if key not in loaded:
                loaded[key] = load_engine(plan.recipe.engine, station.bundle, mask_plan)
            engines.append(loaded[key])
        *cheap, exact = engines
        detectors[name] = Detector(station, exact, cheap[0] if cheap else None)
    return detectors
