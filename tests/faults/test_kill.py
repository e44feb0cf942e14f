"""Processes of a running line die or hang, one after the other. Whatever dies: every part that was seen gets exactly
one final record, no PASS is for a bad part or made from another part's pixels, and what is published stands in the
journal.

MASKLINE_FAULT_ROUNDS=N repeats the storm N times in one run.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from edge.journal import open_for_reading
from edge.journal.heads import heads_path
from edge.journal.verify import verify
from edge.messages import Verdict, encode
from edge.paths import journal_path
from edge.sources.truth import truth_is_bad
from edge.verdict import Decision
from tests.listeners import Listener
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe, wait_until

ROUNDS = int(os.environ.get("MASKLINE_FAULT_ROUNDS", "1"))
STORM = "supervision = { restarts = 1000, window_s = 60 }"
NAMES = ("gate", "channel", "prepare", "detect", "judge", "archive", "record", "capture.s0", "capture.s1")


def passes(heard: Listener) -> int:
    return sum(v.decision is Decision.PASS for v in heard.verdicts)


def assert_ledger_is_whole(state_dir: Path, published: list[Verdict]) -> Counter[str]:
    """The invariants, read from the journal; returns how often each decision and reason occurs."""
    db = open_for_reading(journal_path(state_dir))
    unanswered = db.execute(
        "SELECT count(*) FROM (SELECT DISTINCT run, lane, number FROM triggers) t "
        "LEFT JOIN verdicts v ON v.run = t.run AND v.lane = t.lane AND v.part = t.number WHERE v.seq IS NULL"
    ).fetchone()[0]
    journal = {row[0]: row[1] for row in db.execute("SELECT seq, payload FROM verdicts")}
    db.close()
    assert unanswered == 0
    checked = verify(journal_path(state_dir), [heads_path(journal_path(state_dir))])
    assert checked.ok, checked.troubles
    assert sorted(journal) == list(range(1, len(journal) + 1)), "seq has gaps"
    for verdict in published:
        assert journal[verdict.seq] == encode(verdict), "published bytes differ from the journal's"
    seen: set[tuple[int, str, int]] = set()
    counts: Counter[str] = Counter()
    for verdict in journal_verdicts(state_dir):
        assert (verdict.run, verdict.lane, verdict.part) not in seen, "two final records for one part"
        seen.add((verdict.run, verdict.lane, verdict.part))
        for view in verdict.views:
            assert view.witness in (None, verdict.part), "a verdict from another part's pixels"
        if verdict.decision is Decision.PASS:
            assert not truth_is_bad(7, verdict.part, 0.3), "false PASS"
            assert not verdict.late
        counts[verdict.reason.value if verdict.reason else verdict.decision.value] += 1
    return counts


@pytest.mark.line
@pytest.mark.timeout(600 * ROUNDS)
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
def test_each_process_in_turn(tmp_path: Path, runtime_dir: Path, sig: signal.Signals) -> None:
    recipe = marker_recipe(
        tmp_path, stations=2, parts=None, rate_hz=20, deadline_ms=2000, extra=f"{STORM}\n[recording]"
    )
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: passes(heard) > 5)
        for name in NAMES * ROUNDS:
            victim, before = line.children()[name], passes(heard)
            os.kill(victim, sig)
            wait_until(lambda n=name, v=victim: line.children().get(n, v) != v)
            wait_until(lambda b=before: passes(heard) > b + 10)
        assert line.stop() == 0
    counts = assert_ledger_is_whole(tmp_path / "state", heard.verdicts)
    assert counts["PASS"] > 10 * len(NAMES)
    assert counts["REJECT"] > 0


@pytest.mark.line
@pytest.mark.timeout(600 * ROUNDS)
def test_supervisor_killed(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=50, deadline_ms=2000)
    calibrate_marker(recipe, tmp_path / "state")
    for _ in range(ROUNDS + 1):
        with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
            wait_until(lambda h=heard: passes(h) > 5)
            children = line.children()
            line.popen.kill()
            line.wait()
            for pid in children.values():
                wait_until(lambda p=pid: not _alive(p))
        for verdict in heard.verdicts:
            assert verdict.decision is not Decision.PASS or not truth_is_bad(7, verdict.part, 0.3)
    _leave_an_open_trigger(tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: passes(heard) > 0)
        assert line.stop() == 0
    counts = assert_ledger_is_whole(tmp_path / "state", [])
    assert counts["restart"] >= 1


@pytest.mark.line
@pytest.mark.timeout(600 * ROUNDS)
def test_detect_killed_while_frames_wait_for_others(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stations share batches that are never full: whenever detect dies, some frames lie there and wait."""
    monkeypatch.setenv("MASKLINE__ENGINE__BATCH", "64")
    recipe = marker_recipe(tmp_path, stations=2, parts=None, rate_hz=10, deadline_ms=2000, extra=STORM)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        for _ in range(2 * ROUNDS):
            before = passes(heard)
            wait_until(lambda b=before: passes(heard) > b + 10)
            os.kill(line.children()["detect"], signal.SIGKILL)
        before = passes(heard)
        wait_until(lambda: passes(heard) > before + 10)
        assert line.stop() == 0
    counts = assert_ledger_is_whole(tmp_path / "state", heard.verdicts)
    assert counts["REJECT"] > 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _leave_an_open_trigger(state_dir: Path) -> None:
    """What a gate leaves that dies between a trigger and its verdict; a kill hits that moment only by luck."""
    db = sqlite3.connect(journal_path(state_dir))
    with db:
        db.execute("INSERT INTO triggers SELECT max(run), 's0', 999999, 's0', 1, 1, 0, NULL, NULL FROM runs")
    db.close()
