"""Video4Linux: a fake device in the place of OpenCV's, for there is no real one here."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from source_helpers import make_station

from edge.errors import SourceError
from edge.settings import Frame
from edge.sources import Exposed, Triggered, open_source
from edge.sources.blocking import LIMITS, Limits
from edge.sources.camera import CameraSource, Grabbed
from edge.sources.v4l2 import V4l2Camera
from edge.verdict import Reason

SECONDS_MS = 1000.0


class FakeCapture:
    """Delivers frames with these times [ms], each as bright as its place among them; then fails, or hangs."""

    def __init__(self, at_ms: Sequence[float], fps: float = 25, shape: tuple[int, ...] = (48, 64, 3)) -> None:
        self._at_ms, self._fps, self._shape = list(at_ms), fps, shape
        self._next = 0
        self.released = threading.Event()
        self.hang: threading.Event | None = None

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, Any]:
        if self._next == len(self._at_ms):
            if self.hang:
                self.hang.wait(100)
            return False, None
        self._next += 1
        return True, np.full(self._shape, self._next - 1, np.uint8)

    def get(self, prop: int, /) -> float:
        return {cv2.CAP_PROP_FPS: self._fps, cv2.CAP_PROP_POS_MSEC: self._at_ms[max(0, self._next - 1)]}[prop]

    def release(self) -> None:
        self.released.set()


def station(channels: int = 1) -> Any:
    return make_station("v4l2", None, {"channels": channels}, address="/dev/video7", mode="live")


def camera(fake: FakeCapture, limits: Limits = LIMITS, channels: int = 1) -> V4l2Camera:
    def opener(address: str, frame: Frame, silence_s: float) -> FakeCapture:
        assert (address, frame.width_px, silence_s) == ("/dev/video7", 64, limits.silence_s)
        return fake

    return V4l2Camera(station(channels), limits, opener)


def until_gone(grab: Callable[[float], Grabbed | None]) -> tuple[list[Grabbed], SourceError]:
    found: list[Grabbed] = []
    try:
        for _ in range(400):
            found += filter(None, [grab(0.05)])
    except SourceError as error:
        return found, error
    raise AssertionError("it goes on")


@pytest.fixture(autouse=True)
def _room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake delivers faster than anybody can take."""
    monkeypatch.setattr("edge.sources.blocking.QUEUE", 100)


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_come_with_ids_and_the_driver_s_times(channels: int) -> None:
    fake = FakeCapture([1000 + 40 * n for n in range(12)])
    device = camera(fake, channels=channels)
    found, error = until_gone(device.grab)
    device.close()
    assert [g.frame_id for g in found] == list(range(12))
    assert [g.camera_ns for g in found] == [(1000 + 40 * n) * 1_000_000 for n in range(12)]
    assert [int(g.image.max()) for g in found if g.image is not None] == list(range(12))
    assert {g.image.shape for g in found if g.image is not None} == {(48, 64, channels)}
    assert str(error).startswith("top: /dev/video7: no frame; was it unplugged?")
    assert fake.released.is_set()


def test_a_gap_in_the_times_is_a_part_that_was_missed() -> None:
    fake = FakeCapture([40.0 * n for n in (*range(1, 5), 7, 8)])
    source = CameraSource(camera(fake), station(), 0)
    events = list(itertools.islice(iter(lambda: source.poll(1.0), None), 14))
    source.close()
    missed = [e.number for e in events if isinstance(e, Triggered) and e.missed]
    shown = {e.number: int(e.image.max()) for e in events if isinstance(e, Exposed) and e.image is not None}
    assert missed == [4, 5]
    assert shown == {0: 0, 1: 1, 2: 2, 3: 3, 6: 4, 7: 5}


def test_without_times_frames_are_counted_as_they_come() -> None:
    found, _ = until_gone(camera(FakeCapture([0.0] * 5, fps=0)).grab)
    assert [(g.frame_id, g.camera_ns) for g in found] == [(n, None) for n in range(5)]


def test_what_is_no_picture_is_a_part_with_a_bad_image() -> None:
    found, _ = until_gone(camera(FakeCapture([40.0], shape=(48, 64, 4)), channels=3).grab)
    assert [(g.image, g.reason) for g in found] == [(None, Reason.BAD_IMAGE)]
    assert "4 channels" in found[0].detail


def test_a_device_that_hangs_ends_in_a_known_time() -> None:
    fake = FakeCapture([40.0, 80.0])
    fake.hang = threading.Event()
    found, error = until_gone(camera(fake, Limits(silence_s=0.3)).grab)
    fake.hang.set()
    assert len(found) == 2
    assert "top: /dev/video7: no frame for 0" in str(error)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """With OpenCV itself."""
    where = make_station("v4l2", None, address=str(tmp_path / "video0"), mode="live")
    with pytest.raises(SourceError, match=r"video0: no camera that can be opened"):
        open_source(where, 0, 0)
    (tmp_path / "video0").write_bytes(b"no device")
    with pytest.raises(SourceError, match=r"video0: no camera that can be opened"):
        open_source(where, 0, 0)
