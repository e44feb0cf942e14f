"""A whole line that records: what is in the recording is what passed by, and what was said of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.marker import Marker, read
from edge.messages import Heartbeat, encode
from edge.processes import RECORD
from edge.recipes import load_recipe
from edge.recording import RecordedFrame, RecordedTrigger, Recording
from edge.sources.truth import truth_is_bad
from edge.testing import RunningLine, journal_verdicts, wait_until
from edge.verdict import Decision, GateState
from tests.disks import fill, loop_disk
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

pytestmark = pytest.mark.line

PARTS = 25


def recorded_frames(folder: Path, station: str) -> dict[int, RecordedFrame]:
    """By number; no file has one twice."""
    found = {}
    for path in sorted(folder.glob("*.mcap")):
        recording = Recording(path)
        for event in recording.events(station) if station in recording.stations else ():
            if isinstance(event, RecordedFrame):
                assert event.number not in found
                found[event.number] = event
    return found


def test_everything_that_passed_by_is_recorded(tmp_path: Path, runtime_dir: Path) -> None:
    """To the last verdict: the recorder ends after the gate."""
    extra = '[recording]\nencoding = "zstd"\nroll_s = 1\nslots = 4'
    usual = {"same_lane": True, "parts": PARTS, "rate_hz": 10, "deadline_ms": 20_000}
    recipe = marker_recipe(tmp_path, stations=2, extra=extra, **usual)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        assert line.wait() == 0, line.log.read_text()
    folder = tmp_path / "state" / "recordings"
    recordings = [Recording(path) for path in sorted(folder.glob("*.mcap"))]
    assert len(recordings) > 1
    assert all(r.complete and not r.damage and r.lossless for r in recordings)
    resolved = load_recipe(recipe)
    for recording in recordings:
        assert recording.recipe() == resolved
        assert recording.metadata["recipe_sha256"] == resolved.sha256
        calibration = recording.calibration()
        assert calibration is not None
        assert calibration.sha256 == recording.metadata["calibration_sha256"]
    for station in ("s0", "s1"):
        events = [e for r in recordings for e in r.events(station)]
        assert [e.number for e in events if isinstance(e, RecordedTrigger)] == list(range(PARTS))
        frames = [e for e in events if isinstance(e, RecordedFrame)]
        assert [e.number for e in frames] == list(range(PARTS))
        assert all(read(e.decode()) == Marker(e.number, truth_is_bad(7, e.number, 0.3)) for e in frames)
        results = [result for r in recordings for _, result in r.results() if result.station == station]
        assert sorted(result.number for result in results) == list(range(PARTS))
    journal = journal_verdicts(tmp_path / "state")
    assert [encode(v) for r in recordings for v in r.verdicts()] == [encode(v) for v in journal], "byte for byte"
    beats = [e for e in heard.events if isinstance(e, Heartbeat)]
    assert all(b.counters["frames_unrecorded"] == b.counters["messages_unrecorded"] == 0 for b in beats)


def test_the_recorder_is_killed_and_no_verdict_is_missing(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at any moment costs the open chunk and what passes until there is another recorder: counted."""
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=20, deadline_ms=20_000, extra="[recording]\nslots = 4")
    calibrate_marker(recipe, tmp_path / "state")
    folder = tmp_path / "state" / "recordings"
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        for kills in range(2):
            wait_until(lambda n=kills: len(list(folder.glob("*.mcap"))) > n)
            before = len(heard.verdicts)
            wait_until(lambda b=before: len(heard.verdicts) > b + 10)
            victim = line.children()[RECORD]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda v=victim: line.children().get(RECORD, v) != v)
        wait_until(lambda: len(list(folder.glob("*.mcap"))) > 2)
        assert line.stop() == 0
    journal = journal_verdicts(tmp_path / "state")
    assert [v.part for v in journal] == list(range(len(journal)))
    assert all(v.decision is not Decision.UNINSPECTED for v in journal)
    frames = recorded_frames(folder, "s0")
    last = Recording(sorted(folder.glob("*.mcap"))[-1])
    end = dict(last.metadata_records)["maskline.end"]
    assert int(end["frames"]) + int(end["frames_unrecorded"]) == len(journal), "each frame is there, or counted"
    assert len(frames) >= int(end["frames"]), "what was written just before a kill is there, and counted as missing"
    counted = [b.counters["frames_unrecorded"] for b in heard.events if isinstance(b, Heartbeat)]
    assert counted == sorted(counted)
    assert counted[-1] > 0


def test_a_full_disk_stops_the_recording_and_never_the_verdicts(tmp_path: Path, runtime_dir: Path) -> None:
    with loop_disk(tmp_path, 32) as disk:
        recipe = marker_recipe(
            tmp_path, parts=None, rate_hz=20, deadline_ms=20_000, extra="[recording]\nencoding = 'raw'"
        )
        calibrate_marker(recipe, disk / "state")
        with RunningLine(recipe, disk / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
            wait_until(lambda: len(heard.verdicts) > 3)
            plug = fill(disk, leave_bytes=3 << 20)
            wait_until(lambda: "its disk is full" in " ".join(heard.trouble))
            before = len(heard.verdicts)
            wait_until(lambda: len(heard.verdicts) > before + 20)
            assert heard.state is GateState.DEGRADED
            plug.unlink()
            wait_until(lambda: heard.state is GateState.READY)
            assert line.stop() == 0
        journal = journal_verdicts(disk / "state")
        assert [v.part for v in journal] == list(range(len(journal)))
        assert all(v.decision is not Decision.UNINSPECTED for v in journal)
        frames = recorded_frames(disk / "state" / "recordings", "s0")
        end = dict(Recording(max((disk / "state" / "recordings").glob("*.mcap"))).metadata_records)["maskline.end"]
        assert len(frames) + int(end["frames_unrecorded"]) == len(journal)
        assert int(end["frames_unrecorded"]) > 0


def test_a_disk_that_hangs_leaves_frames_out_and_holds_up_nobody(tmp_path: Path, runtime_dir: Path) -> None:
    """A frozen file system: the write waits in the kernel, until it is thawed."""
    with loop_disk(tmp_path, 16) as disk:
        extra = f'[recording]\nfolder = "{disk}/rolls"\nslots = 4'
        recipe = marker_recipe(tmp_path, parts=None, rate_hz=20, deadline_ms=20_000, extra=extra)
        calibrate_marker(recipe, tmp_path / "state")
        with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
            wait_until(lambda: len(heard.verdicts) > 3)
            recorder = line.children()[RECORD]
            with frozen(disk):
                wait_until(lambda: "its disk is too slow" in " ".join(heard.trouble))
                before = len(heard.verdicts)
                wait_until(lambda: len(heard.verdicts) > before + 20)
            wait_until(lambda: heard.state is GateState.READY)
            assert line.children()[RECORD] == recorder, "the process lives: only its thread waited"
            assert line.stop() == 0
        journal = journal_verdicts(tmp_path / "state")
        assert [v.part for v in journal] == list(range(len(journal)))
        assert all(v.decision is not Decision.UNINSPECTED for v in journal)
        (path,) = (disk / "rolls").glob("*.mcap")
        recording = Recording(path)
        end = dict(recording.metadata_records)["maskline.end"]
        assert recording.complete
        assert len(recorded_frames(disk / "rolls", "s0")) + int(end["frames_unrecorded"]) == len(journal)
        assert [v.part for v in recording.verdicts()] == list(range(len(journal))), "messages had waited"


@contextlib.contextmanager
def frozen(disk: Path) -> Iterator[None]:
    done = subprocess.run(["fsfreeze", "-f", disk], capture_output=True, text=True, timeout=100)
    if done.returncode:
        pytest.skip(f"cannot freeze a file system here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", disk], check=True, timeout=100)
