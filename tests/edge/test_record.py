"""What the line does for its recorder, and what the recorder knows of the line: each process in this one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gate_helpers import good, hand_gate, recipe
from worker_helpers import Start, processes_of

from edge.capture import Capture
from edge.cli.record import record_with
from edge.errors import RecipeError
from edge.messages import FrameRef, Trigger, ViewResult
from edge.plan import plan_line, record_slots
from edge.processes import PREPARE, RECORD, capture
from edge.recipes import load_recipe
from edge.recorder.process import Record, lost_with_an_earlier_one
from edge.recorder.settings import RecordingSettings
from edge.recorder.slots import RecordTrouble
from edge.recording import RecordedFrame, Recording
from edge.settings import Recipe, scoring_sha256
from edge.sources import Exposed, Triggered
from edge.testing import wait_until
from edge.verdict import GateState, Reason
from edge.verdicts import Subscriber
from edge.worker import Worker
from tests.support import marker_recipe

RECORDS = {"recording": {"slots": 2, "encoding": "raw"}}
CAPTURE = capture("s0")


def recording_recipe(**station: object) -> Recipe:
    plain = recipe(**RECORDS).model_dump(mode="json")
    plain["stations"][0] |= station
    return Recipe.model_validate(plain)


@pytest.fixture
def start(runtime_dir: Path, tmp_path: Path) -> Iterator[Start]:
    with processes_of(recording_recipe(), runtime_dir, tmp_path) as make:
        yield make


def row(worker: Worker, name: str) -> int:
    return int(worker.slab.row(worker.process.index)[name])


def image(value: int) -> np.ndarray:
    return np.full((224, 224, 1), value, np.uint8)


def expose(source: Capture, number: int, value: int = 7, shape: tuple[int, ...] = (224, 224, 1)) -> None:
    source.on_trigger(Triggered(number, time.monotonic_ns()))
    source.on_frame(Exposed(number, np.full(shape, value, np.uint8)))


def test_a_line_that_does_not_record_has_nothing_of_it() -> None:
    plan = plan_line(recipe())
    assert RECORD not in [p.name for p in plan.processes]
    assert set(plan.layouts) == {"s0"}


def test_recording_changes_no_calibration() -> None:
    """What a threshold is valid for has nothing to do with what is written down."""
    (plain,), (recorded,) = recipe().stations, recording_recipe().stations
    assert scoring_sha256(plain) == scoring_sha256(recorded)


def test_run_with_record_records_whatever_recipe_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that a line changes over to; and what a recipe says of it stays."""
    for name in ("MASKLINE__RECORDING", "MASKLINE__RECORDING__FOLDER"):
        monkeypatch.setenv(name, "{}")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    assert load_recipe(marker_recipe(tmp_path)).recording is None
    record_with(None)
    assert load_recipe(marker_recipe(tmp_path)).recording == RecordingSettings()
    record_with(tmp_path / "here")
    wanted = RecordingSettings(folder=tmp_path / "here", roll_s=7)
    assert load_recipe(marker_recipe(tmp_path, extra="[recording]\nroll_s = 7")).recording == wanted


def test_frames_that_no_jpeg_holds_are_refused_before_the_line_starts(tmp_path: Path) -> None:
    path = marker_recipe(tmp_path, extra='[recording]\nencoding = "jpeg"')
    load_recipe(path)
    path.write_text(path.read_text().replace("height_px = 224", "height_px = 224, bit_depth = 12"))
    with pytest.raises(RecipeError, match=r'"jpeg" is for 8 bits, and station s0 has frame\.bit_depth = 12'):
        load_recipe(path)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("roll_s = 0", "recording.roll_s = 0: input should be greater than or equal to 1"),
        ("max_mib = 100", "max_mib = 100 is less than three files of roll_mib = 1024 and marked_mib = 2048"),
        ('encoding = "gif"', "recording.encoding = 'gif'"),
    ],
)
def test_a_mistake_in_the_section_is_named(tmp_path: Path, field: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(marker_recipe(tmp_path, extra=f"[recording]\n{field}"))


def test_the_frame_is_sent_on_its_way_before_it_is_copied_for_the_recorder(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    monkeypatch.setattr(Worker, "pass_on", lambda *a, real=Worker.pass_on: (order.append(a[2]), real(*a)))
    monkeypatch.setattr(Worker, "send", lambda *a, real=Worker.send: (order.append(type(a[2]).__name__), real(*a))[1])
    expose(Capture(start(CAPTURE)), 0)
    assert order == ["Trigger", "Trigger", PREPARE, "FrameRef", RECORD, "FrameRef"]


def test_trigger_frame_and_refusal_come_to_the_recorder(start: Start) -> None:
    source, recorder = Capture(start(CAPTURE)), start(RECORD)
    expose(source, 0, value=9)
    source.on_trigger(Triggered(1, 1))
    source.on_frame(Exposed(1, None, Reason.BAD_IMAGE))
    trigger, frame, missing, refused = take(recorder, 4)
    assert isinstance(trigger, Trigger)
    assert isinstance(frame, FrameRef)
    assert (trigger.number, frame.number, missing.number) == (0, 0, 1)
    assert isinstance(refused, ViewResult)
    assert refused.reason is Reason.BAD_IMAGE
    assert recorder.slab.holds(frame.slot, frame.generation, recorder.process.index)
    assert np.array_equal(recorder.slab.arrays(frame.slot)["frame"], image(9))


def take(worker: Worker, count: int) -> list[object]:
    found: list[object] = []
    wait_until(lambda: found.extend(worker.receive(10, Trigger, ViewResult, FrameRef)) or len(found) >= count)
    assert len(found) == count
    return found


def test_parts_without_a_slot_on_the_line_are_recorded_all_the_same(start: Start) -> None:
    source, recorder = Capture(start(CAPTURE)), start(RECORD)
    while source.slab.acquire("s0", source.me):
        pass
    expose(source, 0)
    kinds = [type(m) for m in take(recorder, 3)]
    assert kinds == [Trigger, ViewResult, FrameRef], "UNINSPECTED(overload), and its frame"


def test_a_frame_without_a_record_slot_is_counted_and_delays_nothing(start: Start) -> None:
    source, prepare = Capture(start(CAPTURE)), start(PREPARE)
    for number in range(4):
        expose(source, number)
    assert len(prepare.slab.held_by(prepare.process.index)) == 4
    assert (row(source.worker, "frames_offered"), row(source.worker, "frames_unrecorded")) == (4, 2)


def test_a_frame_that_fits_no_slot_is_counted(start: Start) -> None:
    source = Capture(start(CAPTURE))
    expose(source, 0, shape=(100, 224, 1))
    assert row(source.worker, "frames_unrecorded") == 1


def test_a_lossless_source_waits_for_the_recorder(runtime_dir: Path, tmp_path: Path) -> None:
    lossless = recording_recipe(source={"kind": "marker", "mode": "lossless"})
    with processes_of(lossless, runtime_dir, tmp_path) as start:
        source = Capture(start(CAPTURE))
        for number in range(2):
            assert source.has_room()
            expose(source, number)
        assert not source.has_room()
        source.slab.release(source.slab.station_slots[record_slots("s0")][0])
        assert source.has_room()


def test_what_came_is_written_and_the_slots_are_free_again(start: Start, tmp_path: Path) -> None:
    source, worker = Capture(start(CAPTURE)), start(RECORD)
    record = Record(worker)
    record.recorder.start()
    slots = worker.slab.station_slots[record_slots("s0")]
    with Subscriber(worker.verdict_endpoint, "test") as verdicts:
        for number in range(5):
            expose(source, number, value=number)
            wait_until(lambda: not record.turn(verdicts, 10) and all(worker.slab.is_free(s) for s in slots))
        record.finish(verdicts)
    (path,) = (tmp_path / "recordings").glob("*.mcap")
    recording = Recording(path)
    frames = [e for e in recording.events("s0") if isinstance(e, RecordedFrame)]
    assert [int(f.decode()[0, 0, 0]) for f in frames] == list(range(5))
    assert recording.recipe() == worker.recipe
    assert recording.metadata["simulated"] == "true"
    assert row(worker, "done") == 5


def test_a_descriptor_that_is_stale_is_not_recorded(start: Start) -> None:
    source, worker = Capture(start(CAPTURE)), start(RECORD)
    record = Record(worker)
    expose(source, 0)
    worker.slab.reclaim(worker.process.index)
    with Subscriber(worker.verdict_endpoint, "test") as verdicts:
        record.recorder.start()
        wait_until(lambda: record.turn(verdicts, 10) and row(worker, "stale") == 1)
        record.finish(verdicts)
    assert row(worker, "done") == 0


def test_what_a_dead_recorder_took_along_is_counted_by_the_next(start: Start) -> None:
    source, worker = Capture(start(CAPTURE)), start(RECORD)
    for number in range(3):
        expose(source, number)
    assert lost_with_an_earlier_one(worker) == 0, "two wait in slots, one was dropped"
    worker.slab.reclaim(worker.process.index)
    assert lost_with_an_earlier_one(worker) == 2
    record = Record(worker)
    with Subscriber(worker.verdict_endpoint, "test") as verdicts:
        record.recorder.start()
        record.turn(verdicts, 1)
        assert row(worker, "frames_unrecorded") == 2
        assert lost_with_an_earlier_one(worker) == 0, "and only once"
        record.finish(verdicts)


def test_messages_that_are_left_out_are_trouble_as_frames_are(start: Start) -> None:
    worker = start(RECORD)
    record = Record(worker)
    record.recorder.start()
    with Subscriber(worker.verdict_endpoint, "test") as verdicts:
        for _ in range(2):
            record.recorder.put(Trigger("s0", 0, 1))  # the second is not written: the number was there
        wait_until(lambda: record.turn(verdicts, 10) or row(worker, "messages_unrecorded") == 1)
        assert RecordTrouble(row(worker, "trouble")) is RecordTrouble.BEHIND
        record.finish(verdicts)


@pytest.mark.parametrize("trouble", [RecordTrouble.FULL, RecordTrouble.REFUSED, RecordTrouble.BEHIND])
def test_the_heartbeat_says_what_is_wrong_and_verdicts_go_on(
    runtime_dir: Path, tmp_path: Path, trouble: RecordTrouble
) -> None:
    with hand_gate(recipe(**RECORDS), runtime_dir, tmp_path) as line:
        row = line.slab.row(line.worker.index_of(RECORD))
        row["trouble"], row["frames_unrecorded"], row["messages_unrecorded"] = trouble, 3, 4
        line.until(lambda: "recording" in " ".join(line.last_beat.trouble))
        assert line.last_beat.state is GateState.DEGRADED
        line.until(lambda: line.last_beat.counters["frames_unrecorded"] == 3)
        assert line.last_beat.counters["messages_unrecorded"] == 4
        line.send(Trigger("s0", 0, time.monotonic_ns()), good("s0", 0))
        line.until(lambda: bool(line.verdicts))
