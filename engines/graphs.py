"""A bundle's ONNX graph made static: one mask plan, one batch size, and what only constants go into computed once.

A protobuf ends at 2 GiB, so large networks keep their weights in a file beside the graph (`engines.export`). While such
a graph is worked on they stay there, mapped into memory: it has their names, types and shapes (`StaticGraph.outside`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import MasklineError
from engines.bundle import GRAPH, WEIGHTS, Bundle

__all__ = [
    "MEASURING",
    "Constants",
    "Graph",
    "GraphError",
    "Node",
    "StaticGraph",
    "Values",
    "import_onnx",
    "network_graph",
    "static_graph",
]

LARGEST_BYTES = 2_000_000_000
"""Of the weights in a graph that is written: a protobuf ends at 2 GiB, and the nodes need room too."""

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
Values = npt.NDArray[Any]


class GraphError(ValueError):
    """A graph that is none, or whose weights are not where it says: the bundle is wrong, and no other choice helps."""


@dataclass
class StaticGraph:
    """A graph that is worked on."""

    model: Any
    """An `onnx.ModelProto`."""
    outside: dict[str, Values]
    """The values of those initializers that have only name, type and shape in the model."""

    @property
    def graph(self) -> Graph:
        """The model's."""
        return self.model.graph

    def values(self, tensor: Any) -> Values:
        """Those of one of its initializers, wherever they are."""
        found = self.outside.get(tensor.name)
        values: Values = import_onnx().numpy_helper.to_array(tensor) if found is None else found
        return values

    def referring(self) -> bytes:
        """The serialised model of a graph made `in_place`: its large weights stay where the bundle has them, and who
        reads it must be told where that is. Equal graphs give equal bytes.
        """
        data: bytes = self.model.SerializeToString(deterministic=True)
        return data

    def whole(self) -> bytes:
        """The serialised model, with everything inside. Equal graphs give equal bytes.

        Raises ValueError where it would not fit into a protobuf, and GraphError for a graph that breaks ONNX's rules.
        """
        onnx = import_onnx()
        tensors = self.graph.initializer
        size = sum(math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in tensors)
        if size > LARGEST_BYTES:
            took = f"its weights take {size / 1e9:.2f} GB"
            raise ValueError(f"{took}, and an ONNX file holds 2 GiB at most: take a lower precision")
        for tensor in tensors:
            if tensor.name in self.outside:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = self.outside[tensor.name].tobytes()
        data: bytes = self.model.SerializeToString(deterministic=True)
        try:
            onnx.checker.check_model(data)
        except onnx.checker.ValidationError as error:
            raise GraphError(f"{GRAPH} is no valid ONNX graph: {error}") from error
        return data


def network_graph(bundle: Bundle) -> bytes | Path:
    """The bundle's graph; its path where the weights lie beside it, which are checked here and read by whoever takes
    the path. Raises BundleError."""
    graph = bundle.read(GRAPH)
    if WEIGHTS.encode() not in graph:
        return graph
    bundle.read(WEIGHTS)
    return bundle.path / GRAPH


def static_graph(network: bytes | Path, constants: Constants, batch: int, *, in_place: bool = False) -> StaticGraph:
    """A bundle's graph (`network_graph`) with `constants` inside (int32), a fixed batch, and the type of every tensor.

    in_place: nothing is made from weights outside, so that all of them are in the bundle's own file. Raises GraphError
    for what cannot be read, ValueError for a graph with other inputs, and MasklineError without the package `onnx`.
    """
    onnx = import_onnx()
    model, outside = _load(onnx, network)
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
    _fold(onnx, graph, set(constants), outside, in_place)
    del graph.value_info[:]
    try:
        known = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"shapes in {GRAPH} do not fit: {error}") from error
    for output in known.graph.output:
        planes = output.type.tensor_type.shape.dim[3]
        planes.dim_value = planes.dim_value or shape.dim[3].dim_value
    return StaticGraph(known, outside)


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


def _load(onnx: Any, network: bytes | Path) -> tuple[Any, dict[str, Values]]:
    """The `onnx.ModelProto`, and the weights that lie beside it: mapped, not read."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_from_string(network if isinstance(network, bytes) else network.read_bytes())
    except DecodeError as error:
        raise GraphError(f"{GRAPH} is no ONNX graph: {error}") from error
    elsewhere = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if not elsewhere:
        return model, {}
    if isinstance(network, bytes):
        raise GraphError(f"{GRAPH} has weights beside it, and is not where they are")
    beside: Values = np.asarray(np.memmap(network.with_name(WEIGHTS), np.uint8, "r"))
    return model, {tensor.name: _find(onnx, tensor, beside) for tensor in elsewhere}


def _find(onnx: Any, tensor: Any, beside: Values) -> Values:
    """A tensor's values in the bytes of the file of weights."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    try:
        begin, length = int(said["offset"]), int(said["length"])
        if said["location"] != WEIGHTS or begin < 0:
            raise ValueError(f"expected {WEIGHTS}")
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        values: Values = beside[begin : begin + length].view(kind).reshape(tensor.dims)
    except (KeyError, ValueError) as error:
        raise GraphError(f"{GRAPH} has weights {tensor.name!r} in {said}: they are not there ({error})") from error
    return values


def _cast_first(onnx: Any, graph: Graph) -> None:
    """Tiles become float32 before anything else: bytes are what TensorRT casts and does nothing else with."""
    tiles = graph.input[0].name
    cast = onnx.helper.make_node("Cast", [tiles], [f"{tiles}:f32"], name=f"{tiles}:f32", to=onnx.TensorProto.FLOAT)
    for node in graph.node:
        node.input[:] = [cast.output[0] if name == tiles else name for name in node.input]
    graph.node.insert(0, cast)


def _fold(onnx: Any, graph: Graph, indices: set[str], outside: dict[str, Values], in_place: bool) -> None:
    """Computes what only constants go into, unless that takes more room than they do: positions of all variants, say.

    Index sets lose the cast to int64 that torch wants. What is made from weights outside stays there, most of it
    transposed and no copy; or is not made, `in_place`.
    """
    inside = (t for t in graph.initializer if t.name not in outside)
    values = outside | {t.name: onnx.numpy_helper.to_array(t) for t in inside}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.input[0] in indices:
            renamed[node.output[0]] = node.input[0]
            continue
        stays = in_place and not outside.keys().isdisjoint(node.input)
        if not stays and len(node.output) == 1 and values.keys() >= set(node.input):
            inputs = {name: values[name] for name in node.input}
            (result,) = map(np.asarray, onnx.reference.ReferenceEvaluator(node).run(None, inputs))
            if not inputs or result.nbytes <= max(1024, sum(x.nbytes for x in inputs.values())):
                name = node.output[0]
                values[name] = result
                if outside.keys().isdisjoint(inputs):
                    graph.initializer.append(onnx.numpy_helper.from_array(result, name))
                else:
                    outside[name] = result
                    graph.initializer.append(_named_only(onnx, name, result))
                continue
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for tensor in [t for t in graph.initializer if t.name in outside and t.name not in used]:
        graph.initializer.remove(tensor)


def _named_only(onnx: Any, name: str, values: Values) -> Any:
    """A tensor whose values are elsewhere."""
    kind, elsewhere = onnx.helper.np_dtype_to_tensor_dtype(values.dtype), onnx.TensorProto.EXTERNAL
    return onnx.TensorProto(name=name, dims=values.shape, data_type=kind, data_location=elsewhere)
