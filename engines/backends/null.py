"""A backend that does nothing, for benches: the tile comes back as it is."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from engines.backends import BackendInfo, require_plan
from engines.bundle import Bundle, NullArchitecture

__all__ = ["NullBackend"]


class NullBackend:
    """Copies tiles / 255 after `delay_ms` per call (from the bundle, unless given)."""

    def __init__(self, delay_ms: float | None = None) -> None:
        self._delay_ms = delay_ms
        self._plan: str | None = None

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        """See `Backend`; only the delay is read from the bundle."""
        architecture = bundle.manifest.architecture
        if not isinstance(architecture, NullArchitecture):
            raise BundleError(
                f"bundle {bundle.path}: backend 'null' needs a bundle of kind 'null', not {architecture.kind!r}"
            )
        require_plan(bundle, plan)
        self._plan = plan
        if self._delay_ms is None:
            self._delay_ms = architecture.delay_ms

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def infer(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> int | None:
        """See `Backend`. The delay sleeps, as a wait for a device does."""
        np.multiply(tiles, np.float32(1 / 255), out=out)
        if self._delay_ms:
            time.sleep(self._delay_ms / 1000)
        return None

    def keep_warm(self) -> None:
        """See `Backend`; nothing cools down here."""

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        if self._plan is None:
            raise RuntimeError("load the backend first")
        return BackendInfo("null", "1", "none", "f32", "any", self._plan)
