"""When events are said: due times, late polls, restarts, independent and inferred triggers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_helpers import FakeClock, drain, exposures, triggers

from edge.settings import Source
from edge.sources import Ended, Exposed, Triggered
from edge.sources.pacing import QUEUE, PacedSource, Part, Rate, Shot
from edge.verdict import Reason

START_NS = 5_000_000_000
PERIOD_NS = 100_000_000


class Feed:
    """Ten parts a second; `shots` says what becomes of some of them."""

    def __init__(self, end: int = 1000, shots: dict[int, Shot] | None = None, gaps: tuple[int, ...] = ()) -> None:
        self.rate, self.end, self.shots, self.gaps = Rate(10), end, shots or {}, gaps
        self.loaded: list[int] = []

    def part(self, number: int) -> Part | None:
        if number >= self.end:
            return None
        if number in self.gaps:
            return Part(0, self.rate.due_ns(number + 1), 0, lambda: Shot(None), missed=True)
        return self.rate.part(number, lambda: self.load(number))

    def load(self, number: int) -> Shot:
        self.loaded.append(number)
        return self.shots.get(number, Shot(np.zeros((2, 2, 1), np.uint8)))

    def first_due(self, elapsed_ns: int, number: int) -> int:
        return self.rate.first_due(elapsed_ns, number)

    def close(self) -> None: ...


def source(feed: Feed, clock: FakeClock, first_number: int = 0, **settings: Any) -> PacedSource:
    fields = {"kind": "marker", "mode": "live", "rate_hz": 10, **settings}
    return PacedSource(feed, Source.model_validate(fields), START_NS, first_number, clock, clock.sleep)


def test_live_events_come_at_their_times() -> None:
    clock = FakeClock(START_NS - PERIOD_NS)
    stream = source(Feed(), clock)
    assert stream.poll(0.05) is None
    assert clock.now_ns == START_NS - PERIOD_NS // 2
    for number in range(3):
        event = stream.poll(1.0)
        assert event == Triggered(number, START_NS + number * PERIOD_NS)
        assert clock.now_ns == event.at_ns
        exposed = stream.poll(1.0)
        assert isinstance(exposed, Exposed)
        assert exposed.image is not None


def test_a_late_poll_delays_nothing_that_follows() -> None:
    clock = FakeClock(START_NS)
    stream = source(Feed(), clock)
    drawn = [stream.poll(1.0) for _ in range(2)]
    clock.now_ns += 4 * PERIOD_NS + 1
    while clock.now_ns < START_NS + 6 * PERIOD_NS:
        drawn.append(stream.poll(1.0))
    seen = triggers([e for e in drawn if e])
    assert [(t.number, t.at_ns, t.missed) for t in seen] == [(n, START_NS + n * PERIOD_NS, False) for n in range(7)]
    assert clock.now_ns == START_NS + 6 * PERIOD_NS


@pytest.mark.parametrize("kind", ["independent", "inferred"])
def test_frames_that_waited_too_long_are_missed_but_their_parts_are_not_forgotten(kind: str) -> None:
    clock = FakeClock(START_NS)
    feed = Feed(end=QUEUE + 22)
    stream = source(feed, clock, triggers=kind)
    clock.now_ns += (QUEUE + 12) * PERIOD_NS + 1
    events = drain(stream)
    assert [t.number for t in triggers(events)] == list(range(QUEUE + 22))
    lost = 13
    assert feed.loaded == list(range(lost, QUEUE + 22))
    if kind == "independent":
        assert [e.number for e in exposures(events) if e.reason is Reason.MISSED_FRAME] == list(range(lost))
        assert not any(t.missed for t in triggers(events))
    else:
        assert [t.number for t in triggers(events) if t.missed] == list(range(lost))
        assert [e.number for e in exposures(events)] == list(range(lost, QUEUE + 22))


def test_lossless_is_paced_by_who_polls_and_says_the_time_of_the_poll() -> None:
    clock = FakeClock(START_NS + 77)
    stream = source(Feed(end=5), clock, mode="lossless")
    for number in range(5):
        clock.now_ns += 1000 * PERIOD_NS
        assert stream.poll(0) == Triggered(number, clock.now_ns)
        exposed = stream.poll(0)
        assert isinstance(exposed, Exposed)
        assert exposed.image is not None
    assert stream.poll(0) == Ended(5)
    assert stream.poll(0.5) is None


def test_a_restarted_live_source_goes_on_with_the_part_that_passes_now() -> None:
    clock = FakeClock(START_NS + 41 * PERIOD_NS + 1)
    stream = source(Feed(), clock, first_number=7)
    assert stream.poll(1.0) == Triggered(42, START_NS + 42 * PERIOD_NS)


def test_a_source_that_starts_late_loses_no_part() -> None:
    clock = FakeClock(START_NS + 3 * PERIOD_NS + 1)
    events = drain(source(Feed(end=6), clock))
    assert [(t.number, t.missed) for t in triggers(events)] == [(n, False) for n in range(6)]


def test_a_restarted_live_source_never_repeats_a_number() -> None:
    clock = FakeClock(START_NS + 3 * PERIOD_NS)
    stream = source(Feed(), clock, first_number=7)
    assert stream.poll(10.0) == Triggered(7, START_NS + 7 * PERIOD_NS)


def test_a_restarted_lossless_source_goes_on_where_it_was() -> None:
    clock = FakeClock(START_NS + 99 * PERIOD_NS)
    events = drain(source(Feed(end=12), clock, first_number=7, mode="lossless"))
    assert [t.number for t in triggers(events)] == list(range(7, 12))


@pytest.mark.parametrize("mode", ["live", "lossless"])
@pytest.mark.parametrize(("parts", "end", "ended"), [(4, 1000, 4), (None, 6, 6), (9, 6, 6)])
def test_the_stream_ends_after_the_parts_asked_for(mode: str, parts: int | None, end: int, ended: int) -> None:
    events = drain(source(Feed(end=end), FakeClock(START_NS), mode=mode, parts=parts))
    assert events[-1] == Ended(ended)
    assert len(triggers(events)) == ended


def test_a_live_source_restarted_after_its_end_has_ended() -> None:
    clock = FakeClock(START_NS + 500 * PERIOD_NS)
    assert source(Feed(), clock, first_number=3, parts=10).poll(1.0) == Ended(10)


@pytest.mark.parametrize("reason", [Reason.BAD_IMAGE, Reason.MISSED_FRAME])
def test_independent_triggers_are_said_whatever_becomes_of_the_image(reason: Reason) -> None:
    feed = Feed(end=3, shots={1: Shot(None, reason, "why")})
    events = drain(source(feed, FakeClock(START_NS), triggers="independent"))
    assert [t.missed for t in triggers(events)] == [False] * 3
    assert exposures(events)[1] == Exposed(1, None, reason, "why")


def test_an_inferred_trigger_without_a_frame_is_a_miss_and_one_with_a_bad_frame_is_not() -> None:
    shots = {1: Shot(None, Reason.MISSED_FRAME, "none"), 2: Shot(None, Reason.BAD_IMAGE, "cut")}
    events = drain(source(Feed(end=4, shots=shots), FakeClock(START_NS)))
    assert [t.missed for t in triggers(events)] == [False, True, False, False]
    assert [(e.number, e.reason) for e in exposures(events)] == [(0, None), (2, Reason.BAD_IMAGE), (3, None)]


@pytest.mark.parametrize("kind", ["independent", "inferred"])
def test_a_gap_is_noticed_with_the_next_frame(kind: str) -> None:
    clock = FakeClock(START_NS)
    stream = source(Feed(end=4, gaps=(1, 2)), clock, triggers=kind)
    assert stream.poll(1.0) == Triggered(0, START_NS)
    stream.poll(1.0)
    assert stream.poll(1.0) == Triggered(1, START_NS + 2 * PERIOD_NS, missed=True)
    assert stream.poll(1.0) == Triggered(2, START_NS + 3 * PERIOD_NS, missed=True)
    assert stream.poll(1.0) == Triggered(3, START_NS + 3 * PERIOD_NS)


@given(rate_hz=st.floats(0.01, 1000), elapsed_ns=st.integers(-(10**9), 10**15), number=st.integers(0, 10**6))
def test_the_part_due_now_is_the_first_that_has_not_passed(rate_hz: float, elapsed_ns: int, number: int) -> None:
    rate = Rate(rate_hz)
    due = rate.first_due(elapsed_ns, number)
    assert due >= number
    assert rate.due_ns(due) >= elapsed_ns
    assert due == number or rate.due_ns(due - 1) < elapsed_ns
