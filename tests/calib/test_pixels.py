"""Pixels on one footing: nothing tiny is lost, every image counts the same, and areas equal scikit-learn's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from calib.metrics import image_auroc
from calib.pixels import BINS, SIDE_PX, Mask, aupro, count_pixels, standard_map, standard_mask

SIDE = (SIDE_PX, SIDE_PX)


def maps_and_masks() -> tuple[list[np.ndarray], list[Mask]]:
    """Three images, two of them defective, whose maps rank defective pixels higher, but not always."""
    rng = np.random.default_rng(3)
    masks = [np.zeros(SIDE, bool) for _ in range(3)]
    masks[0][5:9, 5:20] = True
    masks[0][200, 40] = True
    masks[1][10:130, 10:30] = True
    maps = [(rng.normal(0, 1, SIDE) + mask).astype(np.float32) for mask in masks]
    return maps, masks


def test_auroc_equals_scikit_learn_within_half_a_bin() -> None:
    maps, masks = maps_and_masks()
    counts, _ = count_pixels(maps, masks)
    expected = roc_auc_score(np.ravel(masks), np.ravel(maps))
    assert counts.auroc(np.ones(3)) == pytest.approx(expected, abs=0.5 / BINS)


def test_weights_count_images_as_often_as_they_say() -> None:
    maps, masks = maps_and_masks()
    counts, _ = count_pixels(maps, masks)
    for weights in ([2, 1, 3], [0, 4, 1]):
        drawn = np.repeat(np.arange(3), weights)
        expected = roc_auc_score(np.ravel([masks[i] for i in drawn]), np.ravel([maps[i] for i in drawn]))
        assert counts.auroc(np.array(weights, float)) == pytest.approx(expected, abs=1 / BINS)


def test_aupro_counts_regions_alike() -> None:
    masks = [np.zeros(SIDE, bool)]
    masks[0][10:110, 10:110] = masks[0][200:204, 200:204] = True
    large, small = masks[0].copy(), masks[0].copy()
    large[200:204], small[10:110] = False, False
    for found in (large, small):
        counts, overlap = count_pixels([found.astype(np.float32)], masks)
        assert aupro(counts, overlap, np.array([True]), 0.3) == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-3)
        # half of the regions at once, the other half in step with the good pixels, whose map is 0 as well


def test_images_of_unknown_truth_count_for_nothing() -> None:
    maps, masks = maps_and_masks()
    counts, overlap = count_pixels([*maps, maps[0] * 9], [*masks, None])
    alone, alone_overlap = count_pixels(maps, masks)
    assert not counts.good[3].any()
    assert not counts.bad[3].any()
    assert np.array_equal(counts.good[:3], alone.good)
    assert np.array_equal(overlap[:3], alone_overlap)


def test_ties_stay_ties() -> None:
    maps, masks = maps_and_masks()
    coarse = [np.round(np.clip(m, -1.2, 1.2)) for m in maps]
    counts, _ = count_pixels(coarse, masks)
    expected = image_auroc(np.ravel(coarse).astype(float), np.ravel(masks))
    assert counts.auroc(np.ones(3)) == pytest.approx(expected, abs=1e-12)


def test_a_map_of_any_size_is_brought_to_one() -> None:
    rng = np.random.default_rng(0)
    same = rng.random(SIDE, np.float32)
    assert np.array_equal(standard_map(same), same)
    assert standard_map(rng.random((103, 632), np.float32)).shape == SIDE
    large = np.zeros((1024, 512), np.float32)
    large[:512] = 1
    assert standard_map(large).mean() == pytest.approx(0.5)


def test_a_mask_keeps_its_place_and_no_defect_gets_lost() -> None:
    mask = np.zeros((2048, 1024), bool)
    mask[1024:1536, 256:512] = True
    for y, x in ((3, 5), (2047, 1023), (1001, 77)):
        mask[y, x] = True
    small = standard_mask(mask)
    assert small.shape == SIDE
    assert small[128:192, 64:128].all()
    assert small.sum() == 64 * 64 + 3
    assert cv2.connectedComponents(small.astype(np.uint8))[0] == 1 + 4
    assert small[0, 1]
    assert small[255, 255]
    assert np.array_equal(standard_mask(small), small)
    assert not standard_mask(np.zeros((50, 400), bool)).any()
