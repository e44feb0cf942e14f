"""What one person with one box runs to know that engines are served there as they should be.

Each step proves one thing and says what; without a GPU the first two run, and the rest says that it could not.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import EngineError
from engines.backends.cache import EngineCache
from engines.backends.manifest import EngineKey
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.build import build_engine, build_for
from engines.backends.tensorrt.device import CudaGpu, Gpu, GpuInfo
from engines.backends.tensorrt.verify import verify
from engines.backends.verify import Samples, answers
from engines.bundle import Bundle, Manifest
from engines.graphs import network_graph
from engines.plans import plan_inputs
from engines.precision import typed_graph

__all__ = ["Box", "selftest"]

PLAN = "x16"
INFERENCES = 300
IDLE_S = 3.0


class Box:
    """This machine, a bundle with a network, tiles of it, and a cache of its own to fill and to break."""

    def __init__(
        self, bundle: Bundle, samples: Samples, folder: Path, open_gpu: Callable[[Api], Gpu] = CudaGpu
    ) -> None:
        self.api = find_tensorrt()
        self.bundle, self.samples, self.open_gpu = bundle, samples, open_gpu
        self.cache = EngineCache(folder)

    @functools.cached_property
    def gpu(self) -> GpuInfo:
        """The GPU of this machine. Raises EngineError."""
        opened = self.open_gpu(self.api)
        opened.close()
        return opened.info

    def key(self, precision: str, batch: int = 1, plan: str = PLAN) -> EngineKey:
        """The key of an engine for it."""
        flavour, version, gpu = self.api.flavour, self.api.version, (self.gpu.target, self.gpu.name)
        return EngineKey.of(self.bundle, plan, precision, batch, flavour=flavour, version=version, gpu=gpu)

    def build(self, precision: str, batch: int = 1, plan: str = PLAN) -> str:
        """Build an engine and compare it with the CPU; returns how they differ."""
        build_for(self.api, self.cache, self.bundle, self.key(precision, batch, plan), self.samples.tiles)
        found = verify(self.bundle, plan, precision, batch, self.samples, self.cache, open_gpu=self.open_gpu)
        said = f"{plan} {precision} {found.max_error:.1e} / {found.mean_error:.1e} / {found.agreement:.0%}"
        if not found.passed:
            raise EngineError(f"{said} (largest error / mean error / decisions equal) is too far from the CPU")
        return said

    @contextmanager
    def serving(self, precision: str, batch: int = 1) -> Iterator[TensorRtBackend]:
        """A backend that is loaded and warm."""
        backend = TensorRtBackend(self.cache, open_gpu=self.open_gpu)
        backend.load(self.bundle, PLAN, precision=precision, threads=0, batch=batch)
        try:
            backend.warm_up()
            yield backend
        finally:
            backend.close()


def selftest(box: Box, say: Callable[[str, str], None]) -> None:
    """Run every step, and `say(what, result)` after each that proved something.

    Raises EngineError for the first one that fails, with those that were not tried then.
    """
    targets = ", ".join(box.api.targets) or "the GPU in this machine"
    say("TensorRT", f"{box.api.name}, builds for {targets}")
    for what, step in STEPS.items():
        try:
            if proved := step(box):
                say(what, proved)
        except EngineError as error:
            left = list(STEPS)[list(STEPS).index(what) + 1 :]
            rest = f"; not tried: {', '.join(left)}" if left else ""
            raise EngineError(f"selftest: {what}: {error}{rest}") from error


def builds_without_a_gpu(box: Box) -> str:
    """A real engine of the bundle, twice, with the same bytes; `tensorrt` does not do that."""
    if not box.api.rtx:
        return ""
    constants = plan_inputs(box.bundle.manifest.architecture, PLAN)  # type: ignore[arg-type]
    graph = typed_graph(network_graph(box.bundle), constants, 1, "f16")
    began = time.monotonic()
    first, second = (build_engine(box.api, graph, "sm86") for _ in range(2))
    if first != second:
        raise EngineError("two builds of the same graph differ: thresholds could not outlive a new build")
    return f"{PLAN} f16 for sm86: {len(first) / 1e6:.1f} MB in {(time.monotonic() - began) / 2:.1f} s, twice the same"


def finds_the_gpu(box: Box) -> str:
    """Driver, primary context, stream."""
    return f"{box.gpu.name}, {box.gpu.target}, CUDA {box.gpu.driver}, {box.gpu.memory_mib} MiB"


def answers_as_the_cpu(box: Box) -> str:
    """Engines of the floating precisions that this GPU has, and the exact plan, built here and compared."""
    wanted = [(p, PLAN) for p in ("f32", "f16", "bf16") if p != "bf16" or int(box.gpu.target[2:]) >= 80]
    built = (box.build(precision, plan=plan) for precision, plan in (*wanted, ("f16", "x1")))
    return f"largest error / mean error / decisions equal: {'; '.join(built)}"


def repeats_to_the_bit(box: Box) -> str:
    """The same tiles, alone, in company, in another order."""
    _require_equal_bits(box, 1)
    return f"{len(box.samples.tiles)} tiles again, in reverse and alone: equal bits"


def _require_equal_bits(box: Box, batch: int) -> None:
    tiles, manifest = box.samples.tiles, box.bundle.manifest
    with box.serving("f16", batch) as backend:
        first = answers(backend, manifest, tiles)
        same = [
            np.array_equal(first, answers(backend, manifest, tiles)),
            np.array_equal(first[::-1], answers(backend, manifest, np.ascontiguousarray(tiles[::-1]))),
            np.array_equal(first[:1], answers(backend, manifest, tiles[:1])),
        ]
    if not all(same):
        raise EngineError(f"answers change: again {same[0]}, in another order {same[1]}, alone {same[2]}")


def fills_up_batches(box: Box) -> str:
    """A batch that the number of tiles is no multiple of; whatever lies beside a tile, its answer is the same."""
    batch = next(b for b in (5, 7) if len(box.samples.tiles) % b)
    said = box.build("f16", batch)
    _require_equal_bits(box, batch)
    return f"{len(box.samples.tiles)} tiles in batches of {batch}, also in reverse and alone: {said}"


def allocates_nothing(box: Box) -> str:
    """Free memory of the device, before and after."""
    gpu = box.open_gpu(box.api)
    with box.serving("f16") as backend:
        before = gpu.free_mib()
        for _ in range(INFERENCES):
            answers(backend, box.bundle.manifest, box.samples.tiles[:3])
        lost = before - gpu.free_mib()
    gpu.close()
    if lost > 1:
        raise EngineError(f"{lost:.0f} MiB of the device are gone after {INFERENCES} inferences")
    return f"{INFERENCES} inferences, free memory of the device unchanged"


def refuses_what_is_broken(box: Box) -> str:
    """An engine that is damaged, and one of another version."""
    stored = box.cache.find(box.key("f32"))
    stored.engine.write_bytes(stored.engine.read_bytes()[:-1])
    stale = box.key("f16").model_copy(update={"version": "0.0"})
    damaged = TensorRtBackend(box.cache, open_gpu=box.open_gpu)
    for what, attempt in (
        ("damaged", lambda: damaged.load(box.bundle, PLAN, precision="f32", threads=0, batch=1)),
        ("stale", lambda: box.cache.find(stale)),
    ):
        try:
            attempt()
        except EngineError:
            continue
        raise EngineError(f"a {what} engine was accepted")
    return "a damaged and a stale engine"


def keeps_kernels(box: Box) -> str:
    """How long a start takes, with what an earlier one compiled and without."""
    stored = box.cache.find(box.key("f16"))
    stored.kernels.unlink(missing_ok=True)
    took = []
    for _ in range(2):
        began = time.monotonic()
        with box.serving("f16"):
            took.append(time.monotonic() - began)
    kept = "kept" if stored.kernels.exists() else "none to keep"
    return f"load and warm up: {took[0]:.2f} s, then {took[1]:.2f} s (kernels {kept})"


def is_fast(box: Box) -> str:
    """One tile: in a row, after an idle time, after an idle time kept warm."""
    tile = box.samples.tiles[:1]
    with box.serving("f16") as backend:
        row = sorted(_timed(backend, box.bundle.manifest, tile) for _ in range(INFERENCES))
        idle: list[float] = []
        warm: list[float] = []
        for kept, times in ((False, idle), (True, warm)):
            for _ in range(3):
                until = time.monotonic() + IDLE_S
                while time.monotonic() < until:
                    time.sleep(0.05)
                    if kept:
                        backend.keep_warm()
                times.append(_timed(backend, box.bundle.manifest, tile))
    p50, p99 = statistics.median(row), row[int(0.99 * len(row))]
    after = f"after {IDLE_S:.0f} s idle {max(idle):.2f} ms, kept warm {max(warm):.2f} ms"
    return f"{PLAN} f16: p50 {p50:.2f} ms, p99 {p99:.2f} ms; {after}"


def has_8_bits(box: Box) -> str:
    """Last, for not every GPU runs products of 8 bits, and nothing else needs them."""
    return f"largest error / mean error / decisions equal: {box.build('int8')}"


STEPS: dict[str, Callable[[Box], str]] = {
    "builds without a GPU": builds_without_a_gpu,
    "GPU": finds_the_gpu,
    "answers as the CPU": answers_as_the_cpu,
    "repeats to the bit": repeats_to_the_bit,
    "fills up batches": fills_up_batches,
    "allocates nothing": allocates_nothing,
    "keeps kernels": keeps_kernels,
    "speed": is_fast,
    "refuses what is broken": refuses_what_is_broken,
    "8 bits": has_8_bits,
}
"""In this order: each may use what an earlier one built."""


def _timed(backend: TensorRtBackend, manifest: Manifest, tile: NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    answers(backend, manifest, tile)
    return (time.perf_counter() - began) * 1e3
