"""The journal: what it acknowledged is there, whatever dies and whatever runs full."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import edge.journal.connection
import edge.journal.writer
from edge.errors import LineBusyError, ResourceError
from edge.journal import Journal, JournalFullError, open_for_reading
from edge.testing import wait_until
from tests.disks import fill, loop_disk

Open = Callable[..., Journal]


@pytest.fixture
def open_journal() -> Iterator[Open]:
    """Opens journals, and closes them again."""
    opened: list[Journal] = []

    def make(path: Path, *, commit_interval_ms: int = 20, reserve_mib: int = 1) -> Journal:
        journal = Journal(path, commit_interval_ms=commit_interval_ms, reserve_mib=reserve_mib)
        opened.append(journal)
        return journal

    yield make
    for journal in opened:
        if not journal._stop.is_set():
            journal.close()


def trigger(number: int, station: str = "a", run: int = 1, at_ns: int | None = None) -> Callable[..., object]:
    row = (run, station, number, "lane", number if at_ns is None else at_ns, 5, 0)
    return lambda db: db.execute("INSERT INTO triggers VALUES (?,?,?,?,?,?,?,NULL,NULL)", row)


def verdict(seq: int, part: int, run: int = 1, payload: bytes = b"x") -> Callable[..., object]:
    row = (seq, run, "lane", part, None, "PASS", None, 0, 0.1, 0.2, 1, 2, 3, seq, payload, b"chain")
    return lambda db: db.execute(f"INSERT INTO verdicts VALUES ({','.join('?' * 16)})", row)


def numbers(path: Path) -> list[int]:
    with closing(open_for_reading(path)) as db:
        return [row[0] for row in db.execute("SELECT number FROM triggers ORDER BY number")]


def test_what_was_seen_and_not_answered_is_found_again(tmp_path: Path, open_journal: Open) -> None:
    path = tmp_path / "journal.sqlite"
    first = open_journal(path)
    run = first.run(77, "hash", "{}")
    for number in range(5):
        first.write(trigger(number, run=run, at_ns=100 - number))
    first.write(verdict(1, 3, run))
    epoch = first.epoch
    first.close()

    again = open_journal(path)
    assert again.epoch == epoch
    assert again.run(77, "hash", "{}") == run, "a gate that was restarted goes on with the run of its predecessor"
    assert again.run(78, "hash", "{}") == run + 1
    assert [t.number for t in again.open_triggers()] == [4, 2, 1, 0]
    assert again.next_numbers(run) == {"a": 5}
    assert again.last_seq() == 1
    assert again.last_topic_seq("lane") == 1
    assert again.last_topic_seq("other") == 0
    assert again.has_verdict(run, "lane", 3)
    assert not again.has_verdict(run + 1, "lane", 3)


def test_a_transaction_is_all_or_nothing(tmp_path: Path, open_journal: Open) -> None:
    journal = open_journal(tmp_path / "journal.sqlite")
    journal.write(trigger(1))

    def half(db: sqlite3.Connection) -> None:
        trigger(2)(db)
        trigger(1)(db)

    with pytest.raises(sqlite3.IntegrityError):
        journal.write(half)
    journal.write(trigger(3))
    assert numbers(journal.path) == [1, 3]


def test_the_same_part_is_never_answered_twice(tmp_path: Path, open_journal: Open) -> None:
    journal = open_journal(tmp_path / "journal.sqlite")
    journal.write(verdict(1, 1))
    with pytest.raises(sqlite3.IntegrityError):
        journal.write(verdict(2, 1))
    journal.write(verdict(2, 1, run=2))


WRITER = """
import sys
from pathlib import Path
from edge.journal import Journal
journal = Journal(Path(sys.argv[1]), commit_interval_ms=20, reserve_mib=1)
for number in range(journal.next_numbers(1).get("a", 0), 1_000_000):
    journal.write(lambda db: db.execute("INSERT INTO triggers VALUES (1,'a',?,'lane',1,1,0,NULL,NULL)", (number,)))
    print(number, flush=True)
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)


def kill_after(writer: subprocess.Popen[str], commits: int) -> int:
    """SIGKILL in mid-stream; the last number that was acknowledged."""
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(commits)]
    writer.kill()
    lines += writer.stdout.readlines()
    writer.wait(100)
    writer.stdout.close()
    return int(max((line for line in lines if line.endswith("\n")), key=int))


def test_every_acknowledged_commit_survives_the_death_of_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    for commits in (1, 300, 2500):
        acknowledged = kill_after(start_writer(path), commits)
        found = numbers(path)
        assert found == list(range(len(found)))
        assert acknowledged in (len(found) - 1, len(found) - 2), "at most the commit that was under way is unsaid"
        with closing(open_for_reading(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_writer_killed_while_it_makes_the_journal_leaves_none_that_is_half_made(tmp_path: Path) -> None:
    for delay_ms in (0, 5, 10, 20, 40):
        path = tmp_path / f"{delay_ms}.sqlite"
        writer = start_writer(path)
        wait_until(path.exists)
        time.sleep(delay_ms / 1000)
        writer.kill()
        writer.wait(100)
        assert writer.stdout is not None
        writer.stdout.close()
        Journal(path, commit_interval_ms=20, reserve_mib=1).close()


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_journal: Open) -> None:
    monkeypatch.setattr(edge.journal.connection, "LOCK_PATIENCE_S", 0.1)
    path = tmp_path / "journal.sqlite"
    journal = open_journal(path)
    with pytest.raises(LineBusyError, match="another gate writes this journal"):
        open_journal(path)
    journal.close()
    open_journal(path)


def test_a_new_gate_waits_for_the_end_of_the_one_before_it(tmp_path: Path, open_journal: Open) -> None:
    path = tmp_path / "journal.sqlite"
    dying = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(dying, fcntl.LOCK_EX)
    end = threading.Timer(0.3, os.close, [dying])
    end.start()
    open_journal(path)
    end.join()


def test_a_journal_of_another_schema_is_left_alone(tmp_path: Path, open_journal: Open) -> None:
    path = tmp_path / "journal.sqlite"
    open_journal(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value='1' WHERE key='schema'")
    with pytest.raises(ResourceError, match=r"journal of schema 1, this maskline writes 2; move it away"):
        open_journal(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value='2' WHERE key='schema'")
    open_journal(path)  # and the lock was let go


def test_what_is_no_journal_is_said(tmp_path: Path, open_journal: Open) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database, but it is long enough to be mistaken for one" * 100)
    with pytest.raises(ResourceError, match="cannot open the journal"):
        open_journal(path)
    with pytest.raises(ResourceError, match="cannot lock the journal"):
        open_journal(tmp_path / "nowhere" / "journal.sqlite")
    with pytest.raises(ResourceError, match="no journal here"):
        open_for_reading(tmp_path / "other.sqlite")


class Disk:
    """Stands between the journal and fdatasync."""

    def __init__(self) -> None:
        self.synced_ns: list[int] = []
        self.broken = False
        self.holds = threading.Event()
        self.holds.set()
        self._fdatasync = os.fdatasync

    def fdatasync(self, fd: int) -> None:
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("-wal")
        self.holds.wait()
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fdatasync(fd)
        self.synced_ns.append(time.monotonic_ns())


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    return disk


def test_every_commit_is_made_durable_soon(tmp_path: Path, disk: Disk, open_journal: Open) -> None:
    journal = open_journal(tmp_path / "journal.sqlite", commit_interval_ms=20)
    for number in range(5):
        journal.write(trigger(number))
        committed_ns = time.monotonic_ns()
        wait_until(lambda: disk.synced_ns and disk.synced_ns[-1] > committed_ns)  # noqa: B023 - called at once
        wait_until(lambda: journal.lag_ms(time.monotonic_ns()) == 0.0)
    quiet = len(disk.synced_ns)
    time.sleep(0.1)
    assert len(disk.synced_ns) == quiet, "nothing new, nothing to sync"


def test_closing_makes_all_durable(tmp_path: Path, disk: Disk, open_journal: Open) -> None:
    journal = open_journal(tmp_path / "journal.sqlite", commit_interval_ms=100)
    journal.write(trigger(1))
    before = len(disk.synced_ns)
    journal.close()
    assert len(disk.synced_ns) > before


def test_a_slow_disk_shows_as_lag_and_delays_no_commit(tmp_path: Path, disk: Disk, open_journal: Open) -> None:
    journal = open_journal(tmp_path / "journal.sqlite")
    disk.holds.clear()
    journal.write(trigger(1))
    since_ns = time.monotonic_ns()
    wait_until(lambda: journal.lag_ms(time.monotonic_ns()) > 200)
    journal.write(trigger(2))
    assert journal.lag_ms(since_ns + 1_000_000_000) >= 1_000, "a newer commit does not make the lag younger"
    disk.holds.set()
    wait_until(lambda: journal.lag_ms(time.monotonic_ns()) == 0.0)
    assert not journal.failure


def test_a_disk_that_fails_is_never_trusted_again(tmp_path: Path, disk: Disk, open_journal: Open) -> None:
    journal = open_journal(tmp_path / "journal.sqlite")
    disk.broken = True
    journal.write(trigger(1))
    wait_until(lambda: journal.failure)
    assert "cannot make the journal durable" in journal.failure
    disk.broken = False  # the kernel reports a lost page once; the next fdatasync would say that all is well
    journal.write(trigger(2))
    lag_ms = journal.lag_ms(time.monotonic_ns())
    time.sleep(0.1)
    assert journal.lag_ms(time.monotonic_ns()) > lag_ms > 0
    assert numbers(journal.path) == [1, 2]


def test_what_restarts_the_log_or_copies_it_is_synced(tmp_path: Path, open_journal: Open) -> None:
    """synchronous=OFF would leave out the header of a log that starts over: a power cut then replays old frames."""
    journal = open_journal(tmp_path / "journal.sqlite")
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (1,)
    assert journal._db.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


def test_the_log_stays_bounded_while_commits_never_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_journal: Open
) -> None:
    monkeypatch.setattr(edge.journal.writer, "CHECKPOINT_COMMITS", 50)
    monkeypatch.setattr(edge.journal.writer, "WAIT_FOR_CHECKPOINT_COMMITS", 100)
    path = tmp_path / "journal.sqlite"
    journal = open_journal(path, commit_interval_ms=1)
    largest = 0
    for number in range(3000):
        journal.write(trigger(number))
        time.sleep(0.0005)  # as between two turns of the gate: a lock is never fair to who waits
        largest = max(largest, os.path.getsize(f"{path}-wal"))
    assert largest // 4096 < 1000, "the log was never emptied"
    assert journal.failure == ""


def test_a_reader_that_stays_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_journal: Open
) -> None:
    monkeypatch.setattr(edge.journal.writer, "CHECKPOINT_COMMITS", 10)
    monkeypatch.setattr(edge.journal.writer, "WAIT_FOR_CHECKPOINT_COMMITS", 20)
    journal = open_journal(tmp_path / "journal.sqlite", commit_interval_ms=1)
    journal.write(trigger(0))
    with closing(open_for_reading(journal.path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM triggers").fetchone() == (1,)
        for number in range(1, 300):
            journal.write(trigger(number))
        assert reader.execute("SELECT count(*) FROM triggers").fetchone() == (1,)
    assert not journal.failure
    assert len(numbers(journal.path)) == 300


def write_until_full(journal: Journal, first: int) -> int:
    """How many rows are in it then."""
    for number in range(first, 5000):
        try:
            journal.write(trigger(number))
        except JournalFullError:
            return number
    raise AssertionError("the disk does not run full")


def test_a_full_disk_costs_the_ballast_then_the_journal_and_both_come_back(tmp_path: Path, open_journal: Open) -> None:
    with loop_disk(tmp_path, mib=24) as disk:
        path = disk / "journal.sqlite"
        journal = open_journal(path, reserve_mib=2)
        ballast = path.with_suffix(".ballast")
        assert journal.has_reserve
        assert ballast.stat().st_blocks * 512 >= 2 << 20
        journal.write(trigger(0))
        plug = fill(disk)

        written = write_until_full(journal, first=1)
        assert written > 20, "the ballast was worth something"
        assert not journal.has_reserve
        assert ballast.stat().st_size == 0
        with pytest.raises(JournalFullError):
            journal.write(verdict(1, 1, payload=b"x" * 8000))
        assert len(numbers(path)) == written, "what was acknowledged is there, what was refused is not"

        plug.unlink()
        journal.write(trigger(9999))
        wait_until(lambda: journal.has_reserve)
        assert ballast.stat().st_blocks * 512 >= 2 << 20
        wait_until(lambda: journal.lag_ms(time.monotonic_ns()) == 0.0)
        assert not journal.failure
        journal.close()
        with closing(open_for_reading(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_checkpoint_on_a_full_disk_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_journal: Open
) -> None:
    """The database file grows in checkpoints only, so a disk often turns out to be full there."""
    with loop_disk(tmp_path, mib=24) as disk:
        journal = open_journal(disk / "journal.sqlite", reserve_mib=1)
        for number in range(200):
            journal.write(verdict(number + 1, number, payload=b"x" * 4000))
        plug = fill(disk)
        monkeypatch.setattr(edge.journal.writer, "CHECKPOINT_COMMITS", 1)
        time.sleep(0.3)
        assert not journal.failure
        journal.write(trigger(1))
        wait_until(lambda: journal.lag_ms(time.monotonic_ns()) == 0.0)
        plug.unlink()
        wait_until(lambda: journal._checkpointed == journal._commits)
        assert not journal.failure


def test_a_disk_without_room_for_the_ballast_is_said(tmp_path: Path, open_journal: Open) -> None:
    with loop_disk(tmp_path, mib=24) as disk:
        fill(disk, leave_bytes=1 << 20)
        journal = open_journal(disk / "journal.sqlite", reserve_mib=4)
        assert not journal.has_reserve
        journal.write(trigger(1))


def test_the_end_of_the_writer_frees_the_lock(tmp_path: Path, open_journal: Open) -> None:
    path = tmp_path / "journal.sqlite"
    writer = start_writer(path)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait(100)
    writer.stdout.close()
    assert open_journal(path).next_numbers(1)["a"] >= 1
