"""The order of copies, runs and events, against a device that does nothing before it is waited for."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, Misuse, as_bytes

from edge.errors import EngineError
from engines.backends.tensorrt.runner import Runner

SIDE = 8


def some_tiles(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)


def a_runner(gpu: FakeGpu, batch: int = 2, kind: type[Runner] = Runner) -> Runner:
    shape = (batch, SIDE, SIDE, 1)
    return kind(gpu, as_bytes(shape), shape)


def infer(runner: Runner, tiles: np.ndarray) -> np.ndarray:
    out = np.full(tiles.shape, np.nan, np.float32)
    runner.infer(tiles, out)
    return out


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 11])
def test_every_tile_gets_its_own_answer_whatever_the_batch(batch: int, count: int) -> None:
    gpu = FakeGpu()
    runner = a_runner(gpu, batch)
    runner.warm_up()
    gpu.freeze()
    for seed in (1, 2):
        tiles = some_tiles(count, seed)
        np.testing.assert_array_equal(infer(runner, tiles), tiles / np.float32(255))


def test_one_batch_is_filled_while_another_is_computed() -> None:
    gpu = FakeGpu()
    runner = a_runner(gpu)
    order: list[str] = []
    gpu.run = lambda addresses, run=gpu.run: (order.append("run"), run(addresses))[1]  # type: ignore[method-assign]
    gpu.wait = lambda event, wait=gpu.wait: (order.append("wait"), wait(event))[1]  # type: ignore[method-assign]
    infer(runner, some_tiles(8))
    assert order == ["run", "run", "wait", "run", "wait", "run", "wait", "wait"]


class NeverWaits(Runner):
    def _settle(self, slot: Any) -> None:
        slot.in_flight = False


class ReadsBeforeItWaits(Runner):
    def _collect(self, slot: Any, out: np.ndarray) -> None:
        if slot.rows is not None:
            out[slot.rows] = slot.host_out[: slot.rows.stop - slot.rows.start]
            slot.rows = None
        self._settle(slot)


class EventBeforeTheCopy(Runner):
    def _start(self, slot: Any) -> None:
        self._gpu.copy_in(slot.address_in, slot.host_in)
        self._gpu.run(slot.bindings)
        self._gpu.record(slot.done)
        self._gpu.copy_out(slot.host_out, slot.address_out)
        slot.in_flight = True


class OneBufferForBothSlots(Runner):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._slots[1].host_in = self._slots[0].host_in


@pytest.mark.parametrize("wrong", [NeverWaits, ReadsBeforeItWaits, EventBeforeTheCopy, OneBufferForBothSlots])
def test_a_runner_that_takes_a_short_cut_is_caught(wrong: type[Runner]) -> None:
    runner = a_runner(FakeGpu(), kind=wrong)
    with pytest.raises(Misuse):
        infer(runner, some_tiles(9))


def test_the_fake_device_notices_what_it_is_for() -> None:
    gpu = FakeGpu()
    gpu.load(as_bytes((1, 2, 2, 1)))
    source, target = gpu.host_array((1, 2, 2, 1), np.dtype(np.uint8)), gpu.host_array((1, 2, 2, 1), np.dtype("f4"))
    there, back, event = gpu.device_buffer(4), gpu.device_buffer(16), gpu.event()
    gpu.copy_in(there, source)
    with pytest.raises(Misuse, match="written while"):
        source[0] = 1
    np.asarray(source).view(np.ndarray)[0] = 1  # round the guard
    gpu.record(event)
    with pytest.raises(Misuse, match="overwritten before"):
        gpu.wait(event)
    gpu.copy_out(target, back)
    with pytest.raises(Misuse, match="read while"):
        target[:1]
    gpu.freeze()
    with pytest.raises(Misuse, match="after warm-up"):
        gpu.event()


def test_nothing_is_allocated_for_a_tile() -> None:
    gpu = FakeGpu()
    shape = (1, 256, 256, 1)
    runner = Runner(gpu, as_bytes(shape), shape)
    runner.warm_up()
    gpu.freeze()
    gpu.copy_in = lambda address, source: None  # type: ignore[method-assign, assignment]
    gpu.run = lambda addresses: None  # type: ignore[method-assign, assignment]
    gpu.copy_out = lambda target, address: None  # type: ignore[method-assign, assignment]
    tiles, out = np.zeros((6, 256, 256, 1), np.uint8), np.zeros((6, 256, 256, 1), np.float32)
    runner.infer(tiles, out)
    tracemalloc.start()
    try:
        runner.infer(tiles, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_384, "a tile has 65,536 bytes"


def test_after_an_error_the_next_tiles_get_their_own_answers() -> None:
    gpu = FakeGpu()
    runner = a_runner(gpu)
    runner.warm_up()
    gpu.freeze()
    for failing in (1, 2, 3, 4):
        gpu.fail_run = gpu.runs + failing
        with pytest.raises(EngineError, match="was to fail"):
            infer(runner, some_tiles(8, failing))
        tiles = some_tiles(3, 100 + failing)
        np.testing.assert_array_equal(infer(runner, tiles), tiles / np.float32(255))


def test_keeping_warm_runs_once_and_leaves_no_trace() -> None:
    gpu = FakeGpu()
    runner = a_runner(gpu)
    runner.warm_up()
    gpu.freeze()
    tiles, before = some_tiles(5), gpu.runs
    first = infer(runner, tiles)
    runner.keep_warm()
    assert gpu.runs == before + 3 + 1
    np.testing.assert_array_equal(infer(runner, tiles), first)


def test_a_map_behind_the_picture_comes_out_too() -> None:
    shape, answer = (2, SIDE, SIDE, 1), (2, SIDE, SIDE, 2)
    gpu = FakeGpu(lambda tiles: np.concatenate([tiles / 255, 255 - tiles], 3).astype(np.float32), planes=2)
    runner, tiles = Runner(gpu, as_bytes(shape), shape, answer=answer), some_tiles(5)
    out = np.full((5, *answer[1:]), np.nan, np.float32)
    runner.infer(tiles, out)
    np.testing.assert_array_equal(out[..., 1:], 255 - tiles.astype(np.float32))
    with pytest.raises(EngineError, match=r"\[2, 8, 8, 2\] out.* and float32 \[2, 8, 8, 1\] out"):
        Runner(FakeGpu(planes=2), as_bytes(shape), shape)


@pytest.mark.parametrize("built_for", [(1, SIDE, SIDE, 1), (2, SIDE, SIDE, 3), (2, 4, SIDE, 1)])
def test_an_engine_for_other_tiles_is_refused_with_both_shapes(built_for: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=rf"tiles uint8 \[{', '.join(map(str, built_for))}\] in.*\[2, 8, 8, 1\] in"):
        Runner(FakeGpu(), as_bytes(built_for), (2, SIDE, SIDE, 1))
