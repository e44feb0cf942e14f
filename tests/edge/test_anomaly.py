"""Maps and scores: SSIM against scikit-image, openings that stay in place, scores that can be counted by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from edge import anomaly as an
from edge.tiling import Box, plan_prepare


@dataclass(frozen=True)
class MapSpec:
    ssim_window: int = 11
    ssim_weight: float = 0.7
    l1_weight: float = 0.3
    opening_px: int = 0


@dataclass(frozen=True)
class Score:
    kind: str = "max"
    k: int = 10


def pictures(kind: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """A uint8 tile and a float32 reconstruction, [64, 72, channels]."""
    rng = np.random.default_rng(5)
    shape = (64, 72, channels)
    if kind == "noise":
        tile = rng.integers(0, 256, shape, np.uint8)
    elif kind == "flat bright":
        tile = rng.integers(252, 256, shape, np.uint8)
    elif kind == "flat dark":
        tile = rng.integers(0, 3, shape, np.uint8)
    elif kind == "constant":
        tile = np.full(shape, 250, np.uint8)
    else:
        tile = np.full(shape, 0, np.uint8)
        tile[:, 30:] = 252
        if kind == "black with a bright border":
            tile[:, 6:] = 0
            tile[:, :6] = 252
        tile += rng.integers(0, 3, shape, np.uint8)
    noise = rng.normal(0, 0.01 if "flat" in kind else 0.1, shape)
    return tile, np.clip(tile / 255 + noise, 0, 1).astype(np.float32)


def oracle_ssim(tile: np.ndarray, reconstruction: np.ndarray, window: int) -> np.ndarray:
    a, b = tile / 255.0, reconstruction.astype(np.float64)
    full = structural_similarity(a, b, win_size=window, data_range=1.0, channel_axis=2, full=True)[1]
    return np.asarray(full.mean(axis=2))


KINDS = ["noise", "flat bright", "flat dark", "constant", "half black half white", "black with a bright border"]


@pytest.mark.parametrize("window", [7, 9, 11])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_ssim_equals_scikit_image_to_the_border(kind: str, channels: int, window: int) -> None:
    tile, reconstruction = pictures(kind, channels)
    expected = oracle_ssim(tile, reconstruction, window)
    found = an.ssim_map((tile / 255).astype(np.float32), reconstruction, window)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    spec = MapSpec(ssim_window=window, ssim_weight=2.0, l1_weight=0.0)
    found = 1 - an.error_map(tile[None], reconstruction[None], spec)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_error_map_is_the_weighted_sum() -> None:
    tile, reconstruction = pictures("noise", 3)
    found = an.error_map(tile[None], reconstruction[None], MapSpec())[0]
    l1 = np.abs(tile / 255 - reconstruction).mean(axis=2)
    np.testing.assert_allclose(found, 0.35 * (1 - oracle_ssim(tile, reconstruction, 11)) + 0.3 * l1, atol=1e-4)
    same = an.error_map(tile[None], (tile[None] / 255).astype(np.float32), MapSpec())
    np.testing.assert_allclose(same, 0, atol=1e-4)


def test_maps_are_bit_equal_whatever_came_before_and_beside_them() -> None:
    tile, reconstruction = pictures("noise", 3)
    other, worse = pictures("half black half white", 3)
    mapper = an.ErrorMapper(MapSpec(opening_px=2), tile.shape)
    first = mapper.fill(tile[None], reconstruction[None], np.empty((1, 64, 72), np.float32)).copy()
    both = mapper.fill(
        np.stack([other, tile]), np.stack([worse, reconstruction]), np.full((2, 64, 72), np.nan, np.float32)
    )
    assert np.array_equal(both[1], first[0])


def test_ssim_window_must_fit() -> None:
    with pytest.raises(ValueError, match="window is 8"):
        an.ErrorMapper(MapSpec(ssim_window=8), (64, 64, 1))
    with pytest.raises(ValueError, match="from 3 to 9"):
        an.ErrorMapper(MapSpec(), (9, 64, 1))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_opening_does_not_shift_the_map(size: int) -> None:
    picture = np.zeros((40, 40), np.float32)
    picture[10:17, 20:26] = 1
    picture[30, 5:15] = 1  # thinner than the square: goes
    expected = np.zeros_like(picture)
    expected[10:17, 20:26] = 1
    assert np.array_equal(an.opening(picture, size), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(0, 10_000))
def test_opening_is_symmetric_idempotent_and_below_its_source(size: int, seed: int) -> None:
    picture = np.random.default_rng(seed).random((17, 23), np.float32)
    opened = an.opening(picture, size)
    assert (opened <= picture).all()
    assert np.array_equal(an.opening(opened, size), opened)
    assert np.array_equal(an.opening(picture[:, ::-1].copy(), size), opened[:, ::-1])
    assert np.array_equal(an.opening(picture[::-1].copy(), size), opened[::-1])


def test_opening_by_nothing_copies() -> None:
    picture = np.random.default_rng(0).random((5, 6), np.float32)
    assert np.array_equal(an.opening(picture, 0), picture)


def test_ignored_pixels_are_zero_and_feed_no_neighbour() -> None:
    tile, reconstruction = pictures("noise", 1)
    ignore = np.zeros((1, 64, 72), bool)
    ignore[0, 20:40, 10:30] = True
    mapper = an.ErrorMapper(MapSpec(opening_px=3), tile.shape)
    out = np.empty((1, 64, 72), np.float32)
    mapper.fill(tile[None], reconstruction[None], out, ignore)
    assert not out[ignore].any()
    assert out[~ignore].any()
    assert an.score(out[0], Score("mean"), ignore=ignore[0]) == pytest.approx(out.sum() / (~ignore).sum(), rel=1e-5)
    assert an.score(out[0], Score("mean"), ignore=np.ones((64, 72), bool)) == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_reconstruction_that_is_no_number_never_becomes_a_score(poison: float) -> None:
    tile, reconstruction = pictures("noise", 1)
    reconstruction[3, 4, 0] = poison
    with pytest.raises(an.NotFiniteError, match="tile 1"):
        an.error_map(np.stack([tile] * 2), np.stack([tile / np.float32(255), reconstruction]), MapSpec(opening_px=2))
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 2, 2] = np.nan
    with pytest.raises(an.NotFiniteError, match="tile 1"):
        an.view_score(maps, Score("max"))


def spots() -> np.ndarray:
    picture = np.zeros((20, 20), np.float32)
    picture[2:5, 3:7] = 0.5  # 12 px
    picture[10, 10] = picture[11, 11] = 0.9  # joined over the corner: 2 px
    return picture


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Score("max"), 0.9),
        (Score("mean"), (12 * 0.5 + 1.8) / 400),
        (Score("topk", 4), (1.8 + 1.0) / 4),
        (Score("topk", 1000), (12 * 0.5 + 1.8) / 400),
        (Score("area"), 12),
    ],
)
def test_scores_by_hand(spec: Any, expected: float) -> None:
    assert an.score(spots(), spec, 0.4) == pytest.approx(expected, rel=1e-6)


def test_area_above_the_threshold_only() -> None:
    assert an.score(spots(), Score("area"), 0.5) == 2
    assert an.score(spots(), Score("area"), 0.9) == 0
    with pytest.raises(ValueError, match="needs the map's threshold"):
        an.score(spots(), Score("area"))
    with pytest.raises(ValueError, match="'median'"):
        an.score(spots(), Score("median"))


def test_boxes_largest_first_and_bounded() -> None:
    assert an.boxes(spots(), 0.4) == [Box(3, 2, 4, 3), Box(10, 10, 2, 2)]
    assert an.boxes(spots(), 0.4, min_area_px=3) == [Box(3, 2, 4, 3)]
    assert an.boxes(spots(), 0.95) == []
    dots = np.zeros((40, 40), np.float32)
    dots[::2, ::2] = 1
    assert len(an.boxes(dots, 0.5)) == an.MAX_BOXES


def test_view_score_is_the_worst_tile() -> None:
    maps = np.zeros((3, 20, 20), np.float32)
    maps[1] = spots()
    view = an.view_score(maps, Score("topk", 4), 0.4)
    assert (view.tile, view.score) == (1, pytest.approx(0.7))
    assert view.tile_scores.tolist() == [0, view.score, 0]


def test_an_area_across_tiles_is_one_box_in_frame_pixels() -> None:
    plan = plan_prepare((100, 180, 1), tile=20, overlap=4, region=Box(20, 10, 160, 80), scale=0.5)
    full = np.zeros((plan.tiling.height, plan.tiling.width), np.float32)
    full[8:12, 14:40] = 1
    maps = np.stack([full[box.rows, box.columns] for box in plan.tiling.boxes])
    assert an.view_boxes(maps, 0.5, plan) == [Box(20 + 28, 10 + 16, 52, 8)]
    assert an.view_boxes(maps, 1.0, plan) == []
