"""Whether one detector is better than another, or only luckier with these test images: the paired bootstrap.

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: test images are drawn again with replacement,
both detectors are measured on the same draw, and what 95 % of the differences lie between is the interval. It holds for
images that are independent; pictures of one part, or cut from one strip, are not quite, and make it too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calib.metrics import auroc_of_counts

__all__ = ["Difference", "Evidence", "ImageScores", "paired_bootstrap"]

_AT_ONCE = 200
"""Resamples in memory: for pixels a row of counts each."""


class Evidence(Protocol):
    """What a detector said of the test images of one category: `ImageScores`, or `calib.pixels.PixelCounts`."""

    def auroc(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The area under the ROC curve where image i counts weights[..., i] times: [..., N] to [...]."""


class ImageScores:
    """One score per image."""

    def __init__(self, scores: Sequence[float] | NDArray[np.float64], bad: NDArray[np.bool_]) -> None:
        """`scores` [N] finite, `bad` bool [N]."""
        values = np.asarray(scores, np.float64)
        self._order = np.argsort(values, kind="stable")
        self._bad = np.asarray(bad, bool)[self._order]
        self._levels = np.flatnonzero(np.diff(values[self._order], prepend=-np.inf) > 0)

    def auroc(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Evidence`."""
        ordered = weights[..., self._order]
        good, bad = (np.add.reduceat(ordered * kind, self._levels, axis=-1) for kind in (~self._bad, self._bad))
        return auroc_of_counts(good, bad)


@dataclass(frozen=True)
class Difference:
    """By how much a detector is better than another."""

    value: float
    low: float
    high: float
    """`low` to `high`: the interval that holds 95 % of the resampled differences."""
    resamples: int

    @property
    def certain(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    bad: Sequence[NDArray[np.bool_]],
    ours: Sequence[Evidence],
    theirs: Sequence[Evidence],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The difference, `ours` less `theirs`, of the mean over categories of the area under the ROC curve.

    One entry per category: `bad` [N] says of each test image whether it is defective; good and defective images are
    drawn apart, as many as there are, so that no draw is without either. NaN where an area cannot be had. Resamples in
    which one cannot (no defective pixel was drawn) are left out.
    """
    rng = np.random.default_rng(seed)
    whole = [np.ones(len(truth)) for truth in bad]
    value = float(_difference(whole, ours, theirs))
    drawn = []
    for start in range(0, resamples, _AT_ONCE):
        weights = [_draw(truth, min(_AT_ONCE, resamples - start), rng) for truth in bad]
        drawn.append(_difference(weights, ours, theirs))
    differences = np.concatenate(drawn)
    differences = differences[np.isfinite(differences)]
    low, high = np.quantile(differences, [0.025, 0.975]) if len(differences) else (np.nan, np.nan)
    return Difference(value, float(low), float(high), len(differences))


def _draw(bad: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each image was drawn, [count, N]."""
    weights = np.empty((count, len(bad)))
    for kind in (bad, ~bad):
        n = int(kind.sum())
        weights[:, kind] = rng.multinomial(n, np.full(n, 1 / max(n, 1)), count)
    return weights


def _difference(
    weights: Sequence[NDArray[np.float64]], ours: Sequence[Evidence], theirs: Sequence[Evidence]
) -> NDArray[np.float64]:
    each = [a.auroc(w) - b.auroc(w) for w, a, b in zip(weights, ours, theirs, strict=True)]
    return np.asarray(np.mean(each, axis=0))
