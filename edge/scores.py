"""From anomaly maps to a score and boxes: pure functions on arrays. The worst tile decides."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.anomaly import Map, NotFiniteError
from edge.tiling import Box, Place, PreparePlan, Tiling, boxes_to_frame
from engines.bundle import Score

__all__ = ["SPECK_PX", "ViewScore", "boxes", "fuse", "score", "view_boxes", "view_defects", "view_score"]

MAX_BOXES = 32
"""At most so many boxes are reported per map or view, the largest ones: a covered lens has thousands."""
SPECK_PX = 9
"""Smaller areas of a view are in no box: a few pixels of every good part lie above the map's threshold too."""


def score(tile_map: Map, spec: Score, threshold: float | None = None, ignore: NDArray[np.bool_] | None = None) -> float:
    """One number for one map [h, w]: larger is worse.

    "mean": over the judged pixels; "max"; "topk": mean of the `k` largest pixels; "area": pixels of the largest
    8-connected area above `threshold`, which only this kind needs. A map without judged pixels scores 0. NaN
    in it is the score, or raises NotFiniteError.
    """
    if spec.kind == "max":
        return float(tile_map.max())
    if spec.kind == "mean":
        judged = tile_map.size if ignore is None else tile_map.size - int(np.count_nonzero(ignore))
        return float(cv2.sumElems(tile_map)[0]) / judged if judged else 0.0
    if spec.kind == "topk":
        k = min(spec.k, tile_map.size)
        largest = np.partition(tile_map, -k, axis=None)[-k:]
        largest.sort()  # the order of a sum decides its last bits, and partition promises no order
        return float(largest.mean(dtype=np.float64))
    if threshold is None:
        raise ValueError("a score of kind 'area' needs the map's threshold")
    return float(_components(tile_map, threshold)[:, cv2.CC_STAT_AREA].max(initial=0))


def _joined_areas(maps: Map, threshold: float, tiling: Tiling) -> NDArray[np.float64]:
    """[N]: the pixels of the largest area of the fused maps that reaches into each tile, 0 where none does."""
    if not _peak(maps) > threshold:
        return np.zeros(len(maps))
    above = fuse(maps, tiling) > threshold
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    areas, inside = stats[:, cv2.CC_STAT_AREA], [(box.rows, box.columns) for box in tiling.boxes]
    return np.array([areas[labels[i][above[i]]].max(initial=0) for i in inside], np.float64)


def _peak(values: Map) -> float:
    """The largest value. Raises NotFiniteError for NaN, which is above no threshold."""
    peak = float(values.max())
    if np.isnan(peak):
        raise NotFiniteError("the map holds NaN")
    return peak


def _components(picture: Map, threshold: float) -> NDArray[np.int32]:
    """cv2's statistics, int32 [n, 5], of the 8-connected areas above `threshold`, without the background."""
    if not _peak(picture) > threshold:
        return np.empty((0, 5), np.int32)
    above = (picture > threshold).view(np.uint8)
    stats = cv2.connectedComponentsWithStats(above, connectivity=8, ltype=cv2.CV_32S)[2]
    return np.asarray(stats[1:], np.int32)


def boxes(picture: Map, threshold: float, min_area_px: int = 1) -> list[Box]:
    """Boxes around the areas of a map [h, w] above `threshold` with at least `min_area_px` pixels, largest area first.

    At most MAX_BOXES.
    """
    return [box for box, _ in _defects(picture, threshold, min_area_px)]


def _defects(picture: Map, threshold: float, min_area_px: int) -> list[tuple[Box, int]]:
    """`boxes`, and the area of what is in each, in pixels of the map."""
    stats = _components(picture, threshold)
    stats = stats[stats[:, cv2.CC_STAT_AREA] >= min_area_px]
    order = np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable")[:MAX_BOXES]
    return [(Box(*(int(v) for v in stats[i, :4])), int(stats[i, cv2.CC_STAT_AREA])) for i in order]


def view_boxes(maps: Map, threshold: float, plan: PreparePlan, min_area_px: int = SPECK_PX) -> list[Box]:
    """`boxes` of the maps [N, tile, tile] of one frame, in frame pixels: areas that cross tile borders are joined.

    Where tiles overlap the larger value counts. Areas under `min_area_px` (prepared pixels) are left out. Allocates one
    picture, and only when something is above the threshold.
    """
    return [box for box, _ in view_defects(maps, threshold, plan, min_area_px)]


def view_defects(
    maps: Map, threshold: float, plan: PreparePlan, min_area_px: int = SPECK_PX, place: Place | None = None
) -> list[tuple[Box, float]]:
    """`view_boxes`, and the area of the defect in each, in frame pixels. `place`: how the part lay."""
    peaks = maps.max(axis=(1, 2))
    if not float(peaks.max()) > threshold:
        return []
    found = _defects(fuse(maps, plan.tiling), threshold, min_area_px)
    areas_px = [area / (plan.scale_x * plan.scale_y) for _, area in found]
    return list(zip(boxes_to_frame([box for box, _ in found], plan, place), areas_px, strict=True))


def fuse(maps: Map, tiling: Tiling) -> Map:
    """The maps [N, tile, tile] of one frame as one, float32 [H, W] of the prepared picture: the larger value counts."""
    fused = np.zeros((tiling.height, tiling.width), np.float32)
    for tile, box in zip(maps, tiling.boxes, strict=True):
        part = fused[box.rows, box.columns]
        np.maximum(part, tile, out=part)
    return fused


@dataclass(frozen=True)
class ViewScore:
    """What one frame comes to: the worst tile decides."""

    score: float
    tile: int
    """Index of the tile that has the score, the first where several do."""
    tile_scores: NDArray[np.float64] = field(repr=False, compare=False)
    """[N]; 0 for tiles that the ignore mask covers. Areas that were joined count in every tile they reach into."""


def view_score(
    maps: Map,
    spec: Score,
    threshold: float | None = None,
    ignore: NDArray[np.bool_] | None = None,
    joined: Tiling | None = None,
) -> ViewScore:
    """Score the maps [N, h, w] of one frame; the view's score is the largest of its tiles'.

    Each tile is scored alone, before any fusion. `joined`, how the tiles lie, has an area that crosses their borders
    count whole, as `view_defects` measures it; other kinds of score are as they are without it. Raises NotFiniteError
    rather than return a score that compares as good.
    """
    if joined is not None and spec.kind == "area" and threshold is not None:
        scores = _joined_areas(maps, threshold, joined)
    else:
        each = (score(m, spec, threshold, None if ignore is None else ignore[i]) for i, m in enumerate(maps))
        scores = np.fromiter(each, np.float64, len(maps))
    if not np.isfinite(scores).all():
        raise NotFiniteError(f"the score of tile {int(np.argmin(np.isfinite(scores)))} is not finite")
    worst = int(np.argmax(scores))
    return ViewScore(float(scores[worst]), worst, scores)
