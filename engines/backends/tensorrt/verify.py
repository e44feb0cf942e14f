"""Whether an engine says what the CPU says: the reference is the same bundle in float32 through OpenVINO.

Decisions are compared at thresholds that the reference sets on the good tiles, and with both alike: what is asked is
whether the engine may take the reference's place, not whether it could be calibrated as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.anomaly import NotFiniteError, error_map
from edge.scores import score
from engines.backends import Backend, open_backend
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.cache import EngineCache, Verification
from engines.backends.tensorrt.device import CudaGpu, Gpu
from engines.bundle import Bundle, Manifest

__all__ = ["TOLERANCES", "Samples", "Tolerance", "answers", "compare", "reference", "verify"]


class Tolerance(NamedTuple):
    """Of one precision, on the scale [0, 1]."""

    max_error: float
    mean_error: float
    agreement: float


TOLERANCES = {
    "f32": Tolerance(1e-3, 1e-4, 0.99),
    "f16": Tolerance(1e-2, 3e-4, 0.97),
    "bf16": Tolerance(1e-1, 4e-3, 0.95),
    "int8": Tolerance(1.5e-1, 7e-3, 0.93),
}
"""Several times what rounding does to the bundle that ships when a CPU runs the typed graphs (docs/tensorrt.md)."""
GOOD_BELOW = 0.9
"""Share of the good tiles under the threshold at which decisions are compared: it lies between two of them, for on one
of them rounding alone would decide."""


@dataclass(frozen=True)
class Samples:
    """Tiles to compare on: uint8 [N, h, w, C]; the first `good` of them show good parts, the others defects."""

    tiles: NDArray[np.uint8]
    good: int


def verify(
    bundle: Bundle,
    plan: str,
    precision: str,
    batch: int,
    samples: Samples,
    cache: EngineCache | None = None,
    *,
    find: Callable[[], Api] = find_tensorrt,
    open_gpu: Callable[[Api], Gpu] = CudaGpu,
) -> Verification:
    """Compares the engine of this machine's GPU with the CPU, and writes down beside it whether it may serve.

    Raises EngineError without a GPU or an engine for it.
    """
    cache = cache or EngineCache()
    backend = TensorRtBackend(cache, find=find, open_gpu=open_gpu, verified_only=False)
    backend.load(bundle, plan, precision=precision, threads=0, batch=batch)
    try:
        backend.warm_up()
        found = answers(backend, samples.tiles)
    finally:
        backend.close()
    verification = compare(bundle.manifest, precision, samples, reference(bundle, plan, samples.tiles), found)
    cache.set_verification(backend.stored, verification)
    return verification


def answers(backend: Backend, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a loaded backend repaints of `tiles`, float32 of their shape; NaN where it left something out."""
    out = np.full(tiles.shape, np.nan, np.float32)
    backend.infer(tiles, out)
    return out


def reference(bundle: Bundle, plan: str, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the CPU repaints of `tiles` in float32."""
    backend = open_backend("openvino")
    backend.load(bundle, plan, precision="f32", threads=0, batch=1)
    return answers(backend, tiles)


def compare(
    manifest: Manifest, precision: str, samples: Samples, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> Verification:
    """How far `found` is from `expected`, both float32 [N, h, w, C]; what is not finite counts as 1."""
    tolerance, tiles = TOLERANCES[precision], samples.tiles
    difference = np.where(np.isfinite(found), np.abs(found - expected), np.float32(1))
    largest, mean = float(difference.max()), float(difference.mean())
    agreement = _agreement(manifest, samples, expected, found)
    passed = largest <= tolerance.max_error and mean <= tolerance.mean_error and agreement >= tolerance.agreement
    return Verification(max_error=largest, mean_error=mean, agreement=agreement, tiles=len(tiles), passed=passed)


def _agreement(
    manifest: Manifest, samples: Samples, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> float:
    """Share of the tiles on which both decide the same; the reference's good tiles set the thresholds of both."""
    try:
        maps = [error_map(samples.tiles, repainted, manifest.error_map) for repainted in (expected, found)]
    except NotFiniteError:
        return 0.0
    map_threshold = float(np.quantile(maps[0][: samples.good], manifest.score.map_quantile))
    scores = [np.array([score(m, manifest.score, map_threshold) for m in each]) for each in maps]
    threshold = float(np.quantile(scores[0][: samples.good], GOOD_BELOW))
    same = (scores[0] > threshold) == (scores[1] > threshold)
    return float(same.mean())
