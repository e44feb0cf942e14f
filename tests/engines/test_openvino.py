"""OpenVINO: static shapes, precisions that are read back, compiled models that are kept for the next start."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import openvino
import pytest
from engine_helpers import TINY, scrambled, tiles
from onnx import numpy_helper

import engines.backends.openvino as served
import engines.backends.openvino.compiling as compiling
from edge.errors import BundleError, RecipeError, ResourceError
from engines.backends import open_backend
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import network_sha256
from engines.backends.openvino import OpenVinoBackend, compile_graph
from engines.backends.openvino.compiling import core, network_graph
from engines.backends.verify import answers
from engines.bundle import GRAPH, WEIGHTS, ZOO, Bundle, Manifest, load_bundle
from engines.export import export_bundle
from engines.plans import PLANS, plan_inputs

TILES = tiles(TINY, 5).numpy()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    manifest = Manifest(name="tiny", architecture=TINY, licence="none", files={GRAPH: "0" * 64})
    return export_bundle(tmp_path_factory.mktemp("bundle") / "tiny", scrambled(TINY), manifest)


def load(bundle: Bundle, kept: Path, plan: str = "x16", *, threads: int = 1, batch: int = 1) -> OpenVinoBackend:
    backend = OpenVinoBackend(compiled=EngineCache(kept))
    backend.load(bundle, plan, precision="f32", threads=threads, batch=batch)
    return backend


def answer(backend: OpenVinoBackend, bundle: Bundle) -> np.ndarray:
    return answers(backend, bundle.manifest, TILES)


def the_only_one(kept: Path) -> Stored:
    (folder,) = kept.iterdir()
    (stored,) = EngineCache(kept).everything()
    assert stored.folder == folder
    return stored


def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise AssertionError("it was kept, and is made again")

    monkeypatch.setattr(served, "static_model", fail)


@pytest.mark.parametrize("plan", PLANS)
def test_a_kept_model_answers_as_the_compiled_one_to_the_bit(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    first = load(bundle, tmp_path, plan)
    expected = answer(first, bundle)
    nothing_is_compiled(monkeypatch)
    again = load(bundle, tmp_path, plan)
    np.testing.assert_array_equal(answer(again, bundle), expected)
    assert np.ptp(expected) > 0.5
    assert again.describe() == first.describe()


@pytest.mark.parametrize("tile_px", [48, 54])  # 16 blocks, and 25, some of them smaller, which no four runs share
def test_the_quarters_of_x1_are_its_variants(tmp_path: Path, tile_px: int) -> None:
    network = TINY.model_copy(update={"tile_px": tile_px})
    manifest = Manifest(name="tiny", architecture=network, licence="none", files={GRAPH: "0" * 64})
    bundle, pictures = export_bundle(tmp_path / "tiny", scrambled(network), manifest), tiles(network, 3).numpy()
    whole = compile_graph(network_graph(bundle), plan_inputs(network, "x1"), (1, *pictures.shape[1:]), "f32", 1)
    request = whole.create_infer_request()
    expected = np.stack([request.infer([tile[None]])[0][0].copy() for tile in pictures])
    for batch in (1, 2):
        found = answers(load(bundle, tmp_path / "kept", "x1", batch=batch), bundle.manifest, pictures)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_some_blocks_of_a_tile_are_repainted_and_the_rest_is_left_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    backend = load(bundle, tmp_path, "x1")
    expected, out = answer(backend, bundle), np.full(TILES.shape, -1, np.float32)
    side = TINY.block * TINY.patch_px
    across = TINY.tile_px // side
    assert backend.blocks == across**2 // 4
    chosen = np.stack([(np.arange(backend.blocks) * 3 + i) % across**2 for i in range(len(TILES))]).astype(np.int32)
    backend.repaint(TILES, out, chosen)
    for tile, whole, blocks in zip(out, expected, chosen, strict=True):
        for block in range(across**2):
            row, column = (n * side for n in divmod(block, across))
            here = np.s_[row : row + side, column : column + side]
            np.testing.assert_array_equal(tile[here], whole[here] if block in blocks else -1)


@pytest.mark.parametrize("plan", ["x4", "x16", "x32"])
def test_other_plans_know_no_blocks(bundle: Bundle, tmp_path: Path, plan: str) -> None:
    assert load(bundle, tmp_path, plan).blocks == 0


def flip(position: float) -> Callable[[Stored], None]:
    def damage(stored: Stored) -> None:
        data = bytearray(stored.engine.read_bytes())
        data[int(position * len(data))] ^= 0x7F
        stored.engine.write_bytes(data)

    return damage


OPENED_AND_CLOSED = """
import signal, sys
from pathlib import Path
from engines.backends.cache import EngineCache
from engines.backends.openvino import OpenVinoBackend
from engines.bundle import load_bundle

def opened():
    backend = OpenVinoBackend(compiled=EngineCache(Path(sys.argv[2])))
    backend.load(load_bundle(Path(sys.argv[1])), "x16", precision="f32", threads=1, batch=1)
    return backend

first, second = opened(), opened()
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_heard_after_engines_were_opened_and_closed(bundle: Bundle, tmp_path: Path) -> None:
    """Each runtime of OpenVINO changes the stack that signals are handled on; in the wrong order that is fatal."""
    command = [sys.executable, "-c", OPENED_AND_CLOSED, bundle.path, tmp_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, "heard\n")


@pytest.mark.parametrize(
    "damage",
    [
        flip(0),
        flip(0.2),  # among the weights, which OpenVINO does not look at
        flip(0.5),
        flip(0.999),
        lambda stored: stored.engine.write_bytes(stored.engine.read_bytes()[:-1]),
        lambda stored: stored.engine.write_bytes(b""),
        lambda stored: stored.engine.unlink(),
        lambda stored: (stored.folder / "manifest.json").write_bytes(b"{}"),
        lambda stored: (stored.folder / "manifest.json").unlink(),
    ],
)
def test_what_is_damaged_is_made_again_and_never_served(
    bundle: Bundle, tmp_path: Path, damage: Callable[[Stored], None]
) -> None:
    expected = answer(load(bundle, tmp_path), bundle)
    whole = the_only_one(tmp_path)
    damage(whole)
    np.testing.assert_array_equal(answer(load(bundle, tmp_path), bundle), expected)
    assert EngineCache(tmp_path).has(whole.manifest.key), "whole again"


def test_openvino_itself_runs_a_kept_model_with_damaged_weights(bundle: Bundle, tmp_path: Path) -> None:
    expected = answer(load(bundle, tmp_path), bundle)
    model = the_only_one(tmp_path).engine.read_bytes()
    weights = (numpy_helper.to_array(t) for t in onnx.load_from_string(bundle.read(GRAPH)).graph.initializer)
    kept = [w.tobytes() for w in weights if w.dtype == np.float32 and w.size > 99 and w.tobytes() in model]
    for values in kept:
        model = model.replace(values, values[::-1])
    request = core().import_model(model, "CPU", {}).create_infer_request()
    request.infer([TILES[:1]])
    assert kept
    assert not np.allclose(request.get_output_tensor().data, expected[:1], atol=0.01), "which is why hashes are checked"


def test_what_openvino_cannot_read_is_made_again(bundle: Bundle, tmp_path: Path) -> None:
    expected = answer(load(bundle, tmp_path), bundle)
    model, manifest = b"not what this version writes", the_only_one(tmp_path).manifest
    sha256 = hashlib.sha256(model).hexdigest()
    other = EngineCache(tmp_path / "other")
    other.store(manifest.model_copy(update={"engine_sha256": sha256, "engine_bytes": len(model)}), model)
    np.testing.assert_array_equal(answer(load(bundle, tmp_path / "other"), bundle), expected)


def test_all_that_matters_tells_kept_models_apart(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[Callable[[], object]] = [
        lambda: load(bundle, tmp_path),
        lambda: load(bundle, tmp_path, "x4"),
        lambda: load(bundle, tmp_path, threads=2),
        lambda: load(bundle, tmp_path, batch=2),
        lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2") or load(bundle, tmp_path),
        lambda: monkeypatch.setattr(openvino, "__version__", "1.0") or load(bundle, tmp_path),
        lambda: monkeypatch.setattr(compiling, "REVISION", 99) or load(bundle, tmp_path),
    ]
    for count, change in enumerate(changes, 1):
        change()
        assert len(list(tmp_path.iterdir())) == count
    load(bundle, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(changes)


def test_weights_that_lie_beside_the_graph_tell_networks_apart(bundle: Bundle) -> None:
    manifest = bundle.manifest
    other = manifest.model_copy(update={"files": {**manifest.files, WEIGHTS: "1" * 64}})
    assert network_sha256(other) != network_sha256(manifest)


def test_a_bundle_that_was_tampered_with_is_refused_also_where_a_compiled_model_is_kept(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.path, folder)
    copied = load_bundle(folder)
    load(copied, tmp_path / "kept")
    graph = folder / GRAPH
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="sha256 is"):
        load(copied, tmp_path / "kept")


def test_a_mask_plan_of_its_own_tells_networks_of_one_graph_apart(bundle: Bundle) -> None:
    """The index sets are inputs of the graph: a network with a local context has the same file as one without."""
    manifest = bundle.manifest
    near = manifest.architecture.model_copy(update={"context": 1})
    assert near != manifest.architecture
    assert network_sha256(manifest.model_copy(update={"architecture": near})) != network_sha256(manifest)


def test_a_cache_that_cannot_be_written_costs_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    expected = answer(load(bundle, tmp_path / "kept"), bundle)
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        np.testing.assert_array_equal(answer(load(bundle, tmp_path / "file" / "kept"), bundle), expected)


def test_kept_models_do_not_pile_up(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(bundle, tmp_path, threads=1)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*"))
    monkeypatch.setattr(compiling, "COMPILED_BYTES", int(2.5 * size))
    for threads in (2, 1, 3):  # 1 is used again before there is one too many
        load(bundle, tmp_path, threads=threads)
    assert {stored.manifest.key.threads for stored in EngineCache(tmp_path).everything()} == {1, 3}
    monkeypatch.setattr(compiling, "COMPILED_BYTES", 1000)
    load(bundle, tmp_path, threads=4)
    assert {stored.manifest.key.threads for stored in EngineCache(tmp_path).everything()} == {1, 3}, "4 is too large"


def test_by_default_they_are_kept_beside_the_engines(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path))
    open_backend("openvino").load(bundle, "x16", precision="f32", threads=1, batch=1)
    assert [path.name for path in tmp_path.iterdir()] == ["compiled"]


def test_shapes_are_static_and_batches_are_filled_up(bundle: Bundle, tmp_path: Path) -> None:
    model = compile_graph(network_graph(bundle), plan_inputs(TINY, "x16"), (3, 48, 48, 1), "f32", 1)
    assert [port.get_partial_shape().to_shape() for port in (model.input(0), model.output(0))] == [[3, 48, 48, 1]] * 2
    one, three = load(bundle, tmp_path), load(bundle, tmp_path, batch=3)
    np.testing.assert_allclose(answer(three, bundle), answer(one, bundle), atol=1e-5)


def test_the_precision_that_was_asked_for_is_the_one_that_is_read_back(bundle: Bundle, tmp_path: Path) -> None:
    has_bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    backend = OpenVinoBackend(compiled=EngineCache(tmp_path))
    for precision in ("f32", "bf16") if has_bf16 else ("f32",):
        for _ in range(2):  # compiled, and kept
            backend.load(bundle, "x16", precision=precision, threads=1, batch=1)
            assert backend.describe().precision == precision
    for precision in ("f16", "f8") if has_bf16 else ("f16", "f8", "bf16"):
        with pytest.raises(RecipeError, match=f"precision '{precision}': this CPU has f32, .*change `precision`"):
            backend.load(bundle, "x16", precision=precision, threads=1, batch=1)


def test_what_cannot_be_run_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no mask plan 'x2'"):
        load(bundle, tmp_path, "x2")
    with pytest.raises(BundleError, match="kind 'null' is not for backend 'openvino'"):
        load(load_bundle(ZOO / "null"), tmp_path)
    with pytest.raises(RuntimeError, match="load the backend first"):
        OpenVinoBackend(compiled=EngineCache(tmp_path)).describe()


def test_without_a_home_the_folder_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: Path) -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MASKLINE_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(ResourceError, match=r"no folder for engines: .*home directory\. Set MASKLINE_CACHE_DIR"):
        open_backend("openvino")
