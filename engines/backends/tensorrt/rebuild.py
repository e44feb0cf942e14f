"""What the builder of a line does with an engine that is missing, stale, damaged or was never verified."""

from __future__ import annotations

from collections.abc import Callable

from edge.errors import EngineError, StaleEngineError
from edge.samples import samples
from engines.backends.cache import EngineCache
from engines.backends.manifest import command
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.build import build_for
from engines.backends.tensorrt.device import CudaGpu, Gpu
from engines.backends.tensorrt.verify import verify
from engines.backends.verify import require_passed
from engines.bundle import Bundle

__all__ = ["rebuild"]

TILES = 48
"""Procedural ones, on which an engine is compared with the CPU: a line has no images of good parts at hand."""


def rebuild(
    bundle: Bundle,
    plan: str,
    precision: str,
    batch: int,
    *,
    cache: EngineCache | None = None,
    find: Callable[[], Api] = find_tensorrt,
    open_gpu: Callable[[Api], Gpu] = CudaGpu,
) -> None:
    """Builds the engine for this machine's GPU and verifies it, unless the one in the cache may serve.

    "int8" takes the ranges that an earlier engine of the same network was built with. Raises EngineError when it cannot
    be built or differs too much from the CPU.
    """
    cache = cache or EngineCache()
    backend = TensorRtBackend(cache, find=find, open_gpu=open_gpu)
    try:
        backend.load(bundle, plan, precision=precision, threads=0, batch=batch)
    except StaleEngineError:
        backend.close()
    else:
        backend.close()
        return
    if not cache.has(backend.key):
        if precision == "int8" and cache.ranges(backend.key) is None:
            how = command("build", bundle, backend.key)
            raise EngineError(f"bundle {bundle.path}: int8 takes its ranges from good parts; run: {how}")
        build_for(find(), cache, bundle, backend.key)
    chosen = samples(bundle.manifest, None, TILES)
    found = verify(bundle, plan, precision, batch, chosen, cache, find=find, open_gpu=open_gpu)
    require_passed(found, f"bundle {bundle.path}: {precision} of plan {plan} was built and", precision)
