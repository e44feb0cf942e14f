"""`maskline engine ...` where there is no GPU: what can be built is, and the rest is said in a sentence."""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from edge.cli import app
from edge.errors import EngineError, MasklineError, SourceError
from edge.samples import good_tiles, samples
from engines.backends.manifest import EngineManifest
from engines.backends.tensorrt.device import _current_device
from engines.bundle import ZOO, Manifest, load_bundle


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, on a machine without a driver, whatever this one has."""

    real = ctypes.CDLL

    def no_driver(name: str, *more: Any, **named: Any) -> object:
        if name == "libcuda.so.1":
            raise OSError(f"{name}: cannot open shared object file")
        return real(name, *more, **named)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path / "cache"))
    _current_device.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install 'maskline[rtx]'")


def maskline(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["engine", *arguments])


@pytest.mark.usefixtures("rtx")
def test_the_selftest_says_what_it_proved_and_that_there_is_no_driver(folder: Path) -> None:
    result = maskline("selftest")
    assert isinstance(result.exception, EngineError)
    assert result.exception.exit_code == 78
    assert "proved  TensorRT                tensorrt_rtx 1." in result.stdout
    assert "twice the same" in result.stdout
    assert "all of it holds" not in result.stdout
    assert "selftest: GPU: no NVIDIA driver here" in str(result.exception)
    assert "not tried: answers as the CPU, repeats to the bit" in str(result.exception)


def test_the_command_ends_in_a_sentence_and_not_in_a_traceback(tmp_path: Path) -> None:
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("there is a driver here")
    ended = subprocess.run(
        [sys.executable, "-m", "edge.cli", "engine", "verify", "texture-s"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 78
    assert re.match(r"maskline: no (NVIDIA driver|TensorRT) here", ended.stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.usefixtures("rtx")
def test_engines_are_built_for_gpus_that_are_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = "engines.backends.tensorrt.build.build_engine"  # real ones: test_tensorrt_build.py
    monkeypatch.setattr(build, lambda api, graph, target, beside: f"engine for {target}".encode())
    result = maskline("build", "texture-s", "--plan", "x16", "--target", "sm86,sm120")
    assert result.exception is None
    lines = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["x16 f16 for sm86", "x16 f16 for sm120"]
    for line in lines:
        manifest = EngineManifest.model_validate_json((Path(line.split(": ")[1]) / "manifest.json").read_bytes())
        assert (manifest.key.plan, manifest.key.precision, manifest.bundle) == ("x16", "f16", "texture-s")
        assert manifest.verification is None


@pytest.mark.usefixtures("rtx")
def test_without_a_gpu_the_build_wants_to_know_for_which(folder: Path) -> None:
    result = maskline("build", "texture-s")
    assert isinstance(result.exception, EngineError)
    assert "no NVIDIA driver here" in str(result.exception)
    assert "to build for others, name them: --target sm" in str(result.exception)


@pytest.mark.usefixtures("rtx", "folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("texture-s", "--target", "sm42"), "target 'sm42': tensorrt_rtx"),
        (("texture-s", "--target", "sm86", "--precision", "int8"), "name them with --good"),
        (("texture-s", "--target", "sm86", "--precision", "f8"), "precision 'f8': expected one of f32, f16"),
        (("texture-s", "--target", "sm86", "--plan", "x2"), "no mask plan 'x2'"),
        (("null", "--target", "sm86"), "kind 'null' has no network"),
    ],
)
def test_engines_that_nobody_can_build_are_refused(arguments: tuple[str, ...], message: str) -> None:
    result = maskline("build", *arguments)
    assert isinstance(result.exception, MasklineError)
    assert message in str(result.exception)


@pytest.mark.usefixtures("folder")
def test_without_a_gpu_the_graph_can_be_compared_on_the_cpu() -> None:
    pytest.importorskip("onnx", reason="typed graphs need onnx: pip install 'maskline[rtx]'")
    result = maskline("verify", "texture-s", "--plan", "x16", "--precision", "int8", "--tiles", "2", "--cpu")
    assert result.exception is None
    assert re.fullmatch(r"x16 int8: largest error 0\.0\d+, mean 0\.000\d+, 100\.0% of 2 .*: passed\n", result.stdout)
    refused = maskline("verify", "texture-s", "--backend", "openvino", "--cpu").exception
    assert "openvino runs on the CPU" in str(refused)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_a_network_whose_weights_lie_beside_its_graph_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    export = pytest.importorskip("engines.export", reason="needs torch: pip install 'maskline[train]'")
    from engine_helpers import VARIANTS, scrambled

    monkeypatch.setattr(export, "LARGEST_INSIDE_BYTES", 0)
    manifest = Manifest(name="large", architecture=VARIANTS["he"], licence="none", files={"network.onnx": "0" * 64})
    export.export_bundle(tmp_path / "large", scrambled(VARIANTS["he"]), manifest)
    result = maskline("verify", str(tmp_path / "large"), "--precision", precision, "--tiles", "4", "--cpu")
    assert result.exception is None
    assert re.fullmatch(rf"x1 {precision}: largest error .* of 4 decisions equal: passed\n", result.stdout)


def test_samples_are_half_good_and_half_painted() -> None:
    manifest = load_bundle(ZOO / "texture-s").manifest
    good, half = good_tiles(manifest, None, 5), samples(manifest, None, 5)
    assert (half.tiles.shape, half.tiles.dtype, half.good) == ((5, 224, 224, 1), np.uint8, 3)
    changed = (half.tiles != good).any((1, 2, 3))
    assert changed.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_of_a_folder_come_from_all_of_its_images(tmp_path: Path, channels: int) -> None:
    manifest = load_bundle(ZOO / "texture-s").manifest
    architecture = manifest.architecture.model_copy(update={"channels": channels})
    manifest = manifest.model_copy(update={"architecture": architecture})
    for k in range(6):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((300, 500), 40 * k, np.uint8))
    tiles = good_tiles(manifest, tmp_path, 12)
    assert tiles.shape == (12, 224, 224, channels)
    assert set(np.unique(tiles)) == {0, 40, 80, 120, 160, 200}
    assert len(good_tiles(manifest, tmp_path, 3)) == 3
    deep = tmp_path / "deep"
    deep.mkdir()
    cv2.imwrite(str(deep / "d.png"), np.full((224, 224), 32768, np.uint16))
    assert set(np.unique(good_tiles(manifest, deep, 3))) == {128}


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    manifest = load_bundle(ZOO / "texture-s").manifest
    with pytest.raises(SourceError, match="no images in it"):
        good_tiles(manifest, tmp_path / "nothing", 3)
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 20), np.uint8))
    with pytest.raises(SourceError, match=r"small\.png: "):
        good_tiles(manifest, tmp_path, 3)
