"""Processes of a line, all of them in the one that tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.plan import plan_line
from edge.settings import Recipe
from edge.slab import Slab
from edge.worker import Worker

__all__ = ["Start", "processes_of"]

Start = Callable[[str], Worker]


@contextmanager
def processes_of(recipe: Recipe, runtime_dir: Path, state_dir: Path) -> Iterator[Start]:
    """What starts processes of a line, by their names, all of them in this one."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    plan = plan_line(recipe)
    slab = Slab.create(plan.layouts)
    workers: list[Worker] = []

    def make(name: str) -> Worker:
        process = next(p for p in plan.processes if p.name == name)
        workers.append(Worker(process, plan, slab, runtime_dir, state_dir))
        workers[-1].inbox()
        return workers[-1]

    yield make
    for worker in workers:
        worker.zmq.destroy(linger=0)
    slab.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
