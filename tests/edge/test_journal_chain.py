"""The chain over the verdicts: whatever was done to a journal is found, as far as somebody kept heads."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_helpers import keep_heads, leave_journal, rechain, tamper, verdict_of, write_verdicts

import edge.journal.heads
import edge.journal.select
from edge.journal import Head, Journal, write_turn
from edge.journal.heads import HeadsFile, heads_path, read_heads
from edge.journal.schema import epoch_of, link, newest, open_for_reading
from edge.journal.select import pages
from edge.journal.verify import verify
from edge.messages import encode
from edge.testing import wait_until

COUNT = 12


class Whole:
    """A journal that nobody has touched, its heads, and copies of it to tamper with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "whole.sqlite"
        self.heads = leave_journal(self.path, COUNT, runs=2, open_triggers=2)
        with closing(open_for_reading(self.path)) as db:
            self.epoch = epoch_of(db)
        self.kept = keep_heads(folder / "other-box.heads", self.epoch, self.heads)
        self._copies = 0

    def copy(self) -> Path:
        self._copies += 1
        return Path(shutil.copy(self.path, self.folder / f"copy{self._copies}.sqlite"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def test_a_journal_that_nobody_touched_is_whole(whole: Whole) -> None:
    found = verify(whole.path, [whole.kept])
    assert found.ok, found.troubles
    assert (found.records, found.first, found.last, found.proved) == (COUNT, 1, COUNT, COUNT)
    assert (found.triggers, found.open_triggers) == (COUNT + 2, 2)
    assert found.heads[0].matched == COUNT + 1
    assert found.heads[0].newest is not None
    assert found.heads[0].newest.seq == COUNT


def test_the_chain_is_what_the_documentation_says(whole: Whole) -> None:
    chain = hashlib.sha256(whole.epoch.encode()).digest()
    with closing(open_for_reading(whole.path)) as db:
        for seq, payload, stored in db.execute("SELECT seq, payload, chain FROM verdicts ORDER BY seq"):
            chain = hashlib.sha256(chain + payload).digest()
            assert stored == chain
            assert whole.heads[seq] == Head(seq, chain)


SEQ = st.integers(1, COUNT)


def payload_of(db: sqlite3.Connection, seq: int) -> bytes:
    return bytes(db.execute("SELECT payload FROM verdicts WHERE seq = ?", (seq,)).fetchone()[0])


def changed(db: sqlite3.Connection, seq: int, **fields: object) -> None:
    known = msgpack.unpackb(payload_of(db, seq))
    db.execute("UPDATE verdicts SET payload = ? WHERE seq = ?", (msgpack.packb(known | fields), seq))


def change_payload(db: sqlite3.Connection, seq: int, other: int) -> str:
    changed(db, seq, score=0.125 + other)
    return f"record {seq} "


def change_decision_everywhere(db: sqlite3.Connection, seq: int, other: int) -> str:
    changed(db, seq, decision="UNINSPECTED", reason="deadline")
    db.execute("UPDATE verdicts SET decision = 'UNINSPECTED', reason = 'deadline' WHERE seq = ?", (seq,))
    return f"record {seq} "


def change_chain(db: sqlite3.Connection, seq: int, other: int) -> str:
    db.execute("UPDATE verdicts SET chain = ? WHERE seq = ?", (bytes([other]) * 32, seq))
    return f"record {seq} "


def change_a_column(db: sqlite3.Connection, seq: int, other: int) -> str:
    column, value = [("decision", "REWORK"), ("late", 1), ("score", 9.5), ("part_id", None), ("decided_utc_ns", 5)][
        other % 5
    ]
    db.execute(f"UPDATE verdicts SET {column} = ? WHERE seq = ?", (value, seq))
    return f"record {seq} "


def change_a_type(db: sqlite3.Connection, seq: int, other: int) -> str:
    column = ("payload", "chain", "decided_utc_ns")[other % 3]
    db.execute(f"UPDATE verdicts SET {column} = 'text' WHERE seq = ?", (seq,))
    return f"record {seq} "


def delete(db: sqlite3.Connection, seq: int, other: int) -> str:
    db.execute("DELETE FROM verdicts WHERE seq = ?", (seq,))
    return f"record {seq} is missing" if seq < COUNT else f"records {COUNT} to {COUNT} are cut off"


def delete_with_trigger_and_close_the_gap(db: sqlite3.Connection, seq: int, other: int) -> str:
    db.execute("DELETE FROM triggers WHERE number = ?", (seq,))
    db.execute("DELETE FROM verdicts WHERE seq = ?", (seq,))
    db.execute("UPDATE verdicts SET seq = -seq WHERE seq > ?", (seq,))
    db.execute("UPDATE verdicts SET seq = -seq - 1 WHERE seq < 0")
    return f"record {seq} " if seq < COUNT else "cut off"


def cut_off(db: sqlite3.Connection, seq: int, other: int) -> str:
    db.execute("DELETE FROM triggers WHERE number >= ?", (seq,))
    db.execute("DELETE FROM verdicts WHERE seq >= ?", (seq,))
    return f"records {seq} to {COUNT} are cut off"


def insert(db: sqlite3.Connection, seq: int, other: int) -> str:
    """A record that never was, in its place, with all behind it moved on by one."""
    db.execute("UPDATE verdicts SET seq = -seq WHERE seq >= ?", (seq,))
    db.execute("UPDATE verdicts SET seq = -seq + 1 WHERE seq < 0")
    new = verdict_of(seq, epoch=epoch_of(db), run=2, part=10**6, lane="a", topic_seq=10**6)
    write_turn(2, [], [], [(new, encode(new))], Head(10**9, b"0" * 32), db)
    return f"record {seq} "


def swap(db: sqlite3.Connection, seq: int, other: int) -> str:
    with_ = other % COUNT + 1
    if with_ == seq:
        with_ = seq % COUNT + 1
    one, two = payload_of(db, seq), payload_of(db, with_)
    db.execute("UPDATE verdicts SET payload = ? WHERE seq = ?", (two, seq))
    db.execute("UPDATE verdicts SET payload = ? WHERE seq = ?", (one, with_))
    return f"record {seq} "


ATTACKS = (
    change_payload,
    change_decision_everywhere,
    change_chain,
    change_a_column,
    change_a_type,
    delete,
    delete_with_trigger_and_close_the_gap,
    cut_off,
    insert,
    swap,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ATTACKS), SEQ, st.integers(0, 200))
def test_what_was_done_to_a_journal_is_found_and_named(
    whole: Whole, attack: Callable[[sqlite3.Connection, int, int], str], seq: int, other: int
) -> None:
    path = whole.copy()
    with tamper(path) as db:
        expected = attack(db, seq, other)
    found = verify(path, [whole.kept])
    path.unlink()
    assert any(expected in trouble for trouble in found.troubles), (expected, found.troubles)


REWRITES = (change_decision_everywhere, delete_with_trigger_and_close_the_gap, insert, swap, cut_off)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(REWRITES), SEQ, st.integers(0, 200), st.sets(SEQ, max_size=4))
def test_who_writes_the_chain_anew_is_found_by_a_head_behind_it(
    whole: Whole, attack: Callable[[sqlite3.Connection, int, int], str], seq: int, other: int, kept: set[int]
) -> None:
    path = whole.copy()
    with tamper(path) as db:
        attack(db, seq, other)
        # A forger who is thorough: what a payload says stands in the columns and the other way round.
        for number, payload in db.execute("SELECT seq, payload FROM verdicts").fetchall():
            fields = msgpack.unpackb(payload) | {"seq": number}
            db.execute("UPDATE verdicts SET payload = ? WHERE seq = ?", (msgpack.packb(fields), number))
        rechain(db)
    heads = keep_heads(whole.folder / "some.heads", whole.epoch, [whole.heads[n] for n in sorted({*kept, COUNT})])
    found = verify(path, [heads])
    path.unlink()
    assert any("the chain written anew" in t or "cut off" in t for t in found.troubles), found.troubles
    assert found.proved < COUNT


def test_a_rewritten_chain_is_narrowed_down_to_what_lies_between_two_heads(whole: Whole) -> None:
    path = whole.copy()
    with tamper(path) as db:
        change_decision_everywhere(db, 6, 0)
        rechain(db)
    heads = keep_heads(whole.folder / "two.heads", whole.epoch, [whole.heads[4], whole.heads[9]])
    found = verify(path, [heads])
    assert [t for t in found.troubles if "records 5 to 9 at least one was changed" in t], found.troubles
    assert len(found.troubles) == 1
    assert found.proved == 4


def test_one_changed_record_is_told_once(whole: Whole) -> None:
    for attack in (change_payload, change_chain):
        path = whole.copy()
        with tamper(path) as db:
            attack(db, 5, 1)
        found = verify(path)
        assert [t.split(" (")[0] for t in found.troubles if "chain before it" in t] == ["record 5"], found.troubles


def test_without_heads_nobody_can_tell_that_the_end_was_cut_off_and_that_is_said(whole: Whole) -> None:
    path = whole.copy()
    with tamper(path) as db:
        cut_off(db, 8, 0)
    found = verify(path)
    assert found.ok
    assert found.proved == 0
    assert not verify(path, [whole.kept]).ok


def test_a_journal_in_the_place_of_another_is_found(whole: Whole, tmp_path: Path) -> None:
    leave_journal(tmp_path / "journal.sqlite", 3)
    found = verify(tmp_path / "journal.sqlite", [whole.kept])
    assert "none of its heads is of this journal" in found.troubles[0]


def test_a_trigger_without_a_verdict_is_trouble_once_its_run_is_over(whole: Whole) -> None:
    path = whole.copy()
    with tamper(path) as db:
        db.execute("INSERT INTO triggers VALUES (1, 'a', 777, 'a', 1, 1, 0, NULL, NULL)")
        db.execute("DELETE FROM triggers WHERE number = 3")
    troubles = verify(path, [whole.kept]).troubles
    assert any("trigger 777 of station a (run 1" in t for t in troubles), troubles
    assert any("record 3 " in t and "its trigger is missing" in t for t in troubles), troubles


def test_a_file_that_is_damaged_is_trouble_and_no_traceback(whole: Whole) -> None:
    path = whole.copy()
    data = bytearray(path.read_bytes())
    data[4096 * 8 :] = b"\xff" * (len(data) - 4096 * 8)
    path.write_bytes(data)
    assert not verify(path, [whole.kept]).ok


def test_heads_are_kept_only_of_what_a_power_cut_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds, sync = threading.Event(), os.fdatasync

    def slow(fd: int) -> None:
        holds.wait()
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    monkeypatch.setattr(edge.journal.heads, "KEEP_EVERY_S", 0.0)
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=1, reserve_mib=1)) as journal:
        write_verdicts(journal, 3)
        wait_until(lambda: journal.lag_ms(time.monotonic_ns()) > 50)
        assert not heads_path(path).exists()
        holds.set()
        wait_until(lambda: heads_path(path).exists() and any(h.seq == 3 for h in read_heads(heads_path(path))))
        assert journal.longest_lag_ms(0) > 50, "and how far back it would have gone is remembered"


def test_a_verdict_that_came_during_the_sync_is_not_in_the_head_that_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, keep = os.fdatasync, HeadsFile.keep
    entered, goes_on = threading.Event(), threading.Event()
    begun: list[int] = []
    kept: list[tuple[int, int]] = []
    with closing(Journal(tmp_path / "journal.sqlite", commit_interval_ms=1, reserve_mib=1)) as journal:

        def held(fd: int) -> None:
            begun.append(journal.head.seq)
            entered.set()
            goes_on.wait()
            sync(fd)

        def noted(self: HeadsFile, head: Head, *, at_once: bool = False) -> None:
            kept.append((head.seq, begun[-1] if begun else 0))
            keep(self, head, at_once=at_once)

        wait_until(lambda: journal.lag_ms(time.monotonic_ns()) == 0.0)
        monkeypatch.setattr(os, "fdatasync", held)
        monkeypatch.setattr(HeadsFile, "keep", noted)
        write_verdicts(journal, 1)
        assert entered.wait(100)
        write_verdicts(journal, 1)
        goes_on.set()
        wait_until(lambda: kept and kept[-1][0] == 2)
    assert all(seq <= synced for seq, synced in kept), kept


def test_a_head_is_kept_at_once_then_at_most_once_a_minute_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=1, reserve_mib=1)) as journal:
        write_verdicts(journal, 1)
        wait_until(lambda: heads_path(path).exists())
        write_verdicts(journal, 20)
    kept = list(read_heads(heads_path(path)))
    assert [h.seq for h in kept] == [1, 21]
    assert verify(path, [heads_path(path)]).proved == 21
    with closing(Journal(path, commit_interval_ms=1, reserve_mib=1)) as journal:
        assert journal.head.seq == 21
        assert journal.head.chain.hex() == kept[-1].chain


def test_heads_outlive_a_torn_line_and_a_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "j.heads"
    path.write_bytes(b"2026-01-01T00:00:00Z e 1 00")
    kept = HeadsFile(path, "e")
    kept.keep(Head(2, b"\2" * 32), at_once=True)
    assert [(h.seq, h.chain) for h in read_heads(path)] == [(2, "02" * 32)]
    lost = HeadsFile(tmp_path / "no" / "j.heads", "e")
    lost.keep(Head(2, b"\2" * 32), at_once=True)


def test_a_log_of_the_line_is_as_good_as_the_file(whole: Whole) -> None:
    log = whole.folder / "log"
    head = whole.heads[7]
    log.write_text(
        '{"event": "gate_state", "state": "READY"}\nno JSON at all\n{"event": "journal_head"}\n{bad\n'
        f'{{"event": "journal_head", "epoch": "{whole.epoch}", "seq": 7, "chain": "{head.chain.hex()}", '
        '"timestamp": "2026-01-01T00:00:00Z"}\n'
    )
    found = verify(whole.path, [log])
    assert found.ok
    assert (found.proved, found.heads[0].matched) == (7, 1)


def test_verdicts_that_were_not_published_leave_no_trace_in_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=1, reserve_mib=1)) as journal:
        write_verdicts(journal, 2)
        before = journal.head
        for score in (0.1, 0.2):
            verdict = verdict_of(3, epoch=journal.epoch, score=score)
            rows = [(1, "a", 3, "a", 3, 3, False, None, None)] if score == 0.1 else []
            head = journal.write(partial(write_turn, 1, rows, [], [(verdict, encode(verdict))], before))
            assert head == Head(3, link(before.chain, encode(verdict)))
        journal.head = head
    found = verify(path, [heads_path(path)])
    assert found.ok, found.troubles
    assert found.proved == 3


def test_a_page_never_continues_what_a_gate_has_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pages the newest verdicts are written anew: nobody has seen them before."""
    monkeypatch.setattr(edge.journal.select, "PAGE", 5)
    monkeypatch.setattr(edge.journal.select, "UNSETTLED", 10)
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, commit_interval_ms=1, reserve_mib=1)) as journal:
        heads = write_verdicts(journal, 30)
        with closing(open_for_reading(path)) as db:
            db.isolation_level = None
            chain = heads[0].chain
            for looks, page in enumerate(pages(db, "seq, payload, chain")):
                for _seq, payload, stored in page:
                    chain = link(chain, payload)
                    assert chain == stored
                # The gate takes back its newest eight and writes others.
                journal.head = heads[-9]
                del heads[-8:]
                again = [verdict_of(journal.head.seq + n, epoch=journal.epoch, score=looks / 7) for n in range(1, 9)]
                journal.head = journal.write(
                    partial(write_turn, 1, [], [], [(v, encode(v)) for v in again], journal.head)
                )
                heads += [journal.head] * 8
            assert newest(db).seq == 30
