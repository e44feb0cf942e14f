"""Helpers for tests that run a whole line with the marker engine."""

from __future__ import annotations

from pathlib import Path

from edge.recipes import load_recipe
from edge.testing import RunningLine, calibrate_by_hand, journal_verdicts, wait_until

__all__ = ["RunningLine", "calibrate_marker", "journal_verdicts", "marker_recipe", "wait_until"]

MARKER_STATION = """
[[stations]]
name = "{name}"
lane = "{lane}"
bundle = "{engine}"
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
    slots: int = 64,
    engine: str = "marker",
    extra: str = "",
) -> Path:
    """Write a recipe whose frames carry their part number and truth. `engine`: "null", where others have none."""
    text = f"""
line = "test"
safe_state = "reject_all"
line_ok = {{ wired = "none", because = "a test" }}
engine = {{ backend = "{engine}" }}
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
            engine=engine,
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
    calibrate_by_hand(load_recipe(recipe), state_dir)
