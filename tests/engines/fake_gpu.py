"""A `Gpu` that is none, and unforgiving: it does nothing before it is waited for, as a GPU that is busy may.

It fails when a host array is changed while a copy of it is under way, when an output is read before an event after its
copy was waited for, and when anything is allocated after `freeze`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError
from engines.backends.tensorrt.device import GpuInfo, Tensor

__all__ = ["FakeGpu", "Misuse", "as_bytes"]

Compute = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
GPU = GpuInfo(name="Fake GPU", target="sm86", driver="13.0", memory_mib=8192)


class Misuse(AssertionError):  # noqa: N818 - it is what the test is about
    """What a real GPU would have answered with wrong pixels."""


class Guarded(np.ndarray[Any, Any]):
    """A host array that knows whether the device has it: `lent` is "" or what the device does with it."""

    lent: str = ""

    def __array_finalize__(self, parent: Any) -> None:
        self.owner = getattr(parent, "owner", self)

    def _check(self, how: str) -> None:
        lent = getattr(self.owner, "lent", "")
        if lent == "written" or (lent == "read" and how == "written"):
            raise Misuse(f"a host array is {how} while the device has yet to be done with it ({lent} there)")

    def __getitem__(self, key: Any) -> Any:
        self._check("read")
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check("written")
        super().__setitem__(key, value)

    def fill(self, value: Any) -> None:
        self._check("written")
        super().fill(value)


class FakeGpu:
    """Computes with a function of the tiles. What an engine is, it takes from its bytes: `understand` says how (the
    tiles' shape and the function), and without it they are those of `as_bytes`. An answer has `planes`, or as many as a
    tile."""

    def __init__(
        self,
        compute: Compute | None = None,
        *,
        refuse: bool = False,
        planes: int | None = None,
        understand: Callable[[bytes], tuple[tuple[int, ...], Compute]] | None = None,
    ) -> None:
        self.info = GPU
        self.compute: Compute = compute or (lambda tiles: tiles.astype(np.float32) / np.float32(255))
        self.refuse, self.frozen, self.closed = refuse, False, False
        self._planes = planes
        self._understand = understand or (lambda engine: (_shape(engine), self.compute))
        self.fail_run: int | None = None
        self.runs = self.waits = 0
        self.given_kernels = b""
        self._shape: tuple[int, ...] = ()
        self._memory: dict[int, npt.NDArray[Any]] = {}
        self._queue: list[tuple[int, Callable[[], None]]] = []
        self._put = 0

    def load(self, engine: bytes, kernels: bytes = b"") -> tuple[Tensor, ...]:
        self._allocate()
        if self.refuse:
            raise EngineError("fake 1.0 refuses the engine on Fake GPU: it was told to")
        self._shape, self.compute = self._understand(engine)
        self.given_kernels = kernels
        return (
            Tensor("repainted", self._answer, np.dtype(np.float32), False),
            Tensor("tiles", self._shape, np.dtype(np.uint8), True),
        )

    @property
    def _answer(self) -> tuple[int, ...]:
        return (*self._shape[:3], self._planes or self._shape[3])

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self._allocate()
        array = np.zeros(shape, dtype).view(Guarded)
        array.owner = array
        return array

    def device_buffer(self, nbytes: int) -> int:
        self._allocate()
        address = 4096 * (len(self._memory) + 1)
        self._memory[address] = np.full(nbytes, 0xA5, np.uint8)
        return address

    def event(self) -> list[int]:
        self._allocate()
        return [0]

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None:
        before = source.tobytes()
        self._lend(source, "read")

        def copy() -> None:
            if source.tobytes() != before:
                raise Misuse("an input was overwritten before its copy was waited for")
            self._memory[address][:] = np.frombuffer(before, np.uint8)
            self._lend(source, "")

        self._enqueue(copy)

    def run(self, addresses: Mapping[str, int]) -> None:
        self.runs += 1
        if self.fail_run == self.runs:
            raise EngineError("fake 1.0 on Fake GPU: this run was to fail")
        source, target = self._memory[addresses["tiles"]], self._memory[addresses["repainted"]]

        def compute() -> None:
            answer = np.ascontiguousarray(self.compute(source.reshape(self._shape)), np.float32)
            target[:] = np.frombuffer(answer.tobytes(), np.uint8)

        self._enqueue(compute)

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None:
        np.ndarray.fill(target, np.nan)  # whoever reads it too early and is not caught has this
        self._lend(target, "written")

        def copy() -> None:
            plain = target.view(np.ndarray)
            plain[...] = np.frombuffer(self._memory[address].tobytes(), np.float32).reshape(self._answer)
            self._lend(target, "")

        self._enqueue(copy)

    def record(self, event: list[int]) -> None:
        event[0] = self._put

    def wait(self, event: list[int]) -> None:
        self.waits += 1
        while self._queue and self._queue[0][0] <= event[0]:
            self._queue.pop(0)[1]()

    def kernels(self) -> bytes:
        return b"kernels"

    def free_mib(self) -> float:
        return 1024.0 - len(self._memory)

    def close(self) -> None:
        self.closed = True

    def freeze(self) -> None:
        """Nothing may be allocated from here on."""
        self.frozen = True

    def _allocate(self) -> None:
        if self.frozen:
            raise Misuse("something was allocated after warm-up")

    def _enqueue(self, work: Callable[[], None]) -> None:
        self._put += 1
        self._queue.append((self._put, work))

    @staticmethod
    def _lend(array: npt.NDArray[Any], how: str) -> None:
        getattr(array, "owner", array).lent = how


def _shape(engine: bytes) -> tuple[int, ...]:
    return tuple(int(n) for n in engine.decode().split("x"))


def as_bytes(shape: tuple[int, ...]) -> bytes:
    """The "engine" of a FakeGpu for tiles of this shape."""
    return "x".join(map(str, shape)).encode()
