"""`maskline journal`: what a user asks of a journal, live or not."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_helpers import HOUR_NS, T0_NS, leave_journal, tamper, verdict_of, write_verdicts

import edge.journal.export
import edge.journal.select
from edge.errors import ResourceError
from edge.journal import Journal, open_for_reading, write_turn
from edge.journal.export import export
from edge.journal.findings import parse_time, utc_text
from edge.journal.heads import heads_path
from edge.journal.select import Selection, pages
from edge.messages import Verdict, decode, encode, field_names
from edge.paths import journal_path
from tests import command
from tests.support import marker_recipe

maskline = partial(command.maskline, "journal")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a line that ran three times; nobody may change it."""
    path = tmp_path_factory.mktemp("left") / "journal.sqlite"
    leave_journal(path, 20, runs=3, open_triggers=1)
    return path


def verdicts(path: Path) -> list[Verdict]:
    with closing(open_for_reading(path)) as db:
        return [decode(row[0], Verdict) for row in db.execute("SELECT payload FROM verdicts ORDER BY seq")]


def test_times_are_utc_or_local(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    assert parse_time("2025-10-09T08:53:20Z") == T0_NS
    assert parse_time("2025-10-09T10:53:20.000001+02:00") == T0_NS + 1000
    assert utc_text(T0_NS + 1_500) == "2025-10-09T08:53:20.000001Z"
    assert parse_time(utc_text(T0_NS + 123_456_000)) == T0_NS + 123_456_000
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert parse_time("2025-10-09T04:53:20") == T0_NS
    finally:
        monkeypatch.undo()
        time.tzset()


LIMIT = st.none() | st.integers(-1, 22).map(lambda n: T0_NS + n * HOUR_NS)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        Selection,
        since_ns=LIMIT,
        until_ns=LIMIT,
        run=st.none() | st.integers(1, 3),
        lane=st.none() | st.sampled_from(["a", "b", "c"]),
        part=st.none() | st.integers(1, 20),
        part_id=st.none() | st.integers(60_001, 60_020),
        decision=st.none() | st.sampled_from(["PASS", "REJECT"]),
        reason=st.none() | st.just("deadline"),
        score_min=st.none() | st.sampled_from([0.0, 0.25, 0.5]),
        score_max=st.none() | st.sampled_from([0.25, 0.75]),
    ),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_a_query_finds_what_reading_everything_would(left: Path, chosen: Selection, page: int, index: int) -> None:
    def wanted(v: Verdict) -> bool:
        said = [
            (chosen.run, v.run),
            (chosen.lane, v.lane),
            (chosen.part, v.part),
            (chosen.part_id, v.part_id),
            (chosen.decision, v.decision.value),
            (chosen.reason, v.reason and v.reason.value),
        ]
        assert v.score is not None
        return (
            all(asked is None or asked == is_ for asked, is_ in said)
            and (chosen.since_ns is None or v.decided_utc_ns >= chosen.since_ns)
            and (chosen.until_ns is None or v.decided_utc_ns < chosen.until_ns)
            and (chosen.score_min is None or v.score >= chosen.score_min)
            and (chosen.score_max is None or v.score <= chosen.score_max)
        )

    with pytest.MonkeyPatch.context() as patched, closing(open_for_reading(left)) as db:
        db.isolation_level = None
        patched.setattr(edge.journal.select, "PAGE", page)
        patched.setattr(edge.journal.select, "UNSETTLED", 3)
        patched.setattr(edge.journal.select, "INDEX_PAGE", index)
        found = [row[0] for rows in pages(db, "seq", chosen) for row in rows]
        assert not db.in_transaction
    assert found == [v.seq for v in verdicts(left) if wanted(v)]


def test_a_time_span_is_exact_though_the_clock_was_set(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        for seq, hour in enumerate([4.5, 2, 9, 3, -5, 4, 2.5, 5], 1):
            verdict = verdict_of(seq, epoch=journal.epoch, decided_utc_ns=T0_NS + int(hour * HOUR_NS))
            journal.head = journal.write(partial(write_turn, 1, [], [], [(verdict, encode(verdict))], journal.head))
    with closing(open_for_reading(path)) as db:
        db.isolation_level = None
        chosen = Selection(since_ns=T0_NS + 2 * HOUR_NS, until_ns=T0_NS + 5 * HOUR_NS)
        assert [row[0] for rows in pages(db, "seq", chosen) for row in rows] == [1, 2, 4, 6, 7]


def test_reading_pages_lets_the_log_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pages no look at the journal is open, so a checkpoint copies everything."""
    monkeypatch.setattr(edge.journal.select, "PAGE", 5)
    monkeypatch.setattr(edge.journal.select, "UNSETTLED", 0)
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        write_verdicts(journal, 20)
        with closing(open_for_reading(path)) as db:
            db.isolation_level = None
            for _ in pages(db, "seq, payload"):
                write_verdicts(journal, 1)
                busy, in_log, copied = journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                assert (busy, in_log, copied) == (0, 0, 0)


def test_an_export_has_everything_and_is_the_same_each_time(left: Path, tmp_path: Path) -> None:
    whole = verdicts(left)
    with closing(open_for_reading(left)) as db:
        db.isolation_level = None
        chains = [row[0].hex() for row in db.execute("SELECT chain FROM verdicts ORDER BY seq")]
        for name in ("one", "two"):
            assert export(db, "verdicts", tmp_path / f"{name}.jsonl") == 20
            assert export(db, "verdicts", tmp_path / f"{name}.csv") == 20
        assert export(db, "triggers", tmp_path / "triggers.csv") == 21
        assert export(db, "late_results", tmp_path / "late.jsonl") == 2
        one_run = Selection(run=2, since_ns=T0_NS + 9 * HOUR_NS)
        assert export(db, "triggers", tmp_path / "some.jsonl", one_run) == 6
        with pytest.raises(ResourceError, match=r"ends in \.csv or \.jsonl"):
            export(db, "verdicts", tmp_path / "x.xlsx")
        with pytest.raises(ResourceError, match="cannot write this file"):
            export(db, "verdicts", tmp_path / "no" / "x.csv")
    for suffix in ("csv", "jsonl"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [line["chain"] for line in lines] == chains
    assert lines[4]["decision"] == "REJECT"
    assert lines[4]["views"][0]["engine"] == {"plan": "x1"}
    assert lines[0]["utc"] == "2025-10-09T09:53:20.000000Z"
    with (tmp_path / "one.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row, line, verdict in zip(table, lines, whole, strict=True):
        assert set(row) == set(line) == {"utc", "chain", *field_names(Verdict)}
        assert (int(row["seq"]), float(row["score"]), row["reason"]) == (verdict.seq, verdict.score, "")
        assert json.loads(row["views"]) == line["views"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_an_export_that_fails_leaves_the_old_file(left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "v.csv"
    out.write_text("old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edge.journal.export.os, "fsync", full)
    with closing(open_for_reading(left)) as db, pytest.raises(ResourceError, match="No space left"):
        export(db, "verdicts", out)
    assert [p.name for p in tmp_path.iterdir()] == ["v.csv"]
    assert out.read_text() == "old"


@pytest.fixture
def line(tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(recipe, journal) of a line that was stopped."""
    monkeypatch.setenv("MASKLINE_RUNTIME_DIR", str(runtime_dir))
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    leave_journal(journal_path(state), 20, runs=2)
    return marker_recipe(tmp_path), journal_path(state)


def test_query_prints_a_table_or_json(line: tuple[Path, Path]) -> None:
    recipe, path = line
    state = ("--state-dir", path.parent)
    done = maskline("query", recipe, *state, "--decision", "reject", "--since", "2025-10-09T18:53:20Z")
    assert done.returncode == 0, done.stderr
    rows = [text.split() for text in done.stdout.splitlines()[1:]]
    assert [row[1] for row in rows] == ["10", "15", "20"]
    assert rows[0][0] == "2025-10-09T18:53:20.000000Z"
    assert "3 verdicts" in done.stderr
    done = maskline("query", path, "--json", "--part-id", "60007")
    assert [json.loads(text)["seq"] for text in done.stdout.splitlines()] == [7]
    done = maskline("query", path, "--json", "--limit", "2", "--score-min", "0.5")
    assert [json.loads(text)["seq"] for text in done.stdout.splitlines()] == [5, 10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("query", "--since", "yesterday"), ["'yesterday'", "2026-11-22T10:00Z"]),
        (("query", "--decision", "good"), ["GOOD", "PASS, REJECT, UNINSPECTED"]),
        (("query", "--reason", "bad luck"), ["bad luck", "deadline"]),
        (("export", "--out", "x.pdf"), ["x.pdf", ".jsonl"]),
        (("verify", "--heads", "nowhere"), ["nowhere", "cannot read heads"]),
    ],
)
def test_a_mistake_is_named(left: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    done = maskline(arguments[0], left, *arguments[1:])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_what_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 100)
    for name, words in (("none.sqlite", "no journal here"), ("other.sqlite", "cannot open the journal")):
        done = maskline("tail", tmp_path / name)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_verify_says_what_it_found_and_what_it_cannot_prove(line: tuple[Path, Path]) -> None:
    recipe, path = line
    done = maskline("verify", recipe, "--state-dir", path.parent)
    assert done.returncode == 0, done.stderr
    assert "20 verdicts, 1 to 20, decided 2025-10-09T09:53:20.000000Z to 2025-10-10T04:53:20.000000Z" in done.stdout
    kept = len(heads_path(path).read_text().splitlines())  # one at the end, and one before where the writing took long
    assert f"{kept} {'head matches' if kept == 1 else 'heads match'}, the newest of verdict 20" in done.stdout
    assert "not proved: whether verdicts followed 20" in done.stdout
    assert "triggers and late results, which are not in the chain" in done.stdout
    heads_path(path).rename(path.parent / "elsewhere")
    assert "not proved: verdicts 1 to 20" in maskline("verify", path).stdout
    with tamper(path) as db:
        db.execute("UPDATE verdicts SET decision = 'PASS' WHERE seq = 5")
        db.execute("DELETE FROM verdicts WHERE seq > 17")
    done = maskline("verify", path, "--heads", path.parent / "elsewhere")
    assert done.returncode == 1
    assert "record 5 (lane b, part 5, id 60005, 2025-10-09T13:53:20.000000Z): its column decision" in done.stdout
    assert "records 18 to 20 are cut off" in done.stdout
    assert "Traceback" not in done.stderr


def test_retire_needs_a_line_that_stands_still(line: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, path = line
    order = ("retire", recipe, "--state-dir", path.parent, "--before", "2025-10-09T18:53:20Z", "--to", tmp_path / "old")
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)):
        done = maskline(*order)
    assert done.returncode == 75
    assert "line test runs, and its gate alone writes the journal: stop it, then retire" in done.stderr
    done = maskline(*order)
    assert done.returncode == 0, done.stderr
    segments = list((tmp_path / "old").glob("*.sqlite"))
    assert len(segments) == 1
    assert "verdicts 1 to 9: " in done.stdout
    assert "nothing to retire" in maskline(*order).stdout
    done = maskline("verify", path)
    assert done.returncode == 0, done.stderr
    assert "1 to 9 retired " in done.stdout
    assert "name it with --segment" in done.stdout
    done = maskline("verify", path, "--segment", segments[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 verdicts, 1 to 9" in done.stdout
    assert maskline("verify", segments[0]).returncode == 0
    done = maskline("query", segments[0], "--json")
    assert [json.loads(text)["seq"] for text in done.stdout.splitlines()] == list(range(1, 10))
    check = subprocess.run(
        ["sha256sum", "-c", segments[0].with_suffix(".sha256").name],
        cwd=tmp_path / "old",
        capture_output=True,
        timeout=100,
    )
    assert check.returncode == 0


def test_tail_shows_the_newest_and_follows_a_live_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        write_verdicts(journal, 5)
        done = maskline("tail", path, "-n", "2")
        assert [text.split()[1] for text in done.stdout.splitlines()[-2:]] == ["4", "5"]
        tail = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "journal", "tail", str(path), "-n", "1", "-f", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored under a shell's &
        )
        watchdog = threading.Timer(60, tail.kill)
        watchdog.start()
        try:
            assert tail.stdout is not None
            assert json.loads(tail.stdout.readline())["seq"] == 5
            before = journal.head
            write_verdicts(journal, 2)
            assert [json.loads(tail.stdout.readline())["seq"] for _ in range(2)] == [6, 7]
            # The gate takes both back, since nobody has heard of them, and decides once more.
            again = [verdict_of(seq, epoch=journal.epoch, score=0.9) for seq in (6, 7)]
            journal.head = journal.write(partial(write_turn, 1, [], [], [(v, encode(v)) for v in again], before))
            told = [json.loads(tail.stdout.readline()) for _ in range(2)]
            assert [(v["seq"], v["score"]) for v in told] == [(6, 0.9), (7, 0.9)]
            tail.send_signal(signal.SIGINT)
            assert tail.wait(100) == 0
            assert tail.stdout.read() == ""
        finally:
            watchdog.cancel()
            tail.kill()
            tail.wait(100)
            assert tail.stdout is not None
            tail.stdout.close()
