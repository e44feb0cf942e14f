"""Thresholds keep their promises on simulated lines, and say what few parts cannot promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calib import thresholds as th
from edge.errors import CalibrationError


@settings(max_examples=50)
@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_bounds_equal_scipy(events: int, extra: int, confidence: float) -> None:
    trials = events + extra
    expected = stats.beta.ppf(confidence, events + 1, trials - events)
    assert th.rate_upper_bound(events, trials, confidence) == pytest.approx(expected, abs=1e-9)
    interval = stats.binomtest(events, trials).proportion_ci(confidence, "exact")
    assert th.rate_interval(events, trials, confidence) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_bounds_at_the_ends() -> None:
    assert th.rate_upper_bound(0, 30) == pytest.approx(0.095, abs=5e-4)
    assert th.rate_upper_bound(7, 7) == 1
    assert th.rate_interval(0, 0) == (0, 1)
    assert th.parts_needed(0.01) == 299
    with pytest.raises(ValueError, match="8 of 7"):
        th.rate_upper_bound(8, 7)


@pytest.mark.parametrize("target", [0.01, 0.05])
def test_with_enough_parts_the_promise_holds_as_often_as_it_says(target: float) -> None:
    rng = np.random.default_rng(1)
    kept = 0
    for _ in range(400):
        fitted = th.fit_threshold(rng.random(500), target, 0.9)
        assert fitted.promised
        assert not fitted.extrapolated
        kept += 1 - fitted.value <= target  # the true rate of a uniform score
    assert kept / 400 > 0.87


@pytest.mark.parametrize("draw", ["exponential", "normal"])
def test_with_few_parts_the_tail_keeps_the_rate_on_average(draw: str) -> None:
    rng = np.random.default_rng(2)
    survival = stats.expon.sf if draw == "exponential" else stats.norm.sf
    values = []
    for _ in range(2000):
        scores = rng.exponential(size=30) if draw == "exponential" else rng.normal(size=30)
        fitted = th.fit_threshold(scores, 0.01, 0.95)
        assert fitted.value >= scores.max()
        assert fitted.upper_bound == pytest.approx(0.095, abs=1e-3)
        values.append(fitted.value)
    assert survival(values).mean() < 0.0115


def test_few_parts_are_said_to_promise_little() -> None:
    fitted = th.fit_threshold(np.linspace(0.1, 0.2, 30), 0.01, 0.95)
    assert fitted.extrapolated
    assert not fitted.promised
    text = fitted.statement
    assert "0 of 30" in text
    assert "9.5 %" in text
    assert "30 parts cannot promise it" in text
    assert "299" in text


def test_enough_parts_are_said_to_promise() -> None:
    fitted = th.fit_threshold(np.arange(1000), 0.02, 0.95)
    assert fitted.promised
    assert fitted.rejected == 999 - fitted.value > 0
    assert "as asked (2 %)" in fitted.statement


def test_equal_scores_reject_none_of_them() -> None:
    fitted = th.fit_threshold(np.zeros(40), 0.01, 0.95)
    assert (fitted.value, fitted.rejected, fitted.extrapolated) == (0, 0, False)


@pytest.mark.parametrize(
    ("scores", "rate", "confidence", "words"),
    [
        ([1.0] * 4, 0.01, 0.95, "4 held-out"),
        ([1.0] * 9 + [np.nan], 0.01, 0.95, "not finite"),
        ([1.0] * 9, 0.0, 0.95, "rate 0.0"),
        ([1.0] * 9, 0.01, 1.0, "confidence 1.0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(scores: list[float], rate: float, confidence: float, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        th.fit_threshold(scores, rate, confidence)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.99, 0.999, 1.0]))
def test_histogram_quantile_is_the_quantile_to_a_bin(seed: int, share: float) -> None:
    values = np.random.default_rng(seed).random((3, 40, 50), np.float32)
    histogram = th.PixelHistogram(1.0)
    for part in values:
        histogram.add(part)
    found = histogram.quantile(share)
    assert histogram.count == values.size
    assert (values > found).mean() <= 1 - share + 1e-9
    assert found - np.quantile(values, share, method="inverted_cdf") <= 2 / th.PixelHistogram.BINS


def test_histogram_without_pixels_and_beyond_its_range() -> None:
    histogram = th.PixelHistogram(0.5)
    with pytest.raises(CalibrationError, match="no pixel"):
        histogram.quantile(0.9)
    histogram.add(np.array([-1e-9, 2.0], np.float32))
    assert histogram.quantile(1.0) == 0.5


def test_near_threshold() -> None:
    cheap, threshold = [0.1, 0.24, 0.26, 0.39, 0.41], 0.3
    assert th.near_threshold(cheap, threshold, (-0.1, 0.05)).tolist() == [False, False, True, True, False]
    assert not th.near_threshold(cheap, threshold, (0.0, 0.0)).any(), "plans that never differed leave no doubt"
