"""A recording as a stream: independent and inferred triggers, missing frames, gaps, restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import FakeClock, drain, exposures, make_station, triggers
from structlog.testing import capture_logs

from edge.errors import SourceError
from edge.messages import ViewResult
from edge.recording import RecordingWriter
from edge.sources import Ended, Exposed, Source, Triggered, open_source
from edge.sources.pacing import PacedSource
from edge.sources.recorded import LOOKAHEAD, MAX_GAP, RecordedFeed
from edge.verdict import Decision, Reason

UTC_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
EXPOSURE_NS = 5_000_000


def picture(number: int) -> np.ndarray:
    return np.full((48, 64, 1), number % 250, np.uint8)


def write(
    path: Path,
    numbers: range | list[int],
    without_frame: tuple[int, ...] = (),
    without_trigger: bool = False,
    station: str = "top",
) -> Path:
    with RecordingWriter(path, {}) as out:
        for number in numbers:
            at_ns = UTC_NS + number * PERIOD_NS
            if not without_trigger:
                out.trigger(station, number, at_ns)
            if number not in without_frame:
                out.frame(station, number, at_ns + EXPOSURE_NS, picture(number))
    return path


def lossless(path: Path, first_number: int = 0, **source: Any) -> Source:
    return open_source(make_station("recording", path, **source), 0, first_number)


def live(path: Path, clock: FakeClock, first_number: int = 0, **source: Any) -> PacedSource:
    station = make_station("recording", path, mode="live", **source)
    return PacedSource(RecordedFeed(station), station.source, clock.now_ns, first_number, clock, clock.sleep)


def values(events: list) -> list[int]:
    return [int(e.image[0, 0, 0]) for e in exposures(events) if e.image is not None]


@pytest.mark.parametrize("kind", ["independent", "inferred"])
def test_every_part_comes_in_order(tmp_path: Path, kind: str) -> None:
    events = drain(lossless(write(tmp_path / "a.mcap", range(30)), triggers=kind))
    assert values(events) == list(range(30))
    assert [type(e) for e in events] == [Triggered, Exposed] * 30 + [Ended]


def test_recorded_numbers_count_from_where_the_recording_began(tmp_path: Path) -> None:
    events = drain(lossless(write(tmp_path / "a.mcap", range(1000, 1010)), first_number=4, parts=8))
    assert [t.number for t in triggers(events)] == [4, 5, 6, 7]
    assert values(events) == [(1000 + n) % 250 for n in (4, 5, 6, 7)]
    assert events[-1] == Ended(8)


def test_live_parts_come_at_their_recorded_times(tmp_path: Path) -> None:
    clock = FakeClock()
    start_ns = clock.now_ns
    stream = live(write(tmp_path / "a.mcap", range(3)), clock, triggers="independent")
    for number in range(3):
        assert stream.poll(1.0) == Triggered(number, start_ns + number * PERIOD_NS)
        assert clock.now_ns == start_ns + number * PERIOD_NS
        assert isinstance(stream.poll(1.0), Exposed)
        assert clock.now_ns == start_ns + number * PERIOD_NS + EXPOSURE_NS


def test_an_independent_trigger_without_a_frame_is_said_in_time(tmp_path: Path) -> None:
    clock = FakeClock()
    start_ns = clock.now_ns
    path = write(tmp_path / "a.mcap", range(4), without_frame=(1, 3))
    events = drain(live(path, clock, triggers="independent"))
    assert [(t.number, t.at_ns - start_ns, t.missed) for t in triggers(events)] == [
        (n, n * PERIOD_NS, False) for n in range(4)
    ]
    assert [(e.number, e.reason) for e in exposures(events)] == [
        (0, None),
        (1, Reason.MISSED_FRAME),
        (2, None),
        (3, Reason.MISSED_FRAME),
    ]


def test_an_inferred_miss_is_noticed_with_the_next_frame(tmp_path: Path) -> None:
    clock = FakeClock()
    start_ns = clock.now_ns
    events = drain(live(write(tmp_path / "a.mcap", range(4), without_frame=(1, 2)), clock))
    assert [(t.number, t.at_ns - start_ns, t.missed) for t in triggers(events)] == [
        (0, EXPOSURE_NS, False),
        (1, 3 * PERIOD_NS + EXPOSURE_NS, True),
        (2, 3 * PERIOD_NS + EXPOSURE_NS, True),
        (3, 3 * PERIOD_NS + EXPOSURE_NS, False),
    ]
    assert values(events) == [0, 3]


@pytest.mark.parametrize("kind", ["independent", "inferred"])
def test_a_gap_in_the_numbers_is_a_miss(tmp_path: Path, kind: str) -> None:
    events = drain(lossless(write(tmp_path / "a.mcap", [0, 1, 4, 5]), triggers=kind))
    assert [(t.number, t.missed) for t in triggers(events)] == [(n, n in (2, 3)) for n in range(6)]
    assert values(events) == [0, 1, 4, 5]


def test_frames_recorded_without_triggers_are_their_own(tmp_path: Path) -> None:
    events = drain(lossless(write(tmp_path / "a.mcap", range(5), without_trigger=True), triggers="independent"))
    assert values(events) == list(range(5))


def test_a_frame_that_does_not_decode_is_a_bad_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", range(3))
    station = make_station("recording", path)
    feed = RecordedFeed(station)
    object.__setattr__(feed._pairs[0].frame, "data", b"\x89PNG damaged")
    (bad, *good) = exposures(drain(PacedSource(feed, station.source, 0, 0)))
    assert (bad.image, bad.reason) == (None, Reason.BAD_IMAGE)
    assert f"{path}: frame 0 of top" in bad.detail
    assert [e.reason for e in good] == [None, None]


def test_a_camera_that_delivers_nothing_more_does_not_hold_up_its_triggers(tmp_path: Path) -> None:
    count = 3 * LOOKAHEAD
    path = write(tmp_path / "a.mcap", range(count), without_frame=tuple(range(2, count)))
    events = drain(lossless(path, triggers="independent"))
    assert [t.number for t in triggers(events)] == list(range(count))
    assert [e.reason for e in exposures(events)] == [None, None] + [Reason.MISSED_FRAME] * (count - 2)


def test_a_frame_may_come_after_the_next_trigger(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        out.trigger("top", 0, 0)
        for number in range(1, 5):
            out.trigger("top", number, number * PERIOD_NS)
            out.frame("top", number - 1, number * PERIOD_NS + 1, picture(number - 1))
    events = drain(lossless(tmp_path / "a.mcap", triggers="independent"))
    assert values(events) == [0, 1, 2, 3]
    assert [e.reason for e in exposures(events)] == [None] * 4 + [Reason.MISSED_FRAME]


@pytest.mark.parametrize("kind", ["independent", "inferred"])
def test_what_triggers_say_travels(tmp_path: Path, kind: str) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number in range(4):
            out.trigger("top", number, number * PERIOD_NS, missed=number == 2, count=10 * number, part_id=number + 7)
            if number != 2:
                out.frame("top", number, number * PERIOD_NS + 1, picture(number))
    events = drain(lossless(tmp_path / "a.mcap", triggers=kind))
    assert [(t.number, t.missed, t.count, t.part_id) for t in triggers(events)] == [
        (n, n == 2, 10 * n, n + 7) for n in range(4)
    ]
    assert values(events) == [0, 1, 3]
    clock = FakeClock()
    start_ns = clock.now_ns
    (missed,) = [t for t in triggers(drain(live(tmp_path / "a.mcap", clock, triggers=kind))) if t.missed]
    assert missed.at_ns == start_ns + 2 * PERIOD_NS


@pytest.mark.parametrize("kind", ["independent", "inferred"])
def test_a_part_that_had_no_image_has_none_again_for_the_same_reason(tmp_path: Path, kind: str) -> None:
    uninspected = Decision.UNINSPECTED
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number in range(5):
            now_ns = number * PERIOD_NS
            out.trigger("top", number, now_ns)
            if number == 1:
                out.result(ViewResult("top", number, 0, uninspected, Reason.REPEATED_FRAME), now_ns)
            elif number == 2:  # there was an image, but the line could not take it, and the recorder neither
                out.result(ViewResult("top", number, 0, uninspected, Reason.OVERLOAD), now_ns)
            elif number == 3:  # there is a frame: whatever was said of it, it is judged again
                out.result(ViewResult("top", number, 0, uninspected, Reason.BAD_IMAGE), now_ns)
                out.frame("top", number, now_ns, picture(number))
            else:
                out.frame("top", number, now_ns, picture(number))
    events = drain(lossless(tmp_path / "a.mcap", triggers=kind))
    reasons = {e.number: e.reason for e in exposures(events)}
    assert {n: reasons.get(n, Reason.MISSED_FRAME) for n in range(5)} == {
        0: None, 1: Reason.REPEATED_FRAME, 2: Reason.MISSED_FRAME, 3: None, 4: None,
    }  # fmt: skip
    assert [t.number for t in triggers(events)] == list(range(5))


def test_a_frame_may_stand_behind_the_triggers_of_many_parts(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number in range(60):
            out.trigger("top", number, number * PERIOD_NS)
            if number >= 20:
                out.frame("top", number - 20, (number - 20) * PERIOD_NS + EXPOSURE_NS, picture(number - 20))
    events = drain(lossless(tmp_path / "a.mcap", triggers="independent"))
    assert values(events) == list(range(40))
    assert [t.number for t in triggers(events)] == list(range(60))


def test_a_replay_begins_with_the_part_it_is_told_to(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", range(1000, 1010))
    station = make_station("recording", path)
    assert RecordedFeed(station).first_number == 1000
    for first, expected in [(1004, range(1004, 1010)), (998, range(1000, 1010))]:
        feed = RecordedFeed(make_station("recording", path, first=first))
        assert feed.first_number == first
        events = drain(PacedSource(feed, make_station("recording", path).source, 0, 0))
        assert values(events) == [n % 250 for n in expected]
        assert [t.number for t in triggers(events) if not t.missed] == [n - first for n in expected]


def test_stations_keep_their_distance_in_time(tmp_path: Path) -> None:
    clock = FakeClock()
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number in range(3):
            for name, later_ns in (("first", 0), ("top", 30_000_000)):
                out.trigger(name, number, UTC_NS + number * PERIOD_NS + later_ns)
                out.frame(name, number, UTC_NS + number * PERIOD_NS + later_ns, picture(number))
    start_ns = clock.now_ns
    events = drain(live(tmp_path / "a.mcap", clock))
    assert [t.at_ns - start_ns for t in triggers(events)] == [30_000_000 + n * PERIOD_NS for n in range(3)]


def test_a_restarted_live_source_goes_on_with_the_part_that_passes_now(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", range(40))
    clock = FakeClock()
    station = make_station("recording", path, mode="live")
    start_ns = clock.now_ns - 25 * PERIOD_NS + 1
    stream = PacedSource(RecordedFeed(station), station.source, start_ns, 3, clock, clock.sleep)
    events = drain(stream)
    assert [t.number for t in triggers(events)] == list(range(25, 40))
    clock.now_ns += 10**12
    assert PacedSource(RecordedFeed(station), station.source, start_ns, 3, clock, clock.sleep).poll(0) == Ended(40)


def test_a_cut_recording_plays_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", range(50))
    with RecordingWriter(path, {}) as out:
        for number in range(50):
            out.frame("top", number, UTC_NS + number, np.full((500, 500, 1), number, np.uint8), "raw")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with capture_logs() as logs:
        events = drain(lossless(path))
    assert values(events) == list(range(len(values(events))))
    assert 15 < len(values(events)) < 30
    assert [entry["event"] for entry in logs] == ["recording_damaged"]


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="may be missing"):
        drain(lossless(write(tmp_path / "a.mcap", [0, 1, MAX_GAP + 2])))
    with RecordingWriter(tmp_path / "b.mcap", {}) as out:
        for number in (0, 1, 1):
            out._last.clear()  # what forbids it
            out.trigger("top", number, 10)
    with pytest.raises(SourceError, match="must rise"):
        drain(lossless(tmp_path / "b.mcap"))


def test_a_station_that_is_not_in_the_recording_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", range(3), station="side")
    with pytest.raises(SourceError, match=r"no station 'top'.*it has: side"):
        lossless(path)
    assert values(drain(lossless(path, channel="side"))) == [0, 1, 2]
    RecordingWriter(tmp_path / "empty.mcap", {}).close()
    with pytest.raises(SourceError, match="it has: none"):
        lossless(tmp_path / "empty.mcap")
