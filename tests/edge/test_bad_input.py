"""What can be wrong with what a line is given: each an error that names it, or a verdict with its reason."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import msgpack
import numpy as np
import pytest
import zmq

from calib.calibration import load_calibration, save_calibration
from edge.messages import Trigger, Verdict, encode
from edge.paths import calibration_path
from edge.recipes import load_recipe
from edge.testing import PATIENCE_S, RunningLine, calibrate_by_hand, journal_verdicts, wait_until
from edge.verdict import Decision, GateState, Reason
from engines.bundle import find_bundle, load_bundle, write_bundle
from tests.disks import fill, loop_disk
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

pytestmark = pytest.mark.line


@pytest.fixture(autouse=True)
def _short_paths(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLINE_RUNTIME_DIR", str(runtime_dir))


def maskline(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user gives it."""
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def assert_told(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("maskline: "), done.stderr
    assert all(word in last for word in words), last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_recipe_that_is_not_there(tmp_path: Path, command: str) -> None:
    assert_told(maskline(command, tmp_path / "none.toml"), 78, "none.toml: cannot read this recipe", "No such file")


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(os.urandom(2000))
    assert_told(maskline("run", path), 78, f"{path}: cannot read this recipe")


def test_a_bundle_that_was_changed(tmp_path: Path) -> None:
    recipe = marker_recipe(tmp_path)
    shipped = load_bundle(find_bundle("marker"))
    write_bundle(tmp_path / "own", shipped.manifest, {"notes.bin": b"as it was hashed"})
    recipe.write_text(recipe.read_text().replace('bundle = "marker"', 'bundle = "own"'))
    assert maskline("check", recipe).returncode == 0
    (tmp_path / "own" / "notes.bin").write_bytes(b"as somebody changed it")
    assert_told(maskline("run", recipe), 78, "station s0", "notes.bin", "sha256 is", "expected", "copy the bundle")


def test_a_slab_that_cannot_be_allocated(tmp_path: Path) -> None:
    recipe = marker_recipe(tmp_path, slots=64)
    recipe.write_text(
        recipe.read_text().replace("width_px = 224, height_px = 224", "width_px = 32768, height_px = 32768")
    )
    assert_told(maskline("run", recipe), 1, "MiB of shared memory for its frames", "are available", "fewer slots")


def test_a_calibration_that_is_damaged(tmp_path: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=3)
    calibrate_marker(recipe, tmp_path / "state")
    path = calibration_path(tmp_path / "state")
    path.write_bytes(path.read_bytes()[:100])
    done = maskline("run", recipe, "--state-dir", tmp_path / "state")
    assert_told(done, 78, f"{path}: not a calibration")


def test_a_calibration_made_while_the_line_runs_waits_for_its_next_start(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=20)
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 2)
        calibrate_marker(recipe, tmp_path / "state")
        judge = line.children()["judge"]
        os.kill(judge, signal.SIGKILL)
        wait_until(lambda: line.children().get("judge", judge) != judge)
        before = len(heard.verdicts)
        wait_until(lambda: any(v.reason is Reason.UNCALIBRATED for v in heard.verdicts[before:]))
        assert line.stop() == 0
    assert {v.decision for v in heard.verdicts} == {Decision.UNINSPECTED}


def test_a_port_in_use_ends_the_line_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        recipe = marker_recipe(tmp_path, extra=f'outputs = {{ publish = ["{endpoint}"] }}')
        done = maskline("run", recipe, "--state-dir", tmp_path / "state")
    assert_told(done, 75, "channel needs what something else holds")
    assert f"cannot publish on {endpoint}: Address already in use" in done.stderr
    assert done.stderr.count("cannot publish on") == 1, "it was tried once"


def test_a_source_that_is_not_there_spends_the_budget_and_says_why(tmp_path: Path) -> None:
    recipe = marker_recipe(tmp_path, extra="supervision = { restarts = 1 }")
    recipe.write_text(recipe.read_text().replace('kind = "marker"', 'kind = "folder"\npath = "nowhere"'))
    calibrate_marker(recipe, tmp_path / "state")
    done = maskline("run", recipe, "--state-dir", tmp_path / "state")
    assert_told(done, 1, "capture.s0 died 2 times")
    assert f"{tmp_path / 'nowhere'}: expected a folder of images" in done.stderr


GARBAGE = (
    b"",
    b"garbage",
    b"\xc1\xff\x00",
    b"\x91" * 3000,
    msgpack.packb({"v": 1, "type": "reboot"}),
    msgpack.packb({"v": 99, "type": "trigger", "station": "s0", "number": 0, "at_ns": 0}),
    msgpack.packb({"v": 1, "type": "trigger", "station": "s0"}),
    msgpack.packb({"v": 1, "type": "frame", "slot": 10**9}),
    encode(Trigger("nobody", 1 << 40, 1)),
    b"x" * (3 << 20),
)


@contextmanager
def pushing(runtime_dir: Path) -> Iterator[list[str]]:
    """Send GARBAGE to every socket on which a process of the line receives; their names."""
    context = zmq.Context()
    sockets = [p for p in sorted((runtime_dir / "test").iterdir()) if p.is_socket() and p.name != "verdicts"]
    try:
        for path in sockets:
            with context.socket(zmq.PUSH) as push:
                # The channel's socket is of another type: it hangs up, at once or after the first messages.
                push.linger = 1000 if path.name == "channel" else round(PATIENCE_S * 1000)
                push.connect(f"ipc://{path}")
                with suppress(zmq.Again):
                    for data in GARBAGE:
                        push.send(data, zmq.NOBLOCK)
        yield [p.name for p in sockets]
    finally:
        context.destroy()


def test_strangers_messages_and_a_second_supervisor_disturb_nobody(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=10, deadline_ms=20_000)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 3)
        before = line.children()
        with pushing(runtime_dir) as names:
            assert {"gate", "prepare", "detect", "judge", "archive"} <= set(names)
            second = maskline("run", recipe, "--state-dir", tmp_path / "other")
        assert_told(second, 75, "line test is running already", str(line.popen.pid), "stop it first")
        count = len(heard.verdicts)
        wait_until(lambda: len(heard.verdicts) > count + 10)
        assert line.children() == before, "no process died of it"
        assert line.stop() == 0
        log = line.log.read_text()
    assert log.count("message_refused") >= 5 * 8
    assert "protocol version 99" in log
    assert "process_died" not in log
    verdicts = journal_verdicts(tmp_path / "state")
    assert [v.part for v in verdicts] == list(range(len(verdicts)))
    assert sum(v.decision is Decision.UNINSPECTED for v in verdicts) <= 1


def test_a_state_directory_that_another_line_uses(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=10, deadline_ms=20_000)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 0)
        with_other_sockets = {"MASKLINE_RUNTIME_DIR": str(runtime_dir / "other")}
        second = maskline("run", recipe, "--state-dir", tmp_path / "state", **with_other_sockets)
        assert_told(second, 75, "gate needs what something else holds")
        assert "another gate writes this journal" in second.stderr
        count = len(heard.verdicts)
        wait_until(lambda: len(heard.verdicts) > count + 5)
        assert line.stop() == 0


PICTURES = """
line = "test"
safe_state = "reject_all"
line_ok = { wired = "none", because = "a test" }
engine = { backend = "null" }
deadline = { deadline_ms = 60_000 }
journal = { reserve_mib = 1 }
pictures = { keep = "none" }
"""
PICTURE_STATION = """
[[stations]]
name = "{name}"
bundle = "null"
frame = {{ width_px = 224, height_px = 224 }}
slots = 2
source = {{ kind = "{kind}", path = "{path}", mode = "lossless" }}
"""


def grey(seed: int, size: int = 224) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 160, (size, size), np.uint8)


def make_folder(folder: Path) -> None:
    folder.mkdir()
    cv2.imwrite(str(folder / "0-good.png"), grey(0))
    cv2.imwrite(str(folder / "1-cut.png"), grey(1))
    whole = (folder / "1-cut.png").read_bytes()
    (folder / "1-cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2-text.jpg").write_text("this is no picture")
    cv2.imwrite(str(folder / "3-smaller.png"), grey(3, size=200))
    cv2.imwrite(str(folder / "4-colour.png"), np.dstack([grey(4)] * 3))
    cv2.imwrite(str(folder / "5-deep.png"), grey(5).astype(np.uint16) * 256)
    cv2.imwrite(str(folder / "6-black.png"), np.zeros((224, 224), np.uint8))
    cv2.imwrite(str(folder / "7-white.png"), np.full((224, 224), 255, np.uint8))
    (folder / "8-empty.png").touch()
    cv2.imwrite(str(folder / "9-good.png"), grey(9))


def make_cut_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (224, 224))
    for number in range(12):
        writer.write(np.dstack([grey(number)] * 3))
    writer.release()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def test_every_bad_picture_is_a_part_with_its_reason(tmp_path: Path, runtime_dir: Path) -> None:
    """One line, three stations: a folder with all that can be wrong, a video that was cut, and no calibration."""
    make_folder(tmp_path / "folder")
    make_cut_video(tmp_path / "cut.avi")
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "0.png"), grey(0))
    stations = (("folder", "folder", "folder"), ("video", "video", "cut.avi"), ("fresh", "folder", "good"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(PICTURES + "".join(PICTURE_STATION.format(name=n, kind=k, path=p) for n, k, p in stations))
    calibrate_by_hand(load_recipe(recipe), tmp_path / "state")
    forget_station(tmp_path / "state", "fresh")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line:
        assert line.wait() == 0, line.log.read_text()
        log = line.log.read_text()

    said: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in journal_verdicts(tmp_path / "state"):
        said[verdict.lane].append(verdict)
    answers = {lane: [v.reason or v.decision for v in sorted(vs, key=lambda v: v.part)] for lane, vs in said.items()}
    assert answers["folder"] == [
        Decision.PASS,
        Reason.BAD_IMAGE,
        Reason.BAD_IMAGE,
        Reason.WRONG_SIZE,
        Reason.WRONG_SIZE,
        Reason.WRONG_SIZE,
        Reason.BLACK_FRAME,
        Reason.SATURATED_FRAME,
        Reason.BAD_IMAGE,
        Decision.PASS,
    ]
    assert len(answers["video"]) == 12, "the container promised twelve"
    assert answers["video"] == sorted(answers["video"], key=lambda a: a is Reason.BAD_IMAGE)
    assert set(answers["video"]) == {Decision.PASS, Reason.BAD_IMAGE}
    assert answers["fresh"] == [Reason.UNCALIBRATED]
    assert "200 x 200 px, 1 channel, uint8, the recipe says 224 x 224 px, 1 channel, uint8" in log
    assert "1-cut.png: a PNG cut after" in log
    assert "there is no calibration for this station; `maskline calibrate` makes one" in log


def forget_station(state_dir: Path, name: str) -> None:
    path = calibration_path(state_dir)
    calibration = load_calibration(path)
    assert calibration is not None
    stations = {n: s for n, s in calibration.stations.items() if n != name}
    save_calibration(calibration.model_copy(update={"stations": stations}), path)


def test_a_calibration_for_another_recipe_is_none(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=3, mode="lossless", deadline_ms=60_000)
    calibrate_marker(recipe, tmp_path / "state")
    tiling = "tiling = { region = { x_px = 0, y_px = 0, width_px = 224, height_px = 224 } }"
    recipe.write_text(recipe.read_text().replace('bundle = "marker"', f'bundle = "marker"\n{tiling}'))
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line:
        assert line.wait() == 0
        assert "recipe_sha256 is" in line.log.read_text()
    verdicts = journal_verdicts(tmp_path / "state")
    assert [v.reason for v in verdicts] == [Reason.UNCALIBRATED] * 3
    assert all(v.score is not None and v.threshold is None for v in verdicts)


def test_a_full_disk_holds_the_verdicts_back_until_there_is_room(tmp_path: Path, runtime_dir: Path) -> None:
    with loop_disk(tmp_path, mib=24) as disk:
        state = disk / "state"
        recipe = marker_recipe(tmp_path, parts=None, rate_hz=50, deadline_ms=2_000)
        calibrate_marker(recipe, state)
        # The log of the line is beside the state directory, where a user has it too: it may not stop the line either.
        with RunningLine(recipe, state, runtime_dir) as line, Listener(line.endpoint) as heard:
            wait_until(lambda: len(heard.verdicts) > 10)
            plug = fill(disk)
            wait_until(lambda: heard.state is GateState.NOT_READY)
            assert any("the disk is full" in t for t in heard.trouble)
            held_at = len(heard.verdicts)
            time.sleep(3.0)  # longer than any deadline
            assert len(heard.verdicts) == held_at, "nothing goes out that is not in the journal"
            assert heard.state is GateState.NOT_READY, "and the line says so all the while"
            plug.unlink()
            wait_until(lambda: heard.state is GateState.READY)
            passes = sum(v.decision is Decision.PASS for v in heard.verdicts)
            wait_until(lambda: sum(v.decision is Decision.PASS for v in heard.verdicts) > passes + 10)
            assert line.stop() == 0
            assert "process_died" not in line.log.read_text()
        journaled = journal_verdicts(state)
    assert [v.seq for v in journaled] == list(range(1, len(journaled) + 1))
    assert len({v.part for v in journaled}) == len(journaled), "each part has one record"
    by_seq = {v.seq: v for v in journaled}
    assert all(by_seq[v.seq] == v for v in heard.verdicts), "what was published is in the journal, and nothing else"
    held = [v for v in journaled if v.late]
    assert held, "parts were held back past their deadline"
    assert all(v.decision is not Decision.PASS for v in held)
