"""Scores that can be counted by hand, boxes in frame pixels, and no score without a number."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import scores
from edge.anomaly import NotFiniteError
from edge.place.geometry import MAX_BOXES
from edge.tiling import Box, Tiling, cut, grid, plan_prepare
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
    assert len(scores.boxes(dots, 0.5)) == MAX_BOXES


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


def tiled(picture: np.ndarray, tile: int, overlap: int = 0) -> tuple[np.ndarray, Tiling]:
    """A map [H, W] as the maps [N, tile, tile] of its tiles, and how they lie."""
    tiling = grid(*picture.shape, tile, overlap)
    return cut(picture[..., None], tiling, np.empty((tiling.count, tile, tile, 1), np.float32))[..., 0], tiling


AREA = Score(kind="area")


def test_an_area_across_tiles_counts_whole_where_they_are_joined() -> None:
    picture = np.zeros((80, 80), np.float32)
    picture[30:55, 30:55] = 1  # 10 px of the 25 in the upper and left tiles, 15 in the others
    picture[2:5, 60:64] = 1
    maps, tiling = tiled(picture, 40)
    alone, joined = (scores.view_score(maps, AREA, 0.5, None, how) for how in (None, tiling))
    assert alone.tile_scores.tolist() == [100, 150, 150, 225]
    assert joined.tile_scores.tolist() == [625, 625, 625, 625]
    assert (alone.score, joined.score) == (225, 625)
    picture[30:55, 30:40] = 0
    maps, tiling = tiled(picture, 40)
    assert scores.view_score(maps, AREA, 0.5, None, tiling).tile_scores.tolist() == [0, 375, 0, 375]
    assert scores.view_score(maps, AREA, 1.0, None, tiling).tile_scores.tolist() == [0, 0, 0, 0]


@given(
    st.integers(0, 2**32 - 1), st.integers(12, 40), st.integers(12, 40), st.integers(0, 8), st.sampled_from([0.2, 0.5])
)
def test_joined_areas_are_those_of_the_boxes(seed: int, height: int, width: int, overlap: int, share: float) -> None:
    picture = (np.random.default_rng(seed).random((height, width)) < share).astype(np.float32)
    maps, tiling = tiled(picture, 12, overlap)
    found = scores.view_score(maps, AREA, 0.5, None, tiling)
    plan = plan_prepare((height, width, 1), tile=12, overlap=overlap)
    shown = scores.view_defects(maps, 0.5, plan, 1)
    assert found.score == max((area for _, area in shown), default=0)
    for tile, box in zip(found.tile_scores, tiling.boxes, strict=True):
        labels = cv2.connectedComponents(picture.astype(np.uint8), connectivity=8)[1]
        there = set(labels[box.rows, box.columns].flat) - {0}
        assert tile == max((np.count_nonzero(labels == label) for label in there), default=0)
    assert found.score >= scores.view_score(maps, AREA, 0.5).score


@pytest.mark.parametrize("kind", ["max", "mean", "topk"])
def test_what_is_no_area_is_not_joined(kind: str) -> None:
    maps, tiling = tiled(np.random.default_rng(1).random((30, 30), np.float32), 16, 2)
    alone, joined = (scores.view_score(maps, Score(kind=kind, k=9), 0.5, None, how) for how in (None, tiling))
    assert joined.tile_scores.tolist() == alone.tile_scores.tolist()


@pytest.mark.parametrize("kind", ["max", "mean", "topk", "area"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_map_that_is_no_number_never_becomes_a_score(kind: str, joined: bool) -> None:
    maps, tiling = tiled(np.zeros((8, 16), np.float32), 8)
    maps[1, 2, 2] = np.nan
    with pytest.raises(NotFiniteError, match="tile 1" if kind != "area" else "NaN"):
        scores.view_score(maps, Score(kind=kind), 0.5, None, tiling if joined else None)


def test_the_mean_is_over_judged_pixels() -> None:
    ignore = np.zeros((20, 20), bool)
    ignore[:, 10:] = True
    assert scores.score(spots() * ~ignore, Score(kind="mean"), ignore=ignore) == pytest.approx(6 / 200)
    assert scores.score(spots() * 0, Score(kind="mean"), ignore=np.ones((20, 20), bool)) == 0


def test_the_worst_blocks_are_those_that_the_largest_areas_reach_into() -> None:
    tile_map = np.zeros((20, 24), np.float32)
    tile_map[3:6, 6:18] = 0.5  # one area over blocks 0, 1 and 2 of the upper row, most of it in 1
    tile_map[17:19, 1:3] = 0.9  # a brighter one, and smaller, in the lower row of blocks, which are cut off
    area, brightest = Score(kind="area"), Score(kind="max")
    assert scores.worst_blocks(tile_map, area, 0.1, 8, 3).tolist() == [0, 1, 2]
    assert scores.worst_blocks(tile_map, area, 0.1, 8, 1).tolist() == [1]
    assert scores.worst_blocks(tile_map, area, 0.1, 8, 4).tolist() == [0, 1, 2, 6]
    assert scores.worst_blocks(tile_map, area, 0.7, 8, 1).tolist() == [6]
    assert scores.worst_blocks(tile_map, brightest, 0.1, 8, 1).tolist() == [6]
    assert len(scores.worst_blocks(np.zeros((20, 24), np.float32), area, 0.1, 8, 2)) == 2, "as many as were asked for"
