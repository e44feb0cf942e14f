"""Anomalies laid over good tiles: where they are said to be, and nowhere else."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engines.perlin import foreground, perlin_noise, with_anomalies

Pixels = npt.NDArray[np.uint8]


def product(channels: int = 1, bright: bool = True) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """A disc on a plain table, 96 x 112, with sensor noise; and where the disc is."""
    y, x = np.mgrid[:96, :112]
    inside = np.hypot(y - 50, x - 60) < 30
    levels = np.where(inside == bright, 170, 60) + np.random.default_rng(0).normal(0, 5, inside.shape)
    return np.repeat(levels.astype(np.uint8)[..., None], channels, 2), inside


def weave() -> Pixels:
    y, x = np.mgrid[:96, :112]
    return (128 + 50 * np.sin(x / 2) * np.cos(y / 3)).astype(np.uint8)[..., None]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_change_where_the_mask_says_so_and_nowhere_else(channels: int) -> None:
    tile, rng = np.repeat(weave(), channels, 2), np.random.default_rng(0)
    changed = shares = 0.0
    for _ in range(40):
        strange, where = with_anomalies(tile, rng, share=1.0)
        assert strange.shape == tile.shape
        assert strange.dtype == np.uint8
        differs = (strange != tile).any(2)
        assert not (differs & ~where).any()
        changed += float((differs & where).sum())
        shares += float(where.sum())
    assert 0.02 < shares / 40 / where.size < 0.15
    assert changed > 0.8 * shares, "anomalies that cannot be seen teach nothing"


def test_some_tiles_stay_as_they_are() -> None:
    tile, rng = weave(), np.random.default_rng(1)
    clean = sum(not with_anomalies(tile, rng, share=0.5)[1].any() for _ in range(100))
    assert 35 <= clean <= 65
    strange, where = with_anomalies(tile, rng, share=0.0)
    assert not where.any()
    assert np.array_equal(strange, tile)


def test_equal_states_of_the_generator_give_equal_pixels() -> None:
    first, again, other = (with_anomalies(weave(), np.random.default_rng(seed), share=1.0) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def test_anomalies_are_of_all_sizes_faint_and_plain() -> None:
    tile, rng = weave(), np.random.default_rng(2)
    largest, contrast = [], []
    for _ in range(80):
        strange, where = with_anomalies(tile, rng, share=1.0)
        if where.any():
            areas = cv2.connectedComponentsWithStats(where.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
            largest.append(int(areas.max()))
            contrast.append(float(np.abs(strange.astype(float) - tile)[where].mean()) / 255)
    assert min(largest) < 80
    assert max(largest) > 800
    assert min(contrast) < 0.03
    assert max(contrast) > 0.2


@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_foreground_is_the_product_and_not_its_background(channels: int, bright: bool) -> None:
    tile, inside = product(channels, bright)
    assert (foreground(tile) == inside).mean() > 0.97


@pytest.mark.parametrize("kind", ["weave", "plain", "noise", "slope", "through the rim"])
def test_all_is_foreground_where_there_is_no_background(kind: str) -> None:
    rng = np.random.default_rng(0)
    tiles = {
        "weave": weave(),
        "plain": np.full((96, 112, 1), 77, np.uint8),
        "noise": rng.normal(128, 30, (96, 112, 1)).clip(0, 255).astype(np.uint8),
        "slope": np.tile(np.linspace(0, 255, 112).astype(np.uint8), (96, 1))[..., None],
        "through the rim": np.repeat([[40, 200]], 96, 0).repeat(56, 1).astype(np.uint8)[..., None],
    }
    assert foreground(tiles[kind]).all()


def test_half_of_the_anomalies_keep_to_the_foreground() -> None:
    (tile, inside), rng = product(), np.random.default_rng(3)
    found = [where for where in (with_anomalies(tile, rng, share=1.0)[1] for _ in range(100)) if where.any()]
    near = cv2.dilate(inside.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    kept = sum(not (where & ~near).any() for where in found)
    assert 0.35 * len(found) < kept < 0.8 * len(found)


def test_perlin_noise_is_nothing_on_its_lattice_and_smooth_between() -> None:
    noise = perlin_noise(96, 96, (4, 8), np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert np.abs(noise).max() <= 1
    assert noise.std() > 0.2
    corners = noise[np.ix_([23, 24, 47, 48, 71, 72], [11, 12, 23, 24, 35, 36])]  # half a pixel from the lattice
    assert np.abs(corners).max() < 0.15
    assert np.abs(np.diff(noise, axis=0)).max() < 0.15
    assert np.abs(np.diff(noise, axis=1)).max() < 0.3
