"""What another calibration or recipe would have said: which parts would change side, as one HTML file with pictures.

Held against the verdicts that were recorded, or a file of references. The pictures are made anew for the parts that are
shown: recordings keep frames, and nothing of what an engine made of them.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from calib.calibration import Calibration
from calib.charts import StripChart, strip_chart
from calib.pictures import Panels, colour_bar, map_scales, view_panels
from calib.report_data import ReportPart, ReportStation, ReportView, Truth
from edge.archive import map_full_scale, write_pictures
from edge.errors import ResourceError
from edge.recording import RecordedTruth, Recording
from edge.replay.compare import Apart
from edge.replay.outcome import Outcome
from edge.replay.run import ReplayOptions, ReplayResult, expected_outcomes
from edge.replay.setup import SetUp, channel_of, set_up
from edge.replay.stages import Stages
from edge.verdict import Decision

__all__ = ["Change", "StationChange", "WhatIf", "what_if", "write_what_if"]

SHOWN = 24
"""Parts with pictures; the page stays a few megabytes."""

Truths = Mapping[str, Mapping[int, RecordedTruth]]


@dataclass(frozen=True)
class Change:
    """A part that would change side."""

    lane: str
    part: int
    before: Outcome
    after: Outcome
    truth: Truth | None
    pictures: list[tuple[ReportView, Panels]] = field(default_factory=list)
    """Of each of its views; of the parts that are shown."""

    @property
    def direction(self) -> str:
        return f"{self.before['decision']} to {self.after['decision']}"


@dataclass(frozen=True)
class StationChange:
    """What changes at a station."""

    now: ReportStation
    score_threshold_before: float | None
    map_threshold_before: float | None
    chart: StripChart


@dataclass(frozen=True)
class WhatIf:
    """The page's content."""

    recording: str
    line: str
    parts: int  # compared
    changes: list[Change]
    apart: tuple[Apart, ...]
    stations: list[StationChange]
    facts: dict[str, str]
    notes: tuple[str, ...]
    map_tops: dict[str, float]

    @property
    def directions(self) -> dict[str, int]:
        return dict(sorted(Counter(c.direction for c in self.changes).items()))

    @property
    def summary(self) -> str:
        how = ", ".join(f"{count} from {direction}" for direction, count in self.directions.items())
        return f"{len(self.changes)} of {self.parts} parts would change side" + (f": {how}" if how else "")


def what_if(path: Path, options: ReplayOptions, result: ReplayResult) -> WhatIf:
    """Find out what a replay with `options` changes. `result`: what it said, compared with what is expected.

    Raises MasklineError.
    """
    assert result.comparison is not None, "a what-if is held against what is expected"
    recording = Recording(path)
    ready = set_up(recording, options.recipe, options.calibration)
    expected = expected_outcomes(recording, options)
    truths = {s.name: recording.truths(channel_of(s)) for s in ready.plan.recipe.stations}
    changes = _changes(expected, result, truths)
    now = {name: _station(ready, name) for name in ready.plan.stations}
    shown, tops = _with_pictures(changes[:SHOWN], ready, now, truths)
    before = recording.calibration()
    return WhatIf(
        recording=path.name,
        line=result.line,
        parts=result.comparison.parts,
        changes=[*shown, *changes[SHOWN:]],
        apart=result.comparison.apart,
        stations=[_station_change(s, before, expected, result, changes, truths) for s in now.values()],
        facts=_facts(ready, before),
        notes=result.notes,
        map_tops=tops,
    )


def write_what_if(found: WhatIf, path: Path) -> None:
    """Write the page whole or not at all. Raises ResourceError where it cannot be written."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("edge.replay"), PackageLoader("calib")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = lambda value: "-" if value is None else f"{value:.4g}"
    environment.filters["words"] = lambda name: name.replace("_", " ")
    html = environment.get_template("what_if.html.j2").render(
        found=found, colour_bar=colour_bar(), decision=Decision, shown=SHOWN
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot write the report: {error.strerror or error}") from error


def _changes(expected: list[Outcome], result: ReplayResult, truths: Truths) -> list[Change]:
    """The parts that passed and would not, or the other way round; first those that would pass, bad ones in front."""
    assert result.comparison is not None
    sides = [d for d in result.comparison.differences if d.field == "decision"]
    turned = {(d.lane, d.part) for d in sides if Decision.PASS.value in (d.expected, d.found)}
    before = {(o["lane"], o["part"]): o for o in expected}
    changes = [
        Change(o["lane"], o["part"], before[key], o, _truth(o, truths))
        for o in result.outcomes
        if (key := (o["lane"], o["part"])) in turned
    ]
    return sorted(changes, key=lambda c: (c.after["decision"] != Decision.PASS.value, not _is_bad(c), c.lane, c.part))


def _is_bad(change: Change) -> bool:
    return change.truth is not None and change.truth.bad


def _truth(part: Outcome, truths: Truths) -> Truth | None:
    known = [t for v in part["views"] if (t := truths.get(v["station"], {}).get(part["part"]))]
    worst = max(known, key=lambda t: t.bad, default=None)
    return Truth(worst.bad, worst.kind, worst.size_px or None, worst.contrast or None) if worst else None


def _station(ready: SetUp, name: str) -> ReportStation:
    plan, limits = ready.plan.stations[name], ready.calibration.stations[name]
    return ReportStation(
        name=name,
        region=plan.prepare.region,
        score_threshold=limits.score_threshold,
        map_threshold=limits.map_threshold,
        statement=limits.statement,
        map_full_scale=map_full_scale(plan),
    )


def _station_change(
    now: ReportStation,
    before: Calibration | None,
    expected: list[Outcome],
    result: ReplayResult,
    changes: list[Change],
    truths: Truths,
) -> StationChange:
    was = before.stations.get(now.name) if before else None
    views = [v for o in expected for v in o["views"] if v["station"] == now.name]
    score_threshold = next((v["threshold"] for v in views if v["threshold"] is not None), None)
    turned = {c.part for c in changes if any(v["station"] == now.name for v in c.after["views"])}
    first = min((o["part"] for o in result.outcomes), default=0)
    chart = strip_chart(now, list(_report_parts(result, now.name, first, truths)), score_threshold)
    marks = sorted((replace(m, wrong=m.number in turned) for m in chart.marks), key=lambda mark: mark.wrong)
    ticks = [replace(t, label=f"{first + float(t.label.removesuffix(' s')):g}") for t in chart.x_ticks]
    return StationChange(
        now, score_threshold, was.map_threshold if was else None, replace(chart, marks=marks, x_ticks=ticks)
    )


def _report_parts(result: ReplayResult, station: str, first: int, truths: Truths) -> Iterator[ReportPart]:
    """The parts as the chart takes them; their number, from the first one on, stands for the time."""
    for part in result.outcomes:
        views = [_report_view(v) for v in part["views"] if v["station"] == station]
        if views:
            yield ReportPart(
                lane=part["lane"],
                number=part["part"],
                decision=Decision(part["decision"]),
                time_s=float(part["part"] - first),
                latency_ms=None,
                views=views,
                reason=part["reason"] or "",
                truth=_truth(part, truths),
            )


def _report_view(view: Outcome, folder: Path | None = None, truth: RecordedTruth | None = None) -> ReportView:
    mask = truth.mask() if truth else None
    return ReportView(
        station=view["station"],
        decision=Decision(view["decision"]),
        reason=view["reason"] or "",
        score=view["score"],
        boxes=[(b[0], b[1], b[2], b[3]) for b in view["boxes"]],
        image=folder / "tiles.png" if folder else None,
        reconstruction=folder / "reconstruction.png" if folder else None,
        anomaly_map=folder / "map.png" if folder else None,
        truth_mask=None if mask is None else mask.astype("uint8"),
    )


def _with_pictures(
    changes: list[Change], ready: SetUp, stations: Mapping[str, ReportStation], truths: Truths
) -> tuple[list[Change], dict[str, float]]:
    """The changes with their pictures, and the value of the brightest map colour for each station."""
    stages = {n: Stages(p, ready.detectors[n], ready.calibration) for n, p in ready.plan.stations.items()}
    with tempfile.TemporaryDirectory(prefix="maskline-") as scratch:
        views: list[list[ReportView]] = []
        for change in changes:
            views.append([])
            before = {v["station"]: v for v in change.before["views"]}
            for view in change.after["views"]:
                name = view["station"]
                shown = view if view["boxes"] or name not in before else {**view, "boxes": before[name]["boxes"]}
                folder = Path(scratch) / f"{name}-{change.part}"
                if stages[name].look(ready.recording, change.part):
                    write_pictures(folder, stages[name].arrays, ready.plan.stations[name])
                views[-1].append(_report_view(shown, folder, truths[name].get(change.part)))
        tops = map_scales([(v, stations[v.station]) for those in views for v in those])
        return [
            replace(c, pictures=[(v, view_panels(v, stations[v.station], tops.get(v.station))) for v in those])
            for c, those in zip(changes, views, strict=True)
        ], tops


def _facts(ready: SetUp, before: Calibration | None) -> dict[str, str]:
    recipe = ready.recording.metadata.get("recipe_sha256", "")
    facts = {
        "recording": ready.recording.path.name,
        "recorded with the recipe": recipe[:16] or "not said",
        "recorded with the calibration": _described(before),
        "replayed with the calibration": _described(ready.calibration),
    }
    for name, plan in ready.plan.stations.items():
        info = ready.detectors[name].info
        facts[f"bundle of {name}"] = f"{plan.bundle.manifest.name} {plan.bundle.sha256[:16]}, plan {info['plan']}"
        facts[f"engine of {name}"] = f"{info['backend']} {info['version']}, {info['precision']}, {info['isa']}"
    return facts


def _described(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none"
    return f"{calibration.sha256[:16]}, of {calibration.created_utc}, from {calibration.source}"
