"""Recordings: what is written comes back; what is cut is read as far as it goes; nothing else is believed."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.writer import Writer

from edge.errors import SourceError
from edge.recording import (
    RecordedFrame,
    RecordedTrigger,
    RecordedTruth,
    Recording,
    RecordingWriter,
)
from edge.sources.images import BadImageError

START_NS = 1_700_000_000_000_000_000
PARTS = 12


def picture(number: int, shape: tuple[int, ...] = (40, 60, 1), dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(number).integers(0, np.iinfo(dtype).max, shape, dtype)


def write(path: Path, stations: tuple[str, ...] = ("top", "side"), parts: int = PARTS, size: int = 40) -> Path:
    mask = np.zeros((size, 60), np.uint8)
    mask[3:9, 5:8] = 255
    png = cv2.imencode(".png", mask)[1].tobytes()
    with RecordingWriter(path, {"simulated": "true", "seed": "3"}) as out:
        for number in range(parts):
            for station in stations:
                now_ns = START_NS + number * 100_000_000
                out.trigger(station, number, now_ns)
                out.frame(station, number, now_ns + 5_000_000, picture(number, (size, 60, 1)))
                bad = number % 3 == 2
                out.truth(station, RecordedTruth(number, now_ns + 5_000_000, bad, "hole" if bad else "", 0.3, 6.5, png))
    return path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    recording = Recording(write(tmp_path / "a.mcap"))
    assert recording.stations == ("side", "top")
    assert recording.complete
    assert recording.metadata == {"v": "1", "simulated": "true", "seed": "3"}
    events = list(recording.events("top"))
    assert [(type(e), e.number) for e in events] == [
        (t, n) for n in range(PARTS) for t in (RecordedTrigger, RecordedFrame)
    ]
    assert [e.at_ns for e in events] == sorted(e.at_ns for e in events)
    for e in events:
        if isinstance(e, RecordedFrame):
            np.testing.assert_array_equal(e.decode(), picture(e.number))
    truths = recording.truths("side")
    assert [truths[n].bad for n in range(PARTS)] == [n % 3 == 2 for n in range(PARTS)]
    assert truths[2].kind == "hole"
    mask = truths[2].mask()
    assert mask is not None
    assert (mask.sum(), mask.dtype) == (18, bool)
    assert recording.damage == []


@pytest.mark.parametrize("encoding", ["png", "raw"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_both_encodings_are_lossless(tmp_path: Path, encoding: str, dtype: str, channels: int) -> None:
    image = picture(1, (11, 13, channels), dtype)
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.frame("top", 0, START_NS, image, encoding)
    (frame,) = Recording(tmp_path / "a.mcap").events("top")
    assert isinstance(frame, RecordedFrame)
    decoded = frame.decode()
    assert decoded.dtype == image.dtype
    np.testing.assert_array_equal(decoded, image)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.mcap").read_bytes() == write(tmp_path / "b.mcap").read_bytes()


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9, 0.999])
def test_a_cut_file_is_read_as_far_as_it_goes_and_says_so(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.mcap", ("top",), parts=40, size=2000)  # several chunks
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    recording = Recording(path)
    assert not recording.complete
    assert recording.metadata["seed"] == "3"
    frames = [e.number for e in recording.events("top") if isinstance(e, RecordedFrame)]
    assert frames == list(range(len(frames)))
    assert len(frames) >= 40 * share - 10
    assert "after byte" in recording.damage[0]


def test_a_damaged_chunk_costs_only_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", ("top",), parts=40, size=2000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    recording = Recording(path)
    frames = [e.number for e in recording.events("top") if isinstance(e, RecordedFrame)]
    assert frames[0] == 0
    assert frames[-1] == 39
    assert 20 < len(frames) < 40
    assert len(recording.damage) == 1


@pytest.mark.parametrize("content", [b"", b"\x89MCAP", b"no recording at all" * 30])
def test_what_is_no_recording_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.mcap"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"odd\.mcap"):
        Recording(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.mcap"):
        Recording(tmp_path / "gone.mcap")
    with pytest.raises(SourceError, match="cannot write"):
        RecordingWriter(tmp_path / "no" / "folder.mcap", {})


def test_an_empty_recording_is_complete(tmp_path: Path) -> None:
    RecordingWriter(tmp_path / "a.mcap", {}).close()
    recording = Recording(tmp_path / "a.mcap")
    assert recording.complete
    assert recording.stations == ()


def raw_recording(path: Path, fields: object, topic: str = "/top/frame", **options: object) -> Recording:
    with path.open("wb") as file:
        writer = Writer(file, **options)
        writer.start()
        channel = writer.register_channel(topic, "msgpack", 0)
        writer.add_message(channel, START_NS, msgpack.packb(fields), START_NS)
        writer.finish()
    return Recording(path)


def test_messages_of_another_version_or_kind_are_refused(tmp_path: Path) -> None:
    from mcap.writer import CompressionType

    plain = {"compression": CompressionType.NONE}
    for fields, match in [
        ({"v": 2, "number": 0}, "version 2"),
        ({"v": 1, "number": -1}, "part number -1"),
        ({"v": 1, "number": "a"}, "part number 'a'"),
        ({"v": 1, "number": 0}, "no frame"),
        ([1, 2], "no message of maskline"),
        ("text", "no message of maskline"),
    ]:
        with pytest.raises(SourceError, match=match):
            list(raw_recording(tmp_path / "a.mcap", fields, **plain).events("top"))
    with pytest.raises(SourceError, match="compressed with zstd"):
        raw_recording(tmp_path / "a.mcap", {"v": 1, "number": 0})


def frame(**change: object) -> RecordedFrame:
    fields = {"encoding": "raw", "height": 2, "width": 3, "channels": 1, "dtype": "uint8", "data": b"6bytes"}
    return RecordedFrame(number=0, at_ns=0, **{**fields, **change})


def test_frames_that_are_not_what_they_say_are_bad_images() -> None:
    assert frame().decode().shape == (2, 3, 1)
    png = cv2.imencode(".png", np.zeros((2, 3), np.uint8))[1].tobytes()
    assert frame(encoding="png", data=png).decode().shape == (2, 3, 1)
    for change in (
        {"height": 3},
        {"height": 1 << 40},
        {"height": -2, "width": -3},
        {"dtype": "uint16"},
        {"dtype": "uint16", "data": b"5byte"},
        {"channels": 2, "width": 2, "height": 1},
        {"dtype": "object"},
        {"encoding": "jpeg"},
        {"encoding": "png", "data": b"x"},
        {"encoding": "png", "data": png, "height": 3},
        {"encoding": "png", "data": png, "dtype": "uint16"},
    ):
        with pytest.raises(BadImageError):
            frame(**change).decode()


def test_times_never_fall_and_numbers_fit(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.trigger("top", 0, 10)
        out.trigger("side", 0, 5)
        with pytest.raises(ValueError, match="times never fall"):
            out.trigger("top", 1, 9)
        with pytest.raises(ValueError, match="part number"):
            out.trigger("top", 1 << 32, 11)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), junk=st.binary(min_size=1, max_size=12), cut=st.booleans())
def test_damaged_bytes_never_do_more_than_damage(tmp_path: Path, at: float, junk: bytes, cut: bool) -> None:
    path = tmp_path / "a.mcap"
    if not (tmp_path / "whole.mcap").exists():
        write(tmp_path / "whole.mcap", parts=3)
    data = bytearray((tmp_path / "whole.mcap").read_bytes())
    place = int(at * len(data))
    data[place : place + len(junk)] = junk
    path.write_bytes(data[:place] if cut else data)
    try:
        recording = Recording(path)
        for station in recording.stations:
            assert len(list(recording.events(station))) <= 6
            assert len(recording.truths(station)) <= 3
    except SourceError:
        return
