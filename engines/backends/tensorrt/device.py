"""The GPU: everything that needs a driver is in the class here, and nothing else is.

`Gpu` is what the runner needs; `CudaGpu` does it with pycuda and TensorRT's runtime. It decides nothing: order,
buffers and events are the runner's, which is tested against a `Gpu` that is none.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError
from engines.backends.tensorrt.api import Api

__all__ = ["CudaGpu", "Event", "Gpu", "GpuInfo", "Tensor"]

Array = npt.NDArray[Any]
Event = Any
"""Made by `Gpu.event`; opaque."""


@dataclass(frozen=True)
class GpuInfo:
    """Which GPU."""

    name: str
    target: str
    """Compute capability, such as "sm86"."""
    driver: str
    """The newest CUDA version that the driver knows, such as "13.0"."""
    memory_mib: int


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_input: bool


class Gpu(Protocol):
    """One engine on one GPU, on one stream. Belongs to one thread.

    `copy_in`, `run`, `copy_out` and `record` only put work into the stream and return; the stream does it in that
    order. What was put in must not be touched before an event that was recorded after it has been waited for.
    """

    @property
    def info(self) -> GpuInfo:
        """Which GPU."""

    def load(self, engine: bytes, kernels: bytes = b"") -> tuple[Tensor, ...]:
        """Takes a serialised engine and the kernels of an earlier run; returns what goes in and out. May raise
        EngineError, as everything here may."""

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array in page-locked memory, which alone is copied asynchronously."""

    def device_buffer(self, nbytes: int) -> int:
        """The address of memory on the device."""

    def event(self) -> Event:
        """An event to record, again and again."""

    def copy_in(self, address: int, source: Array) -> None:
        """Copies a host array to the device."""

    def run(self, addresses: Mapping[str, int]) -> None:
        """Runs the engine with these buffers, by tensor name. Raises EngineError."""

    def copy_out(self, target: Array, address: int) -> None:
        """Copies from the device to a host array."""

    def record(self, event: Event) -> None:
        """Marks how far the stream has come when everything put in so far is done."""

    def wait(self, event: Event) -> None:
        """Sleeps until then. Raises EngineError when the device reports that something failed."""

    def kernels(self) -> bytes:
        """What was compiled on the device so far, for the next `load`; empty where nothing is."""

    def free_mib(self) -> float:
        """Memory of the device that nobody holds."""

    def close(self) -> None:
        """Frees everything; arrays from `host_array` are gone with it."""


class CudaGpu:
    """`Gpu` on an NVIDIA GPU. Everything is freed by `close`, at the latest when Python ends.

    Raises EngineError without pycuda, driver or device.
    """

    def __init__(self, api: Api, ordinal: int = 0) -> None:
        self._api = api
        self._cuda, device, _ = _current_device(ordinal)
        major, minor = device.compute_capability()
        driver = self._cuda.get_driver_version()
        self._info = GpuInfo(
            name=device.name(),
            target=f"sm{major}{minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
            memory_mib=device.total_memory() >> 20,
        )
        self._stream = self._cuda.Stream()
        self._hosts: list[Array] = []
        self._buffers: list[Any] = []
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._config: Any = None
        self._compiled: Any = None
        atexit.register(self.close)

    @property
    def info(self) -> GpuInfo:
        """See `Gpu`."""
        return self._info

    def load(self, engine: bytes, kernels: bytes = b"") -> tuple[Tensor, ...]:
        """See `Gpu`; what execution needs on the device is allocated here."""
        trt = self._api.trt
        self._api.said()
        self._runtime = trt.Runtime(self._api.log)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise EngineError(f"{self._api.name} refuses the engine on {self._info.name}: {self._api.said()}")
        self._context = self._create_context(kernels)
        if self._context is None:
            raise EngineError(f"{self._api.name} cannot run the engine on {self._info.name}: {self._api.said()}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return tuple(
            Tensor(
                name,
                tuple(self._engine.get_tensor_shape(name)),
                np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))),
                self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
            for name in names
        )

    def _create_context(self, kernels: bytes) -> Any:
        if not self._api.rtx:  # compiles nothing on the device
            return self._engine.create_execution_context()
        self._config = self._engine.create_runtime_config()
        self._compiled = self._config.create_runtime_cache()
        if kernels:
            self._compiled.deserialize(kernels)  # refused ones, of another driver, are compiled again
        self._config.set_runtime_cache(self._compiled)
        return self._engine.create_execution_context(self._config)

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """See `Gpu`."""
        with self._errors():
            array: Array = self._cuda.pagelocked_empty(shape, dtype)
        self._hosts.append(array)
        return array

    def device_buffer(self, nbytes: int) -> int:
        """See `Gpu`."""
        with self._errors():
            self._buffers.append(self._cuda.mem_alloc(nbytes))
        return int(self._buffers[-1])

    def event(self) -> Event:
        """See `Gpu`; waiting for it sleeps instead of spinning, for the gate needs the core."""
        flags = self._cuda.event_flags
        return self._cuda.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)

    def copy_in(self, address: int, source: Array) -> None:
        """See `Gpu`."""
        with self._errors():
            self._cuda.memcpy_htod_async(address, source, self._stream)

    def run(self, addresses: Mapping[str, int]) -> None:
        """See `Gpu`."""
        bound = [self._context.set_tensor_address(name, address) for name, address in addresses.items()]
        if not (all(bound) and self._context.execute_async_v3(self._stream.handle)):
            raise EngineError(f"{self._api.name} on {self._info.name}: {self._api.said()}")

    def copy_out(self, target: Array, address: int) -> None:
        """See `Gpu`."""
        with self._errors():
            self._cuda.memcpy_dtoh_async(target, address, self._stream)

    def record(self, event: Event) -> None:
        """See `Gpu`."""
        with self._errors():
            event.record(self._stream)

    def wait(self, event: Event) -> None:
        """See `Gpu`."""
        with self._errors():
            event.synchronize()

    def kernels(self) -> bytes:
        """See `Gpu`."""
        compiled = None if self._compiled is None else self._compiled.serialize()
        return b"" if compiled is None else bytes(compiled)

    def free_mib(self) -> float:
        """See `Gpu`."""
        free, _ = self._cuda.mem_get_info()
        return float(free) / 2**20

    def close(self) -> None:
        """See `Gpu`; twice is once."""
        atexit.unregister(self.close)
        if self._stream is None:
            return
        with contextlib.suppress(self._cuda.Error):  # of a device that failed
            self._stream.synchronize()
        self._context = self._compiled = self._config = self._engine = self._runtime = None  # in this order
        for buffer in (*self._buffers, *(array.base for array in self._hosts)):
            buffer.free()
        self._buffers, self._hosts, self._stream = [], [], None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise EngineError(f"{self._info.name}: {error}") from error


@functools.cache
def _current_device(ordinal: int) -> tuple[Any, Any, Any]:
    """pycuda's driver, a device and its primary context, which is current until Python ends.

    It is the context that TensorRT uses, retained explicitly and once: every engine of a process shares it.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise EngineError(f"no NVIDIA driver here ({error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pycuda guesses about an import that fails
            import pycuda.driver as cuda
    except ModuleNotFoundError as error:
        raise EngineError(f"the GPU needs {error.name}: pip install 'maskline[cuda]'") from error
    except ImportError as error:
        raise EngineError(f"pycuda was built for another driver; install it again ({error})") from error
    try:
        cuda.init()
        device = cuda.Device(ordinal)
        context = device.retain_primary_context()
        context.push()
    except cuda.Error as error:
        raise EngineError(f"no GPU number {ordinal} to be used: {error}") from error
    atexit.register(context.detach)  # left alone, pycuda aborts the process; popped, it detaches with the wrong call
    return cuda, device, context
