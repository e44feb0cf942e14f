"""From good parts to a calibration, one part at a time: memory does not grow with the number of parts but for one
score per part.

The first parts give the map's threshold, the others, which it never saw, the score threshold. They are split in time
and not in turns: neighbours on a line look alike, and a threshold that saw a part's neighbour would know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from calib.calibration import Calibration, LevelsSeen, Provenance, StationCalibration
from calib.thresholds import MIN_HELD_OUT, PixelHistogram, fit_threshold
from edge import __version__
from edge.anomaly import ErrorMapper, ErrorMapSpec, ScoreSpec, view_score
from edge.errors import CalibrationError
from edge.tiling import frame_levels

__all__ = ["GoodView", "StationSpec", "Targets", "fit_calibration"]


@dataclass(frozen=True)
class GoodView:
    """What a station saw of a good part. The arrays are used before the next part is asked for: they may be reused."""

    station: str
    tiles: NDArray[np.uint8]
    """uint8 [N, h, w, C]."""
    reconstruction: NDArray[np.float32]
    """float32 [N, h, w, C] in [0, 1], by the plan that decides (x1 in a cascade)."""
    cheap: NDArray[np.float32] | None = None
    """The same by the first plan of a cascade."""


@dataclass(frozen=True)
class StationSpec:
    """How a station's maps and scores are made, and what with."""

    error_map: ErrorMapSpec
    score: ScoreSpec
    provenance: Provenance
    ignore: NDArray[np.bool_] | None = None
    """bool [N, h, w]: pixels that are not judged."""


@dataclass(frozen=True)
class Targets:
    """What is asked of the thresholds."""

    false_reject_rate: float = 0.01
    """Of parts, over all stations together: each station gets an equal share, so that the sum stays below."""
    confidence: float = 0.95
    map_quantile: float = 0.9995
    """Share of the good pixels that lie below the map's threshold."""
    fit_share: float = 0.5
    """Share of the parts that give the map's threshold."""


@dataclass
class _Station:
    spec: StationSpec
    targets: Targets
    mapper: ErrorMapper | None = None
    histogram: PixelHistogram = field(init=False)
    maps: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    map_threshold: float | None = None
    parts_fit: int = 0
    scores: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=lambda: [1.0, 0.0])
    contrast_low: float = 1.0
    band: float | None = None

    def __post_init__(self) -> None:
        self.histogram = PixelHistogram(self.spec.error_map.ssim_weight + self.spec.error_map.l1_weight)

    def maps_of(self, view: GoodView, reconstruction: NDArray[np.float32]) -> NDArray[np.float32]:
        n, height, width, channels = view.tiles.shape
        if self.mapper is None or self.mapper.tile_shape != (height, width, channels):
            self.mapper = ErrorMapper(self.spec.error_map, (height, width, channels))
        if self.maps.shape != (n, height, width):
            self.maps = np.empty((n, height, width), np.float32)
        return self.mapper.fill(view.tiles, reconstruction, self.maps, self.spec.ignore)

    def see(self, view: GoodView) -> None:
        levels = frame_levels(view.tiles)
        self.means = [min(self.means[0], levels.mean), max(self.means[1], levels.mean)]
        self.contrast_low = min(self.contrast_low, levels.contrast)

    def fit(self, views: list[GoodView]) -> None:
        for view in views:
            maps = self.maps_of(view, view.reconstruction)
            self.histogram.add(maps if self.spec.ignore is None else maps[~self.spec.ignore])
        self.parts_fit += 1

    def hold_out(self, views: list[GoodView]) -> None:
        if self.map_threshold is None:
            self.map_threshold = self.histogram.quantile(self.targets.map_quantile)
        worst = 0.0
        for view in views:
            exact = self.score(view, view.reconstruction)
            worst = max(worst, float(exact.max()))
            if view.cheap is not None:
                difference = float(np.abs(self.score(view, view.cheap) - exact).max())
                self.band = max(self.band or 0.0, difference)
        self.scores.append(worst)

    def score(self, view: GoodView, reconstruction: NDArray[np.float32]) -> NDArray[np.float64]:
        maps = self.maps_of(view, reconstruction)
        return view_score(maps, self.spec.score, self.map_threshold, self.spec.ignore).tile_scores

    def result(self, name: str, false_reject_rate: float) -> StationCalibration:
        if self.map_threshold is None:
            raise CalibrationError(f"station {name}: no held-out good part shows it, at least {MIN_HELD_OUT} must")
        try:
            threshold = fit_threshold(self.scores, false_reject_rate, self.targets.confidence)
        except CalibrationError as error:
            raise CalibrationError(f"station {name}: {error}") from error
        quantiles = np.quantile(self.scores, [0, 0.5, 0.9, 0.99, 1])
        return StationCalibration(
            provenance=self.spec.provenance,
            map_threshold=self.map_threshold,
            map_quantile=self.targets.map_quantile,
            score_threshold=threshold.value,
            parts_fit=self.parts_fit,
            parts_held_out=threshold.parts,
            rejected_held_out=threshold.rejected,
            target_false_reject_rate=false_reject_rate,
            confidence=threshold.confidence,
            false_reject_upper_bound=threshold.upper_bound,
            extrapolated=threshold.extrapolated,
            score_quantiles=dict(zip(("min", "50", "90", "99", "max"), quantiles.tolist(), strict=True)),
            cascade_band=self.band,
            levels=LevelsSeen(mean_low=self.means[0], mean_high=self.means[1], contrast_low=self.contrast_low),
            statement=threshold.statement,
        )


def fit_calibration(
    parts: Iterable[Iterable[GoodView]],
    count: int,
    stations: Mapping[str, StationSpec],
    *,
    source: str,
    targets: Targets | None = None,
) -> Calibration:
    """Compute the calibration of a line from `count` good parts, each the views that the stations had of it.

    The first `fit_share` of the parts give the map's threshold (a quantile of all their judged pixels), the rest one
    score each: the largest over tiles and views, per station. `cascade_band` is the largest difference between a tile's
    score by the cheap plan and by the exact one on these parts. Raises CalibrationError when the parts are too few.
    """
    targets = targets or Targets()
    fitting = max(1, round(count * targets.fit_share))
    if count - fitting < MIN_HELD_OUT:
        raise CalibrationError(
            f"{count} good parts, of which {max(0, count - fitting)} would be held out: at least {MIN_HELD_OUT} must"
            f" be, so give at least {2 * MIN_HELD_OUT} parts; a few hundred are better"
        )
    states = {name: _Station(spec, targets) for name, spec in stations.items()}
    for index, part in enumerate(parts):
        by_station: dict[str, list[GoodView]] = {}
        for view in part:
            if view.station not in states:
                raise CalibrationError(f"a good part has a view of station {view.station!r}, which is not calibrated")
            by_station.setdefault(view.station, []).append(view)
        for name, views in by_station.items():
            for view in views:
                states[name].see(view)
            if index < fitting:
                states[name].fit(views)
            else:
                states[name].hold_out(views)
    rate = targets.false_reject_rate / max(1, len(stations))
    return Calibration(
        maskline_version=__version__,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source=source,
        stations={name: state.result(name, rate) for name, state in states.items()},
    )
