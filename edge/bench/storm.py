"""Faults for a line that runs, one after the other, each until it is healed.

A fault lasts until something that it must cause has happened, or until some parts have passed by; it is healed when
parts reach the good bin again. Nothing here sleeps for a time.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.actuators.belt import BeltSettings, End
from edge.bench.balance import Balance, Record, balance
from edge.bench.conveyor_line import LINE, ConveyorLine
from edge.bench.recorders import Bystander, Mischief, PubRecorder, Recorder
from edge.paths import channel_endpoint, verdict_endpoint

__all__ = ["Fault", "Storm", "storm"]

PASSES_AGAIN = 3
"""Parts in the good bin, all laid on the belt after the end of a fault, that make it healed."""
MOST_PARTS = 8
"""That pass by while a fault lasts that ends by itself."""


@dataclass(frozen=True)
class Fault:
    """One way to break a line. `strike` returns once the cause is gone; what it caused may heal a little later."""

    kind: str
    target: str
    strike: Callable[[Storm], None]


class Storm:
    """A line on the belt, everyone who listens to it, and what has been done to it."""

    def __init__(self, plant: ConveyorLine, seed: int, mischief: Mischief | None) -> None:
        self.plant, self.mischief, self.random = plant, mischief, random.Random(seed)
        folder = plant.runtime_dir / LINE
        self.pub = PubRecorder(verdict_endpoint(folder))
        self.recorders = [Recorder(channel_endpoint(folder), LINE, name) for name in ("first", "second")]
        self.bystander = Bystander(plant.conveyor)
        self.struck: Counter[str] = Counter()
        """Faults, by kind."""

    def strike(self, fault: Fault) -> None:
        """Break, mend, and wait until good parts pass again. AssertionError, with the logs, when they do not."""
        try:
            fault.strike(self)
            self.heal()
        except AssertionError as error:
            raise AssertionError(f"after {fault.kind} {fault.target}: {error}") from error
        self.struck[fault.kind] += 1

    def heal(self) -> None:
        """Wait until good parts that are not on the belt yet reach the good bin."""
        belt = self.plant.belt
        on_belt = int((belt.ejector_mm + belt.reach_mm + belt.jitter_mm) / belt.spacing_mm) + 2
        newest = max((p.serial for p in self.plant.ended()), default=0) + on_belt
        self.plant.wait_for(lambda: sum(p.serial > newest for p in self.plant.ended(End.GOOD)) >= PASSES_AGAIN)

    def child(self, name: str) -> int:
        """The pid of a process of the line, once it runs."""
        self.plant.wait_for(lambda: name in self.plant.line.children())
        return self.plant.line.children()[name]

    def replaced(self, name: str, victim: int) -> None:
        """Wait until the supervisor has started another one."""
        self.plant.wait_for(lambda: self.plant.line.children().get(name, victim) != victim)

    def some_parts(self) -> None:
        """Wait until some parts have passed by, or the belt stands."""
        before, parts = len(self.plant.ended()), self.random.randint(0, MOST_PARTS)
        self.plant.wait_for(lambda: len(self.plant.ended()) >= before + parts or not self.plant.conveyor.running)

    def finish(self) -> Balance:
        """Stop the line, and count."""
        code = self.plant.line.stop()
        assert code == 0, f"the line ended with exit code {code}:\n{self.plant.line.log.read_text()[-3000:]}"
        records = [Record(r.name, r.verdicts, r.holes) for r in self.recorders]
        ended = self.bystander.look()
        return balance(ended, self.bystander.noticed_ns, self.plant.state_dir, self.pub.payloads, records)


@contextlib.contextmanager
def storm(
    folder: Path, runtime_dir: Path, belt: BeltSettings, *, seed: int, proxy: bool = False, **more: Any
) -> Iterator[Storm]:
    """A line in which good parts pass, and its recorders. `proxy`: the actuator hears the line through a `Mischief`;
    `more`: of `ConveyorLine`."""
    mischief = None
    if proxy:
        front = f"ipc://{runtime_dir}/proxy"
        mischief = Mischief(front, channel_endpoint(runtime_dir / LINE), seed)
        more["extra"] = f'channel = "{front}"\n{more.get("extra", "")}'
    plant = ConveyorLine(folder, runtime_dir, belt, **more)
    found = Storm(plant, seed, mischief)
    with contextlib.ExitStack() as owned:
        for thread in (found.pub, *found.recorders, *([mischief] if mischief else [])):
            owned.enter_context(thread)
        owned.enter_context(plant)
        owned.enter_context(found.bystander)
        found.heal()
        yield found
