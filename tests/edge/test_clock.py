"""The offset between two clocks: always within its bound, whatever the ways took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.clock import SAMPLES, ClockOffset

S = 1_000_000_000
MS = 1_000_000

DELAYS = st.tuples(st.integers(0, 500 * MS), st.integers(0, 500 * MS))


def exchange(clock: ClockOffset, at_ns: int, there_ns: int, back_ns: int, lead_ns: int, boot_id: str = "b") -> None:
    """A round trip that begins at `at_ns` of our clock, against one that leads ours by `lead_ns`."""
    clock.add(at_ns, at_ns + there_ns + lead_ns, at_ns + there_ns + back_ns, boot_id)


@given(st.integers(-(10**15), 10**15), st.lists(DELAYS, min_size=1, max_size=SAMPLES + 10))
def test_the_true_offset_is_within_the_bound(lead_ns: int, delays: list[tuple[int, int]]) -> None:
    clock, now_ns = ClockOffset(), 0
    for there_ns, back_ns in delays:
        exchange(clock, now_ns, there_ns, back_ns, lead_ns)
        now_ns += there_ns + back_ns + 250 * MS
        assert abs(clock.offset_ns(now_ns) - lead_ns) <= clock.bound_ns(now_ns)


@given(st.integers(-400, 400), st.lists(DELAYS, min_size=5, max_size=SAMPLES))
def test_it_is_so_for_clocks_that_drift(ppm: int, delays: list[tuple[int, int]]) -> None:
    clock, now_ns = ClockOffset(), 0

    def server(ours_ns: int) -> int:
        return 7 * S + ours_ns + ours_ns * ppm // 1_000_000

    for there_ns, back_ns in delays:
        clock.add(now_ns, server(now_ns + there_ns), now_ns + there_ns + back_ns)
        now_ns += there_ns + back_ns + 250 * MS
        low, high = clock.range(now_ns)
        assert low - 3 <= server(now_ns) - now_ns <= high + 3  # readings are cut to whole nanoseconds


def test_the_best_way_of_each_direction_counts() -> None:
    clock = ClockOffset(drift_ppm=0)
    exchange(clock, 0, 1 * MS, 400 * MS, 5 * S)
    assert clock.bound_ns(S) > 200 * MS
    exchange(clock, S, 400 * MS, 1 * MS, 5 * S)
    assert clock.bound_ns(2 * S) == 1 * MS
    assert clock.offset_ns(2 * S) == 5 * S


def test_what_is_known_is_worth_less_with_time() -> None:
    clock = ClockOffset(drift_ppm=500)
    exchange(clock, 0, MS, MS, 0)
    assert clock.bound_ns(0) == MS
    assert clock.bound_ns(10 * S) == MS + 5 * MS


def test_another_boot_has_another_clock() -> None:
    clock = ClockOffset()
    exchange(clock, 0, MS, MS, 50 * S, "first")
    exchange(clock, S, 10 * MS, 10 * MS, -3 * S, "second")
    assert clock.boot_id == "second"
    assert abs(clock.offset_ns(S) + 3 * S) <= clock.bound_ns(S) <= 11 * MS


def test_a_clock_that_stood_still_begins_anew() -> None:
    """As when one of the boxes was suspended: no drift explains it."""
    clock = ClockOffset()
    for i in range(10):
        exchange(clock, i * S, MS, MS, 50 * S)
    exchange(clock, 10 * S, MS, MS, 20 * S)
    assert abs(clock.offset_ns(10 * S) - 20 * S) <= 2 * MS


def test_nothing_is_known_at_first_and_no_answer_comes_before_its_question() -> None:
    clock = ClockOffset()
    assert not clock.known
    with pytest.raises(ValueError, match="empty"):
        clock.offset_ns(0)
    with pytest.raises(ValueError, match="answered 5 ns before it was asked"):
        clock.add(10, 0, 5)
    assert not clock.known


def test_old_samples_are_let_go() -> None:
    clock = ClockOffset(drift_ppm=0)
    exchange(clock, 0, 0, 0, 5 * S)
    for i in range(1, SAMPLES + 1):
        exchange(clock, i * S, 100 * MS, 100 * MS, 5 * S)
    assert clock.bound_ns(SAMPLES * S) == 100 * MS
