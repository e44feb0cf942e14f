"""What the backend serves and what it refuses, with a device that is none; what it says without a driver."""

from __future__ import annotations

import ctypes
import hashlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, as_bytes

import engines.backends.tensorrt as served
from edge.errors import BundleError, EngineError, RecipeError
from engines.backends import open_backend
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import EngineKey, EngineManifest, Verification
from engines.backends.tensorrt import TensorRtBackend
from engines.backends.tensorrt.api import FLAVOURS, Api, find_tensorrt
from engines.backends.tensorrt.device import CudaGpu, _current_device
from engines.backends.tensorrt.verify import verify
from engines.backends.verify import TOLERANCES, Samples, answers, compare, reference
from engines.bundle import ZOO, Bundle, load_bundle
from engines.textures import canvas

PLAN = "x16"
FAKE = Api("tensorrt_rtx", "1.7.1", types.SimpleNamespace(), types.SimpleNamespace(lines=[]))
PASSED = Verification(max_error=1e-3, mean_error=1e-5, agreement=1.0, tiles=8, passed=True)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ZOO / "texture-s")


@pytest.fixture(scope="module")
def samples() -> Samples:
    tiles = np.stack([canvas(3, k, 224) for k in range(8)])[..., None]
    for k, tile in enumerate(tiles[4:]):
        tile[60 + 10 * k : 100, 80:120] = 255 - tile[60 + 10 * k : 100, 80:120]
    return Samples(tiles, 4)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, samples: Samples) -> np.ndarray:
    return reference(bundle, PLAN, samples.tiles)


def key_of(bundle: Bundle, precision: str = "f16", batch: int = 1) -> EngineKey:
    at = ("sm86", "Fake GPU")
    return EngineKey.of(bundle, PLAN, precision, batch, flavour=FAKE.flavour, version=FAKE.version, gpu=at)


def store(cache: EngineCache, bundle: Bundle, key: EngineKey | None = None, engine: bytes = b"") -> Stored:
    key = key or key_of(bundle)
    engine = engine or as_bytes(key.tiles)
    sha256 = hashlib.sha256(engine).hexdigest()
    manifest = EngineManifest(
        key=key, bundle="t", engine_sha256=sha256, engine_bytes=len(engine), graph_sha256="b" * 64, built="now"
    )
    return cache.store(manifest, engine)


def a_backend(cache: EngineCache, gpu: FakeGpu | None = None, **more: Any) -> TensorRtBackend:
    return TensorRtBackend(cache, find=lambda: FAKE, open_gpu=lambda api: gpu or FakeGpu(), **more)


def load(backend: TensorRtBackend, bundle: Bundle, precision: str = "f16", batch: int = 1) -> None:
    backend.load(bundle, PLAN, precision=precision, threads=0, batch=batch)


def test_a_verified_engine_is_served_and_says_what_it_is(tmp_path: Path, bundle: Bundle, samples: Samples) -> None:
    cache, gpu = EngineCache(tmp_path), FakeGpu()
    stored = cache.set_verification(store(cache, bundle), PASSED)
    backend = a_backend(cache, gpu)
    with pytest.raises(RuntimeError, match="load"):
        backend.describe()
    load(backend, bundle)
    backend.warm_up()
    gpu.freeze()
    np.testing.assert_array_equal(answers(backend, bundle.manifest, samples.tiles), samples.tiles / np.float32(255))
    info = backend.describe()
    assert (info.backend, info.device, info.precision, info.isa, info.plan) == (
        "tensorrt",
        "Fake GPU",
        "f16",
        "sm86",
        PLAN,
    )
    assert info.version == f"tensorrt_rtx 1.7.1, engine {stored.manifest.engine_sha256[:16]}"
    backend.close()
    assert gpu.closed


def test_kernels_are_kept_after_warm_up_and_given_to_the_next_start(tmp_path: Path, bundle: Bundle) -> None:
    cache, first, second = EngineCache(tmp_path), FakeGpu(), FakeGpu()
    cache.set_verification(store(cache, bundle), PASSED)
    for gpu in (first, second):
        backend = a_backend(cache, gpu)
        load(backend, bundle)
        backend.warm_up()
    assert (first.given_kernels, second.given_kernels) == (b"", b"kernels")


def test_what_is_not_there_says_what_to_run(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"no engine .* run: maskline engine build .*texture-s --plan x16 .* f16$"):
        load(a_backend(EngineCache(tmp_path)), bundle)
    with pytest.raises(EngineError, match=r"--precision int8 --batch 4 --good FOLDER$"):
        load(a_backend(EngineCache(tmp_path)), bundle, "int8", batch=4)


def test_an_engine_of_another_version_is_stale(tmp_path: Path, bundle: Bundle) -> None:
    cache = EngineCache(tmp_path)
    store(cache, bundle, key_of(bundle).model_copy(update={"version": "1.6.0"}))
    with pytest.raises(EngineError, match=r"stale \(version '1\.6\.0' is now '1\.7\.1'\).*maskline engine build"):
        load(a_backend(cache), bundle)


def test_a_damaged_engine_is_not_loaded(tmp_path: Path, bundle: Bundle) -> None:
    cache = EngineCache(tmp_path)
    stored = cache.set_verification(store(cache, bundle), PASSED)
    stored.engine.write_bytes(b"other")
    with pytest.raises(EngineError, match=r"damaged.*maskline engine build"):
        load(a_backend(cache), bundle)


def test_an_engine_that_the_device_refuses_is_an_error(tmp_path: Path, bundle: Bundle) -> None:
    cache = EngineCache(tmp_path)
    cache.set_verification(store(cache, bundle), PASSED)
    with pytest.raises(EngineError, match="refuses the engine on Fake GPU"):
        load(a_backend(cache, FakeGpu(refuse=True)), bundle)


def test_only_engines_that_passed_are_served(tmp_path: Path, bundle: Bundle) -> None:
    cache = EngineCache(tmp_path)
    stored = store(cache, bundle)
    with pytest.raises(EngineError, match=r"never compared .*; run: maskline engine verify .*texture-s --plan x16"):
        load(a_backend(cache), bundle)
    cache.set_verification(stored, PASSED.model_copy(update={"passed": False, "max_error": 0.5}))
    with pytest.raises(EngineError, match=r"differ too much .*largest error 0\.5"):
        load(a_backend(cache), bundle)
    load(a_backend(cache, verified_only=False), bundle)


def test_bundles_plans_and_precisions_that_it_cannot_run_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    backend = a_backend(EngineCache(tmp_path))
    with pytest.raises(BundleError, match="kind 'null' is not for backend 'tensorrt'"):
        load(backend, load_bundle(ZOO / "null"))
    with pytest.raises(BundleError, match="no mask plan 'x2'"):
        backend.load(bundle, "x2", precision="f16", threads=0, batch=1)
    with pytest.raises(RecipeError, match="precision 'f8': expected one of f32, f16, bf16, int8"):
        load(backend, bundle, "f8")


def test_a_gpu_that_waits_is_kept_warm_now_and_then(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(served.time, "monotonic", lambda: now[0])
    cache, gpu = EngineCache(tmp_path), FakeGpu()
    cache.set_verification(store(cache, bundle), PASSED)
    backend = a_backend(cache, gpu)
    load(backend, bundle)
    backend.warm_up()
    warmed = gpu.runs
    runs = []
    for step_s in (0.1, 0.1, 0.1, 0.1, 1.0):
        now[0] += step_s
        backend.keep_warm()
        runs.append(gpu.runs - warmed)
    assert runs == [0, 0, 1, 1, 2]
    backend.infer(np.zeros((1, 224, 224, 1), np.uint8), np.empty((1, 224, 224, 1), np.float32))
    backend.keep_warm()
    assert gpu.runs - warmed == 3, "a part had just come"


def verified(bundle: Bundle, samples: Samples, cache: EngineCache, compute: Any) -> Verification:
    store(cache, bundle)
    fakes: dict[str, Any] = {"find": lambda: FAKE, "open_gpu": lambda api: FakeGpu(compute)}
    found = verify(bundle, PLAN, "f16", 1, samples, cache, **fakes)
    assert cache.find(key_of(bundle)).manifest.verification == found
    return found


def test_an_engine_that_answers_as_the_cpu_passes_and_is_served(
    tmp_path: Path, bundle: Bundle, samples: Samples, expected: np.ndarray
) -> None:
    cpu = open_backend("openvino")
    cpu.load(bundle, PLAN, precision="f32", threads=1, batch=1)
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, expected[:1].shape).astype(np.float32)
    found = verified(bundle, samples, EngineCache(tmp_path), lambda tiles: answers(cpu, bundle.manifest, tiles) + noise)
    assert found.passed
    assert 4e-5 < found.mean_error < found.max_error < 2e-4
    assert (found.agreement, found.tiles) == (1.0, 8)
    load(a_backend(EngineCache(tmp_path)), bundle)


def test_an_engine_that_answers_otherwise_is_refused_from_then_on(
    tmp_path: Path, bundle: Bundle, samples: Samples
) -> None:
    found = verified(bundle, samples, EngineCache(tmp_path), lambda tiles: np.full(tiles.shape, 0.5, np.float32))
    assert not found.passed
    with pytest.raises(EngineError, match="differ too much"):
        load(a_backend(EngineCache(tmp_path)), bundle)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_each_tolerance_is_a_limit(bundle: Bundle, samples: Samples, expected: np.ndarray, precision: str) -> None:
    limit = TOLERANCES[precision]
    one_pixel, everywhere = expected.copy(), expected + np.float32(1.1 * limit.mean_error)
    one_pixel[0, 100, 100] += np.float32(1.1 * limit.max_error)
    for found in (one_pixel, everywhere):
        assert not compare(bundle.manifest, precision, samples, expected, found).passed
    assert compare(bundle.manifest, precision, samples, expected, expected).passed
    near = compare(bundle.manifest, precision, samples, expected, expected + np.float32(0.3 * limit.mean_error))
    assert near.mean_error == pytest.approx(0.3 * limit.mean_error, rel=0.01)


def test_decisions_that_change_are_counted(bundle: Bundle, samples: Samples, expected: np.ndarray) -> None:
    negative = 1 - samples.tiles / np.float32(255)  # a defect wherever one looks
    found = compare(bundle.manifest, "int8", samples, expected, negative)
    assert found.agreement <= 1 - 3 / 8, "three of the four good tiles lie under the threshold"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_never_pass(
    bundle: Bundle, samples: Samples, expected: np.ndarray, value: float
) -> None:
    broken = expected.copy()
    broken[2, 3, 4] = value
    found = compare(bundle.manifest, "int8", samples, expected, broken)
    assert (found.passed, found.agreement, found.max_error) == (False, 0.0, 1.0)
    assert Verification.model_validate_json(found.model_dump_json()) == found


def test_a_tensorrt_that_is_missing_or_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def old(name: str) -> Any:
        if name == "tensorrt":
            return types.SimpleNamespace(__version__="8.6.2.3")
        raise ImportError(name)

    find_tensorrt.cache_clear()
    try:
        monkeypatch.setattr(importlib, "import_module", old)
        with pytest.raises(EngineError, match=r"tensorrt 8\.6\.2\.3 is too old.*6\.1"):
            find_tensorrt()
        monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}")))
        with pytest.raises(EngineError, match=r"no tensorrt_rtx.*maskline\[rtx\].*JetPack"):
            find_tensorrt()
    finally:
        monkeypatch.undo()
        find_tensorrt.cache_clear()
    assert FLAVOURS == ("tensorrt", "tensorrt_rtx")


def test_without_a_driver_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    _current_device.cache_clear()
    with pytest.raises(EngineError, match=r"no NVIDIA driver here \(libcuda\.so\.1"):
        CudaGpu(FAKE)
