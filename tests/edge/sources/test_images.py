"""Encoded images: delivered as stored, or refused with a reason."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.sources.images import BadImageError, declared_size, decode_image

RNG = np.random.default_rng(7)
FORMATS = [".png", ".jpg", ".tif", ".bmp"]


def encoded(suffix: str, image: np.ndarray) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tif", "uint16"), (".bmp", "uint8")],
)
def test_pixels_come_back_as_they_were_stored(suffix: str, dtype: str, channels: int) -> None:
    rgb = RNG.integers(0, np.iinfo(dtype).max, (48, 64, channels), dtype)
    data = encoded(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if channels == 3 else rgb)
    image = decode_image(data)
    assert image.dtype == dtype
    if suffix == ".bmp" and channels == 1 and image.shape[2] == 3:
        image = image[:, :, :1]  # some versions of OpenCV read a grey BMP as colour
    np.testing.assert_array_equal(image, rgb)


def test_a_jpeg_is_rgb() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 255
    image = decode_image(encoded(".jpg", red))
    assert image[8, 8, 0] > 250
    assert image[8, 8, 2] < 5


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_file_is_refused(suffix: str, share: float) -> None:
    data = encoded(suffix, RNG.integers(0, 255, (480, 640), np.uint8))
    with pytest.raises(BadImageError):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_size_is_read_from_the_header(suffix: str) -> None:
    assert declared_size(encoded(suffix, np.zeros((30, 50), np.uint8))) == (50, 30)


def test_a_damaged_png_is_refused() -> None:
    data = bytearray(encoded(".png", RNG.integers(0, 255, (48, 64), np.uint8)))
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImageError, match="checksum"):
        decode_image(bytes(data))


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(("width", "height"), [(40_000, 10), (32_768, 32_768), (0, 5), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(BadImageError, match=f"{width} x {height}"):
        decode_image(png_header(width, height))


def test_other_pixels_and_other_files_are_refused() -> None:
    with pytest.raises(BadImageError, match="4 channels"):
        decode_image(encoded(".png", np.zeros((4, 4, 4), np.uint8)))
    with pytest.raises(BadImageError, match="float32"):
        decode_image(encoded(".tif", np.zeros((16, 16), np.float32)))
    with pytest.raises(BadImageError, match="neither PNG"):
        decode_image(b"hello, this is text")


@settings(max_examples=300)
@given(
    suffix=st.sampled_from(FORMATS), at=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=8), cut=st.booleans()
)
def test_damaged_bytes_are_an_image_or_a_bad_image(suffix: str, at: float, junk: bytes, cut: bool) -> None:
    data = bytearray(encoded(suffix, np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)))
    place = int(at**2 * len(data))  # more often in the header
    data[place : place + len(junk)] = junk
    try:
        image = decode_image(bytes(data[: len(data) // 2] if cut else data))
    except BadImageError:
        return
    assert image.ndim == 3
