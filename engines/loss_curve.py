"""The picture of a fit: its error over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["draw_curve"]


def draw_curve(seen: Sequence[float], held_out: Sequence[float], every: int) -> npt.NDArray[np.uint8]:
    """The error over the steps, uint8 RGB [360, 640, 3]: training in grey, its mean in black, held out in green."""
    height, width, left, bottom = 360, 640, 56, 40
    picture = np.full((height, width, 3), 255, np.uint8)
    top_value = max([*seen, *held_out, 1e-6]) * 1.05
    last = max(len(seen), every * len(held_out), 1)

    def at(step: float, value: float) -> tuple[int, int]:
        x = left + (width - left - 16) * step / last
        return int(x), int(height - bottom - (height - bottom - 16) * value / top_value)

    def line(points: list[tuple[int, int]], colour: tuple[int, int, int], thick: int) -> None:
        cv2.polylines(picture, [np.array(points, np.int32).reshape(-1, 1, 2)], False, colour, thick, cv2.LINE_AA)

    def text(words: str, x: int, y: int) -> None:
        cv2.putText(picture, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)

    for tick in range(5):
        value = top_value * tick / 4
        y = at(0, value)[1]
        cv2.line(picture, (left, y), (width - 16, y), (225, 225, 225), 1)
        text(f"{value:.2f}", 12, y + 4)
        text(str(round(last * tick / 4)), at(last * tick / 4, 0)[0] - 10, height - bottom + 16)
    line([at(k + 1, value) for k, value in enumerate(seen)] or [at(0, 0)], (190, 190, 190), 1)
    window = max(1, len(seen) // 40)
    smooth = [at(k + 1, float(np.mean(seen[max(0, k - window) : k + 1]))) for k in range(len(seen))]
    line(smooth or [at(0, 0)], (30, 30, 30), 2)
    line([at(every * (k + 1), value) for k, value in enumerate(held_out)] or [at(0, 0)], (0, 140, 60), 2)
    text("error / contrast over steps: training (black), held out (green)", left, height - 8)
    return picture
