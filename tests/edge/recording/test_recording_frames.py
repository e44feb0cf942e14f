"""Frames: what is lossless comes back bit by bit, and nothing is decoded that is not what it says it is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import zstandard
from mcap_helpers import START_NS, picture

from edge.recording import RecordedFrame, Recording, RecordingWriter
from edge.sources.images import BadImageError


@pytest.mark.parametrize("encoding", ["png", "raw", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_three_encodings_are_lossless(tmp_path: Path, encoding: str, dtype: str, channels: int) -> None:
    image = picture(1, (11, 13, channels), dtype)
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.frame("top", 0, START_NS, image, encoding)
    recording = Recording(tmp_path / "a.mcap")
    (frame,) = recording.events("top")
    assert isinstance(frame, RecordedFrame)
    decoded = frame.decode()
    assert decoded.dtype == image.dtype
    np.testing.assert_array_equal(decoded, image)
    assert (frame.lossless, recording.lossless, frame.quality) == (True, True, None)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_says_that_it_is_one_and_its_quality(tmp_path: Path, channels: int) -> None:
    image = picture(1, (64, 80, channels))
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.frame("top", 0, START_NS, image, "raw")
        out.frame("top", 1, START_NS, image, "jpeg", quality=80)
        out.frame("top", 2, START_NS, image, "jpeg", quality=97)
    recording = Recording(tmp_path / "a.mcap")
    frames = [recording.frame("top", number) for number in range(3)]
    assert [(f.encoding, f.lossless, f.quality) for f in frames if f] == [
        ("raw", True, None), ("jpeg", False, 80), ("jpeg", False, 97),
    ]  # fmt: skip
    assert not recording.lossless
    errors = [np.abs(f.decode().astype(int) - image).mean() for f in frames if f]
    assert errors[0] == 0 < errors[2] < errors[1] < 80


def test_a_view_into_a_larger_array_is_recorded_as_it_looks(tmp_path: Path) -> None:
    image = picture(1, (40, 60, 3))[5:20:2, ::-1]
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number, encoding in enumerate(("raw", "zstd", "png")):
            out.frame("top", number, START_NS, image, encoding)
    for frame in Recording(tmp_path / "a.mcap").events("top"):
        assert isinstance(frame, RecordedFrame)
        np.testing.assert_array_equal(frame.decode(), image)


@pytest.mark.parametrize(
    ("image", "encoding", "quality"),
    [
        (picture(0).astype(np.float32), "raw", 95),
        (picture(0)[:, :, 0], "png", 95),
        (picture(0, (4, 4, 4)), "raw", 95),
        (picture(0)[:0], "raw", 95),
        (picture(0, dtype="uint16"), "jpeg", 95),
        (picture(0), "jpeg", 0),
        (picture(0), "tiff", 95),
    ],
)
def test_what_no_recording_has_is_refused(tmp_path: Path, image: np.ndarray, encoding: str, quality: int) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out, pytest.raises(ValueError, match=r"image|JPEG|encoding"):
        out.frame("top", 0, START_NS, image, encoding, quality)


def frame(**change: object) -> RecordedFrame:
    fields = {"encoding": "raw", "height": 2, "width": 3, "channels": 1, "dtype": "uint8", "data": b"6bytes"}
    return RecordedFrame(number=0, at_ns=0, **{**fields, **change})


PNG = cv2.imencode(".png", np.zeros((2, 3), np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.zeros((2, 3), np.uint8))[1].tobytes()
HUGE_PNG = PNG[:16] + b"\0\0\xff\xff\0\0\xff\xff" + PNG[24:]


def test_frames_that_are_what_they_say_are_decoded() -> None:
    assert frame().decode().shape == (2, 3, 1)
    assert frame(encoding="png", data=PNG).decode().shape == (2, 3, 1)
    assert frame(encoding="jpeg", data=JPEG).decode().shape == (2, 3, 1)
    assert frame(encoding="zstd", data=zstandard.compress(b"6bytes")).decode().shape == (2, 3, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 3},
        {"height": 1 << 40},
        {"height": -2, "width": -3},
        {"dtype": "uint16"},
        {"dtype": "uint16", "data": b"5byte"},
        {"channels": 2, "width": 2, "height": 1},
        {"dtype": "object"},
        {"encoding": "bmp"},
        {"encoding": "png", "data": b"x"},
        {"encoding": "png", "data": JPEG},
        {"encoding": "jpeg", "data": PNG},
        {"encoding": "png", "data": PNG, "height": 3},
        {"encoding": "png", "data": PNG, "dtype": "uint16"},
        {"encoding": "png", "data": HUGE_PNG},
        {"encoding": "zstd", "data": b"no zstd"},
        {"encoding": "zstd", "data": zstandard.compress(b"7 bytes")},
        {"encoding": "zstd", "data": zstandard.compress(b"\0" * (1 << 28))},
        {"encoding": "zstd", "data": zstandard.ZstdCompressor(write_content_size=False).compress(b"6bytes")},
        {"encoding": "zstd", "data": zstandard.compress(b"6bytes")[:-1]},
    ],
    ids=lambda change: ",".join(f"{k}={str(v)[:12]}" for k, v in change.items()),
)
def test_frames_that_are_not_what_they_say_are_bad_images(change: dict[str, object]) -> None:
    with pytest.raises(BadImageError):
        frame(**change).decode()
