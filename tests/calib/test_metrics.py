"""Metrics against scikit-learn and against the definition, written out."""

from __future__ import annotations

import math

import cv2
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


def maps_and_masks() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    masks = np.zeros((3, 40, 50), np.uint8)
    masks[0, 5:9, 5:20] = 1
    masks[0, 30, 40] = 255
    masks[1, 10:30, 10:30] = 1
    maps = rng.random((3, 40, 50)).astype(np.float32) * 0.5 + (masks > 0) * 0.2
    maps[1, 10:15] += 0.1
    return (np.round(maps * 64) / 64).astype(np.float32), masks  # exactly on bin edges


def test_pixel_auroc_equals_scikit_learn() -> None:
    maps, masks = maps_and_masks()
    pixels = me.PixelMetrics(1.0)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask)
    assert pixels.auroc() == pytest.approx(roc_auc_score(masks.ravel() > 0, maps.ravel()), abs=1e-9)


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_aupro_equals_its_definition(limit: float) -> None:
    maps, masks = maps_and_masks()
    pixels = me.PixelMetrics(1.0)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask)
    curve = []
    for threshold in np.unique(maps)[::-1]:
        overlaps = []
        for anomaly_map, mask in zip(maps, masks, strict=True):
            count, labels = cv2.connectedComponents(mask)
            overlaps += [(anomaly_map >= threshold)[labels == i].mean() for i in range(1, count)]
        curve.append((np.mean((maps >= threshold)[masks == 0]), np.mean(overlaps)))
    x, y = np.array([(0.0, 0.0), *curve]).T
    fine = np.linspace(0, limit, 20_001)
    assert pixels.aupro(limit) == pytest.approx(np.interp(fine, x, y).mean(), abs=1e-4)


def test_no_curve_without_both_kinds() -> None:
    pixels = me.PixelMetrics(1.0)
    assert math.isnan(pixels.auroc())
    pixels.add(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8))
    assert math.isnan(pixels.auroc())
    assert math.isnan(pixels.aupro())


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
