"""How good a detector is where the truth is known: curves, rates, and intervals that say how little few parts prove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.thresholds import percent, rate_interval

__all__ = ["Confusion", "Rate", "aupro_of_counts", "auroc_of_counts", "confusion", "image_auroc"]


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


def auroc_of_counts(good: NDArray[Any], bad: NDArray[Any]) -> NDArray[np.float64]:
    """Area under the ROC curve from counts [..., B] of good and bad values in B ascending bins, for each leading index.

    Values in one bin count as equal, half each way; counts may be weighted. NaN where one of the two kinds is missing.
    """
    good, bad = np.asarray(good, np.float64), np.asarray(bad, np.float64)
    below = np.cumsum(good, -1) - good / 2
    pairs = good.sum(-1) * bad.sum(-1)
    won = np.einsum("...b,...b->...", below, bad)
    return np.asarray(np.divide(won, pairs, out=np.full(np.shape(pairs), math.nan), where=pairs > 0))


def aupro_of_counts(good: NDArray[Any], overlap: NDArray[Any], limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false-positive rate of `limit`, divided by `limit`.

    Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", section 4.2: the share of each region of the truth that
    lies above the threshold, averaged over regions, so that small defects count like large ones, against the share of
    good pixels above it. `good` [B]: good pixels per bin, bins ascending; `overlap` [B]: the share of each region that
    lies in the bin, summed over the regions. NaN without regions or without good pixels.
    """
    regions, pixels = float(np.sum(overlap)), float(np.sum(good))
    if not regions or not pixels:
        return math.nan
    false_positives = np.concatenate(([0.0], np.cumsum(good[::-1]) / pixels))
    found = np.concatenate(([0.0], np.cumsum(overlap[::-1]) / regions))
    inside = false_positives < limit
    x = np.append(false_positives[inside], limit)
    y = np.append(found[inside], np.interp(limit, false_positives, found))
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
