"""A simulated conveyor, the line that inspects what lies on it, and the actuator that throws out: real processes.

    with ConveyorLine(tmp_path, runtime_dir, BeltSettings(parts=100)) as it:
        it.wait_for(lambda: it.conveyor.empty)

For tests and benches. Where the parts ended, `ConveyorLine.ended` says; what it should have been, `edge.bench.balance`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge.actuators.belt import BeltSettings, End, Part
from edge.actuators.conveyor import Conveyor
from edge.actuators.panel import read_status
from edge.recipes import load_recipe
from edge.testing import PATIENCE_S, RunningLine, calibrate_by_hand, wait_until

__all__ = ["ACTUATOR", "LINE", "ConveyorLine", "RunningActuator", "conveyor_recipe"]

LINE, ACTUATOR = "test", "ejector"

RECIPE = """
line = "{line}"
safe_state = "{safe_state}"
line_ok = {{ wired = "plc" }}
engine = {{ backend = "marker" }}
deadline = {{ deadline_ms = {deadline_ms}, drain_ms = 500 }}
journal = {{ reserve_mib = 1 }}
pictures = {{ keep = "none" }}
supervision = {{ restarts = 1000, window_s = 60 }}

[[stations]]
name = "cam"
bundle = "marker"
frame = {{ width_px = 224, height_px = 224 }}
slots = 16
source = {{ kind = "conveyor", triggers = "independent", endpoint = "{endpoint}" }}

[[actuators]]
name = "{actuator}"
lane = "cam"
drivers = [{{ kind = "simulated", endpoint = "{endpoint}" }}]
at_rest = "{at_rest}"
match = {{ by = "{by}"{match} }}
timing = {{ unit = "{unit}", delay = {delay}, pulse = {pulse}, tolerance = {tolerance}, min_spacing = {min_spacing} }}
max_age_ms = {max_age_ms}
line_ok_ms = 20
max_late = 1000
{extra}
"""


def conveyor_recipe(
    folder: Path,
    endpoint: str,
    belt: BeltSettings,
    *,
    by: str = "count",
    deadline_ms: int = 500,
    safe_state: str = "reject_all",
    extra: str = "",
) -> Path:
    """Write the recipe for a conveyor: what the ejector must know of its geometry follows from `belt`. It rests where
    it springs to. `extra`: more fields of the actuator, then other sections."""
    unit = "ms" if by == "time" else "counts"
    per_mm = 1000 / belt.speed_mm_s if unit == "ms" else belt.counts_per_mm
    way_mm, last_mm = belt.sensor_mm - belt.camera_mm, belt.ejector_mm - belt.sensor_mm
    spacing_mm = 0.9 * (belt.spacing_mm - 2 * belt.jitter_mm)
    delay_mm = 0.4 * (last_mm - belt.reach_mm)
    pulse_mm = last_mm + 1.5 * belt.reach_mm - delay_mm
    window_mm = 0.2 * spacing_mm
    match = {
        "id": "",
        "count": f", distance_counts = {way_mm * per_mm:.0f}, window_counts = {window_mm * per_mm:.0f}",
        "time": f", delay_ms = {way_mm * per_mm:.0f}, window_ms = {window_mm * per_mm:.0f}",
    }[by]
    text = RECIPE.format(
        line=LINE,
        safe_state=safe_state,
        endpoint=endpoint,
        actuator=ACTUATOR,
        at_rest=belt.springs_to,
        by=by,
        match=match,
        unit=unit,
        deadline_ms=deadline_ms,
        delay=round(delay_mm * per_mm),
        pulse=round(pulse_mm * per_mm),
        tolerance=round((last_mm - belt.reach_mm - delay_mm) * 0.7 * per_mm),
        min_spacing=round(spacing_mm * per_mm),
        max_age_ms=round(2.5 * (way_mm + last_mm) / belt.speed_mm_s * 1000),
        extra=extra,
    )
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


class RunningActuator:
    """`maskline actuate` in a process of its own, as a user starts it."""

    def __init__(
        self,
        recipe: Path,
        state_dir: Path,
        runtime_dir: Path,
        *options: str,
        before: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.log = recipe.parent / "actuate.log"
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*before, sys.executable, "-m", "edge.cli", "actuate", recipe, "--state-dir", state_dir, *options],
                env=os.environ | {"MASKLINE_RUNTIME_DIR": str(runtime_dir)} | environment,
                stderr=log,
                stdout=log,
            )

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM, and the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)


class ConveyorLine:
    """Everything that moves, started in the order that a plant would: nothing moves until LINE-OK toggles."""

    def __init__(
        self,
        folder: Path,
        runtime_dir: Path,
        belt: BeltSettings,
        *,
        by: str = "count",
        deadline_ms: int = 500,
        safe_state: str = "reject_all",
        extra: str = "",
        state_dir: Path | None = None,
        before_line: Sequence[str] = (),
        before_actuator: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`extra`: see `conveyor_recipe`. `before_line`, `before_actuator`: words of a command that starts commands.
        `environment`: of the line's and the actuator's processes."""
        self.belt, self.runtime_dir, self.state_dir = belt, runtime_dir, state_dir or folder / "state"
        endpoint = f"ipc://{runtime_dir}/conveyor"
        self.recipe = conveyor_recipe(
            folder, endpoint, belt, by=by, deadline_ms=deadline_ms, safe_state=safe_state, extra=extra
        )
        calibrate_by_hand(load_recipe(self.recipe), self.state_dir)
        self.conveyor = Conveyor(endpoint, belt, load_recipe(self.recipe).station("cam").frame)
        self._before_line, self._before_actuator, self._environment = before_line, before_actuator, environment or {}
        self._owned = contextlib.ExitStack()

    def __enter__(self) -> ConveyorLine:
        with contextlib.ExitStack() as starting:
            starting.enter_context(self.conveyor)
            self.start_line()
            starting.callback(lambda: self.line.close())
            self.start_actuator()
            starting.callback(lambda: self.actuator.kill())
            self._owned = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def start_line(self) -> None:
        """Start the line, again after its supervisor was killed."""
        self.line = RunningLine(self.recipe, self.state_dir, self.runtime_dir, *self._before_line, **self._environment)

    def start_actuator(self, *options: str) -> None:
        """Start the actuator, again after it was killed."""
        self.actuator = RunningActuator(
            self.recipe, self.state_dir, self.runtime_dir, *options, before=self._before_actuator, **self._environment
        )

    def status(self) -> dict[str, object]:
        """What the actuator says of itself; empty when it does not run."""
        return read_status(self.runtime_dir / LINE, ACTUATOR) or {}

    def ended(self, where: End | None = None) -> list[Part]:
        """The parts that have left the belt, or those of one end."""
        return [p for p in self.conveyor.truth() if where in (None, p.end)]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Poll until it is true; AssertionError with the logs after `timeout_s`."""
        try:
            wait_until(condition, timeout_s)
        except AssertionError as error:
            where = Counter(p.end.value for p in self.ended())
            logs = "\n".join(p.read_text()[-3000:] for p in (self.line.log, self.actuator.log) if p.exists())
            raise AssertionError(f"{error}; parts ended: {where}; actuator: {self.status()}\n{logs}") from error
