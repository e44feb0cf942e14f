"""Collects what a run of a line left behind, journal and pictures, for `calib.report` to draw."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from calib.calibration import Calibration, load_calibration
from calib.report_data import ReportPart, ReportRun, ReportStation, ReportView, Truth
from edge.archive import map_full_scale
from edge.bench import machine
from edge.journal import open_for_reading
from edge.journal.runs import find_run, read_verdicts
from edge.messages import Verdict, View
from edge.paths import calibration_path, journal_path
from edge.place.geometry import Place
from edge.plan import plan_line
from edge.recording import RecordedTruth, Recording
from edge.settings import Recipe
from edge.verdict import Reason

__all__ = ["collect_run"]

Truths = Mapping[str, Mapping[int, RecordedTruth]]


def collect_run(state_dir: Path, truth: Path | None = None, run: int | None = None) -> ReportRun:
    """A run from the journal in `state_dir`, the newest by default; `truth`: a recording that knows what was good.

    Raises ResourceError when there is no journal or no such run, SourceError when the recording cannot be read.
    """
    path = journal_path(state_dir)
    db = open_for_reading(path)
    try:
        found = find_run(db, path, run)
        verdicts = read_verdicts(db, found.number)
    finally:
        db.close()
    recipe = Recipe.model_validate_json(found.recipe)
    truths = _truths(truth, recipe) if truth else {}
    mm_per_line = {s.name: s.web.mm_per_line for s in recipe.stations if s.web}
    begin_ns = min((v.trigger_ns for v in verdicts), default=0)
    return ReportRun(
        line=recipe.line,
        started_utc=datetime.fromtimestamp(found.started_utc_ns / 1e9, timezone.utc).isoformat(timespec="seconds"),
        simulated=recipe.simulated,
        facts=_facts(recipe, verdicts),
        stations=_stations(recipe, load_calibration(calibration_path(state_dir, recipe.name))),
        parts=sorted((_part(v, state_dir, truths, mm_per_line, begin_ns) for v in verdicts), key=lambda p: p.time_s),
        deadline_ms=recipe.deadline.deadline_ms,
    )


def _truths(path: Path, recipe: Recipe) -> Truths:
    recording = Recording(path)
    return {s.name: recording.truths(s.source.channel or s.name) for s in recipe.stations}


def _facts(recipe: Recipe, verdicts: list[Verdict]) -> dict[str, str]:
    facts = {"recipe": recipe.sha256[:16], "machine": machine()}
    for verdict in verdicts:
        for view in verdict.views:
            if view.engine:
                engine = view.engine
                facts["calibration"] = view.calibration[:16] or "none"
                facts[f"bundle of {view.station}"] = f"{view.bundle[:16]}, plan {engine.get('plan')}"
                facts["backend"] = f"{engine.get('backend')} {engine.get('version')}, {engine.get('device')}"
                facts["precision"] = f"{engine.get('precision')}, {engine.get('isa')}"
    return facts


def _stations(recipe: Recipe, calibration: Calibration | None) -> list[ReportStation]:
    plan = plan_line(recipe)
    stations = []
    for name, station in plan.stations.items():
        limits = calibration.stations.get(name) if calibration else None
        stations.append(
            ReportStation(
                name=name,
                region=station.prepare.region,
                score_threshold=limits.score_threshold if limits else None,
                map_threshold=limits.map_threshold if limits else None,
                statement=limits.statement if limits else "",
                map_full_scale=map_full_scale(station),
            )
        )
    return stations


def _part(
    verdict: Verdict, state_dir: Path, truths: Truths, mm_per_line: Mapping[str, float], begin_ns: int
) -> ReportPart:
    known = [t for v in verdict.views if (t := truths.get(v.station, {}).get(verdict.part))]
    worst = max(known, key=lambda t: t.bad, default=None)
    views = [
        _view(v, state_dir, truths.get(v.station, {}).get(verdict.part), mm_per_line.get(v.station))
        for v in verdict.views
    ]
    return ReportPart(
        lane=verdict.lane,
        number=verdict.part,
        decision=verdict.decision,
        time_s=(verdict.trigger_ns - begin_ns) / 1e9,
        latency_ms=(verdict.decided_ns - verdict.trigger_ns) / 1e6,
        views=views,
        reason=verdict.reason.value if verdict.reason else "",
        late=verdict.late,
        truth=Truth(worst.bad, worst.kind, worst.size_px or None, worst.contrast or None) if worst else None,
    )


def _view(view: View, state_dir: Path, truth: RecordedTruth | None, mm_per_line: float | None) -> ReportView:
    folder = state_dir / view.picture if view.picture else None
    mask = truth.mask() if truth else None
    return ReportView(
        station=view.station,
        decision=view.decision,
        reason=view.reason.value if view.reason else "",
        score=view.score,
        boxes=[(b[0], b[1], b[2], b[3]) for b in view.boxes],
        image=folder / "tiles.png" if folder else None,
        reconstruction=folder / "reconstruction.png" if folder else None,
        anomaly_map=folder / "map.png" if folder else None,
        truth_mask=None if mask is None else mask.astype("uint8"),
        areas_px=view.areas_px,
        place=Place(*view.place) if view.place and view.reason is not Reason.MISPLACED else None,
        scale_mm_per_px=view.scale_mm_per_px,
        mm_per_line=mm_per_line,
    )
