"""Real engines, built by TensorRT-RTX, which needs no GPU for it; and what TensorRT says when something is wrong."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from engine_helpers import TINY, scrambled, tiles
from onnx import helper

from edge.errors import BundleError, EngineError
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.build import build_engine, build_for
from engines.backends.tensorrt.cache import EngineCache, EngineKey
from engines.bundle import ZOO, Bundle, Manifest, load_bundle
from engines.export import export_bundle
from engines.plans import PLANS, plan_inputs
from engines.precision import typed_graph

TARGETS = ("sm86", "sm89", "sm120")
SMALL = TINY.model_copy(update={"depth": 1, "decoder_depth": 1})


@pytest.fixture(scope="module")
def api() -> Api:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install 'maskline[rtx]'")
    found = find_tensorrt()
    if found.flavour != "tensorrt_rtx":
        pytest.skip(f"{found.name} is installed as well and comes first; it builds for the GPU of this machine alone")
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    manifest = Manifest(name="tiny", architecture=SMALL, licence="none", files={"network.onnx": "0" * 64})
    return export_bundle(tmp_path_factory.mktemp("bundle") / "tiny", scrambled(SMALL), manifest)


def key_of(api: Api, bundle: Bundle, plan: str, precision: str, target: str) -> EngineKey:
    at = (target, "")
    return EngineKey.of(bundle, plan, precision, 1, flavour=api.flavour, version=api.version, gpu=at)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_every_plan_builds_for_every_gpu(api: Api, tiny: Bundle, tmp_path: Path, plan: str, precision: str) -> None:
    cache, calibration = EngineCache(tmp_path), tiles(SMALL).numpy()
    found = set()
    for target in TARGETS:
        stored = build_for(api, cache, tiny, key_of(api, tiny, plan, precision, target), calibration)
        assert stored.manifest.engine_bytes > 50_000
        assert len(cache.read(stored)) == stored.manifest.engine_bytes
        found.add(stored.manifest.engine_sha256)
    assert len(found) == len(TARGETS), "an engine for each GPU"


def test_bfloat16_builds(api: Api, tiny: Bundle, tmp_path: Path) -> None:
    key = key_of(api, tiny, "x16", "bf16", "sm89")
    assert build_for(api, EngineCache(tmp_path), tiny, key).manifest.engine_bytes > 50_000


@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_the_same_bundle_gives_the_same_engine_to_the_byte(
    api: Api, tiny: Bundle, tmp_path: Path, precision: str
) -> None:
    key, calibration = key_of(api, tiny, "x4", precision, "sm86"), tiles(SMALL).numpy()
    first, second = (
        build_for(api, EngineCache(tmp_path / name), tiny, key, calibration).manifest for name in ("a", "b")
    )
    assert first.engine_sha256 == second.engine_sha256
    assert first.graph_sha256 == second.graph_sha256


def test_other_calibration_images_make_another_int8_engine(api: Api, tiny: Bundle, tmp_path: Path) -> None:
    cache, key = EngineCache(tmp_path), key_of(api, tiny, "x16", "int8", "sm86")
    dark = tiles(SMALL).numpy() // 4
    first = build_for(api, cache, tiny, key, tiles(SMALL).numpy()).manifest
    second = build_for(api, cache, tiny, key, dark).manifest
    assert first.graph_sha256 != second.graph_sha256
    assert first.engine_sha256 != second.engine_sha256
    assert cache.find(key).manifest == second


def test_the_bundle_that_ships_builds(api: Api, tmp_path: Path) -> None:
    bundle = load_bundle(ZOO / "texture-s")
    stored = build_for(api, EngineCache(tmp_path), bundle, key_of(api, bundle, "x1", "f16", "sm89"))
    weights_f32 = (bundle.path / "network.safetensors").stat().st_size
    assert stored.manifest.engine_bytes > weights_f32 / 2, "two bytes a weight, and kernels"


def a_graph(operator: str) -> bytes:
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x", "x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def test_what_tensorrt_says_is_passed_on(api: Api) -> None:
    with pytest.raises(EngineError, match=r"cannot read the graph: .*Failed to parse the ONNX model"):
        build_engine(api, b"not a graph", "sm86")
    with pytest.raises(EngineError, match=r"cannot read the graph: .*Plugin not found"):
        build_engine(api, a_graph("Nothing"), "sm86")
    with pytest.raises(EngineError, match=r"cannot build for sm75: .*Turing \(SM75\): FP32 GEMM is not supported"):
        build_engine(api, a_graph("MatMul"), "sm75")
    with pytest.raises(EngineError, match="builds for sm75, sm80, sm86"):
        build_engine(api, a_graph("MatMul"), "sm87")
    assert len(build_engine(api, a_graph("MatMul"), "sm86")) > 10_000


def test_without_a_driver_an_engine_neither_builds_for_this_gpu_nor_loads(api: Api) -> None:
    runtime = api.trt.Runtime(api.log)
    engine = build_engine(api, a_graph("MatMul"), "sm86")
    api.said()
    if runtime.deserialize_cuda_engine(engine) is not None:
        pytest.skip("there is a driver here, and it loads")
    assert "CUDA driver" in api.said()
    with pytest.raises(EngineError, match=r"cannot build for this GPU: .*CUDA driver"):
        build_engine(api, a_graph("MatMul"))


def test_a_bundle_without_a_network_and_int8_without_images_are_refused(api: Api, tiny: Bundle, tmp_path: Path) -> None:
    cache, null = EngineCache(tmp_path), load_bundle(ZOO / "null")
    with pytest.raises(BundleError, match="kind 'null' has no network"):
        build_for(api, cache, null, key_of(api, tiny, "x1", "f16", "sm86"))
    with pytest.raises(EngineError, match="int8 of plan x1: no calibration tiles"):
        build_for(api, cache, tiny, key_of(api, tiny, "x1", "int8", "sm86"))
    assert not list(tmp_path.iterdir())


def test_a_batch_builds(api: Api, tiny: Bundle) -> None:
    graph = typed_graph(tiny.read("network.onnx"), plan_inputs(SMALL, "x16"), 4, "f16")
    assert len(build_engine(api, graph, "sm86")) > 50_000
