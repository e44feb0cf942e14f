"""Calibrate a line: its own preparation, engines and scores, on good parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from calib.calibration import Calibration
from calib.fitting import GoodView, StationSpec, Targets, assemble, fit_station
from calib.good import GoodImages, find_good_images
from edge.detector import Detector, load_engine, open_detectors
from edge.errors import CalibrationError
from edge.judge import provenance
from edge.plan import LinePlan, StationPlan, plan_line
from edge.prepare import prepare_view
from edge.settings import Recipe
from edge.tiling import frame_levels
from engines.backends import Backend
from engines.plans import CHEAP_PLAN

__all__ = ["FLAT_BELOW", "calibrate", "progress_bars"]

FLAT_BELOW = 0.004
"""A standard deviation under a grey level: a covered lens. It would teach the line that good parts may look so."""


def calibrate(
    recipe: Recipe, good: Path, *, targets: Targets | None = None, console: Console | None = None
) -> Calibration:
    """Compute the calibration of a line from the good parts in `good`, a folder or a recording (`find_good_images`).

    Every image goes the way that it goes on the line: the same preparation, engines, maps and scores. `console` gets a
    progress bar, and what each station's threshold promises. Raises MasklineError: too few parts, an image that does
    not fit the recipe or is none, an engine that cannot be had.
    """
    plan = plan_line(recipe)
    found = find_good_images(good, recipe)
    detectors = open_detectors(plan)
    stations = {}
    with progress_bars(console) as bars:
        for name, station in plan.stations.items():
            spec = StationSpec(
                station.bundle.manifest.error_map,
                station.bundle.manifest.score,
                provenance(station, detectors[name].info),
                len(recipe.lane_views(station.station.lane)),
                station.smallest_defect_px,
                station.carry,
            )
            views = _views(station, found[name], detectors[name], _cheap_backend(plan, station))
            shown = bars.track(views, found[name].count, description=f"calibrating {name}")
            try:
                stations[name] = fit_station(shown, found[name].count, spec, targets)
            except CalibrationError as error:
                raise CalibrationError(f"station {name}: {error}") from error
    if console:
        for name, limits in stations.items():
            console.print(f"{name}: score threshold {limits.score_threshold:.4g}. {limits.statement}", highlight=False)
    left_out = sum(images.bad_left_out for images in found.values())
    note = f" ({left_out} views of parts that are bad in truth left out)" if left_out else ""
    return assemble(stations, f"{good.resolve()}{note}")


def progress_bars(console: Console | None) -> Progress:
    """Bars that vanish when they are done; none without a console."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
        transient=True,
    )


def _cheap_backend(plan: LinePlan, station: StationPlan) -> Backend | None:
    """The engine of a cascade's first plan; None for stations without a cascade."""
    return load_engine(plan.recipe.engine, station.bundle, CHEAP_PLAN) if station.station.plan == "cascade" else None


def _views(station: StationPlan, good: GoodImages, detector: Detector, cheap: Backend | None) -> Iterator[GoodView]:
    """Prepare and repaint one good image after the other, in the same arrays."""
    tiles = np.empty(station.prepare.tiles_shape, np.uint8)
    repainted = np.empty(station.bundle.manifest.answer_shape(tiles.shape), np.float32)
    roughly = None if cheap is None else np.empty_like(repainted)
    for where, image, rows_before in good.images():
        misfit = station.prepare.misfit(image)
        if misfit:
            raise CalibrationError(f"{where}: {misfit}; take it out of the good parts, or change the recipe's frame")
        found = prepare_view(image, station, tiles)
        if found.reason:
            raise CalibrationError(f"{where}: {found.reason.value}, {found.detail}; take it out of the good parts")
        if frame_levels(tiles).contrast < FLAT_BELOW:
            raise CalibrationError(f"{where}: all of one grey, and so no picture of a good part; take it out")
        detector.infer(tiles, repainted, None)
        if cheap is not None and roughly is not None:
            cheap.infer(tiles, roughly)
        yield GoodView(tiles, repainted, roughly, station.ignored(rows_before), station.joined, rows_before)
