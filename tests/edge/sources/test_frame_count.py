"""Frame ids from times: gaps are found, jitter and slow changes of the rate are none."""

from __future__ import annotations

import numpy as np
import pytest

from edge.sources.frame_count import FrameCount

MS = 1_000_000


def ids(times_ms: list[float | None], declared_hz: float | None = 25) -> list[int]:
    count = FrameCount(declared_hz)
    return [count.next(None if t is None else round(t * MS)) for t in times_ms]


@pytest.mark.parametrize("declared_hz", [25, None, 0.0, 90_000.0, 10])
def test_gaps_are_counted_once_the_rate_is_known(declared_hz: float | None) -> None:
    seen = [*range(20), *range(21, 40), *range(45, 60)]
    assert ids([40.0 * n for n in seen], declared_hz) == seen


def test_before_that_the_declared_rate_is_believed() -> None:
    assert ids([0, 40, 120], 25) == [0, 1, 3]
    assert ids([0, 40, 120], None) == [0, 1, 2]


def test_jitter_is_no_gap() -> None:
    jitter = np.random.default_rng(0).uniform(-9, 9, 200)
    assert ids([40 * n + float(j) for n, j in enumerate(jitter)]) == list(range(200))


def test_a_camera_that_slows_down_is_followed() -> None:
    """From 25 to 12.5 per second, as one that exposes longer in the dark: gaps at first, which is the safe side."""
    found = ids([40.0 * n for n in range(40)] + [40.0 * 39 + 80.0 * n for n in range(1, 60)])
    steps = np.diff(found)
    assert set(steps[:39]) == {1}
    assert set(steps[39:55]) == {2}
    assert set(steps[55:]) == {1}


def test_a_clock_that_stands_goes_back_or_is_away_shows_nothing() -> None:
    assert ids([0, 40, 40, 80, 20, 60, None, None, 5000, 5040]) == list(range(10))
