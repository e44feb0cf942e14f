"""What an encoder said: known between two samples to within a step, and not at all before the first."""

from __future__ import annotations

import pytest

from edge.actuators.count_history import CountHistory


@pytest.fixture
def history() -> CountHistory:
    """From 1000 ns on one count each 10 ns; it stands from 2000 ns to 5000 ns."""
    made = CountHistory(5, 100_000)
    for at_ns in range(1000, 5001, 10):
        made.add(at_ns, min(at_ns, 2000) // 10)
    return made


@pytest.mark.parametrize(
    ("count", "at_ns", "fits"),
    [
        (120, 1200, True),
        (126, 1200, True),
        (140, 1200, False),
        (100, 1200, False),
        (200, 4000, True),
        (200, 9000, True),
    ],
)
def test_it_is_known_to_within_a_step(history: CountHistory, count: int, at_ns: int, fits: bool) -> None:
    assert history.fits(count, at_ns, 0, 2) is fits


def test_a_time_that_is_not_known_well_fits_more(history: CountHistory) -> None:
    assert history.fits(140, 1200, 200, 2) is True
    assert history.fits(160, 1200, 200, 2) is False


def test_of_the_time_before_the_first_sample_nothing_is_known(history: CountHistory) -> None:
    assert history.fits(100, 1000, 1, 2) is None
    assert CountHistory(5, 10).fits(0, 0, 0, 0) is None
    history.clear()
    assert history.fits(200, 4000, 0, 2) is None


def test_what_is_older_than_it_keeps_is_forgotten() -> None:
    history = CountHistory(1, 100)
    for at_ns in range(0, 1000, 10):
        history.add(at_ns, at_ns)
    assert history.fits(500, 500, 0, 2) is None
    assert history.fits(900, 900, 0, 2) is True
