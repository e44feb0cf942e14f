"""What every engine's export is asked: by ONNX Runtime, in every precision, by a real TensorRT build."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from torch import nn

from engines.export import to_onnx
from engines.precision import PRECISIONS, observe_ranges, typed_graph

__all__ = ["assert_tensorrt_builds", "by_onnxruntime", "in_every_precision"]


def by_onnxruntime(graph: bytes, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the graph of a network of one pass answers to tiles uint8 [N, h, w, C]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"tiles": tiles})[0])


def in_every_precision(network: nn.Module, tiles: npt.NDArray[np.uint8]) -> dict[str, bytes]:
    """The network's typed graph for one tile, per precision; 8-bit ranges are those that these tiles cause."""
    graph = to_onnx(network)
    ranges = observe_ranges(graph, {}, tiles)
    return {p: typed_graph(graph, {}, 1, p, ranges if p == "int8" else None) for p in PRECISIONS}


def assert_tensorrt_builds(graph: bytes) -> None:
    """Builds an engine of a typed graph; skips the test where no tensorrt_rtx builds."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install 'maskline[rtx]'")
    from engines.backends.tensorrt.api import find_tensorrt
    from engines.backends.tensorrt.build import build_engine

    api = find_tensorrt()
    if api.flavour != "tensorrt_rtx":
        pytest.skip(f"{api.name} is installed as well and comes first; it builds for the GPU of this machine alone")
    assert len(build_engine(api, graph, "sm89")) > 50_000
