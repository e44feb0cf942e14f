"""Figures of a detector from its answers: by hand, tiny defects apart, and none where the truth does not say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calib.evaluation import Answer, evaluate
from calib.pixels import SIDE_PX

PLAIN = np.zeros((SIDE_PX, SIDE_PX), bool)
SQUARE = PLAIN.copy()
SQUARE[10:20, 10:20] = True


def answer(name: str, defect: str, score: float, *, masked: bool = True, found: bool = True) -> Answer:
    """At threshold 0.5; the map is high in the square where the defect was found."""
    rng = np.random.default_rng(len(name))
    anomaly_map = rng.random(PLAIN.shape, np.float32) * np.float32(0.5)
    if defect and found:
        anomaly_map += SQUARE
    mask = (SQUARE if defect else PLAIN) if masked else None
    return Answer(f"{defect or 'good'}/{name}", defect, score, score > 0.5, anomaly_map, mask)


def test_figures_by_hand() -> None:
    found = evaluate(
        [
            answer("0", "", 0.1),
            answer("1", "", 0.4),
            answer("2", "", 0.6),  # a false reject
            answer("3", "hole", 0.9),
            answer("4", "cut", 0.5, found=False),  # an escape
        ]
    )
    figures = found.figures.flat()
    assert figures["image_auroc"] == pytest.approx(5 / 6)
    assert figures["pixel_auroc"] == pytest.approx(0.75, abs=0.03)  # one square found, the other like its surroundings
    assert figures["aupro_30"] == pytest.approx(0.5 + 0.5 * 0.15, abs=0.03)
    assert figures["false_reject_rate"] == pytest.approx(1 / 3)
    assert figures["escape_rate"] == pytest.approx(1 / 2)
    assert figures["mean_tpr_tnr"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.by_defect == {"cut": pytest.approx(2 / 3), "hole": 1}
    assert found.with_tiny is None
    assert found.flat() == figures | {"defect.cut.image_auroc": pytest.approx(2 / 3), "defect.hole.image_auroc": 1}


def test_tiny_defects_are_reported_apart() -> None:
    large = [answer("0", "", 0.1), answer("1", "", 0.4), answer("2", "hole", 0.9)]
    tiny = [answer("3", "nep_tiny", 0.2, found=False)]
    found, alone = evaluate([*large, *tiny]), evaluate(large)
    for name, value in alone.figures.flat().items():
        assert found.figures.flat()[name] == pytest.approx(value, abs=1e-3)
    assert found.with_tiny is not None
    assert found.flat()["with_tiny.image_auroc"] == pytest.approx(3 / 4)
    assert found.flat()["with_tiny.escape_rate"] == 0.5
    assert found.flat()["with_tiny.pixel_auroc"] < 0.8
    assert found.by_defect["nep_tiny"] == 0.5


def test_images_without_a_mask_count_as_images_alone() -> None:
    with_mask = [answer("0", "", 0.1), answer("1", "hole", 0.9)]
    found, alone = evaluate([*with_mask, answer("2", "hole", 0.05, masked=False)]), evaluate(with_mask)
    assert found.figures.image_auroc == 0.5
    assert found.figures.pixel_auroc == alone.figures.pixel_auroc
    assert found.figures.aupro_30 == alone.figures.aupro_30
    unmasked = evaluate([answer("0", "", 0.1), answer("1", "hole", 0.9, masked=False)])
    assert unmasked.figures.image_auroc == 1
    assert math.isnan(unmasked.figures.pixel_auroc)
    assert math.isnan(unmasked.figures.aupro_30)


def test_a_category_of_tiny_defects_alone_has_no_headline() -> None:
    found = evaluate([answer("0", "", 0.1), answer("1", "nep_tiny", 0.9)])
    assert math.isnan(found.figures.image_auroc)
    assert found.figures.parts.false_reject_rate.value == 0
    assert found.with_tiny is not None
    assert found.with_tiny.image_auroc == 1
