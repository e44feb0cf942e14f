"""Corrupted tiles: wrong only where the mask says so, the same for the same seed, of every kind, within bounds."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.corruption import DEFAULT, KINDS, SHAPES, Corruption, corrupt, corrupt_tiles
from engines.textures import canvas

Pixels = npt.NDArray[np.uint8]


texture = cache(canvas)


def tile(height: int = 96, width: int = 96, channels: int = 1, number: int = 0) -> Pixels:
    grey = texture(2, number, 128)[:height, :width, None]
    return np.ascontiguousarray(np.concatenate([grey, 255 - grey, grey // 2], 2)[..., :channels])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(16, 120),
    width=st.integers(16, 120),
    channels=st.sampled_from([1, 3]),
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(SHAPES),
)
def test_outside_the_mask_nothing_changes(
    seed: int, height: int, width: int, channels: int, kind: str, shape: str
) -> None:
    before = tile(height, width, channels)
    kept = before.copy()
    after, mask = corrupt(before, np.random.default_rng(seed), Corruption(kinds=(kind,), shapes=(shape,)))
    np.testing.assert_array_equal(before, kept)
    assert (after.shape, after.dtype) == (before.shape, np.uint8)
    assert (mask.shape, mask.dtype) == ((height, width), np.float32)
    assert 0 <= mask.min() <= mask.max() <= 1
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    assert (mask == 0).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_what_is_inside(kind: str, shape: str) -> None:
    rng, spec = np.random.default_rng(0), Corruption(kinds=(kind,), shapes=(shape,), size_px=(20, 40))
    changed = []
    for k in range(12):
        before = tile(number=k)
        after, mask = corrupt(before, rng, spec)
        assert mask.max() == 1
        changed.append(np.abs(after.astype(float) - before)[mask > 0.5].mean())
    assert np.median(changed) > 2


def test_equal_states_give_equal_pixels() -> None:
    tiles = np.stack([tile(number=k) for k in range(3)])
    first, first_masks = corrupt_tiles(tiles, np.random.default_rng(7))
    again, again_masks = corrupt_tiles(tiles, np.random.default_rng(7))
    other, _ = corrupt_tiles(tiles, np.random.default_rng(8))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_masks, again_masks)
    assert (first != other).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [5.0, 12.0, 40.0])
def test_shapes_are_as_large_as_asked(shape: str, size: float) -> None:
    spec = Corruption(patches=(1, 1), size_px=(size, size), shapes=(shape,))
    extents = []
    for seed in range(30):
        _, mask = corrupt(tile(), np.random.default_rng(seed), spec)
        rows, columns = np.nonzero(mask > 0.5)
        extents.append(max(np.ptp(rows), np.ptp(columns)) + 1 if rows.size else 0)
    assert max(extents) <= size + 4  # a streak is up to 4 px thick
    assert np.median(extents) > 0.45 * size  # ragged, turned, or half over the side


def test_shapes_stay_within_their_share_of_the_tile() -> None:
    spec = Corruption(patches=(1, 1), size_px=(5, 1000), largest_share=0.25, shapes=("ellipse",))
    for seed in range(40):
        _, mask = corrupt(tile(), np.random.default_rng(seed), spec)
        rows, columns = np.nonzero(mask > 0.5)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 0.25 * 96 + 2


def test_brightness_changes_both_ways_and_within_its_range() -> None:
    spec = Corruption(kinds=("brightness",), shapes=("ellipse",), size_px=(12, 40), shift=(0.1, 0.2), patches=(1, 1))
    flat = np.full((96, 96, 1), 128, np.uint8)
    changes = []
    for seed in range(60):
        after, mask = corrupt(flat, np.random.default_rng(seed), spec)
        changes.append((after.astype(float) - flat)[mask == 1].mean())
    sizes = np.abs(changes)
    assert min(changes) < -0.1 * 255 / 2
    assert max(changes) > 0.1 * 255 / 2
    assert sizes.min() >= 0.3 * 0.1 * 255 - 1  # a tint takes at least 0.3 of it
    assert sizes.max() <= 0.2 * 255 + 1


def test_specks_are_as_frequent_as_large_patches() -> None:
    areas = []
    for seed in range(200):
        _, mask = corrupt(tile(128, 128), np.random.default_rng(seed), DEFAULT.model_copy(update={"patches": (1, 1)}))
        areas.append(mask.sum())
    assert np.quantile(areas, 0.3) < 150
    assert np.quantile(areas, 0.9) > 400


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patches": (0, 2)}, r"patches is \(0, 2\), expected 0 < smallest <= largest"),
        ({"size_px": (9.0, 5.0)}, "size_px is"),
        ({"largest_share": 1.5}, r"largest_share\n.* less than or equal to 1"),
        ({"kinds": ("rust",)}, r"kinds\.0\n.* should be 'elastic', 'brightness', 'blur' or 'flat'"),
        ({"shapes": ()}, r"shapes\n.* at least 1 item"),
        ({"patch": (1, 2)}, r"patch\n.*not permitted"),
    ],
)
def test_corruptions_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corruption(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(96, 96), (96, 96, 2), (8, 96, 1)])
def test_tiles_that_cannot_be_corrupted_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a tile to corrupt is uint8"):
        corrupt(np.zeros(shape, np.uint8), np.random.default_rng(0))
    with pytest.raises(ValueError, match="float64"):
        corrupt(np.zeros((96, 96, 1)), np.random.default_rng(0))  # type: ignore[arg-type]
