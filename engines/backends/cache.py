"""Built engines on disk, under a key of everything that an engine depends on.

One folder per key, named after the key's hash: `manifest.json`, `SHA256.engine`, and for `tensorrt_rtx` later
`SHA256.kernels`, the kernels that it compiled on the device. The manifest is written last and in one step and names the
engine by its hash: a reader sees the old engine, the new one, or none, and never a mixture.

What was built on purpose (all of TensorRT's, OpenVINO's int8) lies in `engines` and stays. What OpenVINO compiles by
itself at a start lies in `compiled`, where anything may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edge.errors import EngineError, ResourceError
from edge.paths import write_durably
from engines.backends.manifest import EngineKey, EngineManifest, Verification

__all__ = ["EngineCache", "Stored", "default_folder"]

MANIFEST = "manifest.json"


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

    def has(self, key: EngineKey) -> bool:
        """Whether the engine under a key is there, whole, verified or not."""
        try:
            self.read(self.find(key))
        except EngineError:
            return False
        return True

    def everything(self) -> Iterator[Stored]:
        """All engines whose manifests can be read."""
        for path in sorted(self.root.glob(f"*/{MANIFEST}")):
            with contextlib.suppress(EngineError, OSError):
                yield Stored(path.parent, _read_manifest(path))

    def ranges(self, key: EngineKey) -> dict[str, float] | None:
        """What the newest "int8" engine of the same network and plan was built with; None where there is none."""
        wanted = (key.model_sha256, key.plan)
        known = (stored.manifest for stored in self.everything())
        same = [m for m in known if (m.key.model_sha256, m.key.plan) == wanted and m.ranges]
        return max(same, key=lambda m: m.built).ranges if same else None

    def earlier(self, key: EngineKey) -> Stored | None:
        """The newest engine that differs from `key` only in version or target, and whose bytes are whole."""
        here = {"version": key.version, "target": key.target}
        same = [s for s in self.everything() if s.manifest.key.model_copy(update=here) == key != s.manifest.key]
        for stored in sorted(same, key=lambda s: s.manifest.built, reverse=True):
            with contextlib.suppress(EngineError):
                self.read(stored)
                return stored
        return None

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

    def shrink(self, most_bytes: int) -> None:
        """Removes what was not stored or marked as used for the longest time, until no more than this is left."""
        found = []
        with contextlib.suppress(OSError):  # of a folder that another process removes
            for folder in self.root.iterdir():
                files = [path.stat() for path in folder.iterdir()]
                found.append((max((f.st_mtime_ns for f in files), default=0), sum(f.st_size for f in files), folder))
        total = sum(size for _, size, _ in found)
        for _, size, folder in sorted(found):
            if total <= most_bytes:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= size

    def mark_used(self, stored: Stored) -> None:
        """For `shrink`, which takes those away first that were not used for the longest time."""
        with contextlib.suppress(OSError):
            os.utime(stored.folder / MANIFEST)

    def _nearest(self, key: EngineKey) -> str:
        """What to say about a key that is not there: an engine of the same network and plan is stale, and why."""
        same = ("backend", "model_sha256", "plan", "precision", "tiles")
        for stored in self.everything():
            other = stored.manifest.key
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


def default_folder(kind: str = "engines") -> Path:
    """In $MASKLINE_CACHE_DIR, systemd's $CACHE_DIRECTORY, $XDG_CACHE_HOME/maskline or ~/.cache/maskline.

    Raises ResourceError where none of them is set and this user has no home.
    """
    base = os.environ.get("MASKLINE_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maskline"
    try:
        return (Path(base) if base else user).expanduser().absolute() / kind
    except RuntimeError as error:
        raise ResourceError(f"no folder for engines: {error} Set MASKLINE_CACHE_DIR") from error


def _read_manifest(path: Path) -> EngineManifest:
    try:
        return EngineManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise EngineError(f"{path}: {error.errors(include_url=False)[0]['msg']}; remove its folder") from error


def _as_text(manifest: EngineManifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()
