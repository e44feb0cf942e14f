"""A simulated web: a camera over a photograph that passes by as if it were endless, with defects painted in.

Everything that changes from frame to frame (place, wander, tilt, light, sensor noise, defects) comes from the seed and
the part's number alone, so that any part can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.demo.defects import CONTRASTS, KINDS, Defect, paint_any
from edge.errors import SourceError
from edge.settings import Frame
from edge.sources import Image
from edge.sources.truth import mix, truth_is_bad

__all__ = ["HALVES", "Web", "WebShot", "load_photo", "photo_names"]

HALVES = ("whole", "left", "right")

_LAID = ("brick",)  # textures laid of pieces, of which one can be missing
_ADVANCE = 0.618  # of the frame's height, from part to part: windows overlap and never repeat
_TILT_DEG = 0.6
_GAIN_DRIFT = 0.03
_GAIN_NOISE = 0.008
_LIGHT_GRADIENT = 0.04
_SENSOR_NOISE = 0.006
_SMALLEST_PX = 48
_MARGIN_PX = 3.0  # of the photograph: what tilt and interpolation reach beyond the window


@dataclass(frozen=True)
class WebShot:
    """A simulated frame, uint8 or uint16 [H, W, C], and its defect; None for a good part."""

    image: Image
    defect: Defect | None


@dataclass(frozen=True)
class Web:
    """A camera over one photograph. `scale`: frame pixels per pixel of the photograph.

    `half` keeps to the left or right half of the photograph, so that what is calibrated on one is tested on the other.
    Frames larger than that are filled by mirroring it. Nothing is painted within `margin_px` of the frame's border.
    `roll`: frames follow each other without a gap, and defects cross from one to the next; otherwise each is a window
    of its own.
    """

    texture: str
    frame: Frame
    seed: int = 0
    half: str = "whole"
    scale: float = 1.0
    defect_share: float = 0.2
    contrast: tuple[float, float] = CONTRASTS
    margin_px: int = 0
    roll: bool = False

    def __post_init__(self) -> None:
        if self.half not in HALVES:
            raise SourceError(f"half = {self.half!r} of a photograph; expected one of {', '.join(HALVES)}")
        if self.defect_share > 0 and min(self.frame.width_px, self.frame.height_px) - 2 * self.margin_px < _SMALLEST_PX:
            raise SourceError(
                f"frames of {self.frame.width_px} x {self.frame.height_px} px are too small to paint defects into; "
                f"they need {_SMALLEST_PX} px a side, or a defect_share of 0"
            )
        photo = load_photo(self.texture)
        middle = photo.shape[1] // 2
        columns = {"whole": slice(None), "left": slice(0, middle), "right": slice(middle, None)}[self.half]
        photo = np.ascontiguousarray(photo[:, columns])
        if self.roll:
            photo = np.clip(cv2.resize(photo, None, fx=self.scale, fy=self.scale, interpolation=cv2.INTER_CUBIC), 0, 1)
        object.__setattr__(self, "_photo", photo)

    def is_bad(self, number: int) -> bool:
        """Whether a defect is painted into this part."""
        return truth_is_bad(self.seed, number, self.defect_share)

    def shot(self, number: int) -> WebShot:
        """Make the frame of a part."""
        rng = np.random.default_rng(mix(self.seed, number, 1))
        if self.roll:
            luma, defect = self._stretch(number)
        else:
            luma, defect = self._with_defect(self._lit(self._window(number, rng), number, rng), number)
        noisy = luma + _SENSOR_NOISE * rng.standard_normal(luma.shape, np.float32)
        full_scale = (1 << self.frame.bit_depth) - 1
        grey = np.clip(np.rint(noisy * full_scale), 0, full_scale).astype(self.frame.dtype)
        return WebShot(np.repeat(grey[:, :, np.newaxis], self.frame.channels, axis=2), defect)

    def _with_defect(self, luma: NDArray[np.float32], number: int) -> tuple[NDArray[np.float32], Defect | None]:
        if not self.is_bad(number):
            return luma, None
        kinds = KINDS if self.texture in _LAID else [k for k in KINDS if k != "missing_brick"]
        return self._painted(luma, np.random.default_rng(mix(self.seed, number, 2)), kinds)

    def _stretch(self, number: int) -> tuple[NDArray[np.float32], Defect | None]:
        """A frame of a roll: the end of one piece and the beginning of the next, each as long as a frame and painted
        whole, so that defects lie across the borders of frames."""
        photo: NDArray[np.float32] = self.__dict__["_photo"]
        height, width = self.frame.height_px, self.frame.width_px
        half, columns = height // 2, _mirrored(np.arange(width), photo.shape[1])
        pieces, masks, found = [], [], None
        for piece, part in ((number - 1, slice(height - half, height)), (number, slice(0, height - half))):
            rows = _mirrored(piece * height + half + np.arange(height), photo.shape[0])
            luma, defect = self._with_defect(np.ascontiguousarray(photo[np.ix_(rows, columns)]), piece)
            pieces.append(luma[part])
            masks.append(defect.mask[part] if defect else np.zeros((len(pieces[-1]), width), bool))
            found = defect if masks[-1].any() else found
        return np.concatenate(pieces), replace(found, mask=np.concatenate(masks)) if found else None

    def _painted(
        self, luma: NDArray[np.float32], rng: np.random.Generator, kinds: Sequence[str]
    ) -> tuple[NDArray[np.float32], Defect]:
        """Paint a defect anywhere but in the margin."""
        height, width = luma.shape
        inner = np.s_[self.margin_px : height - self.margin_px, self.margin_px : width - self.margin_px]
        painted, mask = luma.copy(), np.zeros(luma.shape, bool)
        painted[inner], defect = paint_any(luma[inner], rng, self.contrast, kinds)
        mask[inner] = defect.mask
        return painted, replace(defect, mask=mask)

    def _window(self, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """What lies under the camera, float32 [H, W] in 0..1: the web runs on and back, and wanders sideways."""
        photo: NDArray[np.float32] = self.__dict__["_photo"]
        height, width = self.frame.height_px, self.frame.width_px
        window = np.array([width, height]) / self.scale
        room = np.maximum(0, np.array(photo.shape[::-1]) - window - 2 * _MARGIN_PX)
        travelled = (mix(self.seed) % 4096 + number * _ADVANCE) * window[1]
        along = room[1] - abs(travelled % (2 * room[1]) - room[1]) if room[1] > 0 else 0.0
        wander = 0.5 + 0.3 * np.sin(2 * np.pi * number / 37 + mix(self.seed, 3) % 6) + rng.uniform(-0.2, 0.2)
        centre = np.array([np.clip(wander, 0, 1) * room[0], along]) + _MARGIN_PX + window / 2
        turn = np.deg2rad(rng.uniform(-_TILT_DEG, _TILT_DEG))
        axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / self.scale
        matrix = np.hstack([axes, (centre - axes @ np.array([width / 2, height / 2]))[:, np.newaxis]])
        seen = cv2.warpAffine(
            photo,
            matrix,
            (width, height),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return np.clip(seen, 0, 1).astype(np.float32, copy=False)

    def _lit(self, luma: NDArray[np.float32], number: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """The same under a light that drifts, flickers and falls off to one side."""
        drift = _GAIN_DRIFT * np.sin(2 * np.pi * number / 97 + mix(self.seed, 4) % 6)
        gain = 1 + drift + _GAIN_NOISE * rng.standard_normal()
        fall = _LIGHT_GRADIENT * np.linspace(0.5, -0.5, luma.shape[1], dtype=np.float32)
        return np.asarray(np.clip(luma * (gain + fall), 0, 1), np.float32)


def _mirrored(index: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    """Indices into an endless row of mirrored pictures, brought back into the first one."""
    index = index % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def photo_names() -> list[str]:
    """The photographs that ship."""
    return sorted(path.stem for path in _photos().glob("*.png"))


def load_photo(name: str) -> NDArray[np.float32]:
    """A photograph that ships, float32 [H, W] in 0..1. Raises SourceError that names those that exist."""
    if name not in photo_names():
        raise SourceError(f"no photograph {name!r} ships with maskline; there are {', '.join(photo_names())}")
    grey = cv2.imread(str(_photos() / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise SourceError(f"{_photos() / name}.png: does not decode; is maskline installed whole?")
    return np.asarray(grey / 255, np.float32)


def _photos() -> Path:
    return Path(__file__).resolve().parent / "photos"
