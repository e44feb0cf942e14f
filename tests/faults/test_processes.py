"""Parts on the conveyor while a process dies, stands still or is replaced, and while messages and subscribers go wrong.

Whatever happens: no part reaches the good bin without a timely PASS of its own, every part that was seen has one final
record, and no subscriber misses a verdict or gets one twice. `maskline bench faults --rounds N` is the long way.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.bench.faults import belt_of_round
from edge.bench.process_faults import CHILDREN, message_faults, process_faults
from edge.bench.storm import storm
from edge.processes import DETECT, GATE
from tests.faults.storm_helpers import assert_nothing_wrong, weather

pytestmark = pytest.mark.line
SLOW_TO_BE_REPLACED = {*CHILDREN} - {GATE, DETECT}
"""Up to ten seconds each: those the bench has."""


def test_processes_die_and_messages_go_wrong(tmp_path: Path, runtime_dir: Path) -> None:
    faults = [f for f in process_faults() if f.kind in ("killed", "both_killed")]
    with storm(tmp_path, runtime_dir, belt_of_round(0), seed=1, proxy=True) as it:
        weather(it, faults + message_faults())
        assert it.mischief is not None
        assert all(it.mischief.done[way] for way in ("duplicate", "cut", "flip"))
        assert_nothing_wrong(it)


def test_processes_hang(tmp_path: Path, runtime_dir: Path) -> None:
    faults = [f for f in process_faults() if f.kind in ("stopped", "both_stopped", "hung")]
    with storm(tmp_path, runtime_dir, belt_of_round(1), seed=2) as it:
        weather(it, [f for f in faults if f.kind != "hung" or f.target not in SLOW_TO_BE_REPLACED])
        assert_nothing_wrong(it)
