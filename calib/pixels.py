"""Pixels of test images on one footing, counted per image, so that areas under curves can be had of any choice of them.

Anomaly maps and masks of every size are brought to 256 x 256 pixels: each image counts the same, however large it is,
and figures can be held against those of detectors that only know such maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.metrics import aupro_of_counts, auroc_of_counts
from edge.tiling import resize

__all__ = ["BINS", "SIDE_PX", "Map", "Mask", "PixelCounts", "aupro", "count_pixels", "standard_map", "standard_mask"]

SIDE_PX = 256
BINS = 4096
"""Bins of equally many good pixels; a value that fills more than two alone, as 0 may, has one of its own. What lies in
one bin counts as equal, which moves the area under the ROC curve by at most half of the bin's share of the good pixels:
by 1 / 8192 where no value comes twice."""
_SORTED_AT_MOST = 1 << 24

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


def standard_map(anomaly_map: Map) -> Map:
    """A map float32 [H, W] at SIDE_PX x SIDE_PX: averaged where it shrinks both ways, else interpolated."""
    return resize(anomaly_map[..., None], np.empty((SIDE_PX, SIDE_PX, 1), np.float32))[..., 0]


def standard_mask(mask: Mask) -> Mask:
    """A mask bool [H, W] at SIDE_PX x SIDE_PX: each pixel from the one it falls on.

    A region (8-connected) that would fall between the pixels of a smaller mask keeps one, in its middle: a tiny defect
    of a large picture must stay in the figures.
    """
    height, width = mask.shape
    rows, columns = np.arange(SIDE_PX) * height // SIDE_PX, np.arange(SIDE_PX) * width // SIDE_PX
    count, labels, _, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = labels[np.ix_(rows, columns)]
    standard = small > 0
    for lost in np.setdiff1d(np.arange(1, count), small):
        x, y = centres[lost]
        standard[int((y + 0.5) * SIDE_PX / height), int((x + 0.5) * SIDE_PX / width)] = True
    return standard


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels of each image have a map value in each bin: all 0 for an image whose truth is unknown."""

    good: NDArray[np.uint32]
    """[N, B]: pixels outside of masks."""
    bad: NDArray[np.uint32]
    """[N, B]: pixels inside."""

    def auroc(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Area under the pixels' ROC curve where image i counts weights[..., i] times: [..., N] to [...]."""
        return auroc_of_counts(weights @ self.good.astype(np.float64), weights @ self.bad.astype(np.float64))


def count_pixels(maps: Sequence[Map], masks: Sequence[Mask | None]) -> tuple[PixelCounts, NDArray[np.float32]]:
    """Count the values of `maps` [SIDE_PX, SIDE_PX] of N images in BINS bins with equally many good pixels each.

    `masks`: what is defective; None where that is unknown. Second comes what `aupro` takes, float32 [N, BINS].
    """
    edges = _edges(maps, masks)
    good, bad = (np.zeros((len(maps), BINS), np.uint32) for _ in range(2))
    overlap = np.zeros((len(maps), BINS), np.float32)
    for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        if mask is None:
            continue
        bins = np.searchsorted(edges, anomaly_map, side="right")
        good[i] = np.bincount(bins[~mask], minlength=BINS)
        bad[i] = np.bincount(bins[mask], minlength=BINS)
        labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1][mask]
        share = 1 / np.maximum(np.bincount(labels), 1)
        overlap[i] = np.bincount(bins[mask], weights=share[labels], minlength=BINS)
    return PixelCounts(good, bad), overlap


def aupro(counts: PixelCounts, overlap: NDArray[np.float32], chosen: NDArray[np.bool_], limit: float) -> float:
    """`aupro_of_counts` over the `chosen` images [N]."""
    return aupro_of_counts(counts.good[chosen].sum(0), overlap[chosen].sum(0, np.float64), limit)


def _edges(maps: Sequence[Map], masks: Sequence[Mask | None]) -> NDArray[np.float32]:
    """At most BINS - 1 ascending map values that part the good pixels into equal shares."""
    known = [(m, ~mask) for m, mask in zip(maps, masks, strict=True) if mask is not None]
    step = 1 + sum(m.size for m, _ in known) // _SORTED_AT_MOST
    values = np.sort(np.concatenate([np.zeros(0, np.float32), *(m[good][::step] for m, good in known)]))
    if not len(values):
        return values
    edges, times = np.unique(values[np.arange(1, BINS) * len(values) // BINS], return_counts=True)
    return np.union1d(edges, np.nextafter(edges[times > 1], np.float32(np.inf)))
