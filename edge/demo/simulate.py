"""Simulated recordings: streams of real photographs with painted defects, whose truth is recorded beside them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from edge.demo.defects import CONTRASTS, Defect
from edge.demo.web import Web
from edge.errors import SourceError
from edge.recording import MAX_NUMBER, RecordedTruth, RecordingWriter
from edge.settings import Frame
from edge.sources.truth import mix

__all__ = ["DEFAULT_FRAME", "EPOCH_NS", "ROLL_FRAME", "Simulated", "simulate", "web_of"]

DEFAULT_FRAME = Frame(width_px=224, height_px=224)
ROLL_FRAME = Frame(width_px=224, height_px=144)
"""With an overlap of 80 rows one tile of `texture-s`, as in configs/roll.toml."""

EPOCH_NS = 1_767_225_600_000_000_000
"""Recorded streams begin at 2026-01-01 00:00:00 UTC, so that the same seed gives the same bytes."""

_EXPOSURE_NS = 4_000_000
_GENERATOR = "maskline simulate 1"
_LICENCE = "CC0-1.0 (photographs: see edge/demo/photos/LICENSE.txt)"


@dataclass(frozen=True)
class Simulated:
    """What a recording holds."""

    path: Path
    parts: int  # per station
    bad: dict[str, int]  # by station
    kinds: dict[str, int]  # of defects, over all stations


def simulate(
    out: Path,
    textures: Mapping[str, str],
    *,
    parts: int,
    seed: int = 0,
    half: str = "right",
    frame: Frame = DEFAULT_FRAME,
    scale: float | Mapping[str, float] = 1.0,
    defect_share: float = 0.2,
    contrast: tuple[float, float] = CONTRASTS,
    margin_px: int = 0,
    rate_hz: float = 5.0,
    roll: bool = False,
) -> Simulated:
    """Write a recording of `parts` parts for each station of `textures` (station name to photograph).

    `half = "left"` is for calibration: its parts are all good, whatever `defect_share` says. `half = "right"` (or
    "whole") is for tests. `scale`: frame pixels per pixel of the photograph, of all stations or of each. No defect
    lies within `margin_px` of a frame's border. `roll`: of a web, see `Web`. The same arguments give the same bytes.
    The file appears whole or not at all.

    Raises SourceError for an unknown photograph or half, or a file that cannot be written.
    """
    if not 1 <= parts <= MAX_NUMBER:
        raise SourceError(f"parts = {parts}; a recording has 1 to {MAX_NUMBER}")
    share = 0.0 if half == "left" else defect_share
    scales = scale if isinstance(scale, Mapping) else dict.fromkeys(textures, scale)
    webs = {
        name: replace(web_of(name, texture, seed, half, frame, scales[name], share, contrast, margin_px), roll=roll)
        for name, texture in textures.items()
    }
    if not webs:
        raise SourceError("no station to simulate; name at least one, with its photograph")
    metadata = {
        "simulated": "true",
        "generator": _GENERATOR,
        "seed": str(seed),
        "licence": _LICENCE,
        "half": half,
        "scale": ", ".join(f"{name}: {web.scale:g}" for name, web in webs.items()),
        "defect_share": str(share),
        "rate_hz": str(rate_hz),
        **({"roll": "true"} if roll else {}),
        "textures": ", ".join(f"{name}: {web.texture}" for name, web in webs.items()),
    }
    bad, kinds = Counter[str](), Counter[str]()
    partial = out.with_name(out.name + ".partial")
    try:
        with RecordingWriter(partial, metadata) as writer:
            for station, defect in _write_parts(writer, webs, parts, rate_hz):
                bad[station] += defect is not None
                if defect is not None:
                    kinds[defect.kind] += 1
        partial.replace(out)
    except OSError as error:
        raise SourceError(f"{out}: cannot write this recording: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Simulated(out, parts, {name: bad[name] for name in webs}, dict(sorted(kinds.items())))


def web_of(
    station: str,
    texture: str,
    seed: int,
    half: str,
    frame: Frame,
    scale: float,
    defect_share: float,
    contrast: tuple[float, float] = CONTRASTS,
    margin_px: int = 0,
) -> Web:
    """The camera of a simulated station; stations of one seed see different places and different defects."""
    return Web(texture, frame, mix(seed, zlib.crc32(station.encode())), half, scale, defect_share, contrast, margin_px)


def _write_parts(
    writer: RecordingWriter, webs: Mapping[str, Web], parts: int, rate_hz: float
) -> Iterator[tuple[str, Defect | None]]:
    for number in range(parts):
        trigger_ns = EPOCH_NS + round(number * 1e9 / rate_hz)
        for station, web in webs.items():
            shot = web.shot(number)
            writer.trigger(station, number, trigger_ns)
            writer.frame(station, number, trigger_ns + _EXPOSURE_NS, shot.image)
            writer.truth(station, _truth(number, trigger_ns + _EXPOSURE_NS, shot.defect))
            yield station, shot.defect


def _truth(number: int, at_ns: int, defect: Defect | None) -> RecordedTruth:
    if defect is None:
        return RecordedTruth(number, at_ns, bad=False)
    _, png = cv2.imencode(".png", defect.mask.astype(np.uint8) * 255)
    return RecordedTruth(number, at_ns, True, defect.kind, defect.contrast, defect.size_px, png.tobytes())
