"""Change-over: the running line gets another recipe, and nothing is answered by two recipes or by none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from edge.audit import audit_path, verify
from edge.journal import open_for_reading
from edge.paths import journal_path
from edge.recipes import load_recipe
from edge.testing import RunningLine, journal_verdicts, wait_until
from edge.verdict import Decision, GateState, Reason
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

pytestmark = pytest.mark.line


def recipe(folder: Path, name: str, calibrated: bool = True, **fields: object) -> Path:
    """A recipe of its own name and file, for the line `test`, whose source never ends."""
    (folder / name).mkdir()
    path = marker_recipe(folder / name, parts=None, rate_hz=20, extra=f'name = "{name}"', **fields)  # type: ignore[arg-type]
    if calibrated:
        calibrate_marker(path, folder / "state")
    return path


def use(wanted: Path, runtime_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", "recipe", "use", str(wanted), *arguments],
        env=os.environ | {"MASKLINE_RUNTIME_DIR": str(runtime_dir)},
        capture_output=True,
        text=True,
        timeout=150,
    )


def runs(state_dir: Path) -> list[str]:
    """The hash of each run's recipe, in the order of the runs."""
    with closing(open_for_reading(journal_path(state_dir))) as db:
        return [row[0] for row in db.execute("SELECT recipe_sha256 FROM runs ORDER BY run")]


def test_the_line_changes_over_and_stays_changed(tmp_path: Path, runtime_dir: Path) -> None:
    state = tmp_path / "state"
    bottle, can = recipe(tmp_path, "bottle", deadline_ms=20_000), recipe(tmp_path, "can", deadline_ms=19_000)
    hashes = [load_recipe(path).sha256 for path in (bottle, can)]
    with RunningLine(bottle, state, runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 5)
        done = use(can, runtime_dir)
        assert done.returncode == 0, done.stderr + line.log.read_text()
        assert hashes[1][:12] in done.stdout
        wait_until(lambda: sum(v.recipe == hashes[1] for v in heard.verdicts) > 5)
        line.popen.send_signal(signal.SIGKILL)
        line.popen.wait()
    between = [b for b in heard.beats if b.state is GateState.NOT_READY and any("change-over" in t for t in b.trouble)]
    assert between, "while it changes over, it says so"
    assert GateState.STOPPING not in {b.state for b in heard.beats}
    with RunningLine(bottle, state, runtime_dir) as line:
        wait_until(lambda: len(runs(state)) == 3)
        wait_until(lambda: "line_ready" in line.log.read_text().split("recipe_in_use")[-1])
        assert line.stop() == 0
    assert runs(state) == [hashes[0], hashes[1], hashes[1]], "what was chosen last is what it starts with"
    verdicts = journal_verdicts(state)
    assert [v.seq for v in verdicts] == list(range(1, len(verdicts) + 1))
    assert all(v.recipe == hashes[v.run > 1] for v in verdicts if v.reason is not Reason.RESTART)
    with closing(open_for_reading(journal_path(state))) as db:
        seen = Counter(row[0] for row in db.execute("SELECT run FROM triggers"))
    assert Counter(v.run for v in verdicts) == seen, "each part that was seen has its one verdict"
    assert not verify(audit_path(state)).troubles
    record = json.loads(audit_path(state).read_text().splitlines()[-1])
    assert (record["what"], record["before"], record["sha256"]) == ("recipe.use", *hashes)


def test_parts_that_cannot_be_finished_are_said_to_be_of_the_change_over(tmp_path: Path, runtime_dir: Path) -> None:
    state = tmp_path / "state"
    bottle, can = (recipe(tmp_path, name, deadline_ms=600_000, engine="null") for name in ("bottle", "can"))
    slow = {"MASKLINE__ENGINE__NULL_DELAY_MS": "60000", "MASKLINE__DEADLINE__DRAIN_MS": "100"}
    with RunningLine(bottle, state, runtime_dir, **slow) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: bool(heard.beats) and heard.beats[-1].open > 3)
        done = use(can, runtime_dir)
        assert done.returncode == 0, done.stderr + line.log.read_text()
        line.popen.send_signal(signal.SIGKILL)
        line.popen.wait()
    first = [v for v in journal_verdicts(state) if v.run == 1 and v.reason is not Reason.OVERLOAD]
    assert first
    assert {(v.decision, v.reason) for v in first} == {(Decision.UNINSPECTED, Reason.CHANGE_OVER)}


def test_what_the_line_could_not_run_with_is_refused_and_the_line_goes_on(tmp_path: Path, runtime_dir: Path) -> None:
    state = tmp_path / "state"
    bottle, can = recipe(tmp_path, "bottle", deadline_ms=20_000), recipe(tmp_path, "can", calibrated=False)
    other_region = recipe(tmp_path, "region")
    tiling = "tiling = { region = { x_px = 0, y_px = 0, width_px = 224, height_px = 224 } }"
    other_region.write_text(other_region.read_text().replace('bundle = "marker"', f'bundle = "marker"\n{tiling}'))
    with RunningLine(bottle, state, runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 5)
        refused = use(can, runtime_dir)
        assert refused.returncode == 1
        assert "calibration.can.json: not there; first: maskline calibrate" in refused.stderr
        assert "The line goes on with the recipe bottle" in refused.stderr
        refused = use(other_region, runtime_dir)
        assert "made for another bundle or recipe for station s0" in refused.stderr
        (runtime_dir / "test" / "change_over.json").write_text("{")
        wait_until(lambda: "not a request" in line.log.read_text())
        before = len(heard.verdicts)
        wait_until(lambda: len(heard.verdicts) > before + 5)
        assert line.stop() == 0
    assert len(runs(state)) == 1
    assert not (state / "recipe_in_use.json").exists()


def test_a_line_that_does_not_run_cannot_change_over(tmp_path: Path, runtime_dir: Path) -> None:
    can = recipe(tmp_path, "can")
    refused = use(can, runtime_dir)
    assert refused.returncode == 1
    assert "cannot ask this line: No such file or directory; does it run" in refused.stderr
    (runtime_dir / "test").mkdir()
    refused = use(can, runtime_dir, "--timeout-s", "1")
    assert "nobody took the request in 1 s; does the line run?" in refused.stderr
    assert not (runtime_dir / "test" / "change_over.json").exists()


def test_a_choice_that_cannot_be_read_stops_the_start(tmp_path: Path, runtime_dir: Path) -> None:
    bottle = recipe(tmp_path, "bottle")
    (tmp_path / "state" / "recipe_in_use.json").write_text("bottle")
    with RunningLine(bottle, tmp_path / "state", runtime_dir) as line:
        assert line.wait() == 78
        assert "does not say which recipe was chosen last" in line.log.read_text()
