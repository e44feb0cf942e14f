"""The gate and its journal: the chain it publishes, and the outsider who locks its database."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from gate_helpers import GateClock, HandGate, boot_again, cut_power, good, hand_gate, recipe
from journal_helpers import keep_heads

from edge.journal import JournalBusyError, newest, open_for_reading
from edge.journal.heads import heads_path
from edge.journal.schema import LOST_AT_MOST
from edge.journal.verify import verify
from edge.messages import Heartbeat, Trigger
from edge.paths import journal_path
from edge.verdict import Decision, GateState


def trigger(number: int, now_ns: Callable[[], int] = time.monotonic_ns) -> Trigger:
    return Trigger("s0", number, now_ns())


def answer(line: HandGate, number: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
    said = len(line.verdicts)
    line.send(trigger(number, now_ns), good("s0", number))
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
    clock = GateClock(monkeypatch)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        answer(line, 0)
        monkeypatch.setattr("edge.journal.heads.KEEP_EVERY_S", 0.0)
        clock.pass_during_commit(line, 2, stall_s=0.3)  # the head that is kept meanwhile must not be of this verdict
        line.send(trigger(1), good("s0", 1))
        line.until(lambda: len(line.verdicts) == 2)
        assert line.verdicts[1].decision is Decision.UNINSPECTED
        answer(line, 2)
        path = line.journal.path
    found = verify(path, [heads_path(path)])
    assert found.ok, found.troubles
    assert found.proved == 3


def test_a_gate_whose_journal_is_locked_by_an_outsider_holds_and_goes_on(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = GateClock(monkeypatch)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        answer(line, 0)
        with closing(sqlite3.connect(line.journal.path, isolation_level=None)) as outsider:
            outsider.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalBusyError, match="another program has locked the journal"):
                line.journal.write(lambda db: None)
            line.send(trigger(1), good("s0", 1))
            beat, blocked = line.gate.heartbeat, itertools.count(1)

            def frees_it() -> None:
                if line.gate.journal_blocked and (tried := next(blocked)) <= 3:
                    assert len(line.verdicts) == 1
                    if tried == 2:
                        clock.pass_deadlines()
                    if tried == 3:
                        outsider.execute("ROLLBACK")
                beat()

            line.gate.heartbeat = frees_it  # type: ignore[method-assign]
            line.until(lambda: len(line.verdicts) == 2)
            line.gate.heartbeat = beat  # type: ignore[method-assign]
        beats = [e for e in line.heard if isinstance(e, Heartbeat)]
        assert any(b.state is GateState.NOT_READY and "another program has locked" in b.trouble[0] for b in beats)
        assert line.verdicts[1].decision is Decision.UNINSPECTED, "its deadline passed meanwhile"
        line.until(lambda: line.last_beat.state is GateState.READY)
        answer(line, 2, clock.now_ns)
        assert line.verdicts[2].decision is Decision.PASS
        path = line.journal.path
    assert verify(path, [heads_path(path)]).ok
