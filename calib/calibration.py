"""The calibration file: thresholds from good parts, and everything that they are valid for.

An absent or mismatching calibration is UNINSPECTED(uncalibrated), never a default number.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import CalibrationError
from edge.paths import write_durably
from edge.tiling import FrameLevels
from edge.verdict import Reason

__all__ = [
    "Calibration",
    "LevelsSeen",
    "Provenance",
    "SharpnessSeen",
    "StationCalibration",
    "levels_trouble",
    "load_calibration",
    "mismatch",
    "save_calibration",
    "sharpness_trouble",
]

MAX_CALIBRATION_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Provenance(_Frozen):
    """What scores were computed with. Thresholds hold for exactly this."""

    bundle_sha256: Sha256
    recipe_sha256: Sha256 = Field(description="of the recipe's fields that change pixels or scores")
    backend: Word
    backend_version: Word
    device: Word
    precision: Word = Field(description="effective, as read back from the backend")
    isa: Word = Field(description="the instruction set, which decides the last bits")
    plan: Word


class LevelsSeen(_Frozen):
    """How good parts looked, over the tiles of a view, on the scale 0..1: what is far outside is no part."""

    mean_low: Share
    mean_high: Share
    contrast_low: Share = Field(description="smallest standard deviation of the pixels")


class SharpnessSeen(_Frozen):
    """How sharp good parts were (`edge.validity.sharpness`): what is far below is out of focus."""

    low: float = Field(ge=0)
    high: float = Field(ge=0)


class StationCalibration(_Frozen):
    """The thresholds of one station and what they rest on."""

    provenance: Provenance
    map_threshold: float = Field(ge=0, description="of the anomaly map's pixels: areas and boxes")
    map_quantile: Share = Field(description="the share of good pixels at or below it")
    score_threshold: float = Field(ge=0, description="a part with a larger score is rejected")
    parts_fit: int = Field(ge=1, description="good parts that gave the map's threshold")
    parts_held_out: int = Field(ge=1, description="other good parts, that gave the score threshold")
    rejected_held_out: int = Field(ge=0, description="of these, above it")
    target_false_reject_rate: float = Field(gt=0, le=0.5)
    confidence: float = Field(ge=0.5, lt=1)
    false_reject_upper_bound: Share
    extrapolated: bool = Field(description="whether the score threshold lies above every part seen")
    score_quantiles: dict[str, float] = Field(max_length=16, description="of the held-out parts: min, 50, 90, 99, max")
    cascade_band: tuple[float, float] | None = Field(
        default=None, description="exact less cheap scores stay within: which parts may change sides"
    )
    levels: LevelsSeen
    sharpness: SharpnessSeen | None = Field(default=None, description="calibrations before it was learned have none")
    statement: str = Field(max_length=2000, description="what may be promised, in words")


class Calibration(_Frozen):
    """One file per line."""

    format: Literal[1] = 1
    maskline_version: Word
    created_utc: Word
    source: str = Field(max_length=4000, description="where the good parts came from")
    stations: dict[Name, StationCalibration] = Field(min_length=1, max_length=64)

    def to_bytes(self) -> bytes:
        """The file's content: JSON with sorted keys, so that equal calibrations are equal files."""
        content = self.model_dump(mode="json")
        for station in content["stations"].values():
            if station["sharpness"] is None:  # a calibration without it keeps the hash that it was made with
                del station["sharpness"]
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Hash of the content; what verdicts name."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def mismatch(calibration: StationCalibration, provenance: Provenance) -> str | None:
    """Why the thresholds do not hold for scores of `provenance`: the fields with both values; None if they do."""
    differences = [
        f"{name} is {_short(found)}, calibrated with {_short(expected)}"
        for name in Provenance.model_fields
        if (found := getattr(provenance, name)) != (expected := getattr(calibration.provenance, name))
    ]
    return "; ".join(differences) or None


def _short(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else repr(value)


def levels_trouble(seen: LevelsSeen, levels: FrameLevels) -> Reason | None:
    """BLACK_FRAME or SATURATED_FRAME where a view looks like no good part ever did, else None.

    A view is no picture when its mean is under half of the darkest good part's, or nearer to white than half of the
    brightest good part's distance, or when its contrast is under a quarter of the flattest good part's: a covered lens
    has no defects either. Wide on purpose: a real part with a real defect must be judged.
    """
    if levels.mean < 0.5 * seen.mean_low:
        return Reason.BLACK_FRAME
    if 1 - levels.mean < 0.5 * (1 - seen.mean_high):
        return Reason.SATURATED_FRAME
    if levels.contrast < 0.25 * seen.contrast_low:
        return Reason.BLACK_FRAME if levels.mean < 0.5 * (seen.mean_low + seen.mean_high) else Reason.SATURATED_FRAME
    return None


def sharpness_trouble(seen: SharpnessSeen, sharpness: float) -> Reason | None:
    """DEFOCUSED where a view has less than two thirds of the least sharp good part's sharpness, else None.

    On the photographs that ship, 80 parts each, neither good ones nor those with a painted defect have less than 0.95.
    """
    return Reason.DEFOCUSED if sharpness < seen.low * 2 / 3 else None


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file whole or not at all: a temporary file beside it, synced, then renamed over it.

    Raises CalibrationError where the folder cannot be written.
    """
    try:
        write_durably(path, calibration.to_bytes())
    except OSError as error:
        raise CalibrationError(f"{path}: cannot write the calibration: {error}") from error


def load_calibration(path: Path) -> Calibration | None:
    """Read and check a calibration file; None where there is none.

    Raises CalibrationError, which names the file, the field and what is wrong: a damaged file is not an absent one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CALIBRATION_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CalibrationError(f"{path}: cannot read the calibration: {error}") from error
    if len(content) > MAX_CALIBRATION_BYTES:
        raise CalibrationError(f"{path}: larger than {MAX_CALIBRATION_BYTES} bytes: no calibration")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}: not a calibration, the JSON does not parse: {error}") from error
    if isinstance(data, dict) and data.get("format") != 1:
        raise CalibrationError(
            f"{path}: calibration format {data.get('format')!r}, this version of maskline reads 1: calibrate again"
        )
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CalibrationError(
            f"{path}: {field}: {first['msg']}, found {str(first['input'])[:80]!r}; calibrate again"
        ) from error
