"""A folder of recordings within its bounds, and the stretches round rejects that outlive their files."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from recorder_helpers import MIB, Feed, numbers, quickly, record_into
from structlog.testing import capture_logs

from edge.recorder.retention import RollFolder
from edge.recorder.rolls import Bounds, find_rolls, marked_path
from edge.recorder.writing import Recorder
from edge.recording import RecordedTrigger, Recording
from edge.verdict import Decision
from tests.disks import fill, loop_disk

SMALL = {"roll_mib": 1, "max_mib": 6, "marked_mib": 1}
BOUNDS = Bounds(MIB, 6 * MIB, MIB)
ROLL_PARTS = 13  # of which a roll of SMALL is full
HOUR_NS = 3600 * 10**9


def total(folder: Path) -> int:
    """Bytes in the folder, in which files come and go."""
    found = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def settle(feed: Feed, folder: RollFolder) -> None:
    """Wait until the recorder has cut what there is to cut."""
    quickly(lambda: folder._cutting is None and folder._nothing_to_cut)


def record_parts(recorder_and_feed: tuple[Recorder, Feed], folder: RollFolder, parts: int, *bad: int) -> None:
    """Some parts, of which some are rejected; the disk is never over its bound."""
    _, feed = recorder_and_feed
    for i in range(parts):
        feed.parts(1, Decision.REJECT if i in bad else Decision.PASS)
        assert total(folder.folder) <= 6 * MIB
        settle(feed, folder)


def test_the_oldest_go_first_and_the_bound_holds_at_any_moment(tmp_path: Path) -> None:
    folder = RollFolder(tmp_path, "line", BOUNDS, 0)
    (tmp_path / "mine.mcap").write_bytes(b"not a roll")
    both = record_into(tmp_path, folder, **SMALL)
    record_parts(both, folder, 10 * ROLL_PARTS)
    assert both[0].finish(10)
    left = [n for roll in find_rolls(tmp_path, "line") for n in numbers(roll.path)]
    assert left == list(range(left[0], 10 * ROLL_PARTS)), "the newest, without a hole"
    assert total(tmp_path) > 3 * MIB, "and as many as fit"
    assert (tmp_path / "mine.mcap").read_bytes() == b"not a roll"


def test_what_was_recorded_round_a_reject_outlives_its_file(tmp_path: Path) -> None:
    folder = RollFolder(tmp_path, "line", BOUNDS, 0)
    both = record_into(tmp_path, folder, **SMALL, mark_s=0.001)
    record_parts(both, folder, 10 * ROLL_PARTS, 5, 30)
    assert both[0].finish(10)
    rolls = find_rolls(tmp_path, "line")
    kept = [n for roll in rolls if roll.marked for n in numbers(roll.path)]
    assert {5, 30} <= set(kept)
    assert len(kept) < 10, "and little else"
    assert not any("first_numbers" in Recording(roll.path).metadata for roll in rolls if roll.marked)
    assert min(n for roll in rolls if not roll.marked for n in numbers(roll.path)) > 30
    for roll in rolls:
        recording = Recording(roll.path)
        assert recording.complete
        assert recording.metadata["line"] == "line"
    first = Recording(rolls[0].path)
    assert [v.part for v in first.verdicts() if v.decision is Decision.REJECT] == [5]
    assert 5 in [e.number for e in first.events("cam") if isinstance(e, RecordedTrigger)]
    assert 5 in [r.number for _, r in first.results()]
    assert not list(tmp_path.glob("*.part"))


def set_back(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Set the clock of the box back; what the kernel dates is not touched by it."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - hours * HOUR_NS)


def test_what_is_marked_outlives_a_clock_that_is_set_back_while_its_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel dates the file by the new clock: it ends before it began."""
    both = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    record_parts(both, folder, 5, 3)
    assert both[0].finish(10)
    (roll,) = find_rolls(tmp_path, "line")
    os.utime(roll.path, ns=(roll.end_ns - HOUR_NS,) * 2)
    set_back(monkeypatch, 1)
    again = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    again[1].next = again[1].released = 100
    record_parts(again, folder, 8 * ROLL_PARTS)
    assert again[0].finish(10)
    assert not roll.path.exists()
    assert 3 in numbers(marked_path(roll.path))


def test_what_is_marked_is_not_lost_without_a_word_when_the_clock_was_set_back(tmp_path: Path) -> None:
    both = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    record_parts(both, folder, 5, 3)
    assert both[0].finish(10)
    (roll,) = find_rolls(tmp_path, "line")
    os.utime(roll.path, ns=(roll.end_ns - HOUR_NS,) * 2)
    folder = RollFolder(tmp_path, "line", Bounds(MIB, 2 * MIB, MIB), 0)  # nothing closed may stay
    with capture_logs() as logs:
        folder.next_path(time.time_ns())
    assert not roll.path.exists()
    assert [event["event"] for event in logs] == ["marked_roll_deleted"]


def test_the_oldest_go_first_also_after_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL)
    record_parts(both, folder, 3 * ROLL_PARTS)
    set_back(monkeypatch, 1)
    record_parts(both, folder, 3 * ROLL_PARTS)
    assert both[0].finish(10)
    left = [n for roll in find_rolls(tmp_path, "line") for n in numbers(roll.path)]
    assert left == list(range(left[0], 6 * ROLL_PARTS)), "the newest, without a hole, in the order of their names"
    assert left[0] > 0


def test_marked_stretches_are_bounded_too(tmp_path: Path) -> None:
    folder = RollFolder(tmp_path, "line", BOUNDS, 0)
    both = record_into(tmp_path, folder, **SMALL, mark_s=600)
    record_parts(both, folder, 12 * ROLL_PARTS, 0)
    assert both[0].finish(10)
    marked = [roll for roll in find_rolls(tmp_path, "line") if roll.marked]
    assert 0 < sum(roll.nbytes for roll in marked) <= 2 * MIB
    assert max(n for roll in marked for n in numbers(roll.path)) > 5 * ROLL_PARTS, (
        "of what is marked the newest is left"
    )


def test_a_recorder_that_comes_after_goes_on_with_files_and_marks(tmp_path: Path) -> None:
    both = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    record_parts(both, folder, 2 * ROLL_PARTS, 3)
    assert both[0].finish(10)
    marks = tmp_path / "line.marks"
    marks.write_bytes(marks.read_bytes() + b"12 ")  # as a dying recorder leaves it
    (tmp_path / "line.20200101T000000.000000Z.mcap.part").write_bytes(b"left")
    again = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    again[1].next = again[1].released = 100
    record_parts(again, folder, 8 * ROLL_PARTS)
    assert again[0].finish(10)
    rolls = find_rolls(tmp_path, "line")
    assert 3 in [n for roll in rolls if roll.marked for n in numbers(roll.path)]
    assert not list(tmp_path.glob("*.part"))


def test_marked_in_a_file_that_a_killed_recorder_left_is_kept_whole(tmp_path: Path) -> None:
    both = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    record_parts(both, folder, 5, 3)
    assert both[0].finish(10)
    (roll,) = find_rolls(tmp_path, "line")
    roll.path.write_bytes(roll.path.read_bytes()[:-20])
    parts = numbers(roll.path)
    assert 3 in parts
    again = record_into(tmp_path, folder := RollFolder(tmp_path, "line", BOUNDS, 0), **SMALL, mark_s=0.001)
    again[1].next = again[1].released = 100
    record_parts(again, folder, 7 * ROLL_PARTS)
    assert again[0].finish(10)
    assert numbers(marked_path(roll.path)) == parts
    assert not roll.path.exists()


def test_a_cut_that_was_too_slow_is_given_up_and_said(tmp_path: Path) -> None:
    """The bound wins: the file goes with what was marked in it."""
    folder = RollFolder(tmp_path, "line", BOUNDS, 0)
    both = record_into(tmp_path, folder, **SMALL, mark_s=0.001)
    record_parts(both, folder, 4 * ROLL_PARTS, 3)
    assert both[0].finish(10)
    path = find_rolls(tmp_path, "line")[0].path
    folder = RollFolder(tmp_path, "line", Bounds(MIB, 6 * MIB, MIB), 0)
    folder.next_path(time.time_ns()).write_bytes(b"\1" * MIB)
    assert folder.step(), "one message"
    assert list(tmp_path.glob("*.part"))
    with capture_logs() as logs:
        for _ in range(3):
            time.sleep(0.000_01)  # another name
            folder.next_path(time.time_ns()).write_bytes(b"\1" * MIB)
            assert total(tmp_path) <= 6 * MIB
    assert not path.exists()
    assert not list(tmp_path.glob("*.part"))
    assert "marked_roll_deleted" in [event["event"] for event in logs]


def test_old_files_make_room_on_a_disk_that_is_smaller_than_the_bound_but_not_what_is_marked(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as disk:
        bounds = Bounds(MIB, 500 * MIB, MIB)
        folder = RollFolder(disk, "line", bounds, 2 * MIB)
        both = record_into(disk, folder, roll_mib=1, mark_s=0.001)
        both[1].parts(3 * ROLL_PARTS, Decision.PASS)
        both[1].parts(1, Decision.REJECT)
        both[1].parts(ROLL_PARTS)
        fill(disk, leave_bytes=4 * MIB)
        both[1].parts(4 * ROLL_PARTS)
        assert both[0].finish(10)
        assert both[0].counts.frames_lost == 0
        left = [n for roll in find_rolls(disk, "line") for n in numbers(roll.path)]
        assert 0 not in left
        assert 3 * ROLL_PARTS in left
