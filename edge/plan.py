"""A recipe worked out: its bundles, the tiling of each station, the layout of its slots, its processes.

Every process of a line computes the same plan from the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleError, RecipeError
from edge.place.locate import Locator, make_locator
from edge.processes import Process, process_table
from edge.scores import fuse
from edge.settings import Frame, Recipe, Region, Station
from edge.slab import ArraySpec, SlotLayout
from edge.tiling import Box, PreparePlan, Tiling, plan_prepare, tile_mask
from edge.webs.carry import Carry, Seam
from engines.bundle import ZOO, Bundle, find_bundle, load_bundle

__all__ = ["LinePlan", "StationPlan", "not_judged", "plan_frames", "plan_line", "plan_station", "record_slots"]


@dataclass(frozen=True)
class StationPlan:
    """One station, worked out."""

    station: Station
    bundle: Bundle
    prepare: PreparePlan
    layout: SlotLayout
    locator: Locator | None = None
    """Finds the part in each frame; None where it lies where the region says."""
    alone: NDArray[np.bool_] | None = None
    """`prepare.ignore_tiles` for a frame of a web without the rows before it; None where there are never any."""

    def ignored(self, rows_before: int) -> NDArray[np.bool_] | None:
        """What is not judged in the tiles of a frame, bool [N, tile, tile]; None where all is."""
        return self.prepare.ignore_tiles if self.alone is None or rows_before else self.alone

    @property
    def smallest_defect_px(self) -> float:
        """The area of the smallest defect that counts, in prepared pixels; 0 where the recipe has none."""
        smallest_mm2, pitch = self.station.smallest_defect_mm2, self.station.mm_per_px
        if smallest_mm2 is None or pitch is None:
            return 0.0
        return smallest_mm2 / (pitch[0] * pitch[1]) * self.prepare.scale_x * self.prepare.scale_y

    @property
    def joined(self) -> Tiling | None:
        """How the tiles lie, where the recipe says how small a defect counts: its area is that of all of it, whatever
        tiles it lies in (`view_score`). None where each tile is scored alone."""
        return self.prepare.tiling if self.smallest_defect_px else None

    @property
    def carry(self) -> Carry | None:
        """What is handed to a frame of a web that none came before, where areas are added up from frame to frame; None
        where they are not."""
        if not self.station.adds_up or self.bundle.manifest.score.kind != "area":
            return None
        tiling, ignored = self.prepare.tiling, self.prepare.ignore_tiles
        top, bottom = 0, tiling.height
        if ignored is not None:
            rows = np.flatnonzero(fuse((~ignored).astype(np.float32), tiling).any(axis=1))
            top, bottom = int(rows[0]), int(rows[-1]) + 1
        onward = top + round(self.station.frame.height_px * self.prepare.scale_y)
        # What resizing mixes with the rim is judged in neither frame: the rows on either side of it are neighbours.
        return Carry.nothing(Seam(top, min(onward, bottom), bottom), tiling.width)


@dataclass(frozen=True)
class LinePlan:
    """A line, worked out."""

    recipe: Recipe
    stations: Mapping[str, StationPlan]
    processes: tuple[Process, ...]

    @property
    def layouts(self) -> dict[str, SlotLayout]:
        """The slots of each station; of those that are recorded, also the ones in which frames wait for the disk."""
        layouts = {name: plan.layout for name, plan in self.stations.items()}
        if self.recipe.recording is None:
            return layouts
        slots = self.recipe.recording.slots
        frames = {name: _frame_array(plan.station.frame) for name, plan in self.stations.items()}
        return layouts | {record_slots(name): SlotLayout((frame,), slots) for name, frame in frames.items()}

    def bundle_sha256(self, station: str) -> str:
        """Hash of a station's bundle; empty for a station of an earlier recipe."""
        return self.stations[station].bundle.sha256 if station in self.stations else ""

    def scale_mm_per_px(self, station: str) -> float | None:
        """The scale of a station's frames; None where the recipe has none, and for a station of an earlier recipe."""
        return self.stations[station].station.scale_mm_per_px if station in self.stations else None


def record_slots(station: str) -> str:
    """The name under which the slab has a station's slots for the recorder: each holds a frame and nothing else."""
    return f"{station}/record"


def plan_line(recipe: Recipe) -> LinePlan:
    """Work out a recipe. Raises RecipeError or BundleError, which name the station and the field."""
    stations = {s.name: plan_station(s) for s in recipe.stations}
    return LinePlan(recipe, MappingProxyType(stations), process_table(recipe))


def plan_station(station: Station) -> StationPlan:
    """Work out one station: read its bundle, cut its frame, lay out its slots."""
    try:
        bundle = load_bundle(find_bundle(station.bundle, relative_to=ZOO))  # the current folder says nothing
        return plan_frames(station, bundle, not_judged(station))
    except (BundleError, RecipeError) as error:
        raise type(error)(f"station {station.name}: {error}") from error


def plan_frames(station: Station, bundle: Bundle, ignore: NDArray[Any] | None) -> StationPlan:
    """`plan_station` for a bundle that was read; `ignore` [H, W] of the frame: nonzero where nothing is judged."""
    prepare = _prepare_plan(station, bundle, ignore)
    tiles = prepare.tiles_shape
    arrays = (
        _frame_array(station.window),
        ArraySpec("tiles", tiles, "uint8"),
        ArraySpec("reconstruction", bundle.manifest.answer_shape(tiles), "float32"),
        ArraySpec("map", tiles[:3], "float32"),
    )
    layout = SlotLayout(arrays, station.slots)
    return StationPlan(station, bundle, prepare, layout, make_locator(station), _alone(station, prepare, ignore))


def _frame_array(frame: Frame) -> ArraySpec:
    return ArraySpec("frame", (frame.height_px, frame.width_px, frame.channels), frame.dtype)


def _alone(station: Station, prepare: PreparePlan, ignore: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    if station.web is None or station.web.overlap_px == 0:
        return None
    height, width, _ = prepare.frame_shape
    mask = np.zeros((height, width), np.uint8) if ignore is None else ignore.copy()
    mask[: station.web.overlap_px + station.tiling.margin_px] = 255
    return tile_mask(mask, (height, width), prepare.region, prepare.tiling)


def _prepare_plan(station: Station, bundle: Bundle, ignore: NDArray[Any] | None) -> PreparePlan:
    frame, tiling, manifest = station.window, station.tiling, bundle.manifest
    region = tiling.region
    return plan_prepare(
        (frame.height_px, frame.width_px, frame.channels),
        np.dtype(frame.dtype),
        tile=manifest.tile_px,
        overlap=tiling.overlap_px,
        region=Box(region.x_px, region.y_px, region.width_px, region.height_px) if region else None,
        scale=tiling.resize,
        channels=manifest.channels,
        window=(manifest.window.low, manifest.window.high) if frame.bit_depth > 8 else None,
        ignore=ignore,
        located=station.locate is not None,
    )


def not_judged(station: Station) -> NDArray[Any] | None:
    """What is not judged, nonzero in [H, W] of the frame: the rim of the region and the white of the mask; None where
    all is. Raises RecipeError for a mask of another size, or a rim that leaves nothing."""
    tiling, frame = station.tiling, station.window
    mask = _read_mask(tiling.ignore_mask, station) if tiling.ignore_mask else None
    if tiling.margin_px == 0:
        return mask
    region = tiling.region or Region(x_px=0, y_px=0, width_px=frame.width_px, height_px=frame.height_px)
    if 2 * tiling.margin_px >= min(region.width_px, region.height_px):
        raise RecipeError(
            f"tiling.margin_px = {tiling.margin_px}: leaves nothing of a region of {region.width_px} x "
            f"{region.height_px} px to judge; it must be less than half of the shorter side"
        )
    rim = np.full((frame.height_px, frame.width_px), 255, np.uint8)
    top, left = region.y_px + tiling.margin_px, region.x_px + tiling.margin_px
    rim[
        top : region.y_px + region.height_px - tiling.margin_px, left : region.x_px + region.width_px - tiling.margin_px
    ] = 0
    return rim if mask is None else np.maximum(rim, mask)


def _read_mask(path: Path, station: Station) -> NDArray[Any]:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise RecipeError(f"tiling.ignore_mask = {str(path)!r}: cannot be read as an image")
    if mask.shape != (station.window.height_px, station.window.width_px):
        raise RecipeError(
            f"tiling.ignore_mask = {str(path)!r}: is {mask.shape[1]} x {mask.shape[0]} px, the frame is "
            f"{station.window.width_px} x {station.window.height_px} px"
        )
    return mask
