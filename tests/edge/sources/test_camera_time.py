"""A camera's clock on the host's: delays, drift, resets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.sources.camera_time import MAX_DELAY_NS, MAX_DRIFT, CameraClock

MS, S = 1_000_000, 1_000_000_000


def run(drift: float, delays_ns: list[int], period_ns: int = 100 * MS, offset_ns: int = 77 * S) -> list[int]:
    """Errors [ns] of the mapped times: exposures at a rate, a camera whose clock runs `drift` too slow."""
    clock, errors = CameraClock(), []
    for i, delay_ns in enumerate(delays_ns):
        exposed_ns = offset_ns + i * period_ns
        camera_ns = round((exposed_ns - offset_ns) * (1 - drift)) + 5 * S
        errors.append(clock.to_host(camera_ns, exposed_ns + delay_ns) - exposed_ns)
    assert clock.resets == 0
    return errors


@given(
    st.floats(-MAX_DRIFT / 2, MAX_DRIFT / 2),
    st.lists(st.integers(2 * MS, 80 * MS), min_size=2, max_size=200),
)
def test_a_mapped_time_is_neither_before_the_exposure_nor_after_the_arrival(drift: float, delays: list[int]) -> None:
    errors = run(drift, delays)
    assert all(-10 <= error <= delay for error, delay in zip(errors, delays, strict=True))


def test_the_shortest_delay_is_what_remains() -> None:
    rng = np.random.default_rng(0)
    errors = run(50e-6, [int(d) for d in rng.exponential(20 * MS, 600) + 3 * MS])
    assert max(errors[100:]) < 3 * MS + 2 * MS  # the shortest, and what MAX_DRIFT adds until the next short one
    assert np.ptp(errors[100:]) < np.ptp(rng.exponential(20 * MS, 500)) / 20


@pytest.mark.parametrize("drift", [-100e-6, 100e-6])
def test_an_hour_of_drift_is_followed(drift: float) -> None:
    errors = run(drift, [5 * MS] * 3600, period_ns=S)
    assert max(abs(e - 5 * MS) for e in errors[1:]) < MS


def test_a_burst_of_late_frames_moves_nothing() -> None:
    errors = run(0, [5 * MS] * 20 + [900 * MS] * 20 + [5 * MS] * 20)
    assert max(errors) < 6 * MS


@pytest.mark.parametrize(
    ("camera_ns", "later_ns"),
    [
        (2 * S, 100 * MS),  # it began anew
        (400 * S - MS, 100 * MS),  # it was set back a little
        (401 * S + MAX_DELAY_NS + S, 1 * S),  # it was set ahead, as by PTP
        (401 * S, 3600 * S),  # it began anew while it was silent, and is past where it was
    ],
)
def test_a_clock_that_was_set_is_noticed_and_followed_from_then_on(camera_ns: int, later_ns: int) -> None:
    clock = CameraClock()
    clock.to_host(400 * S, 10 * S)
    arrived_ns = 10 * S + later_ns
    assert clock.to_host(camera_ns, arrived_ns) == arrived_ns
    assert clock.resets == 1
    assert clock.to_host(camera_ns + 50 * MS, arrived_ns + 60 * MS) == pytest.approx(arrived_ns + 50 * MS, abs=MS)
    assert clock.resets == 1


def test_a_clock_set_back_within_a_pause_looks_like_a_late_frame_and_makes_times_early_for_a_while() -> None:
    """docs/cameras.md says so: nothing in the times tells the two apart."""
    clock, back_ns, pause_ns = CameraClock(), S, 2 * S
    clock.to_host(5 * S, 100 * S)
    errors = [
        clock.to_host(5 * S + i * pause_ns - back_ns, 100 * S + i * pause_ns) - (100 * S + i * pause_ns)
        for i in range(1, 2600)
    ]
    assert clock.resets == 0
    assert errors[0] == pytest.approx(-back_ns, abs=MS)
    assert errors == sorted(errors), "less and less"
    assert errors[round(back_ns / MAX_DRIFT / pause_ns)] == 0, "after 83 minutes"


def test_a_pause_is_no_reset() -> None:
    clock = CameraClock()
    clock.to_host(1 * S, 100 * S)
    assert clock.to_host(7201 * S, 7300 * S) == 7300 * S
    assert clock.resets == 0
