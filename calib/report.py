"""The report of a run: one HTML file that needs nothing else, with the pictures that let a viewer judge the verdicts.

Input is plain data (`ReportRun`), whoever collected it; output is a string. The template is
`templates/report.html.j2`, the pictures come from `calib.pictures`, the charts from `calib.charts`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from calib.charts import strip_chart
from calib.metrics import Confusion
from calib.millimetres import where_words
from calib.pictures import Panels, colour_bar, map_scales, view_panels
from calib.report_data import ReportPart, ReportRun, ReportStation, ReportView, Summary, Truth, summarise
from calib.thresholds import percent
from edge.errors import ResourceError
from edge.verdict import Decision

__all__ = [
    "Limits",
    "ReportPart",
    "ReportRun",
    "ReportStation",
    "ReportView",
    "Summary",
    "Truth",
    "render_report",
    "summarise",
    "write_report",
]


@dataclass(frozen=True)
class Limits:
    """How many parts are shown with pictures, per group: the file stays a few megabytes."""

    misses: int = 12
    false_rejects: int = 8
    rejects: int = 12
    uninspected: int = 4
    passes: int = 6


@dataclass(frozen=True)
class _Group:
    """A section of cards."""

    key: str
    title: str
    lead: str
    total: int
    cards: list[_Card]


@dataclass(frozen=True)
class _Card:
    part: ReportPart
    views: list[tuple[ReportView, ReportStation | None, Panels]]


@dataclass
class _Counts:
    """Parts of one truth, by answer."""

    passed: int = 0
    rejected: int = 0
    uninspected: int = 0
    ratios: list[float] = field(default_factory=list)

    def count(self, part: ReportPart, ratio: float | None) -> None:
        self.passed += part.decision is Decision.PASS
        self.rejected += part.decision is Decision.REJECT
        self.uninspected += part.decision is Decision.UNINSPECTED
        if ratio is not None:
            self.ratios.append(ratio)

    @property
    def parts(self) -> int:
        return self.passed + self.rejected + self.uninspected

    @property
    def median_ratio(self) -> float | None:
        return float(np.median(self.ratios)) if self.ratios else None


def _ratio(part: ReportPart, stations: Mapping[str, ReportStation]) -> float | None:
    """The part's largest score over threshold, over its views; None where no view has both."""
    ratios = [_view_ratio(view, stations.get(view.station)) for view in part.views]
    return max((r for r in ratios if r is not None), default=None)


def _view_ratio(view: ReportView, station: ReportStation | None) -> float | None:
    if view.score is None or station is None or not station.score_threshold:
        return None
    return view.score / station.score_threshold


def _spread(parts: list[ReportPart], count: int) -> list[ReportPart]:
    """At most `count` of the parts: one of each kind of defect in turn, so that no kind crowds out another."""
    queues: dict[str, list[ReportPart]] = {}
    for part in parts:
        queues.setdefault(part.truth.defect if part.truth else "", []).append(part)
    chosen: list[ReportPart] = []
    while len(chosen) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return sorted(chosen, key=lambda part: part.time_s)


def _groups(run: ReportRun, limits: Limits) -> list[tuple[str, str, str, list[ReportPart], int]]:
    def those(decision: Decision, bad: bool | None) -> list[ReportPart]:
        return [p for p in run.parts if p.decision is decision and (p.truth.bad if p.truth else None) is bad]

    unknown = "no truth was recorded"
    rows = [
        ("missed", "Missed", "Bad parts that were passed.", those(Decision.PASS, True), limits.misses),
        (
            "false",
            "Falsely rejected",
            "Good parts that were rejected.",
            those(Decision.REJECT, False),
            limits.false_rejects,
        ),
        ("found", "Found", "Bad parts that were rejected.", those(Decision.REJECT, True), limits.rejects),
        ("rejects", "Rejects", f"Rejected; {unknown}.", those(Decision.REJECT, None), limits.rejects),
        (
            "uninspected",
            "Uninspected",
            "Parts without a judgement, each with its reason; they go to the reject bin.",
            [p for p in run.parts if p.decision is Decision.UNINSPECTED],
            limits.uninspected,
        ),
        ("good", "Passed", "Good parts that were passed.", those(Decision.PASS, False), limits.passes),
        ("passes", "Passes", f"Passed; {unknown}.", those(Decision.PASS, None), limits.passes),
    ]
    return [row for row in rows if row[3]]


def _cards(run: ReportRun, limits: Limits) -> tuple[list[_Group], dict[str, float]]:
    """The sections, and the value of the brightest map colour for each station."""
    stations = {s.name: s for s in run.stations}
    chosen = [(row, _spread(row[3], row[4])) for row in _groups(run, limits)]
    shown = [view for _, parts in chosen for part in parts for view in part.views]
    scales = map_scales([(v, stations.get(v.station)) for v in shown])
    groups = [
        _Group(
            key,
            title,
            lead,
            len(members),
            [
                _Card(p, [(v, s := stations.get(v.station), view_panels(v, s, scales.get(v.station))) for v in p.views])
                for p in parts
            ],
        )
        for (key, title, lead, members, _), parts in chosen
    ]
    return groups, scales


def _by_truth(run: ReportRun) -> dict[str, Any]:
    """What the comparison with the truth needs; empty where the recording has none."""
    stations = {s.name: s for s in run.stations}
    known = [p for p in run.parts if p.truth is not None]
    if not known:
        return {}
    good, bad = _Counts(), _Counts()
    kinds: dict[str, _Counts] = {}
    for part in known:
        ratio = _ratio(part, stations)
        assert part.truth is not None
        (bad if part.truth.bad else good).count(part, ratio)
        if part.truth.bad:
            kinds.setdefault(part.truth.defect or "unnamed", _Counts()).count(part, ratio)
    return {
        "good": good,
        "bad": bad,
        "kinds": dict(sorted(kinds.items())),
        "caution": _caution(Confusion(bad.rejected, bad.passed, good.passed, good.rejected)),
        "known": len(known),
    }


def _caution(judged: Confusion) -> str:
    """What these parts do not show, in one sentence."""
    rates = [("the escape rate", judged.escape_rate), ("the false-reject rate", judged.false_reject_rate)]
    ranges = [
        f"{name} could be anything from {percent(rate.interval[0])} to {percent(rate.interval[1])}"
        for name, rate in rates
        if rate.trials
    ]
    if not ranges:
        return "This is a demonstration and no rate."
    return (
        f"This is a demonstration and no rate: with so few parts {' and '.join(ranges)} (95 % confidence), and on other"
        " materials and other defects nothing is known."
    )


def _by_station(run: ReportRun) -> list[dict[str, Any]]:
    rows = []
    for station in run.stations:
        views = [v for p in run.parts for v in p.views if v.station == station.name]
        scores = [v.score for v in views if v.score is not None]
        rows.append(
            {
                "station": station,
                "views": len(views),
                "decisions": {d.value: sum(v.decision is d for v in views) for d in Decision},
                "median": float(np.median(scores)) if scores else None,
                "largest": max(scores) if scores else None,
            }
        )
    return rows


def render_report(run: ReportRun, limits: Limits | None = None) -> str:
    """The whole report as HTML. Reads the pictures of the parts it shows; needs no network to be looked at."""
    environment = Environment(
        loader=PackageLoader("calib"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figures"] = lambda value: "-" if value is None else f"{value:.4g}"
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.filters["words"] = lambda name: name.replace("_", " ")
    environment.filters["ms"] = lambda value: "-" if value is None else f"{value:,.0f} ms"
    stations = {s.name: s for s in run.stations}
    groups, scales = _cards(run, limits or Limits())
    return environment.get_template("report.html.j2").render(
        run=run,
        summary=summarise(run.parts),
        truth=_by_truth(run),
        by_station=_by_station(run),
        charts=[strip_chart(station, run.parts) for station in run.stations],
        groups=groups,
        lanes={part.lane for part in run.parts},
        scales=scales,
        colour_bar=colour_bar(),
        where=lambda view: where_words(view, stations[view.station].region if view.station in stations else None),
        ratio=lambda view: _view_ratio(view, stations.get(view.station)),
    )


def write_report(run: ReportRun, path: Path, limits: Limits | None = None) -> None:
    """Write the report whole or not at all. Raises ResourceError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(render_report(run, limits), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot write the report: {error}") from error
