"""Small pictures are mirrored until a tile fits."""

from __future__ import annotations

import numpy as np
import pytest

from edge.padding import pad_mirrored


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_lies_in_the_middle_of_its_mirror_images(dtype: type, channels: int) -> None:
    image = np.arange(5 * 7 * channels).reshape(5, 7, channels).astype(dtype)
    padded, inside = pad_mirrored(image, 8, 6)
    assert padded.shape == (8, 7, channels)
    assert padded.dtype == dtype
    assert inside == (0, 1, 7, 5)
    assert np.array_equal(padded[inside.rows, inside.columns], image)
    assert np.array_equal(padded, np.pad(image, ((1, 2), (0, 0), (0, 0)), mode="reflect"))


def test_mirrored_as_often_as_it_takes() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    padded, inside = pad_mirrored(image, 11, 20)
    assert padded.shape == (11, 20, 1)
    assert np.array_equal(padded[inside.rows, inside.columns], image)
    assert np.array_equal(padded, np.pad(image, ((4, 5), (8, 9), (0, 0)), mode="reflect"))
    assert pad_mirrored(image[:1, :1], 4, 4)[0].ravel().tolist() == [0] * 16


def test_what_is_large_enough_stays() -> None:
    image = np.zeros((8, 9, 1), np.uint8)
    padded, inside = pad_mirrored(image, 8, 3)
    assert padded is image
    assert inside == (0, 0, 9, 8)
