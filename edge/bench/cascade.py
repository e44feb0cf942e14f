"""Plan `cascade` against `x1`, part by part: how often both decide the same, and what the cascade costs.

Parts go the way that they go on a line with `texture-s` (`calib.inspection`): cut into tiles, calibrated, judged; every
category with its own calibration. They are images of the folder that MASKLINE_TEST_DATA names, at most `CALIBRATE` and
`JUDGE` per category and truth (GROUP/CATEGORY/train/good and test/KIND, as MVTec-AD has them); without that variable,
crops of photographs, some with a painted defect. Wanted are the same decision on 99.5 % of the parts and a tenth of the
time; docs/performance.md says what was reached.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2

from calib.calibration import StationCalibration
from calib.datasets import Category, find_categories
from calib.inspection import Inspection, Inspector
from calib.thresholds import rate_interval
from edge.bench import Budget, Progress
from edge.bench.photographs import photographs
from edge.errors import MasklineError
from edge.settings import Engine, Station
from engines.bundle import find_bundle, load_bundle
from engines.plans import EXACT_PLAN

__all__ = ["BUDGETS", "Judged", "figures", "run"]

BUDGETS: dict[str, Budget] = {}
DATA = "MASKLINE_TEST_DATA"
CALIBRATE, JUDGE = 60, 60
PICTURE_PX, SCALE = 256, 224 / 256
"""Pictures of 256 pixels, as AITEX is cut into, become one tile."""

_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Judged:
    """One part by both plans."""

    bad: bool
    exact: Inspection
    cascade: Inspection

    @property
    def same(self) -> bool:
        return self.exact.passed == self.cascade.passed


def run(progress: Progress = lambda _: None) -> dict[str, float]:
    """Shares of all parts, and of the good and the bad ones, and the cascade's time in times of x1's."""
    judged = []
    with tempfile.TemporaryDirectory(prefix="maskline-") as folder:
        for category in find_categories(_folders(Path(folder))):
            judged += _judge(category, progress)
    return figures(judged)


def figures(judged: Sequence[Judged]) -> dict[str, float]:
    """What the parts come to; times per tile are means over parts, map and score included."""
    different = sum(not part.same for part in judged)
    exact, cascade = (
        sum(inspection.ms_per_tile for inspection in inspections) / len(judged)
        for inspections in ([part.exact for part in judged], [part.cascade for part in judged])
    )
    return {
        "cascade.parts": float(len(judged)),
        "cascade.agreement_with_x1": _agreement(judged),
        "cascade.agreement_at_least": 1 - rate_interval(different, len(judged))[1],
        "cascade.agreement_on_good": _agreement([part for part in judged if not part.bad]),
        "cascade.agreement_on_bad": _agreement([part for part in judged if part.bad]),
        "cascade.x1_ms_per_tile": exact,
        "cascade.ms_per_tile": cascade,
        "cascade.cost_vs_x1": cascade / exact,
    }


def _folders(scratch: Path) -> list[Path]:
    """Folders of categories in MVTec-AD's layout. Raises MasklineError where the variable names none."""
    if named := os.environ.get(DATA):
        found = sorted({path.parent.parent.parent for path in Path(named).glob("*/*/train/good")})
        if not found:
            raise MasklineError(f"{DATA}={named}: no GROUP/CATEGORY/train/good in it; name another folder, or unset it")
        return found
    good, bad = photographs(PICTURE_PX, CALIBRATE + JUDGE, JUDGE)
    kinds = {"train/good": good[:CALIBRATE], "test/good": good[CALIBRATE:], "test/painted": bad}
    for kind, pictures in kinds.items():
        (scratch / "photographs" / kind).mkdir(parents=True)
        for k, picture in enumerate(pictures):
            cv2.imwrite(str(scratch / "photographs" / kind / f"{k:03}.png"), picture)
    return [scratch]


def _judge(category: Category, progress: Progress) -> list[Judged]:
    exact, cascade = _inspector(EXACT_PLAN), _inspector("cascade")
    progress(f"{category.name}: calibrating")
    limits = cascade.calibrate(_every(category.train, CALIBRATE))
    judged = []
    for bad in (False, True):
        parts = _every([image for image in category.test if bool(image.defect) == bad], JUDGE)
        for k, image in enumerate(parts):
            progress(f"{category.name}: {'bad' if bad else 'good'} part {k + 1} of {len(parts)}")
            both = exact.inspect(image.path, _for_plan(limits, EXACT_PLAN)), cascade.inspect(image.path, limits)
            judged.append(Judged(bad, *both))
    return judged


def _inspector(plan: str) -> Inspector:
    named = {
        "name": "bench",
        "bundle": "texture-s",
        "plan": plan,
        "source": {"kind": "folder", "path": "."},
        "frame": {"width_px": PICTURE_PX, "height_px": PICTURE_PX},
        "tiling": {"resize": SCALE},
    }
    station = Station.model_validate(named)
    return Inspector(station, load_bundle(find_bundle(station.bundle)), Engine())


def _for_plan(limits: StationCalibration, plan: str) -> StationCalibration:
    """A cascade's thresholds are those of x1's scores; only what they say they are for differs."""
    return limits.model_copy(update={"provenance": limits.provenance.model_copy(update={"plan": plan})})


def _every(items: Sequence[_Any], count: int) -> list[_Any]:
    """At most `count` of them, evenly spread."""
    step = max(1, len(items) / count)
    return [items[int(k * step)] for k in range(min(count, len(items)))]


def _agreement(judged: Sequence[Judged]) -> float:
    return sum(part.same for part in judged) / len(judged)
