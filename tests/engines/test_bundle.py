"""Bundles are checked before they are used, and written whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge.errors import BundleError, RecipeError
from engines.architecture import MaeArchitecture
from engines.backends import open_backend
from engines.bundle import ZOO, DirectMap, Manifest, NullArchitecture, find_bundle, load_bundle, write_bundle

MAE = Manifest(name="tiny", architecture=MaeArchitecture(), licence="none", files={"network.onnx": "0" * 64})


def test_what_is_written_is_loaded(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "b", MAE, {"network.onnx": b"graph", "network.safetensors": b"weights"})
    loaded = load_bundle(tmp_path / "b")
    assert loaded == written
    assert loaded.read("network.onnx") == b"graph"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_writing_again_replaces_files_and_keeps_notes(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "b", MAE, {"network.onnx": b"graph", "old.bin": b"x"})
    (tmp_path / "b" / "README.md").write_text("note")
    second = write_bundle(tmp_path / "b", MAE, {"network.onnx": b"other"})
    assert first.sha256 != second.sha256
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["README.md", "manifest.json", "network.onnx"]


def test_a_changed_file_is_named_with_both_hashes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", MAE, {"network.onnx": b"graph"})
    bundle = load_bundle(tmp_path / "b")
    (tmp_path / "b" / "network.onnx").write_bytes(b"graph!")
    with pytest.raises(BundleError, match=r"network\.onnx: sha256 is .*, expected .*"):
        load_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=r"network\.onnx: sha256 is"):
        bundle.read("network.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"../x": "0" * 64}}, "plain file name"),
        ({"files": {}}, "network.onnx is missing"),
        ({"plans": ["x2"]}, "unknown"),
        ({"error_map": {"kind": "ssim_l1", "ssim_window": 8}}, "ssim_window"),
        ({"extra": 1}, "extra"),
        ({"format": 2}, "format"),
    ],
)
def test_a_wrong_manifest_is_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_bundle(tmp_path, MAE, {"network.onnx": b"graph"})
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path)


def test_a_map_needs_a_network_that_draws_it() -> None:
    assert MAE.model_copy(update={"error_map": DirectMap()}).answer_shape((2, 48, 48, 1)) == (2, 48, 48, 2)
    assert MAE.answer_shape((2, 48, 48, 1)) == (2, 48, 48, 1)
    with pytest.raises(ValueError, match="kind 'null' answers with a picture alone"):
        Manifest(name="n", architecture=NullArchitecture(kind="null"), licence="", error_map=DirectMap())


def test_a_missing_file_or_bundle_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", MAE, {"network.onnx": b"graph"})
    (tmp_path / "b" / "network.onnx").unlink()
    with pytest.raises(BundleError, match=r"network\.onnx"):
        load_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="marker, null"):
        find_bundle("nothing", tmp_path)


def test_bundles_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", MAE, {"network.onnx": b"graph"})
    assert find_bundle("marker") == ZOO / "marker"
    assert find_bundle("b", tmp_path) == find_bundle(tmp_path / "b") == (tmp_path / "b").resolve()


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in ZOO.glob("*/manifest.json")))
def test_bundles_that_ship_are_intact_and_small(folder: str) -> None:
    bundle = load_bundle(ZOO / folder)
    assert bundle.manifest.name == folder
    assert all((bundle.path / name).stat().st_size < 20_000_000 for name in bundle.manifest.files)


def test_the_null_backend_copies_after_its_delay(tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "n", Manifest(name="n", architecture=NullArchitecture(kind="null"), licence=""), {}
    )
    backend = open_backend("null", null_delay_ms=1.0)
    backend.load(bundle, "x1", precision="f32", threads=1, batch=1)
    tiles = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    out = np.empty(tiles.shape, np.float32)
    assert backend.infer(tiles, out) is None
    np.testing.assert_allclose(out, tiles / 255, atol=1e-7)
    assert backend.describe().backend == "null"


def test_an_unknown_backend_or_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="openvino, tensorrt, marker, null"):
        open_backend("cuda")
    bundle = write_bundle(
        tmp_path / "n", Manifest(name="n", architecture=NullArchitecture(kind="null"), licence="", plans=("x1",)), {}
    )
    with pytest.raises(BundleError, match="no mask plan 'x4'"):
        open_backend("null").load(bundle, "x4", precision="f32", threads=1, batch=1)
