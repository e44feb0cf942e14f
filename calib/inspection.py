"""One detector on pictures of any size: each goes the way that it would go on a line whose frames have its size."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.calibration import StationCalibration
from calib.fitting import GoodView, StationSpec, Targets, fit_station
from calib.pixels import Map
from calib.run import FLAT_BELOW
from edge.anomaly import NotFiniteError
from edge.detector import Detector, load_engine
from edge.errors import BundleError, CalibrationError, RecipeError
from edge.judge import Judge, provenance
from edge.padding import pad_mirrored
from edge.place.geometry import move
from edge.place.locate import Located
from edge.plan import StationPlan, not_judged, plan_frames
from edge.prepare import prepare_view
from edge.scores import fuse
from edge.settings import Engine, Station
from edge.sources.folder import load_image
from edge.tiling import Box, frame_levels, resize
from edge.verdict import Decision
from engines.bundle import Bundle
from engines.plans import CHEAP_PLAN, EXACT_PLAN

__all__ = ["Inspection", "Inspector"]


@dataclass(frozen=True)
class Inspection:
    """What a detector says of a picture."""

    score: float
    passed: bool
    anomaly_map: Map
    """float32 [H, W], the picture's size: larger values count where tiles overlap, 0 where nothing is judged."""
    ms_per_tile: float
    """For repainting, map and score; reading and cutting the picture come on top."""


@dataclass(frozen=True)
class _Cut:
    """A picture in tiles, and how it was cut."""

    plan: StationPlan
    inside: Box
    """Where the picture lies in the frame that was cut: all of it, or surrounded by what was mirrored."""
    tiles: NDArray[np.uint8]
    found: Located


class Inspector:
    """Serves a bundle with a station's tiling, mask plan and backend; the size of its frames is each picture's own.

    A picture that is smaller than a tile is mirrored at its sides, and what was added is not judged. Where the recipe
    names a region or an ignore mask, pictures must be as large as those need. A bundle without the recipe's mask plan
    is served with its first.
    """

    def __init__(self, station: Station, bundle: Bundle, settings: Engine) -> None:
        """Loads the engines. Raises MasklineError when they cannot be had."""
        plan = _mask_plan(station, bundle)
        self._station, self._bundle = station.model_copy(update={"plan": plan}), bundle
        self._exact = load_engine(settings, bundle, EXACT_PLAN if plan == "cascade" else plan)
        self._cheap = load_engine(settings, bundle, CHEAP_PLAN) if plan == "cascade" else None

    def calibrate(self, good: Sequence[Path], targets: Targets | None = None) -> StationCalibration:
        """Thresholds from pictures of good parts that the network was not fitted to, in the order of `good`.

        Raises MasklineError: too few, one that cannot be used, a network whose answers are no numbers.
        """
        cut, manifest = self._cut(good[0]), self._bundle.manifest
        scores = provenance(cut.plan, self._detector(cut).info)
        spec = StationSpec(manifest.error_map, manifest.score, scores, smallest_px=cut.plan.smallest_defect_px)
        try:
            return fit_station(self._views(good), len(good), spec, targets)
        except NotFiniteError as error:
            raise CalibrationError(f"bundle {self._bundle.path}: {error}; fit it again") from error

    def inspect(self, picture: Path, limits: StationCalibration) -> Inspection:
        """Judge a picture as the line does. Raises MasklineError that names a picture that cannot be used."""
        cut = self._cut(picture)
        answer = np.empty(self._bundle.manifest.answer_shape(cut.tiles.shape), np.float32)
        maps = np.empty(cut.tiles.shape[:3], np.float32)
        detector, judge = self._detector(cut), Judge(cut.plan, limits)
        begun = time.perf_counter()
        detector.infer(cut.tiles, answer, limits)
        judgement = judge.judge(cut.tiles, answer, maps, detector.info, cut.found.place)
        ms_per_tile = 1e3 * (time.perf_counter() - begun) / len(maps)
        if judgement.score is None:
            raise BundleError(f"bundle {self._bundle.path}: what it answers to {picture} is not finite; fit it again")
        anomaly_map = _frame_map(maps, cut)[cut.inside.rows, cut.inside.columns]
        passed = judgement.decision is Decision.PASS and cut.found.reason is None
        return Inspection(judgement.score, passed, anomaly_map, ms_per_tile)

    def _views(self, good: Iterable[Path]) -> Iterator[GoodView]:
        for picture in good:
            cut = self._cut(picture)
            if frame_levels(cut.tiles).contrast < FLAT_BELOW:
                raise CalibrationError(f"{picture}: all of one grey, and so no picture of a good part; take it out")
            if cut.found.reason:
                raise CalibrationError(f"{picture}: {cut.found.reason.value}, {cut.found.detail}; take it out")
            repainted = np.empty(self._bundle.manifest.answer_shape(cut.tiles.shape), np.float32)
            self._exact.infer(cut.tiles, repainted)
            roughly = None
            if self._cheap is not None:
                roughly = np.empty_like(repainted)
                self._cheap.infer(cut.tiles, roughly)
            yield GoodView(cut.tiles, repainted, roughly, cut.plan.prepare.ignore_tiles, cut.plan.joined)

    def _detector(self, cut: _Cut) -> Detector:
        return Detector(cut.plan, self._exact, self._cheap)

    def _cut(self, picture: Path) -> _Cut:
        """Read a picture, work out a line whose frames have its size, and cut it into tiles."""
        image = load_image(picture)
        tiling, tile_px = self._station.tiling, self._bundle.manifest.tile_px
        try:
            ignore = not_judged(self._with_frame(image))
            side = 0 if tiling.region or tiling.resize == "tile" else math.ceil(tile_px / tiling.resize)
            image, inside = pad_mirrored(image, side, side)
            if inside[2:] != (image.shape[1], image.shape[0]):
                covered = np.full(image.shape[:2], 255, np.uint8)
                covered[inside.rows, inside.columns] = 0 if ignore is None else ignore
                ignore = covered
            plan = plan_frames(self._with_frame(image), self._bundle, ignore)
        except RecipeError as error:
            raise RecipeError(f"{picture}: {error}") from error
        plan = replace(plan, station=self._station)  # one station for all sizes: its thresholds hold for each
        tiles = np.empty(plan.prepare.tiles_shape, np.uint8)
        return _Cut(plan, inside, tiles, prepare_view(image, plan, tiles))

    def _with_frame(self, image: NDArray[np.generic]) -> Station:
        """The station with frames of the image's size, channels and depth."""
        frame = self._station.frame
        height, width, channels = image.shape
        depth = 8 if image.dtype == np.uint8 else max(frame.bit_depth, 10)
        size = {"width_px": width, "height_px": height, "channels": channels, "bit_depth": depth}
        return self._station.model_copy(update={"frame": frame.model_copy(update=size), "web": None})


def _mask_plan(station: Station, bundle: Bundle) -> str:
    plans = bundle.manifest.plans
    needed = (EXACT_PLAN, CHEAP_PLAN) if station.plan == "cascade" else (station.plan,)
    return station.plan if set(needed) <= set(plans) else plans[0]


def _frame_map(maps: Map, cut: _Cut) -> Map:
    """The maps [N, tile, tile] of a frame as one of the frame's size, float32 [H, W]; 0 outside the region."""
    plan, place = cut.plan.prepare, cut.found.place if cut.found.reason is None else None
    region, (height, width, _) = plan.region, plan.frame_shape
    fused = fuse(maps, plan.tiling)[..., None]
    frame = np.zeros((height, width, 1), np.float32)
    frame[region.rows, region.columns] = resize(fused, np.empty((region.height, region.width, 1), np.float32))
    if place is not None:
        return move(frame[..., 0], region, place)
    return frame[..., 0]
