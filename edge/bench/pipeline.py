"""Trigger to verdict through all processes of the line, against the same functions called in a row in one process.

Frames of 2448x2048 mono at 20 per second, halved and cut into 224-pixel tiles, an engine that does nothing. *Inline* is
what must be done whoever does it: put the frame into memory, prepare, repaint, judge. What the processes add is given
in bare descriptor round trips of the same run and at the same pace (processes that slept between two parts wake up more
slowly than those of a tight loop), and the pure functions stand beside a plain copy of the frame. The second part has a
real engine, on a region of one tile, and offers as many parts as it takes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from calib.calibration import load_calibration
from edge.bench import Budget, Progress, percentile
from edge.bench.transport import round_trip_ms
from edge.detector import open_detectors
from edge.judge import Judge
from edge.messages import Verdict
from edge.paths import calibration_path
from edge.plan import plan_line
from edge.recipes import load_recipe
from edge.sources.marker import background
from edge.testing import RunningLine, calibrate_by_hand, journal_verdicts
from edge.tiling import prepare
from edge.verdict import Decision

__all__ = ["BUDGETS", "RECIPE", "run", "run_line", "write_recipe"]

BUDGETS = {
    "pipeline.dropped": Budget(at_most=0),
    "pipeline.added_vs_round_trip": Budget(at_most=15),
    "pipeline.p99_vs_inline": Budget(at_most=2.5),
    "pipeline.throughput_vs_engine": Budget(at_least=0.85),
}

RECIPE = """
line = "bench"
safe_state = "reject_all"
line_ok = {{ wired = "none", because = "a bench" }}
deadline = {{ deadline_ms = 5000 }}
engine = {{ backend = "{backend}" }}
pictures = {{ keep = "none" }}
[[stations]]
name = "cam"
bundle = "{bundle}"
plan = "{plan}"
frame = {{ width_px = {width}, height_px = {height} }}
tiling = {{ {tiling} }}
slots = 4
[stations.source]
kind = "marker"
mode = "{mode}"
rate_hz = {rate_hz}
parts = {parts}
"""
WIDTH, HEIGHT, RATE_HZ = 2448, 2048, 20.0
ROUNDS = 5


def run(progress: Progress = lambda _: None, frames: int = 200) -> dict[str, float]:
    """Five rounds of each part; the medians count, and every dropped frame."""
    rounds = []
    for i in range(ROUNDS):
        progress(f"round {i + 1} of {ROUNDS}")
        rounds.append(_round(frames) | _with_engine())
    figures = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    return figures | {"pipeline.dropped": sum(r["pipeline.dropped"] for r in rounds)}


def _round(frames: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ml-") as folder:
        recipe = write_recipe(Path(folder), rate_hz=RATE_HZ, parts=frames)
        inline = _inline(recipe, frames // 2)
        trip_ms = round_trip_ms(1 / RATE_HZ)
        verdicts = run_line(recipe, frames / RATE_HZ + 60)
    answered = [v for v in verdicts if v.decision is not Decision.UNINSPECTED]
    latencies = [(v.decided_ns - v.trigger_ns) / 1e6 for v in answered[5:]]  # the first ones warm the caches
    p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
    return {
        "pipeline.trigger_to_verdict_p50_ms": p50,
        "pipeline.trigger_to_verdict_p99_ms": p99,
        **{f"pipeline.{name}_ms": value for name, value in inline.items()},
        "pipeline.round_trip_ms": trip_ms,
        "pipeline.added_vs_round_trip": (p50 - inline["inline_p50"]) / trip_ms,
        "pipeline.p99_vs_inline": p99 / inline["inline_p50"],
        "pipeline.dropped": frames - len(answered),
    }


def write_recipe(folder: Path, **fields: object) -> Path:
    """A recipe and a calibration by hand in `folder`; the fields replace those of a line that does nothing."""
    usual = {"backend": "null", "bundle": "null", "plan": "x1", "mode": "live", "width": WIDTH, "height": HEIGHT}
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(**usual | {"tiling": "resize = 0.5"} | fields), encoding="utf-8")
    calibrate_by_hand(load_recipe(path), folder / "state", score_threshold=100)
    return path


def run_line(recipe: Path, timeout_s: float, runtime_dir: Path | None = None) -> list[Verdict]:
    """Run the line to its end; its verdicts. Raises RuntimeError with its log when it fails.

    Its sockets lie in `runtime_dir`, where the recipe's folder has too long a name for them.
    """
    folder = recipe.parent
    with RunningLine(recipe, folder / "state", runtime_dir or folder / "run") as line:
        if line.wait(timeout_s) != 0:
            raise RuntimeError(f"the line failed:\n{line.log.read_text()}")
    return journal_verdicts(folder / "state")


def _inline(recipe: Path, frames: int) -> dict[str, float]:
    """Milliseconds of the same functions in a row, at the same pace, and of a plain copy of the frame."""
    line = plan_line(load_recipe(recipe))
    plan, detector = line.stations["cam"], open_detectors(line)["cam"]
    calibration = load_calibration(calibration_path(recipe.parent / "state"))
    assert calibration is not None, "write_recipe wrote it"
    limits = calibration.stations["cam"]
    judge = Judge(plan, limits)
    image = background(plan.station.frame)
    frame, tiles = np.zeros_like(image), np.zeros(plan.prepare.tiles_shape, np.uint8)
    repainted = np.zeros(plan.bundle.manifest.answer_shape(tiles.shape), np.float32)
    maps = np.zeros(tiles.shape[:3], np.float32)
    steps: dict[str, Callable[[], object]] = {
        "copy_of_frame": lambda: np.copyto(frame, image),
        "prepare": lambda: prepare(frame, plan.prepare, tiles),
        "infer": lambda: detector.infer(tiles, repainted, limits),
        "judge": lambda: judge.judge(tiles, repainted, maps, detector.info),
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(frames):
        start = time.perf_counter()
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            spent[name].append((time.perf_counter() - before) * 1e3)
        time.sleep(max(0.0, 1 / RATE_HZ - (time.perf_counter() - start)))
    whole = [sum(times) for times in zip(*spent.values(), strict=True)][5:]
    per_step = {name: percentile(times, 50) for name, times in spent.items()}
    return per_step | {"inline_p50": percentile(whole, 50), "inline_p99": percentile(whole, 99)}


def _with_engine(parts: int = 80) -> dict[str, float]:
    """Parts per second that the line sustains, against what its engine does alone, in one round."""
    size = 448  # one tile, halved
    region = f"resize = 0.5, region = {{ x_px = 0, y_px = 0, width_px = {size}, height_px = {size} }}"
    fields = {"backend": "openvino", "bundle": "texture-s", "plan": "x16", "mode": "lossless", "tiling": region}
    with tempfile.TemporaryDirectory(prefix="ml-") as folder:
        recipe = write_recipe(Path(folder), **fields, rate_hz=RATE_HZ, parts=parts)
        plan = plan_line(load_recipe(recipe))
        detector = open_detectors(plan)["cam"]
        tiles = np.full(plan.stations["cam"].prepare.tiles_shape, 150, np.uint8)
        repainted = np.zeros(tiles.shape, np.float32)
        alone_ms = []
        for _ in range(parts // 2):
            start = time.perf_counter()
            detector.infer(tiles, repainted, None)
            alone_ms.append((time.perf_counter() - start) * 1e3)
        verdicts = run_line(recipe, 300)
    times = [v.decided_ns for v in verdicts[10:]]
    per_second = (len(times) - 1) / ((times[-1] - times[0]) / 1e9)
    engine_ms = statistics.median(alone_ms)
    return {
        "pipeline.engine_alone_ms": engine_ms,
        "pipeline.engine_share_of_period": engine_ms * RATE_HZ / 1e3,
        "pipeline.parts_per_s": per_second,
        "pipeline.throughput_vs_engine": per_second * engine_ms / 1e3,
    }
