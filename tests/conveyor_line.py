"""The conveyor line of the benches, for tests: whatever dies on it, `assert_nothing_escaped` holds."""

from __future__ import annotations

from edge.actuators.belt import End
from edge.actuators.conveyor import Conveyor
from edge.bench.conveyor_line import ACTUATOR, ConveyorLine, conveyor_recipe
from edge.messages import Verdict
from edge.testing import journal_verdicts
from edge.verdict import Decision

__all__ = ["ACTUATOR", "ConveyorLine", "assert_nothing_escaped", "conveyor_recipe"]


def assert_nothing_escaped(it: ConveyorLine, lane: str = "cam", belt: Conveyor | None = None) -> list[Verdict]:
    """Every part in the good bin had a timely PASS of its own, by what the marker in its own pixels says; returns the
    lane's verdicts in the journal. `belt`: the lane's own, where the line has more than one."""
    verdicts = [v for v in journal_verdicts(it.state_dir) if v.lane == lane]
    passed = {w for v in verdicts if v.decision is Decision.PASS and not v.late for w in {x.witness for x in v.views}}
    good_bin = [p for p in (belt or it.conveyor).truth() if p.end is End.GOOD]
    escaped = [p for p in good_bin if p.bad or p.serial not in passed]
    assert not escaped, f"in the good bin without a timely PASS of their own: {escaped}"
    return verdicts
