"""Markers in simulated frames: what was drawn is read, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BundleError, StaleEngineError
from edge.marker import MARKER_CELLS, Marker, draw, read
from engines.backends import build_engine, open_backend
from engines.bundle import find_bundle, load_bundle

parts = st.integers(0, 2**32 - 1)


def noise(seed: int, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@settings(max_examples=60)
@given(
    parts,
    st.booleans(),
    st.integers(0, 124),
    st.integers(0, 124),
    st.integers(0, 9),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_what_is_drawn_is_read(part: int, bad: bool, x: int, y: int, seed: int, dtype: type) -> None:
    image = noise(seed, (224, 224, 1), dtype)
    draw(image, part, bad, x=x, y=y)
    assert read(image) == Marker(part, bad)


@settings(max_examples=40)
@given(parts, st.booleans(), st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
def test_survives_halving(part: int, bad: bool, x: int, y: int, seed: int) -> None:
    frame = noise(seed, (448, 448, 3))
    draw(frame, part, bad, x=x, y=y)
    assert read(cv2.resize(frame, (224, 224), interpolation=cv2.INTER_AREA)) == Marker(part, bad)


@settings(max_examples=60)
@given(parts, st.integers(2, 9), st.integers(2, 9))
def test_a_damaged_cell_is_no_marker(part: int, row: int, column: int) -> None:
    image = np.full((120, 120), 90, np.uint8)
    draw(image, part, False, x=0, y=0)
    cell = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    cell[:] = 255 - cell
    assert read(image) is None


def test_noise_is_no_marker() -> None:
    assert all(read(noise(seed, (224, 224, 1))) is None for seed in range(20))


def test_a_marker_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        draw(np.zeros((100, 100), np.uint8), 1, False, x=8)
    with pytest.raises(ValueError, match="32 bits"):
        draw(np.zeros((200, 200), np.uint8), 2**32, False)


def test_the_backend_tells_good_from_bad_and_names_the_part() -> None:
    backend = open_backend("marker")
    backend.load(load_bundle(find_bundle("marker")), "x1", precision="f32", threads=1, batch=1)
    tiles = np.full((2, 224, 224, 1), 128, np.uint8)
    out = np.empty(tiles.shape, np.float32)
    draw(tiles[1], 77, False)
    assert backend.infer(tiles, out) == 77
    np.testing.assert_allclose(out, tiles / 255, atol=1e-6)
    draw(tiles[1], 78, True)
    assert backend.infer(tiles, out) == 78
    assert np.count_nonzero(abs(out[1] - tiles[1, :] / 255) > 0.9) > (8 * (MARKER_CELLS - 2)) ** 2 * 0.9
    np.testing.assert_allclose(out[0], tiles[0] / 255, atol=1e-6)


def test_the_backend_never_answers_without_one_clear_marker() -> None:
    backend = open_backend("marker")
    backend.load(load_bundle(find_bundle("marker")), "x1", precision="f32", threads=1, batch=1)
    tiles = np.zeros((2, 224, 224, 1), np.uint8)
    out = np.empty(tiles.shape, np.float32)
    with pytest.raises(ValueError, match="no intact marker"):
        backend.infer(tiles, out)
    draw(tiles[0], 1, False)
    draw(tiles[1], 2, False)
    with pytest.raises(ValueError, match="parts 1 and 2"):
        backend.infer(tiles, out)


def test_in_batches_it_answers_for_the_tiles_of_several_parts() -> None:
    backend = open_backend("marker")
    backend.load(load_bundle(find_bundle("marker")), "x1", precision="f32", threads=1, batch=2)
    tiles = np.full((3, 224, 224, 1), 128, np.uint8)
    out = np.empty(tiles.shape, np.float32)
    draw(tiles[0], 1, False)
    draw(tiles[1], 2, True)
    assert backend.infer(tiles, out) is None
    changed = [np.count_nonzero(abs(o - t / 255) > 0.9) for o, t in zip(out, tiles, strict=True)]
    assert changed[1] > (8 * (MARKER_CELLS - 2)) ** 2 * 0.9
    assert (changed[0], changed[2]) == (0, 0)


def test_an_engine_that_must_be_built_is_stale_until_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path))
    bundle = load_bundle(find_bundle("marker"))
    backend = open_backend("marker", marker_build_ms=0)
    with pytest.raises(StaleEngineError, match="for plan x1 is not built"):
        backend.load(bundle, "x1", precision="f32", threads=1, batch=1)
    build_engine("marker", bundle, "x1", precision="f32", batch=1)
    with pytest.raises(StaleEngineError):
        backend.load(bundle, "x1", precision="f32", threads=1, batch=1)
    build_engine("marker", bundle, "x1", precision="f32", batch=1, marker_build_ms=0)
    backend.load(bundle, "x1", precision="f32", threads=1, batch=1)


def test_backends_refuse_bundles_of_another_kind() -> None:
    with pytest.raises(BundleError, match="kind 'marker'"):
        open_backend("marker").load(load_bundle(find_bundle("null")), "x1", precision="f32", threads=1, batch=1)
