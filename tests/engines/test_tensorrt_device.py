"""What the class at the GPU asks of pycuda and TensorRT, both faked: that it asks it right, a GPU alone can show."""

from __future__ import annotations

import ctypes
import enum
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge.errors import EngineError
from engines.backends.tensorrt.api import Api
from engines.backends.tensorrt.build import build_engine
from engines.backends.tensorrt.device import CudaGpu, _current_device
from engines.backends.tensorrt.runner import Runner

SHAPE = (2, 4, 4, 1)


class CudaError(Exception):
    pass


class Memory:
    """What pycuda hands out: freed, or not."""

    def __init__(self, cuda: Cuda, address: int) -> None:
        self.cuda, self.address = cuda, address
        cuda.held += 1

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.cuda.held -= 1


class Pinned(np.ndarray[Any, Any]):
    """An array whose `base` is what frees it, as pycuda's are."""

    memory: Memory

    @property
    def base(self) -> Any:  # type: ignore[override]
        return self.memory


class Cuda(types.ModuleType):
    """As much of `pycuda.driver` as is used, on one stream that does everything at once."""

    Error = CudaError

    class event_flags:  # noqa: N801 - pycuda's name
        BLOCKING_SYNC, DISABLE_TIMING = 1, 2

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.calls: list[str] = []
        self.held, self.fails = 0, ""
        self.arrays: dict[int, np.ndarray] = {}

    def said(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails:
            raise CudaError(f"{call} failed: out of something")

    def init(self) -> None:
        self.said("init")

    def Device(self, ordinal: int) -> Any:  # noqa: N802 - pycuda's name
        context = types.SimpleNamespace(push=lambda: self.said("push"), detach=lambda: self.said("detach"))
        return types.SimpleNamespace(
            compute_capability=lambda: (8, 7),
            name=lambda: "Orin",
            total_memory=lambda: 8 << 30,
            retain_primary_context=lambda: (self.said("retain"), context)[1],
        )

    def get_driver_version(self) -> int:
        return 12060

    def Stream(self) -> Any:  # noqa: N802 - pycuda's name
        return types.SimpleNamespace(handle=77, synchronize=lambda: self.said("synchronize"))

    def Event(self, flags: int) -> Any:  # noqa: N802 - pycuda's name
        assert flags == 3, "waiting sleeps, and nobody measures with it"
        self.said("event")
        record = lambda stream: self.said(f"record {stream.handle}")  # noqa: E731
        return types.SimpleNamespace(record=record, synchronize=lambda: self.said("wait"))

    def mem_alloc(self, nbytes: int) -> Memory:
        self.said("mem_alloc")
        address = 4096 * (len(self.arrays) + 1)
        self.arrays[address] = np.zeros(nbytes, np.uint8)
        return Memory(self, address)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self.said("pagelocked_empty")
        array = np.empty(shape, dtype).view(Pinned)
        array.memory = Memory(self, 0)
        return array

    def memcpy_htod_async(self, address: int, source: np.ndarray, stream: Any) -> None:
        self.said(f"in {stream.handle}")
        self.arrays[address][:] = np.frombuffer(source.tobytes(), np.uint8)

    def memcpy_dtoh_async(self, target: np.ndarray, address: int, stream: Any) -> None:
        self.said(f"out {stream.handle}")
        target[:] = np.frombuffer(self.arrays[address].tobytes(), target.dtype).reshape(target.shape)

    def mem_get_info(self) -> tuple[int, int]:
        return 3 << 20, 8 << 20


class Mode(enum.Enum):
    INPUT, OUTPUT = 0, 1


class Trt:
    """As much of TensorRT's runtime as is used; its engine divides by 255."""

    TensorIOMode = Mode
    num_io_tensors = 2
    types = {"tiles": np.uint8, "repainted": np.float32}  # noqa: RUF012 - a fake

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.bound = cuda, dict[str, int]()
        self.kernels: list[bytes] = []
        self.fails = ""

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        return types.SimpleNamespace(deserialize_cuda_engine=lambda data: None if self.fails == "load" else self)

    def nptype(self, kind: Any) -> Any:
        return kind

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPE

    def get_tensor_dtype(self, name: str) -> Any:
        return self.types[name]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "tiles" else Mode.OUTPUT

    def create_runtime_config(self) -> Trt:
        return self

    def create_runtime_cache(self) -> Any:
        return types.SimpleNamespace(deserialize=self.kernels.append, serialize=lambda: b"compiled")

    def set_runtime_cache(self, cache: Any) -> None:
        self.cuda.said("runtime cache")

    def create_execution_context(self, config: Any = None) -> Any:
        return None if self.fails == "context" else self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.bound[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.cuda.said(f"run {stream}")
        arrays = self.cuda.arrays
        answer = arrays[self.bound["tiles"]].astype(np.float32) / np.float32(255)
        arrays[self.bound["repainted"]][:] = np.frombuffer(answer.tobytes(), np.uint8)
        return self.fails != "run"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    fake = Cuda()
    package = types.ModuleType("pycuda")
    package.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    _current_device.cache_clear()
    yield fake
    _current_device.cache_clear()


def an_api(trt: Any, flavour: str = "tensorrt_rtx", lines: list[str] | None = None) -> Api:
    return Api(flavour, "1.7", trt, types.SimpleNamespace(lines=[] if lines is None else lines))


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_tiles_go_through_it_on_one_stream_of_the_primary_context(cuda: Cuda, flavour: str) -> None:
    trt = Trt(cuda)
    gpu = CudaGpu(an_api(trt, flavour))
    assert (gpu.info.name, gpu.info.target, gpu.info.driver, gpu.info.memory_mib) == ("Orin", "sm87", "12.6", 8192)
    runner = Runner(gpu, b"engine", SHAPE, b"earlier")
    assert cuda.calls[:3] == ["init", "retain", "push"]
    assert trt.kernels == ([b"earlier"] if flavour == "tensorrt_rtx" else [])
    assert gpu.kernels() == (b"compiled" if flavour == "tensorrt_rtx" else b"")
    del cuda.calls[:]
    tiles = np.arange(2 * 16, dtype=np.uint8).reshape(SHAPE)
    out = np.full(SHAPE, np.nan, np.float32)
    runner.infer(tiles, out)
    np.testing.assert_array_equal(out, tiles / np.float32(255))
    assert cuda.calls == ["in 77", "run 77", "out 77", "record 77", "wait"]
    assert gpu.free_mib() == 3
    gpu.close()
    gpu.close()
    assert cuda.held == 0
    assert cuda.calls.count("synchronize") == 1


def test_engines_of_a_process_share_the_context(cuda: Cuda) -> None:
    first, second = CudaGpu(an_api(Trt(cuda))), CudaGpu(an_api(Trt(cuda)))
    first.close()
    second.close()
    assert (cuda.calls.count("retain"), cuda.calls.count("detach")) == (1, 0)


@pytest.mark.parametrize(
    ("fails", "message"), [("load", "refuses the engine"), ("context", "cannot run the engine"), ("run", "on Orin: ")]
)
def test_what_tensorrt_refuses_is_said_in_its_words(cuda: Cuda, fails: str, message: str) -> None:
    trt, lines = Trt(cuda), list[str]()
    trt.fails = fails
    gpu = CudaGpu(an_api(trt, lines=lines))
    runtime = trt.Runtime
    trt.Runtime = lambda log: (lines.append("Myelin says no"), runtime(log))[1]  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=rf"tensorrt_rtx 1\.7 .*{message}.*Myelin says no"):
        Runner(gpu, b"engine", SHAPE).warm_up()
    gpu.close()


@pytest.mark.parametrize("fails", ["mem_alloc", "pagelocked_empty", "in 77", "out 77", "record 77", "wait"])
def test_what_the_driver_refuses_names_the_gpu(cuda: Cuda, fails: str) -> None:
    cuda.fails = fails
    gpu = CudaGpu(an_api(Trt(cuda)))
    with pytest.raises(EngineError, match=f"Orin: {fails} failed: out of something"):
        Runner(gpu, b"engine", SHAPE).warm_up()
    gpu.close()
    assert cuda.held == 0


@pytest.mark.parametrize("fails", ["init", "retain"])
def test_a_driver_without_a_gpu_is_said(cuda: Cuda, fails: str) -> None:
    cuda.fails = fails
    with pytest.raises(EngineError, match=f"no GPU number 0 to be used: {fails} failed"):
        CudaGpu(an_api(Trt(cuda)))


def test_without_pycuda_the_error_names_the_extra(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(EngineError, match=r"the GPU needs pycuda.*: pip install 'maskline\[cuda\]'"):
        CudaGpu(an_api(Trt(cuda)))


class Builds:
    """As much of TensorRT's builder as is used; `typed` is whether networks can still be anything else."""

    def __init__(self, typed: bool, *, parses: bool = True, builds: bool = True) -> None:
        flags = {"STRONGLY_TYPED": 1} if typed else {}
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(**flags)
        self.BuilderFlag = types.SimpleNamespace(TF32="tf32")
        self.parses, self.builds = parses, builds
        self.asked: dict[str, Any] = {}
        self.num_errors, self.max_aux_streams = 1, None

    def Builder(self, log: Any) -> Builds:  # noqa: N802 - TensorRT's name
        return self

    def OnnxParser(self, network: Any, log: Any) -> Builds:  # noqa: N802 - TensorRT's name
        return self

    def create_network(self, flags: int) -> None:
        self.asked["flags"] = flags

    def parse(self, graph: bytes) -> bool:
        return self.parses

    def get_error(self, index: int) -> Any:
        return types.SimpleNamespace(desc=lambda: "no such operator")

    def create_builder_config(self) -> Builds:
        return self

    def clear_flag(self, flag: str) -> None:
        self.asked["cleared"] = flag

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        return b"engine" if self.builds else None


@pytest.mark.parametrize(("typed", "flags"), [(True, 2), (False, 0)], ids=["tensorrt 10", "tensorrt 11"])
def test_networks_are_strongly_typed_with_every_tensorrt(typed: bool, flags: int) -> None:
    trt = Builds(typed)
    assert build_engine(an_api(trt, "tensorrt"), b"graph") == b"engine"
    assert trt.asked == {"flags": flags, "cleared": "tf32"}
    assert trt.max_aux_streams == 0


def test_tensorrt_builds_for_the_gpu_that_is_there_or_says_why_not() -> None:
    with pytest.raises(EngineError, match=r"target 'sm86': tensorrt 1\.7 builds only for the GPU in this machine"):
        build_engine(an_api(Builds(True), "tensorrt"), b"graph", "sm86")
    with pytest.raises(EngineError, match="cannot read the graph: no such operator"):
        build_engine(an_api(Builds(True, parses=False), "tensorrt"), b"graph")
    with pytest.raises(EngineError, match="cannot build for this GPU: it gave no reason"):
        build_engine(an_api(Builds(True, builds=False), "tensorrt"), b"graph")
