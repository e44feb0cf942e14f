"""Calibrating on good parts: split in time, per station, and usable by the judge as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from test_calibration import provenance

from calib.calibration import StationCalibration
from calib.fitting import GoodView, StationSpec, Targets, assemble, fit_station
from calib.thresholds import near_threshold
from edge.anomaly import error_map
from edge.errors import CalibrationError
from edge.scores import view_score
from engines.bundle import Score, SsimL1Map

SPEC = StationSpec(SsimL1Map(opening_px=2), Score(kind="topk", k=20), provenance())
TILES = (2, 32, 32, 1)


def good_view(part: int, noise: float = 0.02, cheap: bool = False) -> GoodView:
    rng = np.random.default_rng(part)
    tiles = rng.integers(60, 180, TILES, np.uint8)
    exact, rough = (tiles / 255 + rng.normal(0, s, TILES) for s in (noise, 1.5 * noise))
    return GoodView(tiles, exact.astype(np.float32), rough.astype(np.float32) if cheap else None)


def fit(
    count: int, spec: StationSpec = SPEC, targets: Targets | None = None, cheap: bool = False
) -> StationCalibration:
    return fit_station((good_view(i, cheap=cheap) for i in range(count)), count, spec, targets)


@pytest.mark.parametrize("kind", ["mean", "max", "topk", "area"])
def test_thresholds_are_those_of_the_judge(kind: str) -> None:
    spec = replace(SPEC, score=Score(kind=kind, k=20))
    found = fit(40, spec)
    assert (found.parts_fit, found.parts_held_out, found.rejected_held_out) == (20, 20, 0)
    maps = [error_map(v.tiles, v.reconstruction, spec.error_map) for v in map(good_view, range(40))]
    share_above = np.mean([(m > found.map_threshold).mean() for m in maps[:20]])
    assert share_above == pytest.approx(0.0005, abs=1e-4)
    scores = [view_score(m, spec.score, found.map_threshold).score for m in maps[20:]]
    assert found.score_quantiles["max"] == max(scores)
    assert found.score_threshold >= max(scores)
    assert "20 held-out" in found.statement
    bad = good_view(99, noise=0.2)
    bad_map = error_map(bad.tiles, bad.reconstruction, spec.error_map)
    assert view_score(bad_map, spec.score, found.map_threshold).score > found.score_threshold


def test_equal_parts_give_equal_calibrations() -> None:
    assert fit(12) == fit(12)
    assert assemble({"web": fit(12)}, "simulated").stations == {"web": fit(12)}


def test_arrays_may_be_reused() -> None:
    tiles, reconstruction = good_view(0).tiles.copy(), good_view(0).reconstruction.copy()

    def reused() -> Iterator[GoodView]:
        for i in range(12):
            view = good_view(i)
            tiles[...], reconstruction[...] = view.tiles, view.reconstruction
            yield GoodView(tiles, reconstruction)

    assert fit_station(reused(), 12, SPEC) == fit(12)


def test_stations_that_see_the_same_part_share_the_rate() -> None:
    alone, shared = fit(40), fit(40, replace(SPEC, views_per_part=4))
    assert shared.target_false_reject_rate == alone.target_false_reject_rate / 4
    assert shared.score_threshold > alone.score_threshold


def test_ignored_pixels_count_for_nothing() -> None:
    ignore = np.zeros(TILES[:3], bool)
    ignore[:, :, :16] = True

    def spoiled(part: int) -> GoodView:
        view = good_view(part)
        view.reconstruction[:, :, :5] = 0
        return replace(view, ignore=ignore)

    found = fit_station(map(spoiled, range(12)), 12, SPEC)
    assert found.score_threshold < 2 * fit(12).score_threshold


def test_cascade_band_encloses_every_difference_seen() -> None:
    found = fit(20, cheap=True)
    assert found.cascade_band is not None
    assert found.cascade_band[0] <= 0 <= found.cascade_band[1]
    assert found.cascade_band[0] < found.cascade_band[1]
    assert fit(20).cascade_band is None
    for part in range(10, 20):
        view = good_view(part, cheap=True)
        assert view.cheap is not None
        exact, cheap = (
            view_score(error_map(view.tiles, r, SPEC.error_map), SPEC.score).tile_scores
            for r in (view.reconstruction, view.cheap)
        )
        for threshold in (exact[0], np.nextafter(exact[0], 0), cheap[0], np.nextafter(cheap[0], 0)):
            same = (cheap[0] > threshold) == (exact[0] > threshold)
            assert same or near_threshold(cheap, threshold, found.cascade_band)[0]


def test_levels_are_those_of_the_good_parts() -> None:
    levels = fit(12).levels
    means = [good_view(i).tiles.mean() / 255 for i in range(12)]
    assert (levels.mean_low, levels.mean_high) == pytest.approx((min(means), max(means)))


def test_too_few() -> None:
    with pytest.raises(CalibrationError, match=r"8 good parts.*at least 10"):
        fit(8)
    with pytest.raises(CalibrationError, match="1 held-out"):
        fit_station(map(good_view, range(7)), 12, SPEC)
