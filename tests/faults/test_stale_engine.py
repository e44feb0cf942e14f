"""An engine that must be built first: meanwhile the line answers, on time, that it is not ready.

The marker backend pretends that its engines have to be built (`engine.marker_build_ms`).
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from edge.messages import Verdict
from edge.verdict import Decision, GateState, Reason
from tests.faults.test_kill import assert_ledger_is_whole, passes
from tests.listeners import Listener
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe, wait_until

pytestmark = pytest.mark.line


def not_ready(heard: Listener) -> int:
    return sum(v.reason is Reason.NOT_READY for v in heard.verdicts)


def pretending(cache: Path, build_ms: int) -> dict[str, str]:
    return {"MASKLINE_CACHE_DIR": str(cache), "MASKLINE__ENGINE__MARKER_BUILD_MS": str(build_ms)}


def phases(verdicts: list[Verdict]) -> list[bool]:
    """Whether parts were inspected, with repetitions left out, and those that met the death of detect."""
    known = [v for v in sorted(verdicts, key=lambda v: v.part) if v.reason in (None, Reason.NOT_READY)]
    inspected = [v.reason is None for v in known]
    return [now for now, before in zip(inspected, [None, *inspected], strict=False) if now != before]


def test_a_line_answers_while_its_engine_is_built_and_survives_the_death_of_the_builder(
    tmp_path: Path, runtime_dir: Path
) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=10, deadline_ms=10_000)
    calibrate_marker(recipe, tmp_path / "state")
    cache = tmp_path / "cache"
    with RunningLine(recipe, tmp_path / "state", runtime_dir, **pretending(cache, 3000)) as line:
        with Listener(line.endpoint) as heard:
            wait_until(lambda: not_ready(heard) > 3)
            victim = line.children()["build"]
            assert "detect" not in line.children(), "one process has the device"
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: line.children().get("build", victim) != victim)
            wait_until(lambda: passes(heard) > 3)
            assert "build" not in line.children()
            before = not_ready(heard)
            shutil.rmtree(cache)
            os.kill(line.children()["detect"], signal.SIGKILL)
            wait_until(lambda: not_ready(heard) > before + 3)
            again = passes(heard)
            wait_until(lambda: passes(heard) > again + 3)
            assert line.stop() == 0
    assert_ledger_is_whole(tmp_path / "state", heard.verdicts)
    verdicts = journal_verdicts(tmp_path / "state")
    assert all(v.decided_ns <= v.deadline_ns for v in verdicts if v.reason is Reason.NOT_READY)
    assert phases(verdicts) == [False, True, False, True]
    assert GateState.DEGRADED in {b.state for b in heard.beats if any("the engine was stale" in t for t in b.trouble)}


def test_a_lossless_source_waits_for_the_engine(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=10, mode="lossless", deadline_ms=60_000)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir, **pretending(tmp_path / "cache", 1500)) as line:
        assert line.wait() == 0, line.log.read_text()
    verdicts = journal_verdicts(tmp_path / "state")
    assert [v.part for v in verdicts] == list(range(10))
    assert Decision.UNINSPECTED not in {v.decision for v in verdicts}


def test_an_engine_that_cannot_be_built_ends_the_line_with_a_word(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None)
    no_folder = tmp_path / "file"
    no_folder.touch()
    with RunningLine(recipe, tmp_path / "state", runtime_dir, **pretending(no_folder, 0)) as line:
        assert line.wait() == 1
        said = line.log.read_text()
    assert "was tried 3 times, and an engine is still stale" in said
    assert said.count("cannot write an engine there") == 3
    assert "Traceback" not in said
