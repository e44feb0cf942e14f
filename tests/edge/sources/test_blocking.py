"""A library that blocks, behind a thread: what it delivers comes through, and nothing that it does holds anybody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from source_helpers import make_station

from edge.errors import SourceError
from edge.sources import Exposed, Triggered
from edge.sources.blocking import QUEUE, BlockingCamera, Limits
from edge.sources.camera import CameraSource, Grabbed
from edge.testing import PATIENCE_S, wait_until


class Fake:
    """Delivers frames until it is told what else to do."""

    def __init__(self) -> None:
        self.frames = 0
        self.most = 3
        self.error: Exception | None = None
        self.closed = False
        self.go_on = threading.Event()

    def read(self) -> Grabbed | None:
        if self.frames == self.most:
            self.go_on.wait(0.01)
            if self.error:
                raise self.error
            return None
        self.frames += 1
        return Grabbed(None, time.monotonic_ns(), frame_id=self.frames - 1)

    def close(self) -> None:
        self.closed = True


@contextmanager
def opened(fake: Fake, **limits: float) -> Iterator[BlockingCamera]:
    camera = BlockingCamera("cam", lambda: fake, Limits(**limits))
    try:
        yield camera
    finally:
        camera.close()


def test_frames_come_in_order_and_then_nothing() -> None:
    fake = Fake()
    with opened(fake) as camera:
        found = [camera.grab(PATIENCE_S) for _ in range(3)]
        assert [g.frame_id for g in found if g] == [0, 1, 2]
        assert camera.grab(0.01) is None
    assert fake.closed


def test_what_is_not_taken_in_time_counts_as_missed() -> None:
    fake = Fake()
    fake.most = QUEUE + 6
    with opened(fake) as camera:
        wait_until(lambda: fake.frames == fake.most)
        first = camera.grab(PATIENCE_S)
        assert first is not None
        assert first.frame_id == 6  # the oldest have made room
        station = make_station("v4l2", None, address="/dev/video0", mode="live")
        source = CameraSource(camera, station, 0)
        for _ in range(2 * (QUEUE - 1)):
            assert isinstance(source.poll(PATIENCE_S), (Triggered, Exposed))
        fake.most += QUEUE + 2
        wait_until(lambda: fake.frames == fake.most)
        events = [source.poll(PATIENCE_S) for _ in range(3)]
        assert [e.missed for e in events if isinstance(e, Triggered)] == [True, True, False]


@pytest.mark.parametrize("error", [SourceError("cam: unplugged"), RuntimeError("a bug of the library")])
def test_the_error_that_ends_it_is_said(error: Exception) -> None:
    fake = Fake()
    fake.error = error
    with opened(fake) as camera:
        for _ in range(3):
            assert camera.grab(PATIENCE_S) is not None
        with pytest.raises(SourceError, match=r"cam: .*(unplugged|a bug of the library)"):
            wait_until(lambda: camera.grab(0.1) is not None)
    assert fake.closed


def test_a_camera_that_falls_silent_is_gone() -> None:
    with opened(Fake()) as camera:
        for _ in range(3):
            assert camera.grab(PATIENCE_S) is not None
        camera._limits = Limits(silence_s=0.2)  # not before: a machine that stands still falls silent as well
        with pytest.raises(SourceError, match="no frame for"):
            wait_until(lambda: camera.grab(0.05) is not None)


def test_what_cannot_be_opened_says_why_or_that_it_does_not_answer() -> None:
    def fail() -> Fake:
        raise SourceError("cam: refused")

    with pytest.raises(SourceError, match="cam: refused"):
        BlockingCamera("cam", fail)
    answered = threading.Event()
    late = Fake()

    def hang() -> Fake:
        answered.wait(100)
        return late

    with pytest.raises(SourceError, match=r"cam: no stream 0\.1 s after"):
        BlockingCamera("cam", hang, Limits(open_s=0.1))
    answered.set()
    wait_until(lambda: late.closed)  # what opens after all is closed again


def test_closing_does_not_wait_for_a_library_that_hangs() -> None:
    fake, hung = Fake(), threading.Event()
    fake.most = -1

    def read() -> Grabbed | None:
        hung.wait(100)
        return None

    fake.read = read  # type: ignore[method-assign]
    began = time.monotonic()
    with opened(fake, close_s=0.1):
        pass
    assert time.monotonic() - began < 15
    hung.set()
    wait_until(lambda: fake.closed)
