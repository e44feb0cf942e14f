"""What becomes a fault, and what does not."""

from __future__ import annotations

import pytest

from edge.actuators.driver import Edge, Fault, Input, PartOutcome
from edge.actuators.in_flight import Decided
from edge.actuators.interlocks import Interlocks
from edge.verdict import Decision
from tests.edge.actuators.actuator_helpers import actuator

MS = 1_000_000
CONFIRM = {"within_ms": 100, "mismatches": 2}


def decided(why: str = "", late: bool = False) -> Decided:
    decision = Decision.UNINSPECTED if why else Decision.PASS
    return Decided(PartOutcome(1, "lane", None, decision, why, bool(why)), None, late)


def faults(raised: list[tuple[Fault, str]]) -> list[Fault]:
    return [fault for fault, _ in raised]


def edge(which: Input, level: bool = True, at_ns: int = 0) -> Edge:
    return Edge(which, level, at_ns)


def test_late_in_a_row() -> None:
    locks = Interlocks(actuator(max_late=2))
    assert [faults(locks.decided(decided("late", late), 0)) for late in (True, False, True)] == [[], [], []]
    assert faults(locks.decided(decided("late", True), 0)) == [Fault.LATE]


def test_rejects_in_a_row() -> None:
    locks = Interlocks(actuator(max_rejects=2))
    assert [faults(locks.decided(decided(why), 0)) for why in ("reject", "", "reject")] == [[], [], []]
    assert faults(locks.decided(decided("deadline"), 0)) == [Fault.CONSECUTIVE_REJECTS]
    locks.reset()
    assert faults(locks.decided(decided("reject"), 0)) == []


def test_parts_that_cannot_be_told_apart_in_a_row() -> None:
    locks = Interlocks(actuator(max_untracked=2))
    whys = ("no verdict", "reject", "ambiguous")
    assert [faults(locks.decided(decided(why), 0)) for why in whys] == [[], [], []]
    assert faults(locks.decided(decided("tracking lost"), 0)) == [Fault.TRACKING]


def test_without_limits_there_is_no_fault() -> None:
    locks = Interlocks(actuator())
    assert all(locks.decided(decided("no verdict"), 0) == [] for _ in range(1000))


def test_every_ejection_is_confirmed() -> None:
    locks = Interlocks(actuator(confirmation=CONFIRM))
    for i in range(5):
        locks.decided(decided("reject"), i * 100 * MS)
        assert locks.edge(edge(Input.CONFIRM), held=False) == []
        assert locks.edge(edge(Input.CONFIRM, False), held=False) == []
        assert locks.advance((i * 100 + 101) * MS, held=False) == []
    assert (locks.counters["commanded"], locks.counters["confirmed"]) == (5, 5)


def test_an_ejection_that_is_not_confirmed() -> None:
    locks = Interlocks(actuator(confirmation=CONFIRM))
    locks.decided(decided("reject"), 0)
    locks.decided(decided("reject"), 50 * MS)
    assert locks.advance(100 * MS, held=False) == []
    assert locks.advance(101 * MS, held=False) == []
    assert faults(locks.advance(151 * MS, held=False)) == [Fault.CONFIRMATION]


def test_a_part_in_the_reject_bin_that_was_let_pass() -> None:
    locks = Interlocks(actuator(confirmation=CONFIRM))
    locks.decided(decided(), 0)
    assert locks.edge(edge(Input.CONFIRM), held=False) == []
    assert faults(locks.edge(edge(Input.CONFIRM), held=False)) == [Fault.CONFIRMATION]


def test_an_agreement_between_two_mismatches_forgives() -> None:
    locks = Interlocks(actuator(confirmation=CONFIRM))
    assert locks.edge(edge(Input.CONFIRM), held=False) == []
    locks.decided(decided("reject"), 0)
    assert locks.edge(edge(Input.CONFIRM), held=False) == []
    assert locks.edge(edge(Input.CONFIRM), held=False) == []
    assert locks.counters["mismatches"] == 2


def test_while_the_ejector_is_held_nothing_is_reconciled() -> None:
    locks = Interlocks(actuator(confirmation={"within_ms": 100, "mismatches": 1}))
    assert locks.edge(edge(Input.CONFIRM), held=True) == []
    locks.decided(decided("silence"), 0)
    assert locks.advance(101 * MS, held=True) == []


def test_while_the_ejector_is_inhibited_and_until_the_chute_is_empty_nothing_is_reconciled() -> None:
    locks = Interlocks(actuator(confirmation={"within_ms": 100, "mismatches": 1}))
    locks.decided(decided("reject"), 0)
    locks.inhibited(50 * MS)
    assert locks.advance(101 * MS, held=False) == [], "commanded before"
    assert locks.edge(edge(Input.CONFIRM, at_ns=149 * MS), held=False) == []
    locks.decided(decided("reject"), 140 * MS)
    assert locks.edge(edge(Input.CONFIRM, at_ns=149 * MS), held=False) == [], "commanded since"
    assert faults(locks.edge(edge(Input.CONFIRM, at_ns=150 * MS), held=False)) == [Fault.CONFIRMATION]


def test_a_reset_forgets_ejections_that_are_not_confirmed_yet() -> None:
    locks = Interlocks(actuator(confirmation={"within_ms": 100, "mismatches": 1}))
    locks.decided(decided("reject"), 0)
    locks.reset()
    assert locks.advance(101 * MS, held=False) == []


@pytest.mark.parametrize(("name", "bad", "fault"), [("bin_full", True, Fault.BIN_FULL), ("air_ok", False, Fault.AIR)])
def test_watched_inputs(name: str, bad: bool, fault: Fault) -> None:
    locks = Interlocks(actuator(watch=[name]))
    assert locks.unknown() == [name]
    assert locks.advance(0, held=False) == [], "what is not known yet is no fault"
    locks.edge(edge(Input(name), not bad), held=False)
    assert locks.unknown() == []
    assert locks.advance(0, held=False) == []
    locks.edge(edge(Input(name), bad), held=False)
    assert faults(locks.advance(0, held=False)) == [fault]
    unwatched = Interlocks(actuator())
    unwatched.edge(edge(Input(name), bad), held=False)
    assert unwatched.advance(0, held=False) == []
