"""What every storm is judged by."""

from __future__ import annotations

from edge.bench.storm import Fault, Storm

__all__ = ["assert_nothing_wrong", "weather"]


def weather(storm: Storm, faults: list[Fault]) -> None:
    """One fault after the other, in an order that the storm's seed gives."""
    storm.random.shuffle(faults)
    for fault in faults:
        storm.strike(fault)
    assert sum(storm.struck.values()) == len(faults)


def assert_nothing_wrong(storm: Storm) -> None:
    """Nothing was passed, lost or doubled, although parts were inspected, passed and rejected all along."""
    found = storm.finish()
    assert not found.wrong, found.wrong[:20]
    assert found.good_share > 0.2, found
    assert found.verdicts["REJECT"]
    assert storm.pub.payloads
