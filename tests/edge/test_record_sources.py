"""`maskline record`: what the sources give, without anybody who judges it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import edge.backoff
import edge.recorder.sources
from edge.errors import RecipeError, ResourceError, SourceError
from edge.marker import Marker, read
from edge.recipes import load_recipe
from edge.recorder.sources import record_sources
from edge.recording import RecordedFrame, RecordedRefusal, RecordedTrigger, Recording
from edge.sources import Ended, Exposed, Triggered
from edge.sources.truth import truth_is_bad
from edge.testing import wait_until
from edge.verdict import Reason
from tests.disks import loop_disk
from tests.support import marker_recipe

PARTS = 30


def frames(path: Path, station: str = "s0") -> list[RecordedFrame]:
    return [e for e in Recording(path).events(station) if isinstance(e, RecordedFrame)]


def test_lossless_sources_are_recorded_whole(tmp_path: Path) -> None:
    """Faster than any camera, with two buffers each; no bundle is looked at, and no calibration."""
    recipe = marker_recipe(tmp_path, stations=2, parts=PARTS, mode="lossless", extra="[recording]\nslots = 2")
    recipe.write_text(recipe.read_text().replace('bundle = "marker"', 'bundle = "not-there-yet"'))
    out = tmp_path / "out.mcap"
    said = record_sources(load_recipe(recipe), out, threading.Event())
    assert said == f"{out}: {2 * PARTS} frames of s0, s1, 0 not recorded"
    recording = Recording(out)
    assert recording.complete
    assert recording.lossless
    assert recording.metadata["line"] == "test"
    for station in ("s0", "s1"):
        found = frames(out, station)
        assert [read(f.decode()) for f in found] == [Marker(n, truth_is_bad(7, n, 0.3)) for n in range(PARTS)]
        triggers = [e for e in recording.events(station) if isinstance(e, RecordedTrigger)]
        assert [t.number for t in triggers] == list(range(PARTS))


def test_a_live_source_is_recorded_until_somebody_says_stop(tmp_path: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=50)
    out = tmp_path / "out.mcap"
    process = subprocess.Popen([sys.executable, "-m", "edge.cli", "record", recipe, "--out", out])
    try:
        wait_until(lambda: out.exists() and os.path.getsize(out) > 0)
        wait_until(lambda: len(frames(out)) > 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 0
    finally:
        process.kill()
        process.wait()
    assert Recording(out).complete
    numbers = [f.number for f in frames(out)]
    assert numbers == sorted(set(numbers))


def test_into_a_folder_it_rolls(tmp_path: Path) -> None:
    section = "[recording]\nroll_mib = 1\nmax_mib = 4\nmarked_mib = 1\nencoding = 'raw'"
    recipe = marker_recipe(tmp_path, parts=100, mode="lossless", extra=section)
    record_sources(load_recipe(recipe), tmp_path / "rolls", threading.Event())
    files = sorted((tmp_path / "rolls").glob("test.*.mcap"))
    assert len(files) > 1
    assert sum(f.stat().st_size for f in files) <= 4 << 20
    assert [f.number for path in files for f in frames(path)][-1] == 99


def test_mistakes_are_said(tmp_path: Path) -> None:
    recipe = load_recipe(marker_recipe(tmp_path, parts=2))
    with pytest.raises(ResourceError, match="no such folder"):
        record_sources(recipe, tmp_path / "nowhere" / "out.mcap", threading.Event())
    (tmp_path / "out.mcap").write_bytes(b"precious")
    with pytest.raises(ResourceError, match="is there already"):
        record_sources(recipe, tmp_path / "out.mcap", threading.Event())
    assert (tmp_path / "out.mcap").read_bytes() == b"precious"


def test_a_source_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    path = marker_recipe(tmp_path, stations=2, parts=None)
    path.write_text(path.read_text().replace('kind = "marker"', f'kind = "folder"\npath = "{tmp_path}/no"', 1))
    with pytest.raises(SourceError, match="expected a folder of images"):
        record_sources(load_recipe(path), tmp_path / "out.mcap", threading.Event())


def test_a_full_disk_ends_it_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.recorder.sources, "_KEEP_FREE_BYTES", 1 << 20)
    with loop_disk(tmp_path, 8) as disk:
        recipe = marker_recipe(tmp_path, parts=None, mode="lossless", extra="[recording]\nencoding = 'raw'")
        out = disk / "out.mcap"
        with pytest.raises(ResourceError, match="disk is full"):
            record_sources(load_recipe(recipe), out, threading.Event())
        assert Recording(out).complete
        assert len(frames(out)) > 50


class Camera:
    """What it gives is said in advance; SourceError is a camera that goes."""

    def __init__(self, events: list[object]) -> None:
        self._events = events

    def poll(self, timeout_s: float) -> object:
        event = self._events.pop(0)
        if isinstance(event, SourceError):
            raise event
        return event

    def close(self) -> None: ...


def test_a_camera_that_is_gone_is_looked_for_and_refusals_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = marker_image()
    opened = [
        [Triggered(0, 1), Exposed(0, image), SourceError("the cable is out")],
        [SourceError("still out")],
        [Triggered(1, 2), Exposed(1, None, Reason.BAD_IMAGE), Triggered(2, 3), Exposed(2, image[:100]), Ended(3)],
    ]
    asked = []

    def open_source(station: object, start_ns: int, first_number: int, alone: bool, astray: bool) -> Camera:
        asked.append((first_number, alone, astray))
        return Camera(opened.pop(0))

    monkeypatch.setattr(edge.recorder.sources, "open_source", open_source)
    monkeypatch.setattr(edge.backoff, "FIRST_S", 0.01)
    out = tmp_path / "out.mcap"
    recipe = load_recipe(marker_recipe(tmp_path))
    monkeypatch.setattr("edge.settings.Source.is_camera", True)
    record_sources(recipe, out, threading.Event())
    assert asked == [(0, True, False), (1, True, False), (1, True, False)]
    inputs = list(Recording(out).inputs("s0"))
    assert [(e.number, e.reason) for e in inputs if isinstance(e, RecordedRefusal)] == [(1, Reason.BAD_IMAGE)]
    assert [(e.number, e.height) for e in inputs if isinstance(e, RecordedFrame)] == [(0, 224), (2, 100)]


def test_messages_that_are_left_out_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [Triggered(0, 1), Exposed(0, marker_image()), Triggered(0, 2), Ended(1)]
    monkeypatch.setattr(edge.recorder.sources, "open_source", lambda *_: Camera(events))
    out = tmp_path / "out.mcap"
    said = record_sources(load_recipe(marker_recipe(tmp_path)), out, threading.Event())
    assert said == f"{out}: 1 frames of s0, 0 not recorded, and 1 triggers or refusals not either"
    end = dict(Recording(out).metadata_records)["maskline.end"]
    assert end == {"frames": "1", "frames_unrecorded": "0", "messages_unrecorded": "1"}


def test_whatever_else_a_source_raises_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies without a word would look like a source that has ended."""

    def open_source(*_: object) -> Camera:
        raise RecipeError("the camera has no feature Gainn")

    monkeypatch.setattr(edge.recorder.sources, "open_source", open_source)
    recipe = load_recipe(marker_recipe(tmp_path))
    monkeypatch.setattr("edge.settings.Source.is_camera", True)
    with pytest.raises(RecipeError, match="no feature Gainn"):
        record_sources(recipe, tmp_path / "out.mcap", threading.Event())


def marker_image() -> np.ndarray:
    return np.full((224, 224, 1), 9, np.uint8)
