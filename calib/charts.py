"""Charts for the report, as geometry that the template draws in SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calib.report_data import ReportPart, ReportStation
from edge.verdict import Decision

__all__ = ["Mark", "StripChart", "Tick", "strip_chart"]

WIDTH, HEIGHT = 1000, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 76, 14, 34
LOGARITHMIC_FROM = 6.0
"""Scores that span more than so many thresholds are drawn on a logarithmic axis, or the good parts become one line."""


@dataclass(frozen=True)
class Mark:
    """One view of one part."""

    x: float
    y: float
    kind: str
    """"good", "bad", "unknown": by truth; "none" for a view without a score, drawn at the bottom."""
    wrong: bool
    """A miss or a false reject: ringed."""
    number: int
    label: str


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class StripChart:
    """Scores of one station over the time of the run, against its threshold."""

    station: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    marks: list[Mark]
    threshold_y: float | None
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    logarithmic: bool
    before_y: float | None = None
    """Of another threshold, which this one is to replace."""


def _nice_step(span: float, ticks: int) -> float:
    raw = span / max(1, ticks)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)


def _linear_ticks(low: float, high: float, ticks: int) -> list[float]:
    step = _nice_step(high - low, ticks)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    inside = [v for v in values if low <= v <= high]
    return inside if len(inside) <= 8 else [v for v in inside if f"{v:e}".startswith("1.")]


def strip_chart(station: ReportStation, parts: Sequence[ReportPart], before: float | None = None) -> StripChart:
    """Lay out the scores of `station`, one mark per view, coloured by truth in the template.

    `before`: a threshold to show beside the station's.
    """
    seen = [(part, view) for part in parts for view in part.views if view.station == station.name]
    scores = [view.score for _, view in seen if view.score is not None]
    threshold = station.score_threshold
    known = [*scores, *(t for t in (threshold, before) if t is not None)] or [1.0]
    high = max(max(known) * 1.08, 1e-9)
    positive = [value for value in known if value > 0]
    logarithmic = bool(threshold and high > LOGARITHMIC_FROM * threshold and len(positive) == len(known))
    low = min(positive) * 0.85 if logarithmic else 0.0
    duration = max([part.time_s for part, _ in seen], default=1.0) or 1.0
    left, right, top, bottom = float(LEFT), float(WIDTH - RIGHT), float(TOP), float(HEIGHT - BOTTOM)

    def x_of(time_s: float) -> float:
        return round(left + 8 + (right - left - 16) * time_s / duration, 1)

    def y_of(score: float) -> float:
        share = math.log(score / low) / math.log(high / low) if logarithmic else score / high
        return round(bottom - (bottom - top) * share, 1)

    marks = [
        Mark(
            x_of(part.time_s),
            bottom - 5 if view.score is None else y_of(view.score),
            _kind(part, view.score is not None),
            _wrong(part),
            part.number,
            _label(part, view.score),
        )
        for part, view in seen
    ]
    marks.sort(key=lambda mark: (mark.kind == "bad", mark.wrong))  # what matters is drawn last, on top
    y_values = _log_ticks(low, high) if logarithmic else _linear_ticks(low, high, 4)
    return StripChart(
        station.name,
        WIDTH,
        HEIGHT,
        left,
        right,
        top,
        bottom,
        marks,
        None if threshold is None else y_of(threshold),
        [Tick(x_of(value), f"{value:g} s") for value in _linear_ticks(0, duration, 8)],
        [Tick(y_of(value), f"{value:.4g}") for value in y_values],
        logarithmic,
        None if before is None else y_of(before),
    )


def _kind(part: ReportPart, scored: bool) -> str:
    if not scored:
        return "none"
    if part.truth is None:
        return "unknown"
    return "bad" if part.truth.bad else "good"


def _wrong(part: ReportPart) -> bool:
    if part.truth is None:
        return False
    return part.decision is (Decision.PASS if part.truth.bad else Decision.REJECT)


def _label(part: ReportPart, score: float | None) -> str:
    words = [f"part {part.number}", part.decision.value + (f" ({part.reason})" if part.reason else "")]
    if score is not None:
        words.append(f"score {score:.4g}")
    if part.truth is not None:
        words.append(f"truth: {part.truth.defect or 'bad'}" if part.truth.bad else "truth: good")
    return ", ".join(words)
