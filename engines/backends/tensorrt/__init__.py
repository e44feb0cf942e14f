"""TensorRT on NVIDIA GPUs: `tensorrt` (JetPack 6.1 and later, data centre) or `tensorrt_rtx` (RTX desktops).

`maskline engine build` compiles a bundle for a GPU and keeps it in the cache, `maskline engine verify` compares its
answers with the CPU's; what is served here is an engine that passed. See docs/tensorrt.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError, RecipeError, StaleEngineError
from engines.backends import BackendInfo, require_network, require_plan
from engines.backends.cache import EngineCache
from engines.backends.manifest import EngineKey, command
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.device import CudaGpu, Gpu
from engines.backends.tensorrt.runner import Runner
from engines.backends.verify import require_verified
from engines.bundle import Bundle
from engines.precision import PRECISIONS

__all__ = ["TensorRtBackend"]

KEEP_WARM_AFTER_S = 0.25
"""Without work for so long a GPU starts to lower its clocks."""


class TensorRtBackend:
    """One engine from the cache, on one GPU, on one thread's behalf."""

    def __init__(
        self,
        cache: EngineCache | None = None,
        *,
        find: Callable[[], Api] = find_tensorrt,
        open_gpu: Callable[[Api], Gpu] = CudaGpu,
        verified_only: bool = True,
    ) -> None:
        self.cache, self._find, self._open_gpu = cache or EngineCache(), find, open_gpu
        self._verified_only = verified_only
        self._info: BackendInfo | None = None
        self._last_s = 0.0

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        """See `Backend`. Raises StaleEngineError, which says what to do, for an engine that is missing, stale, damaged
        or was never verified, and EngineError for one that was and failed, and without a GPU."""
        require_network(bundle, "tensorrt")
        require_plan(bundle, plan)
        if precision not in PRECISIONS:
            raise RecipeError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        api = self._find()
        self._gpu = self._open_gpu(api)
        about = self._gpu.info
        self.key = key = EngineKey.of(
            bundle, plan, precision, batch, flavour=api.flavour, version=api.version, gpu=(about.target, about.name)
        )
        try:
            self.stored = self.cache.find(key)
            engine = self.cache.read(self.stored)
        except EngineError as error:
            raise StaleEngineError(f"bundle {bundle.path}: {error}; run: {command('build', bundle, key)}") from error
        if self._verified_only:
            require_verified(self.stored, command("verify", bundle, key))
        kernels = self.cache.read_kernels(self.stored)
        self._runner = Runner(self._gpu, engine, key.tiles, kernels, answer=bundle.manifest.answer_shape(key.tiles))
        # The engine's hash belongs to the version: one that is built anew may round otherwise, and thresholds with it.
        version = f"{api.name}, engine {self.stored.manifest.engine_sha256[:16]}"
        self._info = BackendInfo("tensorrt", version, about.name, precision, about.target, plan)

    def warm_up(self) -> None:
        """See `Backend`; what was compiled on the device is kept for the next start."""
        self._runner.warm_up()
        self.cache.keep_kernels(self.stored, self._gpu.kernels())
        self._last_s = time.monotonic()

    def infer(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> int | None:
        """See `Backend`."""
        self._runner.infer(tiles, out)
        self._last_s = time.monotonic()
        return None

    def keep_warm(self) -> None:
        """See `Backend`."""
        if time.monotonic() - self._last_s >= KEEP_WARM_AFTER_S:
            self._runner.keep_warm()
            self._last_s = time.monotonic()

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        if self._info is None:
            raise RuntimeError("load the backend first")
        return self._info

    def close(self) -> None:
        """Frees the GPU's memory; otherwise the end of the process does."""
        self._gpu.close()
