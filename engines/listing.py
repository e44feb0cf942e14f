"""What `maskline engines` lists: every engine of the table in every size, with its cost by counting and by the clock.

Counting needs no torch for the networks that `engines.cost` knows. The clock needs the extra `train`, which makes the
networks with fresh weights: what a network costs does not depend on them.
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from edge.errors import MasklineError
from engines.architecture import Architecture
from engines.backends import open_backend
from engines.bundle import Bundle
from engines.cost import gflop, million_parameters, steps
from engines.registry import ENGINES

__all__ = ["LARGEST_GFLOP", "Row", "counted", "figures", "measured", "remarks"]

LARGEST_GFLOP = 200.0
"""What is timed costs at most so much per tile: a few seconds on a core of a small box."""
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One plan of one size of one engine."""

    engine: str
    size: str
    architecture: Architecture
    plan: str
    million_parameters: float | None = None
    gflop: float | None = None
    """Per tile, multiplications and additions; None where they cannot be counted here."""
    ms: float | None = None
    """Per tile, on this machine."""
    note: str = ""
    """Why something is None."""


def counted(progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Every plan of every size of every engine, in the table's order."""
    rows = []
    for engine, kind in ENGINES.items():
        for size, a in kind.sizes.items():
            progress(f"{engine} {size}")
            try:
                rows += [_count(Row(engine, size, a, plan)) for plan in a.plans]
            except NotImplementedError:
                rows += _count_with_torch(engine, size, a)
    return rows


def _count(row: Row) -> Row:
    found = steps(row.architecture, row.plan)
    return replace(row, million_parameters=million_parameters(found), gflop=gflop(found))


def _count_with_torch(engine: str, size: str, a: Architecture) -> list[Row]:
    rows = [Row(engine, size, a, plan) for plan in a.plans]
    try:
        from engines.networks import build, count_work
    except ImportError as error:
        return [replace(row, note=f"counted with {error.name}: pip install 'maskline[train]'") for row in rows]
    try:
        network = build(a)
    except MasklineError as error:  # it needs something that is not installed, and says what
        return [replace(row, note=str(error)) for row in rows]
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    return [replace(row, million_parameters=parameters, gflop=count_work(network, row.plan)) for row in rows]


def measured(rows: list[Row], precision: str = "f32", progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """The same rows with milliseconds per tile, through the real backend on all cores less one: the median of a few
    runs after warming up. Rows that would take longer than a few seconds, or cannot be made here, say so instead.

    Raises MasklineError without the extra `train`.
    """
    try:
        importlib.import_module("engines.fit")
    except ImportError as error:
        raise MasklineError(f"engines --measure needs {error.name}: pip install 'maskline[train]'") from error
    found: list[Row] = []
    for (engine, size), group in groupby(rows, key=lambda row: (row.engine, row.size)):
        progress(f"timing {engine} {size}")
        plans = list(group)
        try:
            found += _timed(plans, precision)
        except MasklineError as error:
            found += [replace(row, note=f"not timed: {error}") for row in plans]
    return found


def _timed(plans: list[Row], precision: str) -> list[Row]:
    """The plans of one size, from one bundle, which is made only if one of them is affordable."""
    with tempfile.TemporaryDirectory(prefix="maskline-") as folder:
        bundle = _fresh_bundle(Path(folder) / "b", plans[0]) if any(map(_affordable, plans)) else None
        return [
            replace(row, ms=_time(bundle, row.plan, precision))
            if bundle and _affordable(row)
            else replace(row, note=row.note or f"not timed: over {LARGEST_GFLOP:.0f} GFLOP")
            for row in plans
        ]


def _affordable(row: Row) -> bool:
    return row.gflop is not None and row.gflop <= LARGEST_GFLOP


def _fresh_bundle(path: Path, row: Row) -> Bundle:
    from engines.export import export_bundle
    from engines.fit import from_scratch

    start = from_scratch(row.engine, size=row.size, channels=row.architecture.channels)
    for statistics_of_good_parts in start.network.buffers():
        if statistics_of_good_parts.is_floating_point():
            statistics_of_good_parts.nan_to_num_(1.0)  # not measured yet
    return export_bundle(path, start.network, start.manifest)


def _time(bundle: Bundle, plan: str, precision: str) -> float:
    backend = open_backend("openvino")
    backend.load(bundle, plan, precision=precision, threads=0, batch=1)
    backend.warm_up()
    a = bundle.manifest.architecture
    tile = np.random.default_rng(0).integers(0, 256, (1, a.tile_px, a.tile_px, a.channels), np.uint8)
    out = np.empty(bundle.manifest.answer_shape(tile.shape), np.float32)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        backend.infer(tile, out)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def figures(rows: list[Row]) -> dict[str, float]:
    """One flat object, as benches write: `engines.ENGINE.SIZE.million_parameters`, `engines.ENGINE.SIZE.PLAN.gflop` and
    `.ms_per_tile`; what is not known is left out."""
    found: dict[str, float] = {}
    for row in rows:
        where = f"engines.{row.engine}.{row.size}"
        named = {
            f"{where}.million_parameters": row.million_parameters,
            f"{where}.{row.plan}.gflop": row.gflop,
            f"{where}.{row.plan}.ms_per_tile": row.ms,
        }
        found |= {key: value for key, value in named.items() if value is not None}
    return found


def remarks(rows: list[Row]) -> list[str]:
    """A few lines per engine: its paper, whose its weights are, which sizes are not meant to be fitted, what is not
    known of them and why."""
    lines = []
    for name, kind in ENGINES.items():
        lines += [f"{name}: {kind.paper}", f"  licence of the weights: {kind.licence}"]
        if kind.published:
            lines.append(f"  for `maskline engine import` rather than `fit`: {', '.join(kind.published)}")
        notes: dict[str, list[str]] = {}
        for row in rows:
            if row.engine == name and row.note:
                notes.setdefault(row.note, []).append(f"{row.size} {row.plan}")
        lines += [f"  {', '.join(where)}: {note}" for note, where in notes.items()]
    return lines
