"""Typed graphs for TensorRT: the precision of every tensor stands in the ONNX file, and no builder flag changes it.

TensorRT 11 and TensorRT-RTX know strongly typed networks only, and TensorRT 10 can be told to: one way for all three.
A bundle's float32 graph becomes, for one mask plan and one batch size:

* "f32": the same graph, with the plan's index sets as int32 constants and a fixed batch.
* "f16", "bf16": products (matrices, convolutions) and all between them in half precision. These stay float32: the
  pixel arithmetic up to the first product (little is left of a bright flat tile when its mean is taken off, and in half
  precision most of that is rounding), what follows the last product, what measures small differences
  (`engines.graphs.MEASURING`; none of its products counts), and sums and powers. LayerNormalization stays one
  operator, for which TensorRT has a kernel with float32 inside; taken apart, its squares overflow half precision.
* "int8": as "f16", and products with constant weights have 8-bit operands, but for the first and the last: symmetric,
  weights per output channel, activations per tensor up to the largest value of calibration tiles (`observe_ranges`).

Tiles go in as uint8 and come out as float32. Needs `onnx` (extras `rtx`, `cuda`, `train`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.graphs import Constants, import_onnx, static_graph
from engines.lowering import Flow, Ranges, lower

__all__ = ["PRECISIONS", "TYPING", "observe_ranges", "typed_graph"]

PRECISIONS = ("f32", "f16", "bf16", "int8")
TYPING = 2
"""Raised with every change that makes another graph from the same bundle: engines built before are stale then."""
QUANTISED_OPSET = 19
"""The first in which QuantizeLinear takes half precision."""


def typed_graph(
    network: bytes | Path,
    constants: Constants,
    batch: int,
    precision: str,
    ranges: Ranges | None = None,
    *,
    in_place: bool = False,
) -> bytes:
    """A bundle's graph (`engines.graphs.network_graph`) in one of PRECISIONS, for `batch` tiles, with its weights
    inside. Equal arguments give equal bytes.

    constants: inputs that become constants (`engines.plans.plan_inputs`). ranges: for "int8", what `observe_ranges`
    returned. in_place, for "f32" alone: weights that lie beside the bundle's graph stay there, however large they are,
    and whoever reads the graph must be told where that is. Raises ValueError for a graph that cannot be typed so, with
    the tensor's name, or would not fit into an ONNX file, and GraphError for one that is none.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    onnx = import_onnx()
    static = static_graph(network, constants, batch, in_place=in_place)
    if precision == "int8":
        static.model = onnx.version_converter.convert_version(static.model, QUANTISED_OPSET)
        lower(onnx, static, onnx.TensorProto.FLOAT16, ranges or {})
    elif precision != "f32":
        lower(onnx, static, onnx.TensorProto.FLOAT16 if precision == "f16" else onnx.TensorProto.BFLOAT16)
    del static.graph.value_info[:]
    return static.referring() if in_place else static.whole()


def observe_ranges(network: bytes | Path, constants: Constants, tiles: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The largest absolute value of each activation that "int8" quantises, over `tiles` uint8 [N, h, w, C], in float32
    on the CPU.

    Raises ValueError without tiles, and GraphError for what is no graph.
    """
    from engines.backends.openvino import compile_graph

    if not len(tiles):
        raise ValueError("no calibration tiles: int8 takes the range of every activation from them")
    graph = static_graph(network, constants, 1).graph
    flow = Flow.of(graph)
    names = sorted({node.input[0] for node in graph.node if flow.quantised(node)})
    compiled = compile_graph(network, constants, (1, *tiles.shape[1:]), "f32", 0, watched=names)
    request = compiled.create_infer_request()
    largest = dict.fromkeys(names, 0.0)
    for tile in tiles:
        request.infer([tile[None]])
        for name in names:
            values = request.get_tensor(name).data
            largest[name] = max(largest[name], float(values.max()), -float(values.min()))
    return largest
