"""The proof by faults counts what it must: each mistake is made on purpose, and found in the figure of its name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge.actuators.belt import End, Part
from edge.bench.balance import Balance, Record, balance
from edge.bench.faults import BUDGETS, MUST_BE_NONE, belt_of_round
from edge.bench.process_faults import CHILDREN, message_faults, process_faults
from edge.journal import Journal, write_turn
from edge.messages import Verdict, View, encode
from edge.paths import journal_path
from edge.plan import plan_line
from edge.recipes import load_recipe
from edge.verdict import Decision
from tests.conveyor_line import conveyor_recipe
from tests.edge.journal_helpers import verdict_of

BAD = 3
PARTS = 6


@dataclass
class World:
    """What is true of a line that has made no mistake; tests change it before it is counted."""

    verdicts: list[Verdict]
    parts: list[Part]
    noticed_ns: dict[int, int]
    record: list[Verdict]
    published: list[tuple[int, bytes]]
    open_triggers: int = 0


def of_part(serial: int, epoch: str, **fields: object) -> Verdict:
    decision = Decision.REJECT if serial == BAD else Decision.PASS
    view = View("cam", decision, None, 0.25, 0.5, [], serial, "", serial, "b", "c", {}, [])
    return verdict_of(serial + 1, epoch=epoch, lane="cam", part=serial, decision=decision, views=[view], **fields)


def counted(tmp_path: Path, change: Callable[[World], None]) -> Balance:
    """The balance of a world that somebody has changed."""
    with closing(Journal(journal_path(tmp_path), commit_interval_ms=100, reserve_mib=1)) as journal:
        run = journal.run(1, "recipe", "{}")
        verdicts = [of_part(i, journal.epoch, run=run) for i in range(PARTS)]
        ends = [End.REJECT if i == BAD else End.GOOD for i in range(PARTS)]
        world = World(
            verdicts,
            [Part(i, i == BAD, 0.0, end) for i, end in enumerate(ends)],
            {i: verdicts[i].decided_ns + 1 for i in range(PARTS)},
            list(verdicts),
            [(v.seq, encode(v)) for v in verdicts],
        )
        change(world)
        rows = [(run, "cam", v.part, "cam", v.trigger_ns, 0, False, None, None) for v in world.verdicts]
        rows += [(run, "cam", PARTS + i, "cam", 0, 0, False, None, None) for i in range(world.open_triggers)]
        pairs = [(v, encode(v)) for v in world.verdicts]
        journal.write(partial(write_turn, run, rows, [], pairs, journal.head))
    record = Record("a recorder", world.record, [])
    return balance(world.parts, world.noticed_ns, tmp_path, world.published, [record])


def into_the_good_bin(world: World) -> None:
    world.parts[BAD].end = End.GOOD


def late(world: World) -> None:
    world.verdicts[0] = replace(world.verdicts[0], late=True)
    world.published, world.record = world.published[1:], []


def past_its_deadline(world: World) -> None:
    world.verdicts[0] = replace(world.verdicts[0], deadline_ns=world.verdicts[0].decided_ns - 1)


def from_the_pixels_of_another(world: World) -> None:
    first, second = world.verdicts[:2]
    world.verdicts[0] = replace(first, views=second.views)


def passed_before_it_was_decided(world: World) -> None:
    world.noticed_ns[0] = world.verdicts[0].decided_ns - 1


def never_answered(world: World) -> None:
    world.open_triggers = 1


def a_number_left_out(world: World) -> None:
    world.verdicts[-1] = replace(world.verdicts[-1], part=PARTS)


def other_bytes(world: World) -> None:
    world.published[0] = (1, b"another verdict")


def never_written(world: World) -> None:
    world.published.append((PARTS + 1, b"a verdict"))


def missed_one(world: World) -> None:
    del world.record[1]


def ends_early(world: World) -> None:
    world.record.pop()


def came_twice(world: World) -> None:
    world.record.insert(1, world.record[0])


@pytest.mark.parametrize(
    ("mistake", "figure"),
    [
        (into_the_good_bin, "bad_passed"),
        (into_the_good_bin, "false_pass"),
        (late, "false_pass"),
        (past_its_deadline, "false_pass"),
        (from_the_pixels_of_another, "false_pass"),
        (from_the_pixels_of_another, "duplicated"),
        (passed_before_it_was_decided, "false_pass"),
        (never_answered, "lost"),
        (a_number_left_out, "lost"),
        (other_bytes, "unjournalled"),
        (never_written, "unjournalled"),
        (missed_one, "subscriber_gaps"),
        (ends_early, "subscriber_gaps"),
        (came_twice, "subscriber_repeats"),
    ],
)
def test_each_mistake_is_counted(tmp_path: Path, mistake: Callable[[World], None], figure: str) -> None:
    found = counted(tmp_path, mistake)
    assert getattr(found, figure) == 1, found
    assert [what for what in found.wrong if what.startswith(f"{figure}: ")]


def test_a_line_without_mistakes(tmp_path: Path) -> None:
    found = counted(tmp_path, lambda world: None)
    assert not found.wrong
    assert (found.parts, found.passed, found.good_share) == (PARTS, PARTS - 1, 1.0)
    assert found.verdicts == {"PASS": PARTS - 1, "REJECT": 1}


def test_a_line_that_rejects_everything_makes_no_mistake_and_breaks_the_budget(tmp_path: Path) -> None:
    def reject(world: World) -> None:
        for part in world.parts:
            part.end = End.REJECT

    found = counted(tmp_path, reject)
    assert not found.wrong
    assert not BUDGETS["faults.good_share"].holds(found.good_share)


def test_nothing_is_allowed_that_must_not_be() -> None:
    for name in MUST_BE_NONE:
        assert BUDGETS[f"faults.{name}"].holds(0)
        assert not BUDGETS[f"faults.{name}"].holds(1)


def test_every_process_of_a_line_is_killed_stopped_and_hung(tmp_path: Path) -> None:
    recipe = load_recipe(conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", belt_of_round(0)))
    serving = {p.name for p in plan_line(recipe).processes if not p.tries}
    assert serving == {*CHILDREN}
    struck = {(f.kind, f.target) for f in process_faults()}
    assert {
        (kind, name) for kind in ("killed", "stopped", "hung") for name in (*serving, "supervisor", "actuator")
    } <= struck
    assert len({(f.kind, f.target) for f in message_faults()}) == len(message_faults())
