"""The exported graph gives what torch gives the plain way, through OpenVINO and through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge.errors import BundleError, RecipeError
from engines.architecture import MaeArchitecture
from engines.backends import open_backend
from engines.bundle import ZOO, Bundle, DirectMap, Manifest, SmoothedMap, load_bundle, write_bundle
from engines.export import OPSET, export_bundle, load_model
from engines.fit import from_scratch
from engines.mae import MaskedAutoencoder
from engines.plans import PLANS, named_plan
from engines.reference import repaint_plainly

TINY = MaeArchitecture(
    tile_px=48, patch_px=6, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=2, decoder_heads=2
)
KINDS = {
    "cross": TINY,
    "near": TINY.model_copy(update={"context": 2}),
    "odd": TINY.model_copy(update={"tile_px": 42}),
    "he": TINY.model_copy(
        update={"decoder": "self", "positions": "sine", "normalise": "fixed", "class_token": True, "channels": 3}
    ),
}
MANIFEST = Manifest(name="tiny", architecture=TINY, licence="none", files={"network.onnx": "0" * 64})


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = MaskedAutoencoder(KINDS[request.param])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 / max(1, p.shape[-1]) ** 0.5))
        model.head.weight.mul_(2.0)
    return export_bundle(tmp_path_factory.mktemp(request.param) / "b", model, MANIFEST)


def some_tiles(bundle: Bundle, count: int) -> np.ndarray:
    rng, side = np.random.default_rng(1), bundle.manifest.tile_px
    coarse = rng.uniform(0, 255, (count, bundle.manifest.channels, 8, 8)).astype(np.float32)
    tiles = torch.nn.functional.interpolate(torch.from_numpy(coarse), (side, side), mode="bicubic")
    return np.ascontiguousarray(tiles.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


def plainly(bundle: Bundle, tiles: np.ndarray, plan: str) -> np.ndarray:
    model = load_model(bundle)
    sets = named_plan(plan, model.architecture)
    return repaint_plainly(model, torch.from_numpy(tiles), sets).numpy()


def by_openvino(bundle: Bundle, tiles: np.ndarray, plan: str, batch: int = 2) -> np.ndarray:
    backend = open_backend("openvino")
    backend.load(bundle, plan, precision="f32", threads=1, batch=batch)
    backend.warm_up()
    out = np.full(tiles.shape, np.nan, np.float32)
    assert backend.infer(tiles, out) is None
    return out


@pytest.mark.parametrize("plan", PLANS)
def test_openvino_equals_torch(bundle: Bundle, plan: str) -> None:
    tiles = some_tiles(bundle, 3)
    expected = plainly(bundle, tiles, plan)
    assert expected.std() > 0.05
    np.testing.assert_allclose(by_openvino(bundle, tiles, plan), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", PLANS)
def test_onnxruntime_equals_torch(bundle: Bundle, plan: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.read("network.onnx"), options, providers=["CPUExecutionProvider"])
    a, tiles = load_model(bundle).architecture, some_tiles(bundle, 3)
    sets = named_plan(plan, a)
    feeds = {"tiles": tiles, "visible": sets.visible, "hidden": sets.hidden, "place": sets.place}
    (repainted,) = session.run(None, feeds)
    np.testing.assert_allclose(repainted, plainly(bundle, tiles, plan), atol=1e-4, rtol=0)


def test_the_same_tile_gives_the_same_bits_alone_and_in_company(bundle: Bundle) -> None:
    tiles = some_tiles(bundle, 3)
    together = by_openvino(bundle, tiles, "x4")
    again = by_openvino(bundle, tiles, "x4")
    np.testing.assert_array_equal(together, again)
    swapped = by_openvino(bundle, np.ascontiguousarray(tiles[::-1]), "x4")
    np.testing.assert_array_equal(together, swapped[::-1])


def test_layer_norms_are_one_operator_and_the_weights_are_inside(bundle: Bundle) -> None:
    graph = onnx.load_from_string(bundle.read("network.onnx"))
    assert graph.opset_import[0].version == OPSET
    a = load_model(bundle).architecture
    norms = sum(node.op_type == "LayerNormalization" for node in graph.graph.node)
    last_asks_less = a.decoder == "self"  # its queries and its context are normalised apart
    assert norms == 2 * (a.depth + a.decoder_depth) + 2 + last_asks_less
    assert not any(t.data_location for t in graph.graph.initializer)
    assert [i.name for i in graph.graph.input] == ["tiles", "visible", "hidden", "place"]


def test_what_the_backend_says_of_itself(bundle: Bundle) -> None:
    backend = open_backend("openvino")
    with pytest.raises(RuntimeError, match="load"):
        backend.describe()
    backend.load(bundle, "x1", precision="f32", threads=1, batch=1)
    info = backend.describe()
    assert (info.backend, info.device, info.precision, info.plan) == ("openvino", "CPU", "f32", "x1")
    assert info.version
    assert info.isa


def test_a_precision_that_the_cpu_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(RecipeError, match=r"precision 'f8': this CPU has f32"):
        open_backend("openvino").load(bundle, "x1", precision="f8", threads=1, batch=1)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    broken = write_bundle(tmp_path / "b", MANIFEST, {"network.onnx": b"not a graph"})
    with pytest.raises(BundleError, match="OpenVINO cannot run"):
        open_backend("openvino").load(broken, "x1", precision="f32", threads=1, batch=1)
    with pytest.raises(BundleError, match="for backend 'openvino'"):
        open_backend("openvino").load(load_bundle(ZOO / "null"), "x1", precision="f32", threads=1, batch=1)


def test_answers_without_the_map_that_the_manifest_wants_are_refused(tmp_path: Path) -> None:
    wants = MANIFEST.model_copy(update={"error_map": DirectMap()})
    with pytest.raises(ValueError, match="answers have 1 planes, not what error map 'direct' needs"):
        export_bundle(tmp_path / "b", MaskedAutoencoder(TINY), wants)
    start = from_scratch("sdc", tile_px=64)
    bundle = export_bundle(tmp_path / "s", start.network, start.manifest)
    assert isinstance(bundle.manifest.error_map, SmoothedMap)
    changed = bundle.manifest.model_copy(update={"error_map": DirectMap()})
    bundle = write_bundle(tmp_path / "c", changed, {name: bundle.read(name) for name in bundle.manifest.files})
    with pytest.raises(BundleError, match=r"network.onnx answers \[1,64,64,1\], expected \[1, 64, 64, 2\]"):
        open_backend("openvino").load(bundle, "x1", precision="f32", threads=1, batch=1)


def test_the_bundle_that_ships_equals_torch_and_repaints() -> None:
    bundle = load_bundle(ZOO / "texture-s")
    from engines.textures import canvas

    tiles = np.stack([canvas(77, k, 224) for k in (0, 1)])[..., None]
    repainted = by_openvino(bundle, tiles, "x16")
    np.testing.assert_allclose(repainted, plainly(bundle, tiles, "x16"), atol=1e-4, rtol=0)
    flat = tiles.mean((1, 2, 3), keepdims=True) / 255
    assert abs(repainted - tiles / 255).mean() < abs(flat - tiles / 255).mean()


def test_a_network_of_one_pass_is_served_as_torch_computes_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = from_scratch("sdc", tile_px=64, channels=3)
    network = start.network.train()
    rng = np.random.default_rng(0)
    fitted = torch.from_numpy(rng.integers(0, 256, (4, 64, 64, 3), np.uint8))
    for _ in range(3):
        network(fitted)  # the statistics of the batches are no longer those of fresh weights
    bundle = export_bundle(tmp_path / "b", network, start.manifest)
    assert bundle.manifest.plans == ("x1",)
    tiles = some_tiles(bundle, 3)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(tiles)).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(by_openvino(bundle, tiles, "x1"), expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        again = load_model(bundle)(torch.from_numpy(tiles)).numpy()
    np.testing.assert_array_equal(again, expected)
    with pytest.raises(BundleError, match=r"it has no mask plan 'x16', only x1; change `plan` in the recipe"):
        by_openvino(bundle, tiles, "x16")
