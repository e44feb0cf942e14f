"""Textures are the same for the same seed, and not for another."""

from __future__ import annotations

import numpy as np
import pytest

from engines.pretrain import TextureStream, photographs
from engines.textures import FAMILIES, canvas


def test_equal_seeds_give_equal_pixels() -> None:
    for number in range(4):
        np.testing.assert_array_equal(canvas(3, number, 96), canvas(3, number, 96))
    assert (canvas(3, 0, 96) != canvas(4, 0, 96)).mean() > 0.5
    assert (canvas(3, 0, 96) != canvas(3, 1, 96)).mean() > 0.5


def test_canvases_are_grey_pictures_with_something_in_them() -> None:
    for number in range(20):
        image = canvas(0, number, 96)
        assert image.dtype == np.uint8
        assert image.shape == (96, 96)
        assert image.std() > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("error")
def test_every_family_is_finite(family: str) -> None:
    from engines import textures

    for seed in range(8):
        image = FAMILIES[family](textures._plane(np.random.default_rng(seed), 96))
        assert np.isfinite(image).all()
        assert image.std() > 0


def test_batches_depend_on_seed_and_step_only() -> None:
    photos = photographs()
    stream = TextureStream(5, 64, photos, pool=4)
    earlier = [stream.batch(step, 2) for step in range(9)]
    resumed = TextureStream(5, 64, photos, pool=4)
    np.testing.assert_array_equal(resumed.batch(8, 2), earlier[8])
    assert earlier[8].shape == (2, 64, 64, 1)


def test_only_left_halves_are_trained_on() -> None:
    assert [p.shape for p in photographs()] == [(512, 256), (512, 256)]
