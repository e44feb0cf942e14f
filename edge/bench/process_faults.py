"""Faults that need no rights and no tools: processes that die or stand still, subscribers and messages gone wrong."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial

from edge.bench.conveyor_line import LINE
from edge.bench.recorders import Deaf
from edge.bench.storm import Fault, Storm
from edge.paths import channel_endpoint
from edge.processes import ARCHIVE, CHANNEL, DETECT, GATE, JUDGE, PREPARE, capture

__all__ = ["CHILDREN", "message_faults", "process_faults"]

CHILDREN = (GATE, CHANNEL, PREPARE, DETECT, JUDGE, ARCHIVE, capture("cam"))
ACTUATOR, SUPERVISOR = "actuator", "supervisor"
DISTORTED = 5
"""Messages, in each way of distorting them."""


def process_faults() -> list[Fault]:
    """Each process killed, stopped for a moment, and stopped for so long that another takes its place."""
    kill, stop, hang = "killed", "stopped", "hung"
    found = [
        Fault(kind, name, partial(strike, name=name))
        for name in CHILDREN
        for kind, strike in ((kill, _kill_child), (stop, _stop_child), (hang, _hang_child))
    ]
    found += [Fault(kill, ACTUATOR, _kill_actuator), Fault(kill, SUPERVISOR, _kill_supervisor)]
    found += [Fault(stop, ACTUATOR, _stop_actuator), Fault(stop, SUPERVISOR, _stop_supervisor)]
    found += [Fault(hang, ACTUATOR, _hang_actuator), Fault(hang, SUPERVISOR, _hang_supervisor)]
    found += [Fault("both_killed", "gate and actuator", _kill_both), Fault("both_killed", "gate and judge", _kill_open)]
    return [*found, Fault("both_stopped", "gate and actuator", _stop_both)]


def message_faults() -> list[Fault]:
    """Subscribers that do not read; messages that come twice, short, or wrong."""
    distorted = [Fault("distorted", way, partial(_distort, ways=(way,))) for way in ("duplicate", "cut", "flip")]
    return [
        Fault("deaf_subscriber", "another", _be_deaf),
        Fault("deaf_subscriber", "the recorder", _pause_recorder),
        *distorted,
        Fault("distorted", "all", partial(_distort, ways=("duplicate", "cut", "flip"))),
    ]


def _kill_child(storm: Storm, name: str) -> None:
    victim = storm.child(name)
    os.kill(victim, signal.SIGKILL)
    storm.replaced(name, victim)


def _stop_child(storm: Storm, name: str) -> None:
    with _stopped(storm.child(name)):
        storm.some_parts()


def _hang_child(storm: Storm, name: str) -> None:
    victim = storm.child(name)
    os.kill(victim, signal.SIGSTOP)
    storm.replaced(name, victim)


def _kill_actuator(storm: Storm) -> None:
    storm.plant.actuator.kill()
    storm.some_parts()
    storm.plant.start_actuator()


def _stop_actuator(storm: Storm) -> None:
    with _stopped(storm.plant.actuator.popen.pid):
        storm.some_parts()


def _hang_actuator(storm: Storm) -> None:
    """What the watchdog of its unit does."""
    os.kill(storm.plant.actuator.popen.pid, signal.SIGSTOP)
    storm.plant.wait_for(lambda: not storm.plant.conveyor.running)
    _kill_actuator(storm)


def _kill_supervisor(storm: Storm) -> None:
    children = storm.plant.line.children()
    storm.plant.line.popen.kill()
    _start_line_again(storm, children)


def _stop_supervisor(storm: Storm) -> None:
    with _stopped(storm.plant.line.popen.pid):
        storm.some_parts()


def _hang_supervisor(storm: Storm) -> None:
    """What the watchdog of its unit does; meanwhile a process dies, and nobody sees it."""
    children = storm.plant.line.children()
    os.kill(storm.plant.line.popen.pid, signal.SIGSTOP)
    os.kill(children[storm.random.choice(CHILDREN)], signal.SIGKILL)
    storm.some_parts()
    storm.plant.line.popen.kill()
    _start_line_again(storm, children)


def _start_line_again(storm: Storm, children: dict[str, int]) -> None:
    storm.plant.line.close()
    storm.plant.wait_for(lambda: not any(_runs(pid) for pid in children.values()))
    storm.plant.start_line()


def _kill_both(storm: Storm) -> None:
    victim = storm.child(GATE)
    os.kill(victim, signal.SIGKILL)
    storm.plant.actuator.kill()
    storm.plant.start_actuator()
    storm.replaced(GATE, victim)


def _kill_open(storm: Storm) -> None:
    """The gate dies while parts wait for a judge that dies as well: nobody but the journal knows of them."""
    gate, judge = storm.child(GATE), storm.child(JUDGE)
    os.kill(judge, signal.SIGSTOP)
    storm.plant.wait_for(lambda: storm.pub.beat is not None and storm.pub.beat.open > 0)
    os.kill(gate, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(judge, signal.SIGKILL)
    storm.replaced(GATE, gate)
    storm.replaced(JUDGE, judge)


def _stop_both(storm: Storm) -> None:
    with _stopped(storm.child(GATE)), _stopped(storm.plant.actuator.popen.pid):
        storm.some_parts()


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was stopped for long, and replaced
            os.kill(pid, signal.SIGCONT)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _be_deaf(storm: Storm) -> None:
    deaf = Deaf(channel_endpoint(storm.plant.runtime_dir / LINE))
    try:
        storm.heal()
        storm.some_parts()
    finally:
        deaf.close()


def _pause_recorder(storm: Storm) -> None:
    """It stops reading for some parts, then takes what it has missed."""
    recorder = storm.recorders[1]
    recorder.stop_reading()
    storm.heal()
    storm.some_parts()
    recorder.read_again()
    storm.plant.wait_for(lambda: recorder.last_seq >= storm.recorders[0].last_seq)


def _distort(storm: Storm, ways: tuple[str, ...]) -> None:
    assert storm.mischief is not None, "this storm has no proxy"
    done = storm.mischief.done
    enough = {way: done[way] + DISTORTED for way in ways}
    storm.mischief.ways = frozenset(ways)
    storm.plant.wait_for(lambda: all(done[way] >= many for way, many in enough.items()))
    storm.mischief.ways = frozenset()
