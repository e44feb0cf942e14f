"""A gate in the test's own process: real sockets, a real journal, and the other processes played by the test."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from edge.gate import Gate
from edge.journal import Journal
from edge.messages import Heartbeat, Message, Verdict, ViewResult, encode
from edge.paths import journal_path, make_private
from edge.plan import plan_line
from edge.processes import GATE, capture
from edge.settings import Recipe
from edge.slab import Slab, State
from edge.testing import PATIENCE_S
from edge.verdict import Decision
from edge.verdicts import Event, Subscriber
from edge.worker import Worker

__all__ = ["GateClock", "HandGate", "boot_again", "cut_power", "good", "hand_gate", "recipe"]


DEADLINE_MS = 60_000


def recipe(stations: int = 1, *, same_lane: bool = False, deadline_ms: int = DEADLINE_MS, **sections: object) -> Recipe:
    """A recipe whose stations are s0, s1, ...; nobody captures for them."""
    return Recipe.model_validate(
        {
            "line": "test",
            "safe_state": "reject_all",
            "line_ok": {"wired": "none", "because": "a test"},
            "engine": {"backend": "marker"},
            "deadline": {"deadline_ms": deadline_ms, "view_timeout_ms": 300},
            "journal": {"reserve_mib": 1, "commit_interval_ms": 10},
            "stations": [
                {
                    "name": f"s{i}",
                    "lane": "lane" if same_lane else f"s{i}",
                    "bundle": "marker",
                    "frame": {"width_px": 224, "height_px": 224},
                    "source": {"kind": "marker"},
                }
                for i in range(stations)
            ],
            **sections,
        }
    )


def good(station: str, number: int, decision: Decision = Decision.PASS) -> ViewResult:
    """What the judge says of a part."""
    return ViewResult(station, number, time.monotonic_ns(), decision, score=0.1, threshold=0.5)


class GateClock:
    """The gate's clock, moved by the test: deadlines are long, so that a slow machine misses none, and pass at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead_ns = 0
        clocks = SimpleNamespace(monotonic_ns=self.now_ns, time_ns=time.time_ns, sleep=time.sleep)
        monkeypatch.setattr("edge.gate.time", clocks)

    def now_ns(self) -> int:
        """What it says: triggers that the gate shall find in time are of now."""
        return time.monotonic_ns() + self._ahead_ns

    def pass_deadlines(self) -> None:
        """Every deadline that a trigger has by now is over."""
        self._ahead_ns += (DEADLINE_MS + 1) * 1_000_000

    def pass_during_commit(self, line: HandGate, seq: int, stall_s: float = 0.0) -> None:
        """The commit of verdict `seq`, the first that is tried, takes longer than its deadline."""
        write, passed = line.journal.write, False

        def stalls(work: Callable[[sqlite3.Connection], object]) -> object:
            nonlocal passed
            done = write(work)
            if not passed and line.journal.last_seq() == seq:
                passed = True
                time.sleep(stall_s)
                self.pass_deadlines()
            return done

        line.journal.write = stalls  # type: ignore[method-assign]


class HandGate:
    """One gate, and what is around it."""

    def __init__(self, recipe: Recipe, runtime_dir: Path, state_dir: Path, slab: Slab | None = None) -> None:
        self.plan = plan_line(recipe)
        self.slab = slab or Slab.create(self.plan.layouts)
        self.state_dir = make_private(state_dir)
        process = next(p for p in self.plan.processes if p.name == GATE)
        self.worker = Worker(process, self.plan, self.slab, runtime_dir, state_dir)
        self.worker.inbox()
        self.context = zmq.Context()
        self.sockets: dict[str, zmq.Socket[bytes]] = {}
        self.journal = Journal(
            journal_path(state_dir),
            commit_interval_ms=recipe.journal.commit_interval_ms,
            reserve_mib=recipe.journal.reserve_mib,
        )
        self.start_line()
        self.gate = Gate(self.worker, self.journal)
        self.client = Subscriber(self.worker.verdict_endpoint, "test")
        self.heard: list[Event] = []
        self.until(lambda: any(isinstance(e, Heartbeat) for e in self.heard))

    def start_line(self) -> None:
        """Every process is up."""
        for process in self.plan.processes:
            self.slab.row(process.index)["state"] = State.RUNNING
        self.slab.head["start_ns"] = 1

    def send(self, *messages: Message, sender: str = "judge") -> None:
        """As another process would."""
        self.send_bytes(*map(encode, messages), sender=sender)

    def send_bytes(self, *data: bytes, sender: str = "stranger") -> None:
        if sender not in self.sockets:
            self.sockets[sender] = self.context.socket(zmq.PUSH)
            self.sockets[sender].connect(f"ipc://{self.worker.runtime_dir}/{GATE}")
        for message in data:
            self.sockets[sender].send(message)

    def number(self, station: str, upto: int, ended: bool = False) -> None:
        """What the capture process of the station leaves in the slab."""
        index = self.worker.index_of(capture(station))
        self.slab.head["next_trigger"][index] = upto
        self.slab.row(index)["state"] = State.DONE if ended else State.RUNNING

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.gate.turn()
            while events := self.client.poll(0):
                self.heard += events

    def until(self, condition: Callable[[], object]) -> None:
        """Let the gate turn until `condition()` is true."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, f"not true within {PATIENCE_S} s; heard {self.heard}"
            self.turn()

    @property
    def verdicts(self) -> list[Verdict]:
        """What was published so far."""
        return [e for e in self.heard if isinstance(e, Verdict)]

    @property
    def last_beat(self) -> Heartbeat:
        return [e for e in self.heard if isinstance(e, Heartbeat)][-1]

    @property
    def open(self) -> int:
        """What the gate tells the supervisor."""
        return int(self.slab.row(self.worker.process.index)["open"])

    def die(self) -> None:
        """As after SIGKILL, as far as others can tell."""
        self.journal.close()
        self.worker.zmq.destroy(linger=0)
        self.context.destroy(linger=0)
        self.client.close()


@contextlib.contextmanager
def hand_gate(recipe: Recipe, runtime_dir: Path, state_dir: Path, slab: Slab | None = None) -> Iterator[HandGate]:
    """A gate for the length of a block. Pass the slab of an earlier one to restart it on the same line."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    gate = HandGate(recipe, runtime_dir, state_dir, slab)
    try:
        yield gate
    finally:
        gate.die()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def boot_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To every journal that is opened from now on, the machine went down and came up again."""
    monkeypatch.setattr("edge.journal.writer.boot_id", lambda: "the next boot")


def cut_power(line: HandGate, keep: int) -> Path:
    """A state folder as a power cut would leave it now that takes all verdicts behind `keep`, and their triggers."""
    left = line.state_dir.with_name("after_the_cut")
    make_private(left)
    with closing(sqlite3.connect(line.journal.path)) as db, closing(sqlite3.connect(journal_path(left))) as copy, copy:
        db.backup(copy)
        copy.execute("DELETE FROM verdicts WHERE seq > ?", (keep,))
        copy.execute("DELETE FROM triggers WHERE number >= ?", (keep,))
    return left
