"""What detectors said of every test image, in a file: for figures that were not asked for, and for paired comparisons.

A .npz of numpy (no pickle), that whoever evaluates another detector can write as well: for each CATEGORY and DETECTOR

    CATEGORY/DETECTOR/names    str [N]         folder and file of each image, such as good/000.png
    CATEGORY/DETECTOR/defects  str [N]         its kind of defect; empty for good ones
    CATEGORY/DETECTOR/scores   float64 [N]     larger is worse
    CATEGORY/DETECTOR/good     uint32 [N, B]   pixels outside of the mask by map value, in B ascending bins
    CATEGORY/DETECTOR/bad      uint32 [N, B]   pixels inside (see calib.pixels: maps and masks at 256 x 256)
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.pixels import PixelCounts
from edge.errors import MasklineError

__all__ = ["TINY", "Details", "load_all_details", "load_details", "save_details"]

TINY = "_tiny"
"""Kinds of defects whose names end so are reported apart: they count in no figure that does not say so."""
_FIELDS = ("names", "defects", "scores", "good", "bad")


@dataclass(frozen=True)
class Details:
    """What one detector said of the test images of one category."""

    names: NDArray[np.str_]
    defects: NDArray[np.str_]
    scores: NDArray[np.float64]
    pixels: PixelCounts

    @property
    def bad(self) -> NDArray[np.bool_]:
        """Which images are defective, [N]."""
        return np.asarray(self.defects != "")

    @property
    def tiny(self) -> NDArray[np.bool_]:
        """Which images show a defect that is reported apart, [N]."""
        return np.char.endswith(self.defects, TINY)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images count in figures of pixels, [N]: all but defective ones without a mask."""
        return np.asarray(self.pixels.good.any(1) | self.pixels.bad.any(1))


def save_details(path: Path, details: Mapping[tuple[str, str], Details]) -> None:
    """Write the file. `details`: by category and detector. Raises MasklineError where it cannot be written."""
    arrays: dict[str, NDArray[Any]] = {}
    for (category, detector), found in details.items():
        pixels = found.pixels
        values: tuple[NDArray[Any], ...] = (found.names, found.defects, found.scores, pixels.good, pixels.bad)
        for field, value in zip(_FIELDS, values, strict=True):
            arrays[f"{category}/{detector}/{field}"] = value
    try:
        with path.open("wb") as file:  # a file, not its name: numpy would add .npz to other names
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stubs take **arrays for allow_pickle
    except OSError as error:
        raise MasklineError(f"{path}: cannot write the details: {error.strerror or error}") from error


def load_details(path: Path) -> dict[tuple[str, str], Details]:
    """Read a file of details, by category and detector. Raises MasklineError that names the file and what is wrong."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MasklineError(f"{path}: no file of details: {error}; `maskline compare --details` writes one") from error
    keys = {tuple(name.split("/")[:2]) for name in arrays}
    return {(key[0], key[1]): _details(path, "/".join(key), arrays) for key in sorted(keys) if len(key) == 2}


def load_all_details(paths: Sequence[Path]) -> dict[tuple[str, str], Details]:
    """Read several files as if they were one: what detectors said of categories that were measured apart.

    Raises MasklineError for what `load_details` refuses, and where two files speak of the same category and detector.
    """
    found: dict[tuple[str, str], Details] = {}
    where: dict[tuple[str, str], Path] = {}
    for path in paths:
        for key, details in load_details(path).items():
            if key in found:
                raise MasklineError(f"{path}: {'/'.join(key)} is in {where[key]} as well; leave one of the files out")
            found[key], where[key] = details, path
    return found


def _details(path: Path, prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Details:
    missing = [field for field in _FIELDS if f"{prefix}/{field}" not in arrays]
    if missing:
        raise MasklineError(f"{path}: {prefix} has no {', '.join(missing)}; expected are {', '.join(_FIELDS)}")
    names, defects, scores, good, bad = (arrays[f"{prefix}/{field}"] for field in _FIELDS)
    n = len(names)
    if names.ndim != 1 or defects.shape != (n,) or scores.shape != (n,) or good.shape != bad.shape or len(good) != n:
        shapes = ", ".join(f"{field} {arrays[f'{prefix}/{field}'].shape}" for field in _FIELDS)
        raise MasklineError(f"{path}: {prefix}: the arrays do not belong together: {shapes}")
    if not np.isfinite(scores.astype(np.float64)).all():
        raise MasklineError(f"{path}: {prefix}: a score is not finite")
    counts = PixelCounts(good.astype(np.uint32), bad.astype(np.uint32))
    return Details(names.astype(np.str_), defects.astype(np.str_), scores.astype(np.float64), counts)
