"""A part located by its edge: the outline against the background, where the grey level crosses between them.

Coarse: the area beyond the level in a shrunk frame, its centroid, and the angle at which the reference's area covers it
best. Fine: along the normals of the reference's outline the crossing is found between pixels, from outside inwards; the
rigid motion that fits the crossings best (least squares, outliers left out) is applied, three times. What the outline
cannot tell, such as the angle of a disc or the place of a strip along itself, stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import RecipeError
from edge.place.geometry import Box, Place
from edge.place.locate import Located
from edge.place.pictures import Grey, shrunk, to_grey
from edge.place.settings import EdgeLocate
from edge.verdict import Reason

__all__ = ["EdgeFinder"]

_COARSE_PX = 400
_POINTS = 400
_STEP_DEG = 2.0
_BEYOND_DEG = 5.0
"""A part that is turned further than allowed is looked for so far: it is misplaced, and not missing."""
_CLOSE_PX = 5
"""Dark specks of a bright part, so large in the shrunk frame, belong to it."""
_SPECK, _FEWEST, _MOST = 0.25, 0.5, 1.5
"""Of the reference's area: what is smaller is dirt; with less there is no part, with more there are several."""
_FEWEST_POINTS = 0.5
_UNTOLD = 0.1
"""Of the largest singular value: in a direction with less the outline tells nothing."""
_TURNED = 0.02
"""An angle must cover the part better by so much than none: a disc is turned by nothing."""
_FINE_SPANS_PX = (6.0, 3.0)

Points = NDArray[np.float64]
"""[n, 2], x and y in frame pixels, where a pixel covers [x, x + 1)."""


class EdgeFinder:
    """Finds the part of a reference by its outline."""

    def __init__(
        self, reference: NDArray[Any], locate: EdgeLocate, region: Box, search: Box, full_scale: float
    ) -> None:
        """Raises RecipeError where the reference shows no part, or several."""
        self._region, self._search, self._full_scale = region, search, full_scale
        self._factor = max(1, math.ceil(max(search.width, search.height) / _COARSE_PX))
        self._most_deg = locate.max_angle_deg + _BEYOND_DEG
        self._sign = 1.0 if locate.part == "brighter" else -1.0
        small = self._shrunk(reference)
        self._level = float(locate.level) if locate.level is not None else _otsu(small)
        areas = self._areas(small)
        if len(areas) != 1:
            raise RecipeError(
                f"locate.reference = {str(locate.reference)!r}: {len(areas)} areas {locate.part} than {self._level:.0f}"
                " of 255, expected one: the part. Set locate.level, locate.part or locate.search"
            )
        self._mask, self._area = areas[0], float(areas[0].sum())
        self._outline, self._normals = self._outline_of(reference)

    def find(self, frame: NDArray[Any]) -> Located:
        areas = [a for a in self._areas(self._shrunk(frame)) if a.sum() >= _SPECK * self._area]
        found = sum(float(a.sum()) for a in areas) / self._area
        if found < _FEWEST:
            return Located(reason=Reason.NO_PART, detail=f"{found:.0%} of the reference's area")
        if len(areas) > 1 or found > _MOST:
            detail = f"{len(areas)} areas of {found:.0%} of the reference's"
            return Located(reason=Reason.SEVERAL_PARTS, detail=detail)
        motion, span = self._coarse(areas[0])
        for reach in (span, *_FINE_SPANS_PX):
            points, normals = _apply(motion, self._outline), self._normals @ motion[:2, :2].T
            crossing = self._crossings(frame, points, normals, reach)
            seen = np.isfinite(crossing)
            if seen.mean() < _FEWEST_POINTS:
                detail = f"the outline of the reference is seen at {seen.mean():.0%} of its length"
                return Located(reason=Reason.NO_PART, detail=detail)
            motion = _step(points[seen], normals[seen], crossing[seen]) @ motion
        return Located(self._place(motion))

    def _shrunk(self, frame: NDArray[Any]) -> Grey:
        return shrunk(frame[self._search.rows, self._search.columns], self._factor, self._full_scale)

    def _areas(self, small: Grey) -> list[NDArray[np.bool_]]:
        """The areas beyond the level, but for specks of under a thousandth of the picture; largest first."""
        beyond = (self._sign * (small - self._level) >= 0).astype(np.uint8)
        closed = cv2.morphologyEx(beyond, cv2.MORPH_CLOSE, np.ones((_CLOSE_PX, _CLOSE_PX), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8, ltype=cv2.CV_32S)
        sizes = stats[:, cv2.CC_STAT_AREA]
        order = [i for i in np.argsort(-sizes, kind="stable") if i > 0 and sizes[i] > small.size / 1000]
        return [labels == i for i in order]

    def _outline_of(self, reference: NDArray[Any]) -> tuple[Points, Points]:
        """Points on the outline at full resolution and their normals outwards, evenly spread; those at the rim of the
        picture, where the part runs out of it, are left out."""
        height, width = self._search.height, self._search.width
        grey = to_grey(reference[self._search.rows, self._search.columns], self._full_scale)
        part = cv2.resize(self._mask.astype(np.uint8), None, fx=self._factor, fy=self._factor, interpolation=0)
        whole = np.zeros((height, width), np.uint8)
        whole[: part.shape[0], : part.shape[1]] = part[:height, :width]
        near = cv2.dilate(whole, np.ones((2 * self._factor + 1,) * 2, np.uint8)) > 0
        beyond = ((self._sign * (grey - self._level) >= 0) & near).astype(np.uint8)
        side = _CLOSE_PX * self._factor | 1
        closed = cv2.morphologyEx(beyond, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
        contours = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        contour = max(contours, key=cv2.contourArea).reshape(-1, 2).astype(np.float64)
        points, normals = _spread(contour)
        inside = ((points >= 2) & (points <= np.array([width, height]) - 3)).all(axis=1)
        points, normals = points[inside] + 0.5 + (self._search.x, self._search.y), normals[inside]
        crossing = self._crossings(reference, points, normals, 2.0 + self._factor)
        seen = np.isfinite(crossing)
        return points[seen] + crossing[seen, None] * normals[seen], normals[seen]

    def _crossings(self, frame: NDArray[Any], points: Points, normals: Points, reach: float) -> NDArray[np.float64]:
        """How far along each normal the level is crossed first, from outside inwards; NaN where it is not."""
        offsets = np.arange(reach, -reach - 0.25, -0.5)
        at = points[:, None, :] + offsets[None, :, None] * normals[:, None, :]
        values = self._sign * (_bilinear(frame, at - 0.5, self._full_scale) - self._level)
        inside = values >= 0
        first = inside.argmax(axis=1)
        known = inside.any(axis=1) & (first > 0)
        row, after = np.arange(len(points)), np.maximum(first, 1)
        low, high = values[row, after - 1], values[row, after]
        share = np.divide(-low, high - low, out=np.zeros_like(low), where=high > low)
        return np.asarray(np.where(known, offsets[after - 1] - 0.5 * share, np.nan))

    def _coarse(self, area: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
        """A first motion, [3, 3], and how far the outline may lie from where it brings it, in frame pixels."""
        before, after = _centroid(self._mask), _centroid(area)
        reference = self._mask.astype(np.uint8)
        steps = math.ceil(self._most_deg / _STEP_DEG)
        covers = {}
        for step in range(-steps, steps + 1):
            turned = _motion(before, after, step * _STEP_DEG)
            covered = cv2.warpAffine(reference, turned[:2], area.shape[::-1], flags=cv2.INTER_NEAREST) > 0
            covers[step] = np.count_nonzero(covered & area) / np.count_nonzero(covered | area)
        best = max(covers, key=covers.__getitem__)
        angle = best * _STEP_DEG if covers[best] > covers[0] + _TURNED else 0.0
        corner = np.array([self._search.x, self._search.y])
        frame_before, frame_after = ((c + 0.5) * self._factor + corner for c in (before, after))
        radius = float(np.linalg.norm(self._outline - frame_before, axis=1).max())
        return _motion(frame_before, frame_after, angle), 3.0 * self._factor + radius * math.radians(_STEP_DEG)

    def _place(self, motion: NDArray[np.float64]) -> Place:
        centre = np.array([self._region.x + self._region.width / 2, self._region.y + self._region.height / 2])
        shift = motion[:2, :2] @ centre + motion[:2, 2] - centre
        return Place(float(shift[0]), float(shift[1]), math.degrees(math.atan2(motion[1, 0], motion[0, 0])))


def _otsu(small: Grey) -> float:
    """Half way between the means of the two classes that Otsu's threshold makes."""
    found = cv2.threshold(np.round(small).astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] + 0.5
    if not ((small > found).any() and (small <= found).any()):
        return float(found)
    return float(small[small > found].mean() + small[small <= found].mean()) / 2


def _centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


def _motion(before: NDArray[np.float64], after: NDArray[np.float64], angle_deg: float) -> NDArray[np.float64]:
    """[3, 3]: turns about `before`, and moves it to `after`."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    motion = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    motion[:2, 2] = after - motion[:2, :2] @ before
    return motion


def _apply(motion: NDArray[np.float64], points: Points) -> Points:
    return np.asarray(points @ motion[:2, :2].T + motion[:2, 2])


def _spread(contour: Points) -> tuple[Points, Points]:
    """Points of a closed contour (clockwise as it is seen, as cv2 draws it), and their normals outwards."""
    reach = max(3, len(contour) // 100)
    smooth = sum(np.roll(contour, i, axis=0) for i in range(-reach, reach + 1)) / (2 * reach + 1)
    along = np.roll(smooth, -reach, axis=0) - np.roll(smooth, reach, axis=0)
    if float(np.sum(contour[:, 0] * np.roll(contour[:, 1], -1) - np.roll(contour[:, 0], -1) * contour[:, 1])) < 0:
        along = -along
    length = np.linalg.norm(along, axis=1)
    chosen = np.unique(np.linspace(0, len(contour) - 1, min(_POINTS, len(contour))).round().astype(int))
    chosen = chosen[length[chosen] > 0]
    normals = np.column_stack([along[:, 1], -along[:, 0]])[chosen] / length[chosen, None]
    return contour[chosen], normals


def _bilinear(frame: NDArray[Any], at: NDArray[np.float64], full_scale: float) -> NDArray[np.float64]:
    """Grey values [n, m], 0 to 255, between the centres of pixels [n, m, 2]; outside the frame its rim goes on."""
    height, width = frame.shape[:2]
    x, y = np.clip(at[..., 0], 0, width - 1.001), np.clip(at[..., 1], 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    across, down = x - left, y - top
    weights = np.array([0.299, 0.587, 0.114]) if frame.shape[2] == 3 else np.ones(1)
    values = (
        (frame[top, left] @ weights) * (1 - across) * (1 - down)
        + (frame[top, left + 1] @ weights) * across * (1 - down)
        + (frame[top + 1, left] @ weights) * (1 - across) * down
        + (frame[top + 1, left + 1] @ weights) * across * down
    )
    return np.asarray(values * (255 / full_scale))


def _step(points: Points, normals: Points, distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The motion [3, 3] that brings the points nearest to `distance` along their normals; outliers are left out."""
    centre = points.mean(axis=0)
    arm = points - centre
    size = max(1.0, float(np.sqrt((arm**2).sum(axis=1).mean())))
    rows = np.column_stack([normals, (normals[:, 1] * arm[:, 0] - normals[:, 0] * arm[:, 1]) / size])
    kept = np.ones(len(points), bool)
    solved = np.zeros(3)
    for _ in range(3):
        solved = np.linalg.lstsq(rows[kept], distance[kept], rcond=_UNTOLD)[0]
        rest = np.abs(distance - rows @ solved)
        kept = rest <= max(0.3, 3 * 1.4826 * float(np.median(rest)))
    return _motion(centre, centre + solved[:2], math.degrees(solved[2] / size))
