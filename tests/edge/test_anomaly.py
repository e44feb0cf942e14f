"""Anomaly maps: SSIM against scikit-image, openings that stay in place, smoothed differences, maps of the network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from edge import anomaly as an
from engines.bundle import DirectMap, ErrorMap, SmoothedMap, SsimL1Map

WEIGHTED = SsimL1Map(ssim_window=11, ssim_weight=0.7, l1_weight=0.3)


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
    spec = SsimL1Map(ssim_window=window, ssim_weight=2.0, l1_weight=0.0)
    found = 1 - an.error_map(tile[None], reconstruction[None], spec)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_error_map_is_the_weighted_sum() -> None:
    tile, reconstruction = pictures("noise", 3)
    found = an.error_map(tile[None], reconstruction[None], WEIGHTED)[0]
    l1 = np.abs(tile / 255 - reconstruction).mean(axis=2)
    np.testing.assert_allclose(found, 0.35 * (1 - oracle_ssim(tile, reconstruction, 11)) + 0.3 * l1, atol=1e-4)
    same = an.error_map(tile[None], (tile[None] / 255).astype(np.float32), WEIGHTED)
    np.testing.assert_allclose(same, 0, atol=1e-4)


def test_maps_are_bit_equal_whatever_came_before_and_beside_them() -> None:
    tile, reconstruction = pictures("noise", 3)
    other, worse = pictures("half black half white", 3)
    mapper = an.ErrorMapper(SsimL1Map(opening_px=2), tile.shape)
    first = mapper.fill(tile[None], reconstruction[None], np.empty((1, 64, 72), np.float32)).copy()
    both = mapper.fill(
        np.stack([other, tile]), np.stack([worse, reconstruction]), np.full((2, 64, 72), np.nan, np.float32)
    )
    assert np.array_equal(both[1], first[0])


def test_ssim_window_must_fit() -> None:
    with pytest.raises(ValueError, match="window is 8"):
        an.ssim_map(np.zeros((64, 64)), np.zeros((64, 64)), 8)
    with pytest.raises(ValueError, match="from 3 to 9"):
        an.ErrorMapper(WEIGHTED, (9, 64, 1))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_opening_does_not_shift_the_map(size: int) -> None:
    picture = np.zeros((40, 40), np.float32)
    picture[10:17, 20:26] = 1
    picture[30, 5:15] = 1  # thinner than the square: goes
    expected = np.zeros_like(picture)
    expected[10:17, 20:26] = 1
    assert np.array_equal(an.opening(picture, size), expected)


@settings(max_examples=40)
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
    mapper = an.ErrorMapper(SsimL1Map(opening_px=3), tile.shape)
    out = np.empty((1, 64, 72), np.float32)
    mapper.fill(tile[None], reconstruction[None], out, ignore)
    assert not out[ignore].any()
    assert out[~ignore].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["l1", "l2", "signed"])
def test_a_smoothed_map_is_the_gaussian_mean_of_the_difference(norm: str, channels: int) -> None:
    tile, reconstruction = pictures("noise", channels)
    spec = SmoothedMap.model_validate({"norm": norm, "sigma_px": 2.0})
    found = an.error_map(tile[None], reconstruction[None], spec)[0]
    difference = tile / 255 - reconstruction.astype(np.float64)
    before, after = {"l1": (np.abs, np.abs), "l2": (np.square, np.sqrt), "signed": (np.positive, np.abs)}[norm]
    smooth = gaussian_filter(before(difference).mean(axis=2), 2.0, mode="reflect")
    np.testing.assert_allclose(found, after(smooth), atol=1e-5)
    assert found.max() <= spec.largest


def test_a_smoothed_map_keeps_what_is_ignored_out() -> None:
    tile, reconstruction = pictures("constant", 1)
    reconstruction[20:40, 10:30] = 0  # an error that nobody asked about
    ignore = np.zeros((1, 64, 72), bool)
    ignore[0, 20:40, 10:30] = True
    mapper = an.ErrorMapper(SmoothedMap(), tile.shape)
    out = mapper.fill(tile[None], reconstruction[None], np.empty((1, 64, 72), np.float32), ignore)
    beside = mapper.fill(tile[None], np.maximum(reconstruction, 0.5)[None], np.empty_like(out), ignore)
    assert not out[ignore].any()
    assert np.array_equal(out, beside)


def with_map(kind: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """A tile, and what a network answers that draws its own map, some of it below 0: [64, 72, channels + 1]."""
    tile, reconstruction = pictures(kind, channels)
    drawn = np.random.default_rng(6).uniform(-1, 4, (64, 72, 1)).astype(np.float32)
    return tile, np.concatenate([reconstruction, drawn], 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_direct_map_is_the_last_plane_of_the_answer(channels: int) -> None:
    tile, answer = with_map("noise", channels)
    expected = np.maximum(answer[..., channels], 0)
    found = an.error_map(tile[None], answer[None], DirectMap(largest=4))[0]
    np.testing.assert_array_equal(found, expected)
    smooth = an.error_map(tile[None], answer[None], DirectMap(largest=4, sigma_px=2))[0]
    np.testing.assert_allclose(smooth, gaussian_filter(expected.astype(np.float64), 2.0, mode="reflect"), atol=1e-4)


def test_a_direct_map_keeps_what_is_ignored_out() -> None:
    tile, answer = with_map("constant", 1)
    ignore = np.zeros((1, 64, 72), bool)
    ignore[0, 20:40, 10:30] = True
    louder = answer.copy()
    louder[20:40, 10:30, 1] = 100
    mapper, shape = an.ErrorMapper(DirectMap(sigma_px=3), tile.shape), (1, 64, 72)
    out, beside = (mapper.fill(tile[None], x[None], np.empty(shape, np.float32), ignore) for x in (answer, louder))
    assert not out[ignore].any()
    assert np.array_equal(out, beside)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_drawn_map_that_is_no_number_never_becomes_a_score(channels: int, poison: float) -> None:
    tile, answer = with_map("noise", channels)
    answer[3, 4, channels] = poison
    with pytest.raises(an.NotFiniteError, match="tile 0"):
        an.error_map(tile[None], answer[None], DirectMap())


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_reconstruction_that_is_no_number_never_becomes_a_score(poison: float) -> None:
    tile, reconstruction = pictures("noise", 1)
    reconstruction[3, 4, 0] = poison
    with pytest.raises(an.NotFiniteError, match="tile 1"):
        an.error_map(np.stack([tile] * 2), np.stack([tile / np.float32(255), reconstruction]), SsimL1Map(opening_px=2))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("spec", [SsimL1Map(opening_px=2), SmoothedMap(norm="l2")])
def test_a_reconstruction_whose_error_is_no_number_never_becomes_a_score(spec: ErrorMap) -> None:
    """1e20 is finite; the SSIM of it is NaN, which is above no threshold: an area of 0."""
    tile, reconstruction = pictures("noise", 1)
    reconstruction[2:9, 2:9] = 1e20
    with pytest.raises(an.NotFiniteError, match="error of tile 1"):
        an.error_map(np.stack([tile] * 2), np.stack([tile / np.float32(255), reconstruction]), spec)
