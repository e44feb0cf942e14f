"""From a tile and its reconstruction to an anomaly map, a score and boxes: pure functions on arrays.

The map of a tile is `ssim_weight * (1 - SSIM) / 2 + l1_weight * |tile - reconstruction|`, both averaged over the
channels, then opened. (1 - SSIM) / 2 and the absolute difference both lie in [0, 1], so the map lies in
[0, ssim_weight + l1_weight]. Comparing by SSIM and L1 together and removing specks by opening follow Dini & Rahtu,
"Detecting Anomalies in Textured Images Using Modified Transformer Masked Autoencoder"; the exact scaling is ours.

SSIM is that of Wang et al. 2004 with a uniform window, pinned to what scikit-image computes with
`structural_similarity(a, b, win_size=window, data_range=1.0, full=True)`: sample covariance (divided by n - 1),
K1 = 0.01, K2 = 0.03, and pixels mirrored at the border with the edge repeated (dcba|abcd|dcba).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.tiling import Box, PreparePlan, boxes_to_frame

__all__ = [
    "SPECK_PX",
    "ErrorMapSpec",
    "ErrorMapper",
    "NotFiniteError",
    "ScoreSpec",
    "ViewScore",
    "boxes",
    "error_map",
    "opening",
    "score",
    "ssim_map",
    "view_boxes",
    "view_score",
]

Map = NDArray[np.float32]

_C1 = 0.01**2
_C2 = 0.03**2
_LOWEST = float(np.finfo(np.float32).min)
MAX_BOXES = 32
"""At most so many boxes are reported per map or view, the largest ones: a covered lens has thousands."""
SPECK_PX = 9
"""Smaller areas of a view are in no box: a few pixels of every good part lie above the map's threshold too."""


class NotFiniteError(ValueError):
    """A reconstruction holds NaN or infinity. It must never become a score: every comparison with NaN is false."""


class ErrorMapSpec(Protocol):
    """What a bundle's manifest says of its error map."""

    @property
    def ssim_window(self) -> int: ...
    @property
    def ssim_weight(self) -> float: ...
    @property
    def l1_weight(self) -> float: ...
    @property
    def opening_px(self) -> int: ...


class ScoreSpec(Protocol):
    """What a bundle's manifest says of its score: "mean", "max", "topk" (mean of the k largest) or "area"."""

    @property
    def kind(self) -> str: ...
    @property
    def k(self) -> int: ...
    @property
    def map_quantile(self) -> float: ...


def _aligned_planes(count: int, height: int, width: int) -> list[Map]:
    """Planes [height, width] that start on cache lines: numpy's own start 16 bytes after one, at half the speed."""
    line = 16  # float32 values in 64 bytes
    stride = -(-height * width // line) * line
    block = np.empty(count * stride + line, np.float32)
    first = -block.ctypes.data % 64 // 4
    starts = range(first, first + count * stride, stride)
    return [block[start : start + height * width].reshape(height, width) for start in starts]


def _offset(plane: NDArray[Any]) -> float:
    """The middle between darkest and brightest pixel: what is left after taking it off is as small as can be."""
    low, high, _, _ = cv2.minMaxLoc(plane)
    return (low + high) / 2


class _Ssim:
    """SSIM of one plane [h, w] at a time, in buffers made once.

    Works on the sum s = a + b - 2c and the difference d = a - b, which needs four local means instead of five:
    with S, D their local means and Vs, Vd their local variances, 2 ua ub = (S^2 - D^2) / 2, ua^2 + ub^2 =
    (S^2 + D^2) / 2, and the same for covariance and variances. The offset c, the middle of a's values, goes off first:
    E[x^2] - E[x]^2 in float32 is useless on bright flat pictures without it.
    """

    def __init__(self, height: int, width: int, window: int) -> None:
        if window % 2 == 0 or not 3 <= window <= min(height, width):
            raise ValueError(f"SSIM window is {window} px, expected an odd number from 3 to {min(height, width)}")
        self._kernel = np.full(window, 1 / window, np.float32)
        n = window * window
        self._k1 = np.float32(2 * _C1)
        self._k2 = np.float32(2 * _C2 * (n - 1) / n)  # the sample covariance's n / (n - 1), moved to the constant
        planes = _aligned_planes(7, height, width)
        self.sum, self.difference, self._square, self._ms, self._md, self._vs, self._vd = planes

    def _mean(self, plane: Map, out: Map) -> None:
        # A third faster than cv2.boxFilter, which adds up in float64; the offset keeps float32 exact enough.
        cv2.sepFilter2D(plane, cv2.CV_32F, self._kernel, self._kernel, dst=out, borderType=cv2.BORDER_REFLECT)

    def fill(self, offset: float, out: Map) -> None:
        """SSIM into `out` from `sum` (less twice `offset`) and `difference`, which are left as they are."""
        ms, md, vs, vd, square = self._ms, self._md, self._vs, self._vd, self._square
        self._mean(self.sum, ms)
        self._mean(self.difference, md)
        self._mean(np.multiply(self.sum, self.sum, out=square), vs)
        self._mean(np.multiply(self.difference, self.difference, out=square), vd)
        vs -= np.multiply(ms, ms, out=square)
        vs += self._k2
        md *= md
        vd -= md
        ms += np.float32(2 * offset)
        ms *= ms
        ms += self._k1
        np.subtract(ms, md, out=out)  # 4 ua ub + 2 C1
        ms += md  # 2 (ua^2 + ub^2) + 2 C1
        np.subtract(vs, vd, out=square)  # 4 cov + 2 C2
        vs += vd  # 2 (va + vb) + 2 C2
        out *= square
        ms *= vs
        out /= ms


def ssim_map(a: NDArray[Any], b: NDArray[Any], window: int) -> Map:
    """SSIM per pixel of pictures `a`, `b` [h, w] or [h, w, C], floating, in [0, 1]; the mean over channels, [h, w].

    Equal to scikit-image's to 1e-4 (see the module's text for what is pinned), in [-1, 1].
    """
    planes_a, planes_b = a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1)
    ssim = _Ssim(a.shape[0], a.shape[1], window)
    total, plane = np.zeros(a.shape[:2], np.float32), np.empty(a.shape[:2], np.float32)
    for channel in range(planes_a.shape[2]):
        x, y = planes_a[..., channel], planes_b[..., channel]
        offset = _offset(np.ascontiguousarray(x))
        np.subtract(x, np.float32(offset), out=ssim.sum, casting="same_kind")
        ssim.sum += y - np.float32(offset)
        np.subtract(x, y, out=ssim.difference, casting="same_kind")
        ssim.fill(offset, plane)
        total += plane
    total /= np.float32(planes_a.shape[2])
    return total


def opening(source: Map, size: int, out: Map | None = None) -> Map:
    """Morphological opening of `source` [h, w] with a square of `size` px (0 or 1 does nothing): thin brights vanish.

    Each pixel gets the largest minimum of all squares inside the map that contain it. The dilation uses the mirrored
    square, as an opening must: what survives stays where it was, also where `size` is even (cv2.morphologyEx moves it
    by a pixel, and lets squares reach out of the map on one side only). Never larger than `source`.
    """
    if out is None:
        out = np.empty_like(source)
    if size <= 1:
        np.copyto(out, source)
        return out
    kernel = np.ones((size, size), np.uint8)
    anchor = (size - 1) // 2
    eroded = cv2.erode(
        source, kernel, dst=out, anchor=(anchor, anchor), borderType=cv2.BORDER_CONSTANT, borderValue=_LOWEST
    )
    mirrored = size - 1 - anchor
    cv2.dilate(eroded, kernel, dst=out, anchor=(mirrored, mirrored))
    return out


class ErrorMapper:
    """Fills error maps for tiles of one shape, one by one in buffers that stay in the cache. Belongs to one thread."""

    def __init__(self, spec: ErrorMapSpec, tile_shape: tuple[int, int, int]) -> None:
        height, width, _ = tile_shape
        self.spec = spec
        self.tile_shape = tile_shape
        self._ssim = _Ssim(height, width, spec.ssim_window)
        self._plane, self._error = _aligned_planes(2, height, width)

    def fill(
        self,
        tiles: NDArray[np.uint8],
        reconstruction: NDArray[np.float32],
        out: Map,
        ignore: NDArray[np.bool_] | None = None,
    ) -> Map:
        """Maps of `tiles` uint8 [N, h, w, C] and `reconstruction` float32 [N, h, w, C] in [0, 1], into `out` [N, h, w].

        `ignore` bool [N, h, w]: pixels not to be judged, 0 in the map (before the opening, so that they feed nothing
        into their neighbours). Raises NotFiniteError, naming the tile, when the reconstruction is no picture.
        """
        for i in range(len(tiles)):
            self._fill_tile(tiles[i], reconstruction[i], i)
            if ignore is not None:
                self._error[ignore[i]] = 0
            opening(self._error, self.spec.opening_px, out[i])
        return out

    def _fill_tile(self, tile: NDArray[np.uint8], reconstruction: Map, index: int) -> None:
        error, plane, ssim = self._error, self._plane, self._ssim
        if not math.isfinite(sum(cv2.sumElems(reconstruction))):
            raise NotFiniteError(f"the reconstruction of tile {index} holds NaN or infinity")
        channels = tile.shape[2]
        for channel in range(channels):
            np.copyto(plane, tile[..., channel])
            plane *= np.float32(1 / 255)
            offset = _offset(plane)
            np.subtract(plane, reconstruction[..., channel], out=ssim.difference)
            np.add(plane, reconstruction[..., channel], out=ssim.sum)
            ssim.sum -= np.float32(2 * offset)
            ssim.fill(offset, plane)
            np.abs(ssim.difference, out=ssim.difference)
            half, l1 = 0.5 * self.spec.ssim_weight / channels, self.spec.l1_weight / channels
            weighted = error if channel == 0 else plane
            cv2.addWeighted(plane, -half, ssim.difference, l1, half, dst=weighted)
            if channel > 0:
                error += plane


def error_map(tiles: NDArray[np.uint8], reconstruction: NDArray[np.float32], spec: ErrorMapSpec) -> Map:
    """`ErrorMapper.fill` for once: allocates its buffers and the result, float32 [N, h, w]."""
    mapper = ErrorMapper(spec, (tiles.shape[1], tiles.shape[2], tiles.shape[3]))
    return mapper.fill(tiles, reconstruction, np.empty(tiles.shape[:3], np.float32))


def score(
    tile_map: Map, spec: ScoreSpec, threshold: float | None = None, ignore: NDArray[np.bool_] | None = None
) -> float:
    """One number for one map [h, w]: larger is worse.

    "mean": over the judged pixels; "max"; "topk": mean of the `k` largest pixels; "area": pixels of the largest
    8-connected area above `threshold`, which only this kind needs. A map without judged pixels scores 0.
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
    if spec.kind == "area":
        if threshold is None:
            raise ValueError("a score of kind 'area' needs the map's threshold")
        areas = _components(tile_map, threshold)[:, cv2.CC_STAT_AREA]
        return float(areas.max(initial=0))
    raise ValueError(f"score kind is {spec.kind!r}, expected 'mean', 'max', 'topk' or 'area'")


def _components(picture: Map, threshold: float) -> NDArray[np.int32]:
    """cv2's statistics, int32 [n, 5], of the 8-connected areas above `threshold`, without the background."""
    if not float(picture.max()) > threshold:
        return np.empty((0, 5), np.int32)
    above = (picture > threshold).view(np.uint8)
    stats = cv2.connectedComponentsWithStats(above, connectivity=8, ltype=cv2.CV_32S)[2]
    return np.asarray(stats[1:], np.int32)


def boxes(picture: Map, threshold: float, min_area_px: int = 1) -> list[Box]:
    """Boxes around the areas of a map [h, w] above `threshold` with at least `min_area_px` pixels, largest area first.

    At most MAX_BOXES.
    """
    stats = _components(picture, threshold)
    stats = stats[stats[:, cv2.CC_STAT_AREA] >= min_area_px]
    order = np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable")[:MAX_BOXES]
    return [Box(*(int(value) for value in stats[i, :4])) for i in order]


def view_boxes(maps: Map, threshold: float, plan: PreparePlan, min_area_px: int = SPECK_PX) -> list[Box]:
    """`boxes` of the maps [N, tile, tile] of one frame, in frame pixels: areas that cross tile borders are joined.

    Where tiles overlap the larger value counts. Areas under `min_area_px` (prepared pixels) are left out. Allocates one
    picture, and only when something is above the threshold.
    """
    peaks = maps.max(axis=(1, 2))
    if not float(peaks.max()) > threshold:
        return []
    fused = np.zeros((plan.tiling.height, plan.tiling.width), np.float32)
    for tile, box in zip(maps, plan.tiling.boxes, strict=True):
        part = fused[box.rows, box.columns]
        np.maximum(part, tile, out=part)
    return boxes_to_frame(boxes(fused, threshold, min_area_px), plan)


@dataclass(frozen=True)
class ViewScore:
    """What one frame comes to: the worst tile decides."""

    score: float
    tile: int
    """Index of the tile that has the score, the first where several do."""
    tile_scores: NDArray[np.float64] = field(repr=False, compare=False)
    """[N]; 0 for tiles that the ignore mask covers."""


def view_score(
    maps: Map, spec: ScoreSpec, threshold: float | None = None, ignore: NDArray[np.bool_] | None = None
) -> ViewScore:
    """Score the maps [N, h, w] of one frame. Scores are per tile, before any fusion; the view's is the largest.

    Raises NotFiniteError rather than return a score that compares as good.
    """
    scores = np.array(
        [score(maps[i], spec, threshold, None if ignore is None else ignore[i]) for i in range(len(maps))], np.float64
    )
    if not np.isfinite(scores).all():
        raise NotFiniteError(f"the score of tile {int(np.argmin(np.isfinite(scores)))} is not finite")
    worst = int(np.argmax(scores))
    return ViewScore(float(scores[worst]), worst, scores)
