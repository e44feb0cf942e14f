"""Scores that can be counted by hand, boxes in frame pixels, and no score without a number."""

from __future__ import annotations

import numpy as np
import pytest

from edge import scores
from edge.anomaly import NotFiniteError
from edge.tiling import Box, plan_prepare
from engines.bundle import Score


def spots() -> np.ndarray:
    picture = np.zeros((20, 20), np.float32)
    picture[2:5, 3:7] = 0.5  # 12 px
    picture[10, 10] = picture[11, 11] = 0.9  # joined over the corner: 2 px
    return picture


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Score(kind="max"), 0.9),
        (Score(kind="mean"), (12 * 0.5 + 1.8) / 400),
        (Score(kind="topk", k=4), (1.8 + 1.0) / 4),
        (Score(kind="topk", k=1000), (12 * 0.5 + 1.8) / 400),
        (Score(kind="area"), 12),
    ],
)
def test_scores_by_hand(spec: Score, expected: float) -> None:
    assert scores.score(spots(), spec, 0.4) == pytest.approx(expected, rel=1e-6)


def test_area_above_the_threshold_only() -> None:
    assert scores.score(spots(), Score(kind="area"), 0.5) == 2
    assert scores.score(spots(), Score(kind="area"), 0.9) == 0
    with pytest.raises(ValueError, match="needs the map's threshold"):
        scores.score(spots(), Score(kind="area"))


def test_boxes_largest_first_and_bounded() -> None:
    assert scores.boxes(spots(), 0.4) == [Box(3, 2, 4, 3), Box(10, 10, 2, 2)]
    assert scores.boxes(spots(), 0.4, min_area_px=3) == [Box(3, 2, 4, 3)]
    assert scores.boxes(spots(), 0.95) == []
    dots = np.zeros((40, 40), np.float32)
    dots[::2, ::2] = 1
    assert len(scores.boxes(dots, 0.5)) == scores.MAX_BOXES


def test_view_score_is_the_worst_tile() -> None:
    maps = np.zeros((3, 20, 20), np.float32)
    maps[1] = spots()
    view = scores.view_score(maps, Score(kind="topk", k=4), 0.4)
    assert (view.tile, view.score) == (1, pytest.approx(0.7))
    assert view.tile_scores.tolist() == [0, view.score, 0]


def test_an_area_across_tiles_is_one_box_in_frame_pixels() -> None:
    plan = plan_prepare((100, 180, 1), tile=20, overlap=4, region=Box(20, 10, 160, 80), scale=0.5)
    full = np.zeros((plan.tiling.height, plan.tiling.width), np.float32)
    full[8:12, 14:40] = 1
    maps = np.stack([full[box.rows, box.columns] for box in plan.tiling.boxes])
    assert scores.view_boxes(maps, 0.5, plan) == [Box(20 + 28, 10 + 16, 52, 8)]
    assert scores.view_boxes(maps, 1.0, plan) == []


def test_a_map_that_is_no_number_never_becomes_a_score() -> None:
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 2, 2] = np.nan
    with pytest.raises(NotFiniteError, match="tile 1"):
        scores.view_score(maps, Score(kind="max"))


def test_the_mean_is_over_judged_pixels() -> None:
    ignore = np.zeros((20, 20), bool)
    ignore[:, 10:] = True
    assert scores.score(spots() * ~ignore, Score(kind="mean"), ignore=ignore) == pytest.approx(6 / 200)
    assert scores.score(spots() * 0, Score(kind="mean"), ignore=np.ones((20, 20), bool)) == 0
