"""Many recordings at once: every one has its row, whatever happens to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge.cli.fleet import recording_paths, require_one
from edge.errors import MasklineError
from edge.replay.compare import Outcome, compare
from edge.replay.fleet import TRIES, Lost, Row, State, ThisBox, row_of, run_fleet
from edge.replay.fleet_report import figures, report_text, summary_lines
from edge.replay.outcome import outcome
from edge.replay.run import ReplayResult
from edge.testing import wait_until
from edge.verdict import Reason
from tests.replay import fleet_work
from tests.replay.fleet_recordings import PARTS, Fleet, descendants, record_fleet
from tests.replay.verdict_helpers import refused, verdict

PATHS = [Path(f"{name}.mcap") for name in "abcde"]


@pytest.fixture
def scratch(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of replays are made; short, because sockets lie in them."""
    monkeypatch.setenv("TMPDIR", str(runtime_dir))
    monkeypatch.setattr("tempfile.tempdir", str(runtime_dir))
    return runtime_dir


def _folders(scratch: Path) -> list[Path]:
    return list(scratch.iterdir())


def _written(path: Path) -> bool:
    return path.exists() and bool(path.read_text())


def _wait_until_gone(pid: int) -> None:
    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_until(gone)


class Scripted:
    """A pool that answers last in, first out, and dies as often as it is told to."""

    def __init__(self, at_once: int, deaths: dict[Path, int] | None = None) -> None:
        self.at_once, self.deaths = at_once, dict(deaths or {})
        self.running: list[Path] = []
        self.most, self.closed = 0, False

    def start(self, recording: Path) -> None:
        self.running.append(recording)
        self.most = max(self.most, len(self.running))

    def wait(self) -> tuple[Path, Row | Lost]:
        recording = self.running.pop()
        if self.deaths.get(recording, 0):
            self.deaths[recording] -= 1
            return recording, Lost("its process was killed (SIGKILL)")
        return recording, Row(str(recording), State.SAME)

    def close(self) -> None:
        self.closed = True


def test_each_recording_has_one_row_in_the_order_that_was_asked_for() -> None:
    pool, told = Scripted(at_once=3), []
    rows = run_fleet([*PATHS, PATHS[0]], pool, told.append)
    assert [r.recording for r in rows] == [str(p) for p in PATHS]
    assert sorted(told, key=lambda r: r.recording) == rows
    assert [r.recording for r in told] != [r.recording for r in rows]  # they did not end in this order
    assert pool.most == 3
    assert pool.closed


def test_a_lost_replay_is_tried_again_and_then_named() -> None:
    pool = Scripted(2, {PATHS[1]: TRIES - 1, PATHS[3]: TRIES, PATHS[4]: 100})
    rows = run_fleet(PATHS, pool)
    assert [r.state for r in rows] == [State.SAME, State.SAME, State.SAME, State.LOST, State.LOST]
    assert [r.tries for r in rows] == [1, TRIES, 1, TRIES, TRIES]
    assert rows[3].said == "its process was killed (SIGKILL)"
    assert pool.deaths[PATHS[4]] == 100 - TRIES  # and not once more
    lines = summary_lines(rows)
    assert lines[0] == "5 recordings: 3 same, 2 lost"
    assert f"  lost: d.mcap: its process was killed (SIGKILL) (tried {TRIES} times)" in lines
    assert figures(rows, 1.0)["fleet.started_again"] == 3 * (TRIES - 1)


def test_an_interrupt_closes_the_pool() -> None:
    def interrupt(row: Row) -> None:
        raise KeyboardInterrupt

    pool = Scripted(2)
    with pytest.raises(KeyboardInterrupt):
        run_fleet(PATHS, pool, interrupt)
    assert pool.closed


def test_the_report_names_every_recording_and_every_difference() -> None:
    rows = [
        Row("a.mcap", State.SAME, parts=3, decisions=(("PASS", 2), ("REJECT", 1)), compared=3, answers="0" * 64),
        Row("b.mcap", State.DIFFERENT, parts=3, compared=3, different=1, turned=1, differences="b.mcap: line\n\nx 1\n"),
        Row("c.mcap", State.FAILED, "c.mcap: no recording", machine="node7"),
        *(Row(f"{n}.mcap", State.FAILED, "unreadable") for n in range(100)),
    ]
    text = report_text(rows)
    assert text.startswith("103 recordings: 1 same, 1 different, 101 failed\n6 parts: 2 PASS, 1 REJECT\n")
    assert "same: a.mcap: 3 parts: 2 PASS, 1 REJECT; 0 of 3 different; answers 0000000000000000\n" in text
    assert "failed: c.mcap: no recording\n" in text
    assert "failed: 99.mcap: unreadable\n" in text
    assert text.endswith("\nb.mcap: line\n\nx 1\n")
    assert len(summary_lines(rows)) < 30  # on the terminal they are cut short
    assert summary_lines(rows)[-1] == "  and 82 more"
    assert figures(rows, 2.0)["fleet.failed"] == 101
    there = [replace(rows[0], machine="node8"), *rows[1:]]  # only where there is more than one machine
    assert "failed: c.mcap: no recording (on node7)\n" in report_text(there)


def test_a_row_tells_what_the_replay_told() -> None:
    recorded, now = (
        [{"lane": "l", "part": n, "decision": d, "reason": None, "views": []} for n, d in enumerate(those)]
        for those in (["PASS", "PASS", "REJECT"], ["PASS", "REJECT", "REJECT"])
    )
    result = ReplayResult("a.mcap", "line", now, compare(recorded, now), ("a note",), seconds=1.0)
    row = row_of(Path("a.mcap"), result, what_if=False)
    assert (row.state, row.parts, row.compared, row.different, row.turned) == (State.DIFFERENT, 3, 3, 1, 1)
    assert row.decisions == (("PASS", 1), ("REJECT", 2))
    assert "l 1\n  decision: expected 'PASS', found 'REJECT'" in row.differences
    assert row.notes == ("a note",)
    asked = row_of(Path("a.mcap"), result, what_if=True)
    assert (asked.state, asked.turned, asked.differences) == (State.REPLAYED, 1, "")
    same = row_of(Path("a.mcap"), replace(result, comparison=compare(now, now)), what_if=False)
    assert (same.state, same.answers) == (State.SAME, row.answers)
    alone = row_of(Path("a.mcap"), replace(result, comparison=None), what_if=False)
    assert (alone.state, alone.answers) == (State.REPLAYED, row.answers)
    other = row_of(Path("a.mcap"), replace(result, outcomes=recorded), what_if=False)
    assert other.answers != row.answers


def test_a_recording_of_which_all_parts_are_apart_is_not_the_same() -> None:
    recorded, now = [outcome(verdict(1, refused(Reason.DEADLINE)))], [outcome(verdict(1))]
    result = ReplayResult("a.mcap", "line", now, compare(recorded, now), (), seconds=1.0)
    row = row_of(Path("a.mcap"), result, what_if=False)
    assert (row.state, row.compared, row.different, row.apart) == (State.UNCOMPARED, 0, 0, 1)
    assert not row.state.good
    assert summary_lines([row])[0] == "1 recordings: 1 uncompared"
    assert "uncompared: a.mcap: 1 parts: 1 PASS; 1 apart; answers" in report_text([row])
    assert figures([row], 1.0)["fleet.uncompared"] == 1
    assert row_of(Path("a.mcap"), result, what_if=True).state is State.REPLAYED


def test_many_differences_are_counted_and_not_all_kept() -> None:
    def parts(decision: str) -> list[Outcome]:
        return [{"lane": "l", "part": n, "decision": decision, "reason": None, "views": []} for n in range(3000)]

    found = compare(parts("PASS"), parts("REJECT"))
    row = row_of(Path("a.mcap"), ReplayResult("a.mcap", "line", parts("REJECT"), found, (), 1.0), what_if=False)
    assert (row.different, row.turned) == (3000, 3000)
    assert row.differences.count("expected 'PASS'") == 1000
    assert row.differences.endswith("and 2000 differences more; replay this recording alone\n")


def test_a_process_that_dies_costs_one_try_and_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    rows = run_fleet(paths, ThisBox(fleet_work.die_once, 2))
    assert [(r.state, r.tries) for r in rows] == [(State.SAME, 2)] * 2
    assert len({r.notes for r in rows}) == 2  # a folder of its own for each
    assert not any(Path(r.notes[0]).exists() for r in rows)
    (row,) = run_fleet([tmp_path / "c"], ThisBox(fleet_work.die, 1))
    assert (row.state, row.tries) == (State.LOST, TRIES)
    assert "SIGKILL" in row.said
    assert not _folders(scratch)


def test_closing_ends_what_runs_and_what_it_started(tmp_path: Path, scratch: Path) -> None:
    pool = ThisBox(fleet_work.leave_a_child, 1)
    pool.start(tmp_path / "pid")
    try:
        wait_until(lambda: _written(tmp_path / "pid"))
        assert len(_folders(scratch)) == 1
    finally:
        pool.close()
    _wait_until_gone(int((tmp_path / "pid").read_text()))
    assert not _folders(scratch)


def test_whoever_kills_the_run_kills_its_replays(tmp_path: Path, scratch: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edge.replay.fleet import ThisBox, run_fleet; "
        "from tests.replay import fleet_work; run_fleet([Path(sys.argv[1])], ThisBox(fleet_work.leave_a_child, 1))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")])
    try:
        wait_until(lambda: _written(tmp_path / "pid"))
    finally:
        run.kill()
        run.wait()
    _wait_until_gone(int((tmp_path / "pid").read_text()))
    assert len(_folders(scratch)) == 1  # nobody was left to take it away


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["b.mcap", "a.mcap"], ["b.mcap", "a.mcap"]),
        (["*.mcap"], ["[1].mcap", "a.mcap", "b.mcap"]),
        (["a.mcap"] * 2, ["a.mcap"]),
        (["[1].mcap"], ["[1].mcap"]),
        (["missing.mcap"], ["missing.mcap"]),
    ],
)
def test_recordings_are_named_or_matched(
    given: list[str], found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.mcap", "a.mcap", "[1].mcap", "other.txt"):
        (tmp_path / name).touch()
    assert recording_paths(given) == [Path(f) for f in found]


def test_a_pattern_that_matches_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match=r"none-\*\.mcap: no file matches"):
        recording_paths([str(tmp_path / "none-*.mcap")])


def test_options_for_one_recording_are_refused() -> None:
    require_one(out=None, update_reference=False)
    with pytest.raises(MasklineError, match="--update-reference is for one recording"):
        require_one(out=None, update_reference=True)
    said = _maskline("replay", "a.mcap", "b.mcap", "--diff", "d.txt", cwd=Path("/"))
    assert said.returncode == 1
    assert "--diff is for one recording" in said.stderr


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return record_fleet(tmp_path_factory.mktemp("fleet"))


@pytest.mark.line
def test_several_at_once_say_what_one_after_the_other_says(fleet: Fleet, tmp_path: Path, scratch: Path) -> None:
    said = _maskline("replay", fleet.pattern, "--compare", "--workers", "3", "--json", "figures.json", cwd=tmp_path)
    assert said.returncode == 1, said.stderr
    assert [r.state for r in fleet.serial] == [State.SAME, State.DIFFERENT, State.FAILED, State.SAME]
    assert (tmp_path / "replays.txt").read_text() == report_text(fleet.serial)
    assert "4 recordings: 2 same, 1 different, 1 failed" in said.stdout
    assert "2 of 4 recordings are not as expected, or could not be compared or replayed: replays.txt" in said.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["fleet.recordings"], found["fleet.parts"], found["fleet.same"]) == (4, 3 * PARTS, 2)
    assert not _folders(scratch)


@pytest.mark.line
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_running(stop: signal.Signals, fleet: Fleet, tmp_path: Path, scratch: Path) -> None:
    command = [sys.executable, "-m", "edge.cli", "replay", str(fleet.slow), str(fleet.recordings[0]), "--speed", "1"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any(" edge judge" in command for command in descendants(run.pid).values()))
        begun = descendants(run.pid)
        run.send_signal(stop)
        _, error = run.communicate(timeout=100)
    finally:
        run.kill()
        run.wait()
    assert run.returncode != 0
    assert "Traceback" not in error
    for pid in begun:
        _wait_until_gone(pid)
    assert not _folders(scratch)
    assert not (tmp_path / "replays.txt").exists()


def _maskline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
