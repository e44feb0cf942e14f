"""Retirement: segment and journal together hold every record, whatever dies when."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_helpers import HOUR_NS, T0_NS, keep_heads, leave_journal, rechain, tamper, write_verdicts

import edge.journal.retire
import edge.journal.select
from edge.audit import audit_path
from edge.audit import verify as verify_audit
from edge.errors import ResourceError
from edge.journal import Journal, first_seq, newest, open_for_reading
from edge.journal.heads import heads_path, read_heads
from edge.journal.retire import Retired, retire
from edge.journal.schema import LOST_AT_MOST
from edge.journal.verify import verify

TABLES = ("verdicts", "triggers", "late_results")


def everything(*paths: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of these journals, each table sorted."""
    rows: dict[str, list[tuple[object, ...]]] = {}
    for path in paths:
        with closing(open_for_reading(path)) as db:
            for table in TABLES:
                rows.setdefault(table, []).extend(db.execute(f"SELECT * FROM {table}"))
    return {table: sorted(found, key=repr) for table, found in rows.items()}


def order(path: Path, before_seq: int, folder: Path) -> Retired | None:
    """Retire everything before a verdict."""
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        return retire(journal, T0_NS + before_seq * HOUR_NS, folder, line="test", who="a test")


def test_old_verdicts_leave_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    heads = leave_journal(path, 20, runs=4, open_triggers=2)
    before = everything(path)
    kept = keep_heads(tmp_path / "kept.heads", _epoch(path), heads)

    made = order(path, 11, tmp_path / "old")
    assert made is not None
    assert (made.first, made.last) == (1, 10)
    assert made.sha256 == hashlib.sha256(made.file.read_bytes()).hexdigest()
    assert made.file.with_suffix(".sha256").read_text() == f"{made.sha256}  {made.file.name}\n"
    assert everything(path, made.file) == before, "nothing is lost, and nothing is there twice"
    with closing(open_for_reading(path)) as db:
        assert first_seq(db) == 11
        assert db.execute("SELECT min(seq), max(seq), count(*) FROM verdicts").fetchone() == (11, 20, 10)
        assert db.execute("SELECT count(*) FROM triggers WHERE number >= 1000000").fetchone() == (2,), "open ones stay"
        assert [r[0] for r in db.execute("SELECT run FROM runs ORDER BY run")] == [3, 4]
        stone = db.execute("SELECT first_seq, last_seq, chain_before, chain_after, who FROM retired").fetchone()
        assert stone == (1, 10, heads[0].chain, heads[10].chain, "a test")
    found = verify(path, [kept], [made.file])
    assert found.ok, (found.troubles, [s.troubles for s in found.segments])
    assert (found.records, found.first, found.last, found.proved) == (10, 11, 20, 20)
    assert found.segments[0].records == 10
    assert found.segments[0].proved == 10
    by_itself = verify(made.file, [heads_path(made.file)])
    assert by_itself.ok, by_itself.troubles
    trail = audit_path(tmp_path)
    assert json.loads(trail.read_text().splitlines()[-1])["what"] == "journal_retire"
    assert not verify_audit(trail).troubles


@pytest.mark.parametrize("steps", [[9], [4, 9], [8, LOST_AT_MOST + 10], [LOST_AT_MOST + 10], [LOST_AT_MOST + 99]])
def test_numbers_that_were_skipped_behind_a_power_cut_are_no_hole(tmp_path: Path, steps: list[int]) -> None:
    path = tmp_path / "journal.sqlite"
    heads = leave_journal(path, 7)
    with tamper(path) as db:
        db.execute("INSERT INTO meta VALUES ('written_in', 'a boot that ended in a power cut')")
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        heads += write_verdicts(journal, 5)[1:]
    assert [h.seq for h in heads[-6:]] == [7, *range(LOST_AT_MOST + 8, LOST_AT_MOST + 13)]
    before = everything(path)
    kept = keep_heads(tmp_path / "kept.heads", _epoch(path), heads)
    made = [retired.file for step in steps if (retired := order(path, step, tmp_path / "old"))]
    assert len(made) == len(steps)
    assert everything(path, *made) == before
    found = verify(path, [kept], made)
    assert found.ok, (found.troubles, [s.troubles for s in found.segments])
    with closing(open_for_reading(path)) as db:
        assert newest(db) == heads[-1]
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        assert write_verdicts(journal, 1)[-1].seq == heads[-1].seq + 1


def test_a_power_cut_before_the_next_verdict_skips_on_and_retires(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    leave_journal(path, 7)
    for boot in ("one boot", "another"):
        with tamper(path) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('written_in', ?)", (boot,))
        with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
            write_verdicts(journal, 0)
    made = order(path, 99, tmp_path / "old")
    assert made is not None
    assert made.last == 7
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        assert write_verdicts(journal, 1)[-1].seq == 8 + 2 * LOST_AT_MOST
    found = verify(path, [heads_path(path)], [made.file])
    assert found.ok, found.troubles
    assert found.skipped == [(8, 7 + LOST_AT_MOST), (8 + LOST_AT_MOST, 7 + 2 * LOST_AT_MOST)]


def _epoch(path: Path) -> str:
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        return journal.epoch


def test_segments_follow_each_other_and_a_journal_may_be_emptied(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    heads = leave_journal(path, 12)
    kept = keep_heads(tmp_path / "kept.heads", _epoch(path), heads)
    segments = [order(path, seq, tmp_path / "old") for seq in (5, 12, 99)]
    assert [(s.first, s.last) for s in segments if s] == [(1, 4), (5, 11), (12, 12)]
    assert order(path, 99, tmp_path / "old") is None, "nothing is left"
    files = [s.file for s in segments if s]
    assert verify(path, [kept], files).ok
    with closing(open_for_reading(path)) as db:
        assert newest(db) == heads[12]
        assert first_seq(db) == 13
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        assert journal.head == heads[12], "the chain and the numbers go on"
        assert journal.last_seq() == 12
        assert journal.last_topic_seq("a") == 12
        assert journal.last_topic_seq("b") == 11
        write_verdicts(journal, 3)
    found = verify(path, [kept, heads_path(path)], files)
    assert found.ok, found.troubles
    assert (found.first, found.last) == (13, 15)


def test_a_trigger_of_another_lane_with_the_same_number_stays(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    leave_journal(path, 4)
    with tamper(path) as db:  # part 2 of lane b is open, part 2 of lane a has its verdict
        db.execute("INSERT INTO triggers VALUES (1, 'b', 2, 'b', 1, 1, 0, NULL, NULL)")
    made = order(path, 9, tmp_path / "old")
    assert made is not None
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        assert [(t.station, t.number) for t in journal.open_triggers()] == [("b", 2)]
    assert len(everything(made.file)["triggers"]) == 4


def test_the_first_verdict_that_stays_keeps_all_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    leave_journal(path, 10)
    with tamper(path) as db:  # the clock was set forward for a while
        db.execute("UPDATE verdicts SET decided_utc_ns = ? WHERE seq IN (4, 5)", (T0_NS + 500 * HOUR_NS,))
    assert order(path, 0, tmp_path / "old") is None
    made = order(path, 8, tmp_path / "old")
    assert made is not None
    assert (made.first, made.last) == (1, 3)


def test_a_journal_that_was_changed_is_not_retired(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    leave_journal(path, 10)
    with tamper(path) as db:
        db.execute("UPDATE verdicts SET payload = ? WHERE seq = 3", (b"forged",))
        rechain(db)
    before = everything(path)
    with pytest.raises(ResourceError, match=r"record 3 .*nothing was deleted"):
        order(path, 8, tmp_path / "old")
    assert everything(path) == before
    with closing(open_for_reading(path)) as db:
        assert first_seq(db) == 1


def test_a_segment_or_a_tombstone_that_was_changed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    heads = leave_journal(path, 10)
    kept = keep_heads(tmp_path / "kept.heads", _epoch(path), heads)
    made = order(path, 6, tmp_path / "old")
    assert made is not None
    os.chmod(made.file, 0o600)
    with tamper(made.file) as db:
        db.execute("UPDATE verdicts SET score = 0.3 WHERE seq = 2")
    found = verify(path, [kept], [made.file])
    assert not found.ok
    assert any("record 2 " in t for t in found.segments[0].troubles)
    assert any("no tombstone" in t for t in found.segments[0].troubles)
    for column, value in (("chain_after", b"0" * 32), ("last_seq", 6), ("chain_before", b"1" * 32), ("first_seq", 2)):
        forged = Path(shutil.copy(path, tmp_path / "forged.sqlite"))
        with tamper(forged) as db:
            db.execute(f"UPDATE retired SET {column} = ?", (value,))
        assert not verify(forged, [kept]).ok, column


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 14), min_size=1, max_size=4), st.integers(1, 3))
def test_segments_and_journal_together_are_always_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, orders: list[int], runs: int
) -> None:
    folder = tmp_path_factory.mktemp("retire")
    path = folder / "journal.sqlite"
    heads = leave_journal(path, 12, runs=runs, open_triggers=1)
    before = everything(path)
    made = [m for seq in orders if (m := order(path, seq, folder / "old"))]
    kept = keep_heads(folder / "kept.heads", _epoch(path), heads)
    found = verify(path, [kept], [m.file for m in made])
    assert found.ok, (found.troubles, [s.troubles for s in found.segments])
    assert everything(path, *(m.file for m in made)) == before
    shutil.rmtree(folder)


KILLED = '''
"""Retires in children that die at the nth thing that reaches the disk; prints how many such things there are."""
import os, shutil, signal, sqlite3, sys
from contextlib import closing
from pathlib import Path
import edge.journal.retire as retirement
import edge.journal.select, edge.journal.heads, edge.paths
from edge.journal import Journal

folder, hour, t0 = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
retirement.PAGE = 3

def die_at(step):
    steps = 0
    def counted(function):
        def call(*arguments, **named):
            nonlocal steps
            steps += 1
            mine = steps
            done = function(*arguments, **named)
            if mine == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        return call
    os.fsync, os.replace, os.chmod = counted(os.fsync), counted(os.replace), counted(os.chmod)
    Journal.write, Journal.empty_log = counted(Journal.write), counted(Journal.empty_log)
    execute = retirement._delete_some
    def halfway(db):
        db.set_trace_callback(lambda sql: counted(lambda: None)() if sql.startswith("DELETE") else None)
        return execute(db)
    retirement._delete_some = halfway

step = 0
while True:
    step += 1
    here = folder / str(step)
    here.mkdir()
    shutil.copy(folder / "journal.sqlite", here)
    shutil.copy(folder / "journal.heads", here)
    child = os.fork()
    if child == 0:
        die_at(step)
        journal = Journal(here / "journal.sqlite", commit_interval_ms=100, reserve_mib=1)
        retirement.retire(journal, t0 + 9 * hour, here / "old", line="test", who="a test")
        journal.close()
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(step)
'''


def test_a_retirement_killed_at_any_step_loses_nothing_and_is_finished_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    heads = leave_journal(path, 12, runs=3, open_triggers=1)
    before = everything(path)
    kept = keep_heads(tmp_path / "kept.heads", _epoch(path), heads)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(HOUR_NS), str(T0_NS)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout.splitlines()[-1])
    assert steps > 30, "deaths between writing, proving, the tombstone and each deletion"
    seen = set()
    for step in range(1, steps + 1):
        here = tmp_path / str(step)
        journal = here / "journal.sqlite"
        with closing(open_for_reading(journal)) as db:
            first = first_seq(db)
            left = db.execute("SELECT count(*) FROM verdicts WHERE seq < ?", (first,)).fetchone()[0]
        seen.add((first, left))
        segments = sorted((here / "old").glob("*.sqlite")) if first > 1 else []
        found = verify(journal, [kept], segments)
        assert found.ok, (step, found.troubles, [s.troubles for s in found.segments])
        assert found.left_over == left
        together = everything(journal, *segments)
        assert {t: sorted(set(rows), key=repr) for t, rows in together.items()} == before, step

        made = order(journal, 9, here / "old")  # the next one finishes it
        segments = sorted((here / "old").glob("*.sqlite"))
        assert len(segments) == 1
        assert (made is None) == (first > 1)
        assert everything(journal, *segments) == before, step
        found = verify(journal, [kept], segments)
        assert found.ok, (step, found.troubles)
        assert not found.left_over
        assert all(h.seq > 8 for h in read_heads(heads_path(journal)))
        assert not list((here / "old").glob("*.part"))
    assert {(1, 0), (9, 8), (9, 0)} <= seen
    assert any(0 < left < 8 for _, left in seen)


def test_a_full_disk_under_the_segment_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    leave_journal(path, 6)
    before = everything(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    steps: list[tuple[object, str]] = [(edge.journal.retire, "put_in_place"), (edge.journal.retire, "write_durably")]
    for module, name in steps:
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            with pytest.raises(ResourceError, match="No space left on device; nothing was deleted"):
                order(path, 9, tmp_path / "old")
        assert everything(path) == before
    assert order(path, 9, tmp_path / "old") is not None


def test_a_segment_is_read_back_before_anything_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    leave_journal(path, 6)
    leaving: Callable[..., object] = edge.journal.retire._leaving
    calls = []

    def forgetful(db: object, first: int, last: int) -> object:
        calls.append(1)
        for table, rows in leaving(db, first, last):  # type: ignore[attr-defined]
            yield table, rows[1:] if len(calls) == 2 and table == "late_results" else rows

    with tamper(path) as db:
        db.execute("INSERT INTO late_results VALUES (1, 'a', 2, 'PASS', NULL, 0.5, NULL, 1, 1)")
    before = everything(path)
    monkeypatch.setattr(edge.journal.retire, "_leaving", forgetful)
    with pytest.raises(ResourceError, match="what was read back is not what was written"):
        order(path, 9, tmp_path / "old")
    assert everything(path) == before
