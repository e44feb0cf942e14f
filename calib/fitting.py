"""From good parts to a calibration, one part at a time: memory does not grow with the number of parts but for one
score per part.

The first parts give the map's threshold, the others, which it never saw, the score threshold. They are split in time
and not in turns: neighbours on a line look alike, and a threshold that saw a part's neighbour would know it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from calib.calibration import Calibration, LevelsSeen, Provenance, SharpnessSeen, StationCalibration
from calib.thresholds import MIN_HELD_OUT, PixelHistogram, Threshold, fit_threshold
from edge import __version__
from edge.anomaly import ErrorMapper
from edge.errors import CalibrationError
from edge.scores import view_score
from edge.tiling import Tiling, frame_levels
from edge.validity import sharpness
from edge.webs.carry import Carry, Chain
from engines.bundle import ErrorMap, Score

__all__ = ["GoodView", "StationSpec", "Targets", "assemble", "fit_station"]

CASCADE_RATE = 1 / 300
"""Of parts, each way: so many may have an exact score that lies outside of what the cheap one lets expect."""


@dataclass(frozen=True)
class GoodView:
    """What a station saw of a good part. The arrays are used before the next view is asked for: they may be reused."""

    tiles: NDArray[np.uint8]
    """uint8 [N, h, w, C]."""
    reconstruction: NDArray[np.float32]
    """What the network answered, float32 [N, h, w, C] or C + 1 (see `Manifest.answer_shape`), by the plan that decides
    (x1 in a cascade)."""
    cheap: NDArray[np.float32] | None = None
    """The same by the first plan of a cascade."""
    ignore: NDArray[np.bool_] | None = None
    """bool [N, h, w]: pixels that are not judged."""
    joined: Tiling | None = None
    """See `StationPlan.joined`."""
    rows_before: int = 0
    """Of a web, see `FrameRef`."""


@dataclass(frozen=True)
class StationSpec:
    """How a station's maps and scores are made, and what with."""

    error_map: ErrorMap
    score: Score
    provenance: Provenance
    views_per_part: int = 1
    """How many stations see a part. One of them suffices to reject it, so each gets an equal share of the rate."""
    smallest_px: float = 0.0
    """Smaller areas do not count, where areas are the score: pixels of the map (`StationPlan.smallest_defect_px`)."""
    carry: Carry | None = None
    """See `StationPlan.carry`."""


@dataclass(frozen=True)
class Targets:
    """What is asked of the thresholds."""

    false_reject_rate: float = 0.01
    """Of parts."""
    confidence: float = 0.95
    fit_share: float = 0.5
    """Share of the parts that give the map's threshold."""


@dataclass
class _Seen:
    """What the good parts so far looked and scored like."""

    spec: StationSpec
    histogram: PixelHistogram
    exact: Chain
    cheap: Chain
    mapper: ErrorMapper | None = None
    maps: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    map_threshold: float = 0.0
    scores: list[float] = field(default_factory=list)
    mean_low: float = 1.0
    mean_high: float = 0.0
    contrast_low: float = 1.0
    sharpness_low: float = float("inf")
    sharpness_high: float = 0.0
    differences: list[tuple[float, float]] = field(default_factory=list)
    """Of a part's tiles, exact less cheap scores: the lowest and the highest."""

    def maps_of(self, view: GoodView, reconstruction: NDArray[np.float32]) -> NDArray[np.float32]:
        count, height, width, channels = view.tiles.shape
        if self.mapper is None:
            self.mapper = ErrorMapper(self.spec.error_map, (height, width, channels))
        if len(self.maps) != count:
            self.maps = np.empty((count, height, width), np.float32)
        return self.mapper.fill(view.tiles, reconstruction, self.maps, view.ignore)

    def look(self, view: GoodView) -> None:
        levels = frame_levels(view.tiles)
        self.mean_low, self.mean_high = min(self.mean_low, levels.mean), max(self.mean_high, levels.mean)
        self.contrast_low = min(self.contrast_low, levels.contrast)
        sharp = sharpness(view.tiles)
        self.sharpness_low, self.sharpness_high = min(self.sharpness_low, sharp), max(self.sharpness_high, sharp)

    def fit(self, view: GoodView) -> None:
        maps = self.maps_of(view, view.reconstruction)
        self.histogram.add(maps if view.ignore is None else maps[~view.ignore])

    def hold_out(self, number: int, view: GoodView) -> None:
        exact = self.tile_scores(number, view, view.reconstruction, self.exact)
        self.scores.append(float(exact.max()))
        if view.cheap is not None:
            difference = exact - self.tile_scores(number, view, view.cheap, self.cheap)
            self.differences.append((float(difference.min()), float(difference.max())))

    def tile_scores(
        self, number: int, view: GoodView, reconstruction: NDArray[np.float32], chain: Chain
    ) -> NDArray[np.float64]:
        maps, before = self.maps_of(view, reconstruction), chain.before(number, view.rows_before)
        found = view_score(maps, self.spec.score, self.map_threshold, view.ignore, view.joined, before)
        chain.keep(number, found.carry)
        return found.tile_scores


def fit_station(
    views: Iterable[GoodView], count: int, spec: StationSpec, targets: Targets | None = None
) -> StationCalibration:
    """Compute a station's calibration from `count` good parts, one view each, in the order in which they were seen.
    Views may have different numbers of tiles.

    The first `fit_share` of them give the map's threshold (a quantile of all their judged pixels), the rest one score
    each, its largest over the tiles; of frames of a web with the areas that are added up as on the line.
    `cascade_band`: how far from its score by the cheap plan a tile's score by the exact one is expected, but for
    `CASCADE_RATE` of the parts each way. Raises CalibrationError when the parts are too few.
    """
    targets = targets or Targets()
    fitting = max(1, round(count * targets.fit_share))
    if count - fitting < MIN_HELD_OUT:
        raise CalibrationError(
            f"{count} good parts, of which {max(0, count - fitting)} would be held out: at least {MIN_HELD_OUT} must"
            f" be, so give at least {2 * MIN_HELD_OUT} parts; a few hundred are better"
        )
    seen = _Seen(spec, PixelHistogram(spec.error_map.largest), Chain(spec.carry), Chain(spec.carry))
    for index, view in enumerate(views):
        seen.look(view)
        if index < fitting:
            seen.fit(view)
        else:
            seen.map_threshold = seen.map_threshold or seen.histogram.quantile(spec.score.map_quantile)
            seen.hold_out(index, view)
    rate = targets.false_reject_rate / spec.views_per_part
    threshold = fit_threshold(seen.scores, rate, targets.confidence)
    threshold, what_counts = _counting(threshold, seen.scores, spec)
    quantiles = np.quantile(seen.scores, [0, 0.5, 0.9, 0.99, 1])
    return StationCalibration(
        provenance=spec.provenance,
        map_threshold=seen.map_threshold,
        map_quantile=spec.score.map_quantile,
        score_threshold=threshold.value,
        parts_fit=fitting,
        parts_held_out=threshold.parts,
        rejected_held_out=threshold.rejected,
        target_false_reject_rate=rate,
        confidence=threshold.confidence,
        false_reject_upper_bound=threshold.upper_bound,
        extrapolated=threshold.extrapolated,
        score_quantiles=dict(zip(("min", "50", "90", "99", "max"), quantiles.tolist(), strict=True)),
        cascade_band=_band(seen.differences, targets.confidence) if seen.differences else None,
        levels=LevelsSeen(mean_low=seen.mean_low, mean_high=seen.mean_high, contrast_low=seen.contrast_low),
        sharpness=SharpnessSeen(low=seen.sharpness_low, high=seen.sharpness_high),
        statement=threshold.statement + what_counts,
    )


def _counting(threshold: Threshold, scores: Sequence[float], spec: StationSpec) -> tuple[Threshold, str]:
    """The threshold with what the recipe's smallest defect makes of it, and what that means, in words.

    An area below it does not count: a part with nothing larger passes, also where the good parts alone would have it
    rejected. So this is a threshold of its own, that a calibration has to be made for, and the statement says it.
    """
    if spec.score.kind != "area" or not spec.smallest_px:
        return threshold, ""
    smallest = math.ceil(spec.smallest_px)
    if threshold.value >= smallest:
        note = f" Areas of up to {threshold.value:.0f} px pass: the smallest defect of {smallest} px may not be found."
        return threshold, note
    raised = float(smallest - 1)  # whole pixels: an area is rejected from `smallest` on
    rejected = sum(score > raised for score in scores)
    note = (
        f" The recipe's smallest defect of {smallest} px raised the threshold from {threshold.value:.0f} to"
        f" {raised:.0f} px: parts with areas between them pass because the recipe says so."
    )
    return replace(threshold, value=raised, rejected=rejected, extrapolated=raised > max(scores)), note


def _band(differences: Sequence[tuple[float, float]], confidence: float) -> tuple[float, float]:
    """What exact less cheap scores stay within, 0 included, as the score threshold is what scores stay within."""
    lows, highs = np.asarray(differences).T
    low, high = (fit_threshold(x, CASCADE_RATE, confidence).value for x in (-lows, highs))
    return min(0.0, -low), max(0.0, high)


def assemble(stations: Mapping[str, StationCalibration], source: str) -> Calibration:
    """The calibration of a line from those of its stations; `source` says where the good parts came from."""
    return Calibration(
        maskline_version=__version__,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source=source,
        stations=dict(stations),
    )
