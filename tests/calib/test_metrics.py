"""Metrics against scikit-learn and against the definition, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from calib import metrics as me


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_image_auroc_equals_scikit_learn_with_ties(parts: list[tuple[int, bool]]) -> None:
    scores, bad = [p[0] / 6 for p in parts], [p[1] for p in parts]
    if len(set(bad)) < 2:
        assert math.isnan(me.image_auroc(scores, bad))
    else:
        assert me.image_auroc(scores, bad) == pytest.approx(roc_auc_score(bad, scores))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_auroc_of_counts_equals_that_of_the_values(counts: list[tuple[int, int]]) -> None:
    good, bad = np.array(counts).T
    values = [i for kind in (good, bad) for i, n in enumerate(kind) for _ in range(n)]
    found = me.auroc_of_counts(good, bad)
    if good.any() and bad.any():
        assert found == pytest.approx(me.image_auroc(values, np.repeat([False, True], [good.sum(), bad.sum()])))
    else:
        assert math.isnan(found)


def test_auroc_of_counts_takes_rows_at_once() -> None:
    good, bad = np.array([[3, 1, 0], [0, 1, 3], [1, 1, 1]]), np.array([[0, 1, 3], [3, 1, 0], [0, 0, 0]])
    found = me.auroc_of_counts(good, bad)
    assert found[:2].tolist() == [me.auroc_of_counts(good[0], bad[0]), me.auroc_of_counts(good[1], bad[1])]
    assert found[0] + found[1] == pytest.approx(1)
    assert math.isnan(found[2])


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_aupro_equals_its_definition(limit: float) -> None:
    rng = np.random.default_rng(3)
    good = rng.integers(0, 40, 64)
    regions = [rng.integers(0, 64, size) for size in (4, 30, 400)]  # the bin of each pixel
    overlap = np.sum([np.bincount(r, minlength=64) / len(r) for r in regions], axis=0)
    curve = [(good[t:].sum() / good.sum(), np.mean([(r >= t).mean() for r in regions])) for t in range(64, -1, -1)]
    x, y = np.array(curve).T
    fine = np.linspace(0, limit, 20_001)
    assert me.aupro_of_counts(good, overlap, limit) == pytest.approx(np.interp(fine, x, y).mean(), abs=1e-4)


def test_no_curve_without_both_kinds() -> None:
    assert math.isnan(me.aupro_of_counts(np.ones(4), np.zeros(4)))
    assert math.isnan(me.aupro_of_counts(np.zeros(4), np.ones(4)))


def test_rates_by_hand() -> None:
    counted = me.confusion([True, True, False, False, True], [True, True, True, False, False])
    assert counted == me.Confusion(found=2, missed=1, passed=1, falsely_rejected=1)
    assert counted.true_positive_rate.value == pytest.approx(2 / 3)
    assert counted.escape_rate.value == pytest.approx(1 / 3)
    assert counted.true_negative_rate.value == counted.false_reject_rate.value == 0.5
    assert str(me.Rate(0, 30)) == "0 of 30 (0 % to 12 %)"
    assert str(me.Rate(0, 0)) == "none seen"
    assert math.isnan(me.Rate(0, 0).value)
    with pytest.raises(ValueError, match="answers"):
        me.confusion([True], [True, False])
