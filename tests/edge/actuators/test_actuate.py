"""The whole way: a part on the belt, its picture, its verdict, the ejector, a bin. Real processes on a simulated
conveyor, whose word on where each part ended is the truth."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.actuators.belt import BeltSettings, End
from edge.actuators.conveyor import Conveyor
from edge.actuators.panel import read_status
from edge.bench.conveyor_line import LINE
from edge.settings import Frame
from tests.conveyor_line import ACTUATOR, ConveyorLine, assert_nothing_escaped, conveyor_recipe

pytestmark = pytest.mark.line

ENDLESS = BeltSettings()
COMMISSIONING = 'commissioning = { line_ok = "toggles" }'


def passes_more(it: ConveyorLine, parts: int = 4) -> None:
    """Wait until so many more parts are in the good bin."""
    before = len(it.ended(End.GOOD))
    it.wait_for(lambda: len(it.ended(End.GOOD)) >= before + parts)


def maskline(it: ConveyorLine, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command about this line's actuators, as a user types it."""
    command, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", "actuators", command, str(it.recipe), *rest, "--state-dir", it.state_dir],
        env=os.environ | {"MASKLINE_RUNTIME_DIR": str(it.runtime_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_good_parts_reach_the_good_bin_and_no_others(tmp_path: Path, runtime_dir: Path) -> None:
    """A hundred parts, and the actuator is killed in the middle."""
    with ConveyorLine(tmp_path, runtime_dir, BeltSettings(parts=100)) as it:
        passes_more(it, 20)
        it.actuator.kill()
        it.wait_for(lambda: not it.conveyor.running)
        it.start_actuator()
        it.wait_for(lambda: it.conveyor.empty)
        assert it.actuator.stop() == 0, it.actuator.log.read_text()
        assert it.line.stop() == 0, it.line.log.read_text()
    assert_nothing_escaped(it)
    parts = it.conveyor.truth()
    assert len(parts) == 100
    good = [p for p in parts if not p.bad]
    assert len(it.ended(End.GOOD)) > len(good) - 35, it.actuator.log.read_text()


@pytest.mark.parametrize("by", ["id", "time"])
def test_other_ways_to_know_which_part_is_which(tmp_path: Path, runtime_dir: Path, by: str) -> None:
    with ConveyorLine(tmp_path, runtime_dir, BeltSettings(part_ids=by == "id"), by=by) as it:
        passes_more(it, 10)
        it.line.stop()
    assert_nothing_escaped(it)


def test_an_ejector_that_rests_at_pass(tmp_path: Path, runtime_dir: Path) -> None:
    """An air blast for whatever has no PASS. On a slow belt: firing late would be an escape, and is a fault."""
    place = {"spacing_mm": 120.0, "jitter_mm": 0.0, "speed_mm_s": 250.0, "sensor_mm": 200.0, "ejector_mm": 300.0}
    belt = BeltSettings(springs_to="pass", parts=10, interlock_ms=500.0, **place)
    with ConveyorLine(tmp_path, runtime_dir, belt) as it:
        it.wait_for(lambda: it.conveyor.empty)
        assert it.status()["faults"] == []
        it.line.stop()
    assert_nothing_escaped(it)
    ended = it.ended()
    assert {p.end for p in ended if p.bad} == {End.REJECT}
    assert len(it.ended(End.GOOD)) >= 3


def test_two_lanes_with_an_ejector_each(tmp_path: Path, runtime_dir: Path) -> None:
    """One process serves both ejectors. What goes wrong on one belt costs the other nothing."""
    settings, endpoint = BeltSettings(jitter_mm=0.0, seed=8), f"ipc://{runtime_dir}/second"
    (tmp_path / "second").mkdir()
    text = conveyor_recipe(tmp_path / "second", endpoint, settings).read_text()
    text = text[text.index("[[stations]]") :].replace('"cam"', '"second"').replace(f'"{ACTUATOR}"', '"second"')
    frame = Frame(width_px=224, height_px=224)
    with Conveyor(endpoint, settings, frame) as second, ConveyorLine(tmp_path, runtime_dir, ENDLESS, extra=text) as it:

        def pass_more() -> None:
            before = [sum(p.end is End.GOOD for p in belt.truth()) for belt in (it.conveyor, second)]
            for belt, parts in zip((it.conveyor, second), before, strict=True):
                it.wait_for(lambda b=belt, n=parts: sum(p.end is End.GOOD for p in b.truth()) >= n + 4)

        def lost(actuator: str) -> int:
            status = read_status(runtime_dir / LINE, actuator) or {}
            return int(status["counters"].get("tracking_lost", 0))

        def slip_costs_the_other() -> bool:
            before = lost(ACTUATOR), lost("second")
            second.slip(settings.spacing_mm * settings.counts_per_mm)
            it.wait_for(lambda: lost("second") > before[1])
            pass_more()
            return lost(ACTUATOR) > before[0]

        pass_more()
        assert not all(slip_costs_the_other() for _ in range(4)), "more than a machine that was held up at that moment"
        it.actuator.kill()
        it.wait_for(lambda: not it.conveyor.running and not second.running)
        it.start_actuator()
        pass_more()
        it.line.stop()
    assert_nothing_escaped(it)
    assert_nothing_escaped(it, "second", second)


def test_what_happens_on_the_belt(tmp_path: Path, runtime_dir: Path) -> None:
    """The encoder slips by a whole part either way, the belt runs backwards, parts are missed and taken."""
    with ConveyorLine(tmp_path, runtime_dir, BeltSettings(jitter_mm=0.0)) as it:
        passes_more(it)
        pitch = it.belt.spacing_mm * it.belt.counts_per_mm
        for upset in (
            lambda: it.conveyor.slip(-pitch),
            lambda: it.conveyor.slip(pitch),
            lambda: it.conveyor.reverse(400),
            lambda: it.conveyor.miss(1),
            lambda: it.conveyor.take(),
        ):
            upset()
            passes_more(it)
        it.line.stop()
    assert_nothing_escaped(it)


@pytest.mark.parametrize("stopped", ["actuator", "gate", "gate, dead under a stopped supervisor"])
def test_one_stops_and_goes_on(tmp_path: Path, runtime_dir: Path, stopped: str) -> None:
    """SIGSTOP, until the belt stands. Under a stopped supervisor a line goes on; only its dead are not replaced."""
    with ConveyorLine(tmp_path, runtime_dir, ENDLESS) as it:
        passes_more(it)
        gate = it.line.children()["gate"]
        pid = {"actuator": it.actuator.popen.pid, "gate": gate}.get(stopped, it.line.popen.pid)
        os.kill(pid, signal.SIGSTOP)
        if pid == it.line.popen.pid:
            passes_more(it)
            os.kill(gate, signal.SIGKILL)
        it.wait_for(lambda: not it.conveyor.running)
        with contextlib.suppress(ProcessLookupError):  # the supervisor has replaced it
            os.kill(pid, signal.SIGCONT)
        passes_more(it)
        it.line.stop()
    assert_nothing_escaped(it)


def test_the_panel(tmp_path: Path, runtime_dir: Path) -> None:
    """Faults latch through SIGKILL, a user resets them, and commissioning is seen."""
    belt = BeltSettings(reject_bin=3)
    with ConveyorLine(tmp_path, runtime_dir, belt, extra=f'watch = ["bin_full", "air_ok"]\n{COMMISSIONING}') as it:
        it.wait_for(lambda: it.status().get("unable") == "fault bin_full")
        it.wait_for(lambda: not it.conveyor.running)
        it.actuator.kill()
        assert "fault bin_full" in maskline(it, "status").stdout
        it.conveyor.empty_bin()
        it.start_actuator()
        it.wait_for(lambda: it.status().get("unable") == "fault bin_full")
        shown = maskline(it, "status")
        assert (shown.returncode, "the reject bin is full" in shown.stdout) == (1, True), shown.stdout
        done = maskline(it, "reset", ACTUATOR, "--why", "emptied")
        assert (done.returncode, done.stdout) == (0, f"{ACTUATOR}: reset: bin_full\n"), done.stderr
        it.wait_for(lambda: it.conveyor.running)
        refused = maskline(it, "test-fire", ACTUATOR, "--why", "a test")
        assert (refused.returncode, "needs commissioning mode" in refused.stderr) == (1, True), refused.stderr
        assert it.actuator.stop() == 0
        it.start_actuator("--commissioning")
        it.wait_for(lambda: it.status().get("commissioning") is True)
        assert "COMMISSIONING" in maskline(it, "status").stdout
        assert maskline(it, "test-fire", ACTUATOR, "--why", "a test").returncode == 0
        assert it.actuator.stop() == 0
        it.line.stop()
    audit = (it.state_dir / "audit.jsonl").read_text()
    assert [w in audit for w in ("actuator.reset", "actuator.commissioning", "actuator.test_fire")] == [True] * 3
    assert maskline(it, "reset", ACTUATOR, "--why", "again").stdout.endswith("it does not run\n")


def test_two_processes_never_drive_one_ejector(tmp_path: Path, runtime_dir: Path) -> None:
    with ConveyorLine(tmp_path, runtime_dir, ENDLESS) as it:
        it.wait_for(lambda: bool(it.status()))
        first = it.actuator
        it.start_actuator()
        assert it.actuator.popen.wait(100) == 75
        assert "another process runs the actuator ejector" in it.actuator.log.read_text()
        assert first.stop() == 0
        assert it.status() == {}
