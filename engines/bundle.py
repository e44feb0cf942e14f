"""Bundles: a folder with a manifest, the network as ONNX and safetensors, and the hash of each file.

`manifest.json` says everything that a score depends on besides the pixels and the recipe. Its own hash names the
bundle. Nothing in a bundle is code, and nothing is used before its hash was checked. Needs neither torch nor openvino.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import BundleError
from engines.architecture import Architecture
from engines.plans import PLANS

__all__ = [
    "ZOO",
    "Bundle",
    "DirectMap",
    "ErrorMap",
    "Manifest",
    "MarkerArchitecture",
    "NullArchitecture",
    "Score",
    "SmoothedMap",
    "SsimL1Map",
    "Trained",
    "Window",
    "find_bundle",
    "load_bundle",
    "write_bundle",
]

ZOO = Path(__file__).parent / "zoo"
"""The bundles that ship."""
GRAPH, WEIGHTS, MANIFEST = "network.onnx", "network.safetensors", "manifest.json"
LARGEST_MANIFEST_BYTES = 1 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class MarkerArchitecture(_Frozen):
    """No network: the answer is drawn into the pixels (see `engines.backends.marker`)."""

    kind: Literal["marker"]
    tile_px: int = Field(default=224, ge=8, le=4096)
    channels: Literal[1, 3] = 1


class NullArchitecture(_Frozen):
    """No network: the tile comes back as it is, after `delay_ms` per call; for benches."""

    kind: Literal["null"]
    tile_px: int = Field(default=224, ge=8, le=4096)
    channels: Literal[1, 3] = 1
    delay_ms: float = Field(default=0.0, ge=0, le=60_000)


class Window(_Frozen):
    """Fixed window and level: pixel values `low`..`high` of deep images become 0..255."""

    low: int = Field(default=0, ge=0, le=65534)
    high: int = Field(default=65535, ge=1, le=65535)

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.low >= self.high:
            raise ValueError(f"window low {self.low} must be below high {self.high}")
        return self


class SsimL1Map(_Frozen):
    """SSIM and L1 together, opened (see `edge.anomaly`): what suits repainted patches."""

    kind: Literal["ssim_l1"] = "ssim_l1"
    ssim_window: Literal[7, 9, 11] = Field(default=7, description="pixels")
    ssim_weight: float = Field(default=1.0, ge=0, le=100, description="of (1 - SSIM) / 2")
    l1_weight: float = Field(default=1.0, ge=0, le=100, description="of the absolute difference")
    opening_px: Literal[0, 2, 3, 4] = Field(default=0, description="smaller specks are removed; 0: none are")

    @model_validator(mode="after")
    def _something(self) -> SsimL1Map:
        if self.largest <= 0:
            raise ValueError("one of ssim_weight and l1_weight must be above 0")
        return self

    @property
    def largest(self) -> float:
        """The largest value that a map can have."""
        return self.ssim_weight + self.l1_weight


class SmoothedMap(_Frozen):
    """The difference, smoothed by a Gaussian (see `edge.anomaly`): what suits networks that repaint all at once."""

    kind: Literal["smoothed"] = "smoothed"
    norm: Literal["l1", "l2", "signed"] = Field(
        default="l2", description="of the difference; signed: of what is left of it when it is smoothed"
    )
    sigma_px: float = Field(default=3.0, ge=0.5, le=64, description="of the Gaussian")

    @property
    def largest(self) -> float:
        """The largest value that a map can have."""
        return 1.0


class DirectMap(_Frozen):
    """The map that the network itself answers with, as one more plane behind the picture, smoothed if wanted."""

    kind: Literal["direct"] = "direct"
    sigma_px: float = Field(default=0.0, ge=0, le=64, description="of a Gaussian; 0 leaves the map as it is")
    largest: float = Field(default=1.0, gt=0, le=1e6, description="value that pictures show as white")
    """Where the map's histogram ends, too: the largest value that it can have, or one that good parts never come
    near."""


ErrorMap = Annotated[SsimL1Map | SmoothedMap | DirectMap, Field(discriminator="kind")]
"""How an anomaly map comes out of a tile and its reconstruction."""


class Score(_Frozen):
    """How a tile's map becomes its score: mean, maximum, mean of the `k` largest pixels, or largest area."""

    kind: Literal["mean", "max", "topk", "area"] = Field(
        default="topk", description="of the map, or the pixels of its largest connected area above the threshold"
    )
    k: int = Field(default=100, ge=1, le=1 << 24, description="how many of the largest pixels topk takes the mean of")
    map_quantile: float = Field(
        default=0.9995, ge=0.5, lt=1, description="share of good pixels below the map's threshold"
    )
    """From which areas and boxes are cut. Which one suits kind "area" depends on the texture: docs/engines.md."""


class Trained(_Frozen):
    """Where the weights come from; what earlier versions did not write down is None."""

    steps: int = Field(ge=0)
    seed: int = Field(ge=0)
    data: str
    base: str = Field(default="", description="name and sha256 of the bundle or file that the training started from")
    batch: int | None = None
    learning_rate: float | None = None
    average: float | None = None
    resize: float | Literal["tile"] | None = Field(default=None, description="of the images, before tiles were cut")


class Manifest(_Frozen):
    """Everything that a score depends on besides pixels and recipe."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    architecture: Annotated[Architecture | MarkerArchitecture | NullArchitecture, Field(discriminator="kind")]
    plans: tuple[str, ...] = PLANS
    window: Window = Window()
    error_map: ErrorMap = SsimL1Map()
    score: Score = Score()
    licence: str
    trained: Trained | None = None
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        for name in self.files:
            if not name or name in (".", "..", MANIFEST) or any(c in name for c in "/\\\0"):
                raise ValueError(f"files: {name!r} is no plain file name")
        unknown = set(self.plans) - set(PLANS)
        if unknown or not self.plans:
            raise ValueError(f"plans: {sorted(unknown)} unknown, expected some of {', '.join(PLANS)}")
        if self.architecture.kind not in ("marker", "null") and GRAPH not in self.files:
            raise ValueError(f"files: {GRAPH} is missing")
        if self.architecture.kind in ("marker", "null") and isinstance(self.error_map, DirectMap):
            raise ValueError(f"error_map: kind {self.architecture.kind!r} answers with a picture alone, not with a map")
        return self

    @property
    def sha256(self) -> str:
        """Hash of what it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return self.architecture.tile_px

    @property
    def channels(self) -> Literal[1, 3]:
        """1 (grey) or 3 (RGB)."""
        return self.architecture.channels

    def answer_shape(self, tiles: tuple[int, ...]) -> tuple[int, int, int, int]:
        """What the network answers to tiles of shape [N, h, w, C]: as many pictures, each with one plane more, the map,
        where the error map is `direct`.
        """
        count, height, width, _ = tiles
        return count, height, width, self.channels + isinstance(self.error_map, DirectMap)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were all checked when it was loaded."""

    path: Path
    manifest: Manifest
    sha256: str
    """Of the manifest's bytes, and so of everything in the bundle."""

    def read(self, name: str) -> bytes:
        """The bytes of a file, checked again, so that what is used is what was hashed.

        Raises BundleError if the manifest does not list it or it has changed.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(
                f"bundle {self.path}: no file {name!r} in its manifest, which lists {sorted(self.manifest.files)}"
            )
        return _checked(self.path / name, expected)


def find_bundle(name: str | Path, relative_to: Path | None = None) -> Path:
    """The folder of a bundle: one that ships, by name, or a path (relative ones start at `relative_to`).

    Raises BundleError that names both places when it is in neither.
    """
    path = Path(name).expanduser()
    candidates = [(relative_to or Path()) / path]
    if len(path.parts) == 1:
        candidates.append(ZOO / path)
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate.resolve()
    shipped = sorted(p.parent.name for p in ZOO.glob(f"*/{MANIFEST}"))
    places = " nor ".join(dict.fromkeys(str(c) for c in candidates))
    raise BundleError(
        f"bundle {str(name)!r}: no {MANIFEST} in {places}; bundles that ship: {', '.join(shipped) or 'none'}"
    )


def load_bundle(path: Path) -> Bundle:
    """Reads a manifest and checks every file of the bundle against it. Raises BundleError."""
    raw = _bytes(path / MANIFEST, LARGEST_MANIFEST_BYTES)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"bundle {path}: {MANIFEST}: {where}: {first['msg']}") from error
    for name, expected in manifest.files.items():
        _checked(path / name, expected)
    return Bundle(path, manifest, hashlib.sha256(raw).hexdigest())


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Writes a bundle folder in one step: readers see the old one, or the new one, whole.

    `manifest.files` is filled in here. Other files of an existing folder (a README, a calibration) are kept.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    manifest = Manifest.model_validate({**manifest.model_dump(), "files": hashes})
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        new, old = work / "new", work / "old"
        if path.exists():
            shutil.copytree(path, new)
            for stale in (new / MANIFEST, *(new / name for name in _listed(path))):
                stale.unlink(missing_ok=True)
        else:
            new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
        (new / MANIFEST).write_text(text, encoding="utf-8")
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return load_bundle(path)


def _listed(path: Path) -> list[str]:
    try:
        return list(load_bundle(path).manifest.files)
    except BundleError:
        return []


def _bytes(path: Path, largest: int | None = None) -> bytes:
    try:
        if largest is not None and path.stat().st_size > largest:
            raise BundleError(f"bundle file {path}: {path.stat().st_size} bytes, expected at most {largest}")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"bundle file {path}: {error.strerror or error}; copy the whole bundle folder again"
        ) from error


def _checked(path: Path, expected: str) -> bytes:
    data = _bytes(path)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise BundleError(
            f"bundle file {path}: sha256 is {found}, expected {expected}; the file was changed or damaged: "
            "copy the bundle folder again"
        )
    return data
