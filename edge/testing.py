"""Helpers for tests and benches that run a whole line: a synthetic calibration, and the line as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calib.calibration import Calibration, LevelsSeen, Provenance, StationCalibration, save_calibration
from edge.detector import open_detectors
from edge.journal import open_for_reading
from edge.journal.runs import read_verdicts
from edge.judge import provenance
from edge.messages import Verdict
from edge.paths import calibration_path, journal_path, make_private, verdict_endpoint
from edge.plan import plan_line
from edge.recipes import load_recipe
from edge.settings import Recipe

__all__ = ["PATIENCE_S", "RunningLine", "calibrate_by_hand", "journal_verdicts", "limits_by_hand", "wait_until"]

PATIENCE_S = 100.0
"""So long what must come is waited for: a machine with more to do than cores is slow, and that is no failure."""


def limits_by_hand(provenance: Provenance, **changes: Any) -> StationCalibration:
    """Limits from nowhere. `changes`: fields of StationCalibration that matter to a test."""
    usual: dict[str, Any] = {
        "map_threshold": 0.5,
        "map_quantile": 0.99,
        "score_threshold": 0.5,
        "parts_fit": 1,
        "parts_held_out": 1,
        "rejected_held_out": 0,
        "target_false_reject_rate": 0.5,
        "confidence": 0.5,
        "false_reject_upper_bound": 1.0,
        "extrapolated": False,
        "score_quantiles": {},
        "levels": LevelsSeen(mean_low=0.2, mean_high=0.8, contrast_low=0.0),
        "statement": "made by hand: it promises nothing",
    }
    return StationCalibration(provenance=provenance, **usual | changes)


def calibrate_by_hand(recipe: Recipe, state_dir: Path, *, score_threshold: float = 0.5) -> None:
    """Write a calibration with a threshold from nowhere, for engines whose scores are known: marker and null."""
    plan = plan_line(recipe)
    detectors = open_detectors(plan)
    stations = {
        name: limits_by_hand(provenance(station, detectors[name].info), score_threshold=score_threshold)
        for name, station in plan.stations.items()
    }
    made = Calibration(
        maskline_version="0", created_utc="1970-01-01T00:00:00Z", source="made by hand", stations=stations
    )
    save_calibration(made, calibration_path(make_private(state_dir), recipe.name))


class RunningLine:
    """`maskline run` in a process of its own, as a user starts it."""

    def __init__(self, recipe: Path, state_dir: Path, runtime_dir: Path, *before: str, **environment: str) -> None:
        """`before`: the words of a command that starts commands, such as `ip netns exec NAME`."""
        self.state_dir, self.runtime_dir = state_dir, runtime_dir
        self.name = load_recipe(recipe).line
        self.log = state_dir.parent / "line.log"
        self._log_file = self.log.open("ab")
        self.popen = subprocess.Popen(
            [*before, sys.executable, "-m", "edge.cli", "run", str(recipe), "--state-dir", str(state_dir)],
            env=os.environ | {"MASKLINE_RUNTIME_DIR": str(runtime_dir)} | environment,
            stderr=self._log_file,
            stdout=self._log_file,
        )

    @property
    def endpoint(self) -> str:
        """Where it publishes."""
        return verdict_endpoint(self.runtime_dir / self.name)

    def children(self) -> dict[str, int]:
        """Process name -> pid, of every process of the table that runs."""
        found = {}
        task = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        for pid in task.read_text().split() if task.exists() else []:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"edge" in command:
                found[command[command.index(b"edge") + 1].decode()] = int(pid)
        return found

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Exit code, once it ends by itself; subprocess.TimeoutExpired if it does not."""
        return self.popen.wait(timeout_s)

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM, and the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def close(self) -> None:
        """Kill what is left."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)
        self._log_file.close()

    def __enter__(self) -> RunningLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def journal_verdicts(state_dir: Path) -> list[Verdict]:
    """Every verdict in the journal of a line, by seq."""
    db = open_for_reading(journal_path(state_dir))
    try:
        return read_verdicts(db)
    finally:
        db.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Poll until `condition()` is true; AssertionError after `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not true within {timeout_s} s: {condition}"
        time.sleep(0.02)
