"""Files that are no recording, not one of ours, newer than we are, damaged, or made to harm: a clear error each."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import msgpack
import numpy as np
import pytest
import zstandard
from mcap.writer import CompressionType
from mcap_helpers import START_NS, raw_recording, write, write_all

from edge.errors import SourceError
from edge.recording import RecordedFrame, Recording, RecordingWriter
from edge.recording.container import FRAMING, MAGIC, MESSAGE
from edge.recording.format import MAX_CHUNK_BYTES
from edge.sources.images import BadImageError

HERE = Path(__file__).parent


def test_a_thousand_mutations_are_read_as_far_as_they_go_or_refused(tmp_path: Path) -> None:
    """In a process whose address space may grow by 256 MiB, and no more than 48 MiB of it be used."""
    command = [sys.executable, HERE / "fuzz.py", tmp_path, "1000", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ, PYTHONPATH=str(HERE.parents[2]))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("1000 mutations")
    counts = dict(re.findall(r"'([a-z, ]+)': (\d+)", done.stdout))
    assert int(counts["done, done"]) > 300
    assert int(counts["refused, done"]) > 200
    assert int(counts["refused, refused"]) > 20


def patched(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\x89MCAP", "cut after 5 bytes"),
        (MAGIC, "no header"),
        (b"\x89MCAP1\r\n and then", "a newer one|newer"),
        (b"\x89PNG\r\n\x1a\n and then", "another file, renamed"),
        (b"no recording at all" * 30, "begins with"),
        (MAGIC + FRAMING.pack(1, 1 << 40), "a record of 1099511627776 bytes"),
        (MAGIC + FRAMING.pack(1, 8) + struct.pack("<II", 1 << 31, 0), "damaged Header"),
        (MAGIC + bytes(500), "damaged after byte 8"),
    ],
)
def test_what_is_no_recording_is_an_error_that_names_it(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "odd.mcap"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"odd\.mcap: .*({words})"):
        Recording(path)


def test_what_is_no_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mcap")
    for name, words in [("gone.mcap", "No such file"), ("pipe.mcap", "not a file"), (".", "not a file")]:
        with pytest.raises(SourceError, match=rf"{re.escape(str(tmp_path / name))}: .*{words}"):
            Recording(tmp_path / name)


def test_what_others_have_recorded_is_an_error_that_says_whose_it_is(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"odd\.mcap: .*no recording of maskline: its profile is 'ros2'"):
        Recording(raw_recording(tmp_path / "odd.mcap", {}, profile="ros2"))


def test_what_a_newer_maskline_has_recorded_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "odd.mcap"
    with RecordingWriter(path, {"v": "3"}) as out:
        out.trigger("top", 0, START_NS)
    with pytest.raises(SourceError, match=r"odd\.mcap: a recording of version '3'.*use a newer one"):
        Recording(path)


def test_a_recording_without_its_description_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.mcap")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SourceError, match=r"odd\.mcap: .*description, which is missing: cut or damaged"):
        Recording(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"v": 3, "number": 0}, "version 3"),
        ({"v": 2, "number": -1}, "part number -1"),
        ({"v": 2, "number": "a"}, "part number 'a'"),
        ({"v": 2, "number": True}, "part number True"),
        ({"v": 2, "number": 7}, "part number 7"),  # its sequence is 0
        ({"v": 2, "number": 0}, "height = None"),
        ({"v": 2, "number": 0, "height": 1 << 63, "width": 3}, "height = 9223372036854775808"),
        ([1, 2], "no message of maskline"),
        ("text", "no message of maskline"),
        (b"", "no message of maskline"),
        (b"\xc1", "no message of maskline"),
        (msgpack.packb({"v": 2, "number": 0}) + b"more", "extra data"),
        ({"v": 2, "number": 0, **{str(n): n for n in range(40)}}, "no message of maskline"),
        ({"v": 2, "number": 0, "boxes": [1]}, "no message of maskline"),
        (
            {"v": 2, "number": 0, "encoding": "jpeg", "height": 1, "width": 1, "channels": 1, "dtype": "uint8",
             "quality": 3, "data": b""},
            "a JPEG in a channel that does not say so",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_messages_that_are_not_ours_are_refused(tmp_path: Path, fields: object, words: str) -> None:
    recording = Recording(raw_recording(tmp_path / "odd.mcap", fields))
    with pytest.raises(SourceError, match=rf"odd\.mcap: message 0 of /top/frame .*{words}"):
        list(recording.events("top"))


@pytest.mark.parametrize(
    ("topic", "message", "words"),
    [
        ("/top/trigger", {"missed": 1}, "missed = 1; expected bool"),
        ("/top/trigger", {"missed": False, "count": "many"}, "count = 'many'; expected int"),
        ("/top/truth", {"bad": False, "contrast": "a lot"}, "contrast = 'a lot'; expected float"),
        ("/top/result", {"message": "text"}, "expected bytes"),
        ("/top/result", {"message": msgpack.packb({"v": 1, "type": "view_result"})}, "missing required field"),
        ("/left/verdict", {"message": b"\x93\x93"}, "not msgpack"),
        ("/left/verdict", {"message": bytes(1 << 21)}, "at most 1048576"),
    ],
)
def test_fields_that_are_not_of_their_kind_are_refused(tmp_path: Path, topic: str, message: object, words: str) -> None:
    assert isinstance(message, dict)
    recording = Recording(raw_recording(tmp_path / "odd.mcap", {"v": 2, "number": 0, **message}, topic))
    with pytest.raises(SourceError, match=rf"odd\.mcap: message 0 of {topic} .*{words}"):
        [list(recording.inputs("top")), recording.truths("top"), list(recording.verdicts())]


def test_topics_that_no_recording_has_are_left_out(tmp_path: Path) -> None:
    for topic in (
        "/../frame",
        "/top/../frame",
        "/top/frame/more",
        "/TOP/frame",
        "top/frame",
        "/top/voice",
        "/a b/frame",
    ):
        assert Recording(raw_recording(tmp_path / "odd.mcap", {}, topic)).stations == ()


def test_compressed_chunks_are_refused_before_anything_is_decompressed(tmp_path: Path) -> None:
    for compression in (CompressionType.ZSTD, CompressionType.LZ4):
        fields = {"v": 2, "number": 0, "data": bytes(1 << 26)}
        path = raw_recording(tmp_path / "odd.mcap", fields, compression=compression)
        for cut in (0, 100):
            path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
            with pytest.raises(SourceError, match=r"odd\.mcap: .*compressed \((zstd|lz4)\).*--compression none"):
                list(Recording(path).events("top"))


def peak_bytes(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_nested_arrays_that_declare_a_million_elements_allocate_none(tmp_path: Path) -> None:
    for header in (b"\xdd\x00\x0f\xff\xff", b"\xdf\x00\x0f\xff\xff"):
        recording = Recording(raw_recording(tmp_path / "odd.mcap", header * (1 << 18)))

        def read(recording: Recording = recording) -> None:
            with pytest.raises(SourceError, match="no message of maskline"):
                list(recording.events("top"))

        assert peak_bytes(read) < 8 << 20  # the message itself is 1.3 MB


@pytest.mark.parametrize("encoding", ["zstd", "png"])
def test_a_frame_that_decodes_to_more_than_it_declares_is_not_decoded(encoding: str) -> None:
    black = np.zeros((8000, 8000, 1), np.uint8)
    data = zstandard.compress(black.tobytes()) if encoding == "zstd" else cv2.imencode(".png", black)[1].tobytes()
    frame = RecordedFrame(0, 0, encoding, 2, 3, 1, "uint8", data)

    def decode() -> None:
        with pytest.raises(BadImageError):
            frame.decode()

    resident = peak_bytes(decode)
    assert resident < 1 << 20


def sparse(path: Path, records: bytes) -> Path:
    """A recording that begins like one and goes on with a record that is as long as it says: nothing but a hole."""
    out = RecordingWriter(path, {})
    out.frame("top", 0, START_NS, np.zeros((2, 2, 1), np.uint8))
    out.flush()
    out.abandon()
    with path.open("ab") as file:
        file.write(records)
        file.truncate(1 << 34)
    return path


def test_a_chunk_that_is_as_huge_as_it_says_is_not_read(tmp_path: Path) -> None:
    length = MAX_CHUNK_BYTES + 1
    header = struct.pack("<QQQIIQ", 0, 0, length, 0, 0, length)
    message = FRAMING.pack(5, length - FRAMING.size) + MESSAGE.pack(1, 1, START_NS, START_NS)
    path = sparse(tmp_path / "odd.mcap", FRAMING.pack(6, length + len(header)) + header + message)

    def read() -> None:
        recording = Recording(path)
        assert "has 1073741825 bytes; at most 1073741824 are read" in recording.damage[0]
        assert [event.number for event in recording.events("top")] == [0]

    assert peak_bytes(read) < 1 << 20


def test_attachments_and_descriptions_that_are_huge_are_not_read(tmp_path: Path) -> None:
    words = "8589934592 bytes; at most 67108864 are read"
    attachment, metadata = (sparse(tmp_path / f"{n}.mcap", FRAMING.pack(n, 1 << 33)) for n in (9, 12))

    def read() -> None:
        with pytest.raises(SourceError, match=words):
            Recording(attachment).attachment("any")
        assert words in Recording(metadata).damage[-1]

    assert peak_bytes(read) < 1 << 20


CHUNK_INDEX, ATTACHMENT_INDEX, METADATA_INDEX = 8, 10, 13


def with_index(path: Path, change: Callable[[bytes], bytes], opcode: int = CHUNK_INDEX) -> Path:
    """Change the first record of a kind in the index of a recording; all checksums are right."""
    data = path.read_bytes()
    start = struct.unpack_from("<Q", data, len(data) - 8 - 20)[0]
    summary = data[start : -8 - 29]
    at = 0
    while summary[at] != opcode:
        at += FRAMING.size + FRAMING.unpack_from(summary, at)[1]
    end = at + FRAMING.size + FRAMING.unpack_from(summary, at)[1]
    summary = summary[:at] + change(summary[at:end]) + summary[end:]
    footer = FRAMING.pack(2, 20) + struct.pack("<QQ", start, 0)
    crc = zlib.crc32(footer, zlib.crc32(summary))
    path.write_bytes(data[:start] + summary + footer + struct.pack("<I", crc) + MAGIC)
    return path


def test_an_index_that_names_no_chunk_is_damage(tmp_path: Path) -> None:
    def elsewhere(index: bytes) -> bytes:
        at, length = struct.unpack_from("<QQ", index, 25)
        return index[:25] + struct.pack("<QQ", at + 9, length - 9) + index[41:]

    recording = Recording(with_index(write(tmp_path / "odd.mcap", ("top",)), elsewhere))
    assert list(recording.events("top")) == []
    assert "there is no chunk of" in recording.damage[0]
    with pytest.raises(SourceError, match=r"odd\.mcap: .*there is no chunk of"):
        recording.frame("top", 3)


def test_an_index_that_names_a_chunk_twice_is_not_followed(tmp_path: Path) -> None:
    path = with_index(write(tmp_path / "a.mcap", ("top",)), lambda index: index * 5000)
    recording = Recording(path)
    assert not recording.complete
    assert "its index is wrong" in recording.damage[0]
    assert len(list(recording.events("top"))) == 24


@pytest.mark.parametrize("opcode", [METADATA_INDEX, ATTACHMENT_INDEX])
def test_an_index_that_names_other_records_a_thousand_times_is_not_followed(tmp_path: Path, opcode: int) -> None:
    path = tmp_path / "a.mcap"
    with RecordingWriter(path, {"big": "x" * (1 << 17)}) as out:
        out.add_attachment("big", bytes(1 << 17))
        out.trigger("top", 0, START_NS)
    with_index(path, lambda index: index * 999, opcode)

    def read() -> None:
        recording = Recording(path)
        assert not recording.complete
        assert "its index is wrong" in recording.damage[0]
        assert [name for name, _ in recording.metadata_records] == ["maskline"]
        assert recording.attachment("none") is None

    assert peak_bytes(read) < 1 << 21


def test_an_index_that_names_a_record_within_another_is_not_followed(tmp_path: Path) -> None:
    def inside(index: bytes) -> bytes:
        at, length = struct.unpack_from("<QQ", index, FRAMING.size)
        return index + index[: FRAMING.size] + struct.pack("<QQ", at + 9, length - 9) + index[FRAMING.size + 16 :]

    recording = Recording(with_index(write(tmp_path / "a.mcap", ("top",)), inside, METADATA_INDEX))
    assert not recording.complete
    assert "its index is wrong" in recording.damage[0]


def test_descriptions_are_read_up_to_what_one_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file may hold a thousand of 64 MiB each."""
    monkeypatch.setattr("edge.recording.reader.MAX_RECORD_BYTES", 1 << 12)
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number in range(10):
            out.add_metadata(f"n{number}", {"text": "x" * 1000})
        out.trigger("top", 0, START_NS)
    recording = Recording(tmp_path / "a.mcap")
    assert [name for name, _ in recording.metadata_records] == ["maskline", "n0", "n1", "n2"]
    assert "more than 4096 bytes of metadata" in recording.damage[0]
    assert len(list(recording.events("top"))) == 1


def test_a_message_shorter_than_its_header_is_damage(tmp_path: Path) -> None:
    path = raw_recording(tmp_path / "odd.mcap", b"", enable_crcs=False)

    def shorten(data: bytearray) -> None:
        at = data.index(FRAMING.pack(5, MESSAGE.size))
        data[at : at + FRAMING.size + MESSAGE.size] = FRAMING.pack(5, 4) + bytes(4) + FRAMING.pack(99, 9) + bytes(9)

    recording = Recording(patched(path, shorten))
    assert list(recording.events("top")) == []
    assert recording.damage == ["a message of 4 bytes"]


def test_a_chunk_that_declares_another_size_is_damage(tmp_path: Path) -> None:
    for place in (16, 32):  # uncompressed, and compressed
        path = write(tmp_path / "odd.mcap", ("top",))

        def lie(data: bytearray, place: int = place) -> None:
            at = data.index(b"\x06", 60)
            while struct.unpack_from("<Q", data, at + 9 + 16) != struct.unpack_from("<Q", data, at + 9 + 32):
                at = data.index(b"\x06", at + 1)
            data[at + 9 + place : at + 17 + place] = struct.pack("<Q", 1 << 50)

        recording = Recording(patched(path, lie))
        assert list(recording.events("top")) == []
        assert "1125899906842624" in recording.damage[0]


def test_two_recordings_in_one_file_are_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", ("top",))
    path.write_bytes(path.read_bytes() + write_all(tmp_path / "b.mcap").read_bytes())
    recording = Recording(path)
    assert not recording.complete
    assert len(list(recording.events("top"))) == 24
