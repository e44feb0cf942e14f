"""From what a detector said of test images whose truth is known to the figures that it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.details import Details
from calib.metrics import Confusion, confusion, image_auroc
from calib.pixels import Map, Mask, aupro, count_pixels

__all__ = ["Answer", "Evaluation", "Figures", "evaluate"]

AUPRO_LIMIT = 0.3


@dataclass(frozen=True)
class Answer:
    """What a detector said of one test image, and the truth."""

    name: str
    defect: str
    """Its kind; empty for good ones."""
    score: float
    rejected: bool
    """Whether the line would let it pass, at the calibrated threshold; what is not judged is not passed."""
    anomaly_map: Map
    """float32 [SIDE_PX, SIDE_PX] (`calib.pixels.standard_map`)."""
    mask: Mask | None
    """bool [SIDE_PX, SIDE_PX]; None for a defective image whose mask is not there."""


@dataclass(frozen=True)
class Figures:
    """How good a detector is on some test images. NaN where they cannot say it: no defective image, no mask."""

    image_auroc: float
    pixel_auroc: float
    """Over the pixels of all images whose truth is known, at 256 x 256."""
    aupro_30: float
    """Area under the per-region overlap up to 30 % false positives, over the same pixels."""
    parts: Confusion
    """At the calibrated threshold."""

    def flat(self) -> dict[str, float]:
        """By the names that `maskline compare --json` has."""
        return {
            "image_auroc": self.image_auroc,
            "pixel_auroc": self.pixel_auroc,
            "aupro_30": self.aupro_30,
            "false_reject_rate": self.parts.false_reject_rate.value,
            "escape_rate": self.parts.escape_rate.value,
            "mean_tpr_tnr": (self.parts.true_positive_rate.value + self.parts.true_negative_rate.value) / 2,
        }


@dataclass(frozen=True)
class Evaluation:
    """How good a detector is on a category."""

    figures: Figures
    """Without the defects that are reported apart (`calib.details.TINY`)."""
    with_tiny: Figures | None
    """With them; None where there are none."""
    by_defect: Mapping[str, float]
    """Area under the ROC curve of each kind's images and all good ones."""
    details: Details

    def flat(self) -> dict[str, float]:
        """By the names that `maskline compare --json` has, without category and engine."""
        found = self.figures.flat()
        if self.with_tiny is not None:
            found |= {f"with_tiny.{name}": value for name, value in self.with_tiny.flat().items()}
        return found | {f"defect.{kind}.image_auroc": value for kind, value in self.by_defect.items()}


def evaluate(answers: Sequence[Answer]) -> Evaluation:
    """The figures of a detector from its answers to all test images of a category; their maps take 256 KiB each."""
    counts, overlap = count_pixels([a.anomaly_map for a in answers], [a.mask for a in answers])
    details = Details(
        names=np.array([a.name for a in answers]),
        defects=np.array([a.defect for a in answers]),
        scores=np.array([a.score for a in answers], np.float64),
        pixels=counts,
    )
    rejected = np.array([a.rejected for a in answers])

    def figures(chosen: NDArray[np.bool_]) -> Figures:
        return Figures(
            image_auroc(details.scores[chosen], details.bad[chosen]),
            float(counts.auroc(chosen.astype(np.float64))),
            aupro(counts, overlap, chosen, AUPRO_LIMIT),
            confusion(rejected[chosen], details.bad[chosen]),
        )

    kinds = [str(kind) for kind in np.unique(details.defects) if kind]
    of_kind = {kind: ~details.bad | (details.defects == kind) for kind in kinds}
    return Evaluation(
        figures(~details.tiny),
        figures(np.ones(len(answers), bool)) if details.tiny.any() else None,
        {kind: image_auroc(details.scores[chosen], details.bad[chosen]) for kind, chosen in of_kind.items()},
        details,
    )
