"""Backends: what runs a bundle's network. All look the same from outside; `open_backend` makes one by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError, RecipeError
from engines.architecture import Architecture
from engines.bundle import Bundle, MarkerArchitecture, NullArchitecture
from engines.plans import Index

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendInfo",
    "RepaintsBlocks",
    "build_engine",
    "open_backend",
    "require_network",
    "require_plan",
]

BACKENDS = ("openvino", "tensorrt", "marker", "null")

Tiles = npt.NDArray[np.uint8]
Reconstruction = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BackendInfo:
    """What ran, as read back from what runs: thresholds belong to it."""

    backend: str
    version: str
    device: str
    precision: str
    """Effective precision, which may differ from the one that was asked for."""
    isa: str
    """The instruction set that decides the last bits, such as "avx512_vnni" or "avx512_core_amx"."""
    plan: str


class Backend(Protocol):
    """Belongs to one thread of one process."""

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        """Makes the engine ready for `batch` tiles at a time on `threads` threads; 0 means the cores less one.

        precision: "f32", "f16", "bf16" or "int8". Raises BundleError for a bundle or plan that this backend cannot run,
        RecipeError for a precision that this machine cannot run, and StaleEngineError when `build_engine` would help.
        """

    def warm_up(self) -> None:
        """Runs once on made-up tiles, so that the first part does not pay for it."""

    def infer(self, tiles: Tiles, out: Reconstruction) -> int | None:
        """Fills `out` (float32, C-contiguous, of the bundle's `Manifest.answer_shape`) with what the network makes of
        `tiles` (uint8 [N, h, w, C], any N): pictures in [0, 1], and behind each its map where the network draws one.

        Returns the part number that the pixels themselves carry, if any (the witness). Real engines return None; the
        marker engine reads it, so that a verdict made from another part's pixels can be seen.
        """

    def keep_warm(self) -> None:
        """To be called often while no part comes: a device whose clocks fall when it is idle does something for nothing
        now and then, so that the next part does not wait for them."""

    def describe(self) -> BackendInfo:
        """What runs. Raises RuntimeError before `load`."""


@runtime_checkable
class RepaintsBlocks(Protocol):
    """What a backend may offer beyond `Backend`: to repaint some blocks of a tile alone."""

    @property
    def blocks(self) -> int:
        """How many at a time; 0: with this bundle, plan or precision it cannot."""

    def repaint(self, tiles: Tiles, out: Reconstruction, blocks: Index) -> None:
        """`Backend.infer` for the blocks of each tile that `blocks` int32 [N, self.blocks] names, numbered row by row;
        the rest of `out` is left as it is."""


def open_backend(name: str, *, null_delay_ms: float | None = None, marker_build_ms: float | None = None) -> Backend:
    """A backend by name, not loaded. Raises RecipeError.

    `null_delay_ms` overrides the delay in a null bundle. With `marker_build_ms` the marker backend pretends that its
    engines must be built (`build_engine`).
    """
    if name == "openvino":
        from engines.backends.openvino import OpenVinoBackend

        return OpenVinoBackend()
    if name == "tensorrt":
        from engines.backends.tensorrt import TensorRtBackend

        return TensorRtBackend()
    if name == "marker":
        from engines.backends.marker import MarkerBackend

        return MarkerBackend(must_be_built=marker_build_ms is not None)
    if name == "null":
        from engines.backends.null import NullBackend

        return NullBackend(null_delay_ms)
    raise RecipeError(f"engine backend {name!r} is unknown: expected one of {', '.join(BACKENDS)}")


def build_engine(
    name: str, bundle: Bundle, plan: str, *, precision: str, batch: int, marker_build_ms: float | None = None
) -> None:
    """Makes the engine without which a backend's `load` raises StaleEngineError, if it is not there.

    Most backends have nothing to build. `marker_build_ms`: how long the marker backend pretends to. Raises EngineError
    when the engine cannot be built or must not be served, ResourceError when it cannot be kept.
    """
    if name == "openvino":
        from engines.backends.openvino.rebuild import rebuild

        rebuild(bundle, plan, precision, batch)
    elif name == "tensorrt":
        from engines.backends.tensorrt.rebuild import rebuild as rebuild_tensorrt

        rebuild_tensorrt(bundle, plan, precision, batch)
    elif name == "marker" and marker_build_ms is not None:
        from engines.backends.marker import pretend_to_build

        pretend_to_build(bundle, plan, marker_build_ms)


def require_network(bundle: Bundle, backend: str) -> Architecture:
    """The bundle's network, which `backend` is asked to run. Raises BundleError for a bundle that has none."""
    a = bundle.manifest.architecture
    if isinstance(a, MarkerArchitecture | NullArchitecture):
        raise BundleError(f"bundle {bundle.path}: kind {a.kind!r} is not for backend {backend!r}, use {a.kind!r}")
    return a


def require_plan(bundle: Bundle, plan: str) -> None:
    """Raises BundleError unless the bundle has that mask plan."""
    if plan not in bundle.manifest.plans:
        raise BundleError(
            f"bundle {bundle.path}: it has no mask plan {plan!r}, only {', '.join(bundle.manifest.plans)}; "
            "change `plan` in the recipe"
        )
