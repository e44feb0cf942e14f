"""What every process stands on: its messages, its slots, its heartbeat, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from gate_helpers import recipe
from worker_helpers import Start, processes_of

import edge.worker
from edge.errors import CalibrationError
from edge.messages import MAX_MESSAGE_BYTES, FrameRef, Trigger, encode
from edge.paths import calibration_path
from edge.processes import capture
from edge.slab import State
from edge.testing import PATIENCE_S
from edge.worker import Worker

CAPTURE = capture("s0")


@pytest.fixture
def start(runtime_dir: Path, tmp_path: Path) -> Iterator[Start]:
    with processes_of(recipe(), runtime_dir, tmp_path) as make:
        yield make


def counted(worker: Worker, counter: str) -> int:
    return int(worker.slab.row(worker.process.index)[counter])


def expose(capture: Worker, number: int) -> FrameRef:
    """A frame in a slot, on its way to prepare."""
    slot, generation = capture.slab.acquire("s0", capture.process.index) or (-1, -1)
    frame = FrameRef("s0", number, slot, generation, 1, [2])
    capture.pass_on(frame, "prepare")
    return frame


def test_frames_come_in_order_and_each_slot_is_ours(start: Start) -> None:
    source, prepare = start(CAPTURE), start("prepare")
    sent = [expose(source, number) for number in range(3)]
    got = []
    for frame in prepare.frames():
        assert prepare.slab.holds(frame.slot, frame.generation, prepare.process.index)
        got.append(frame)
        prepare.slab.release(frame.slot)
        prepare.stopping = len(got) == 3
    assert got == sent
    assert counted(prepare, "done") == 3


def test_a_descriptor_that_is_stale_is_dropped(start: Start) -> None:
    source, prepare = start(CAPTURE), start("prepare")
    stale = expose(source, 0)
    prepare.slab.release(stale.slot)  # as the supervisor does for the dead
    fresh = expose(source, 1)
    assert fresh.slot == stale.slot
    assert next(iter(prepare.frames())) == fresh
    assert counted(prepare, "stale") == 1


@pytest.mark.parametrize("slot", [-1, 4, 1 << 62])
def test_a_descriptor_of_no_slot_is_dropped(start: Start, slot: int) -> None:
    source, prepare = start(CAPTURE), start("prepare")
    source.send("prepare", FrameRef("s0", 0, slot, 1, 1, []))
    fresh = expose(source, 1)
    assert next(iter(prepare.frames())) == fresh


def test_a_slot_whose_descriptor_was_lost_comes_back(start: Start) -> None:
    source, prepare = start(CAPTURE), start("prepare")
    slot, _ = source.slab.acquire("s0", source.process.index) or (-1, -1)
    source.slab.hand_over(slot, prepare.process.index)  # and dies before it sends
    frames = prepare.frames()
    give_up = time.monotonic() + PATIENCE_S
    while not prepare.slab.is_free(slot):
        assert time.monotonic() < give_up
        expose(source, 7)
        prepare.slab.release(next(frames).slot)


def test_frames_that_are_kept_waiting_are_no_orphans(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.worker, "_patience_ns", lambda deadline_ms: 0)
    source, detect = start(CAPTURE), start("prepare")
    frame = expose(source, 0)
    assert next(detect.turns(lambda: 10_000, set)) == [frame]
    source.send("prepare", frame)  # once more
    assert next(detect.turns(lambda: 1000, lambda: {frame.slot})) == []
    assert counted(detect, "stale") == 1
    assert detect.slab.holds(frame.slot, frame.generation, detect.process.index)
    assert next(detect.turns(lambda: 0, set)) == []
    assert detect.slab.is_free(frame.slot), "nobody knows of it any more"


def test_an_idle_loop_beats_and_ends_on_sigterm(start: Start) -> None:
    prepare = start("prepare")
    prepare.ready()
    assert counted(prepare, "state") == State.RUNNING
    beats = [counted(prepare, "beat_ns")]

    def sigterm() -> None:
        beats.append(counted(prepare, "beat_ns"))
        if len(beats) == 4:
            signal.raise_signal(signal.SIGTERM)

    assert list(prepare.frames(each_turn=sigterm)) == []
    assert beats == sorted(set(beats)), "once a turn"


def test_ctrl_c_is_left_to_the_supervisor(start: Start) -> None:
    start("prepare")
    os.kill(os.getpid(), signal.SIGINT)


def test_garbage_is_counted_and_dropped(start: Start) -> None:
    source, prepare = start(CAPTURE), start("prepare")
    source.send("prepare", Trigger("s0", 1, 2))
    fresh = expose(source, 1)
    assert next(iter(prepare.frames())) == fresh
    assert counted(prepare, "failed") == 1


def test_a_message_too_large_cuts_off_its_sender_and_nobody_else(start: Start) -> None:
    source, prepare = start(CAPTURE), start("prepare")
    with zmq.Context() as context, context.socket(zmq.PUSH) as giant:
        giant.linger = 0
        giant.connect(f"ipc://{prepare.runtime_dir}/prepare")
        giant.send(b"x" * (MAX_MESSAGE_BYTES + 1))
        fresh = expose(source, 1)
        assert next(iter(prepare.frames())) == fresh
        assert prepare.receive(300, FrameRef) == []
        giant.send(encode(fresh))
        assert prepare.receive(10_000, FrameRef) == [fresh], "it may come again"


def test_sending_never_waits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.worker, "QUEUE_MESSAGES", 10)
    source = start(CAPTURE)
    sent = [source.send("gate", Trigger("s0", number, 1)) for number in range(50)]  # nobody is there
    assert sent.count(True) == 10
    assert not any(sent[10:])
    assert counted(source, "failed") == 40
    assert [t.number for t in start("gate").receive(10_000, Trigger)][:1] == [0], "what was queued arrives later"


def test_a_calibration_is_there_or_not_or_damaged(start: Start) -> None:
    judge = start("judge")
    assert judge.calibration() is None
    calibration_path(judge.runtime_dir).write_text("{")
    with pytest.raises(CalibrationError, match="not a calibration"):
        judge.calibration()


def test_what_the_gate_knows_of_the_sources(start: Start) -> None:
    gate, source = start("gate"), start(CAPTURE)
    assert gate.numbered("s0") == 0
    source.slab.head["next_trigger"][source.process.index] = 5
    assert gate.numbered("s0") == 5
    assert not gate.source_ended("s0")
    source.report(State.DONE)
    assert gate.source_ended("s0")


@pytest.mark.parametrize("arguments", [["gate"], [], ["nonsense"]])
def test_a_process_that_no_supervisor_started_says_so(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "edge", *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "maskline run" in done.stderr
    assert "Traceback" not in done.stderr
