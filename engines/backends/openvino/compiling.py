"""From a graph to a model that OpenVINO runs on this CPU, with static shapes and a precision that was asked for.

The mask plan becomes part of the graph here: its index sets are inputs of the ONNX file and constants of the compiled
model, so that one file serves every plan and OpenVINO folds what depends on them. Of plan x1 they may stay inputs
(`engines.backends.openvino.quarters`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError, RecipeError, ResourceError
from engines.backends.cache import EngineCache
from engines.backends.manifest import EngineKey, EngineManifest, network_sha256
from engines.bundle import Bundle
from engines.graphs import network_graph

__all__ = [
    "COMPILED_BYTES",
    "compile_graph",
    "compile_kept",
    "core",
    "cores_less_one",
    "effective_precision",
    "import_openvino",
    "instruction_set",
    "key_of",
    "layers",
    "network_graph",
    "require_precision",
    "static_model",
]

PRECISIONS = {"f32": "FP32", "bf16": "BF16", "int8": "INT8"}
"""What can be asked for, and the capability that a CPU must report for it."""
REVISION = 3
"""Raised with every change to `static_model` or to `int8.quantise` that makes another graph from the same bundle."""
COMPILED_BYTES = 2_000_000_000
"""So much room may all models take up that are kept for the next start; the weights of one alone, a half of it."""
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution")
"""Layers, as OpenVINO calls them in what it runs."""
_ISA = (
    ("amx_tile", "amx"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512f", "avx512"),
    ("avx_vnni", "avx2_vnni"),
    ("avx2", "avx2"),
    ("asimd", "neon"),
)

Constants = Mapping[str, npt.NDArray[np.int32]]


def import_openvino() -> Any:
    """OpenVINO without its usage statistics: left alone, its import forks a process that posts to an analytics service
    on the internet and leaves files in the home folder. Without that package it does neither."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def core() -> Any:
    """OpenVINO's runtime, one for the process.

    Its CPU plugin takes the stack on which signals are handled from the one before it and gives that back at its end:
    of two runtimes that end in the order in which they began, the second gives back one that is gone, and the next
    signal, SIGTERM or Ctrl-C, kills the process.
    """
    return import_openvino().Core()


def require_precision(precision: str) -> None:
    """Raises RecipeError for a precision that this CPU does not have: OpenVINO would take another one silently."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if PRECISIONS.get(precision) not in capabilities:
        here = ", ".join(p for p, c in PRECISIONS.items() if c in capabilities)
        raise RecipeError(f"precision {precision!r}: this CPU has {here}; change `precision` in the recipe")


def static_model(
    onnx: bytes | Path, constants: Constants, shape: tuple[int, ...], inputs: Constants | None = None
) -> Any:
    """An ONNX graph as an `openvino.Model` whose tiles have this shape; `constants` become part of it, and `inputs`
    stay inputs, with the shapes of these.

    Raises RuntimeError for what OpenVINO cannot read.
    """
    inputs = inputs or {}
    import_openvino()
    from openvino import opset13

    model = core().read_model(onnx) if isinstance(onnx, Path) else core().read_model(onnx, b"")
    for parameter in list(model.get_parameters()):
        values = constants.get(parameter.get_friendly_name())
        if values is not None:
            constant = opset13.constant(values, dtype=parameter.get_element_type().to_dtype())
            for target in parameter.output(0).get_target_inputs():
                target.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
    names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    model.reshape({name: list(inputs[name].shape if name in inputs else shape) for name in names})
    return model


def compile_graph(
    onnx: bytes | Path,
    constants: Constants,
    shape: tuple[int, ...],
    precision: str,
    threads: int,
    watched: Sequence[str] = (),
) -> Any:
    """Compiles an ONNX graph for the CPU, for latency (`static_model`).

    threads: 0 means the cores less one. watched: tensors, by name, that are given out as well. Raises RecipeError for a
    precision that the CPU does not have, RuntimeError for what OpenVINO cannot read.
    """
    require_precision(precision)
    model = static_model(onnx, constants, shape)
    if watched:
        model.add_outputs(list(watched))
    return core().compile_model(model, "CPU", _properties(precision, threads or cores_less_one()))


def compile_kept(key: EngineKey, name: str, make: Callable[[], Any], cache: EngineCache) -> Any:
    """What `make` returns, an `openvino.Model` that `key` describes, compiled: kept from an earlier start, or else
    compiled now and kept for the next one, for it answers the same to the bit.

    name: the bundle's, for people. OpenVINO itself runs a kept model whose weights are damaged; what is imported here
    has its hash checked. A cache that cannot be read or written costs time, and nothing else.
    """
    properties = _properties(key.precision, key.threads)
    with contextlib.suppress(EngineError, RuntimeError):
        stored = cache.find(key)
        compiled = core().import_model(cache.read(stored), "CPU", properties)
        cache.mark_used(stored)
        return compiled
    model = make()
    compiled = core().compile_model(model, "CPU", properties)
    if sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant") <= COMPILED_BYTES // 2:
        _keep(compiled, key, name, cache)  # of what is larger no copy is made either
    return compiled


def _keep(compiled: Any, key: EngineKey, name: str, cache: EngineCache) -> None:
    stream = io.BytesIO()
    compiled.export_model(stream)
    model = stream.getvalue()
    manifest = EngineManifest(
        key=key,
        bundle=name,
        engine_sha256=hashlib.sha256(model).hexdigest(),
        engine_bytes=len(model),
        graph_sha256=key.model_sha256,
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    with contextlib.suppress(ResourceError):
        cache.store(manifest, model)
        cache.shrink(COMPILED_BYTES)


def key_of(bundle: Bundle, plan: str, precision: str, batch: int) -> EngineKey:
    """What a bundle's network in OpenVINO depends on, here and now, whatever the number of threads."""
    m = bundle.manifest
    return EngineKey(
        model_sha256=network_sha256(m),
        plan=plan,
        precision=precision,
        tiles=(batch, m.tile_px, m.tile_px, m.channels),
        flavour="openvino",
        version=import_openvino().__version__,
        target=instruction_set(),
        revision=REVISION,
    )


def cores_less_one() -> int:
    """How many threads an engine gets when nothing else is said: the gate has priority."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def effective_precision(compiled: Any) -> str:
    """What products are computed in, as OpenVINO says of what it compiled: "int8" if any of them has 8-bit operands."""
    if any(kind in PRODUCTS and precision in ("i8", "u8") for kind, precision in layers(compiled)):
        return "int8"
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def layers(compiled: Any) -> Iterator[tuple[str, str]]:
    """Kind and precision of everything that runs."""
    for layer in compiled.get_runtime_model().get_ops():
        about = layer.get_rt_info()
        yield about["layerType"].astype(str), about["runtimePrecision"].astype(str)


def _properties(precision: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,  # of what is not in 8 bits
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # pinned threads of two engines would share a core and leave others idle
    }


def instruction_set() -> str:
    """The best instruction set that the CPU reports, and oneDNN's limit, if one is set: they decide the last bits."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    suffix = f" (ONEDNN_MAX_CPU_ISA={limit})" if limit else ""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine() + suffix
    flags: set[str] = set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":", 1)[1].split())
            break
    return next((name for flag, name in _ISA if flag in flags), platform.machine()) + suffix
