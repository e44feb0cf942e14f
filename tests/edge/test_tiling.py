"""Tiling covers every pixel, gives pictures back, and says clearly what does not fit."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import tiling as t
from edge.errors import RecipeError

few = settings(max_examples=60)


@st.composite
def layouts(draw: st.DrawFn) -> t.Tiling:
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    region = t.Box(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    tile = draw(st.integers(1, min(region.width, region.height)))
    overlap = draw(st.integers(0, tile - 1))
    return t.grid(height, width, tile, overlap, region)


def picture(tiling: t.Tiling, channels: int, dtype: Any, seed: int) -> np.ndarray:
    shape = (tiling.height, tiling.width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@few
@given(layouts())
def test_every_pixel_of_the_region_is_covered_and_none_outside(tiling: t.Tiling) -> None:
    hits = np.zeros((tiling.height, tiling.width), int)
    for box in tiling.boxes:
        assert box.width == box.height == tiling.tile
        hits[box.rows, box.columns] += 1
    inside = hits[tiling.region.rows, tiling.region.columns]
    assert inside.min() >= 1
    assert hits.sum() == inside.sum()
    assert np.array_equal(inside, tiling.cover)
    assert len(tiling.boxes) == tiling.count == len(set(tiling.boxes))


@few
@given(layouts())
def test_neighbours_share_at_least_the_overlap_and_no_tile_is_superfluous(tiling: t.Tiling) -> None:
    for starts, length in ((tiling.tops, tiling.region.height), (tiling.lefts, tiling.region.width)):
        shared = [a + tiling.tile - b for a, b in itertools.pairwise(starts)]
        assert all(share == tiling.overlap for share in shared[:-1])
        assert all(share >= tiling.overlap for share in shared)
        reach = (len(starts) - 1) * (tiling.tile - tiling.overlap) + tiling.overlap
        assert len(starts) == 1 or reach < length  # one tile fewer would not reach the end


@few
@given(layouts(), st.sampled_from([1, 3]), st.sampled_from([np.uint8, np.uint16]), st.integers(0, 99))
def test_stitching_the_tiles_gives_the_picture_back(tiling: t.Tiling, channels: int, dtype: Any, seed: int) -> None:
    frame = picture(tiling, channels, dtype, seed)
    tiles = t.cut(frame, tiling, np.empty((tiling.count, tiling.tile, tiling.tile, channels), dtype))
    region = (tiling.region.rows, tiling.region.columns)
    back = np.zeros_like(frame)
    assert t.stitch(tiles, tiling, back) is back
    assert np.array_equal(back[region], frame[region])
    outside = np.ones(frame.shape[:2], bool)
    outside[region] = False
    assert not back[outside].any()
    mean = t.stitch(tiles.astype(np.float32), tiling, np.full(frame.shape, 7, np.float32), "mean")
    np.testing.assert_allclose(mean[region], frame[region], rtol=1e-5)
    assert (mean[outside] == 7).all()


def test_maps_are_averaged_where_they_overlap() -> None:
    tiling = t.grid(4, 6, 4, 2)
    assert tiling.lefts == (0, 2)
    maps = np.stack([np.full((4, 4), 1.0, np.float32), np.full((4, 4), 3.0, np.float32)])
    fused = t.stitch(maps, tiling, np.empty((4, 6), np.float32), "mean")
    assert fused[0].tolist() == [1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="floating"):
        t.stitch(maps, tiling, np.empty((4, 6), np.uint8), "mean")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((100, 300, 224, 0), ["300x100", "224x224", "smaller than a tile"]),
        ((300, 300, 224, 224), ["overlap is 224", "0 to 223"]),
        ((300, 300, 0, 0), ["tile size is 0"]),
        ((300, 300, 10, 0, t.Box(200, 0, 200, 50)), ["200x50", "x=200", "300x300"]),
    ],
)
def test_what_does_not_fit_is_said_with_both_sizes(arguments: Any, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        t.grid(*arguments)
    assert all(word in str(caught.value) for word in words)


def test_window_to_8_bit_is_linear_clipped_and_in_place() -> None:
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    out = np.empty(image.shape, np.uint8)
    assert t.to_8bit(image, 1000, 5000, out) is out
    expected = np.floor(np.clip((image.astype(float) - 1000) / 4000, 0, 1) * 255 + 0.5)
    assert np.array_equal(out, expected)
    with pytest.raises(RecipeError, match="low=9, high=9"):
        t.to_8bit(image, 9, 9, out)


def test_grey_and_colour() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    grey = t.convert_channels(rgb, np.empty((20, 30, 1), np.uint8))
    np.testing.assert_allclose(grey[..., 0], rgb @ np.array([0.299, 0.587, 0.114]), atol=1)
    assert (t.convert_channels(grey, np.empty((20, 30, 3), np.uint8)) == grey).all()
    assert np.array_equal(t.convert_channels(rgb, np.empty_like(rgb)), rgb)


@few
@given(
    st.integers(8, 60),
    st.integers(8, 60),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([0.5, 1.0, 1.7, 0.31]),
    st.integers(0, 2),
)
def test_prepare_equals_its_steps(
    height: int, width: int, channels: int, wanted: int, dtype: Any, scale: float, margin: int
) -> None:
    frame = np.random.default_rng(height).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype)
    region = t.Box(margin, margin, width - 2 * margin, height - 2 * margin)
    size = (round(region.height * scale), round(region.width * scale))
    tile = max(1, min(size) - 2) if min(size) > 2 else 1
    plan = t.plan_prepare(
        frame.shape, dtype, tile=tile, overlap=tile // 3, region=region, scale=scale, channels=wanted, window=(9, 60000)
    )
    tiles = t.prepare(frame, plan, np.empty(plan.tiles_shape, np.uint8))
    image = frame[region.rows, region.columns]
    if channels == 3 and wanted == 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    if size != image.shape[:2]:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, size[::-1], interpolation=how).reshape(*size, -1)
    if dtype == np.uint16:
        image = t.to_8bit(np.ascontiguousarray(image), 9, 60000, np.empty(image.shape, np.uint8))
    if image.shape[2] != wanted:
        image = np.repeat(image, 3, axis=2)
    back = t.stitch(tiles, plan.tiling, np.zeros((*size, wanted), np.uint8))
    assert np.array_equal(back, image)
    assert plan.misfit(frame) is None


def test_prepare_allocates_nothing_that_grows_with_the_frame() -> None:
    frame = np.random.default_rng(1).integers(0, 65536, (1000, 1200, 1), np.uint16)
    plan = t.plan_prepare(frame.shape, np.uint16, tile=224, scale=0.5, window=(0, 65535))
    out = np.empty(plan.tiles_shape, np.uint8)
    t.prepare(frame, plan, out)
    gc.collect()
    tracemalloc.start()
    t.prepare(frame, plan, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < frame.nbytes / 6


def test_a_frame_other_than_declared_is_refused_with_both_shapes() -> None:
    plan = t.plan_prepare((40, 50, 1), tile=16)
    text = plan.misfit(np.zeros((41, 50, 1), np.uint8))
    assert text is not None
    assert "50x41" in text
    assert "50x40" in text
    with pytest.raises(ValueError, match="uint16"):
        t.prepare(np.zeros((40, 50, 1), np.uint16), plan, np.empty(plan.tiles_shape, np.uint8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame_dtype": np.uint16}, "no window"),
        ({"frame_dtype": np.float32}, "float32"),
        ({"scale": 0.0}, "resize factor is 0"),
        ({"scale": 0.2}, "10x8 px"),
        ({"channels": 4}, "expected 1 or 3"),
        ({"ignore": np.ones((40, 50))}, "nothing would be judged"),
        ({"ignore": np.ones((40, 51))}, "51x40"),
        ({"region": t.Box(0, 0, 51, 40)}, "51x40"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"frame_shape": (40, 50, 1), "tile": 16} | changes
    with pytest.raises(RecipeError, match=words):
        t.plan_prepare(**arguments)


def test_ignore_mask_reaches_every_tile_pixel_that_it_touches() -> None:
    ignore = np.zeros((40, 60), np.uint8)
    ignore[5, 7] = 1
    ignore[20:, :] = 255
    plan = t.plan_prepare((40, 60, 1), tile=10, scale=0.5, ignore=ignore)
    assert plan.ignore_tiles is not None
    assert plan.ignore_tiles[0, 2, 3]
    assert plan.ignore_tiles[0].sum() == 1
    assert plan.ignore_tiles[3:].all()
    assert plan.judged_tiles == (0, 1, 2)


@few
@given(st.sampled_from([0.5, 0.37, 1.0, 2.0]), st.integers(0, 20), st.integers(0, 20), st.integers(1, 9))
def test_boxes_go_back_to_frame_pixels(scale: float, x: int, y: int, size: int) -> None:
    region = t.Box(3, 5, 90, 80)
    plan = t.plan_prepare((100, 100, 1), tile=16, overlap=3, region=region, scale=scale)
    (box,) = t.boxes_to_frame([t.Box(x, y, size, size)], plan)
    for start, length, first, scaled, offset, limit in (
        (box.x, box.width, x, plan.scale_x, 3, 93),
        (box.y, box.height, y, plan.scale_y, 5, 85),
    ):
        assert offset <= start
        assert start + length <= limit
        assert (start - offset) * scaled <= first < (start - offset + 1) * scaled
        end = min((start - offset + length) * scaled, limit * scaled)
        assert end >= min(first + size, (limit - offset) * scaled) - 1e-6


def test_levels_tell_a_picture_from_none() -> None:
    black = t.frame_levels(np.zeros((2, 8, 8, 1), np.uint8))
    assert black == (0.0, 0.0)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    levels = t.frame_levels(tiles)
    np.testing.assert_allclose(levels, (tiles.mean() / 255, tiles.std() / 255), rtol=1e-6)
