"""Helpers for tests that run a whole line: recipes with the marker engine, a calibration for it, the line itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from calib.calibration import Calibration, LevelsSeen, StationCalibration, save_calibration
from edge.journal import open_for_reading
from edge.judge import provenance
from edge.messages import Verdict, decode
from edge.paths import calibration_path, journal_path
from edge.plan import plan_line
from edge.settings import load_recipe

MARKER_STATION = """
[[stations]]
name = "{name}"
lane = "{lane}"
bundle = "marker"
frame = {{ width_px = 224, height_px = 224 }}
slots = {slots}
[stations.source]
kind = "marker"
mode = "{mode}"
triggers = "{triggers}"
rate_hz = {rate_hz}
defect_share = 0.3
seed = 7
{parts}
"""


def marker_recipe(
    folder: Path,
    *,
    stations: int = 1,
    same_lane: bool = False,
    parts: int | None = 20,
    rate_hz: float = 50.0,
    mode: str = "live",
    triggers: str = "inferred",
    deadline_ms: int = 1000,
    slots: int = 4,
    extra: str = "",
) -> Path:
    """Write a recipe whose frames carry their part number and truth."""
    text = f"""
line = "test"
safe_state = "reject_all"
line_ok = {{ wired = "none", because = "a test" }}
engine = {{ backend = "marker" }}
deadline = {{ deadline_ms = {deadline_ms}, view_timeout_ms = 2000 }}
journal = {{ reserve_mib = 1 }}
pictures = {{ keep = "none" }}
{extra}
"""
    for i in range(stations):
        text += MARKER_STATION.format(
            name=f"s{i}",
            lane="lane" if same_lane else f"s{i}",
            slots=slots,
            mode=mode,
            triggers=triggers,
            rate_hz=rate_hz,
            parts=f"parts = {parts}" if parts else "",
        )
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def calibrate_marker(recipe: Path, state_dir: Path) -> None:
    """A calibration for the marker engine: what it repaints differs by nothing, or by all of the marker."""
    plan = plan_line(load_recipe(recipe))
    engine = {"backend": "marker", "version": "1", "device": "none", "precision": "f32", "isa": "any", "plan": "x1"}
    stations = {
        name: StationCalibration(
            provenance=provenance(station, engine),
            map_threshold=0.5,
            map_quantile=0.99,
            score_threshold=0.5,
            parts_fit=1,
            parts_held_out=1,
            rejected_held_out=0,
            target_false_reject_rate=0.5,
            confidence=0.5,
            false_reject_upper_bound=1.0,
            extrapolated=False,
            score_quantiles={},
            levels=LevelsSeen(mean_low=0.2, mean_high=0.8, contrast_low=0.05),
            statement="made by a test",
        )
        for name, station in plan.stations.items()
    }
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Calibration(maskline_version="0", created_utc="2026-01-01T00:00:00Z", source="a test", stations=stations)
    save_calibration(made, calibration_path(state_dir))


class RunningLine:
    """`maskline run` as a user starts it, in a process of its own."""

    def __init__(self, recipe: Path, state_dir: Path, runtime_dir: Path, **environment: str) -> None:
        self.state_dir, self.runtime_dir = state_dir, runtime_dir
        self.log = state_dir.parent / "line.log"
        self._log_file = self.log.open("ab")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "run", str(recipe), "--state-dir", str(state_dir)],
            env=os.environ | {"MASKLINE_RUNTIME_DIR": str(runtime_dir)} | environment,
            stderr=self._log_file,
            stdout=self._log_file,
        )

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.runtime_dir}/test/verdicts"

    def children(self) -> dict[str, int]:
        """Process name -> pid, of every process of the line that runs."""
        found = {}
        task = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        for pid in task.read_text().split() if task.exists() else []:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except FileNotFoundError:
                continue
            if b"edge" in command:
                found[command[3].decode()] = int(pid)
        return found

    def wait(self, timeout_s: float) -> int:
        return self.popen.wait(timeout_s)

    def stop(self, timeout_s: float = 15.0) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)
        self._log_file.close()


def journal_verdicts(state_dir: Path) -> list[Verdict]:
    """Every verdict in the journal, by seq."""
    db = open_for_reading(journal_path(state_dir))
    try:
        return [decode(row[0], Verdict) for row in db.execute("SELECT payload FROM verdicts ORDER BY seq")]
    finally:
        db.close()


def wait_until(condition: object, timeout_s: float = 20.0) -> None:
    """Poll until `condition()` is true; AssertionError after `timeout_s`."""
    assert callable(condition)
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not true within {timeout_s} s: {condition}"
        time.sleep(0.02)
