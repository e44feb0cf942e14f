"""From a frame to the tiles that the engine sees, and back: pure functions on arrays.

Coordinates are pixels, x to the right and y down; a box covers [x, x + width) by [y, y + height). Every large buffer
is made once, in `PreparePlan`, and filled in place: preparing a frame allocates nothing that grows with the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import RecipeError
from edge.place.geometry import Box, Place, enclosing, flat, transformed, warp

__all__ = [
    "Box",
    "FrameLevels",
    "Place",
    "PreparePlan",
    "Scale",
    "Tiling",
    "boxes_to_frame",
    "convert_channels",
    "cut",
    "frame_levels",
    "grid",
    "plan_prepare",
    "prepare",
    "prepared_size",
    "resize",
    "stitch",
    "tile_mask",
    "to_8bit",
]

Array = NDArray[Any]
Scale = float | Literal["tile"]
"""Prepared pixels per frame pixel, or "tile": the region becomes one tile."""

_ROWS_AT_ONCE = 64
"""numpy turns an index array into int64 first: in strips of this many rows that copy stays small."""


@dataclass(frozen=True)
class Tiling:
    """Square tiles that cover a region of a picture of `height` x `width` pixels exactly.

    `tops` and `lefts` are the y and x of the tile rows and columns, ascending; tile i lies in row i // len(lefts).
    """

    height: int
    width: int
    tile: int
    overlap: int
    region: Box
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    cover: NDArray[np.float32] = field(repr=False, compare=False)
    """How many tiles lie on each pixel of the region, float32 [region.height, region.width]; at least 1."""

    @property
    def count(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def boxes(self) -> list[Box]:
        return [Box(x, y, self.tile, self.tile) for y in self.tops for x in self.lefts]


def _starts(first: int, length: int, tile: int, overlap: int) -> tuple[int, ...]:
    stride = tile - overlap
    count = max(1, math.ceil((length - overlap) / stride))
    return tuple(first + min(i * stride, length - tile) for i in range(count))


def _cover_1d(starts: tuple[int, ...], first: int, length: int, tile: int) -> NDArray[np.float32]:
    cover = np.zeros(length, np.float32)
    for start in starts:
        cover[start - first : start - first + tile] += 1
    return cover


def grid(height: int, width: int, tile: int, overlap: int = 0, region: Box | None = None) -> Tiling:
    """Lay tiles of `tile` x `tile` px over `region` of a picture of `height` x `width` px (the whole of it by default).

    Neighbours share `overlap` px (0 to tile - 1); the last row and the last column are shifted inwards, so that they
    share more and nothing outside the region is ever seen. Raises RecipeError where that is impossible.
    """
    if tile < 1:
        raise RecipeError(f"tile size is {tile} px, expected at least 1")
    if not 0 <= overlap < tile:
        raise RecipeError(f"tile overlap is {overlap} px, expected 0 to {tile - 1} with tiles of {tile} px")
    region = Box(0, 0, width, height) if region is None else Box(*region)
    if min(region.x, region.y) < 0 or region.x + region.width > width or region.y + region.height > height:
        raise RecipeError(
            f"region of interest {region.width}x{region.height} px at x={region.x}, y={region.y} does not lie inside"
            f" the picture of {width}x{height} px"
        )
    if region.width < tile or region.height < tile:
        raise RecipeError(
            f"region of interest is {region.width}x{region.height} px (width x height), smaller than a tile of"
            f" {tile}x{tile} px: enlarge the region, resize by a larger factor or use a bundle with smaller tiles"
        )
    tops = _starts(region.y, region.height, tile, overlap)
    lefts = _starts(region.x, region.width, tile, overlap)
    rows = _cover_1d(tops, region.y, region.height, tile)
    columns = _cover_1d(lefts, region.x, region.width, tile)
    return Tiling(height, width, tile, overlap, region, tops, lefts, np.outer(rows, columns))


def cut(frame: Array, tiling: Tiling, out: Array) -> Array:
    """Copy the tiles of `frame` [H, W, C] (any dtype) into `out` [N, tile, tile, C] and return `out`."""
    if frame.shape[:2] != (tiling.height, tiling.width):
        raise ValueError(f"frame is {frame.shape}, the tiling is for {(tiling.height, tiling.width)} (height, width)")
    size = tiling.tile
    i = 0
    for y in tiling.tops:
        for x in tiling.lefts:
            out[i] = frame[y : y + size, x : x + size]
            i += 1
    return out


def stitch(tiles: Array, tiling: Tiling, out: Array, how: Literal["copy", "mean"] = "copy") -> Array:
    """Put tiles or maps [N, tile, tile] or [N, tile, tile, C] back into `out` [H, W] or [H, W, C]; return `out`.

    "copy" keeps the last tile on every pixel, any dtype: what `cut` made gives the picture back exactly.
    "mean" averages where tiles overlap; `out` must be floating. Pixels outside the region are left as they are.
    """
    size = tiling.tile
    if how == "copy":
        for tile, (x, y, _, _) in zip(tiles, tiling.boxes, strict=True):
            out[y : y + size, x : x + size] = tile
        return out
    if not np.issubdtype(out.dtype, np.floating):
        raise ValueError(f"the mean of overlapping tiles needs a floating point output, not {out.dtype}")
    inside = out[tiling.region.rows, tiling.region.columns]
    inside[...] = 0
    for tile, (x, y, _, _) in zip(tiles, tiling.boxes, strict=True):
        out[y : y + size, x : x + size] += tile
    inside /= tiling.cover if inside.ndim == 2 else tiling.cover[..., None]
    return out


def resize(image: Array, out: Array) -> Array:
    """Resize `image` [H, W, C] (uint8, uint16 or float32) to the size of `out` [h, w, C], in place; return `out`.

    Areas are averaged (INTER_AREA) when both sides shrink, so that fine texture does not alias; otherwise linear.
    """
    shrinks = out.shape[0] <= image.shape[0] and out.shape[1] <= image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(flat(image), (out.shape[1], out.shape[0]), dst=flat(out), interpolation=how)
    return out


def convert_channels(image: Array, out: Array) -> Array:
    """Copy `image` [H, W, 1 or 3] into `out` [H, W, 1 or 3] (uint8 or uint16), grey <-> RGB as needed; return `out`.

    Grey is 0.299 R + 0.587 G + 0.114 B (BT.601, as OpenCV rounds it); colour from grey repeats the channel.
    """
    if image.shape[2] == out.shape[2]:
        np.copyto(out, image)
    elif out.shape[2] == 1:
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY, dst=flat(out))
    else:
        cv2.cvtColor(flat(image), cv2.COLOR_GRAY2RGB, dst=out)
    return out


@lru_cache(maxsize=16)
def _window_table(low: int, high: int) -> NDArray[np.uint8]:
    if not 0 <= low < high <= 65535:
        raise RecipeError(f"window low={low}, high={high} to 8 bit: expected 0 <= low < high <= 65535")
    levels = (np.arange(65536, dtype=np.int64) - low).clip(0, high - low)
    table = ((levels * 510 + (high - low)) // (2 * (high - low))).astype(np.uint8)
    table.setflags(write=False)
    return table


def to_8bit(image: Array, low: int, high: int, out: Array) -> Array:
    """Map uint16 `image` through the fixed window [low, high] to 0..255, into uint8 `out` of the same shape.

    Linear, clipped at both ends, rounded half up in integers: the same bytes on every machine. The window comes from
    the bundle and never from the frame, for a stretched window would make good parts look different from day to day.
    """
    table = _window_table(low, high)
    for row in range(0, image.shape[0], _ROWS_AT_ONCE):
        rows = slice(row, row + _ROWS_AT_ONCE)
        np.take(table, image[rows], out=out[rows], mode="clip")
    return out


def prepared_size(height: int, width: int, scale: Scale, tile: int) -> tuple[int, int]:
    """Height and width of a region of so many pixels once it is resized; "tile" makes one tile of it, whatever it is.

    Raises RecipeError for a factor that is no size.
    """
    if scale == "tile":
        return tile, tile
    if not 0.0 < scale <= 8.0:
        raise RecipeError(f"resize factor is {scale}, expected over 0 and up to 8, or 'tile'")
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class PreparePlan:
    """All that is known about preparing a station's frames before the first one comes, with the buffers it needs.

    Made by `plan_prepare`. Belongs to one thread: the buffers are overwritten with each frame.
    """

    frame_shape: tuple[int, int, int]
    frame_dtype: np.dtype[Any]
    region: Box
    channels: int
    window: tuple[int, int] | None
    tiling: Tiling
    """Over the prepared picture: the region of interest after resizing."""
    scale_x: float
    scale_y: float
    """Prepared pixels per frame pixel, as rounded to whole pictures."""
    ignore_tiles: NDArray[np.bool_] | None
    """bool [N, tile, tile], true where the recipe's ignore mask says that nothing shall be judged; None without one."""
    judged_tiles: tuple[int, ...]
    """Tiles with at least one judged pixel."""
    _warped: Array | None = field(repr=False, compare=False)
    _grey: Array | None = field(repr=False, compare=False)
    _sized: Array | None = field(repr=False, compare=False)
    _byte: Array | None = field(repr=False, compare=False)
    _colour: Array | None = field(repr=False, compare=False)

    @property
    def tiles_shape(self) -> tuple[int, int, int, int]:
        return (self.tiling.count, self.tiling.tile, self.tiling.tile, self.channels)

    def misfit(self, frame: Array) -> str | None:
        """Why `frame` cannot be prepared with this plan (its size, channels or depth are not as declared), or None."""
        if frame.shape == self.frame_shape and frame.dtype == self.frame_dtype:
            return None
        return (
            f"frame is {_shape_text(frame.shape, frame.dtype)},"
            f" the recipe declares {_shape_text(self.frame_shape, self.frame_dtype)}"
        )


def _shape_text(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    if len(shape) != 3:
        return f"an array of shape {shape} {dtype}"
    return f"{shape[1]}x{shape[0]} px (width x height), {shape[2]} channel{'s' * (shape[2] > 1)} of {dtype}"


def plan_prepare(
    frame_shape: tuple[int, int, int],
    frame_dtype: Any = np.uint8,
    *,
    tile: int,
    overlap: int = 0,
    region: Box | None = None,
    scale: Scale = 1.0,
    channels: int = 1,
    window: tuple[int, int] | None = None,
    ignore: NDArray[Any] | None = None,
    located: bool = False,
) -> PreparePlan:
    """Work out once how frames of `frame_shape` (height, width, channels) become tiles, and make the buffers.

    `region`: frame pixels to look at (all by default). `scale`: prepared pixels per frame pixel, over 0 and up to
    8, or "tile" where a part that fills the region is to fill one tile.
    `channels`: what the bundle takes, 1 or 3. `window`: (low, high) for uint16 frames, from the bundle.
    `ignore`: [height, width] of the frame, nonzero where nothing shall be judged. `located`: parts come with a `Place`.
    Raises RecipeError for anything that does not fit together.
    """
    dtype = np.dtype(frame_dtype)
    height, width, frame_channels = frame_shape
    if dtype not in (np.uint8, np.uint16):
        raise RecipeError(f"frames of {dtype} cannot be prepared, expected uint8 or uint16")
    if frame_channels not in (1, 3) or channels not in (1, 3):
        raise RecipeError(f"frames of {frame_channels} channels for a bundle of {channels}: expected 1 or 3 for both")
    if dtype == np.uint16 and window is None:
        raise RecipeError("frames are uint16 and the bundle has no window: give it `window.low` and `window.high`")
    if dtype == np.uint16 and window is not None:
        _window_table(*window)
    region = Box(0, 0, width, height) if region is None else Box(*region)
    grid(height, width, 1, 0, region)  # the region must lie inside the frame
    size = prepared_size(region.height, region.width, scale, tile)
    tiling = grid(size[0], size[1], tile, overlap)
    ignored = None if ignore is None else tile_mask(ignore, (height, width), region, tiling)
    judged = range(tiling.count) if ignored is None else np.flatnonzero(~ignored.all(axis=(1, 2))).tolist()
    if not judged:
        raise RecipeError("the ignore mask covers the whole region of interest: nothing would be judged")
    to_grey = frame_channels == 3 and channels == 1
    working = 1 if to_grey else frame_channels
    enlarged = size[0] > region.height or size[1] > region.width
    taken = size if located and enlarged else (region.height, region.width)  # by the warp or the crop
    resized = size != taken
    deep = dtype == np.uint16
    return PreparePlan(
        frame_shape=(height, width, frame_channels),
        frame_dtype=dtype,
        region=region,
        channels=channels,
        window=window if deep else None,
        tiling=tiling,
        scale_x=size[1] / region.width,
        scale_y=size[0] / region.height,
        ignore_tiles=ignored,
        judged_tiles=tuple(judged),
        _warped=np.empty((*taken, frame_channels), dtype) if located else None,
        _grey=np.empty((*taken, 1), dtype) if to_grey else None,
        _sized=np.empty((*size, working), dtype) if resized else None,
        _byte=np.empty((*size, working), np.uint8) if deep else None,
        _colour=np.empty((*size, 3), np.uint8) if working == 1 and channels == 3 else None,
    )


def prepare(frame: Array, plan: PreparePlan, out: NDArray[np.uint8], place: Place | None = None) -> NDArray[np.uint8]:
    """Turn a frame [H, W, C] into uint8 tiles, into `out` [N, tile, tile, channels]; return `out`.

    `place`: how the part lies, where it is located; the region moves with it. Crop (or warp), grey, resize, window to 8
    bit, colour, cut: in this order, so that each step sees as few bytes as it can and averaging happens at full depth.
    Raises ValueError for a frame that is not as declared (see `PreparePlan.misfit`).
    """
    misfit = plan.misfit(frame)
    if misfit is not None:
        raise ValueError(misfit)
    if plan._warped is None:
        image = frame[plan.region.rows, plan.region.columns]
    else:
        image = warp(frame, plan.region, place or Place(0.0, 0.0, 0.0), plan._warped)
    if plan._grey is not None:
        image = convert_channels(image, plan._grey)
    if plan._sized is not None:
        image = resize(image, plan._sized)
    if plan._byte is not None and plan.window is not None:
        image = to_8bit(image, *plan.window, plan._byte)
    if plan._colour is not None:
        image = convert_channels(image, plan._colour)
    cut(image, plan.tiling, out)
    return out


def tile_mask(ignore: Array, frame_size: tuple[int, int], region: Box, tiling: Tiling) -> NDArray[np.bool_]:
    """Cut an ignore mask [H, W] of the frame (nonzero = do not judge) to bool [N, tile, tile] of the prepared tiles.

    A prepared pixel is ignored when any part of it comes from an ignored frame pixel.
    """
    if ignore.shape != frame_size:
        raise RecipeError(
            f"ignore mask is {ignore.shape[-1]}x{ignore.shape[0]} px (width x height),"
            f" the frame is {frame_size[1]}x{frame_size[0]} px"
        )
    inside = (ignore[region.rows, region.columns] != 0).astype(np.float32)[..., None]
    sized = resize(inside, np.empty((tiling.height, tiling.width, 1), np.float32))
    return cut(sized > 0, tiling, np.empty((tiling.count, tiling.tile, tiling.tile, 1), np.bool_))[..., 0]


def boxes_to_frame(boxes: list[Box], plan: PreparePlan, place: Place | None = None) -> list[Box]:
    """Move boxes from pixels of the prepared picture to frame pixels, rounded outwards so that they still enclose.

    `place`: how the part lay; a box then encloses the turned one.
    """
    moved = []
    for box in boxes:
        left = math.floor(box.x / plan.scale_x)
        top = math.floor(box.y / plan.scale_y)
        right = min(math.ceil((box.x + box.width) / plan.scale_x), plan.region.width)
        bottom = min(math.ceil((box.y + box.height) / plan.scale_y), plan.region.height)
        moved.append(Box(plan.region.x + left, plan.region.y + top, right - left, bottom - top))
    if place is None:
        return moved
    height, width, _ = plan.frame_shape
    matrix = place.matrix(plan.region)
    return [enclosing(transformed(matrix, box), width, height) for box in moved]


class FrameLevels(NamedTuple):
    """How bright a picture is and how much it varies, on the scale 0..1."""

    mean: float
    contrast: float
    """Standard deviation of the pixels: near 0 on a black, saturated or covered picture."""


def frame_levels(tiles: NDArray[np.uint8]) -> FrameLevels:
    """Mean and standard deviation of uint8 tiles [N, h, w, C], divided by 255: to tell a picture from none."""
    flat = tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)
    mean, deviation = cv2.meanStdDev(flat)
    return FrameLevels(float(mean[0, 0]) / 255.0, float(deviation[0, 0]) / 255.0)
