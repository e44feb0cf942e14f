"""A score threshold from good parts alone, and what it can promise: pure functions on numbers.

A part is rejected when its score is above the threshold. Scores of held-out good parts give the threshold without
any assumption about their distribution as long as they are many (order statistics); with fewer, the tail is
extrapolated and the promise shrinks to what the number of parts allows, in words that the calibration carries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import CalibrationError

__all__ = [
    "MIN_HELD_OUT",
    "PixelHistogram",
    "Threshold",
    "fit_threshold",
    "near_threshold",
    "parts_needed",
    "percent",
    "rate_interval",
    "rate_upper_bound",
]

MIN_HELD_OUT = 5
"""Fewer held-out good parts say nothing about a tail."""
_TAIL_SHARE = 0.25
_TAIL_MIN = 4


def _log_binomial_cdf(k: int, n: int, p: float) -> float:
    """log P(X <= k) for X ~ Binomial(n, p), 0 < p < 1."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    top = max(logs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logs))


def rate_upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson upper bound of a rate of which `events` of `trials` were seen.

    The rate at which so few events would be seen with probability 1 - `confidence` only (Clopper & Pearson 1934);
    0 of 30 gives 0.095 at 95 %. Never below the true rate in more than 1 - `confidence` of all cases. 1 for no trials.
    """
    if not 0 <= events <= trials or not 0 < confidence < 1:
        raise ValueError(f"{events} of {trials} at confidence {confidence}: expected 0 <= events <= trials, 0 to 1")
    if events == trials:
        return 1.0
    if events == 0:
        return -math.expm1(math.log1p(-confidence) / trials)
    target = math.log1p(-confidence)
    low, high = 0.0, 1.0
    while high - low > 1e-12:  # the probability falls as the rate grows
        middle = (low + high) / 2
        if _log_binomial_cdf(events, trials, middle) > target:
            low = middle
        else:
            high = middle
    return high


def rate_interval(events: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a rate seen `events` times in `trials`; (0, 1) for no trials."""
    one_sided = 1 - (1 - confidence) / 2
    low = 1.0 - rate_upper_bound(trials - events, trials, one_sided)
    return low, rate_upper_bound(events, trials, one_sided)


def parts_needed(target_rate: float, confidence: float = 0.95) -> int:
    """How many good parts without a single reject it takes to promise `target_rate` at `confidence`: 299 for 1 %."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-target_rate))


@dataclass(frozen=True)
class Threshold:
    """A score threshold and what is known about it. Parts with a score above `value` are rejected."""

    value: float
    parts: int
    """Held-out good parts that it was computed on."""
    rejected: int
    """Of these, how many are above it."""
    target_rate: float
    confidence: float
    upper_bound: float
    """With `confidence`, the false-reject rate is at most this."""
    extrapolated: bool
    """Whether `value` lies where no held-out part was, by the tail rule of `fit_threshold`."""

    @property
    def promised(self) -> bool:
        """Whether the parts seen suffice to promise the target rate."""
        return self.upper_bound <= self.target_rate

    @property
    def statement(self) -> str:
        """What may be said to the people who rely on it."""
        seen = f"{self.rejected} of {self.parts} held-out good parts are above the threshold"
        bound = (
            f"the false-reject rate is at most {percent(self.upper_bound)} with {100 * self.confidence:g} % confidence"
        )
        if self.promised:
            return f"{seen}; {bound}, as asked ({percent(self.target_rate)})."
        needed = parts_needed(self.target_rate, self.confidence)
        text = (
            f"{seen}; {bound}. {percent(self.target_rate)} was asked, and {self.parts} parts cannot promise it:"
            f" that takes {needed} good parts without a reject."
        )
        if self.extrapolated:
            text += " The threshold lies above every part seen, where an exponential tail would reject the rate asked."
        return text


def percent(rate: float) -> str:
    """A rate 0..1 in per cent, to two figures: "9.5 %", "22 %", "100 %"."""
    return f"{100 * rate:.0f} %" if rate >= 0.0995 else f"{100 * rate:.2g} %"


def fit_threshold(scores: Sequence[float] | NDArray[np.float64], target_rate: float, confidence: float) -> Threshold:
    """The threshold for a target false-reject rate from the scores of held-out good parts, one score per part.

    1. Enough parts: the lowest order statistic of which the rate's upper bound stays within the target. With k parts
       above the (n - k)-th of n scores the true rate follows a beta distribution whose quantile is Clopper and
       Pearson's bound, whatever the distribution of the scores: the promise holds with `confidence`.
    2. Too few: the largest score, or higher, where an exponential tail (the generalised Pareto distribution of
       Pickands 1975 with shape 0) says so. The mean excess b of the m largest scores (a quarter, at least 4) over the
       next one, u, gives x = u + m b (((m + 1) / ((n + 1) r))^(1/m) - 1) for the target rate r: the predictive
       quantile, which on average over samples is passed at rate r although u and b are only estimated. The bound
       reported stays the one that the count of parts alone supports.

    Raises CalibrationError for fewer than MIN_HELD_OUT scores, for scores that are not finite, and for rates outside
    (0, 0.5] or a confidence outside [0.5, 1).
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    n = len(ordered)
    if n < MIN_HELD_OUT:
        raise CalibrationError(f"{n} held-out good parts: at least {MIN_HELD_OUT} are needed, a few hundred are better")
    if not np.isfinite(ordered).all():
        raise CalibrationError("a held-out good part has a score that is not finite: check the bundle and the images")
    if not 0 < target_rate <= 0.5 or not 0.5 <= confidence < 1:
        raise CalibrationError(
            f"target false-reject rate {target_rate} with confidence {confidence}:"
            " expected over 0 and up to 0.5, and 0.5 to below 1"
        )
    above = _promised_rejects(n, target_rate, confidence)
    extrapolated = False
    if above >= 0:
        value = float(ordered[n - 1 - above])
    else:
        largest = float(ordered[-1])
        value = max(largest, _tail_quantile(ordered, target_rate))
        extrapolated = value > largest
    rejected = int(np.count_nonzero(ordered > value))  # fewer than `above` where scores are equal
    bound = rate_upper_bound(max(above, 0), n, confidence)
    return Threshold(value, n, rejected, target_rate, confidence, bound, extrapolated)


def _promised_rejects(n: int, target_rate: float, confidence: float) -> int:
    """The most rejects among `n` good parts that still promise the target rate; -1 where none at all would not."""
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        if _log_binomial_cdf(middle, n, target_rate) <= math.log1p(-confidence):  # its upper bound <= target_rate
            low = middle
        else:
            high = middle
    return low


def _tail_quantile(ordered: NDArray[np.float64], rate: float) -> float:
    n = len(ordered)
    m = min(n - 1, max(_TAIL_MIN, math.ceil(_TAIL_SHARE * n)))
    start = float(ordered[n - m - 1])
    mean_excess = float((ordered[n - m :] - start).mean())
    share = (m + 1) / (n + 1)  # of all parts, on average, above the (m + 1)-th largest of n
    growth = math.exp(math.log(max(1.0, share / rate)) / m) - 1
    return start + m * mean_excess * growth


def near_threshold(
    scores: NDArray[np.float64] | Sequence[float], threshold: float, band: tuple[float, float]
) -> NDArray[np.bool_]:
    """Of which scores [N] of a cheap plan the exact plan may decide otherwise, so that it must be asked.

    `band` is the calibration's `cascade_band`: what exact less cheap scores of good tiles stay within, and 0 between
    the two. It has a sign because a cheap plan that repaints worse has higher scores, and rarely lower ones.
    """
    cheap, (low, high) = np.asarray(scores, np.float64), band
    return np.asarray((cheap + low <= threshold) & (cheap + high > threshold))


class PixelHistogram:
    """Counts of map values, to take quantiles over more pixels than memory holds. Bins of equal width over [0, top]."""

    BINS = 1 << 16

    def __init__(self, top: float) -> None:
        """`top`: the largest value that a map can have; what lies above counts into the last bin."""
        self._scale: float = self.BINS / top
        self._counts = np.zeros(self.BINS, np.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Count map values (any shape, finite); negative ones, which rounding can make, count as 0."""
        bins = (values.reshape(-1) * np.float32(self._scale)).clip(0, self.BINS - 1).astype(np.int32)
        self._counts += np.bincount(bins, minlength=self.BINS)

    def quantile(self, share: float) -> float:
        """The upper edge of the bin in which the quantile lies: at most 1 - `share` of the values are above it."""
        if not self.count:
            raise CalibrationError("no pixel was judged: does the ignore mask cover every tile?")
        cumulative = np.cumsum(self._counts)
        needed = math.ceil(share * int(cumulative[-1]))
        return float(np.searchsorted(cumulative, max(1, needed)) + 1) / self._scale
