"""A disk that is slow, a disk that is full, and a wall clock that jumps, while parts are on the belt."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from edge.bench.faults import belt_of_round
from edge.bench.storm import Fault, Storm, storm
from edge.verdict import GateState
from tests.disks import fill, loop_disk
from tests.faults.storm_helpers import assert_nothing_wrong, weather
from tests.preloaded import Preloaded

pytestmark = pytest.mark.line
BEHIND_MS, STANDS_MS = 300, 60_000
DAY_S = 86_400


def stopped_because(it: Storm, why: str) -> bool:
    beat = it.pub.beat
    said = beat is not None and beat.state is GateState.NOT_READY and why in " ".join(beat.trouble)
    return said and not it.plant.conveyor.running


def test_slow_disk_and_jumping_clock(tmp_path: Path, runtime_dir: Path) -> None:
    """The disk is slow, so that the power-cut window grows; then so slow that nothing may go out. The clock jumps."""

    def behind(it: Storm) -> None:
        box.slow_down(BEHIND_MS)
        it.plant.wait_for(lambda: it.pub.longest_lag_ms > BEHIND_MS)
        it.heal()
        box.slow_down(0)

    def stands(it: Storm) -> None:
        box.slow_down(STANDS_MS)
        it.plant.wait_for(lambda: stopped_because(it, "the disk is"))
        box.slow_down(0)

    def jump(it: Storm, ahead_s: int) -> None:
        silences = it.recorders[0].silences
        box.jump(ahead_s)
        it.plant.wait_for(lambda: abs(ahead_now_s(it) - ahead_s) < 60)
        it.heal()
        assert it.recorders[0].silences == silences, "a wall clock that jumps must not disturb the line"

    def ahead_now_s(it: Storm) -> float:
        return (it.pub.beat.utc_ns - time.time_ns()) / 1e9 if it.pub.beat else 0.0

    box = Preloaded(tmp_path)
    jumps = [Fault("clock", f"{s:+d} s", partial(jump, ahead_s=s)) for s in (3600, -3600, 400 * DAY_S, -400 * DAY_S)]
    slow = [Fault("slow_disk", "behind", behind), Fault("slow_disk", "stands", stands)]
    with storm(tmp_path, runtime_dir, belt_of_round(1), seed=4, environment=box.environment) as it:
        weather(it, slow * 2 + jumps)
        assert_nothing_wrong(it)


def test_full_disk(tmp_path: Path, runtime_dir: Path) -> None:
    def full(it: Storm) -> None:
        plug = fill(disk)
        it.plant.wait_for(lambda: stopped_because(it, "full"))
        plug.unlink()

    with loop_disk(tmp_path, mib=24) as disk:
        with storm(tmp_path, runtime_dir, belt_of_round(1), seed=5, state_dir=disk) as it:
            weather(it, [Fault("full_disk", "journal", full)] * 2)
            assert_nothing_wrong(it)
