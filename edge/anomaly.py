"""From a tile and its reconstruction to an anomaly map: pure functions on arrays.

Kind `ssim_l1` is `ssim_weight * (1 - SSIM) / 2 + l1_weight * |tile - reconstruction|`, both averaged over the channels,
then opened. (1 - SSIM) / 2 and the absolute difference both lie in [0, 1], so the map lies in
[0, ssim_weight + l1_weight]. Comparing by SSIM and L1 together and removing specks by opening follow Dini & Rahtu,
"Detecting Anomalies in Textured Images Using Modified Transformer Masked Autoencoder"; the exact scaling is ours.

Kind `smoothed` is the absolute ("l1") or squared ("l2") difference, averaged over the channels and smoothed by a
Gaussian, as Bauer, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection", does; of squares the root
is taken, which changes no order and leaves the map on the scale of the pixels, in [0, 1]. "signed" (ours) smooths the
difference itself and takes the absolute value then: the noise of a surface averages out, a spot that is lighter or
darker than it should be does not.

Kind `direct` takes the map from the network, which answers with one plane more than a picture has: what is negative
there becomes 0, and a Gaussian smooths it, if wanted.

SSIM is that of Wang et al. 2004 with a uniform window, pinned to what scikit-image computes with
`structural_similarity(a, b, win_size=window, data_range=1.0, full=True)`: sample covariance (divided by n - 1),
K1 = 0.01, K2 = 0.03, and pixels mirrored at the border with the edge repeated (dcba|abcd|dcba).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.bundle import DirectMap, ErrorMap, SmoothedMap, SsimL1Map

__all__ = ["ErrorMapper", "Map", "NotFiniteError", "error_map", "opening", "ssim_map"]

Map = NDArray[np.float32]

_C1 = 0.01**2
_C2 = 0.03**2
_LOWEST = float(np.finfo(np.float32).min)


class NotFiniteError(ValueError):
    """A reconstruction, or its map, holds NaN or infinity. It must never become a score: every comparison with NaN
    is false."""


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


class _Comparison(Protocol):
    """One kind of error map, in buffers made once."""

    def compare(self, tile: NDArray[np.uint8], reconstruction: Map, out: Map) -> None:
        """Fill `out` [h, w] with the error of `reconstruction` float32 [h, w, C] against `tile` uint8 [h, w, C]; where
        the network answers with a map, it is plane C of `reconstruction`."""

    def clean(self, error: Map, out: Map) -> None:
        """What follows once ignored pixels are 0: fill `out` with `error` opened or smoothed."""


class _SsimL1:
    def __init__(self, spec: SsimL1Map, height: int, width: int) -> None:
        self._spec = spec
        self._ssim = _Ssim(height, width, spec.ssim_window)
        (self._plane,) = _aligned_planes(1, height, width)

    def compare(self, tile: NDArray[np.uint8], reconstruction: Map, out: Map) -> None:
        plane, ssim, channels = self._plane, self._ssim, tile.shape[2]
        half, l1 = 0.5 * self._spec.ssim_weight / channels, self._spec.l1_weight / channels
        for channel in range(channels):
            np.copyto(plane, tile[..., channel])
            plane *= np.float32(1 / 255)
            offset = _offset(plane)
            np.subtract(plane, reconstruction[..., channel], out=ssim.difference)
            np.add(plane, reconstruction[..., channel], out=ssim.sum)
            ssim.sum -= np.float32(2 * offset)
            ssim.fill(offset, plane)
            np.abs(ssim.difference, out=ssim.difference)
            weighted = out if channel == 0 else plane
            cv2.addWeighted(plane, -half, ssim.difference, l1, half, dst=weighted)
            if channel > 0:
                out += plane

    def clean(self, error: Map, out: Map) -> None:
        opening(error, self._spec.opening_px, out)


class _Smoothed:
    def __init__(self, spec: SmoothedMap, height: int, width: int) -> None:
        self._spec = spec
        (self._plane,) = _aligned_planes(1, height, width)

    def compare(self, tile: NDArray[np.uint8], reconstruction: Map, out: Map) -> None:
        plane, channels = self._plane, tile.shape[2]
        out.fill(0)
        for channel in range(channels):
            np.copyto(plane, tile[..., channel])
            plane *= np.float32(1 / 255)
            plane -= reconstruction[..., channel]
            if self._spec.norm == "l1":
                np.abs(plane, out=plane)
            elif self._spec.norm == "l2":
                plane *= plane
            out += plane
        out *= np.float32(1 / channels)

    def clean(self, error: Map, out: Map) -> None:
        sigma = self._spec.sigma_px
        cv2.GaussianBlur(error, (0, 0), sigma, dst=out, borderType=cv2.BORDER_REFLECT)
        if self._spec.norm == "l2":
            np.sqrt(out, out=out)
        elif self._spec.norm == "signed":
            np.abs(out, out=out)


class _Direct:
    def __init__(self, spec: DirectMap) -> None:
        self._sigma = spec.sigma_px

    def compare(self, tile: NDArray[np.uint8], reconstruction: Map, out: Map) -> None:
        np.maximum(reconstruction[..., tile.shape[2]], 0, out=out)

    def clean(self, error: Map, out: Map) -> None:
        if self._sigma == 0:
            np.copyto(out, error)
        else:
            cv2.GaussianBlur(error, (0, 0), self._sigma, dst=out, borderType=cv2.BORDER_REFLECT)


def _comparison(spec: ErrorMap, height: int, width: int) -> _Comparison:
    if isinstance(spec, SsimL1Map):
        return _SsimL1(spec, height, width)
    return _Smoothed(spec, height, width) if isinstance(spec, SmoothedMap) else _Direct(spec)


class ErrorMapper:
    """Fills error maps for tiles of one shape, one by one in buffers that stay in the cache. Belongs to one thread."""

    def __init__(self, spec: ErrorMap, tile_shape: tuple[int, int, int]) -> None:
        height, width, _ = tile_shape
        self._comparison = _comparison(spec, height, width)
        (self._error,) = _aligned_planes(1, height, width)

    def fill(
        self,
        tiles: NDArray[np.uint8],
        reconstruction: NDArray[np.float32],
        out: Map,
        ignore: NDArray[np.bool_] | None = None,
    ) -> Map:
        """Maps of `tiles` uint8 [N, h, w, C] and `reconstruction`, what the network answered, into `out` [N, h, w].

        `reconstruction` float32 [N, h, w, C] in [0, 1], and for kind `direct` the map as plane C behind it.
        `ignore` bool [N, h, w]: pixels not to be judged, 0 in the map (before it is opened or smoothed, so that they
        feed nothing into their neighbours). Raises NotFiniteError, naming the tile, when the reconstruction is no
        picture.
        """
        for i, repainted in enumerate(reconstruction):
            if not math.isfinite(sum(cv2.sumElems(repainted))):
                raise NotFiniteError(f"the reconstruction of tile {i} holds NaN or infinity")
            self._comparison.compare(tiles[i], repainted, self._error)
            if not math.isfinite(cv2.sumElems(self._error)[0]):  # squares of 1e20 are no float32, and inf / inf is NaN
                raise NotFiniteError(f"the error of tile {i} is not finite: its reconstruction is far beyond [0, 1]")
            if ignore is not None:
                self._error[ignore[i]] = 0
            self._comparison.clean(self._error, out[i])
            if ignore is not None:
                out[i][ignore[i]] = 0
        return out


def error_map(tiles: NDArray[np.uint8], reconstruction: NDArray[np.float32], spec: ErrorMap) -> Map:
    """`ErrorMapper.fill` for once: allocates its buffers and the result, float32 [N, h, w]."""
    mapper = ErrorMapper(spec, (tiles.shape[1], tiles.shape[2], tiles.shape[3]))
    return mapper.fill(tiles, reconstruction, np.empty(tiles.shape[:3], np.float32))
