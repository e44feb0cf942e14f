"""Recordings: what is written comes back; what is cut is read as far as it goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_helpers import PARTS, PERIOD_NS, START_NS, picture, result, verdict, write, write_all

from edge.errors import SourceError
from edge.messages import encode
from edge.recipes import load_recipe
from edge.recording import (
    RecordedFrame,
    RecordedRefusal,
    RecordedTrigger,
    Recording,
    RecordingWriter,
)
from edge.recording.container import McapFile
from edge.recording.contents import last_at_most
from edge.verdict import Reason


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    recording = Recording(write(tmp_path / "a.mcap"))
    assert recording.stations == ("side", "top")
    assert recording.complete
    assert recording.metadata == {"v": "2", "simulated": "true", "seed": "3"}
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


def test_results_verdicts_and_triggers_come_back_as_they_travelled(tmp_path: Path) -> None:
    recording = Recording(write_all(tmp_path / "a.mcap"))
    assert recording.stations == ("top",)  # a lane is no station
    (first, *rest) = [e for e in recording.events("top") if isinstance(e, RecordedTrigger)]
    assert first == RecordedTrigger(0, START_NS)
    assert rest[2] == RecordedTrigger(3, START_NS + 3 * PERIOD_NS, False, 2, 2)
    results = list(recording.results())
    assert results[1] == (START_NS + PERIOD_NS + 20, result(1))
    assert [r.number for _, r in results] == list(range(6))
    assert [encode(v) for v in recording.verdicts()] == [encode(verdict(n)) for n in range(6)]
    assert [e for e in recording.inputs("top") if isinstance(e, RecordedRefusal)] == [
        RecordedRefusal(3, START_NS + 3 * PERIOD_NS + 20, Reason.REPEATED_FRAME)
    ]
    assert recording.metadata_records[-1] == ("maskline.end", {"dropped": "0"})
    assert recording.attachment("calibration.json") == b"{}"
    assert recording.attachment("other") is None
    assert not recording.lossless  # part 4 is a JPEG


def test_a_missed_trigger_says_so(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.trigger("top", 5, START_NS, missed=True)
    (trigger,) = Recording(tmp_path / "a.mcap").events("top")
    assert trigger == RecordedTrigger(5, START_NS, missed=True)


def test_a_verdict_may_come_as_the_bytes_that_travelled(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.verdict(encode(verdict(4)), START_NS)
        with pytest.raises(ValueError, match="message type"):
            out.verdict(encode(result(1)), START_NS)
    assert list(Recording(tmp_path / "a.mcap").verdicts()) == [verdict(4)]


def test_recipe_and_calibration_are_those_that_were_in_force(tmp_path: Path) -> None:
    recipe = load_recipe("web")
    with RecordingWriter(tmp_path / "a.mcap", {"recipe": recipe.model_dump_json()}) as out:
        out.add_attachment("calibration.json", b'{"format": 2}')
    recording = Recording(tmp_path / "a.mcap")
    assert recording.recipe() == recipe
    with pytest.raises(SourceError, match=r"a\.mcap: its calibration\.json is none of this maskline"):
        recording.calibration()
    with RecordingWriter(tmp_path / "b.mcap", {"recipe": '{"line": "x", "zoom": 3}'}):
        pass
    with pytest.raises(SourceError, match=r"b\.mcap: its recipe is none of this maskline[\s\S]*zoom"):
        Recording(tmp_path / "b.mcap").recipe()
    assert Recording(tmp_path / "b.mcap").calibration() is None


def test_a_frame_is_found_by_its_number_without_reading_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mcap"
    numbers = [n + n // 50 * 1000 for n in range(1000, 1200)]  # they do not rise evenly
    with RecordingWriter(path, {}, chunk_bytes=1) as out:  # a chunk for each message
        for number in numbers:
            out.trigger("top", number, START_NS + number)
            out.frame("top", number, START_NS + number, picture(number, (100, 100, 1)), "raw")
    recording = Recording(path)
    read: list[int] = []
    honest = McapFile.read
    monkeypatch.setattr(McapFile, "read", lambda self, at, length: read.append(length) or honest(self, at, length))
    for number in (numbers[0], numbers[77], numbers[-1]):
        read.clear()
        frame = recording.frame("top", number)
        assert frame is not None
        np.testing.assert_array_equal(frame.decode(), picture(number, (100, 100, 1)))
        assert sum(length > 1000 for length in read) == 1  # its own chunk
        assert len(read) < 100
    assert recording.frame("top", numbers[50] - 1) is None
    assert recording.frame("top", 0) is None
    assert recording.frame("top", numbers[-1] + 1) is None
    assert recording.frame("side", numbers[0]) is None


def test_a_seek_asks_for_few_places_however_the_numbers_lie() -> None:
    rng = np.random.default_rng(0)
    for values in (
        [3],
        [3, 4],
        list(range(0, 9000, 3)),
        [0] * 1 + [2**i for i in range(32)],
        [0, *range(10**9, 10**9 + 4000)],
    ):
        for wanted in {
            values[0] - 1,
            values[0],
            values[-1],
            values[-1] + 1,
            *rng.integers(0, values[-1] + 1, 20).tolist(),
        }:
            asked: list[int] = []
            found = last_at_most(lambda i, v=values, a=asked: a.append(i) or v[i], len(values), wanted)
            assert found == (max((i for i, v in enumerate(values) if v <= wanted), default=None))
            assert len(asked) <= 3 + 2 * len(values).bit_length()
    assert last_at_most(lambda _: 0, 0, 5) is None


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.mcap").read_bytes() == write(tmp_path / "b.mcap").read_bytes()


def test_any_mcap_reader_reads_it(tmp_path: Path) -> None:
    with write_all(tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "maskline"
        topics = [channel.topic for _, channel, _ in reader.iter_messages(log_time_order=False)]
    assert {topic: topics.count(topic) for topic in topics} == {
        "/top/trigger": 7, "/top/frame": 5, "/top/result": 6, "/top/truth": 6, "/left/verdict": 6,
    }  # fmt: skip


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
    assert "maskline recover" in recording.damage[0]
    if frames:
        last = recording.frame("top", frames[-1])
        assert last is not None
        np.testing.assert_array_equal(last.decode(), picture(frames[-1], (2000, 60, 1)))


def test_a_damaged_chunk_costs_only_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", ("top",), parts=40, size=2000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    recording = Recording(path)
    for _ in range(2):
        frames = [e.number for e in recording.events("top") if isinstance(e, RecordedFrame)]
        assert frames[0] == 0
        assert frames[-1] == 39
        assert 20 < len(frames) < 40
        assert len(recording.damage) == 1
    lost = min(set(range(40)) - set(frames))
    with pytest.raises(SourceError, match="checksum"):
        recording.frame("top", lost)


def test_a_damaged_index_is_done_without(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap")
    data = bytearray(path.read_bytes())
    data[-60] ^= 0xFF
    path.write_bytes(data)
    recording = Recording(path)
    assert not recording.complete
    assert "index is damaged" in recording.damage[0]
    assert len(list(recording.events("side"))) == 2 * PARTS


def test_an_empty_recording_is_complete(tmp_path: Path) -> None:
    RecordingWriter(tmp_path / "a.mcap", {}).close()
    recording = Recording(tmp_path / "a.mcap")
    assert recording.complete
    assert recording.stations == ()
    assert recording.lossless


def test_version_1_is_read(tmp_path: Path) -> None:
    recording = Recording(Path(__file__).with_name("version1.mcap"))
    assert (recording.stations, recording.complete, recording.lossless) == (("top",), True, True)
    events = list(recording.events("top"))
    assert [e.number for e in events] == [7, 7, 8, 8, 9, 9]
    assert events[0] == RecordedTrigger(7, 0)
    for n, frame in enumerate(e for e in events if isinstance(e, RecordedFrame)):
        np.testing.assert_array_equal(frame.decode(), np.arange(54, dtype=np.uint8).reshape(6, 9, 1) + n)
    assert recording.truths("top")[9].kind == "hole"
    assert recording.frame("top", 8) == events[3]


def test_times_never_fall_within_a_topic_and_numbers_rise(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.trigger("top", 0, 10)
        out.trigger("side", 0, 5)
        out.trigger("top", 1, 20)
        out.frame("top", 0, 15, picture(0))  # behind the next trigger
        for write_wrong, match in [
            (lambda: out.trigger("top", 2, 19), "times never fall"),
            (lambda: out.frame("top", 1, 14, picture(0)), "times never fall"),
            (lambda: out.trigger("top", 1, 30), "numbers rise"),
            (lambda: out.frame("top", 0, 30, picture(0)), "numbers rise"),
            (lambda: out.trigger("top", 1 << 32, 30), "part number"),
            (lambda: out.trigger("top", -1, 30), "part number"),
        ]:
            with pytest.raises(ValueError, match=match):
                write_wrong()
    assert len(list(Recording(tmp_path / "a.mcap").events("top"))) == 3


def test_the_size_so_far_is_known_with_what_waits_in_the_open_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with RecordingWriter(path, {}) as out:
        for number in range(50):
            out.frame("top", number, number, picture(number, (300, 300, 1)), "raw")
            assert abs(out.nbytes - (number + 1) * 90_000) < 10_000
        out.flush()
        assert out.nbytes == path.stat().st_size


def test_what_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot write"):
        RecordingWriter(tmp_path / "no" / "folder.mcap", {})
    with pytest.raises(SourceError, match=r"/dev/full: cannot write.*No space left"):
        RecordingWriter(Path("/dev/full"), {})
    with RecordingWriter(tmp_path / "a.mcap", {}) as out, pytest.raises(SourceError, match=r"a\.mcap: .*too large"):
        out.add_attachment("notes", bytes(1 << 26))


def test_a_writer_that_fails_leaves_a_cut_file(tmp_path: Path) -> None:
    out = RecordingWriter(tmp_path / "a.mcap", {})
    out.trigger("top", 0, 1)
    out.flush()
    out.trigger("top", 1, 1)
    out.__exit__(KeyError)
    recording = Recording(tmp_path / "a.mcap")
    assert not recording.complete
    assert [e.number for e in recording.events("top")] == [0]


WRITER = """
import sys, numpy as np
from pathlib import Path
from edge.recording import RecordingWriter
image = np.zeros((256, 1024, 1), np.uint8)
out = RecordingWriter(Path(sys.argv[1]), {"who": "test"})
for number in range(1 << 30):
    out.trigger("top", number, number)
    out.frame("top", number, number, image, "raw")
    print(number, flush=True)
"""


def test_what_was_written_survives_sigkill_but_for_the_open_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while (said := int(writer.stdout.readline())) < 21:
            pass
        writer.kill()
        for line in writer.stdout:
            said = int(line) if line.endswith("\n") else said
    recording = Recording(path)
    frames = [e.number for e in recording.events("top") if isinstance(e, RecordedFrame)]
    assert frames == list(range(len(frames)))
    in_a_chunk = 5  # of 1 MiB and what makes it larger than that
    assert said - in_a_chunk <= frames[-1]
    assert recording.metadata["who"] == "test"
