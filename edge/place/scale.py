"""Millimetres per pixel from a picture of a checkerboard: pure functions on arrays.

The board must lie where the parts lie, parallel to the sensor: an oblique view has no one scale, and is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import SourceError

__all__ = ["MeasuredScale", "measure_scale"]

MAX_SPREAD = 0.02
"""The scale may differ by so much between places and directions of the board: a tilt of 11 degrees, seen from afar."""
MAX_RESIDUAL_PX = 0.5
"""Corners further from a plane grid, on average, belong to a bent board or to a lens that bends lines."""
_COVERAGE = 2.0
"""Standard uncertainties: 95 % of a normal distribution."""

Corners = NDArray[Any]
"""float64 [n, 2]."""


@dataclass(frozen=True)
class MeasuredScale:
    """What a checkerboard says."""

    mm_per_px: float
    uncertainty: float
    """Of `mm_per_px`, 95 %: from the corners' noise, and from how much the scale differs over the board."""
    tilt_deg: float
    """Of the board against the sensor, from its foreshortening; a degree or two may be noise."""
    residual_px: float
    """Root mean square distance of the corners from the plane grid that fits them best."""
    corners: int

    @property
    def recipe_line(self) -> str:
        """What to put into the recipe's station."""
        digits = max(0, 1 - math.floor(math.log10(max(self.uncertainty, 1e-12))))
        return f"scale_mm_per_px = {self.mm_per_px:.{digits}f}  # +- {self.uncertainty:.{digits}f} (95 %)"


def measure_scale(image: NDArray[Any], squares: tuple[int, int], square_mm: float) -> MeasuredScale:
    """The scale in a picture, uint8 or uint16 [H, W, C], of a checkerboard.

    `squares`: how many along its one and its other side, 4 at least. Raises SourceError where the board is not found
    whole, is seen at a slant or is not plane.
    """
    found = _find(image, squares)
    columns, rows = np.arange(squares[0] - 1), np.arange(squares[1] - 1)
    board = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2) * square_mm
    homography = np.asarray(cv2.findHomography(board, found, 0)[0], np.float64)
    residual = found - _project(homography, board)
    residual_px = float(np.sqrt((residual**2).sum(axis=1).mean()))
    if residual_px > MAX_RESIDUAL_PX:
        raise SourceError(
            f"the corners lie {residual_px:.2f} px off a plane grid, at most {MAX_RESIDUAL_PX:g} px are allowed: "
            "flatten the board, or move it away from the picture's rim, where lenses bend lines"
        )
    stretch = np.linalg.svd(_jacobians(homography, board), compute_uv=False)  # [n, 2], pixels per mm
    least, most = float(1 / stretch[:, 0].max()), float(1 / stretch[:, 1].min())
    long, short = stretch.mean(axis=0).tolist()
    tilt_deg = math.degrees(math.acos(min(1.0, short / long)))
    if most / least - 1 > MAX_SPREAD:
        raise SourceError(
            f"an oblique view: a pixel is {least:.4g} to {most:.4g} mm, {most / least - 1:.1%} apart, at most "
            f"{MAX_SPREAD:.0%} are allowed (tilt about {tilt_deg:.0f} degrees). Lay the board where the parts lie and "
            "set the camera upright over it"
        )
    mm_per_px, from_noise = _similarity(board, found, residual)
    near = _over_halves(found.reshape(squares[1] - 1, squares[0] - 1, 2), square_mm)
    spread = max(most, float(near.max())) - min(least, float(near.min()))
    from_spread = spread / 2 / math.sqrt(3)  # anywhere between them, with equal chance
    uncertainty = _COVERAGE * math.hypot(from_noise, from_spread)
    return MeasuredScale(mm_per_px, uncertainty, tilt_deg, residual_px, len(found))


def _find(image: NDArray[Any], squares: tuple[int, int]) -> Corners:
    """The inner corners of a board, row by row."""
    if min(squares) < 4:
        raise SourceError(f"--squares {squares[0]}x{squares[1]}: a board needs 4 squares a side or more")
    flat = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[..., 0])
    grey = np.asarray(flat if flat.dtype == np.uint8 else flat / max(1, int(flat.max())) * 255, np.uint8)
    flags = cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_ACCURACY | cv2.CALIB_CB_NORMALIZE_IMAGE
    found, corners = cv2.findChessboardCornersSB(grey, (squares[0] - 1, squares[1] - 1), flags=flags)
    if found:
        return _refined(grey, np.asarray(corners, np.float32).reshape(-1, 2))
    hint = "it must be seen whole, sharp and with a white rim"
    if cv2.findChessboardCornersSB(grey, squares, flags=flags)[0]:
        hint = f"there is one of {squares[0] + 1}x{squares[1] + 1}: --squares counts squares, not corners between them"
    raise SourceError(f"no checkerboard of {squares[0]}x{squares[1]} squares in the picture: {hint}")


def _refined(grey: NDArray[np.uint8], corners: NDArray[np.float32]) -> Corners:
    """The corners where the gradients around them say, far more exact than what finds the board."""
    side_px = float(np.linalg.norm(corners[1] - corners[0]))
    reach = max(2, min(11, int(side_px / 3)))
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-3)
    refined = cv2.cornerSubPix(grey, corners[:, None].copy(), (reach, reach), (-1, -1), criteria)
    return np.asarray(refined, np.float64).reshape(-1, 2)


def _project(homography: NDArray[Any], points: Corners) -> Corners:
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def _jacobians(homography: NDArray[Any], points: Corners) -> NDArray[Any]:
    """[n, 2, 2]: how many pixels the picture moves, in x and y, per mm on the board, at each point."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    weight = moved[:, 2, None, None]
    slope = homography[None, :2, :2] - (moved[:, :2] / moved[:, 2:])[:, :, None] * homography[None, 2:, :2]
    return np.asarray(slope / weight)


def _over_halves(found: Corners, square_mm: float) -> NDArray[Any]:
    """mm per pixel over each half of each row and column of the corners [rows, columns, 2].

    What a lens that bends lines does to the scale shows in their differences.
    """
    scales = []
    for lines in (found, found.swapaxes(0, 1)):
        half = (lines.shape[1] - 1) // 2
        apart = np.linalg.norm(lines[:, half:] - lines[:, : lines.shape[1] - half], axis=-1)
        scales.append(half * square_mm / apart.ravel())
    return np.concatenate(scales)


def _similarity(board: Corners, found: Corners, residual: Corners) -> tuple[float, float]:
    """mm per pixel of the similarity that fits best (Umeyama 1991), and what the corners' noise makes of it."""
    a, b = board - board.mean(axis=0), found - found.mean(axis=0)
    px_per_mm = float(np.linalg.svd(b.T @ a, compute_uv=False).sum() / (a**2).sum())
    noise_px = float(np.sqrt((residual**2).sum() / max(1, residual.size - 8)))  # a homography has 8 parameters
    from_noise = noise_px / math.sqrt(float((a**2).sum()))
    return 1 / px_per_mm, from_noise / px_per_mm**2
