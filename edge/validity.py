"""Whether a frame is a picture of a part at all: pure functions on arrays, but for one look into a recording.

Black and saturated frames: `calib.calibration.levels_trouble`. Frames of another size: capture.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import SourceError
from edge.settings import Station

__all__ = ["FrozenWatch", "refuses_frozen", "sharpness"]

CAMERAS = ("genicam", "gentl", "v4l2")
"""Sources whose noise makes every frame another one. Not `rtsp`: a codec repeats a scene that stands still exactly."""

_ROWS_AT_ONCE = 64
_MOST_TILES = 32
_STRONGEST = 0.001
"""Share of the pixels whose gradients are the sharpest edges of a picture; noise is everywhere, and weaker."""
_STEP = 4
"""Of the gradients' histogram."""


class FrozenWatch:
    """Whether a frame has the bytes of the one before it: then the camera, or a buffer on the way, stands still.

    Two frames of a camera differ in the noise of their first rows, so that a look costs microseconds.
    """

    def __init__(self) -> None:
        self._last: NDArray[Any] | None = None

    def is_frozen(self, image: NDArray[Any]) -> bool:
        """Whether `image` [H, W, C] equals the last one that was kept."""
        last = self._last
        return last is not None and all(
            np.array_equal(last[row : row + _ROWS_AT_ONCE], image[row : row + _ROWS_AT_ONCE])
            for row in range(0, len(image), _ROWS_AT_ONCE)
        )

    def keep(self, image: NDArray[Any]) -> None:
        """Remember a frame, in a buffer of its own. All have the same shape."""
        if self._last is None:
            self._last = np.empty_like(image)
        np.copyto(self._last, image)


def refuses_frozen(station: Station) -> bool:
    """Whether frames with the bytes of the one before are refused: as the recipe says, or else for cameras.

    Two equal pictures in a folder are two parts. A recording is what was recorded: the recipe in it decides, or else
    whether it says that it came from cameras; one with lossy frames cannot tell.
    """
    source = station.source
    if station.validity.frozen is not None:
        return station.validity.frozen
    if source.kind != "recording" or source.path is None:
        return source.kind in CAMERAS
    from edge.recording import Recording

    recording, name = Recording(source.path), source.channel or station.name
    if not recording.lossless:
        return False
    try:
        recipe = recording.recipe()
    except SourceError:  # of another version: what its frames came from it says beside the recipe
        recipe = None
    recorded = {s.name: s for s in recipe.stations}.get(name) if recipe else None
    if recorded and (recorded.validity.frozen is not None or recorded.source.kind != "recording"):
        return refuses_frozen(recorded)
    return recording.metadata.get("simulated", "").lower() == "false"


def sharpness(tiles: NDArray[np.uint8]) -> float:
    """How steep the steepest edges of a picture are against its brightness, from uint8 tiles [N, h, w, C]; 0 and up.

    The gradient (Sobel, |dx| + |dy|) that one pixel in a thousand exceeds, over the mean: the gain of the light cancels
    out, noise and large smooth defects hardly matter, and defocus flattens just these edges. Of many tiles 32 are
    looked at, of colour the green.
    """
    channel = 1 if tiles.shape[3] == 3 else 0
    chosen = np.unique(np.linspace(0, len(tiles) - 1, min(len(tiles), _MOST_TILES)).round().astype(int))
    histogram, total = np.zeros(256), 0.0
    for i in chosen:
        picture = np.ascontiguousarray(tiles[i, :, :, channel])
        across, down = cv2.spatialGradient(picture)
        steep = cv2.add(cv2.convertScaleAbs(across, alpha=1 / _STEP), cv2.convertScaleAbs(down, alpha=1 / _STEP))
        histogram += cv2.calcHist([steep], [0], None, [256], [0, 256]).ravel()
        total += cv2.mean(picture)[0]
    if not total:
        return 0.0
    above = np.cumsum(histogram[::-1])[::-1] / histogram.sum()  # share of the pixels at or above each step
    step = int(np.flatnonzero(above > _STRONGEST)[-1])
    here, next_one = above[step], above[step + 1] if step < 255 else 0.0
    return float(_STEP * (step + (here - _STRONGEST) / (here - next_one)) * len(chosen) / total)
