"""Painted defects: visible, as strong as asked for, and where the mask says."""

from __future__ import annotations

import numpy as np
import pytest

from edge.demo.defects import CONTRASTS, KINDS, MIN_SIZE_PX, SIZES_PX, VISIBLE, paint, paint_any
from edge.demo.web import load_photo


@pytest.fixture(params=["brick", "gravel", "flat"])
def luma(request: pytest.FixtureRequest) -> np.ndarray:
    """A good image, float32 [180, 200]."""
    if request.param == "flat":
        return np.full((180, 200), 0.5, np.float32)
    return load_photo(request.param)[100:280, 260:460]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contrast", [0.10, 0.15])
def test_a_defect_is_as_strong_as_asked_for_and_shows_where_its_mask_says(
    luma: np.ndarray, kind: str, contrast: float
) -> None:
    for seed in range(12):
        size_px = float(np.random.default_rng(seed).uniform(*SIZES_PX[kind]))
        before = luma.copy()
        after, defect = paint(luma, kind, np.random.default_rng(seed), size_px, contrast)
        np.testing.assert_array_equal(luma, before)
        assert (after.dtype, after.shape) == (np.float32, luma.shape)
        assert 0 <= after.min() <= after.max() <= 1
        change = np.abs(after - luma)
        shows = change > VISIBLE
        assert shows.any()
        assert defect.contrast == pytest.approx(change[shows].mean(), abs=1e-5)
        assert contrast <= defect.contrast < 2.5 * contrast
        assert defect.mask[shows].all()
        assert defect.mask.sum() <= 1.5 * shows.sum() + 10
        assert 0.4 * size_px <= defect.size_px <= size_px + 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_defects_show(luma: np.ndarray, kind: str) -> None:
    for seed in range(6):
        _, defect = paint(luma, kind, np.random.default_rng(seed), MIN_SIZE_PX, CONTRASTS[0])
        assert defect.mask.sum() >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_paints_the_same(luma: np.ndarray, kind: str) -> None:
    first, other = (paint(luma, kind, np.random.default_rng(5), 30, 0.2) for _ in range(2))
    np.testing.assert_array_equal(first[0], other[0])
    np.testing.assert_array_equal(first[1].mask, other[1].mask)
    third = paint(luma, kind, np.random.default_rng(6), 30, 0.2)
    assert (third[1].mask != first[1].mask).any()


def test_any_defect_comes_in_every_kind(luma: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    defects = [paint_any(luma, rng)[1] for _ in range(60)]
    assert {d.kind for d in defects} == set(KINDS)
    assert all(d.mask.any() for d in defects)


def test_what_cannot_be_painted_is_refused(luma: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="smudge"):
        paint(luma, "smudge", rng, 20, 0.2)
    for size_px in (MIN_SIZE_PX - 1, 175.0):
        with pytest.raises(ValueError, match="200 x 180 px"):
            paint(luma, "hole", rng, size_px, 0.2)


def test_black_on_black_says_what_it_is() -> None:
    after, defect = paint(np.zeros((60, 60), np.float32), "stain", np.random.default_rng(1), 20, 0.2)
    assert defect.contrast == 0 or after.max() > VISIBLE


def test_any_defect_fits_into_the_smallest_frame() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        assert paint_any(np.full((48, 60), 0.4, np.float32), rng)[1].mask.any()
