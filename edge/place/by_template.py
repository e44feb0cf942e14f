"""A part located by a template: a piece of the reference that looks like nothing else in the frame.

Coarse: normalised correlation with the template at several angles, in a shrunk frame. Fine: the rigid motion with the
largest enhanced correlation coefficient (Evangelidis & Psarakis 2008), which is found between pixels. Both do not care
for gain and offset of the light.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import RecipeError
from edge.place.geometry import Box, Place
from edge.place.locate import Located
from edge.place.pictures import Grey, shrunk
from edge.place.settings import TemplateLocate
from edge.verdict import Reason

__all__ = ["TemplateFinder"]

_COARSE_PX = 40
"""So large is the template's shorter side in the shrunk frame."""
_COARSE_SMOOTH = 1.2
"""Sigma: a match off by half a shrunk pixel, or by half a step of the angle, still correlates."""
_MAYBE = 0.75
"""Of the recipe's `min_score`: what matches so well from afar is looked at closely."""
_LOOKED_AT = 4
_FINE_PX = 256
"""So large is its longer side at most where the motion is found."""
_FINE_SMOOTH = 1.0
_AROUND = 6
"""Of its surroundings so many shrunk pixels are smoothed with it."""
_BEYOND_DEG = 5.0
"""A part that is turned further than allowed is looked for so far: it is misplaced, and not missing."""
_FLAT = 4.0
"""Standard deviation of a template without a face."""
_OVERLAP = 0.8
"""Of the template's sides: matches nearer to each other are the same part."""
_ROUNDS, _ENOUGH = 50, 1e-5


Motion = NDArray[np.float64]
"""[2, 3]: from the template, counted from its upper left corner, into the searched area, in frame pixels."""


class TemplateFinder:
    """Finds the part of a reference by a piece of it."""

    def __init__(
        self, reference: NDArray[Any], locate: TemplateLocate, region: Box, search: Box, full_scale: float
    ) -> None:
        """Raises RecipeError for a template that no place can be told from."""
        named = locate.template
        where = Box(named.x_px, named.y_px, named.width_px, named.height_px) if named else region
        inside = search.x <= where.x and search.y <= where.y
        if not inside or where.x + where.width > search.x + search.width or (
            where.y + where.height > search.y + search.height
        ):  # fmt: skip
            raise RecipeError("locate.template (or else tiling.region) does not lie inside locate.search and the frame")
        self._where, self._region, self._search, self._full_scale = where, region, search, full_scale
        self._min_score, self._most_deg = locate.min_score, locate.max_angle_deg + _BEYOND_DEG
        self._coarse_by = max(1, min(where.width, where.height) // _COARSE_PX)
        self._fine_by = max(1, math.ceil(max(where.width, where.height) / _FINE_PX))
        margin = _AROUND * max(self._coarse_by, self._fine_by)
        left, top = max(0, where.x - margin), max(0, where.y - margin)
        self._inset = (where.x - left, where.y - top)
        right, bottom = where.x + where.width + margin, where.y + where.height + margin
        self._around = reference[top:bottom, left:right].copy()
        if min(where.width, where.height) < 16 or float(self._levels[-1][1].std()) < _FLAT:
            raise RecipeError(
                f"locate.template of {where.width} x {where.height} px at {where.x}, {where.y} of the reference: "
                "too small or all of one grey; name a piece of 16 px or more with something to see"
            )

    def find(self, frame: NDArray[Any]) -> Located:
        searched = frame[self._search.rows, self._search.columns]
        small = _smooth(shrunk(searched, self._coarse_by, self._full_scale), _COARSE_SMOOTH)
        found: list[Place] = []
        best = 0.0
        for start in self._coarse(small):
            motion, score = start, 0.0
            for by, template in self._levels:
                fitted, score = self._fitted(searched, template, by, motion)
                motion = fitted if score >= self._min_score else motion
            best = max(best, score)
            place = self._place(motion)
            if score >= self._min_score and not any(self._same(place, other) for other in found):
                found.append(place)
        if not found:
            return Located(reason=Reason.NO_PART, detail=f"the template matches by {best:.2f}")
        if len(found) > 1:
            return Located(reason=Reason.SEVERAL_PARTS, detail=f"the template matches in {len(found)} places")
        return Located(found[0])

    def _same(self, one: Place, other: Place) -> bool:
        near_x = abs(one.dx_px - other.dx_px) < _OVERLAP * self._where.width
        return near_x and abs(one.dy_px - other.dy_px) < _OVERLAP * self._where.height

    @cached_property
    def _levels(self) -> list[tuple[int, Grey]]:
        """The template shrunk by several factors, the largest first: each brings the next one near enough."""
        factors = {self._coarse_by, max(self._fine_by, self._coarse_by // 2), self._fine_by}
        return [(by, self._piece(by, _FINE_SMOOTH)) for by in sorted(factors, reverse=True)]

    def _piece(self, by: int, sigma: float) -> Grey:
        """The template, shrunk and smoothed with what is around it in the reference."""
        across, down = (inset // by for inset in self._inset)
        first_x, first_y = self._inset[0] - across * by, self._inset[1] - down * by
        small = _smooth(shrunk(self._around[first_y:, first_x:], by, self._full_scale), sigma)
        height, width = self._where.height // by, self._where.width // by
        return np.ascontiguousarray(small[down : down + height, across : across + width])

    @cached_property
    def _turned(self) -> list[tuple[float, Grey]]:
        """The shrunk template turned by every angle that is looked for, 0 first."""
        small = self._piece(self._coarse_by, _COARSE_SMOOTH)
        height, width = small.shape
        step_deg = math.degrees(1.5 / math.hypot(height / 2, width / 2))  # its corners move by a pixel and a half
        steps = math.ceil(self._most_deg / step_deg)
        turned = []
        for angle in sorted((i * step_deg for i in range(-steps, steps + 1)), key=abs):
            matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1.0)
            picture = cv2.warpAffine(small, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
            turned.append((angle, np.asarray(picture, np.float32)))
        return turned

    def _coarse(self, small: Grey) -> list[Motion]:
        """What may match, best first."""
        best: NDArray[np.float32] | None = None
        for index, (_, picture) in enumerate(self._turned):
            scores = np.asarray(cv2.matchTemplate(small, picture, cv2.TM_CCOEFF_NORMED), np.float32)
            if best is None:
                best, which = scores, np.zeros(scores.shape, np.int32)
            else:
                better = scores > best
                best[better], which[better] = scores[better], index
        assert best is not None
        found: list[Motion] = []
        height, width = self._turned[0][1].shape
        while len(found) < _LOOKED_AT:
            _, score, _, (x, y) = cv2.minMaxLoc(best)
            if score < _MAYBE * self._min_score:
                break
            angle = math.radians(self._turned[int(which[y, x])][0])
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            middle = np.array([width, height]) * self._coarse_by / 2
            found.append(np.column_stack([turn, np.array([x, y]) * self._coarse_by + middle - turn @ middle]))
            rows, columns = round(_OVERLAP * height), round(_OVERLAP * width)
            best[max(0, y - rows) : y + rows + 1, max(0, x - columns) : x + columns + 1] = -1
        return found

    def _fitted(self, searched: NDArray[Any], template: Grey, by: int, motion: Motion) -> tuple[Motion, float]:
        """The motion that fits best near another one, and the correlation; 0 where there is none near."""
        sides = np.array([self._where.width, self._where.height])
        middle, reach = motion[:, :2] @ (sides / 2) + motion[:, 2], np.hypot(*sides) / 2 + _AROUND * by
        low = np.maximum(np.floor(middle - reach), 0).astype(int)
        high = np.maximum(np.ceil(middle + reach), 1).astype(int)
        near = _smooth(shrunk(searched[low[1] : high[1], low[0] : high[0]], by, self._full_scale), _FINE_SMOOTH)
        turn, shift = motion[:, :2], motion[:, 2]
        half = np.full(2, 0.5)  # between the centres of shrunk pixels
        start = np.column_stack([turn, turn @ half + (shift - low) / by - half]).astype(np.float32)
        everywhere = np.full(near.shape, 255, np.uint8)
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _ROUNDS, _ENOUGH)
        try:
            score, found = cv2.findTransformECC(template, near, start, cv2.MOTION_EUCLIDEAN, criteria, everywhere, 1)
        except cv2.error:  # it runs away from what does not match
            return motion, 0.0
        fitted = np.asarray(found, np.float64)
        shift = (fitted[:, 2] + half - fitted[:, :2] @ half) * by + low
        return np.column_stack([fitted[:, :2], shift]), float(score)

    def _place(self, motion: Motion) -> Place:
        """Where the region goes with the template."""
        origin, corner = (np.array([box.x, box.y]) for box in (self._where, self._search))
        centre = np.array([self._region.x + self._region.width / 2, self._region.y + self._region.height / 2])
        moved = motion[:, :2] @ (centre - origin) + motion[:, 2] + corner
        angle = math.degrees(math.atan2(motion[1, 0], motion[0, 0]))
        return Place(float(moved[0] - centre[0]), float(moved[1] - centre[1]), angle)


def _smooth(small: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(small, (0, 0), sigma), np.float32)
