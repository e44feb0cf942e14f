"""Detect between parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge import detect
from edge.plan import LinePlan, plan_line
from edge.recipes import load_recipe
from engines.backends.marker import MarkerBackend
from tests.support import marker_recipe


class IdleWorker:
    """A worker to whom no frame comes, for three turns of its loop."""

    def __init__(self, plan: LinePlan) -> None:
        self.plan, self.was_ready = plan, False

    def inbox(self) -> None: ...
    def beat(self) -> None: ...
    def calibration(self) -> None: ...
    def ready(self) -> None:
        self.was_ready = True

    def frames(self, each_turn: Callable[[], None]) -> Iterator[Any]:
        for _ in range(3):
            each_turn()
        return iter(())


def test_engines_are_kept_warm_while_no_part_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[MarkerBackend] = []
    monkeypatch.setattr(MarkerBackend, "keep_warm", lambda backend: warmed.append(backend))
    worker: Any = IdleWorker(plan_line(load_recipe(marker_recipe(tmp_path))))
    detect.run(worker)
    assert worker.was_ready
    assert len(warmed) == 3 * len(worker.plan.stations)
