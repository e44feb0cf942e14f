"""What `maskline compare` says: tables for people, one flat object for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
from rich import box
from rich.table import Table

from calib.compare import Result
from calib.details import TINY

__all__ = ["by_defect", "flat", "leaderboard"]

MEAN = "mean"
"""Stands for the category where a figure is the mean over all of them."""
NARROW = (0, 1, 0, 0)
"""Padding of tables that must fit into 80 columns."""
COLUMNS = (
    ("image AUROC", "image_auroc", ".3f"),
    ("pixel AUROC", "pixel_auroc", ".3f"),
    ("AUPRO 30 %", "aupro_30", ".3f"),
    ("false rejects", "false_reject_rate", ".1%"),
    ("escapes", "escape_rate", ".1%"),
    ("TPR, TNR mean", "mean_tpr_tnr", ".3f"),
    ("ms per tile", "ms_per_tile", ".1f"),
    ("fit s", "fit_s", ".0f"),
)
"""Of the leaderboard: what people read, what programs read, and how it is written."""


def flat(results: Sequence[Result]) -> dict[str, float]:
    """`<category>.<engine>.<figure>`, and with several categories `mean.<engine>.<figure>`.

    A figure that could not be had (no masks, no time of an interrupted fit) is left out.
    """
    found = {f"{r.category}.{r.engine}.{name}": value for r in results for name, value in _figures(r).items()}
    for engine, of_engine in _by_engine(results):
        if len(of_engine) > 1:
            found |= {f"{MEAN}.{engine}.{name}": value for name, value in _mean(of_engine).items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _figures(result: Result) -> dict[str, float]:
    fit_s = {} if result.fit_s is None else {"fit_s": result.fit_s}
    return result.evaluation.flat() | {"ms_per_tile": result.ms_per_tile} | fit_s


def _by_engine(results: Sequence[Result]) -> Iterable[tuple[str, list[Result]]]:
    for engine in dict.fromkeys(r.engine for r in results):
        yield engine, [r for r in results if r.engine == engine]


def _mean(results: Sequence[Result]) -> dict[str, float]:
    """Of the figures that every category has; for `with_tiny`, those without a tiny defect count as they are."""
    found = []
    for result in results:
        figures = _figures(result)
        found.append({f"with_tiny.{name}": value for name, value in result.evaluation.figures.flat().items()} | figures)
    return {
        name: fmean(each[name] for each in found)
        for name in found[0]
        if not name.startswith("defect.") and all(name in each for each in found)
    }


def leaderboard(results: Sequence[Result]) -> list[Table]:
    """A table per category, best image AUROC first; with several categories, one of the means."""
    tables = [
        _ranked(category, [(r.engine, _figures(r)) for r in results if r.category == category])
        for category in dict.fromkeys(r.category for r in results)
    ]
    means = [(engine, _mean(of_engine)) for engine, of_engine in _by_engine(results)]
    if len(tables) > 1:
        tables.append(_ranked(f"mean of {len(tables)} categories", means))
    return tables


def _ranked(title: str, rows: list[tuple[str, dict[str, float]]]) -> Table:
    headers = ("engine", *(header for header, _, _ in COLUMNS))
    table = Table(*headers, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=NARROW)
    for engine, figures in sorted(rows, key=lambda row: -np.nan_to_num(row[1]["image_auroc"])):
        table.add_row(engine, *(_number(figures.get(name), spec) for _, name, spec in COLUMNS))
    return table


def by_defect(results: Sequence[Result]) -> Table:
    """Image AUROC of each kind of defect, the tiny ones, which the leaderboard leaves out, marked; and of all kinds."""
    table = Table("category", "engine", "defect", "images", "image AUROC", box=box.SIMPLE_HEAD, padding=NARROW)
    for result in results:
        evaluation = result.evaluation
        kinds = evaluation.details.defects.tolist()
        rows = [(kind, kinds.count(kind), auroc) for kind, auroc in evaluation.by_defect.items()]
        rows = [(f"{kind} (apart)" if kind.endswith(TINY) else kind, count, auroc) for kind, count, auroc in rows]
        if evaluation.with_tiny:
            rows.append(("all, tiny ones too", int(evaluation.details.bad.sum()), evaluation.with_tiny.image_auroc))
        for i, (kind, count, auroc) in enumerate(rows):
            first = (result.category, result.engine) if i == 0 else ("", "")
            table.add_row(*first, kind, str(count), _number(auroc, ".3f"), end_section=i == len(rows) - 1)
    return table


def _number(value: float | None, spec: str) -> str:
    return "" if value is None or not math.isfinite(value) else format(value, spec)
