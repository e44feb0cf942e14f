"""Typed graphs: where which precision stands, and that answers stay what they were."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_helpers import TINY, VARIANTS, scrambled
from engine_helpers import tiles as smooth_tiles
from onnx import TensorProto, helper, numpy_helper

from engines.architecture import MaeArchitecture, RetouchArchitecture
from engines.backends.openvino import compile_graph
from engines.backends.tensorrt.estimate import rounded_answers
from engines.bundle import ZOO, Bundle, Manifest, load_bundle
from engines.export import export_bundle, to_onnx
from engines.graphs import MEASURING, network_graph
from engines.plans import plan_inputs
from engines.precision import PRECISIONS, observe_ranges, typed_graph
from engines.retouch import Retouch
from engines.textures import canvas

PLAN = "x16"
FLOAT, F16, BF16, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8
LARGEST_ERROR = {"f16": 2e-3, "bf16": 3e-2, "int8": 5e-2}
MEAN_ERROR = {"f16": 1e-4, "bf16": 1e-3, "int8": 2e-3}


def some_tiles(count: int, seed: int = 5) -> np.ndarray:
    return np.stack([canvas(seed, k, 224) for k in range(count)])[..., None]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ZOO / "texture-s")


@pytest.fixture(scope="module")
def constants(bundle: Bundle) -> dict[str, Any]:
    assert isinstance(bundle.manifest.architecture, MaeArchitecture)
    return dict(plan_inputs(bundle.manifest.architecture, PLAN))


@pytest.fixture(scope="module")
def ranges(bundle: Bundle, constants: dict[str, Any]) -> dict[str, float]:
    return observe_ranges(bundle.read("network.onnx"), constants, some_tiles(4, seed=9))


@pytest.fixture(scope="module")
def graphs(bundle: Bundle, constants: dict[str, Any], ranges: dict[str, float]) -> dict[str, bytes]:
    raw = bundle.read("network.onnx")
    return {p: typed_graph(raw, constants, 1, p, ranges if p == "int8" else None) for p in PRECISIONS}


def by_onnxruntime(graph: bytes, tiles: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"tiles": tile[None]})[0] for tile in tiles])


def by_openvino(graph: bytes, tiles: np.ndarray) -> np.ndarray:
    request = compile_graph(graph, {}, (1, *tiles.shape[1:]), "f32", 1).create_infer_request()
    answers = []
    for tile in tiles:
        request.infer([tile[None]])
        answers.append(request.get_output_tensor(0).data.copy())
    return np.concatenate(answers)


def types_of(graph: bytes) -> tuple[Any, dict[str, int]]:
    """The model and the type of every tensor in it."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    return model, types | {t.name: t.data_type for t in model.graph.initializer}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_uint8_goes_in_and_float32_comes_out_and_the_plan_is_inside(
    graphs: dict[str, bytes], constants: dict[str, Any], precision: str
) -> None:
    model, types = types_of(graphs[precision])
    (source,), (result,) = model.graph.input, model.graph.output
    assert (source.name, types[source.name], types[result.name]) == ("tiles", TensorProto.UINT8, FLOAT)
    for value in (source, result):
        assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [1, 224, 224, 1]
    inside = {t.name: t for t in model.graph.initializer}
    for name, indices in constants.items():
        assert inside[name].data_type == TensorProto.INT32
        np.testing.assert_array_equal(numpy_helper.to_array(inside[name]), indices)
    gathers = [n for n in model.graph.node if n.op_type == "Gather" and types[n.input[0]] in (FLOAT, F16, BF16)]
    assert gathers
    assert {types[n.input[1]] for n in gathers} == {TensorProto.INT32}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles_are_cast_before_anything_else_is_done_to_them(graphs: dict[str, bytes], precision: str) -> None:
    users = [n.op_type for n in onnx.load_from_string(graphs[precision]).graph.node if "tiles" in n.input]
    assert users == ["Cast"]


@pytest.mark.parametrize(("precision", "half"), [("f16", F16), ("bf16", BF16), ("int8", F16)])
def test_products_are_in_half_precision_but_the_first(graphs: dict[str, bytes], precision: str, half: int) -> None:
    model, types = types_of(graphs[precision])
    of_tiles = {"tiles"}
    products = []
    for node in model.graph.node:
        if node.op_type != "Shape" and not of_tiles.isdisjoint(node.input):
            of_tiles.update(node.output)
            if node.op_type == "MatMul":
                products.append(node)
    assert [types[name] for name in products[0].input] == [FLOAT, FLOAT]
    assert {types[name] for node in products[1:] for name in (*node.input, *node.output)} == {half}
    assert len(products) > 50


@pytest.mark.parametrize(("precision", "half"), [("f32", FLOAT), ("f16", F16), ("bf16", BF16), ("int8", F16)])
def test_layer_normalisation_stays_one_operator(
    bundle: Bundle, graphs: dict[str, bytes], precision: str, half: int
) -> None:
    model, types = types_of(graphs[precision])
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    before = onnx.load_from_string(bundle.read("network.onnx")).graph.node
    assert len(norms) == sum(n.op_type == "LayerNormalization" for n in before)
    assert Counter(types[n.output[0]] for n in norms).most_common(1)[0][0] == half
    assert all(a.i == 1 for n in norms for a in n.attribute if a.name == "stash_type"), "statistics in float32"


def test_int8_weights_are_per_channel_and_activations_symmetric(graphs: dict[str, bytes]) -> None:
    model, types = types_of(graphs["int8"])
    inside = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type != BF16}
    made_by = {name: n for n in model.graph.node for name in n.output}
    weights = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert inside[node.input[1]].shape == ()
            assert inside[node.input[2]] == 0
        back = [made_by.get(name) for name in node.input] if node.op_type == "MatMul" else []
        if len(back) == 2 and back[1] is not None and back[1].op_type == "DequantizeLinear":
            steps, scales = inside[back[1].input[0]], inside[back[1].input[1]]
            assert (steps.dtype, scales.shape, back[1].attribute[0].i) == (np.int8, steps.shape[1:], 1)
            assert (np.abs(steps).max(0) == 127).mean() > 0.95, "each channel fills its range"
            assert back[0] is not None
            assert back[0].op_type == "DequantizeLinear"
            weights += 1
    last = next(n for n in reversed(model.graph.node) if n.op_type == "MatMul")
    assert types[last.input[1]] == F16
    assert last.input[1] in inside, "the last product is not quantised"
    assert weights == 4 * 5 + 4 * 5 - 1, "what the mask token asks first is the same for every tile, and no product"


@pytest.mark.parametrize("precision", ["f16", "int8"])
def test_answers_stay_near_float32_through_onnxruntime(graphs: dict[str, bytes], precision: str) -> None:
    tiles = some_tiles(2)
    error = np.abs(by_onnxruntime(graphs[precision], tiles) - by_onnxruntime(graphs["f32"], tiles))
    assert error.max() < LARGEST_ERROR[precision]
    assert 0 < error.mean() < MEAN_ERROR[precision]


@pytest.mark.parametrize("precision", ["f16", "bf16", "int8"])
def test_answers_stay_near_float32_through_openvino(graphs: dict[str, bytes], precision: str) -> None:
    tiles = some_tiles(2)
    error = np.abs(by_openvino(graphs[precision], tiles) - by_openvino(graphs["f32"], tiles))
    assert error.max() < LARGEST_ERROR[precision]
    assert 0 < error.mean() < MEAN_ERROR[precision]


def test_a_bright_flat_tile_keeps_its_digits_in_half_precision(graphs: dict[str, bytes]) -> None:
    texture = some_tiles(1).astype(np.float32) - 128
    bright = np.clip(np.rint(251 + texture / 60), 0, 255).astype(np.uint8)
    assert bright.std() < 3
    expected = by_onnxruntime(graphs["f32"], bright)
    assert np.abs(by_onnxruntime(graphs["f16"], bright) - expected).max() < 2e-4, "a twentieth of a grey level"


def test_float32_is_the_bundles_graph_with_the_plan_inside(
    bundle: Bundle, graphs: dict[str, bytes], constants: dict[str, Any]
) -> None:
    tiles = some_tiles(1)
    session = onnxruntime.InferenceSession(bundle.read("network.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"tiles": tiles, **constants})
    np.testing.assert_allclose(by_onnxruntime(graphs["f32"], tiles), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bundle_gives_the_same_bytes(
    bundle: Bundle, constants: dict[str, Any], ranges: dict[str, float], graphs: dict[str, bytes], precision: str
) -> None:
    again = typed_graph(bundle.read("network.onnx"), constants, 1, precision, ranges)
    assert again == graphs[precision]


def a_network(*, weight: float = 0.2, pool: bool = False) -> bytes:
    """Convolution, ReLU, convolution, perhaps a mean over pixels, transposed convolution: tiles [N, 16, 16, 1]."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (4, 1, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 1, 3, 3)}
    weights = [
        numpy_helper.from_array((weight * rng.normal(size=shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.float32(255), "full"))
    make = helper.make_node
    nodes = [
        make("Transpose", ["tiles"], ["planes"], perm=[0, 3, 1, 2]),
        make("Cast", ["planes"], ["grey"], to=FLOAT),
        make("Div", ["grey", "full"], ["unit"]),
        make("Conv", ["unit", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        make("Relu", ["c0"], ["r0"]),
        make("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        make("ReduceMean", ["c1"], ["m1"], axes=[2, 3]) if pool else make("Identity", ["c1"], ["m1"]),
        make("Add", ["c1", "m1"], ["a1"]),
        make("ConvTranspose", ["a1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        make("Sigmoid", ["c2"], ["s2"]),
        make("Transpose", ["s2"], ["repainted"], perm=[0, 2, 3, 1]),
    ]
    ends = [
        helper.make_tensor_value_info(name, kind, ["N", 16, 16, 1])
        for name, kind in (("tiles", TensorProto.UINT8), ("repainted", FLOAT))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_single_pass_network_is_typed_too(precision: str, pool: bool) -> None:
    raw, tiles = a_network(pool=pool), np.random.default_rng(1).integers(0, 256, (3, 16, 16, 1), np.uint8)
    ranges = observe_ranges(raw, {}, tiles)
    assert list(ranges) == ["r0"]
    graph = typed_graph(raw, {}, 1, precision, ranges)
    model, types = types_of(graph)
    half = {"f32": FLOAT, "bf16": BF16}.get(precision, F16)
    first, second = (n for n in model.graph.node if n.op_type == "Conv")
    (up,) = (n for n in model.graph.node if n.op_type == "ConvTranspose")
    assert (types[first.output[0]], types[second.output[0]]) == (FLOAT, half)
    assert types[up.output[0]] == (FLOAT if precision == "bf16" else half), "no such kernel in bf16"
    assert all(types[n.input[0]] == FLOAT for n in model.graph.node if n.op_type in ("ReduceMean", "Sigmoid"))
    expected = by_onnxruntime(typed_graph(raw, {}, 1, "f32"), tiles)
    np.testing.assert_allclose(by_openvino(graph, tiles), expected, atol=2e-2 if precision == "int8" else 4e-3)


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_what_measures_small_differences_stays_float32(precision: str) -> None:
    a = RetouchArchitecture(pixels=TINY.model_copy(update={"depth": 1, "decoder_depth": 1}), sigmas_px=(1.0,))
    graph = typed_graph(to_onnx(Retouch(a).eval()), plan_inputs(a, PLAN), 1, precision)
    model, types = types_of(graph)
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    for part in MEASURING:
        measuring = [node for node in products if node.name.startswith(part)]
        assert measuring, f"no module of retouch is called {part}"
        assert {types[name] for node in measuring for name in (*node.input, *node.output)} == {FLOAT}
    repainting = [node for node in products if not node.name.startswith(MEASURING)]
    assert Counter(types[node.output[0]] for node in repainting).most_common(1)[0][0] in (F16, BF16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_where_the_weights_lie_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    a = VARIANTS["he"]
    manifest = Manifest(name="he", architecture=a, licence="none", files={"network.onnx": "0" * 64})
    answers, constants, tiles = [], plan_inputs(a, "x4"), smooth_tiles(a).numpy()
    for largest in (1 << 30, 0):
        monkeypatch.setattr("engines.export.LARGEST_INSIDE_BYTES", largest)
        network = network_graph(export_bundle(tmp_path / str(largest), scrambled(a), manifest))
        assert isinstance(network, Path) == (largest == 0)
        ranges = observe_ranges(network, constants, tiles) if precision == "int8" else None
        graph = typed_graph(network, constants, 1, precision, ranges)
        assert graph == typed_graph(network, constants, 1, precision, ranges)
        answers.append(rounded_answers(graph, tiles))
    assert answers[0].std() > 0.05
    np.testing.assert_allclose(*answers, atol=1e-6, rtol=0)


def test_an_estimate_rounds_every_tensor() -> None:
    tiles = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 1), np.uint8)
    graphs = {p: typed_graph(a_network(), {}, 1, p) for p in ("f32", "f16", "bf16")}
    exact = rounded_answers(graphs["f32"], tiles)
    np.testing.assert_array_equal(exact, by_onnxruntime(graphs["f32"], tiles))
    f16, bf16 = (np.abs(rounded_answers(graphs[p], tiles) - exact).mean() for p in ("f16", "bf16"))
    assert 4 < bf16 / f16 < 16, "three bits less"
    assert np.abs(by_openvino(graphs["f16"], tiles) - exact).mean() < f16, "which leaves most casts out"


def test_the_batch_is_fixed() -> None:
    model = onnx.load_from_string(typed_graph(a_network(), {}, 3, "f16"))
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value == 3


def test_what_cannot_be_typed_is_named() -> None:
    with pytest.raises(ValueError, match="precision 'f8': expected one of f32, f16, bf16, int8"):
        typed_graph(a_network(), {}, 1, "f8")
    with pytest.raises(ValueError, match="no range for tensor 'r0'"):
        typed_graph(a_network(), {}, 1, "int8")
    with pytest.raises(ValueError, match="no calibration tiles"):
        observe_ranges(a_network(), {}, np.empty((0, 16, 16, 1), np.uint8))
    with pytest.raises(ValueError, match="inputs are tiles: expected the tiles and visible"):
        typed_graph(a_network(), {"visible": np.zeros((1, 1), np.int32)}, 1, "f16")
    with pytest.raises(ValueError, match=r"'w1' holds .*e\+05, above 65504: use bf16"):
        typed_graph(a_network(weight=1e5), {}, 1, "f16")
    typed_graph(a_network(weight=1e5), {}, 1, "bf16")
