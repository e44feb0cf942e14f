"""Two detectors against each other: over what both saw, and not over anything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calib.details import Details
from calib.head_to_head import MEAN, head_to_head
from calib.metrics import image_auroc
from calib.pixels import PixelCounts
from edge.errors import MasklineError

DEFECTS = np.array([""] * 30 + ["hole"] * 12 + ["nep_tiny"] * 4)
NAMES = np.array([f"{kind or 'good'}/{i:02}.png" for i, kind in enumerate(DEFECTS)])


def details(shift: float, seed: int) -> Details:
    """A detector that finds defects by `shift` standard deviations, in images and in pixels."""
    rng = np.random.default_rng(seed)
    bad = DEFECTS != ""
    good_pixels = rng.multinomial(1000, np.full(64, 1 / 64), len(DEFECTS))
    centre = np.exp(-0.5 * ((np.arange(64) - 32 - 10 * shift) / 10) ** 2)
    bad_pixels = rng.multinomial(50, centre / centre.sum(), len(DEFECTS)) * bad[:, None]
    counts = PixelCounts(good_pixels.astype(np.uint32), bad_pixels.astype(np.uint32))
    return Details(NAMES, DEFECTS, rng.normal(0, 1, len(DEFECTS)) + shift * bad, counts)


def test_every_figure_is_compared_category_by_category_and_in_the_mean() -> None:
    ours = {("tile", "sdc"): details(2, 1), ("cloth", "sdc"): details(2.5, 2)}
    theirs = {("cloth", "peer"): details(0.2, 3), ("tile", "peer"): details(0.5, 4), ("wood", "peer"): details(0, 5)}
    found = head_to_head(ours, theirs, resamples=200)
    assert (found.ours, found.theirs) == ("sdc", "peer")
    figures = ("image_auroc", "pixel_auroc", "with_tiny.image_auroc", "with_tiny.pixel_auroc")
    assert [(d.figure, d.category) for d in found.duels] == [(f, c) for f in figures for c in ("tile", "cloth", MEAN)]
    tile, cloth, mean = found.duels[:3]
    large = DEFECTS != "nep_tiny"
    expected = image_auroc(ours["tile", "sdc"].scores[large], DEFECTS[large] == "hole")
    assert tile.ours == pytest.approx(expected)
    assert mean.ours == pytest.approx((tile.ours + cloth.ours) / 2)
    assert mean.difference.value == pytest.approx(mean.ours - mean.theirs)
    assert mean.difference.low > 0
    assert (tile.defective, mean.defective, found.duels[6].defective) == (12, 24, 16)
    flat = found.flat()
    assert flat["mean.sdc_less_peer.image_auroc"] == mean.difference.value
    assert flat["mean.sdc_less_peer.image_auroc.low"] == mean.difference.low
    assert len(flat) == 3 * len(found.duels)


def test_the_order_of_images_does_not_matter() -> None:
    one, other = details(1, 1), details(1, 2)
    order = np.random.default_rng(0).permutation(len(NAMES))
    mixed = Details(
        other.names[order],
        other.defects[order],
        other.scores[order],
        PixelCounts(other.pixels.good[order], other.pixels.bad[order]),
    )
    straight, shuffled = (head_to_head({("tile", "a"): one}, {("tile", "b"): b}, resamples=200) for b in (other, mixed))
    assert straight == shuffled


def test_detectors_of_one_file_are_told_by_name() -> None:
    both = {("tile", "sdc"): details(2, 1), ("tile", "mae"): details(1, 2)}
    found = head_to_head(both, both, "mae", "sdc", resamples=100)
    assert found.duels[0].difference.value < 0
    with pytest.raises(MasklineError, match="--detector is missing: the details are of sdc, mae; name one of them"):
        head_to_head(both, both)
    with pytest.raises(MasklineError, match="--against is missing: the details are of sdc, mae"):
        head_to_head(both, both, "mae")
    with pytest.raises(MasklineError, match="--detector yolo: the details are of sdc, mae"):
        head_to_head(both, both, "yolo", "sdc")


def test_images_that_differ_are_refused() -> None:
    ours, theirs = details(1, 1), details(1, 2)
    other = replace(theirs, names=np.char.add(theirs.names, "x"))
    with pytest.raises(MasklineError, match="tile: 46 and 46 test images, which are not the same"):
        head_to_head({("tile", "a"): ours}, {("tile", "b"): other})
    with pytest.raises(MasklineError, match="a has the categories tile, b has wood: none in common"):
        head_to_head({("tile", "a"): ours}, {("wood", "b"): theirs})


def test_few_defects_are_said_so() -> None:
    few = np.array([True] * 30 + [True] * 3 + [False] * 13)

    def some(found: Details) -> Details:
        counts = PixelCounts(found.pixels.good[few], found.pixels.bad[few])
        return Details(found.names[few], found.defects[few], found.scores[few], counts)

    found = head_to_head({("tile", "a"): some(details(1, 1))}, {("tile", "b"): some(details(1, 2))}, resamples=100)
    assert [d.category for d in found.duels] == ["tile", "tile"]
    tables = found.tables()
    assert [table.title for table in tables] == ["image AUROC", "pixel AUROC"]
    assert list(tables[0].columns[1].cells) == ["3*"]
