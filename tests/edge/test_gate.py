"""The gate: journal first, then the world; on time, whatever happens."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from gate_helpers import GateClock, HandGate, good, hand_gate, recipe
from msgspec.structs import replace

import edge.gate
from edge.journal import JournalFullError, open_for_reading
from edge.ledger import MAX_GAP
from edge.messages import Heartbeat, SourceEnded, Trigger
from edge.paths import journal_path
from edge.settings import Recipe
from edge.slab import Ending
from edge.testing import journal_verdicts
from edge.verdict import Decision, GateState, Reason


def trigger(number: int, station: str = "s0", age_ms: int = 0) -> Trigger:
    return Trigger(station, number, time.monotonic_ns() - age_ms * 1_000_000)


def test_a_verdict_is_in_the_journal_before_it_is_published(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        seen_at_publish: list[int] = []
        publish = line.gate.publisher.send_multipart

        def spy(parts: list[bytes]) -> object:
            if parts[0].startswith(b"verdict."):
                seen_at_publish.append(len(journal_verdicts(line.state_dir)))
            return publish(parts)

        monkeypatch.setattr(line.gate.publisher, "send_multipart", spy)
        for number in range(3):
            line.send(trigger(number), good("s0", number))
            line.until(lambda: len(line.verdicts) == number + 1)  # noqa: B023 - called at once
        assert seen_at_publish == [1, 2, 3]
        assert journal_verdicts(line.state_dir) == line.verdicts
        assert [v.seq for v in line.verdicts] == [1, 2, 3]
        assert [v.topic_seq for v in line.verdicts] == [1, 2, 3]
        assert {v.decision for v in line.verdicts} == {Decision.PASS}
        assert line.verdicts[0].simulated
        assert line.open == 0


def test_a_trigger_without_an_answer_is_answered_on_time(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(deadline_ms=150), runtime_dir, tmp_path / "state") as line:
        line.send(trigger(0))
        line.until(lambda: line.verdicts)
        verdict = line.verdicts[0]
        assert (verdict.decision, verdict.reason) == (Decision.UNINSPECTED, Reason.DEADLINE)
        line.send(good("s0", 0))
        line.until(lambda: late_results(line.state_dir))
        assert late_results(line.state_dir) == [("s0", 0, "PASS")]
        assert len(journal_verdicts(line.state_dir)) == 1, "a late score changes no verdict"


def late_results(state_dir: Path) -> list[tuple[object, ...]]:
    with closing(open_for_reading(journal_path(state_dir))) as db:
        return db.execute("SELECT station, number, decision FROM late_results").fetchall()


def test_a_trigger_that_comes_late_is_no_pass(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(deadline_ms=200), runtime_dir, tmp_path / "state") as line:
        line.send(trigger(0, age_ms=1000), good("s0", 0))
        line.until(lambda: line.verdicts)
        assert line.verdicts[0].decision is Decision.UNINSPECTED
        assert line.verdicts[0].late


def test_a_pass_whose_deadline_passes_during_its_commit_is_taken_back(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = GateClock(monkeypatch)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        clock.pass_during_commit(line, 1)
        line.send(trigger(0), good("s0", 0))
        line.until(lambda: line.verdicts)
        verdict = line.verdicts[0]
        assert (verdict.decision, verdict.reason, verdict.late) == (Decision.UNINSPECTED, Reason.DEADLINE, True)
        assert journal_verdicts(line.state_dir) == [verdict]
        assert late_results(line.state_dir) == [("s0", 0, "PASS")]
        with closing(open_for_reading(journal_path(line.state_dir))) as db:
            assert db.execute("SELECT seq, decision FROM verdicts").fetchall() == [(1, "UNINSPECTED")]


def test_a_full_journal_stops_publishing_and_no_pass_survives_its_deadline(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = GateClock(monkeypatch)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        write, tries = line.journal.write, itertools.count(1)
        published: list[bytes] = []
        publish = line.gate.publisher.send_multipart

        def full(work: Callable[[sqlite3.Connection], object]) -> object:
            if (tried := next(tries)) <= 4:
                assert not any(p.startswith(b"verdict.") for p in published)
                if tried == 2:
                    clock.pass_deadlines()
                raise JournalFullError("full")
            return write(work)

        def spy(parts: list[bytes]) -> object:
            published.append(parts[0])
            return publish(parts)

        monkeypatch.setattr(line.journal, "write", full)
        monkeypatch.setattr(line.gate.publisher, "send_multipart", spy)
        line.send(trigger(0), good("s0", 0))
        line.until(lambda: line.verdicts)
        states = [e for e in line.heard if isinstance(e, Heartbeat)]
        assert any(b.state is GateState.NOT_READY and "disk is full" in b.trouble[0] for b in states)
        line.until(lambda: line.last_beat.state is GateState.READY)
        assert (line.verdicts[0].decision, line.verdicts[0].reason) == (Decision.UNINSPECTED, Reason.DEADLINE)
        assert journal_verdicts(line.state_dir) == line.verdicts
        line.send(Trigger("s0", 1, clock.now_ns()), good("s0", 1))
        line.until(lambda: len(line.verdicts) == 2)
        assert line.verdicts[1].decision is Decision.PASS


def test_a_disk_that_cannot_be_trusted_stops_the_verdicts(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"reserve_mib": 1, "commit_interval_ms": 10, "max_lag_ms": 100}
    clock = GateClock(monkeypatch)
    with hand_gate(recipe(journal=kept), runtime_dir, tmp_path / "state") as line:

        def broken(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", broken)
        line.send(trigger(0))
        line.until(lambda: line.last_beat.state is GateState.NOT_READY)
        assert "cannot make the journal durable" in line.last_beat.trouble[0]
        said = len(line.verdicts)
        line.send(*[m for number in range(1, 9) for m in (trigger(number), good("s0", number))])
        line.until(lambda: line.last_beat.open >= 8)
        clock.pass_deadlines()
        line.turn(2)
        before = line.last_beat
        line.until(lambda: line.last_beat is not before)  # what went out before it is here
        assert len(line.verdicts) == said, "nothing goes out"
        assert line.last_beat.state is GateState.NOT_READY
        line.gate.finish()
        assert len(line.verdicts) == said, "not at the end either: the next gate answers"


def test_a_gate_that_may_not_publish_keeps_only_so_many_open_parts(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.gate, "MAX_OPEN", 20)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        lag_ms = 1e6
        monkeypatch.setattr(line.journal, "lag_ms", lambda now_ns: lag_ms)
        for number in range(200):
            line.send(trigger(number))
            if number % 10 == 9:
                line.turn()
        line.turn(5)
        assert line.gate.ledger.open_parts < 60
        lag_ms = 0.0
        line.send(*[good("s0", number) for number in range(200)])
        line.until(lambda: len(line.verdicts) == 200)
        assert {v.decision for v in line.verdicts} == {Decision.PASS}


def test_the_heartbeat_says_what_is_wrong(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        assert line.last_beat.state is GateState.READY
        assert line.last_beat.safe_state == "reject_all"
        line.slab.row(line.worker.index_of("detect"))["state"] = 0
        line.until(lambda: line.last_beat.state is GateState.DEGRADED)
        assert line.last_beat.trouble == ["detect does not run"]
        line.journal.ballast.held = False
        line.slab.head["start_ns"] = 0
        line.until(lambda: line.last_beat.state is GateState.NOT_READY)
        line.slab.head["ending"] = Ending.STOP
        line.until(lambda: line.last_beat.state is GateState.STOPPING)


def test_a_gate_that_follows_answers_what_was_left(runtime_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with hand_gate(recipe(), runtime_dir, state) as line:
        line.send(trigger(0), good("s0", 0), trigger(1), trigger(2))
        line.until(lambda: line.verdicts and line.gate.ledger.open_parts == 2)
        epoch, run, slab = line.journal.epoch, line.gate.run, line.slab
    with hand_gate(recipe(), runtime_dir, state, slab) as line:
        left = journal_verdicts(state)
        assert [(v.part, v.reason, v.late) for v in left[1:]] == [(1, Reason.RESTART, True), (2, Reason.RESTART, True)]
        assert [v.seq for v in left] == [1, 2, 3]
        assert {(v.epoch, v.run) for v in left} == {(epoch, run)}
        line.send(good("s0", 1), trigger(2), trigger(3), good("s0", 3))
        line.until(lambda: line.verdicts)
        assert [(v.part, v.decision, v.seq) for v in line.verdicts] == [(3, Decision.PASS, 4)]
        assert len(journal_verdicts(state)) == 4, "neither a late result nor a late trigger opens a part again"


def test_what_a_part_is_called_and_where_it_was_goes_out_with_its_verdict(runtime_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with hand_gate(recipe(), runtime_dir, state) as line:
        line.send(
            replace(trigger(0), count=4711, part_id=65535), good("s0", 0), replace(trigger(1), count=5, part_id=0)
        )
        line.until(lambda: line.verdicts and line.gate.ledger.open_parts == 1)
        assert [(v.count, v.part_id) for v in line.verdicts] == [(4711, 65535)]
        slab = line.slab
    with hand_gate(recipe(), runtime_dir, state, slab):
        left = journal_verdicts(state)[-1]
        assert (left.reason, left.count, left.part_id) == (Reason.RESTART, 5, 0), "an actuator must find it by either"


def test_what_was_left_has_a_view_of_each_station_of_its_lane(runtime_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    pair = recipe(2, same_lane=True, deadline={"deadline_ms": 60_000, "view_timeout_ms": 60_000})
    with hand_gate(pair, runtime_dir, state) as line:
        line.send(replace(trigger(0, "s0"), count=5), trigger(0, "s1"), replace(trigger(1, "s1"), count=9))
        line.until(lambda: line.gate.ledger.open_parts == 2)
    with hand_gate(recipe(1), runtime_dir, state):
        first, second = sorted(journal_verdicts(state), key=lambda v: v.part)
        assert [v.station for v in first.views] == [v.station for v in second.views] == ["s0", "s1"]
        assert {v.reason for v in (*first.views, *second.views)} == {Reason.RESTART}
        assert (first.count, second.count) == (5, None), "that of the lane's first station"
        assert second.views[0].at_ns == second.views[1].at_ns == second.trigger_ns


def test_a_station_that_shows_other_parts_is_named_and_no_restart_of_the_gate_forgets_it(
    runtime_dir: Path, tmp_path: Path
) -> None:
    base = recipe(2, same_lane=True).model_dump()
    base["stations"][1]["behind"] = {"delay_ms": 50, "window_ms": 10}
    pair, now_ns = Recipe.model_validate(base), time.monotonic_ns()

    def views(line: HandGate, number: int, apart_ms: int) -> None:
        first = Trigger("s0", number, now_ns)
        line.send(first, replace(first, station="s1", at_ns=now_ns + apart_ms * 1_000_000))
        line.send(good("s0", number), good("s1", number))
        line.until(lambda: line.verdicts and line.verdicts[-1].part == number)

    with hand_gate(pair, runtime_dir, tmp_path / "state") as line:
        views(line, 0, 55)
        views(line, 1, 70)
        assert [v.decision for v in line.verdicts] == [Decision.PASS, Decision.UNINSPECTED]
        line.until(lambda: line.last_beat.state is GateState.DEGRADED)
        (trouble,) = line.last_beat.trouble
        since = "part 1, 70.0 ms behind s0, expected 50 +- 10"
        assert trouble == f"station s1 shows other parts of its lane since {since}: start the line again"
        slab = line.slab
    with hand_gate(pair, runtime_dir, tmp_path / "state", slab) as line:
        views(line, 2, 50)
        assert [v.reason for v in line.verdicts[-1].views] == [None, Reason.FRAME_OUT_OF_ORDER]
        assert line.last_beat.state is GateState.DEGRADED
    with hand_gate(pair, runtime_dir, tmp_path / "state") as line:  # the line was started again
        views(line, 0, 50)
        assert line.verdicts[-1].decision is Decision.PASS


def test_what_was_left_by_a_station_that_is_gone_is_answered_too(runtime_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with hand_gate(recipe(2), runtime_dir, state) as line:
        line.send(trigger(0, "s1"), good("s1", 0), trigger(1, "s1"))
        line.until(lambda: line.verdicts and line.gate.ledger.open_parts == 1)
    with hand_gate(recipe(1), runtime_dir, state):
        left = journal_verdicts(state)
        assert [(v.lane, v.part, v.topic_seq, v.reason) for v in left] == [
            ("s1", 0, 1, None),
            ("s1", 1, 2, Reason.RESTART),
        ]


def test_a_new_start_of_the_line_counts_its_parts_anew(runtime_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for _ in range(2):
        with hand_gate(recipe(), runtime_dir, state) as line:
            line.send(trigger(0), good("s0", 0))
            line.until(lambda: line.verdicts)
    first, second = journal_verdicts(state)
    assert (first.run, first.part, first.seq) == (1, 0, 1)
    assert (second.run, second.part, second.seq) == (2, 0, 2)


def test_triggers_that_died_with_a_gate_are_missed_parts(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.gate, "PATIENCE_NS", 200_000_000)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        line.number("s0", 3)
        line.turn(5)
        assert line.open == 3, "numbered triggers are owed, so that the line does not end without them"
        time.sleep(0.3)
        line.turn(5)
        assert not line.verdicts, "a source that goes on shows the gap by itself"
        line.number("s0", 3, ended=True)
        line.until(lambda: len(line.verdicts) == 3)
        assert {v.reason for v in line.verdicts} == {Reason.MISSED_FRAME}
        assert line.open == 0


def test_a_trigger_on_its_way_is_not_taken_for_lost(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.gate, "PATIENCE_NS", 100_000_000_000)
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        line.number("s0", 1, ended=True)
        line.turn(3)
        line.send(trigger(0), good("s0", 0), SourceEnded("s0", 1))
        line.until(lambda: line.verdicts)
        assert line.verdicts[0].decision is Decision.PASS


def test_at_the_end_everything_is_answered(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        line.number("s0", 4)
        line.send(trigger(0), trigger(1))
        line.until(lambda: line.gate.ledger.open_parts == 2)
        line.send(good("s0", 0), trigger(2))
        assert line.worker.inbox().poll(100_000)
        time.sleep(0.2)  # the other processes have ended: what they sent is here
        line.gate.finish()
        answers = {v.part: (v.decision, v.reason) for v in journal_verdicts(line.state_dir)}
        assert answers == {
            0: (Decision.PASS, None),
            1: (Decision.UNINSPECTED, Reason.STOPPING),
            2: (Decision.UNINSPECTED, Reason.STOPPING),
            3: (Decision.UNINSPECTED, Reason.MISSED_FRAME),
        }
        assert line.open == 0


def test_a_gap_as_large_as_allowed_takes_one_turn_and_not_the_gate(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        line.send(trigger(MAX_GAP))
        started = time.process_time()
        line.until(lambda: line.last_beat.seq >= MAX_GAP)
        assert time.process_time() - started < 5.0, "the supervisor kills a gate whose loop does not turn"
        assert line.gate.counters["uninspected"] == MAX_GAP


def test_a_broken_counter_is_no_flood(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        line.send(trigger((1 << 63) - 1), good("s0", (1 << 63) - 1))
        line.until(lambda: line.verdicts)
        assert [v.part for v in line.verdicts] == [(1 << 63) - 1]
        assert line.gate.ledger.counters["trigger_counter_jumped"] == 1


def test_garbage_on_the_socket_is_counted_and_harms_nobody(runtime_dir: Path, tmp_path: Path) -> None:
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line:
        line.send(trigger(0))
        line.send_bytes(b"", b"\xc1", b"garbage", b"\x00" * 1000, os.urandom(500), b"\x91" * 5000)
        line.send_bytes(b"x" * (2 << 20), sender="giant")
        line.send(good("nobody", 0), Trigger("nobody", 5, 1), SourceEnded("nobody", 7), sender="lost")
        line.send(good("s0", 0))
        line.until(lambda: line.verdicts and line.slab.row(line.worker.process.index)["failed"] >= 6)
        line.turn(3)
        assert line.verdicts[0].decision is Decision.PASS
        assert int(line.slab.row(line.worker.process.index)["failed"]) == 6
