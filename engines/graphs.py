"""A bundle's ONNX graph made static: one mask plan, one batch size, and what only constants go into computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import MasklineError

__all__ = ["MEASURING", "Constants", "Graph", "Node", "import_onnx", "static_graph"]

MEASURING = ("/model/error/", "/model/feature/", "/model/lite0/", "/model/wider.")
"""How names of nodes begin that measure small differences, and those of the features that they measure, after the
modules of `engines.retouch`. They stay float32, whatever precision an engine has: in half of it a good deal of a
difference is rounding, and with 8-bit features 10 of 24 decisions changed (docs/tensorrt.md)."""

Constants = Mapping[str, npt.NDArray[np.int32]]
"""Inputs of a graph that become constants, by name (`engines.plans.plan_inputs`)."""
Graph = Any
"""An `onnx.GraphProto`."""
Node = Any
"""An `onnx.NodeProto`."""


def static_graph(onnx_bytes: bytes, constants: Constants, batch: int) -> Any:
    """The graph as an `onnx.ModelProto` with `constants` inside (int32), a fixed batch, and the type of every tensor.

    Raises ValueError for a graph with other inputs, and MasklineError without the package `onnx`.
    """
    onnx = import_onnx()
    model = onnx.load_from_string(onnx_bytes)
    graph = model.graph
    free = [i for i in graph.input if i.name not in constants]
    if len(free) != 1 or len(graph.input) != 1 + len(constants):
        named = ", ".join(i.name for i in graph.input)
        raise ValueError(f"the graph's inputs are {named}: expected the tiles and {', '.join(constants) or 'no more'}")
    del graph.input[:]
    graph.input.extend(free)
    shape = graph.input[0].type.tensor_type.shape
    shape.dim[0].dim_value = batch
    for output in graph.output:  # repainted tiles look as tiles do, but may have a map behind them
        output.type.tensor_type.shape.CopyFrom(shape)
        output.type.tensor_type.shape.dim[3].Clear()
    graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.int32), k) for k, v in constants.items())
    _cast_first(onnx, graph)
    _fold(onnx, graph, set(constants))
    del graph.value_info[:]
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for output in known.graph.output:
        planes = output.type.tensor_type.shape.dim[3]
        planes.dim_value = planes.dim_value or shape.dim[3].dim_value
    return known


def import_onnx() -> Any:
    """The package `onnx`, or an error that names the extra."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.reference
        import onnx.shape_inference
        import onnx.version_converter
    except ImportError as error:
        raise MasklineError(f"typed graphs need {error.name}: pip install 'maskline[rtx]'") from error
    return onnx


def _cast_first(onnx: Any, graph: Graph) -> None:
    """Tiles become float32 before anything else: bytes are what TensorRT casts and does nothing else with."""
    tiles = graph.input[0].name
    cast = onnx.helper.make_node("Cast", [tiles], [f"{tiles}:f32"], name=f"{tiles}:f32", to=onnx.TensorProto.FLOAT)
    for node in graph.node:
        node.input[:] = [cast.output[0] if name == tiles else name for name in node.input]
    graph.node.insert(0, cast)


def _fold(onnx: Any, graph: Graph, indices: set[str]) -> None:
    """Computes what only constants go into, unless that takes more room than they do: positions of all variants, say.

    Index sets lose the cast to int64 that torch wants.
    """
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.input[0] in indices:
            renamed[node.output[0]] = node.input[0]
            continue
        if len(node.output) == 1 and values.keys() >= set(node.input):
            inputs = {name: values[name] for name in node.input}
            (result,) = map(np.asarray, onnx.reference.ReferenceEvaluator(node).run(None, inputs))
            if not inputs or result.nbytes <= max(1024, sum(x.nbytes for x in inputs.values())):
                values[node.output[0]] = result
                graph.initializer.append(onnx.numpy_helper.from_array(result, node.output[0]))
                continue
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
