"""The order in which tiles go through a GPU: two batches at a time, so that one is filled while the other is computed.

Each of the two slots has page-locked host arrays, device buffers and an event of its own, all made before the first
tile. One stream does everything in the order in which it was put in: copy in, run, copy out, event. A slot is filled
again, and what it brought is read, only after its event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError
from engines.backends.tensorrt.device import Event, Gpu, Tensor

__all__ = ["Runner"]

SLOTS = 2
WARM_UP_ROUNDS = 4
"""Times that each slot runs before the first part; kernels are compiled and clocks rise meanwhile."""

_Shape = tuple[int, int, int, int]


@dataclass
class _Slot:
    host_in: npt.NDArray[np.uint8]
    host_out: npt.NDArray[np.float32]
    address_in: int
    address_out: int
    bindings: Mapping[str, int]
    done: Event
    in_flight: bool = False
    """The event was recorded and has not been waited for."""
    rows: slice | None = None
    """Where in the caller's output the batch belongs."""


class Runner:
    """Runs one engine. Belongs to the thread of its `Gpu`; nothing is allocated after it was made."""

    def __init__(
        self, gpu: Gpu, engine: bytes, tiles: _Shape, kernels: bytes = b"", *, answer: _Shape | None = None
    ) -> None:
        """tiles: the shape that the engine was built for, [batch, h, w, C]; answer: that of what it makes of them, if
        it is another. Raises EngineError if the engine has others."""
        self._gpu = gpu
        source, result = _only_input_and_output(gpu.load(engine, kernels), tiles, answer or tiles)
        self.batch = tiles[0]
        self._slots = tuple(self._slot(source, result) for _ in range(SLOTS))

    def infer(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Fills `out` float32 [N, ...] with what the engine makes of `tiles` uint8 [N, h, w, C], any N.

        A last, smaller batch goes out filled up with what lies in the buffer. Raises EngineError when the device
        fails; `out` is worth nothing then, and the next call starts anew.
        """
        for slot in self._slots:
            slot.rows = None  # of a call that failed
        turn = 0
        for start in range(0, len(tiles), self.batch):
            slot = self._slots[turn % SLOTS]
            self._collect(slot, out)
            slot.host_in[: len(tiles) - start] = tiles[start : start + self.batch]
            self._start(slot)
            slot.rows = slice(start, min(start + self.batch, len(tiles)))
            turn += 1
        for later in range(SLOTS):
            self._collect(self._slots[(turn + later) % SLOTS], out)

    def warm_up(self) -> None:
        """Runs both slots a few times on grey tiles."""
        for _ in range(WARM_UP_ROUNDS):
            for slot in self._slots:
                self._run_grey(slot)

    def keep_warm(self) -> None:
        """Runs one batch for nothing, to keep clocks up while the line stands."""
        self._run_grey(self._slots[0])

    def _slot(self, source: Tensor, result: Tensor) -> _Slot:
        gpu = self._gpu
        address_in, address_out = gpu.device_buffer(_nbytes(source)), gpu.device_buffer(_nbytes(result))
        return _Slot(
            host_in=gpu.host_array(source.shape, source.dtype),
            host_out=gpu.host_array(result.shape, result.dtype),
            address_in=address_in,
            address_out=address_out,
            bindings={source.name: address_in, result.name: address_out},
            done=gpu.event(),
        )

    def _run_grey(self, slot: _Slot) -> None:
        self._settle(slot)
        slot.host_in.fill(128)
        self._start(slot)
        self._settle(slot)

    def _start(self, slot: _Slot) -> None:
        try:
            self._gpu.copy_in(slot.address_in, slot.host_in)
            self._gpu.run(slot.bindings)
            self._gpu.copy_out(slot.host_out, slot.address_out)
        finally:  # what was put in before an error is still under way
            self._gpu.record(slot.done)
            slot.in_flight = True

    def _collect(self, slot: _Slot, out: npt.NDArray[np.float32]) -> None:
        self._settle(slot)
        if slot.rows is not None:
            out[slot.rows] = slot.host_out[: slot.rows.stop - slot.rows.start]
            slot.rows = None

    def _settle(self, slot: _Slot) -> None:
        if slot.in_flight:
            self._gpu.wait(slot.done)
            slot.in_flight = False


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _only_input_and_output(tensors: tuple[Tensor, ...], tiles: _Shape, answer: _Shape) -> tuple[Tensor, Tensor]:
    """The engine's two tensors. Raises EngineError unless `tiles` go in and `answer` comes out."""
    wanted = {(True, tiles, np.dtype(np.uint8)), (False, answer, np.dtype(np.float32))}
    if len(tensors) != 2 or {(t.is_input, t.shape, t.dtype) for t in tensors} != wanted:
        found = ", ".join(f"{t.name} {t.dtype} {list(t.shape)} {'in' if t.is_input else 'out'}" for t in tensors)
        expected = f"uint8 {list(tiles)} in and float32 {list(answer)} out"
        raise EngineError(f"the engine has {found or 'nothing'}: expected {expected}")
    source, result = sorted(tensors, key=lambda t: not t.is_input)
    return source, result
