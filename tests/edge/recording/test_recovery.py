"""`recover`: what a crash left becomes a whole recording, without the chunk that was open."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_helpers import picture, write, write_all
from typer.testing import CliRunner

from edge.cli import app
from edge.errors import SourceError
from edge.recording import Recording, RecordingWriter, recover
from edge.recording.container import McapFile


def told(path: Path) -> list[object]:
    """All that a recording says."""
    recording = Recording(path)
    return [
        recording.metadata,
        recording.stations,
        *(list(recording.inputs(name)) for name in recording.stations),
        *(recording.truths(name) for name in recording.stations),
        list(recording.results()),
        list(recording.verdicts()),
        recording.attachment("calibration.json"),
    ]


def test_wherever_it_was_cut_all_that_can_be_read_is_in_the_recovered_file(tmp_path: Path) -> None:
    data = write_all(tmp_path / "whole.mcap").read_bytes()
    cut, out = tmp_path / "cut.mcap", tmp_path / "out.mcap"
    recovered = 0
    for at in [*range(200, len(data), 997), *range(len(data) - 60, len(data))]:
        cut.write_bytes(data[:at])
        made = recover(cut, out)
        recovered += 1
        recording = Recording(out)
        assert recording.complete
        assert told(out) == told(cut)
        assert made.lost_bytes < 1 << 14  # a chunk, its index
        with out.open("rb") as file:
            reader = make_reader(file, validate_crcs=True)
            summary = reader.get_summary()
            assert summary is not None
            assert summary.statistics is not None
            assert summary.statistics.message_count == made.messages == sum(1 for _ in reader.iter_messages())
            assert summary.statistics.chunk_count == made.chunks == len(summary.chunk_indexes)
            indexes = sum(len(chunk.message_index_offsets) for chunk in summary.chunk_indexes)
        with McapFile(out) as whole:
            assert [opcode for opcode, _, _ in whole.records(8, whole.size - 8)].count(7) == indexes
        out.unlink()
    assert recovered > 60


def test_seeking_works_in_a_recovered_file(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mcap", ("top",), parts=40, size=2000).read_bytes()
    (tmp_path / "a.mcap").write_bytes(data[: len(data) * 3 // 4])
    recover(tmp_path / "a.mcap", tmp_path / "b.mcap")
    frame = Recording(tmp_path / "b.mcap").frame("top", 17)
    assert frame is not None
    np.testing.assert_array_equal(frame.decode(), picture(17, (2000, 60, 1)))


def test_a_damaged_chunk_is_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", ("top",), parts=40, size=2000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data[:-100])
    made = recover(path, tmp_path / "b.mcap")
    assert 1 << 20 < made.lost_bytes < 3 << 20
    frames = len(list(Recording(tmp_path / "b.mcap").events("top"))) // 2
    assert 20 < frames < 40
    assert Recording(tmp_path / "b.mcap").damage == []


def test_what_is_damaged_between_chunks_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with RecordingWriter(path, {}, chunk_bytes=1) as out:
        out.trigger("top", 0, 1)
        out.add_metadata("notes", {"a": "b"})
        out.trigger("top", 1, 2)
        out.trigger("top", 2, 3)
    with McapFile(path) as file:
        chunks = [at for opcode, at, _ in file.records(8, file.size - 8) if opcode == 6]
    data = bytearray(path.read_bytes())
    data[data.index(b"notes") - 1] = 0xFF  # the length of the name
    data[chunks[1] + 16] ^= 1  # the size that the chunk declares
    path.write_bytes(data[:-1])
    for recording in (Recording(path), Recording(recover(path, tmp_path / "b.mcap").path)):
        assert [event.number for event in recording.events("top")] == [0, 2]


def test_what_cannot_be_recovered_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    whole, out = write(tmp_path / "a.mcap"), tmp_path / "out.mcap"
    (tmp_path / "odd.mcap").write_bytes(b"no recording")
    (tmp_path / "start.mcap").write_bytes(whole.read_bytes()[:60])
    for name, match in [("odd", "begins with"), ("start", "description"), ("gone", "No such file")]:
        with pytest.raises(SourceError, match=rf"{name}\.mcap.*{match}"):
            recover(tmp_path / f"{name}.mcap", out)
    with pytest.raises(SourceError, match=r"a\.mcap: exists already"):
        recover(whole, whole)
    with pytest.raises(SourceError, match="cannot write"):
        recover(whole, tmp_path / "no" / "folder.mcap")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mcap", "odd.mcap", "start.mcap"]


def test_the_command_says_what_was_saved(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap")
    runner = CliRunner()
    assert "nothing to recover" in runner.invoke(app, ["recover", str(path)]).output
    path.write_bytes(path.read_bytes()[:-100])
    done = runner.invoke(app, ["recover", str(path)])
    assert done.exit_code == 0
    assert f"{tmp_path / 'a.recovered.mcap'}: 72 messages in 1 chunks; lost: " in done.output
    assert Recording(tmp_path / "a.recovered.mcap").complete


def test_the_command_does_not_call_a_recording_whole_whose_chunks_are_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", ("top",), parts=40, size=2000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert Recording(path).complete
    done = CliRunner().invoke(app, ["recover", str(path)])
    assert done.exit_code == 0
    assert "nothing to recover" not in done.output
    assert "is damaged: its checksum does not match" in done.output
    made = Recording(tmp_path / "a.recovered.mcap")
    assert 20 < len(list(made.events("top"))) // 2 < 40
    assert made.verify() > 2
    assert made.damage == []


def test_memory_is_that_of_a_chunk_whatever_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    image = np.zeros((1000, 1000, 1), np.uint8)
    out = RecordingWriter(path, {})
    for number in range(61):
        out.frame("top", number, number, image, "raw")
    out.abandon()
    tracemalloc.start()
    try:
        made = recover(path, tmp_path / "b.mcap")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
        tracemalloc.reset_peak()
        assert sum(event.number for event in Recording(tmp_path / "b.mcap").events("top")) == 60 * 59 // 2
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
    assert (made.messages, made.chunks) == (60, 30)
