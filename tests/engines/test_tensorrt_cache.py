"""The engine cache: everything that matters is in the key, and nobody sees half an engine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EngineError, ResourceError
from engines.backends.cache import EngineCache, Stored, default_folder
from engines.backends.manifest import EngineKey, EngineManifest, Verification

KEY = EngineKey(
    model_sha256="a" * 64,
    plan="x1",
    precision="f16",
    tiles=(1, 224, 224, 1),
    flavour="tensorrt_rtx",
    version="1.7.1",
    target="sm86",
    device="",
)
PASSED = Verification(max_error=1e-3, mean_error=1e-5, agreement=1.0, tiles=48, passed=True)


def store(cache: EngineCache, engine: bytes = b"engine", key: EngineKey = KEY) -> Stored:
    manifest = EngineManifest(
        key=key,
        bundle="tiny",
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        engine_bytes=len(engine),
        graph_sha256="b" * 64,
        built="2026-01-01T00:00:00+00:00",
    )
    return cache.store(manifest, engine)


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "c" * 64},
        {"plan": "x4"},
        {"precision": "int8"},
        {"tiles": (2, 224, 224, 1)},
        {"tiles": (1, 224, 224, 3)},
        {"flavour": "tensorrt"},
        {"version": "1.7.2"},
        {"target": "sm89"},
        {"device": "Orin"},
        {"threads": 2},
        {"revision": KEY.revision + 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_matters_makes_another_engine(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = EngineCache(tmp_path)
    store(cache)
    other = KEY.model_copy(update=change)
    assert set(change) <= set(EngineKey.model_fields)
    assert other.folder != KEY.folder
    with pytest.raises(EngineError):
        cache.find(other)
    store(cache, b"other", other)
    assert (cache.read(cache.find(KEY)), cache.read(cache.find(other))) == (b"engine", b"other")


def test_no_field_of_the_key_is_left_out_of_that_test() -> None:
    (marker,) = (m for m in test_whatever_matters_makes_another_engine.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {name for change in marker.args[1] for name in change} == set(EngineKey.model_fields)


def test_an_engine_of_another_version_is_called_stale(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with pytest.raises(EngineError, match=r"no engine for plan x1, f16, batch 1, sm86 in "):
        cache.find(KEY)
    store(cache)
    with pytest.raises(EngineError, match=r"stale \(version '1\.7\.1' is now '1\.8\.0'\)"):
        cache.find(KEY.model_copy(update={"version": "1.8.0"}))


def test_a_new_engine_takes_the_place_of_the_old_one_and_of_its_verdict(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    first = cache.set_verification(store(cache, b"first"), PASSED)
    cache.keep_kernels(first, b"kernels of the first")
    assert cache.find(KEY).manifest.verification == PASSED
    store(cache, b"second")
    found = cache.find(KEY)
    assert cache.read(found) == b"second"
    assert found.manifest.verification is None
    assert cache.read_kernels(found) == b""
    assert {p.suffix for p in found.folder.iterdir()} == {".json", ".engine", ""}
    with pytest.raises(EngineError, match="built anew"):
        cache.set_verification(first, PASSED)


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_build_that_dies_leaves_the_old_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
    cache, renames = EngineCache(tmp_path), [0]
    store(cache, b"first")
    rename = os.replace

    def dying(source: Any, target: Any) -> None:
        renames[0] += 1
        if renames[0] == dies_at:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            store(cache, b"second")
    assert cache.read(cache.find(KEY)) == b"first"
    store(cache, b"second")
    assert cache.read(cache.find(KEY)) == b"second"


def test_the_manifest_is_written_after_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(Path(b).suffix), rename(a, b))[1])
    store(EngineCache(tmp_path))
    assert written == [".engine", ".json"]


def test_a_damaged_or_lost_engine_is_not_given_out(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    stored = store(cache)
    stored.engine.write_bytes(b"engine!")
    with pytest.raises(EngineError, match="damaged"):
        cache.read(stored)
    stored.engine.unlink()
    with pytest.raises(EngineError, match="No such file"):
        cache.read(stored)


@pytest.mark.parametrize("text", ["", "{}", '{"key": 1}'])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    cache = EngineCache(tmp_path)
    (store(cache).folder / "manifest.json").write_text(text)
    with pytest.raises(EngineError, match=r"manifest\.json: .*; remove its folder"):
        cache.find(KEY)


def test_kernels_are_kept_for_the_engine_that_they_belong_to(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    stored = store(cache)
    assert cache.read_kernels(stored) == b""
    cache.keep_kernels(stored, b"compiled")
    before = stored.kernels.stat().st_mtime_ns
    cache.keep_kernels(cache.find(KEY), b"compiled")
    assert stored.kernels.stat().st_mtime_ns == before, "the same was written again"
    assert EngineCache(tmp_path).read_kernels(cache.find(KEY)) == b"compiled"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        store(EngineCache(tmp_path / "file"))


def test_where_engines_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASKLINE_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    assert default_folder() == Path("/home/x/.cache/maskline/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/xdg/maskline/engines")
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/maskline")
    assert default_folder() == Path("/var/cache/maskline/engines")
    monkeypatch.setenv("MASKLINE_CACHE_DIR", "/mine")
    assert default_folder() == Path("/mine/engines")
