"""Built engines on disk, under a key of everything that an engine depends on.

One folder per key, named after the key's hash: `manifest.json`, `SHA256.engine`, and for `tensorrt_rtx` later
`SHA256.kernels`, the kernels that it compiled on the device. The manifest is written last and in one step and names the
engine by its hash: a reader sees the old engine, the new one, or none, and never a mixture.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import BundleError, EngineError, ResourceError
from edge.paths import write_durably
from engines.bundle import GRAPH, Bundle
from engines.precision import TYPING

__all__ = ["EngineCache", "EngineKey", "EngineManifest", "Stored", "Verification", "default_folder"]

MANIFEST = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineKey(_Frozen):
    """What an engine depends on. Another value of any field is another engine."""

    model_sha256: Sha256
    plan: str
    precision: str
    tiles: tuple[int, int, int, int]
    """Of the input: batch, height, width, channels."""
    flavour: str
    version: str
    target: str
    """Compute capability, such as "sm86"."""
    device: str
    """The GPU's name, for `tensorrt`, which times its kernels on it; empty for `tensorrt_rtx`."""
    typing: int = TYPING

    @classmethod
    def of(
        cls, bundle: Bundle, plan: str, precision: str, batch: int, *, flavour: str, version: str, gpu: tuple[str, str]
    ) -> EngineKey:
        """The key of a bundle's engine; `gpu` is compute capability and name. Raises BundleError without a network."""
        m, (target, device) = bundle.manifest, gpu
        if GRAPH not in m.files:
            raise BundleError(f"bundle {bundle.path}: kind {m.architecture.kind!r} has no network, and so no engine")
        return cls(
            model_sha256=m.files[GRAPH],
            plan=plan,
            precision=precision,
            tiles=(batch, m.tile_px, m.tile_px, m.channels),
            flavour=flavour,
            version=version,
            target=target,
            device="" if flavour == "tensorrt_rtx" else device,
        )

    @property
    def folder(self) -> str:
        """Readable, and different for every key."""
        digest = hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()
        return f"{self.plan}-{self.precision}-b{self.tiles[0]}-{self.target}-{digest[:32]}"


class Verification(_Frozen):
    """How the engine's answers differ from the CPU's (`engines.backends.tensorrt.verify`), on the scale [0, 1]."""

    max_error: float
    mean_error: float
    agreement: float
    """Share of tiles that are decided the same."""
    tiles: int
    passed: bool


class EngineManifest(_Frozen):
    """What is stored beside an engine."""

    key: EngineKey
    bundle: str
    """The bundle's name, for people."""
    engine_sha256: Sha256
    engine_bytes: int
    graph_sha256: Sha256
    """Of the typed graph that it was built from; differs with the calibration images of "int8"."""
    built: str
    """When, UTC."""
    verification: Verification | None = None


@dataclass(frozen=True)
class Stored:
    """An engine in the cache."""

    folder: Path
    manifest: EngineManifest

    @property
    def engine(self) -> Path:
        """The file of the engine."""
        return self.folder / f"{self.manifest.engine_sha256}.engine"

    @property
    def kernels(self) -> Path:
        """The file of the kernels that were compiled on the device; it may not be there."""
        return self.folder / f"{self.manifest.engine_sha256}.kernels"


class EngineCache:
    """A folder of engines."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_folder()

    def store(self, manifest: EngineManifest, engine: bytes) -> Stored:
        """Keeps an engine; one under the same key gives way. Raises ResourceError when the disk does not take it."""
        stored = Stored(self.root / manifest.key.folder, manifest)
        with self._writing(stored.folder):
            write_durably(stored.engine, engine)
            write_durably(stored.folder / MANIFEST, _as_text(manifest))
            for path in stored.folder.glob("*.*"):
                if path.suffix in (".engine", ".kernels") and path.stem != manifest.engine_sha256:
                    path.unlink()
        return stored

    def find(self, key: EngineKey) -> Stored:
        """The engine under a key. Raises EngineError, which says what is there instead."""
        folder = self.root / key.folder
        try:
            manifest = _read_manifest(folder / MANIFEST)
        except FileNotFoundError:
            raise EngineError(f"{self._nearest(key)} in {self.root}") from None
        except OSError as error:
            raise EngineError(f"{folder / MANIFEST}: {error.strerror}") from error
        if manifest.key != key:
            raise EngineError(f"{folder / MANIFEST}: is of another engine; remove its folder")
        return Stored(folder, manifest)

    def read(self, stored: Stored) -> bytes:
        """The engine's bytes, checked. Raises EngineError when they are gone or damaged."""
        try:
            engine = stored.engine.read_bytes()
        except OSError as error:
            raise EngineError(f"engine {stored.engine}: {error.strerror}") from error
        found = hashlib.sha256(engine).hexdigest()
        if found != stored.manifest.engine_sha256:
            raise EngineError(f"engine {stored.engine}: damaged, its sha256 is {found}")
        return engine

    def read_kernels(self, stored: Stored) -> bytes:
        """The kernels kept with `keep_kernels`, or nothing: they only save time, and TensorRT checks them."""
        with contextlib.suppress(OSError):
            return stored.kernels.read_bytes()
        return b""

    def keep_kernels(self, stored: Stored, kernels: bytes) -> None:
        """Keeps what was compiled on the device, unless it is there already. A disk that is full costs nothing else."""
        if kernels and kernels != self.read_kernels(stored):
            with contextlib.suppress(ResourceError), self._writing(stored.folder):
                write_durably(stored.kernels, kernels)

    def set_verification(self, stored: Stored, verification: Verification) -> Stored:
        """Writes down how the engine compared. Raises EngineError when another one took its place meanwhile."""
        with self._writing(stored.folder):
            now = _read_manifest(stored.folder / MANIFEST)
            if now.engine_sha256 != stored.manifest.engine_sha256:
                raise EngineError(f"engine {stored.folder}: was built anew while it was verified; verify it again")
            manifest = now.model_copy(update={"verification": verification})
            write_durably(stored.folder / MANIFEST, _as_text(manifest))
        return Stored(stored.folder, manifest)

    def _nearest(self, key: EngineKey) -> str:
        """What to say about a key that is not there: an engine of the same network and plan is stale, and why."""
        same = ("model_sha256", "plan", "precision", "tiles")
        for path in sorted(self.root.glob(f"*/{MANIFEST}")):
            with contextlib.suppress(EngineError, OSError):
                other = _read_manifest(path).key
                if all(getattr(other, name) == getattr(key, name) for name in same):
                    fields = ((name, getattr(other, name), getattr(key, name)) for name in EngineKey.model_fields)
                    changed = ", ".join(f"{name} {old!r} is now {new!r}" for name, old, new in fields if old != new)
                    return f"the engine is stale ({changed})"
        return f"no engine for plan {key.plan}, {key.precision}, batch {key.tiles[0]}, {key.target}"

    @contextlib.contextmanager
    def _writing(self, folder: Path) -> Iterator[None]:
        """One writer at a time, in a folder that is there."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ResourceError(f"{folder}: cannot write an engine there: {error.strerror or error}") from error


def default_folder() -> Path:
    """In $MASKLINE_CACHE_DIR, systemd's $CACHE_DIRECTORY, $XDG_CACHE_HOME/maskline or ~/.cache/maskline."""
    base = os.environ.get("MASKLINE_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maskline"
    return (Path(base) if base else user).expanduser().absolute() / "engines"


def _read_manifest(path: Path) -> EngineManifest:
    try:
        return EngineManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise EngineError(f"{path}: {error.errors(include_url=False)[0]['msg']}; remove its folder") from error


def _as_text(manifest: EngineManifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()
