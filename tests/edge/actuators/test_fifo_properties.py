"""Whatever comes late, twice, not at all, out of order or from elsewhere, and whatever the encoder counts: a part is
let pass only on a timely PASS of its own.

A belt is moved step by step; what the encoder counts is not what it moves. The camera may miss a part, its verdict may
be late or lost, the actuator may start again in the middle. The test knows which part lies where.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.actuators.answers import Seen
from edge.actuators.fifo import Fifo
from edge.actuators.in_flight import Now
from edge.actuators.settings import Actuator
from edge.messages import Verdict, fields_of
from edge.verdict import Decision
from tests.edge.actuators.actuator_helpers import BOOT, EPOCH, actuator, verdict

DISTANCE, SPACING, DELAY, PULSE = 60, 12, 4, 8
EJECTOR = DISTANCE + DELAY + PULSE // 2  # where a part is judged by what the ejector does
MS = 1_000_000


@dataclass
class Item:
    """A part on the belt, and what becomes of its verdict."""

    gap: int  # to the part before it
    bad: bool
    missed: bool  # by the camera
    removed: bool  # from the belt, between camera and sensor
    after: int | None  # steps from the trigger to the arrival of its verdict; None: it never arrives
    again: int | None  # and once more after so many
    late: bool
    other: str  # "": of this line; else which field is another line's


@dataclass
class World:
    """The belt."""

    items: list[Item]
    slips: dict[int, int]  # step -> how many counts the encoder is off from then on
    moves: dict[int, int]  # step -> for how many steps the belt runs backwards
    stops: dict[int, int]  # step -> ms for which it stands
    restarts: set[int]
    zeros: dict[int, int] = field(default_factory=dict)  # step -> how far the camera's own counter is off from then on
    at: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at = list(itertools.accumulate(i.gap for i in self.items))


ODD = {
    "missed": st.just(True),
    "removed": st.just(True),
    "late": st.just(True),
    "after": st.one_of(st.integers(1, 120), st.none()),
    "again": st.integers(1, 100),
    "other": st.sampled_from(["epoch", "run", "boot_id"]),
    "gap": st.integers(SPACING, 100),
}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A belt full of parts, where little goes wrong: most of it must work, or nothing would pass anyway."""
    n = draw(st.integers(20, 45))
    gaps = draw(st.sampled_from([[SPACING], [SPACING, 17], [20, 13, 12, 31], [70]]))
    items = [
        Item(gap=gaps[i % len(gaps)], bad=bad, missed=False, removed=False, after=20, again=None, late=False, other="")
        for i, bad in enumerate(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ]
    for i in draw(st.sets(st.integers(5, n - 1), max_size=2)):
        what = draw(st.sampled_from(sorted(ODD)))
        setattr(items[i], what, draw(ODD[what]))
    steps = st.integers(80, 600)
    sizes = st.sampled_from([-SPACING, SPACING, -2 * SPACING, 2 * SPACING, 17, -17, 5, -5, 9, -9, -500])
    moves = st.sampled_from([3, 8, SPACING, 24, 40, 100])
    return World(
        items,
        slips=draw(st.one_of(st.just({}), st.dictionaries(steps, sizes, max_size=2))),
        moves=draw(st.one_of(st.just({}), st.dictionaries(steps, moves, max_size=1))),
        stops=draw(st.one_of(st.just({}), st.dictionaries(steps, st.integers(1, 300), max_size=2))),
        restarts=draw(st.one_of(st.just(set()), st.sets(steps, max_size=1))),
        zeros=draw(st.one_of(st.just({}), st.dictionaries(steps, sizes, max_size=2))),
    )


class Line:
    """Moves a world, and feeds a Fifo with what camera, sensor and encoder make of it."""

    def __init__(self, world: World, actuator: Actuator) -> None:
        self.world, self.actuator = world, actuator
        self.ms, self.error, self.zero, self.number = 1000, 0, 0, 0
        self.mail: list[tuple[int, Verdict]] = []
        self.own: dict[int, list[Verdict]] = {}  # of each part
        self.heard: set[int] = set()  # seq of verdicts that have arrived
        self.judged_ms: dict[int, int] = {}  # when each part was where the ejector's turn begins
        self.passed: list[int] = []
        self.fifo = self.start()

    def start(self) -> Fifo:
        fifo = Fifo(self.actuator, self.ms * MS)
        fifo.line(EPOCH, BOOT, self.ms * MS)
        return fifo

    def run(self) -> None:
        x, step, back = 0, 0, 0
        end = self.world.at[-1] + EJECTOR + 2
        gone = {i for i, item in enumerate(self.world.items) if item.removed}
        done: set[int] = set()
        while x < end and step < 5000:
            step += 1
            back = back + self.world.moves.pop(step, 0)
            x += -1 if back else 1
            back = max(0, back - 1)
            self.error += self.world.slips.pop(step, 0)
            self.zero += self.world.zeros.pop(step, 0)
            self.ms += 1 + self.world.stops.pop(step, 0)
            if step in self.world.restarts:
                self.fifo = self.start()
            forward = x + 1 if back else x
            for i, at in enumerate(self.world.at):
                if at == forward and i not in done:
                    self.trigger(i, x + self.error + self.zero)
                if at + DISTANCE == forward and i not in gone and i not in done:
                    self.fifo.sense(Seen(self.ms * MS, x + self.error, None), self.ms * MS)
            self.deliver()
            now = Now(self.ms * MS, x + self.error)
            self.fifo.advance(now, "")
            for i, at in enumerate(self.world.at):
                if at + DISTANCE + DELAY == x:
                    self.judged_ms[i] = self.ms
                if at + EJECTOR == x and i not in gone and i not in done:
                    done.add(i)
                    if not self.fifo.ejects(now):
                        self.let_pass(i)

    def trigger(self, i: int, count: int) -> None:
        item = self.world.items[i]
        if item.missed:
            return
        decision = Decision.REJECT if item.bad else Decision.PASS
        made = verdict(self.number, decision, count=count, trigger_ns=self.ms * MS, late=item.late)
        self.number += 1
        if item.other:
            wrong = {"epoch": "epoch-0", "run": 0, "boot_id": "boot-0"}[item.other]
            made = verdict(
                **(fields_of(made) | {item.other: wrong})  # type: ignore[arg-type]
            )
        self.own.setdefault(i, []).append(made)
        if item.after is not None:
            self.mail.append((self.ms + item.after, made))
            if item.again is not None:
                self.mail.append((self.ms + item.after + item.again, made))

    def deliver(self) -> None:
        for due, made in list(self.mail):
            if due <= self.ms:
                self.mail.remove((due, made))
                self.heard.add(made.seq)
                self.fifo.hear(made, made.trigger_ns, 0, self.ms * MS)

    def let_pass(self, i: int) -> None:
        self.passed.append(i)
        good = [
            v
            for v in self.own.get(i, [])
            if v.decision is Decision.PASS and v.seq in self.heard and not v.late and not self.world.items[i].other
        ]
        assert good, f"part {i} was let pass without a timely PASS of its own"
        assert self.judged_ms[i] - good[-1].trigger_ns // MS <= self.actuator.max_age_ms + 2 * PULSE


def regular(n: int, **changes: object) -> list[Item]:
    plain = {"gap": SPACING, "bad": False, "missed": False, "removed": False, "after": 20, "again": None, "late": False}
    return [Item(**(plain | {"other": "", "bad": i % 3 == 2} | changes)) for i in range(n)]  # type: ignore[arg-type]


@settings(max_examples=300)
@given(world=worlds())
@example(world=World(regular(30), {100: SPACING}, {}, {}, set()))
@example(world=World(regular(30), {100: -SPACING}, {}, {}, set()))
@example(world=World(regular(30), {130: -SPACING, 142: -SPACING}, {}, {}, set()))
@example(world=World(regular(30), {}, {150: 40}, {}, set()))
@example(world=World(regular(60), {}, {}, {}, set(), {300: SPACING}))
@example(world=World(regular(60), {}, {}, {}, set(), {300: -SPACING}))
def test_nothing_passes_without_its_own_timely_pass(world: World) -> None:
    Line(world, actuator(max_age_ms=200)).run()


def test_good_parts_do_pass() -> None:
    """The property above is easy to keep for an actuator that rejects everything."""
    line = Line(World(regular(40), {}, {}, {}, set()), actuator())
    line.run()
    good = [i for i in range(40) if i % 3 != 2]
    assert set(line.passed) >= {i for i in good if i > 7}
    assert line.fifo.counters["tracking_lost.a part out of order"] == 1


@pytest.mark.parametrize("slip", [SPACING, -SPACING, 7])
def test_tracking_comes_back_after_a_slip(slip: int) -> None:
    line = Line(World(regular(60), {200: slip}, {}, {}, set()), actuator())
    line.run()
    assert line.fifo.counters["tracking_lost"] > 1
    assert len([i for i in line.passed if i > 40]) == len([i for i in range(41, 60) if i % 3 != 2])


def test_a_camera_whose_counter_started_again_lets_nothing_pass_until_the_counters_agree() -> None:
    line = Line(World(regular(90), {}, {}, {}, set(), {300: SPACING, 700: -SPACING}), actuator())
    line.run()
    assert line.fifo.counters["tracking_lost.the camera's counter and ours differ"] > 5
    assert not [i for i in line.passed if 31 < i < 58]
    assert [i for i in line.passed if i > 75] == [i for i in range(76, 90) if i % 3 != 2]
