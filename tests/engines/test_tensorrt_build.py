"""Real engines, built by TensorRT-RTX, which needs no GPU for it; and what TensorRT says when something is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_helpers import TINY, VARIANTS, scrambled, tiles
from numpy.typing import NDArray
from onnx import helper
from pydantic import BaseModel, ValidationError

from edge.errors import BundleError, EngineError
from engines.architecture import VIT_B, Architecture
from engines.backends.cache import EngineCache
from engines.backends.manifest import EngineKey
from engines.backends.tensorrt.api import Api, find_tensorrt
from engines.backends.tensorrt.build import build_engine, build_for
from engines.bundle import GRAPH, ZOO, Bundle, Manifest, load_bundle, write_bundle
from engines.export import export_bundle
from engines.graphs import network_graph
from engines.networks import Network, build
from engines.plans import plan_inputs
from engines.precision import typed_graph
from engines.registry import ENGINES

TARGETS = ("sm86", "sm89", "sm120")
SMALLER: Mapping[str, tuple[Any, ...]] = {
    "patch_px": (4,),
    "tile_px": (48, 56, 64, 96, 112, 128),
    "depth": (1,),
    "decoder_depth": (1,),
    "stacks": (1,),
    "dilations": ((1, 2),),
}
"""Sizes that kernels do not depend on, and values to try for them, the smallest first."""
FIRST = {name: next(iter(kind.sizes.values())) for name, kind in ENGINES.items()}
"""By engine, the size that is taken when none is named."""
OTHERS = {f"{name} {size}": a for name, kind in ENGINES.items() for size, a in list(kind.sizes.items())[1:]}
OTHERS["mae vit-b normalised"] = VIT_B.model_copy(update={"target": "normalised"})
"""All others that `maskline engines` lists, and what `maskline engine import --target normalised` makes."""
IN_ALL_PRECISIONS = ("mae", "sdc")
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


def lowered(model: BaseModel, name: str) -> Iterator[dict[str, object]]:
    """The fields of a model with one of its sizes, or of a model within, lowered: the lowest first."""
    fields = model.model_dump()
    for field, value in model:
        if isinstance(value, BaseModel):
            yield from (fields | {field: inner} for inner in lowered(value, name))
        elif field == name:
            yield from (fields | {field: smaller} for smaller in SMALLER[name] if value > smaller)


def small(architecture: Architecture) -> Architecture:
    """A network with the same kinds of layers in the same order, and no more of each than its architecture wants."""
    for name in SMALLER:
        for fields in lowered(architecture, name):
            with contextlib.suppress(ValidationError):
                architecture = type(architecture).model_validate(fields)
                break
    return architecture


def noise(a: Architecture, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, a.tile_px, a.tile_px, a.channels), np.uint8)


def measure(network: Network) -> None:
    """What is usual on good tiles, which fitting ends with; without it there are no answers."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.mul_(6**0.5)  # fresh ones let too little through to be told from nothing
    network.measure(torch.from_numpy(noise(network.architecture, 8)))  # type: ignore[operator, union-attr]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One of each of FIRST and OTHERS, exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("bundles")

    class Bundles(dict[str, Bundle]):
        def __missing__(self, name: str) -> Bundle:
            torch.manual_seed(0)
            network = build(small((FIRST | OTHERS)[name])).eval()
            if hasattr(network, "measure"):
                measure(network)
            manifest = Manifest(
                name=name.replace(" ", "-"),
                architecture=network.architecture,
                error_map=ENGINES[name.split()[0]].error_map,
                licence="none",
                files={"network.onnx": "0" * 64},
            )
            self[name] = export_bundle(folder / manifest.name, network, manifest)
            return self[name]

    return Bundles()


def key_of(api: Api, bundle: Bundle, plan: str, precision: str, target: str) -> EngineKey:
    at = (target, "")
    return EngineKey.of(bundle, plan, precision, 1, flavour=api.flavour, version=api.version, gpu=at)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        (engine, precision)
        for engine in ENGINES
        for precision in (("f32", "f16", "int8") if engine in IN_ALL_PRECISIONS else ("f16",))
    ],
)
def test_every_engine_builds_in_every_plan_for_every_gpu(
    api: Api, bundles: dict[str, Bundle], tmp_path: Path, engine: str, precision: str
) -> None:
    bundle, cache = bundles[engine], EngineCache(tmp_path)
    calibration = noise(bundle.manifest.architecture, 2)
    found = set()
    for plan in bundle.manifest.plans:
        for target in TARGETS:
            stored = build_for(api, cache, bundle, key_of(api, bundle, plan, precision, target), calibration)
            assert stored.manifest.engine_bytes > 20_000
            assert len(cache.read(stored)) == stored.manifest.engine_bytes
            found.add(stored.manifest.engine_sha256)
    assert len(found) == len(bundle.manifest.plans) * len(TARGETS), "an engine for each plan and GPU"


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_size_builds(api: Api, bundles: dict[str, Bundle], tmp_path: Path, name: str) -> None:
    bundle = bundles[name]
    assert bundle.manifest.channels == 3
    stored = build_for(api, EngineCache(tmp_path), bundle, key_of(api, bundle, "x1", "f16", "sm89"))
    weights_f32 = bundle.path.joinpath("network.safetensors").stat().st_size
    assert stored.manifest.engine_bytes > weights_f32 / 2, "two bytes a weight, and kernels"


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


def test_int8_is_built_again_without_images_from_what_an_earlier_engine_was_built_with(
    api: Api, tiny: Bundle, tmp_path: Path
) -> None:
    cache, key = EngineCache(tmp_path), key_of(api, tiny, "x16", "int8", "sm86")
    stale = build_for(api, cache, tiny, key.model_copy(update={"version": "1.0"}), tiles(SMALL).numpy()).manifest
    again = build_for(api, cache, tiny, key).manifest
    assert (again.graph_sha256, again.engine_sha256) == (stale.graph_sha256, stale.engine_sha256)


def test_the_bundle_that_ships_builds(api: Api, tmp_path: Path) -> None:
    bundle = load_bundle(ZOO / "texture-s")
    stored = build_for(api, EngineCache(tmp_path), bundle, key_of(api, bundle, "x1", "f16", "sm89"))
    weights_f32 = (bundle.path / "network.safetensors").stat().st_size
    assert stored.manifest.engine_bytes > weights_f32 / 2, "two bytes a weight, and kernels"


@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_weights_that_lie_beside_the_graph_are_built_in(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    bundle, cache = beside(tmp_path / "large", monkeypatch), EngineCache(tmp_path / "cache")
    assert network_graph(bundle) == bundle.path / GRAPH, "not its bytes: they are not all"
    key = key_of(api, bundle, "x4", precision, "sm86")
    calibration = noise(bundle.manifest.architecture, 2)
    assert build_for(api, cache, bundle, key, calibration).manifest.engine_bytes > 100_000
    monkeypatch.setattr("engines.graphs.LARGEST_BYTES", 10_000)
    if precision == "f32":  # no weight is another than the bundle's, and they need not fit into the graph
        build_for(api, cache, bundle, key)
        return
    with pytest.raises(EngineError, match=rf"large: {precision} of plan x4: its weights take 0\.\d+ GB, .* 2 GiB"):
        build_for(api, cache, bundle, key, calibration)


def beside(path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle in He et al.'s layout that keeps its weights beside its graph, as those above 1.9 GB do."""
    monkeypatch.setattr("engines.export.LARGEST_INSIDE_BYTES", 0)
    a = VARIANTS["he"].model_copy(update={"depth": 1, "decoder_depth": 1})
    manifest = Manifest(name="large", architecture=a, licence="none", files={GRAPH: "0" * 64})
    return export_bundle(path, scrambled(a), manifest)


def test_weights_that_are_not_where_the_graph_says_are_named(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache = beside(tmp_path / "large", monkeypatch), EngineCache(tmp_path / "cache")
    weights, right = bundle.read("network.safetensors"), bundle.read(GRAPH)
    wrong = {
        r"network\.onnx is no ONNX graph": b"network.safetensors",
        r"has weights 'model\..*they are not there": elsewhere(right, "offset", str(len(weights))),
        "in {'location': '../large/network.safetensors'": elsewhere(right, "location", "../large/network.safetensors"),
        r"'length': '1e3'}: they are not there": elsewhere(right, "length", "1e3"),
    }
    for message, graph in wrong.items():
        broken = write_bundle(bundle.path, bundle.manifest, {GRAPH: graph, "network.safetensors": weights})
        with pytest.raises(BundleError, match=rf"large: .*{message}.*import it again"):
            build_for(api, cache, broken, key_of(api, broken, "x4", "f16", "sm86"))


def elsewhere(graph: bytes, key: str, value: str) -> bytes:
    """A graph whose first weights lie somewhere else, it says."""
    model = onnx.load_from_string(graph)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
    data: bytes = model.SerializeToString()
    return data


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
    with pytest.raises(BundleError, match="kind 'null' is not for backend 'tensorrt'"):
        build_for(api, cache, null, key_of(api, tiny, "x1", "f16", "sm86"))
    with pytest.raises(EngineError, match="int8 of plan x1: no calibration tiles"):
        build_for(api, cache, tiny, key_of(api, tiny, "x1", "int8", "sm86"))
    assert not list(tmp_path.iterdir())


def test_a_batch_builds(api: Api, tiny: Bundle) -> None:
    graph = typed_graph(tiny.read("network.onnx"), plan_inputs(SMALL, "x16"), 4, "f16")
    assert len(build_engine(api, graph, "sm86")) > 50_000
