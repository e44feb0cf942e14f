"""A video file as a stream, whole and cut."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from source_helpers import drain, exposures, make_station, triggers
from structlog.testing import capture_logs

from edge.errors import SourceError
from edge.sources import Ended, open_source
from edge.verdict import Reason

FRAMES = 20


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 frames of 64 x 48; frame n has the brightness 10 n."""
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(FRAMES):
        frame = np.random.default_rng(number).integers(0, 9, (48, 64, 3), np.uint8) + np.uint8(10 * number)
        writer.write(frame)
    writer.release()
    return path


def brightness(events: list) -> list[int]:
    return [round(float(e.image.mean()) / 10) for e in exposures(events) if e.image is not None]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_frame_is_a_part(video: Path, channels: int) -> None:
    events = drain(open_source(make_station("video", video, {"channels": channels}), 0, 0))
    assert brightness(events) == list(range(FRAMES))
    assert {e.image.shape for e in exposures(events) if e.image is not None} == {(48, 64, channels)}
    assert events[-1] == Ended(FRAMES)


def test_it_goes_on_at_the_first_number(video: Path) -> None:
    events = drain(open_source(make_station("video", video, parts=12), 0, 9))
    assert [t.number for t in triggers(events)] == [9, 10, 11]
    assert brightness(events) == [9, 10, 11]
    assert drain(open_source(make_station("video", video), 0, 50)) == [Ended(50)]


def test_a_cut_video_has_bad_images_for_the_frames_that_it_promised(video: Path) -> None:
    video.write_bytes(video.read_bytes()[: int(video.stat().st_size * 0.7)])
    with capture_logs() as logs:
        events = drain(open_source(make_station("video", video), 0, 0))
    decoded = len(brightness(events))
    assert 0 < decoded < FRAMES
    assert [t.number for t in triggers(events)] == list(range(FRAMES))
    bad = exposures(events)[decoded:]
    assert {e.reason for e in bad} == {Reason.BAD_IMAGE}
    assert all(str(video) in e.detail for e in bad)
    assert [(entry["event"], entry["promised"], entry["decoded"]) for entry in logs] == [
        ("video_incomplete", FRAMES, decoded)
    ]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.avi"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"broken\.avi"):
        open_source(make_station("video", path), 0, 0)


def test_a_missing_video_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.avi"):
        open_source(make_station("video", tmp_path / "gone.avi"), 0, 0)


def test_a_video_cut_in_its_header_is_an_error(video: Path) -> None:
    video.write_bytes(video.read_bytes()[:600])
    with pytest.raises(SourceError, match=r"line\.avi"):
        open_source(make_station("video", video), 0, 0)
