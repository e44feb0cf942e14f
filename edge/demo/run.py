"""`maskline demo`: a whole line on real photographs, from calibration to report, sized to this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from calib.calibration import save_calibration
from calib.fitting import Targets
from calib.report import ReportRun, summarise, write_report
from calib.run import calibrate
from edge.bench import machine
from edge.demo.simulate import simulate
from edge.detector import open_detectors
from edge.errors import ResourceError
from edge.logs import configure_logs
from edge.paths import calibration_path, make_private
from edge.plan import LinePlan, plan_line
from edge.recipes import load_recipe, shipped_recipe
from edge.report import collect_run
from edge.show import show_while_running
from edge.supervisor import Supervisor
from edge.verdict import Decision

__all__ = ["Size", "run_demo", "size_for"]

TEXTURES = {"near": "brick", "far": "brick"}
SCALE = {"near": 3.0, "far": 1.5}
"""Frame pixels per pixel of the photograph. Both cameras look at a pavement of bricks, which the network never saw in
its training; the left half calibrates, the right half is judged. Gravel and grass, the other photographs that ship, are
too irregular to be repainted, and a defect must be gross to stand out there."""

MARGIN_PX = 28
"""As in configs/demo.toml: the outermost blocks have surroundings on one side only, and are not judged."""

SEED = 11
DEFECT_SHARE = 0.3
TARGETS = Targets(false_reject_rate=0.05, fit_share=0.25)
"""With so few good parts a stricter target would only push the threshold above everything that was seen."""

ENGINE_BUDGET_S = 60.0
"""Seconds of pure repainting that the demonstration may take; start-up, pictures and the report come on top."""

MOST_GOOD, MOST_TEST, FEWEST = 60, 80, 6
UTILISATION = 0.75
"""Of the engine, while the line runs: a line whose engine is never idle has no time for a hiccup."""


@dataclass(frozen=True)
class Size:
    """How much of the demonstration this machine can do in its time; parts are per station."""

    part_ms: float  # engine time for one part of all stations
    good: int
    test: int

    @property
    def rate_hz(self) -> float:
        """Parts per second and station."""
        return min(10.0, UTILISATION * 1000 / self.part_ms)


def size_for(part_ms: float, test: int | None = None) -> Size:
    """As many parts as fit the budget, a third of it for good parts; `test`: exactly so many test parts."""
    affordable = ENGINE_BUDGET_S * 1000 / part_ms
    good = int(max(FEWEST * 4, min(MOST_GOOD, affordable / 3)))
    return Size(part_ms, good, test or int(max(FEWEST, min(MOST_TEST, affordable * 2 / 3 * UTILISATION))))


def run_demo(out: Path, console: Console, parts: int | None = None) -> Path:
    """Run the demonstration in the folder `out`; returns the path of its report.

    Raises ResourceError when `out` holds something else, and whatever the steps raise.
    """
    started = time.monotonic()
    _begin_anew(out)
    recipe_path = shipped_recipe("demo")
    assert recipe_path is not None, "the package ships configs/demo.toml"
    shutil.copy(recipe_path, out / "demo.toml")
    recipe = load_recipe(out / "demo.toml")
    console.print(f"[bold]maskline demo[/] on {machine()}")
    size = size_for(_part_ms(plan_line(recipe)), parts)
    fewer = ", fewer than on a faster one" if size.test < MOST_TEST and parts is None else ""
    console.print(
        f"This machine repaints a part of both stations in {size.part_ms:.0f} ms, so the demonstration has "
        f"{size.good} good parts to calibrate from and {size.test} to judge, per station{fewer}."
    )
    simulate(out / "good.mcap", TEXTURES, scale=SCALE, parts=size.good, seed=SEED, half="left")
    stream = simulate(
        out / "test.mcap",
        TEXTURES,
        scale=SCALE,
        parts=size.test,
        seed=SEED + 1,
        half="right",
        rate_hz=size.rate_hz,
        defect_share=DEFECT_SHARE,
        margin_px=MARGIN_PX,
    )
    defects = ", ".join(f"{count} x {kind.replace('_', ' ')}" for kind, count in stream.kinds.items())
    console.print(f"Recorded stream: {out / 'test.mcap'}, {sum(stream.bad.values())} parts have a defect: {defects}.")
    state = make_private(out / "state")
    made = calibrate(recipe, out / "good.mcap", targets=TARGETS, console=console)
    save_calibration(made, calibration_path(state))
    _run_line(out, console)
    report = out / "report.html"
    run = collect_run(state, truth=out / "test.mcap")
    write_report(run, report)
    console.print(f"[bold]{summarise(run.parts)}[/]")
    console.print(_found(run), highlight=False)
    console.print(f"Report: {report}   Journal: {state / 'journal.sqlite'}   ({time.monotonic() - started:.0f} s)")
    return report


def _begin_anew(out: Path) -> None:
    """Make the folder, or empty the one that an earlier demonstration left."""
    if out.exists() and any(out.iterdir()):
        if not (out / "demo.toml").is_file():
            raise ResourceError(
                f"{out}: is not empty and holds no earlier demonstration; name another folder with --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _part_ms(plan: LinePlan) -> float:
    """Engine time for one part of all stations, the better of two tries: the first one may still be warming up."""
    detectors = open_detectors(plan)
    spent_ms = []
    for _ in range(2):
        start = time.perf_counter()
        for name, station in plan.stations.items():
            tiles = np.full(station.prepare.tiles_shape, 128, np.uint8)
            detectors[name].infer(tiles, np.zeros(tiles.shape, np.float32), None)
        spent_ms.append((time.perf_counter() - start) * 1e3)
    return min(spent_ms)


def _run_line(out: Path, console: Console) -> None:
    """The same supervisor as `maskline run`, with the verdicts printed as they are published."""
    os.environ.setdefault("MASKLINE_LOG_LEVEL", "warning")
    configure_logs("supervisor")
    with tempfile.TemporaryDirectory(prefix="maskline-") as sockets:
        show_while_running(Supervisor(load_recipe(out / "demo.toml"), Path(sockets) / "demo", out / "state"), console)


def _found(run: ReportRun) -> str:
    """What became of the defects, in a sentence that is no promise."""
    bad = [p for p in run.parts if p.truth and p.truth.bad]
    good = [p for p in run.parts if p.truth and not p.truth.bad]
    found = sum(p.decision is Decision.REJECT for p in bad)
    rejected = sum(p.decision is Decision.REJECT for p in good)
    return (
        f"{found} of {len(bad)} parts with a painted defect were rejected, and {rejected} of {len(good)} without. "
        "This is a demonstration on simulated parts, not a rate: rates need your parts, and many more of them."
    )
