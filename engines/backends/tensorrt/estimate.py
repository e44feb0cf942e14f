"""What rounding alone does to a bundle's answers, before there is a GPU: the typed graph on the CPU.

ONNX Runtime runs it in float32 and rounds every tensor to the type that the graph gives it. (OpenVINO leaves most
casts to half precision out, and shows a half of the error or less.) A GPU fuses operations and rounds less often; it
adds up in another order.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MasklineError
from engines.backends import require_network, require_plan
from engines.backends.manifest import Verification
from engines.backends.tensorrt.build import what_fails
from engines.backends.verify import Samples, compare, reference
from engines.bundle import Bundle
from engines.graphs import import_onnx, network_graph
from engines.plans import plan_inputs
from engines.precision import observe_ranges, typed_graph

__all__ = ["estimate", "rounded_answers"]


def estimate(bundle: Bundle, plan: str, precision: str, samples: Samples) -> Verification:
    """How a bundle's typed graph compares with float32; "int8" takes its ranges from the good samples.

    Raises BundleError or EngineError for what cannot be typed so, and MasklineError without ONNX Runtime.
    """
    constants, graph = plan_inputs(require_network(bundle, "tensorrt"), plan), network_graph(bundle)
    require_plan(bundle, plan)
    with what_fails(bundle, plan, precision):
        ranges = observe_ranges(graph, constants, samples.tiles[: samples.good]) if precision == "int8" else None
        typed = typed_graph(graph, constants, 1, precision, ranges)
    found = rounded_answers(typed, samples.tiles)
    return compare(bundle.manifest, precision, samples, reference(bundle, plan, samples.tiles), found)


def rounded_answers(typed: bytes, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a graph (`engines.precision.typed_graph`, for one tile) answers to tiles uint8 [N, h, w, C]."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MasklineError(f"without a GPU this needs {error.name}: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(_with_casts(typed), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: tile[None]})[0] for tile in tiles])


def _with_casts(typed: bytes) -> bytes:
    """The graph with every operation on half precision in float32, and casts around it: the CPU has no such kernels for
    bfloat16."""
    onnx = import_onnx()
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(typed), strict_mode=True)
    graph, halves = model.graph, (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    types |= {t.name: t.data_type for t in graph.initializer}
    cast = functools.partial(_cast, onnx)
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "Cast":
            for index, name in enumerate(node.input):
                if types.get(name) in halves:
                    node.input[index] = f"{name}:for:{len(nodes)}"
                    nodes.append(cast(name, node.input[index], onnx.TensorProto.FLOAT))
        nodes.append(node)
        if node.op_type != "Cast":
            for index, name in enumerate(node.output):
                if types.get(name) in halves:
                    node.output[index] = f"{name}:unrounded"
                    nodes.append(cast(node.output[index], name, types[name]))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


def _cast(onnx: Any, source: str, target: str, to: int) -> Any:
    return onnx.helper.make_node("Cast", [source], [target], to=to)
