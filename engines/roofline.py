"""What the engines would cost on GPUs that nobody here has, on paper: counted steps against what the devices can do.

A step takes as long as its products take or its memory traffic, whichever is longer, and never less than the host
needs to launch a kernel. Everything is in half precision, one tile at a time with all its variants in one batch. The
tables in docs/performance.md are made by this file (`maskline engines --paper`); nothing in them was measured on such
devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from engines.architecture import TEXTURE_S, Architecture, MaeArchitecture, RetouchArchitecture
from engines.cost import Step, gflop, million_parameters, naive_mae_steps, steps
from engines.plans import CHEAP_PLAN, EXACT_PLAN, named_plan
from engines.registry import ENGINES

__all__ = ["DEVICES", "Device", "milliseconds", "tables"]

BYTES = 2
"""Of a value in half precision."""
PRODUCTS, MEMORY = 0.5, 0.75
"""Shares of a device's peaks that are expected of ordinary kernels; on large matrix products better ones are seen, on
small ones worse."""
SEEN_AGAIN = (0.1, 0.25)
"""Shares of the tiles that a cascade looks at again with x1."""


@dataclass(frozen=True)
class Device:
    """Peaks from the vendor's data sheets, and a guess at what a launch costs its host."""

    name: str
    tflops: float
    """Of half-precision products that add up in float32, dense."""
    gb_per_s: float
    launch_us: float
    source: str


DEVICES = (
    Device("Orin NX", 15.0, 102.4, 8, "Orin NX 16 GB: 32 tensor cores at 918 MHz, 60 sparse INT8 TOPS"),
    Device("AGX Orin", 42.5, 204.8, 8, "AGX Orin 64 GB: 64 tensor cores at 1.3 GHz, 170 sparse INT8 TOPS"),
    Device("RTX 4090", 165.2, 1008, 3, "Ada whitepaper: FP16 tensor cores with FP32 accumulation"),
    Device("H100 SXM", 989.4, 3350, 3, "H100 data sheet: FP16 tensor cores, half of the sparse figure"),
)


def milliseconds(counted: Iterable[Step], device: Device, *, ideal: bool = False) -> float:
    """For a tile. ideal: at the device's peaks, with launches that cost nothing; these kernels cannot be faster."""
    rate, traffic = (1.0, 1.0) if ideal else (PRODUCTS, MEMORY)
    total = 0.0
    for step in counted:
        if not step.folded:
            products = step.flop / (device.tflops * 1e12 * rate)
            memory = BYTES * (step.weights + step.moved) / (device.gb_per_s * 1e9 * traffic)
            total += max(products, memory, 0 if ideal else device.launch_us * 1e-6)
    return total * 1e3


def tables() -> list[str]:
    """Devices, work, savings and times, in Markdown."""
    return ["\n".join(table) for table in (_devices(), _work(), _savings(), _times())]


def _devices() -> Iterator[str]:
    yield from _head("device", "TFLOP/s", "GB/s", "launch, us", "from")
    for d in DEVICES:
        yield _row(d.name, f"{d.tflops:g}", f"{d.gb_per_s:g}", f"{d.launch_us:g}", d.source)


def _work() -> Iterator[str]:
    yield from _head(
        "network", "plan", "variants", "shown / asked", "GFLOP", "weights, MB", "moved, MB each", "kernels"
    )
    for name, a in _networks():
        for plan in a.plans:
            counted = [step for step in steps(a, plan) if not step.folded]
            variants, tokens = 1, ""
            masked = a.pixels if isinstance(a, RetouchArchitecture) else a
            if isinstance(masked, MaeArchitecture):
                sets = named_plan(plan, masked)
                variants, tokens = sets.variants, f"{sets.visible.shape[1]} / {sets.hidden.shape[1]}"
            yield _row(
                name,
                plan,
                f"{variants}",
                tokens,
                _short(gflop(counted)),
                _short(BYTES * million_parameters(counted)),
                _short(BYTES * sum(step.moved for step in counted) / variants / 1e6),
                f"{len(counted)}",
            )


def _savings() -> Iterator[str]:
    yield from _head("network", "plan", "naive GFLOP", "ours", "ratio", "first q, k, v once would save")
    for name, a in _networks():
        if isinstance(a, MaeArchitecture):
            for plan in a.plans:
                counted = steps(a, plan)
                naive, ours = gflop(naive_mae_steps(a, plan)), gflop(counted)
                saved = _first_maps(a, plan, counted) / ours
                yield _row(name, plan, _short(naive), _short(ours), f"{naive / ours:.2f}", f"{100 * saved:.1f} %")


def _first_maps(a: MaeArchitecture, plan: str, counted: Sequence[Step]) -> float:
    """Billions of operations that the first block's queries, keys and values would cost less, were they computed once
    for each token of the tile and gathered, instead of in each variant that shows it."""
    shown = named_plan(plan, a).visible.size
    maps = gflop([step for step in counted if step.name in ("encoder.0.q", "encoder.0.kv")])
    return maps * (1 - a.tokens / shown)


def _times() -> Iterator[str]:
    yield from _head("network", "plan", *(f"{d.name}, ms" for d in DEVICES))
    for name, a in _networks():
        times = {plan: [_bounds(steps(a, plan), d) for d in DEVICES] for plan in a.plans}
        for plan, found in times.items():
            yield _row(name, plan, *map(_range, found))
        if CHEAP_PLAN in times:
            for share in SEEN_AGAIN:
                both = zip(times[CHEAP_PLAN], times[EXACT_PLAN], strict=True)
                found = [(cheap[0] + share * exact[0], cheap[1] + share * exact[1]) for cheap, exact in both]
                yield _row(name, f"cascade, {100 * share:.0f} % again", *map(_range, found))


def _networks() -> Iterator[tuple[str, Architecture]]:
    """What ships, what is published, and the papers' sizes of every engine that is counted without torch."""
    for engine, kind in ENGINES.items():
        for size, architecture in kind.sizes.items():
            if size != "edge" or kind.base:
                with suppress(NotImplementedError):
                    steps(architecture, architecture.plans[0])
                    yield "texture-s" if architecture == TEXTURE_S else f"{engine} {size}", architecture


def _bounds(counted: Sequence[Step], device: Device) -> tuple[float, float]:
    return milliseconds(counted, device, ideal=True), milliseconds(counted, device)


def _range(bounds: tuple[float, float]) -> str:
    return f"{_short(bounds[0])} to {_short(bounds[1])}"


def _short(value: float) -> str:
    """Three figures, thousands apart."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*("---" for _ in names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
