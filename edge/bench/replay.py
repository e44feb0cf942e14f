"""Replay as fast as it goes against the engine alone, and recordings as files (`edge.bench.recovery`).

Frames of one tile from a recording, PNG-encoded, through all processes of the line. The engine alone is the same
network on tiles of the same recording, in one process, before the line runs and after it. Large files lie in the
current folder: call it in one of the disk that recordings are kept on.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from calib.calibration import load_calibration
from edge.bench import Budget, Progress, recovery
from edge.bench.pipeline import write_recipe
from edge.demo.simulate import simulate
from edge.detector import open_detectors
from edge.paths import calibration_path
from edge.plan import plan_line
from edge.recipes import load_recipe
from edge.recording import RecordedFrame, Recording
from edge.replay.run import ReplayOptions, replay_recording
from edge.settings import Recipe
from edge.tiling import prepare

__all__ = ["BUDGETS", "run"]

BUDGETS = {"replay.throughput_vs_engine": Budget(at_least=0.9), **recovery.BUDGETS}

PARTS, ROUNDS, SIDE_PX = 150, 3, 224


def run(progress: Progress = lambda _: None) -> dict[str, float]:
    """The median of some rounds of the replay; then the seeks and the recovery, once each."""
    rounds = []
    for i in range(ROUNDS):
        progress(f"round {i + 1} of {ROUNDS}")
        rounds.append(_round())
    figures = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    with tempfile.TemporaryDirectory(prefix="maskline-bench-", dir=Path.cwd()) as folder:
        figures |= recovery.measure_seek(Path(folder), progress)
        figures |= recovery.measure_recovery(Path(folder), progress)
    return figures


def _round() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ml-") as name:
        folder = Path(name)
        simulate(folder / "bench.mcap", {"cam": "gravel"}, parts=PARTS)
        fields = {"backend": "openvino", "bundle": "texture-s", "plan": "x16", "mode": "lossless"}
        size = {"width": SIDE_PX, "height": SIDE_PX, "tiling": "resize = 1.0"}
        recipe = load_recipe(write_recipe(folder, **fields, **size, rate_hz=20, parts=PARTS))
        calibration = load_calibration(calibration_path(folder / "state"))
        spent = _engine_ms(recipe, folder / "bench.mcap")
        result = replay_recording(folder / "bench.mcap", ReplayOptions(recipe, calibration))
        spent += _engine_ms(recipe, folder / "bench.mcap")  # clocks and neighbours change
    per_second, engine_ms = result.figures()["replay.parts_per_s"], statistics.median(spent)
    return {
        "replay.engine_alone_ms": engine_ms,
        "replay.parts_per_s": per_second,
        "replay.throughput_vs_engine": per_second * engine_ms / 1e3,
    }


def _engine_ms(recipe: Recipe, recording: Path) -> list[float]:
    """Milliseconds in the engine, of each second part."""
    plan = plan_line(recipe)
    station, detector = plan.stations["cam"], open_detectors(plan)["cam"]
    tiles = np.zeros(station.prepare.tiles_shape, np.uint8)
    repainted = np.zeros(tiles.shape, np.float32)
    spent = []
    for event in Recording(recording).events("cam"):
        if isinstance(event, RecordedFrame) and event.number % 2 == 0:
            prepare(event.decode(), station.prepare, tiles)
            start = time.perf_counter()
            detector.infer(tiles, repainted, None)
            spent.append((time.perf_counter() - start) * 1e3)
    return spent
