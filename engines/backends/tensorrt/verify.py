"""Whether the engine of this machine's GPU says what the CPU says (`engines.backends.verify`)."""

from __future__ import annotations

from collections.abc import Callable

from engines.backends.cache import EngineCache
from engines.backends.manifest import Verification
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.device import CudaGpu, Gpu
from engines.backends.verify import Samples
from engines.backends.verify import verify as verify_any
from engines.bundle import Bundle

__all__ = ["verify"]


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
    """Compares it with the CPU, and writes down beside it whether it may serve. Raises EngineError without a GPU or an
    engine for it."""
    backend = TensorRtBackend(cache, find=find, open_gpu=open_gpu, verified_only=False)
    return verify_any(backend, bundle, plan, precision, batch, samples)
