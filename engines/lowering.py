"""From float32 to less: which tensors of a graph become half precision or 8 bits, and the casts where they meet others.

What becomes what, and why, says `engines.precision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.graphs import MEASURING, Graph, Node, StaticGraph

__all__ = ["Flow", "Ranges", "lower"]

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
FLOAT32_ALWAYS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Pow", "Exp", "Log", "Sqrt", "Reciprocal")
NOT_IN_BF16 = ("ConvTranspose",)
"""TensorRT-RTX 1.7 has no such kernel; these stay float32 there."""
WEIGHT_AXIS = {"MatMul": 1, "Gemm": 1, "Conv": 0}
"""Of the output channels, of products that are quantised."""
FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""
LARGEST_F16 = 65504.0

Ranges = Mapping[str, float]
"""The largest absolute value of activations, by name."""


def lower(onnx: Any, static: StaticGraph, half: int, ranges: Ranges | None = None) -> None:
    """Rewrites a graph whose types are all known, in place.

    half: FLOAT16 or BFLOAT16 of `onnx.TensorProto`. ranges: with them, products with constant weights get 8-bit
    operands. Raises ValueError, with the tensor's name, for a weight that float16 cannot hold and for a range that is
    not there.
    """
    _Lowering(onnx, static, half, ranges).run()


@dataclass(frozen=True)
class Flow:
    """What depends on what, by tensor name, in a float32 graph whose types are all known."""

    floats: frozenset[str]
    """float32 tensors."""
    weights: frozenset[str]
    """Initializers."""
    deep: frozenset[str]
    """Made from a product of something that differs from tile to tile."""
    ahead: frozenset[str]
    """Goes into a product of something that another product made."""

    @classmethod
    def of(cls, graph: Graph) -> Flow:
        """Follows the graph once forwards and once backwards."""
        weights = {t.name for t in graph.initializer}
        floats = {v.name for v in (*graph.value_info, *graph.output) if v.type.tensor_type.elem_type == FLOAT}
        floats |= {t.name for t in graph.initializer if t.data_type == FLOAT}
        fixed, deep, ahead = weights | {""}, set[str](), set[str]()
        for node in graph.node:
            if node.op_type == "Shape" or fixed.issuperset(node.input):
                fixed.update(node.output)  # the same for every tile, products among them
            elif _is_product(node) or not deep.isdisjoint(node.input):
                deep.update(node.output)
        for node in reversed(graph.node):
            later = _is_product(node) and not deep.isdisjoint(node.input)
            if later or not ahead.isdisjoint(node.output):
                ahead.update(node.input)
        return cls(*map(frozenset, (floats, weights, deep, ahead)))

    def later_product(self, node: Node) -> bool:
        """Whether this is a product, and not the first one on its way."""
        return _is_product(node) and not self.deep.isdisjoint(node.input)

    def quantised(self, node: Node) -> bool:
        """Whether "int8" gives this product 8-bit operands: it has constant weights, and is neither first nor last."""
        weighted = node.op_type in WEIGHT_AXIS and node.input[1] in self.weights
        return weighted and self.later_product(node) and not self.ahead.isdisjoint(node.output)


def _is_product(node: Node) -> bool:
    return node.op_type in PRODUCTS and not node.name.startswith(MEASURING)


class _Lowering:
    """One graph on its way down."""

    def __init__(self, onnx: Any, static: StaticGraph, half: int, ranges: Ranges | None) -> None:
        self._onnx, self._static, self._half, self._ranges = onnx, static, half, ranges
        self._graph = static.graph
        self._flow = Flow.of(static.graph)
        self._weights = {t.name: t for t in static.graph.initializer}
        self._lowered: set[str] = set()  # what is computed in half precision
        self._nodes: list[Node] = []
        self._names: set[str] = set()  # of the nodes that were added

    def run(self) -> None:
        """Node by node, in the graph's order, in which what a node takes was made before."""
        outputs = {o.name for o in self._graph.output}
        for node in self._graph.node:
            if self._belongs(node):
                self._lower(node, outputs)
            else:
                if node.op_type != "Shape":  # any type has one
                    node.input[:] = [self._as_float(name) for name in node.input]
                self._nodes.append(node)
        used = {name for node in self._nodes for name in node.input}
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(t for name, t in self._weights.items() if name in used)

    def _belongs(self, node: Node) -> bool:
        """Whether a node is computed in half precision."""
        if self._half == self._onnx.TensorProto.BFLOAT16 and node.op_type in NOT_IN_BF16:
            return False
        if self._flow.later_product(node):
            return True
        if node.op_type in FLOAT32_ALWAYS or not self._flow.floats.issuperset(filter(None, node.output)):
            return False
        return not self._lowered.isdisjoint(node.input) and not self._flow.ahead.isdisjoint(node.output)

    def _lower(self, node: Node, outputs: set[str]) -> None:
        inputs = [self._as_half(name) for name in node.input]
        if node.op_type == "Resize":
            inputs[1:] = node.input[1:]  # region and scales are float32 by definition
        if self._ranges is not None and self._flow.quantised(node):
            activation = node.input[0]
            if activation not in self._ranges:
                raise ValueError(f"no range for tensor {activation!r}: measure them on this graph (observe_ranges)")
            inputs[0] = self._activation_in_8_bits(inputs[0], self._ranges[activation])
            inputs[1] = self._weight_in_8_bits(node)
        node.input[:] = inputs
        if node.op_type == "Cast":
            node.attribute[0].i = self._half
        self._nodes.append(node)
        self._lowered.update(node.output)
        for name in outputs.intersection(node.output):  # keeps its name and its float32
            node.output[list(node.output).index(name)] = f"{name}:half"
            self._add("Cast", [f"{name}:half"], name, to=FLOAT)
            self._lowered.discard(name)

    def _as_float(self, name: str) -> str:
        return self._add("Cast", [name], f"{name}:f32", to=FLOAT) if name in self._lowered else name

    def _as_half(self, name: str) -> str:
        if name not in self._flow.floats or name in self._lowered:
            return name
        if name not in self._flow.weights:
            return self._add("Cast", [name], f"{name}:half", to=self._half)
        half = f"{name}:half"
        if half not in self._weights:
            values = self._static.values(self._weights[name])
            largest = float(np.abs(values).max(initial=0))
            if self._half == self._onnx.TensorProto.FLOAT16 and largest > LARGEST_F16:
                raise ValueError(f"{name!r} holds {largest:.4g}, above {LARGEST_F16:.0f}: use bf16")
            self._weights[half] = self._rounded(half, values)
        return half

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        """Adds a node with this output, which is its name too, unless it is there."""
        if output not in self._names:
            self._names.add(output)
            self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _rounded(self, name: str, values: npt.NDArray[Any]) -> Any:
        """float32 values as a tensor in half precision, to nearest even."""
        x = np.ascontiguousarray(values, np.float32)
        if self._half == self._onnx.TensorProto.BFLOAT16:
            bits = x.view(np.uint32)
            raw = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            return self._onnx.TensorProto(name=name, data_type=self._half, dims=values.shape, raw_data=raw.tobytes())
        return self._onnx.numpy_helper.from_array(x.astype(np.float16).reshape(values.shape), name)

    def _activation_in_8_bits(self, name: str, largest: float) -> str:
        scale, zero = f"{name}:scale", f"{name}:zero"
        self._weights[scale] = self._rounded(scale, _steps(np.array(largest)))
        self._weights[zero] = self._onnx.numpy_helper.from_array(np.array(0, np.int8), zero)
        quantised = self._add("QuantizeLinear", [name, scale, zero], f"{name}:int8")
        return self._add("DequantizeLinear", [quantised, scale, zero], f"{name}:from_int8")

    def _weight_in_8_bits(self, node: Node) -> str:
        name = node.input[1]
        quantised, scale, zero = f"{name}:int8", f"{name}:scale", f"{name}:zero"
        values = self._static.values(self._weights[name])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if transposed else WEIGHT_AXIS[node.op_type]
        steps = _steps(np.abs(values).max(tuple(i for i in range(values.ndim) if i != axis), keepdims=True))
        tensor = self._onnx.numpy_helper.from_array
        self._weights[quantised] = tensor(np.rint(values / steps).clip(-127, 127).astype(np.int8), quantised)
        self._weights[scale] = self._rounded(scale, steps.ravel())
        self._weights[zero] = tensor(np.zeros(steps.size, np.int8), zero)
        return self._add("DequantizeLinear", [quantised, scale, zero], f"{name}:from_int8", axis=axis)


def _steps(largest: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The steps with which 127 of them reach `largest`, as half precision holds them; 1 where everything is zero."""
    steps = (largest / 127).astype(np.float16).astype(np.float32)
    return np.where(steps > 0, steps, np.float32(1))
