"""The gate and its journal: the chain it publishes, and the outsider who locks its database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from gate_helpers import HandGate, boot_again, cut_power, good, hand_gate, recipe
from journal_helpers import keep_heads

from edge.journal import JournalBusyError, newest, open_for_reading
from edge.journal.heads import heads_path
from edge.journal.schema import LOST_AT_MOST
from edge.journal.verify import verify
from edge.messages import Heartbeat, Trigger
from edge.paths import journal_path
from edge.verdict import Decision, GateState


def trigger(number: int) -> Trigger:
    return Trigger("s0", number, time.monotonic_ns())


def answer(line: HandGate, number: int) -> None:
    said = len(line.verdicts)
    line.send(trigger(number), good("s0", number))
    line.until(lambda: len(line.verdicts) == said + 1)


def test_heartbeats_carry_the_head_of_what_was_published(runtime_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with hand_gate(recipe(), runtime_dir, state) as line:
        genesis = line.last_beat.chain
        for number in range(3):
            answer(line, number)
        line.until(lambda: line.last_beat.seq == 3)
        with closing(open_for_reading(journal_path(state))) as db:
            assert newest(db) == (3, bytes.fromhex(line.last_beat.chain))
        assert line.last_beat.chain != genesis
        assert line.last_beat.counters["journal_lag_max_ms"] >= 0
        slab = line.slab
        last = line.last_beat.chain
    with hand_gate(recipe(), runtime_dir, state, slab) as line:
        assert (line.last_beat.seq, line.last_beat.chain) == (3, last)
        answer(line, 3)
    found = verify(journal_path(state), [heads_path(journal_path(state))])
    assert found.ok, found.troubles
    assert (found.records, found.proved) == (4, 4)


def test_no_number_is_given_twice_after_a_power_cut(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        for number in range(10):
            answer(line, number)
        epoch, left = line.journal.epoch, cut_power(line, keep=7)
    boot_again(monkeypatch)
    first = 8 + LOST_AT_MOST
    with hand_gate(recipe(), runtime_dir, left) as line:
        assert (line.journal.epoch, line.last_beat.seq) == (epoch, first - 1)
        slab = line.slab
        assert verify(line.journal.path).ok
    with hand_gate(recipe(), runtime_dir, left, slab) as line:
        answer(line, 0)
        assert [v.seq for v in line.verdicts] == [first], "a death of the gate before its first verdict changes nothing"
    found = verify(journal_path(left), [heads_path(journal_path(left))])
    assert found.ok, found.troubles
    assert (found.records, found.last, found.proved) == (8, first, first)
    assert found.skipped == [(8, first - 1)]


@pytest.mark.parametrize("boot", ["this", "next"])
def test_numbers_go_on_where_no_verdict_can_be_lost(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    """The gate was killed, which loses nothing; or the line was stopped before the machine went down."""
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        answer(line, 0)
        left = cut_power(line, keep=1) if boot == "this" else tmp_path / "state"
    if boot == "next":
        boot_again(monkeypatch)
    with hand_gate(recipe(), runtime_dir, left) as line:
        answer(line, 0)
        assert [v.seq for v in line.verdicts] == [2]


def test_a_head_that_somebody_kept_tells_what_a_power_cut_took(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        for number in range(5):
            answer(line, number)
        kept = keep_heads(tmp_path / "noted.heads", line.journal.epoch, [line.journal.head])
        left = cut_power(line, keep=3)
    boot_again(monkeypatch)
    with hand_gate(recipe(), runtime_dir, left) as line:
        answer(line, 0)
    (trouble,) = verify(journal_path(left), [kept]).troubles
    assert "has the head of record 5" in trouble
    assert "a power cut took it" in trouble


def test_a_verdict_that_was_taken_back_is_not_in_the_chain(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hand_gate(recipe(deadline_ms=300), runtime_dir, tmp_path / "state") as line:
        write, slow = line.journal.write, iter([True])

        def stalls(work: Callable[[sqlite3.Connection], object]) -> object:
            done = write(work)
            if next(slow, False):
                time.sleep(0.5)  # past the deadline; the head that was kept meanwhile must not be of this verdict
            return done

        answer(line, 0)
        line.send(trigger(1), good("s0", 1))
        time.sleep(0.1)  # both are there: one turn takes them
        monkeypatch.setattr("edge.journal.heads.KEEP_EVERY_S", 0.0)
        monkeypatch.setattr(line.journal, "write", stalls)
        line.until(lambda: len(line.verdicts) == 2)
        assert line.verdicts[1].decision is Decision.UNINSPECTED
        answer(line, 2)
        path = line.journal.path
    found = verify(path, [heads_path(path)])
    assert found.ok, found.troubles
    assert found.proved == 3


def test_a_gate_whose_journal_is_locked_by_an_outsider_holds_and_goes_on(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(deadline_ms=2_000), runtime_dir, tmp_path / "state") as line:
        answer(line, 0)
        with closing(sqlite3.connect(line.journal.path, isolation_level=None)) as outsider:
            outsider.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalBusyError, match="another program has locked the journal"):
                line.journal.write(lambda db: None)
            line.send(trigger(1), good("s0", 1))
            held_until = time.monotonic() + 3.0
            beat = line.gate.heartbeat

            def frees_it() -> None:
                if time.monotonic() > held_until and outsider.in_transaction:
                    assert len(line.verdicts) == 1
                    outsider.execute("ROLLBACK")
                beat()

            line.gate.heartbeat = frees_it  # type: ignore[method-assign]
            line.until(lambda: len(line.verdicts) == 2)
            line.gate.heartbeat = beat  # type: ignore[method-assign]
        beats = [e for e in line.heard if isinstance(e, Heartbeat)]
        assert any(b.state is GateState.NOT_READY and "another program has locked" in b.trouble[0] for b in beats)
        assert line.verdicts[1].decision is Decision.UNINSPECTED, "its deadline passed meanwhile"
        line.until(lambda: line.last_beat.state is GateState.READY)
        answer(line, 2)
        assert line.verdicts[2].decision is Decision.PASS
        path = line.journal.path
    assert verify(path, [heads_path(path)]).ok
