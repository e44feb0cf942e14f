"""The thread that writes recordings: what it writes, when it begins another file, and what it does without a disk."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from recorder_helpers import MIB, numbers, record_into

import edge.recorder.writing
from edge.recorder.open_recording import END
from edge.recorder.retention import OneFile, RollFolder
from edge.recorder.rolls import Bounds
from edge.recorder.slots import RecordTrouble
from edge.recording import RecordedTrigger, Recording
from edge.testing import wait_until
from edge.verdict import Decision
from tests.disks import fill, loop_disk


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mcap"))


def test_everything_is_written_and_said_once(tmp_path: Path) -> None:
    recorder, feed = record_into(tmp_path)
    feed.parts(5)
    assert recorder.finish(100)
    (path,) = files(tmp_path)
    recording = Recording(path)
    assert recording.complete
    assert numbers(path) == list(range(5))
    assert [e.number for e in recording.events("cam") if isinstance(e, RecordedTrigger)] == list(range(5))
    assert [r.number for _, r in recording.results()] == list(range(5))
    assert [v.part for v in recording.verdicts()] == list(range(5))
    assert recording.metadata["first_numbers"] == '{"cam": 0}'
    assert dict(recording.metadata_records)[END] == {"frames": "5"}
    counts = recorder.counts
    assert (counts.frames, counts.messages, counts.frames_lost, counts.messages_lost) == (5, 15, 0, 0)


def test_files_are_rolled_by_size_between_two_parts(tmp_path: Path) -> None:
    recorder, feed = record_into(tmp_path, roll_mib=1)
    feed.parts(40)  # of 64 KiB
    assert recorder.finish(100)
    found = files(tmp_path)
    assert len(found) == 3, "14 parts fit"
    assert [n for path in found for n in numbers(path)] == list(range(40))
    for path in found:
        recording = Recording(path)
        assert recording.complete
        assert path.stat().st_size <= MIB
        parts = numbers(path)
        assert [v.part for v in recording.verdicts()] == parts, "a part lies whole in one file"
        assert recording.metadata["first_numbers"] == f'{{"cam": {parts[0]}}}'


def test_a_file_ends_where_no_part_is_open(tmp_path: Path) -> None:
    """Parts overlap three by three: only after each third is there such a moment."""
    recorder, feed = record_into(tmp_path, roll_mib=1)
    for _ in range(14):
        for number in (feed.expose(), feed.expose(), feed.expose()):
            feed.judge(number)
        wait_until(lambda: feed.released == feed.next)
    assert recorder.finish(100)
    found = files(tmp_path)
    assert len(found) > 2
    for path in found:
        parts = numbers(path)
        assert parts[0] % 3 == 0
        assert [v.part for v in Recording(path).verdicts()] == parts


def test_a_line_that_always_has_an_open_part_rolls_within_the_size(tmp_path: Path) -> None:
    recorder, feed = record_into(tmp_path, roll_mib=1)
    for _ in range(40):
        feed.expose()
        wait_until(lambda: feed.released == feed.next)
    assert recorder.finish(100)
    found = files(tmp_path)
    assert [n for path in found for n in numbers(path)] == list(range(40))
    assert all(path.stat().st_size <= MIB for path in found)


def test_files_are_rolled_by_time(tmp_path: Path) -> None:
    recorder, feed = record_into(tmp_path, roll_s=1)
    feed.parts(1)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 1.1)
    feed.parts(2)
    assert recorder.finish(100)
    first, *others = [numbers(path) for path in files(tmp_path)]
    assert (first, [n for found in others for n in found]) == ([0], [1, 2])


def test_a_chunk_that_waits_for_more_is_closed_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow line a crash must not cost all that has gathered in an hour."""
    monkeypatch.setattr("edge.recorder.open_recording.FLUSH_S", 0.05)
    recorder, feed = record_into(tmp_path)
    feed.parts(2)
    wait_until(lambda: recorder.counts.frames == 2)  # nothing else comes
    (path,) = files(tmp_path)
    assert not Recording(path).complete
    assert numbers(path) == [0, 1]
    assert recorder.finish(100)


def test_a_chunk_is_closed_soon_also_when_there_is_no_idle_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.recorder.open_recording.FLUSH_S", 0.05)
    monkeypatch.setattr("edge.recorder.writing._IDLE_S", 1)
    recorder, feed = record_into(tmp_path)
    wait_until(lambda: feed.parts(1) or recorder.counts.frames > 0)
    assert feed.next < 14, "before a chunk was full"
    assert recorder.finish(100)


def test_a_disk_that_hangs_delays_nobody_and_what_is_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(RollFolder):
        def next_path(self, start_ns: int) -> Path:
            assert moves.wait(100)
            return super().next_path(start_ns)

    monkeypatch.setattr(edge.recorder.writing, "QUEUE_ITEMS", 8)
    moves = threading.Event()
    recorder, feed = record_into(tmp_path, Hangs(tmp_path, "line", Bounds(MIB, 10 * MIB, MIB), 0))
    for _ in range(5):
        feed.part()
    assert recorder.counts.frames_lost + recorder.counts.messages_lost >= 5 * 4 - 9
    assert feed.released == recorder.counts.frames_lost, "the slots of what is lost are free again"
    assert not recorder.finish(0.05)
    moves.set()
    assert recorder.finish(100)
    counts = recorder.counts
    assert (counts.frames + counts.frames_lost, counts.messages + counts.messages_lost) == (5, 15)
    assert feed.released == 5
    (path,) = files(tmp_path)
    assert numbers(path) == list(range(counts.frames))


def test_a_full_disk_stops_it_with_a_word_and_it_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.recorder.writing, "RETRY_S", 0.1)
    with loop_disk(tmp_path, 16) as disk:
        folder = disk / "rolls"
        place = RollFolder(folder, "line", Bounds(100 * MIB, 300 * MIB, MIB), 2 * MIB)
        recorder, feed = record_into(folder, place)
        feed.parts(3)
        plug = fill(disk, leave_bytes=MIB)
        feed.parts(3)
        assert recorder.trouble is RecordTrouble.FULL
        assert recorder.counts.frames_lost == 3
        assert feed.released == 6
        (path,) = files(folder)
        assert Recording(path).complete, "it was closed with what the disk had left for that"
        assert numbers(path) == [0, 1, 2]
        plug.unlink()
        wait_until(lambda: feed.parts(1) or recorder.trouble is RecordTrouble.NO)
        assert recorder.finish(100)
        assert numbers(files(folder)[-1])[-1] == feed.next - 1
        assert recorder.counts.frames + recorder.counts.frames_lost == feed.next


def test_a_disk_that_others_fill_to_the_last_byte_leaves_a_readable_file(tmp_path: Path) -> None:
    """Nothing is kept free here: the write itself fails, in the middle of a chunk."""
    with loop_disk(tmp_path, 8) as disk:
        recorder, feed = record_into(disk, RollFolder(disk, "line", Bounds(100 * MIB, 300 * MIB, MIB), -(1 << 40)))
        feed.parts(3)
        fill(disk)
        feed.parts(40)
        assert recorder.trouble is RecordTrouble.FULL
        assert recorder.finish(100)
        counts = recorder.counts
        (path,) = files(disk)
        assert numbers(path) == list(range(counts.frames)), "just what is counted as written can be read"
        assert counts.frames + counts.frames_lost == 43


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    recorder, feed = record_into(tmp_path / "file" / "rolls")
    feed.parts(2)
    assert recorder.trouble is RecordTrouble.REFUSED
    assert recorder.counts.frames_lost == 2
    assert recorder.finish(100)


def test_a_number_that_comes_again_is_left_out_and_counted(tmp_path: Path) -> None:
    recorder, feed = record_into(tmp_path)
    feed.parts(3)
    feed.next = 1
    feed.part()
    assert recorder.finish(100)
    counts = recorder.counts
    assert (counts.frames, counts.frames_lost, counts.messages_lost) == (3, 1, 1), "the trigger and the frame"
    assert numbers(files(tmp_path)[0]) == [0, 1, 2]


def test_one_file_is_never_rolled_and_never_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.recorder.writing, "RETRY_S", 0.0)
    path = tmp_path / "one.mcap"
    recorder, feed = record_into(tmp_path, OneFile(path, 0), roll_mib=1, roll_s=1)
    feed.parts(20)
    assert recorder.finish(100)
    assert numbers(path) == list(range(20))
    recorder, feed = record_into(tmp_path, OneFile(path, 0))
    feed.parts(1)
    assert recorder.trouble is RecordTrouble.REFUSED
    assert recorder.finish(100)
    assert numbers(path) == list(range(20))


def test_rejects_are_marked(tmp_path: Path) -> None:
    folder = RollFolder(tmp_path, "line", Bounds(MIB, 10 * MIB, MIB), 0)
    recorder, feed = record_into(tmp_path, folder, mark_s=2)
    feed.parts(1)
    before_ns = time.time_ns()
    feed.parts(1, Decision.REJECT)
    assert recorder.finish(100)
    ((first, last),) = folder.marks.stretches
    assert abs(first - (before_ns - 2 * 10**9)) < 10**9
    assert abs(last - (before_ns + 2 * 10**9)) < 10**9
    assert (tmp_path / "line.marks").read_text() == f"{first} {last}\n"


def test_nothing_is_marked_where_nothing_shall_be(tmp_path: Path) -> None:
    folder = RollFolder(tmp_path, "line", Bounds(MIB, 10 * MIB, MIB), 0)
    recorder, feed = record_into(tmp_path, folder, mark_s=0)
    feed.parts(1, Decision.REJECT)
    assert recorder.finish(100)
    assert not folder.marks.stretches
