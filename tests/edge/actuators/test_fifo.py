"""Every rule by which a part is let pass or not, one by one. Counts and milliseconds run alike: a part triggered at
count 100 is at the sensor at 160, and the ejector acts for it from 164 to 172."""

from __future__ import annotations

from typing import Any

import pytest

from edge.actuators.answers import Seen
from edge.actuators.fifo import MAX_PARTS, MAX_UNFIRED, Fifo
from edge.actuators.in_flight import Decided, Now
from edge.verdict import Decision, Reason
from tests.edge.actuators.actuator_helpers import BOOT, EPOCH, actuator, verdict

MS = 1_000_000
PITCH = 20


class Belt:
    """Moves parts past one Fifo; part n is triggered at 100 + 20 n."""

    def __init__(self, **changes: Any) -> None:
        self.fifo = Fifo(actuator(**changes), 0)
        self.fifo.line(EPOCH, BOOT, 0)
        self.decided: list[Decided] = []

    def hear(self, n: int, decision: Decision = Decision.PASS, bound_ms: int = 0, **changes: Any) -> None:
        at = 100 + PITCH * n
        made = verdict(n, decision, **({"count": at, "part_id": n, "trigger_ns": at * MS} | changes))
        self.fifo.hear(made, made.trigger_ns, bound_ms * MS, at * MS)

    def sense(self, n: int, off: int = 0, part_id: int | None = None) -> None:
        at = 160 + PITCH * n + off
        self.fifo.sense(Seen(at * MS, at, n if part_id is None else part_id), at * MS)

    def at(self, count: int, unable: str = "", ms: int | None = None) -> bool:
        """Whether the ejector is at reject there."""
        now = Now((count if ms is None else ms) * MS, count)
        self.decided += self.fifo.advance(now, unable)
        return self.fifo.ejects(now)

    def judge(self, n: int, **when: Any) -> str:
        """Bring part n from the sensor through the ejector; "" if it was let pass, else why not."""
        self.sense(n)
        ejected = self.at(164 + PITCH * n, **when)
        outcome = self.decided[-1].outcome
        assert ejected is bool(outcome.why)
        return outcome.why

    def prime(self) -> Belt:
        """The first part establishes the order, and costs whatever was in flight with it."""
        self.hear(0)
        assert self.judge(0) == "out of order"
        return self


@pytest.fixture
def belt() -> Belt:
    return Belt().prime()


def later(belt: Belt, upto: int = 6) -> int:
    """Bring the order back after a loss: parts that were in flight are gone, and the next ones are trusted."""
    for n in range(1, upto):
        belt.hear(n)
        belt.judge(n)
    return upto


def test_a_timely_pass_of_its_own_lets_a_part_pass_and_nothing_else(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.sense(n)
    start = 164 + PITCH * n
    assert [belt.at(c) for c in (start - 1, start, start + 7, start + 8)] == [True, False, False, True]
    outcome = belt.decided[-1].outcome
    assert (outcome.number, outcome.decision, outcome.why, outcome.ejected) == (n, Decision.PASS, "", False)


def test_an_ejector_that_rests_at_pass_fires_for_everything_else() -> None:
    belt = Belt(at_rest="pass")
    belt.hear(0)
    belt.sense(0)
    assert [belt.at(c) for c in (163, 164, 171, 172)] == [False, True, True, False]
    n = later(belt)
    belt.hear(n)
    belt.sense(n)
    assert not belt.at(164 + PITCH * n)
    assert belt.decided[-1].outcome.decision is Decision.PASS


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"decision": Decision.REJECT}, "reject"),
        ({"decision": Decision.UNINSPECTED, "reason": Reason.OVERLOAD}, "overload"),
        ({"late": True}, "late"),
        ({"lane": "other"}, "no verdict"),
        ({"epoch": "another"}, "no verdict"),
        ({"boot_id": "another"}, "no verdict"),
        ({"run": 0}, "no verdict"),
        ({"count": None}, "no verdict"),
        ({"count": 100 + PITCH * 6 + 5}, "no verdict"),
    ],
)
def test_what_is_no_pass_of_its_own(belt: Belt, changes: dict[str, Any], why: str) -> None:
    n = later(belt)
    belt.hear(n, **({"decision": Decision.PASS} | changes))
    assert belt.judge(n) == why


def test_verdicts_that_come_after_the_ejector(belt: Belt) -> None:
    n = later(belt)
    assert belt.judge(n) == "no verdict"
    belt.hear(n)
    assert belt.at(166 + PITCH * n)


def test_age_limits() -> None:
    belt = Belt(max_age_ms=64, min_age_ms=60).prime()
    n = later(belt)
    belt.hear(n)
    assert belt.judge(n) == ""
    belt.hear(n + 1, trigger_ns=(100 + PITCH * (n + 1) - 1) * MS)
    assert belt.judge(n + 1) == "too old"
    belt.hear(n + 2, bound_ms=1)
    assert belt.judge(n + 2) == "too old"
    belt.hear(n + 3, trigger_ns=(100 + PITCH * (n + 3) + 5) * MS)
    assert belt.judge(n + 3) == "too young"
    assert belt.fifo.counters["tracking_lost.a part that came too fast"] == 1


def test_a_trigger_that_cannot_be_dated_is_no_pass(belt: Belt) -> None:
    n = later(belt)
    belt.fifo.hear(verdict(n, count=100 + PITCH * n), None, 0, 0)
    assert belt.judge(n) == "clock"


def test_nothing_passes_while_the_line_cannot_be_trusted(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    assert belt.judge(n, unable="silence") == "silence"


def test_what_was_triggered_before_the_start_is_rejected() -> None:
    belt = Belt()
    belt.fifo = Fifo(actuator(), 140 * MS)
    belt.fifo.line(EPOCH, BOOT, 0)
    for n, why in enumerate(["out of order", *["tracking lost"] * 3, "", ""]):
        belt.hear(n)
        assert belt.judge(n) == why, n


@pytest.mark.parametrize("upset", ["unseen", "taken", "lost"])
def test_tracking_that_is_lost_costs_what_is_in_flight(belt: Belt, upset: str) -> None:
    n = later(belt)
    for i in range(n, n + 3):
        belt.hear(i)
    assert belt.judge(n) == ""
    if upset == "unseen":  # a part that the camera missed
        belt.fifo.sense(Seen((160 + PITCH * n + 13) * MS, 160 + PITCH * n + 13, None), 0)
        belt.at(164 + PITCH * n + 13)
        assert belt.decided[-1].outcome.why == "no verdict"
        assert belt.judge(n + 1) == "too close"
    elif upset == "taken":  # a part that somebody took
        n += 1
        assert belt.judge(n + 1) == "out of order"
    else:
        belt.fifo.lose("a test", (164 + PITCH * n) * MS)
        assert belt.judge(n + 1) == "out of order"
    assert belt.judge(n + 2) in ("tracking lost", "no verdict", "out of order")
    assert belt.fifo.counters["tracking_lost"] > 2


def test_two_parts_in_one_window_are_both_rejected(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.sense(n)
    assert not belt.at(164 + PITCH * n)
    belt.sense(n, off=6)
    assert belt.at(167 + PITCH * n), "the way is closed at once"
    belt.at(170 + PITCH * n)
    assert belt.decided[-1].outcome.why == "too close"
    assert belt.fifo.counters["revoked"] == 1


def test_two_verdicts_in_one_window(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.hear(n + 1, count=102 + PITCH * n)
    assert belt.judge(n) == "ambiguous"
    assert belt.fifo.counters["ambiguous"] == 1


def test_two_verdicts_for_one_part(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.hear(n, decision=Decision.REJECT, seq=77)
    assert belt.judge(n) == "ambiguous"


def test_a_verdict_that_is_sent_again_changes_nothing(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.hear(n)
    assert belt.judge(n) == ""
    assert belt.fifo.counters["verdicts_sent_again"] == 1


def test_a_restart_of_the_line_voids_what_was_before(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.hear(n + 1, run=2)
    assert belt.judge(n) == "no verdict"
    belt.hear(n + 2, run=1)
    assert belt.fifo.counters["verdicts_of_another_run"] == 1


def test_an_encoder_that_goes_back(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.sense(n)
    assert not belt.at(165 + PITCH * n)
    assert not belt.at(165 + PITCH * n - 1), "it may tremble"
    assert belt.at(160 + PITCH * n)
    assert belt.at(165 + PITCH * n)
    assert belt.fifo.counters["tracking_lost.the encoder went back"] == 1


def test_an_encoder_that_says_nothing(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.sense(n)
    assert not belt.at(165 + PITCH * n)
    assert belt.fifo.advance(Now((166 + PITCH * n) * MS, None), "") == []
    assert belt.fifo.ejects(Now((166 + PITCH * n) * MS, None))
    assert belt.at(166 + PITCH * n)
    belt.fifo.sense(Seen(0, None, None), 0)
    assert belt.at(170 + PITCH * n)


def test_too_late_to_open(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    belt.sense(n)
    assert belt.at(168 + PITCH * n)
    assert (belt.decided[-1].late, belt.decided[-1].outcome.why) == (True, "late")
    belt.hear(n + 1)
    belt.sense(n + 1)
    assert not belt.at(167 + PITCH * (n + 1)), "within the tolerance"
    assert not belt.decided[-1].late


def test_too_late_to_fire() -> None:
    belt = Belt(at_rest="pass")
    belt.sense(0)
    assert not belt.at(168), "whatever is there now is another part"
    assert belt.decided[-1].late
    assert not belt.decided[-1].outcome.ejected


def test_rejecting_late_is_not_late_where_reject_is_rest(belt: Belt) -> None:
    n = later(belt)
    belt.sense(n)
    assert belt.at(170 + PITCH * n)
    assert not belt.decided[-1].late


def test_an_ejector_that_stayed_open_is_noticed(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n)
    assert belt.judge(n) == ""
    end = 172 + PITCH * n
    assert not belt.fifo.overrun(Now(0, end + 3))
    assert belt.fifo.overrun(Now(0, end + 4))
    belt.at(end)
    assert not belt.fifo.overrun(Now(0, end + 40)), "it was closed in time"


def test_overlapping_pulses_merge() -> None:
    belt = Belt(at_rest="pass", timing={"unit": "counts", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12})
    belt.sense(0)
    belt.sense(0, off=6)
    assert [belt.at(c) for c in (163, 164, 170, 171, 172, 177, 178)] == [False, True, True, True, True, True, False]


def test_a_sensor_that_chatters_fills_no_memory(belt: Belt) -> None:
    for _ in range(2 * MAX_PARTS):
        belt.sense(1)
    assert belt.fifo.full
    assert belt.fifo.parts == MAX_PARTS


def test_an_encoder_that_stands_while_parts_come_is_noticed_before_they_escape() -> None:
    """At rest at pass nothing is fired before the count says so: the third part that waits is one too many."""
    belt = Belt(at_rest="pass")
    for n in range(MAX_UNFIRED):
        assert not belt.fifo.full
        belt.fifo.sense(Seen((160 + PITCH * n) * MS, 160, None), (160 + PITCH * n) * MS)
        belt.at(160, ms=160 + PITCH * n)
    assert belt.fifo.full
    belt.fifo.sense(Seen(900 * MS, 160, None), 900 * MS)
    assert belt.fifo.parts == MAX_UNFIRED


def test_by_id() -> None:
    timing = {"unit": "ms", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12}
    belt = Belt(match={"by": "id"}, timing=timing, max_age_ms=100)
    belt.hear(7, count=None)
    belt.hear(8, Decision.REJECT, count=None)
    assert belt.judge(7) == "", "ids need no order"
    assert belt.judge(8) == "reject"
    assert belt.judge(9) == "no verdict"
    belt.hear(10, count=None)
    belt.hear(11, part_id=10, count=None)
    assert belt.judge(10) == "ambiguous"
    belt.hear(12, count=None)
    assert belt.judge(12) == ""
    belt.sense(12, off=14)
    assert belt.at(178 + PITCH * 12)
    assert belt.decided[-1].outcome.why == "ambiguous", "the same part again, or two parts with one id"


@pytest.mark.parametrize("sensed", [None, 7])
@pytest.mark.parametrize("told", [None, 7])
def test_by_id_no_id_is_that_of_no_part(told: int | None, sensed: int | None) -> None:
    timing = {"unit": "ms", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12}
    belt = Belt(match={"by": "id"}, timing=timing, max_age_ms=1_000)
    belt.hear(7, part_id=told, count=None)
    belt.fifo.sense(Seen(300 * MS, None, sensed), 300 * MS)
    rejects = belt.at(304)
    assert (belt.decided[-1].outcome.why, rejects) == (("", False) if told == sensed == 7 else ("no verdict", True))


def test_by_id_an_old_verdict_is_not_for_the_next_part_with_that_id() -> None:
    timing = {"unit": "ms", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12}
    belt = Belt(match={"by": "id"}, timing=timing, max_age_ms=100)
    belt.hear(1, count=None)
    belt.at(250)
    belt.sense(9, part_id=1)
    assert belt.at(164 + PITCH * 9)
    belt.hear(11, part_id=1, count=None)
    belt.sense(11, part_id=1)
    assert not belt.at(164 + PITCH * 11)


def test_by_time() -> None:
    timing = {"unit": "ms", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12}
    belt = Belt(match={"by": "time", "delay_ms": 60, "window_ms": 4}, timing=timing).prime()
    n = later(belt)
    belt.hear(n, count=None)
    assert belt.judge(n) == ""
    belt.hear(n + 1, count=None, trigger_ns=(100 + PITCH * (n + 1) + 5) * MS)
    assert belt.judge(n + 1) == "no verdict"


def test_an_encoder_that_slips_where_a_gap_hides_it(belt: Belt) -> None:
    """Behind a gap, parts arrive one pitch early: the first finds no verdict, and the second finds the first one's."""
    n = later(belt)
    belt.hear(n, count=100 + PITCH * (n + 1))
    belt.hear(n + 1, Decision.REJECT, count=100 + PITCH * (n + 2))
    assert belt.judge(n) == "no verdict"
    assert belt.judge(n + 1) == "out of order"


def test_another_life_of_the_line_continues_no_order(belt: Belt) -> None:
    n = later(belt)
    belt.hear(n, run=2)
    assert belt.judge(n) == "out of order"
    n = later(belt, n + 6)
    belt.fifo.line("another", BOOT, (160 + PITCH * n) * MS)
    belt.hear(n, epoch="another")
    assert belt.judge(n) == "out of order"


def test_by_id_what_was_triggered_before_the_start_is_rejected() -> None:
    timing = {"unit": "ms", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12}
    belt = Belt(match={"by": "id"}, timing=timing)
    belt.fifo = Fifo(actuator(match={"by": "id"}, timing=timing), 130 * MS)
    belt.fifo.line(EPOCH, BOOT, 0)
    belt.hear(1)
    belt.hear(2)
    assert [belt.judge(1), belt.judge(2)] == ["tracking lost", ""]
