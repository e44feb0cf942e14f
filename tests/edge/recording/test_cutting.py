"""`cut`: stretches of a recording in one of their own, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcap.writer import CompressionType
from mcap_helpers import PERIOD_NS, START_NS, raw_recording, write_all

from edge.recording import RecordedFrame, RecordedTrigger, Recording, RecordingWriter, cut
from edge.recording.container import DamageError, UnsupportedError


def test_what_lies_within_the_stretches_is_copied_as_it_stands(tmp_path: Path) -> None:
    path = write_all(tmp_path / "a.mcap")
    stretches = [(START_NS + n * PERIOD_NS, START_NS + n * PERIOD_NS + 30) for n in (1, 4)]
    assert sum(1 for _ in cut(path, stretches, tmp_path / "b.mcap")) == 10, "one message a step"
    whole, made = Recording(path), Recording(tmp_path / "b.mcap")
    assert made.complete
    assert made.metadata == {**whole.metadata, "cut_from": "a.mcap"}
    assert [name for name, _ in made.metadata_records] == ["maskline", "maskline.end"]
    assert made.attachment("calibration.json") == b"{}"
    wanted = (1, 4)
    assert list(made.events("top")) == [e for e in whole.events("top") if e.number in wanted]
    assert [type(e) for e in made.events("top")].count(RecordedFrame) == 2
    assert [type(e) for e in made.events("top")].count(RecordedTrigger) == 2
    assert not made.lossless, "the one is a JPEG"
    assert list(made.results()) == [(at, r) for at, r in whole.results() if r.number in wanted]
    assert list(made.verdicts()) == [v for v in whole.verdicts() if v.part in wanted]
    assert made.span_ns == (stretches[0][0], stretches[1][1])


def test_with_which_parts_the_whole_file_began_is_not_said_of_what_was_cut_out(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {"first_numbers": '{"top": 0}', "line": "x"}) as out:
        out.trigger("top", 0, 1)
        out.trigger("top", 1, 2)
    list(cut(tmp_path / "a.mcap", [(2, 2)], tmp_path / "b.mcap"))
    assert Recording(tmp_path / "b.mcap").metadata == {"v": "2", "line": "x", "cut_from": "a.mcap"}


def test_a_foreign_file_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(b"nonsense" * 10)
    with pytest.raises(DamageError, match="begins with"):
        list(cut(path, [(0, 1)], tmp_path / "out"))
    assert path.read_bytes() == b"nonsense" * 10


def test_a_file_without_an_index_is_an_error(tmp_path: Path) -> None:
    path = write_all(tmp_path / "a.mcap")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamageError, match="no index: the recorder was killed"):
        list(cut(path, [(0, 1 << 62)], tmp_path / "out"))


def test_a_compressed_chunk_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    path = raw_recording(tmp_path / "a.mcap", {"data": bytes(1 << 26)}, compression=CompressionType.ZSTD)
    with pytest.raises(UnsupportedError, match="compressed"):
        list(cut(path, [(0, 1 << 62)], tmp_path / "out"))
