"""Whether an engine says what the CPU says: the reference is the same bundle in float32 through OpenVINO.

Decisions are compared at thresholds that the reference sets on the good tiles, and with both alike: what is asked is
whether the engine may take the reference's place, not whether it could be calibrated as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.anomaly import NotFiniteError, error_map
from edge.errors import EngineError, StaleEngineError
from edge.scores import score
from engines.backends import Backend, open_backend
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import Verification
from engines.bundle import Bundle, Manifest

__all__ = [
    "TOLERANCES",
    "Samples",
    "ServesBuilt",
    "Tolerance",
    "answers",
    "compare",
    "reference",
    "require_passed",
    "require_verified",
    "verify",
]


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


class ServesBuilt(Backend, Protocol):
    """A backend whose engines lie in a cache."""

    @property
    def cache(self) -> EngineCache:
        """Where."""

    @property
    def stored(self) -> Stored | None:
        """The engine that `load` found there; None for a precision that needs none."""

    def close(self) -> None:
        """Gives back what `load` took."""


def verify(
    backend: ServesBuilt, bundle: Bundle, plan: str, precision: str, batch: int, samples: Samples
) -> Verification:
    """Loads a backend that takes engines which were not verified, compares it with the CPU in float32, and writes down
    beside the engine whether it may serve. Raises EngineError where there is none."""
    backend.load(bundle, plan, precision=precision, threads=0, batch=batch)
    try:
        backend.warm_up()
        found = answers(backend, bundle.manifest, samples.tiles)
    finally:
        backend.close()
    verification = compare(bundle.manifest, precision, samples, reference(bundle, plan, samples.tiles), found)
    if backend.stored is not None:
        backend.cache.set_verification(backend.stored, verification)
    return verification


def require_verified(stored: Stored, how: str) -> None:
    """Raises StaleEngineError, which says `how` to verify it, for an engine that never was, and EngineError for one
    that failed."""
    verification = stored.manifest.verification
    if verification is None:
        raise StaleEngineError(f"engine {stored.folder}: was never compared with the CPU's answers; run: {how}")
    if not verification.passed:
        raise EngineError(
            f"engine {stored.folder}: its answers differ too much from the CPU's (largest error "
            f"{verification.max_error:.3g}, {verification.agreement:.1%} of decisions equal); take another precision"
        )


def require_passed(found: Verification, what: str, precision: str) -> None:
    """Raises EngineError that names `what` failed and how far it is off."""
    if not found.passed:
        most = TOLERANCES[precision]
        raise EngineError(
            f"{what} differs too much from the CPU in float32: by {found.max_error:.3g} at most "
            f"({most.max_error:.3g} is allowed), {found.mean_error:.3g} in the mean ({most.mean_error:.3g}), with "
            f"{found.agreement:.1%} of the decisions equal ({most.agreement:.0%}); take another precision"
        )


def answers(backend: Backend, manifest: Manifest, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a loaded backend makes of `tiles`, float32 of `Manifest.answer_shape`; NaN where it left something out."""
    out = np.full(manifest.answer_shape(tiles.shape), np.nan, np.float32)
    backend.infer(tiles, out)
    return out


def reference(bundle: Bundle, plan: str, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the CPU makes of `tiles` in float32."""
    backend = open_backend("openvino")
    backend.load(bundle, plan, precision="f32", threads=0, batch=1)
    return answers(backend, bundle.manifest, tiles)


def compare(
    manifest: Manifest, precision: str, samples: Samples, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> Verification:
    """How far `found` is from `expected`, both float32 of `Manifest.answer_shape`; a map counts in parts of the largest
    value that it can have, and what is not finite as 1."""
    tolerance, tiles = TOLERANCES[precision], samples.tiles
    difference = np.abs(found - expected)
    difference[..., manifest.channels :] /= manifest.error_map.largest
    difference = np.where(np.isfinite(found), difference, np.float32(1))
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
