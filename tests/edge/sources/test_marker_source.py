"""Simulated frames with a marker: what is drawn is the truth."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from source_helpers import drain, exposures, make_station, triggers

from edge.errors import SourceError
from edge.marker import read
from edge.settings import Station
from edge.sources import open_source
from edge.sources.truth import mix, truth_is_bad


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"width_px": 300, "height_px": 200, "channels": 3},
        {"width_px": 300, "height_px": 200, "bit_depth": 16},
        {"width_px": 36, "height_px": 36},
    ],
)
def test_the_marker_says_number_and_truth(frame: dict[str, Any]) -> None:
    station = make_station("marker", frame=frame, parts=12, seed=3, defect_share=0.5)
    seen = exposures(drain(open_source(station, 0, 4)))
    assert [e.number for e in seen] == list(range(4, 12))
    for e in seen:
        assert e.image is not None
        assert e.image.shape == (station.frame.height_px, station.frame.width_px, station.frame.channels)
        assert str(e.image.dtype) == station.frame.dtype
        assert read(e.image) == (e.number, truth_is_bad(3, e.number, 0.5))


def test_the_marker_lies_in_the_inspected_region() -> None:
    region = {"x_px": 120, "y_px": 60, "width_px": 150, "height_px": 120}
    data = make_station("marker", frame={"width_px": 300, "height_px": 200}, parts=1).model_dump()
    station = Station.model_validate({**data, "tiling": {"region": region}})
    (seen,) = exposures(drain(open_source(station, 0, 0)))
    assert seen.image is not None
    assert read(seen.image[60:180, 120:270]) is not None
    assert np.ptp(seen.image[:60]) == 0


def test_a_region_too_small_for_a_marker_is_an_error() -> None:
    with pytest.raises(SourceError, match="32 x 48"):
        open_source(make_station("marker", frame={"width_px": 32}), 0, 0)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_of_bad_parts_is_kept(share: float) -> None:
    bad = sum(truth_is_bad(11, number, share) for number in range(5000))
    assert bad / 5000 == pytest.approx(share, abs=0.02)


def test_truth_depends_on_seed_and_number_alone() -> None:
    assert mix(1, 2) == mix(1, 2)
    assert len({mix(seed, number) for seed in range(20) for number in range(200)}) == 4000
    assert mix(0, 0) == 0xA706DD2F4D197E6F


def test_a_live_stream_runs_on_the_real_clock() -> None:
    station = make_station("marker", parts=6, mode="live", rate_hz=200.0, triggers="independent")
    events = drain(open_source(station, time.monotonic_ns(), 0))
    assert [t.number for t in triggers(events)] == list(range(6))
    at_ns = [t.at_ns for t in triggers(events)]
    assert [at_ns[n + 1] - at_ns[n] for n in range(5)] == [5_000_000] * 5
