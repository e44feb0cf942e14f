"""OpenVINO on the CPU: the embedded default.

The mask plan becomes part of the graph here: its index sets are inputs of the ONNX file and constants of the compiled
model, so that one file serves every plan and OpenVINO folds what depends on them.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError, RecipeError
from engines.backends import BackendInfo, require_network, require_plan
from engines.bundle import GRAPH, WEIGHTS, Bundle
from engines.plans import plan_inputs

__all__ = ["OpenVinoBackend", "compile_graph", "instruction_set"]

PRECISIONS = {"f32": "FP32", "bf16": "BF16"}
"""Precision hints, and the capability that a CPU must report for them."""
_ISA = (
    ("amx_tile", "amx"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512f", "avx512"),
    ("avx_vnni", "avx2_vnni"),
    ("avx2", "avx2"),
    ("asimd", "neon"),
)


class OpenVinoBackend:
    """One compiled model and one request, on one thread's behalf; buffers are made once."""

    def __init__(self) -> None:
        self._info: BackendInfo | None = None
        self._request: Any = None
        self._input: npt.NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        """See `Backend`."""
        openvino = import_openvino()
        a = require_network(bundle, "openvino")
        require_plan(bundle, plan)
        self._input = np.zeros((batch, a.tile_px, a.tile_px, a.channels), np.uint8)
        try:
            compiled = compile_graph(_graph(bundle), plan_inputs(a, plan), self._input.shape, precision, threads)
        except RuntimeError as error:
            raise BundleError(f"bundle {bundle.path}: OpenVINO cannot run {GRAPH}: {error}") from error
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self._input, shared_memory=True))
        effective = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        device = str(compiled.get_property("EXECUTION_DEVICES")[0])
        self._info = BackendInfo("openvino", openvino.__version__, device, effective, instruction_set(), plan)

    def warm_up(self) -> None:
        """See `Backend`; the second run is the first at full speed."""
        self._input.fill(128)
        for _ in range(2):
            self._request.infer()

    def infer(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> int | None:
        """See `Backend`; a last, smaller batch is filled up with what lies in the buffer."""
        batch = len(self._input)
        for start in range(0, len(tiles), batch):
            count = min(batch, len(tiles) - start)
            self._input[:count] = tiles[start : start + count]
            self._request.infer()
            out[start : start + count] = self._request.get_output_tensor().data[:count]
        return None

    def keep_warm(self) -> None:
        """See `Backend`; nothing cools down here."""

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        if self._info is None:
            raise RuntimeError("load the backend first")
        return self._info


def _graph(bundle: Bundle) -> bytes | Path:
    """The bundle's graph; its path where the weights lie beside it, which are checked here and read by OpenVINO."""
    graph = bundle.read(GRAPH)
    if WEIGHTS.encode() not in graph:
        return graph
    bundle.read(WEIGHTS)
    return bundle.path / GRAPH


def import_openvino() -> Any:
    """OpenVINO without its usage statistics: left alone, its import forks a process that posts to an analytics service
    on the internet and leaves files in the home folder. Without that package it does neither."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def compile_graph(
    onnx: bytes | Path,
    constants: dict[str, npt.NDArray[np.int32]],
    shape: tuple[int, ...],
    precision: str,
    threads: int,
) -> Any:
    """Compiles for the CPU, for latency, with some inputs turned into constants and the others of the given shape.

    threads: 0 means the cores less one. Raises RecipeError for a precision that the CPU does not have (OpenVINO itself
    would take another one silently), RuntimeError for what OpenVINO cannot read.
    """
    openvino = import_openvino()
    from openvino import opset13

    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if PRECISIONS.get(precision) not in capabilities:
        here = ", ".join(p for p, c in PRECISIONS.items() if c in capabilities)
        raise RecipeError(f"precision {precision!r}: this CPU has {here}; change `precision` in the recipe")
    model = core.read_model(onnx) if isinstance(onnx, Path) else core.read_model(onnx, b"")
    for parameter in list(model.get_parameters()):
        values = constants.get(parameter.get_friendly_name())
        if values is not None:
            constant = opset13.constant(values, dtype=parameter.get_element_type().to_dtype())
            for target in parameter.output(0).get_target_inputs():
                target.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
    model.reshape(list(shape))
    return core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads or max(1, len(os.sched_getaffinity(0)) - 1),
            "ENABLE_CPU_PINNING": False,  # pinned threads of two engines would share a core and leave others idle
        },
    )


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
