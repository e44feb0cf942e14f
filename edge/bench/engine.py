"""The exported graph against the naive way, and the mask plans beside each other.

The naive way is what a first version does: torch eager in float32, a masked copy of the tile for each variant, the
whole decoder, hidden tokens picked at the end. The plain export is that same network given to OpenVINO. Everything
uses the same number of threads (the cores less one); times are the median of five rounds in which everything runs
once, ratios are medians of the rounds' ratios. Figures of bf16 are there only where the CPU has it in hardware. The
rate of plan `x1` is compared with that of a large matrix product in its own precision. Plans agree with `x1` where they
decide the same on photographs with and without painted defects, each plan with its own threshold (the highest score
among other good crops). Needs the extra `train`.
"""

from __future__ import annotations

import io
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.anomaly import error_map
from edge.bench import Budget, Progress
from edge.bench.photographs import photographs
from edge.errors import MasklineError, RecipeError
from edge.scores import score
from engines.architecture import VIT_B, VIT_H, VIT_L, MaeArchitecture
from engines.backends import Backend, open_backend
from engines.bundle import GRAPH, Bundle, find_bundle, load_bundle
from engines.cost import gflop, naive_mae_steps, steps
from engines.plans import PLANS, Plan, named_plan, plan_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from engines.mae import MaskedAutoencoder

__all__ = ["BUDGETS", "run", "speed", "work"]

BUDGETS = {
    "engine.speedup_fp32": Budget(at_least=2),
    "engine.speedup_bf16": Budget(at_least=6),
    "engine.share_of_matmul_peak_bf16": Budget(at_least=0.4),
    "engine.max_abs_error_fp32": Budget(at_most=1e-4),
    "engine.decoder_share": Budget(at_most=0.25),
}
ROUNDS, GOOD, BAD = 5, 24, 24
MATRIX = 1536
PUBLISHED = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}
"""Networks that are counted only."""

Tiles = NDArray[np.uint8]
Timed = dict[str, Callable[[], object]]


def run(progress: Progress = lambda _: None) -> dict[str, float]:
    """All figures, for the bundle `texture-s`."""
    try:
        import torch

        from engines.export import load_model
        from engines.mae import MaskedAutoencoder
    except ImportError as error:
        raise MasklineError(f"bench engine needs {error.name}: pip install 'maskline[train]'") from error
    bundle = load_bundle(find_bundle("texture-s"))
    model = load_model(bundle).requires_grad_(False)
    assert isinstance(model, MaskedAutoencoder)
    good, bad = photographs(bundle.manifest.tile_px, 2 * GOOD, BAD)
    progress("loading")
    backends = {plan: _load(bundle, plan, "f32") for plan in PLANS}
    x1 = named_plan("x1", model.architecture)
    with _threads(), torch.no_grad():
        figures = _exactness(model, backends["x1"], good[:2], x1)
        figures |= work({"engine": model.architecture} | {f"engine.{name}": a for name, a in PUBLISHED.items()})
        progress("rounds")
        seconds = _seconds(bundle, model, backends, good[0], x1, progress)
    figures |= speed(seconds, figures["engine.gflop_ours"])
    progress("decisions of the plans")
    return figures | _agreement(bundle, backends, good, bad)


def _cores_less_one() -> int:
    return max(1, len(os.sched_getaffinity(0)) - 1)


@contextmanager
def _threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(_cores_less_one())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load(bundle: Bundle, plan: str, precision: str) -> Backend:
    backend = open_backend("openvino")
    backend.load(bundle, plan, precision=precision, threads=0, batch=1)
    backend.warm_up()
    return backend


def _exactness(model: MaskedAutoencoder, backend: Backend, tiles: Tiles, plan: Plan) -> dict[str, float]:
    import torch

    from engines.reference import repaint_plainly

    out = np.empty(tiles.shape, np.float32)
    backend.infer(tiles, out)
    expected = repaint_plainly(model, torch.from_numpy(tiles), plan).numpy()
    return {"engine.max_abs_error_fp32": float(abs(out - expected).max())}


def work(networks: Mapping[str, MaeArchitecture]) -> dict[str, float]:
    """Billions of multiplications and additions per tile, every variant by itself and as we do it, under every plan.

    `NAME.gflop_naive` and `NAME.gflop_ours` are those of plan `x1`, `NAME.plan.PLAN.gflop_naive` those of the others;
    `NAME.decoder_share` is what the decoder takes of ours.
    """
    figures: dict[str, float] = {}
    for name, a in networks.items():
        for plan in a.plans:
            where, ours = name if plan == "x1" else f"{name}.plan.{plan}", steps(a, plan)
            figures[f"{where}.gflop_naive"] = gflop(naive_mae_steps(a, plan))
            figures[f"{where}.gflop_ours"] = gflop(ours)
        decoder = [step for step in steps(a, "x1") if step.name.startswith(("decoder", "head"))]
        figures[f"{name}.decoder_share"] = gflop(decoder) / figures[f"{name}.gflop_ours"]
    return figures


def _seconds(
    bundle: Bundle, model: MaskedAutoencoder, backends: dict[str, Backend], tile: Tiles, plan: Plan, progress: Progress
) -> dict[str, list[float]]:
    """Of everything that is timed, in each round."""
    import torch

    from engines.mae import plan_tensors
    from engines.reference import PlainNetwork, masked_copies

    copies, visible = masked_copies(torch.from_numpy(tile), plan, model.architecture.patch_px), plan_tensors(plan)[0]
    naive, out = PlainNetwork(model), np.empty((1, *tile.shape), np.float32)
    square = torch.rand(MATRIX, MATRIX)
    timed: Timed = {
        "naive": lambda: naive(copies, visible),
        "plain": _plain_export(naive, copies, visible),
        "whole": _whole_tile(bundle, model, tile),
        "matmul": lambda: square @ square,
    }
    for name, backend in backends.items():
        timed[name] = lambda b=backend: b.infer(tile[None], out)  # type: ignore[misc]
    try:
        bf16 = _load(bundle, "x1", "bf16")
    except RecipeError:
        progress("this CPU has no bf16: its figures are left out")
    else:
        half = square.bfloat16()
        timed |= {"bf16": lambda: bf16.infer(tile[None], out), "matmul_bf16": lambda: half @ half}
    return _rounds(timed, progress)


def speed(seconds: Mapping[str, list[float]], gflop_of_x1: float) -> dict[str, float]:
    """What the rounds say, from the seconds of each call in each round and the work of a tile under plan `x1`."""
    figures = {f"engine.plan.{p}.ms_per_tile": statistics.median(seconds[p]) * 1e3 for p in PLANS}
    figures["engine.naive_ms_per_tile"] = statistics.median(seconds["naive"]) * 1e3
    figures["engine.speedup_fp32"] = _ratio(seconds["naive"], seconds["x1"])
    figures["engine.speedup_vs_whole_tiles"] = _ratio(seconds["whole"], seconds["x1"])
    figures["engine.speedup_vs_plain_export"] = _ratio(seconds["plain"], seconds["x1"])
    figures |= _share_of_peak("", seconds["x1"], seconds["matmul"], gflop_of_x1)
    if "bf16" in seconds:
        figures["engine.bf16_ms_per_tile"] = statistics.median(seconds["bf16"]) * 1e3
        figures["engine.speedup_bf16"] = _ratio(seconds["naive"], seconds["bf16"])
        figures |= _share_of_peak("_bf16", seconds["bf16"], seconds["matmul_bf16"], gflop_of_x1)
    return figures


def _share_of_peak(suffix: str, ours: list[float], product: list[float], gflop_of_ours: float) -> dict[str, float]:
    peak = 2 * MATRIX**3 / 1e9 / min(product)
    share = gflop_of_ours / statistics.median(ours) / peak
    return {f"engine.matmul{suffix}_gflop_per_s": peak, f"engine.share_of_matmul_peak{suffix}": share}


def _rounds(timed: Timed, progress: Progress) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for k in range(ROUNDS + 1):
        progress(f"round {k} of {ROUNDS}")
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in seconds.items()}


def _ratio(slow: list[float], fast: list[float]) -> float:
    return float(statistics.median(a / b for a, b in zip(slow, fast, strict=True)))


def _plain_export(naive: Any, copies: Tensor, visible: Tensor) -> Callable[[], object]:
    """The naive network in OpenVINO, with as many threads as ours."""
    import torch

    from engines.export import OPSET

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            naive,
            (copies, visible),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["copies", "visible"],
        )
    return _request(file.getvalue(), {"visible": visible.numpy().astype(np.int32)}, copies.numpy())


def _whole_tile(bundle: Bundle, model: MaskedAutoencoder, tile: Tiles) -> Callable[[], object]:
    """Plan x1 of the same network, each variant seeing all of the tile, and all of them in one batch."""
    whole = model.architecture.model_copy(update={"context": None})
    return _request(bundle.read(GRAPH), plan_inputs(whole, "x1"), tile[None])


def _request(onnx: bytes, constants: dict[str, Any], pixels: Tiles) -> Callable[[], object]:
    from engines.backends.openvino import compile_graph

    request = compile_graph(onnx, constants, pixels.shape, "f32", 0).create_infer_request()
    return lambda: request.infer({0: pixels}, share_inputs=True)


def _agreement(bundle: Bundle, backends: dict[str, Backend], good: Tiles, bad: Tiles) -> dict[str, float]:
    """Share of the held-out good and bad crops on which a plan decides as `x1` does."""
    manifest, decisions = bundle.manifest, {}
    for name, backend in backends.items():
        tiles = np.concatenate([good, bad])
        out = np.empty(tiles.shape, np.float32)
        backend.infer(tiles, out)
        maps = error_map(tiles, out, manifest.error_map)
        threshold = float(np.quantile(maps[:GOOD], 0.999))
        scores = np.array([score(m, manifest.score, threshold) for m in maps])
        decisions[name] = scores[GOOD:] > scores[:GOOD].max()
    return {
        f"engine.plan.{name}.agreement_with_x1": float((decision == decisions["x1"]).mean())
        for name, decision in decisions.items()
    }
