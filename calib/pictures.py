"""Pictures for the report: data URIs, colour-mapped anomaly maps, outlines of what is wrong in truth."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.report_data import ReportStation, ReportView
from edge.place.geometry import Box, Place, boxes_to_region, warp

__all__ = ["Overlay", "Panel", "Panels", "colour_bar", "map_scales", "view_panels"]

MAX_SIDE_PX = 560
DETAIL_FROM_PX = 320
"""Pictures larger than this also get a detail: a defect of six pixels is nothing in a picture of a thousand."""
DETAIL_SIDE_PX = 112
_JPEG_QUALITY = 86
_COLOURS = cv2.COLORMAP_INFERNO

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Overlay:
    """Shapes in pixels of the picture below them."""

    width: int
    height: int
    truth_paths: list[str]
    """SVG path data of the truth's outlines."""
    boxes: list[Box]


@dataclass(frozen=True)
class Panel:
    """One picture with what is drawn over it."""

    title: str
    uri: str | None
    overlay: Overlay


@dataclass(frozen=True)
class Panels:
    """What is shown of a view: image, reconstruction, map; and the same three again, closer."""

    whole: list[Panel]
    detail: list[Panel]
    wide: bool
    """Whether the pictures are so wide that they belong below each other."""
    map_top: float | None
    """The value of the brightest colour of the map."""


def _read(path: Path | None) -> NDArray[Any] | None:
    """A PNG as [H, W] or [H, W, 3] BGR, as cv2 keeps it; None where it is gone: storage pressure deletes pictures."""
    if path is None or not path.is_file():
        return None
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return None if image is None else np.asarray(image)


def _uri(image: Image, side: int = MAX_SIDE_PX) -> str:
    """A JPEG of at most `side` pixels as a data URI."""
    factor = side / max(image.shape[:2])
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _read_map(view: ReportView, station: ReportStation | None) -> NDArray[np.float32] | None:
    stored = _read(view.anomaly_map)
    if stored is None or stored.ndim != 2:
        return None
    full = 65535 if stored.dtype == np.uint16 else 255
    scale = station.map_full_scale if station else 1.0
    values: NDArray[np.float32] = stored.astype(np.float32) * np.float32(scale / full)
    return values


def map_scales(views: Sequence[tuple[ReportView, ReportStation | None]]) -> dict[str, float]:
    """The value of the brightest map colour per station: one scale for all its cards, or they could not be compared.

    Twice the map's threshold, or the 99.5 % quantile of the most anomalous map shown where that is more.
    """
    scales: dict[str, float] = {}
    for view, station in views:
        floor = 2 * station.map_threshold if station and station.map_threshold else 1e-3
        values = _read_map(view, station)
        peak = 0.0 if values is None else float(np.quantile(values, 0.995))
        scales[view.station] = max(scales.get(view.station, floor), peak)
    return scales


def _colour(values: NDArray[np.float32], top: float) -> Image:
    levels = np.clip(values * (255 / top), 0, 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, _COLOURS), np.uint8)


def colour_bar() -> str:
    """The colours of the maps from 0 to the top, left to right, as a data URI."""
    return _uri(np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None].repeat(8, 0), _COLOURS), np.uint8))


def _truth_mask(view: ReportView) -> NDArray[Any] | None:
    mask = _read(view.truth_mask) if isinstance(view.truth_mask, Path) else view.truth_mask
    if mask is None or not mask.any():
        return None
    return mask if mask.ndim == 2 else mask[..., 0]


def _outlines(
    mask: NDArray[Any], region: Box, size: tuple[int, int], place: Place | None
) -> tuple[list[str], list[Box]]:
    """SVG paths around what is nonzero in the region, and their bounding boxes, in a picture of `size` (w, h)."""
    inside = (mask[region.rows, region.columns] != 0).astype(np.uint8)
    if place is not None:
        warp((mask != 0).astype(np.uint8)[..., None], region, place, inside[..., None])
    scaled = np.asarray(cv2.resize(inside * 255, size, interpolation=cv2.INTER_AREA)) > 0
    grown = cv2.dilate(scaled.astype(np.uint8), np.ones((3, 3), np.uint8))  # drawn around the defect, not over it
    contours = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_KCOS)[0]
    paths = ["M" + "L".join(f"{x} {y}" for x, y in (c.reshape(-1, 2) + 0.5).tolist()) + "Z" for c in contours]
    return paths, [Box(*(int(v) for v in cv2.boundingRect(c))) for c in contours]


def _overlay(view: ReportView, region: Box, size: tuple[int, int]) -> tuple[Overlay, list[Box]]:
    mask = _truth_mask(view)
    paths, truth_boxes = ([], []) if mask is None else _outlines(mask, region, size, view.place)
    fx, fy = size[0] / region.width, size[1] / region.height
    inside = [Box(*box) for box in view.boxes]
    boxes = [
        Box(round((x - region.x) * fx), round((y - region.y) * fy), max(1, round(w * fx)), max(1, round(h * fy)))
        for x, y, w, h in (boxes_to_region(inside, region, view.place) if view.place else inside)
    ]
    return Overlay(size[0], size[1], paths, boxes), truth_boxes


def _focus(boxes: list[Box], truth: list[Box], size: tuple[int, int]) -> Box | None:
    """A square around the largest defect in truth, or else around the largest box; None where there is neither."""
    candidates = truth or boxes
    if not candidates:
        return None
    target = max(candidates, key=lambda b: b.width * b.height)
    side = min(*size, max(DETAIL_SIDE_PX, round(1.25 * max(target.width, target.height))))
    x = min(max(0, target.x + target.width // 2 - side // 2), size[0] - side)
    y = min(max(0, target.y + target.height // 2 - side // 2), size[1] - side)
    return Box(x, y, side, side)


def view_panels(view: ReportView, station: ReportStation | None, map_top: float | None) -> Panels:
    """Read a view's pictures and draw what is known over them. Pictures that are gone leave empty panels."""
    image, repainted, values = _read(view.image), _read(view.reconstruction), _read_map(view, station)
    shapes = [p.shape for p in (image, repainted, values) if p is not None]
    if not shapes:
        return Panels([], [], False, None)
    height, width = shapes[0][:2]
    region = station.region if station else Box(0, 0, width, height)
    overlay, truth_boxes = _overlay(view, region, (width, height))
    plain = Overlay(width, height, [], [])
    coloured = None if values is None or not map_top else _colour(values, map_top)
    pictures = [("image", image, overlay), ("reconstruction", repainted, plain), ("anomaly map", coloured, overlay)]
    whole = [Panel(title, None if p is None else _uri(p), over) for title, p, over in pictures]
    detail = []
    focus = _focus(overlay.boxes, truth_boxes, (width, height)) if max(width, height) > DETAIL_FROM_PX else None
    if focus is not None:
        for title, picture, _ in pictures:
            crop = None if picture is None else _uri(picture[focus.rows, focus.columns])
            detail.append(Panel(f"{title}, closer", crop, Overlay(focus.width, focus.height, [], [])))
    return Panels(whole, detail, width > 2.2 * height, map_top)
