"""Engines fitted for `calib.compare`, in a folder where the same fit is found again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import MasklineError
from edge.paths import write_durably
from edge.tiling import Scale
from engines.bundle import Bundle, load_bundle
from engines.registry import Fitting

if TYPE_CHECKING:
    from engines.fit import Start

__all__ = ["FitChoice", "fit_or_find"]


@dataclass(frozen=True)
class FitChoice:
    """What may be chosen of a fit besides the engine."""

    size: str | None = None
    tile_px: int | None = None
    channels: int = 1
    steps: int | None = None
    """None: as many as the engine's own."""
    seed: int = 0
    """Of the weights and the crops."""
    settings: tuple[str, ...] = ()
    """What is not as the size has it: see `engines.settings`."""


def fit_or_find(
    engine: str, good: Sequence[Path], folder: Path, choice: FitChoice, *, scale: Scale, quiet: bool
) -> tuple[Bundle, float | None]:
    """An engine fitted to the images `good`, scaled by `scale`, and the seconds that took: found in `folder`, or made.

    What the fit depends on is in the bundle's name, as a hash, and beside it as JSON. The time of a fit that was
    interrupted is None: nobody took all of it. Raises MasklineError.
    """
    try:
        from engines.fit import fit, from_scratch
    except ImportError as error:
        raise MasklineError(f"{engine}: fitting needs {error.name}: pip install 'maskline[train]'") from error
    start = from_scratch(
        engine,
        size=choice.size,
        tile_px=choice.tile_px,
        channels=choice.channels,
        seed=choice.seed,
        settings=choice.settings,
    )
    steps = start.fitting.steps if choice.steps is None else choice.steps
    fitting = start.fitting.model_copy(update={"seed": choice.seed, "steps": steps})
    settings = _settings(start, fitting, scale, good)
    out = folder / f"{engine}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"
    note = out.with_name(f"{out.name}.json")
    if out.is_dir() and note.is_file():
        return load_bundle(out), json.loads(note.read_text())["fit_s"]
    folder.mkdir(parents=True, exist_ok=True)
    interrupted, begun = note.is_file(), time.perf_counter()
    write_durably(note, json.dumps(settings | {"fit_s": None}, indent=2).encode())
    bundle = fit(good, start, out, fitting, scale=scale, name=engine, quiet=quiet)
    fit_s = None if interrupted else time.perf_counter() - begun
    write_durably(note, json.dumps(settings | {"fit_s": fit_s}, indent=2).encode())
    return bundle, fit_s


def _settings(start: Start, fitting: Fitting, scale: Scale, good: Sequence[Path]) -> dict[str, object]:
    images = hashlib.sha256()
    for path in good:
        images.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "base": start.base,
        "manifest": start.manifest.sha256,
        "fitting": fitting.model_dump(),
        "scale": scale,
        "images": images.hexdigest(),
    }
