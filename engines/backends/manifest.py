"""What is written down about a built engine: the key of everything that it depends on, and how it came about."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edge.errors import BundleError
from engines.bundle import GRAPH, WEIGHTS, Bundle, Manifest
from engines.precision import TYPING

__all__ = ["EngineKey", "EngineManifest", "Quantised", "Verification", "command", "network_sha256"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class EngineKey(_Frozen):
    """What an engine depends on. Another value of any field is another engine."""

    model_sha256: Sha256
    """Of the network (`network_sha256`), or of the int8 graph that was compiled."""
    plan: str
    precision: str
    tiles: tuple[int, int, int, int]
    """Of the input: batch, height, width, channels."""
    flavour: str
    """The package that made it: "tensorrt", "tensorrt_rtx" or "openvino"."""
    version: str
    target: str
    """Compute capability, such as "sm86", or instruction set."""
    device: str = ""
    """The GPU's name, for `tensorrt`, which times its kernels on it."""
    threads: int = 0
    """That OpenVINO compiled it for."""
    revision: int = TYPING
    """Of what was done to the graph: raised with every change that makes another one from the same bundle."""

    @classmethod
    def of(
        cls, bundle: Bundle, plan: str, precision: str, batch: int, *, flavour: str, version: str, gpu: tuple[str, str]
    ) -> EngineKey:
        """The key of a bundle's TensorRT engine; `gpu` is compute capability and name. Raises BundleError without a
        network."""
        m, (target, device) = bundle.manifest, gpu
        if GRAPH not in m.files:
            raise BundleError(f"bundle {bundle.path}: kind {m.architecture.kind!r} has no network, and so no engine")
        return cls(
            model_sha256=network_sha256(m),
            plan=plan,
            precision=precision,
            tiles=(batch, m.tile_px, m.tile_px, m.channels),
            flavour=flavour,
            version=version,
            target=target,
            device="" if flavour == "tensorrt_rtx" else device,
        )

    @property
    def backend(self) -> str:
        """The backend that serves it."""
        return self.flavour.removesuffix("_rtx")

    @property
    def folder(self) -> str:
        """Readable, and different for every key."""
        digest = hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()
        target = re.sub(r"[^A-Za-z0-9_]+", "-", self.target).strip("-")[:40]
        return f"{self.plan}-{self.precision}-b{self.tiles[0]}-{target}-{digest[:32]}"


def network_sha256(manifest: Manifest) -> str:
    """Hash of a bundle's network: of its graph, of its weights, which a large graph leaves beside it, and of its
    architecture, from which the index sets of a mask plan follow: networks that differ in them alone share a graph."""
    parts = (manifest.files[GRAPH], manifest.files.get(WEIGHTS, ""), manifest.architecture.model_dump_json())
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def command(verb: str, bundle: Bundle, key: EngineKey) -> str:
    """The command line that builds or verifies an engine."""
    backend = "" if key.backend == "tensorrt" else f" --backend {key.backend}"
    batch = f" --batch {key.tiles[0]}" if key.tiles[0] != 1 else ""
    images = " --good FOLDER" if (verb, key.precision) == ("build", "int8") else ""
    return f"maskline engine {verb} {bundle.path}{backend} --plan {key.plan} --precision {key.precision}{batch}{images}"


class Verification(_Frozen):
    """How the engine's answers differ from the CPU's in float32 (`engines.backends.verify`), on the scale [0, 1]."""

    max_error: float
    mean_error: float
    agreement: float
    """Share of tiles that are decided the same."""
    tiles: int
    passed: bool


class Quantised(_Frozen):
    """How the 8-bit graph of OpenVINO came about."""

    by: str
    """What did it, and its version."""
    tiles: int
    """Of good parts, from which it took ranges and corrections."""
    tiles_sha256: Sha256


class EngineManifest(_Frozen):
    """What is stored beside an engine."""

    key: EngineKey
    bundle: str
    """The bundle's name, for people."""
    engine_sha256: Sha256
    engine_bytes: int
    graph_sha256: Sha256
    """Of the graph that it was built from; that of TensorRT's "int8" differs with the calibration images."""
    built: str
    """When, UTC."""
    ranges: dict[str, float] | None = None
    """Of TensorRT's "int8": the largest absolute values of activations (`engines.precision.observe_ranges`). They
    belong to the network and not to TensorRT: an engine that is stale is built again from them, without images."""
    quantised: Quantised | None = None
    """Of OpenVINO's "int8"."""
    verification: Verification | None = None
