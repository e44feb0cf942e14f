"""The paired bootstrap: sure of what is sure, unsure of luck, and right about as often as it says."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from calib.bootstrap import ImageScores, paired_bootstrap
from calib.metrics import image_auroc

BAD = np.arange(90) >= 60


def scores(shift: float, seed: int, noise: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, noise, len(BAD)) + shift * BAD


def test_scores_give_the_area_that_image_auroc_gives() -> None:
    values = np.round(scores(0.7, 0), 1)  # with ties
    evidence = ImageScores(values, BAD)
    assert evidence.auroc(np.ones(len(BAD))) == pytest.approx(image_auroc(values, BAD))
    weights = np.random.default_rng(1).integers(0, 3, (4, len(BAD))).astype(float)
    for row, found in zip(weights, evidence.auroc(weights), strict=True):
        drawn = np.repeat(np.arange(len(BAD)), row.astype(int))
        assert found == pytest.approx(image_auroc(values[drawn], BAD[drawn]))


def test_equal_detectors_do_not_differ() -> None:
    evidence = ImageScores(scores(1, 0), BAD)
    found = paired_bootstrap([BAD], [evidence], [ImageScores(10 + 3 * scores(1, 0), BAD)], resamples=200)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.certain


def test_a_clear_difference_is_certain_and_luck_is_not() -> None:
    good = ImageScores(scores(3, 1), BAD)
    worse, same = ImageScores(scores(0.5, 2), BAD), ImageScores(scores(3, 3), BAD)
    assert paired_bootstrap([BAD], [good], [worse], resamples=400).low > 0
    assert paired_bootstrap([BAD], [worse], [good], resamples=400).high < 0
    assert not paired_bootstrap([BAD], [good], [same], resamples=400).certain


def test_detectors_that_err_on_the_same_images_are_told_apart_more_surely() -> None:
    common = scores(1, 4)
    paired = paired_bootstrap([BAD], [ImageScores(common + 0.3 * BAD, BAD)], [ImageScores(common, BAD)], resamples=400)
    apart = paired_bootstrap([BAD], [ImageScores(scores(1.3, 5), BAD)], [ImageScores(common, BAD)], resamples=400)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_every_category_counts_the_same() -> None:
    few = np.arange(12) >= 10
    perfect, random = ImageScores(few.astype(float), few), ImageScores(np.zeros(12), few)
    ours, theirs = ImageScores(scores(1, 6), BAD), ImageScores(scores(1, 7), BAD)
    found = paired_bootstrap([BAD, few], [ours, perfect], [theirs, random], resamples=200)
    alone = paired_bootstrap([BAD], [ours], [theirs], resamples=200)
    assert found.value == pytest.approx((alone.value + 0.5) / 2)


def test_it_is_seeded_and_one_defective_image_suffices() -> None:
    one = np.arange(20) == 7
    rng = np.random.default_rng(0)
    ours, theirs = ImageScores(rng.random(20) + one, one), ImageScores(rng.random(20), one)
    found = paired_bootstrap([one], [ours], [theirs], resamples=300)
    assert found.resamples == 300
    assert np.isfinite([found.low, found.high]).all()
    pair = [ImageScores(scores(1, 8), BAD)], [ImageScores(scores(1, 9), BAD)]
    first, again, other = (paired_bootstrap([BAD], *pair, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """100 worlds: the true areas follow from the normal distributions that scores are drawn from."""
    true = NormalDist().cdf(1.5 / 2**0.5) - NormalDist().cdf(1 / 2**0.5)
    held = 0
    for seed in range(100):
        ours = ImageScores(scores(1.5, 2 * seed), BAD)
        theirs = ImageScores(scores(1.0, 2 * seed + 1), BAD)
        found = paired_bootstrap([BAD], [ours], [theirs], resamples=200, seed=seed)
        held += found.low <= true <= found.high
    assert 88 <= held <= 100
