"""From anomaly maps to a score and boxes: pure functions on arrays. The worst tile decides."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.anomaly import Map, NotFiniteError
from edge.place.geometry import MAX_BOXES
from edge.tiling import Box, Place, PreparePlan, Tiling, boxes_to_frame
from edge.webs.carry import Carry
from engines.bundle import Score

__all__ = [
    "SPECK_PX",
    "ViewScore",
    "boxes",
    "fuse",
    "score",
    "view_boxes",
    "view_defects",
    "view_score",
    "worst_blocks",
]

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
    return float(_areas(tile_map, threshold).sizes.max()) if _peak(tile_map) > threshold else 0.0


@dataclass(frozen=True)
class _Areas:
    """The 8-connected areas of a picture [H, W] above a threshold."""

    labels: NDArray[np.int32]
    """[H, W]; 0: none."""
    boxes: NDArray[np.int32]
    """[n, 4], by label."""
    sizes: NDArray[np.float64]
    """[n]: pixels, 0 for label 0; on a web with those in earlier frames."""
    carry: Carry | None


def _areas(picture: Map, threshold: float, before: Carry | None = None) -> _Areas:
    """`before`: of a web, what the frame before has handed on."""
    above = picture > threshold
    if before is not None:
        before.lay_over(above)
    _, *found = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    labels, stats = np.asarray(found[0], np.int32), np.asarray(found[1], np.int32)
    sizes, carry = stats[:, cv2.CC_STAT_AREA].astype(np.float64), None
    sizes[0] = 0
    if before is not None:
        sizes, carry = before.add_to(above, labels, sizes)
    return _Areas(labels, stats[:, : cv2.CC_STAT_AREA], sizes, carry)


def _all_below(maps: Map, threshold: float, before: Carry | None) -> bool:
    return not _peak(maps) > threshold and (before is None or not before.above.any())


def _joined_areas(
    maps: Map, threshold: float, tiling: Tiling, before: Carry | None
) -> tuple[NDArray[np.float64], Carry | None]:
    """[N]: the pixels of the largest area of the fused maps that reaches into each tile, 0 where none does; and what is
    handed on."""
    if _all_below(maps, threshold, before):
        return np.zeros(len(maps)), before
    found = _areas(fuse(maps, tiling), threshold, before)
    inside = [found.labels[box.rows, box.columns] for box in tiling.boxes]
    return np.array([found.sizes[labels[labels > 0]].max(initial=0) for labels in inside]), found.carry


def worst_blocks(tile_map: Map, spec: Score, threshold: float, block_px: int, count: int) -> NDArray[np.int32]:
    """Numbers, ascending, of the `count` blocks of `block_px` pixels that say most about the score of a map [h, w].

    Blocks are numbered row by row; those at the far edges may be smaller. Where the score is an area, a block counts
    for the areas that reach into it, each pixel as much as the area is large; else for its largest value.
    """
    starts = [np.arange(0, side, block_px) for side in tile_map.shape]
    if spec.kind == "area":
        found = _areas(tile_map, threshold)
        weights = np.add.reduceat(np.add.reduceat(found.sizes[found.labels], starts[0], 0), starts[1], 1)
    else:
        weights = np.maximum.reduceat(np.maximum.reduceat(tile_map, starts[0], 0), starts[1], 1)
    return np.sort(np.argsort(-weights, axis=None, kind="stable")[:count]).astype(np.int32)


def _peak(values: Map) -> float:
    """The largest value. Raises NotFiniteError for NaN, which is above no threshold."""
    peak = float(values.max())
    if np.isnan(peak):
        raise NotFiniteError("the map holds NaN")
    return peak


def boxes(picture: Map, threshold: float, min_area_px: int = 1) -> list[Box]:
    """Boxes around the areas of a map [h, w] above `threshold` with at least `min_area_px` pixels, largest area first.

    At most MAX_BOXES.
    """
    return [box for box, _ in _defects(picture, threshold, min_area_px)] if _peak(picture) > threshold else []


def _defects(picture: Map, threshold: float, min_area_px: int, before: Carry | None = None) -> list[tuple[Box, float]]:
    """`boxes`, and the area of what is in each, in pixels of the map."""
    found = _areas(picture, threshold, before)
    order = np.argsort(-found.sizes, kind="stable")[:MAX_BOXES]
    shown = [i for i in order.tolist() if found.sizes[i] >= max(1, min_area_px)]
    return [(Box(*found.boxes[i].tolist()), float(found.sizes[i])) for i in shown]


def view_boxes(maps: Map, threshold: float, plan: PreparePlan, min_area_px: int = SPECK_PX) -> list[Box]:
    """`boxes` of the maps [N, tile, tile] of one frame, in frame pixels: areas that cross tile borders are joined.

    Where tiles overlap the larger value counts. Areas under `min_area_px` (prepared pixels) are left out. Allocates one
    picture, and only when something is above the threshold.
    """
    return [box for box, _ in view_defects(maps, threshold, plan, min_area_px)]


def view_defects(
    maps: Map,
    threshold: float,
    plan: PreparePlan,
    min_area_px: int = SPECK_PX,
    place: Place | None = None,
    before: Carry | None = None,
) -> list[tuple[Box, float]]:
    """`view_boxes`, and the area of the defect in each, in frame pixels. `place`: how the part lay. `before`: of a web,
    what the frame before has handed on: areas are with it, boxes are of what lies in this frame."""
    if _all_below(maps, threshold, before):
        return []
    found = _defects(fuse(maps, plan.tiling), threshold, min_area_px, before)
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
    carry: Carry | None = field(default=None, repr=False, compare=False)
    """Of a web whose areas are added up: what this frame hands on."""


def view_score(
    maps: Map,
    spec: Score,
    threshold: float | None = None,
    ignore: NDArray[np.bool_] | None = None,
    joined: Tiling | None = None,
    before: Carry | None = None,
) -> ViewScore:
    """Score the maps [N, h, w] of one frame; the view's score is the largest of its tiles'.

    Each tile is scored alone, before any fusion. `joined`, how the tiles lie, has an area that crosses their borders
    count whole, as `view_defects` measures it; so has `before`, what the frame before of a web has handed on, one that
    crosses theirs. Other kinds of score are as they are without them. Raises NotFiniteError rather than return a score
    that compares as good.
    """
    carry = before
    if joined is not None and spec.kind == "area" and threshold is not None:
        scores, carry = _joined_areas(maps, threshold, joined, before)
    else:
        each = (score(m, spec, threshold, None if ignore is None else ignore[i]) for i, m in enumerate(maps))
        scores = np.fromiter(each, np.float64, len(maps))
    if not np.isfinite(scores).all():
        raise NotFiniteError(f"the score of tile {int(np.argmin(np.isfinite(scores)))} is not finite")
    worst = int(np.argmax(scores))
    return ViewScore(float(scores[worst]), worst, scores, carry)
