"""A backend that reads the answer from the pixels (see `edge.marker`), for tests of everything around it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError, ResourceError, StaleEngineError
from edge.marker import find
from engines.backends import BackendInfo, require_plan
from engines.bundle import Bundle, MarkerArchitecture

__all__ = ["MarkerBackend", "pretend_to_build"]


class MarkerBackend:
    """ "Repaints" good parts as they are, and bad parts with the marker's square inverted: the judge does the rest.

    Tiles without a marker come back as they are, but a frame without any is an error, and so is one with markers of two
    parts: no verdict may rest on them. Loaded for batches it does not know which tiles are of one frame, reads no part
    number, and answers for whatever it is given.
    """

    def __init__(self, *, must_be_built: bool = False) -> None:
        """`must_be_built`: pretend that there is an engine to be built (`pretend_to_build`)."""
        self._plan: str | None = None
        self._must_be_built = must_be_built
        self._several_frames = False

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        """See `Backend`."""
        kind = bundle.manifest.architecture.kind
        if not isinstance(bundle.manifest.architecture, MarkerArchitecture):
            raise BundleError(f"bundle {bundle.path}: backend 'marker' needs a bundle of kind 'marker', not {kind!r}")
        require_plan(bundle, plan)
        if self._must_be_built and not _built(bundle, plan).exists():
            raise StaleEngineError(f"bundle {bundle.path}: the marker engine for plan {plan} is not built")
        self._plan, self._several_frames = plan, batch > 1

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def infer(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> int | None:
        """See `Backend`; the witness is the marker's part number. With batches of one `tiles` are those of one frame.

        Raises ValueError if they hold no intact marker, or markers of different parts.
        """
        np.multiply(tiles, np.float32(1 / 255), out=out)
        witness: int | None = None
        for tile, repainted in zip(tiles, out, strict=True):
            found = find(tile)
            if found is None:
                continue
            if witness not in (None, found.marker.part) and not self._several_frames:
                raise ValueError(f"the tiles of a frame carry markers of parts {witness} and {found.marker.part}")
            witness = found.marker.part
            if found.marker.bad:
                square = repainted[found.y : found.y + found.side, found.x : found.x + found.side]
                np.subtract(np.float32(1), square, out=square)
        if self._several_frames:
            return None
        if witness is None:
            raise ValueError("no intact marker in any tile of the frame")
        return witness

    def keep_warm(self) -> None:
        """See `Backend`; nothing cools down here."""

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        if self._plan is None:
            raise RuntimeError("load the backend first")
        return BackendInfo("marker", "1", "none", "f32", "any", self._plan)


def pretend_to_build(bundle: Bundle, plan: str, build_ms: float) -> None:
    """Takes its time, and leaves what `MarkerBackend.load` looks for. Raises ResourceError."""
    path = _built(bundle, plan)
    time.sleep(build_ms / 1000)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ResourceError(f"{path}: cannot write an engine there: {error.strerror}") from error


def _built(bundle: Bundle, plan: str) -> Path:
    from engines.backends.cache import default_folder

    return default_folder() / f"marker-{plan}-{bundle.sha256[:32]}"
