"""What the builder of a line does, with a device that is none and a compiler that only says what it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from test_tensorrt_backend import FAKE, PASSED, PLAN, a_backend, key_of, load, store

from edge.errors import EngineError, StaleEngineError
from engines.backends import Backend, open_backend
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import EngineKey
from engines.backends.tensorrt import rebuild as module
from engines.backends.tensorrt.rebuild import rebuild
from engines.backends.verify import Samples, answers
from engines.bundle import ZOO, Bundle, load_bundle
from engines.textures import canvas


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ZOO / "texture-s")


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Backend:
    backend = open_backend("openvino")
    backend.load(bundle, PLAN, precision="f32", threads=1, batch=1)
    return backend


@pytest.fixture(autouse=True)
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = np.stack([canvas(3, k, 224) for k in range(2)])[..., None]
    monkeypatch.setattr(module, "samples", lambda *_: Samples(tiles, 1))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[EngineKey]:
    """The keys that were built."""
    keys: list[EngineKey] = []

    def build_for(api: Any, cache: EngineCache, bundle: Bundle, key: EngineKey) -> Stored:
        keys.append(key)
        return store(cache, bundle, key)

    monkeypatch.setattr(module, "build_for", build_for)
    return keys


@pytest.fixture
def mend(bundle: Bundle, cpu: Backend, tmp_path: Path) -> Callable[..., None]:
    """Rebuild, for a device that answers as the CPU does unless `wrong`."""

    def run(precision: str = "f16", *, wrong: float = 0.0) -> None:
        gpu = FakeGpu(lambda tiles: answers(cpu, bundle.manifest, tiles) + np.float32(wrong))
        rebuild(bundle, PLAN, precision, 1, cache=EngineCache(tmp_path), find=lambda: FAKE, open_gpu=lambda _: gpu)

    return run


def test_a_missing_engine_is_built_and_verified_and_then_served(
    tmp_path: Path, bundle: Bundle, built: list[EngineKey], mend: Callable[..., None]
) -> None:
    with pytest.raises(StaleEngineError):
        load(a_backend(EngineCache(tmp_path)), bundle)
    mend()
    assert built == [key_of(bundle)]
    load(a_backend(EngineCache(tmp_path)), bundle)


def test_an_engine_that_may_serve_is_left_alone(
    tmp_path: Path, bundle: Bundle, built: list[EngineKey], mend: Callable[..., None]
) -> None:
    cache = EngineCache(tmp_path)
    stored = cache.set_verification(store(cache, bundle), PASSED)
    mend()
    assert built == []
    assert cache.find(key_of(bundle)) == stored


def test_one_that_was_built_elsewhere_is_only_verified(
    tmp_path: Path, bundle: Bundle, built: list[EngineKey], mend: Callable[..., None]
) -> None:
    store(EngineCache(tmp_path), bundle)
    mend()
    assert built == []
    load(a_backend(EngineCache(tmp_path)), bundle)


def test_a_damaged_one_is_built_anew(
    tmp_path: Path, bundle: Bundle, built: list[EngineKey], mend: Callable[..., None]
) -> None:
    store(EngineCache(tmp_path), bundle).engine.write_bytes(b"damaged")
    mend()
    assert len(built) == 1
    load(a_backend(EngineCache(tmp_path)), bundle)


@pytest.mark.usefixtures("built")
def test_one_that_differs_too_much_is_final(tmp_path: Path, bundle: Bundle, mend: Callable[..., None]) -> None:
    with pytest.raises(EngineError, match=r"f16 of plan x16 was built and differs too much .* take another precision"):
        mend(wrong=0.3)
    with pytest.raises(EngineError, match="differ too much") as refused:
        load(a_backend(EngineCache(tmp_path)), bundle)
    assert not isinstance(refused.value, StaleEngineError), "building it again is no help"


def test_int8_is_built_from_the_ranges_of_an_earlier_engine(
    tmp_path: Path, bundle: Bundle, built: list[EngineKey], mend: Callable[..., None]
) -> None:
    with pytest.raises(EngineError, match=r"int8 takes its ranges from good parts; run: .* --good FOLDER"):
        mend("int8")
    cache = EngineCache(tmp_path)
    key = key_of(bundle, "int8").model_copy(update={"version": "1.6.0"})
    for built_at, largest in (("2026-01-02", 2.0), ("2026-01-01", 1.0)):
        earlier = store(cache, bundle, key.model_copy(update={"device": built_at})).manifest
        cache.store(earlier.model_copy(update={"built": built_at, "ranges": {"a": largest}}), b"engine")
    assert cache.ranges(key_of(bundle, "int8")) == {"a": 2.0}, "the newest"
    assert cache.ranges(key_of(bundle, "int8").model_copy(update={"plan": "x1"})) is None
    mend("int8")
    assert built == [key_of(bundle, "int8")]
