"""How good a detector is where the truth is known: curves, rates, and intervals that say how little few parts prove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.thresholds import percent, rate_interval

__all__ = ["Confusion", "PixelMetrics", "Rate", "confusion", "image_auroc"]


def image_auroc(scores: Sequence[float] | NDArray[np.float64], bad: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a bad part scores above a good one, ties counted half.

    `scores` [N] finite, `bad` [N]. NaN where one of the two kinds is missing: there is no curve then.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(bad, bool)
    n_bad, n_good = int(truth.sum()), int((~truth).sum())
    if not n_bad or not n_good:
        return math.nan
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[level]  # from 1; equal scores share their mean rank
    return float((ranks[truth].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


class PixelMetrics:
    """Pixel-level curves over any number of maps, in memory that does not grow: map values are binned.

    `top` is the largest value that a map can have; bins are top / 65536 wide, and values in one bin count as equal.
    """

    BINS = 1 << 16

    def __init__(self, top: float) -> None:
        self._scale: float = self.BINS / top
        self._good = np.zeros(self.BINS, np.float64)
        self._bad = np.zeros(self.BINS, np.float64)
        self._overlap = np.zeros(self.BINS, np.float64)
        self._regions = 0

    def add(self, anomaly_map: NDArray[np.float32], truth: NDArray[np.bool_] | NDArray[np.uint8]) -> None:
        """Count a map [h, w] with its truth mask [h, w], nonzero where it is defective."""
        bins = (anomaly_map * np.float32(self._scale)).clip(0, self.BINS - 1).astype(np.int32)
        mask = (truth != 0).astype(np.uint8)
        self._good += np.bincount(bins[mask == 0], minlength=self.BINS)
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        for label in range(1, count):
            region = np.bincount(bins[labels == label], minlength=self.BINS)
            self._bad += region
            self._overlap += region / region.sum()
            self._regions += 1

    def auroc(self) -> float:
        """Area under the ROC curve over all pixels; NaN without defective or without good pixels."""
        n_good, n_bad = self._good.sum(), self._bad.sum()
        if not n_good or not n_bad:
            return math.nan
        below = np.cumsum(self._good) - self._good
        return float(((below + self._good / 2) * self._bad).sum() / (n_good * n_bad))

    def aupro(self, limit: float = 0.3) -> float:
        """Area under the per-region overlap curve up to a false-positive rate of `limit`, divided by `limit`.

        Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", section 4.2: the share of each truth region
        (8-connected) that lies above the threshold, averaged over regions, so that small defects count like large
        ones, against the share of good pixels above it. NaN without regions or without good pixels.
        """
        if not self._regions or not self._good.sum():
            return math.nan
        false_positives = np.concatenate(([0.0], np.cumsum(self._good[::-1]) / self._good.sum()))
        overlap = np.concatenate(([0.0], np.cumsum(self._overlap[::-1]) / self._regions))
        at_limit = float(np.interp(limit, false_positives, overlap))
        inside = false_positives < limit
        x = np.append(false_positives[inside], limit)
        y = np.append(overlap[inside], at_limit)
        return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / limit)


@dataclass(frozen=True)
class Rate:
    """A rate as it was seen, with its two-sided 95 % Clopper-Pearson interval."""

    events: int
    trials: int

    @property
    def value(self) -> float:
        """NaN for no trials."""
        return self.events / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return rate_interval(self.events, self.trials, 0.95)

    def __str__(self) -> str:
        if not self.trials:
            return "none seen"
        low, high = self.interval
        return f"{self.events} of {self.trials} ({percent(low)} to {percent(high)})"


@dataclass(frozen=True)
class Confusion:
    """Parts by truth and answer. A part that is not passed in time counts as rejected: it lands in the reject bin."""

    found: int
    missed: int
    passed: int
    falsely_rejected: int

    @property
    def true_positive_rate(self) -> Rate:
        """Bad parts that were rejected."""
        return Rate(self.found, self.found + self.missed)

    @property
    def escape_rate(self) -> Rate:
        """Bad parts that were passed."""
        return Rate(self.missed, self.found + self.missed)

    @property
    def true_negative_rate(self) -> Rate:
        """Good parts that were passed."""
        return Rate(self.passed, self.passed + self.falsely_rejected)

    @property
    def false_reject_rate(self) -> Rate:
        """Good parts that were rejected."""
        return Rate(self.falsely_rejected, self.passed + self.falsely_rejected)


def confusion(rejected: Sequence[bool] | NDArray[np.bool_], bad: Sequence[bool] | NDArray[np.bool_]) -> Confusion:
    """Count parts by whether they were `rejected` [N] and whether they are `bad` in truth [N]."""
    answer, truth = np.asarray(rejected, bool), np.asarray(bad, bool)
    if answer.shape != truth.shape:
        raise ValueError(f"{answer.shape} answers for {truth.shape} truths")
    return Confusion(
        found=int((answer & truth).sum()),
        missed=int((~answer & truth).sum()),
        passed=int((~answer & ~truth).sum()),
        falsely_rejected=int((answer & ~truth).sum()),
    )
