"""Engines beside each other on a user's own images: each is fitted, calibrated and measured on every category.

A category's train/good alone is learnt from: most of it fits the network, the rest, which the network never saw, gives
the thresholds. Nothing of test/ is looked at before it is measured on.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from calib.calibration import StationCalibration
from calib.datasets import Category, load_mask
from calib.evaluation import Answer, Evaluation, evaluate
from calib.fitting import Targets
from calib.inspection import Inspector
from calib.kept_fits import FitChoice, fit_or_find
from calib.pixels import standard_map, standard_mask
from calib.run import progress_bars
from calib.thresholds import MIN_HELD_OUT
from edge.errors import BundleError, CalibrationError, MasklineError
from edge.settings import Recipe
from engines.bundle import Bundle, find_bundle, load_bundle
from engines.registry import ENGINES
from engines.settings import changed, default_settings, with_tiles

__all__ = ["Choice", "Result", "compare", "split"]

CALIBRATION_SHARE = 0.3
"""Of the good images, and at least FEWEST: half of these give the map's threshold, half the score threshold."""
FEWEST = 2 * MIN_HELD_OUT


@dataclass(frozen=True)
class Choice:
    """What is compared, and how."""

    engines: tuple[str, ...] = tuple(ENGINES)
    """Names from `engines.registry`, which are fitted, or bundles, which are taken as they are."""
    fit: FitChoice = field(default_factory=FitChoice)
    seed: int = 0
    """Of the split."""
    targets: Targets = field(default_factory=Targets)


@dataclass(frozen=True)
class Result:
    """How one engine did on one category."""

    category: str
    engine: str
    evaluation: Evaluation
    limits: StationCalibration
    ms_per_tile: float
    """Median over the test images: the engine, the map and the score."""
    fit_s: float | None
    """None for a bundle that was taken as it is, and for a fit that was interrupted: nobody timed all of it."""


def compare(
    recipe: Recipe,
    station: str,
    categories: Sequence[Category],
    choice: Choice,
    *,
    keep: Path | None = None,
    console: Console | None = None,
) -> list[Result]:
    """Fit, calibrate and measure every engine on every category, with a station's tiling, mask plan and backend.

    Fitted bundles are left in `keep`, and found there again by a call with the same settings and images. Raises
    MasklineError, which names the category and the engine.
    """
    place = recipe.station(station)
    contestants = _contestants(choice.engines)
    _check_settings([name for name, bundle in contestants.items() if bundle is None], choice.fit)
    results = []
    with contextlib.ExitStack() as stack:
        kept = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskline-compare-")))
        for category in categories:
            fit_on, calibrate_on = split(category.train, choice.seed)
            for name, as_it_is in contestants.items():
                if console:
                    console.print(f"{category.name}, {name}", highlight=False)
                try:
                    bundle, fit_s = as_it_is, None
                    if bundle is None:
                        work, scale = kept / category.name, place.tiling.resize
                        bundle, fit_s = fit_or_find(name, fit_on, work, choice.fit, scale=scale, quiet=not console)
                    inspector = Inspector(place, bundle, recipe.engine)
                    limits = inspector.calibrate(calibrate_on, choice.targets)
                    evaluation, ms_per_tile = _measure(category, inspector, limits, console)
                except MasklineError as error:
                    raise type(error)(f"{category.name}, {name}: {error}") from error
                if console:
                    console.print(limits.statement, highlight=False)
                results.append(Result(category.name, name, evaluation, limits, ms_per_tile, fit_s))
    return results


def split(good: Sequence[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """The images to fit on, sorted as they were, and those for the thresholds, in an order drawn with `seed`.

    Raises CalibrationError where there are too few for both.
    """
    needed = max(FEWEST, round(CALIBRATION_SHARE * len(good)))
    if len(good) <= needed:
        raise CalibrationError(
            f"{good[0].parent}: {len(good)} good images; {FEWEST} are needed for the thresholds and others to fit on: "
            "a few hundred are better"
        )
    drawn = np.random.default_rng(seed).permutation(len(good))[:needed].tolist()
    left = set(range(len(good))) - set(drawn)
    return [good[i] for i in sorted(left)], [good[i] for i in drawn]


def _contestants(names: Sequence[str]) -> dict[str, Bundle | None]:
    """By the names that the figures have: engines to be fitted (None), and bundles, by the names of their folders."""
    found: dict[str, Bundle | None] = {}
    for name in names:
        try:
            bundle = None if name in ENGINES else load_bundle(find_bundle(name))
        except BundleError as error:
            known = ", ".join(ENGINES)
            raise MasklineError(f"--engines {name}: no engine ({known}), and as a bundle: {error}") from error
        called = name if bundle is None else bundle.path.name
        if called in found:
            raise MasklineError(f"--engines: there is more than one {called!r}; rename one of the bundles' folders")
        found[called] = bundle
    return found


def _check_settings(engines: Sequence[str], fit: FitChoice) -> None:
    """Before the first is fitted: raises MasklineError where an engine cannot have such a size, tile or setting."""
    if fit.settings and not engines:
        raise MasklineError(
            f"--set {' --set '.join(fit.settings)}: nothing is fitted here, bundles are taken as they are; to have one "
            "with other settings: maskline fit --bundle BUNDLE --steps 0"
        )
    for engine in engines:
        changed(with_tiles(default_settings(engine, fit.size), fit.channels, fit.tile_px), fit.settings)


def _measure(
    category: Category, inspector: Inspector, limits: StationCalibration, console: Console | None
) -> tuple[Evaluation, float]:
    answers, ms_per_tile = [], []
    with progress_bars(console) as bars:
        for image in bars.track(category.test, description=f"measuring {category.name}"):
            found = inspector.inspect(image.path, limits)
            mask = load_mask(image, found.anomaly_map.shape)
            answers.append(
                Answer(
                    name=image.name,
                    defect=image.defect,
                    score=found.score,
                    rejected=not found.passed,
                    anomaly_map=standard_map(found.anomaly_map),
                    mask=None if mask is None else standard_mask(mask),
                )
            )
            ms_per_tile.append(found.ms_per_tile)
    return evaluate(answers), statistics.median(ms_per_tile)
