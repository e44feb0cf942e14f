"""What a report is made of: plain data, whoever collected it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.place.geometry import Box, Place
from edge.verdict import Decision

__all__ = ["ReportPart", "ReportRun", "ReportStation", "ReportView", "Summary", "Truth", "summarise"]


@dataclass(frozen=True)
class Truth:
    """What a part is, as the recording says."""

    bad: bool
    defect: str = ""
    """Its kind, such as "scratch"; empty for good parts."""
    size_px: float | None = None
    contrast: float | None = None
    """0..1."""


@dataclass(frozen=True)
class ReportView:
    """What one station saw of a part. Paths lead to PNG files of the prepared picture; a missing file is said so."""

    station: str
    decision: Decision
    reason: str = ""
    score: float | None = None
    boxes: Sequence[tuple[int, int, int, int]] = ()
    """x, y, width, height in frame pixels."""
    image: Path | None = None
    reconstruction: Path | None = None
    anomaly_map: Path | None = None
    """16 bit, `ReportStation.map_full_scale` at 65535."""
    truth_mask: Path | NDArray[np.uint8] | None = None
    """[H, W] of the frame, nonzero where it is defective."""
    areas_px: Sequence[float] = ()
    """Of the defect in each box, in frame pixels; none in verdicts of earlier versions."""
    place: Place | None = None
    """How the part lay, where it is located and was judged: the pictures show it as if it lay in its place."""
    scale_mm_per_px: float | None = None
    mm_per_line: float | None = None
    """Of a web: the scale along it, in y; the other one is that in x."""


@dataclass(frozen=True)
class ReportPart:
    """One part and its one verdict."""

    lane: str
    number: int
    decision: Decision
    time_s: float
    """Of the trigger, since the run began."""
    latency_ms: float | None
    """Trigger to verdict."""
    views: Sequence[ReportView]
    reason: str = ""
    late: bool = False
    truth: Truth | None = None


@dataclass(frozen=True)
class ReportStation:
    """What a station judged by."""

    name: str
    region: Box
    """What was looked at, in frame pixels: the whole frame where the recipe names no region."""
    score_threshold: float | None
    map_threshold: float | None
    statement: str = ""
    """What the calibration promises, in its own words."""
    map_full_scale: float = 1.0


@dataclass(frozen=True)
class ReportRun:
    """A run of a line."""

    line: str
    started_utc: str
    simulated: bool
    facts: Mapping[str, str]
    """What it ran with, in the order to be shown: recipe, bundle, calibration, backend, precision, machine ..."""
    stations: Sequence[ReportStation]
    parts: Sequence[ReportPart]
    """In the order of their triggers."""
    deadline_ms: float | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """The run in numbers."""

    parts: int
    passed: int
    rejected: int
    uninspected: int
    late: int
    p50_ms: float | None
    p99_ms: float | None

    def __str__(self) -> str:
        times = "no verdict timed"
        if self.p50_ms is not None and self.p99_ms is not None:
            times = f"p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f} ms trigger to verdict"
        return (
            f"{self.parts} parts, {self.passed} pass, {self.rejected} reject, {self.uninspected} uninspected, {times}"
        )


def summarise(parts: Iterable[ReportPart]) -> Summary:
    """Count parts and take the percentiles of their trigger-to-verdict times (as measured, not interpolated)."""
    seen = list(parts)
    times = [p.latency_ms for p in seen if p.latency_ms is not None]
    p50, p99 = (float(np.percentile(times, q, method="higher")) if times else None for q in (50, 99))
    counts = {d: sum(p.decision is d for p in seen) for d in Decision}
    return Summary(
        len(seen),
        counts[Decision.PASS],
        counts[Decision.REJECT],
        counts[Decision.UNINSPECTED],
        sum(p.late for p in seen),
        p50,
        p99,
    )
