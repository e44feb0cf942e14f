"""The conveyor line of the benches, for tests: whatever dies on it, `assert_nothing_escaped` holds."""

from __future__ import annotations

from edge.actuators.belt import End
from edge.bench.conveyor_line import ACTUATOR, ConveyorLine, conveyor_recipe
from edge.messages import Verdict
from edge.testing import journal_verdicts
from edge.verdict import Decision

__all__ = ["ACTUATOR", "ConveyorLine", "assert_nothing_escaped", "conveyor_recipe"]


def assert_nothing_escaped(it: ConveyorLine) -> list[Verdict]:
    """Every part in the good bin had a timely PASS of its own, by what the marker in its own pixels says; returns the
    journal's verdicts."""
    verdicts = journal_verdicts(it.state_dir)
    passed = {w for v in verdicts if v.decision is Decision.PASS and not v.late for w in {x.witness for x in v.views}}
    escaped = [p for p in it.ended(End.GOOD) if p.bad or p.serial not in passed]
    assert not escaped, f"in the good bin without a timely PASS of their own: {escaped}"
    return verdicts
