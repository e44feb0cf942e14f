"""int8 with OpenVINO: quantised once with images of good parts, compared with float32, served from the cache."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino
import pytest
import torch
from click.testing import Result
from engine_helpers import TINY, scrambled, tiles
from typer.testing import CliRunner

import engines.backends.openvino as served
from edge.cli import app
from edge.errors import EngineError, MasklineError, StaleEngineError
from engines.architecture import SdcArchitecture
from engines.backends import build_engine, open_backend
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import Verification
from engines.backends.openvino import OpenVinoBackend, instruction_set
from engines.backends.openvino.compiling import core, key_of, layers, network_graph, static_model
from engines.backends.openvino.int8 import build_for, from_bytes, quantise
from engines.backends.verify import TOLERANCES, Samples, Tolerance, answers, reference, verify
from engines.bundle import GRAPH, Bundle, Manifest, SmoothedMap, SsimL1Map
from engines.export import export_bundle
from engines.networks import Network, build
from engines.plans import plan_inputs

MAE = TINY.model_copy(update={"depth": 1, "decoder_depth": 1})
SDC = SdcArchitecture(tile_px=48, width=8, levels=2, dilations=(1, 2), branch_width=8, stacks=2, mix_px=0)
GOOD = tiles(TINY, 8, seed=1).numpy()
OTHERS = tiles(TINY, 6, seed=2).numpy()
PASSED = Verification(max_error=1e-3, mean_error=1e-5, agreement=1.0, tiles=8, passed=True)


@pytest.fixture(scope="module", autouse=True)
def _nncf() -> None:
    pytest.importorskip("nncf", reason="needs nncf: pip install 'maskline[int8]'")


@pytest.fixture(autouse=True)
def _wider_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights make more of rounding than trained ones do."""
    monkeypatch.setitem(TOLERANCES, "int8", Tolerance(max_error=0.5, mean_error=0.02, agreement=0.5))


def livelier(network: Network) -> Network:
    """Fresh weights answer nearly the same everywhere, which any graph gets right."""
    with torch.no_grad():
        for weights in network.parameters():
            weights.mul_(1.5)
    return network


@pytest.fixture(scope="module", params=["mae", "sdc"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A transformer, and convolutions."""
    network = scrambled(MAE) if request.param == "mae" else livelier(build(SDC))
    manifest = Manifest(
        name=request.param,
        architecture=network.architecture,
        error_map=SsimL1Map() if request.param == "mae" else SmoothedMap(),
        licence="none",
        files={GRAPH: "0" * 64},
    )
    return export_bundle(tmp_path_factory.mktemp("bundle") / request.param, network, manifest)


@pytest.fixture(scope="module")
def quantised(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Built once; every test has a copy in a cache of its own."""
    cache = EngineCache(tmp_path_factory.mktemp("built"))
    return build_for(cache, bundle, key_of(bundle, plan_of(bundle), "int8", 1), GOOD)


@pytest.fixture
def cache(quantised: Stored, tmp_path: Path) -> EngineCache:
    cache = EngineCache(tmp_path / "engines")
    cache.store(quantised.manifest, quantised.engine.read_bytes())
    return cache


def plan_of(bundle: Bundle) -> str:
    return bundle.manifest.plans[-1]


def judged(cache: EngineCache, verification: Verification) -> None:
    (stored,) = cache.everything()
    cache.set_verification(stored, verification)


def static(bundle: Bundle, batch: int = 1) -> Any:
    constants = plan_inputs(bundle.manifest.architecture, plan_of(bundle))  # type: ignore[arg-type]
    return static_model(network_graph(bundle), constants, (batch, 48, 48, 1))


def in_products(model: Any) -> Counter[str]:
    """How many products OpenVINO runs in which precision."""
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = ("FullyConnected", "MatMul", "Convolution", "Deconvolution")
    return Counter(precision for kind, precision in layers(compiled) if kind in kinds)


def load(bundle: Bundle, cache: EngineCache, *, verified_only: bool = True, batch: int = 1) -> OpenVinoBackend:
    backend = OpenVinoBackend(cache, EngineCache(cache.root.parent / "compiled"), verified_only=verified_only)
    backend.load(bundle, plan_of(bundle), precision="int8", threads=1, batch=batch)
    return backend


def test_what_was_built_is_served_and_says_what_it_is(
    bundle: Bundle, cache: EngineCache, quantised: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(cache, PASSED)
    backend = load(bundle, cache)
    info, found = backend.describe(), answers(backend, bundle.manifest, OTHERS)
    assert (info.precision, info.plan) == ("int8", plan_of(bundle))
    assert info.version.endswith(f"int8 graph {quantised.manifest.engine_sha256[:16]}"), "thresholds belong to it"
    error = np.abs(found - reference(bundle, plan_of(bundle), OTHERS))
    assert 0 < error.mean() < TOLERANCES["int8"].mean_error
    monkeypatch.setattr(served, "from_bytes", None)  # the second time it is not even read
    kept = load(bundle, cache)
    np.testing.assert_array_equal(answers(kept, bundle.manifest, OTHERS), found)
    assert kept.describe() == info


def test_it_is_written_down_how_it_came_about(quantised: Stored) -> None:
    about = quantised.manifest.quantised
    assert about is not None
    assert re.fullmatch(r"nncf \d+\.\d+\.\d+.*", about.by)
    assert about.tiles == len(GOOD)
    assert quantised.manifest.key.threads == 0, "one graph for any number of threads"


def test_the_same_images_give_the_same_graph_and_others_another(bundle: Bundle, quantised: Stored) -> None:
    first, other = (quantise(static(bundle), images) for images in (GOOD, OTHERS // 4))
    assert first == quantised.engine.read_bytes()
    assert other != first


def test_products_are_in_8_bits_but_for_the_first_and_the_last(bundle: Bundle, quantised: Stored) -> None:
    before, after = in_products(static(bundle)), in_products(from_bytes(quantised.engine.read_bytes()))
    assert before.keys() == {"f32"}
    assert after["f32"] == 2
    assert after["u8"] + after["i8"] == before["f32"] - 2 > 4


def test_a_batch_is_another_graph(bundle: Bundle, cache: EngineCache) -> None:
    with pytest.raises(StaleEngineError, match=r"no engine for plan .*, int8, batch 3, .* --batch 3 --good FOLDER$"):
        load(bundle, cache, batch=3)
    build_for(cache, bundle, key_of(bundle, plan_of(bundle), "int8", 3), GOOD[:4])  # the second batch is filled up
    alone, together = (load(bundle, cache, verified_only=False, batch=batch) for batch in (1, 3))
    a, b = (answers(backend, bundle.manifest, OTHERS) for backend in (alone, together))
    assert np.abs(a - b).mean() < TOLERANCES["int8"].mean_error


def test_what_is_not_there_or_was_not_compared_says_what_to_run(bundle: Bundle, cache: EngineCache) -> None:
    run = f"; run: maskline engine build {bundle.path} --backend openvino --plan {plan_of(bundle)} --precision int8"
    (stored,) = cache.everything()
    with pytest.raises(StaleEngineError, match=f"was never compared .*{run.replace('build', 'verify')[1:]}$"):
        load(bundle, cache)
    stored.engine.write_bytes(b"")
    with pytest.raises(StaleEngineError, match=f"damaged, .*{run} --good FOLDER$"):
        load(bundle, cache)
    stored.engine.unlink()
    (stored.folder / "manifest.json").unlink()
    with pytest.raises(StaleEngineError, match=f"no engine for plan {plan_of(bundle)}, int8, batch 1, .*{run}"):
        load(bundle, cache)


def test_one_that_differs_too_much_is_never_served(
    bundle: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "int8", Tolerance(max_error=1.0, mean_error=1e-9, agreement=0.0))
    backend, samples = OpenVinoBackend(cache, verified_only=False), Samples(OTHERS, len(OTHERS) // 2)
    assert not verify(backend, bundle, plan_of(bundle), "int8", 1, samples).passed
    with pytest.raises(EngineError, match=r"differ too much from the CPU's .* take another precision") as refused:
        load(bundle, cache)
    assert not isinstance(refused.value, StaleEngineError), "to build it again would not help"


def test_the_builder_of_a_line_carries_a_graph_over_to_another_openvino(
    bundle: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(cache, PASSED)
    (before,) = cache.everything()
    plan = plan_of(bundle)
    monkeypatch.setattr(openvino, "__version__", "2099.1")
    with pytest.raises(StaleEngineError, match=r"stale \(version '.*' is now '2099\.1'\)"):
        load(bundle, cache)
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(cache.root.parent))
    build_engine("openvino", bundle, plan, precision="int8", batch=1)
    served_now = load(bundle, cache)
    assert served_now.stored is not None
    assert served_now.stored.manifest.key.version == "2099.1"
    assert served_now.stored.manifest.engine_sha256 == before.manifest.engine_sha256
    assert served_now.stored.manifest.verification != PASSED, "compared anew"
    build_engine("openvino", bundle, plan, precision="int8", batch=1)  # once is enough


def test_the_builder_of_a_line_has_no_images(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path))
    build_engine("openvino", bundle, plan_of(bundle), precision="f32", batch=1)
    with pytest.raises(EngineError, match=r"run: maskline engine build .* --good FOLDER$") as missing:
        build_engine("openvino", bundle, plan_of(bundle), precision="int8", batch=1)
    assert not isinstance(missing.value, StaleEngineError), "it would be asked again and again"


def test_without_nncf_and_without_images_it_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, key = EngineCache(tmp_path), key_of(bundle, plan_of(bundle), "int8", 1)
    with pytest.raises(EngineError, match="no calibration tiles"):
        build_for(cache, bundle, key, GOOD[:0])
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MasklineError, match=r"int8 with openvino needs nncf: pip install 'maskline\[int8\]'"):
        build_for(cache, bundle, key, GOOD)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for k, tile in enumerate(GOOD):
        cv2.imwrite(str(folder / f"{k}.png"), tile)
    return folder


def maskline(verb: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["engine", verb, *map(str, arguments)])


def test_from_the_command_line_it_is_built_compared_and_served(
    bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path))
    what = (bundle.path, "--backend", "openvino", "--plan", plan_of(bundle), "--good", images)
    result = maskline("build", *what, "--tiles", "6")
    assert result.exception is None
    built, compared = result.stdout.splitlines()
    assert built.startswith(f"{plan_of(bundle)} int8 for {instruction_set()[:4]}")
    assert re.search(r"% of 6 decisions equal, [\d.]+ times as fast as f32: passed$", compared)
    line = open_backend("openvino")
    line.load(bundle, plan_of(bundle), precision="int8", threads=1, batch=1)
    assert line.describe().precision == "int8"
    monkeypatch.setitem(TOLERANCES, "int8", Tolerance(1e-9, 1e-9, 1.0))
    result = maskline("verify", *what)
    assert isinstance(result.exception, EngineError)
    assert "REFUSED" in result.stdout
    with pytest.raises(EngineError, match="differ too much"):
        line.load(bundle, plan_of(bundle), precision="int8", threads=1, batch=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name them with --good"),
        (("--precision", "f32"), "openvino compiles f32 by itself when a line starts: only int8 is built before"),
        (("--target", "sm86", "--good", "IMAGES"), "--target names GPUs"),
        (("--plan", "x2", "--good", "IMAGES"), "no mask plan 'x2'"),
    ],
)
def test_what_nobody_can_build_is_refused(
    bundle: Bundle, images: Path, arguments: tuple[str, ...], message: str
) -> None:
    chosen = [str(images) if a == "IMAGES" else a for a in arguments]
    result = maskline("build", bundle.path, "--backend", "openvino", *chosen)
    assert isinstance(result.exception, MasklineError)
    assert message in str(result.exception)
