"""Calibrating on good parts: split in time, per station, and usable by the judge as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from test_calibration import provenance

from calib.calibration import Calibration
from calib.fitting import GoodView, StationSpec, Targets, fit_calibration
from calib.thresholds import near_threshold
from edge.anomaly import error_map, view_score
from edge.errors import CalibrationError
from engines.bundle import ErrorMap, Score

SPEC = StationSpec(ErrorMap(opening_px=2), Score(kind="topk", k=20), provenance())
TILES = (2, 32, 32, 1)


def good_view(part: int, station: str = "web", noise: float = 0.02, cheap: bool = False) -> GoodView:
    rng = np.random.default_rng([part, len(station)])
    tiles = rng.integers(60, 180, TILES, np.uint8)
    exact, rough = (tiles / 255 + rng.normal(0, s, TILES) for s in (noise, 1.5 * noise))
    return GoodView(station, tiles, exact.astype(np.float32), rough.astype(np.float32) if cheap else None)


def calibrate(count: int, spec: StationSpec = SPEC, targets: Targets | None = None, cheap: bool = False) -> Calibration:
    parts = ([good_view(i, cheap=cheap)] for i in range(count))
    return fit_calibration(parts, count, {"web": spec}, source="simulated", targets=targets)


@pytest.mark.parametrize("kind", ["mean", "max", "topk", "area"])
def test_thresholds_are_those_of_the_judge(kind: str) -> None:
    spec = replace(SPEC, score=Score(kind=kind, k=20))
    found = calibrate(40, spec).stations["web"]
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
    first, second = calibrate(12), calibrate(12)
    assert first.stations == second.stations


def test_memory_holds_one_part_at_a_time() -> None:
    tiles, reconstruction = good_view(0).tiles.copy(), good_view(0).reconstruction.copy()

    def reused() -> Iterator[list[GoodView]]:
        for i in range(12):
            view = good_view(i)
            tiles[...], reconstruction[...] = view.tiles, view.reconstruction
            yield [GoodView("web", tiles, reconstruction)]

    found = fit_calibration(reused(), 12, {"web": SPEC}, source="simulated")
    assert found.stations == calibrate(12).stations


def test_stations_share_the_target_and_a_part_scores_by_its_worst_view() -> None:
    parts = [[good_view(i, "a"), good_view(i, "a", noise=0.04), good_view(i, "bb")] for i in range(14)]
    found = fit_calibration(
        parts, 14, {"a": SPEC, "bb": SPEC}, source="simulated", targets=Targets(false_reject_rate=0.02)
    )
    assert {s.target_false_reject_rate for s in found.stations.values()} == {0.01}
    assert found.stations["a"].score_threshold > 1.2 * found.stations["bb"].score_threshold
    assert found.stations["a"].parts_held_out == 7


def test_ignored_pixels_count_for_nothing() -> None:
    ignore = np.zeros(TILES[:3], bool)
    ignore[:, :, :16] = True

    def spoiled(part: int) -> list[GoodView]:
        view = good_view(part)
        view.reconstruction[:, :, :5] = 0
        return [view]

    found = fit_calibration(map(spoiled, range(12)), 12, {"web": replace(SPEC, ignore=ignore)}, source="simulated")
    assert found.stations["web"].score_threshold < 2 * calibrate(12).stations["web"].score_threshold


def test_cascade_band_encloses_every_difference_seen() -> None:
    found = calibrate(20, cheap=True).stations["web"]
    assert found.cascade_band is not None
    assert calibrate(20).stations["web"].cascade_band is None
    for part in range(10, 20):
        view = good_view(part, cheap=True)
        exact, cheap = (
            view_score(error_map(view.tiles, r, SPEC.error_map), SPEC.score).tile_scores
            for r in (view.reconstruction, view.cheap)
        )
        assert near_threshold(cheap, exact[0], found.cascade_band)[0]


def test_levels_are_those_of_the_good_parts() -> None:
    levels = calibrate(12).stations["web"].levels
    means = [good_view(i).tiles.mean() / 255 for i in range(12)]
    assert (levels.mean_low, levels.mean_high) == pytest.approx((min(means), max(means)))


def test_too_few_and_unknown() -> None:
    with pytest.raises(CalibrationError, match=r"8 good parts.*at least 10"):
        calibrate(8)
    with pytest.raises(CalibrationError, match="'web'"):
        fit_calibration([[good_view(0)]], 12, {"other": SPEC}, source="")
    with pytest.raises(CalibrationError, match="station web: 1 held-out"):
        fit_calibration([[good_view(i)] for i in range(7)], 12, {"web": SPEC}, source="")
    with pytest.raises(CalibrationError, match="station late: no held-out"):
        fit_calibration([[good_view(i)] for i in range(12)], 12, {"web": SPEC, "late": SPEC}, source="")
