"""Where good parts come from: folders of images, or recordings, whose parts that are bad in truth are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CalibrationError, SourceError
from edge.recording import RecordedFrame, Recording
from edge.settings import Recipe, Station
from edge.sources.folder import list_images, max_pixels, read_image
from edge.sources.images import BadImageError, quiet_opencv
from edge.webs.stitching import Stitcher

__all__ = ["GoodImages", "find_good_images"]

Image = NDArray[Any]


@dataclass(frozen=True)
class GoodImages:
    """The good images of one station."""

    count: int
    bad_left_out: int
    """Recorded parts that are bad in truth."""
    images: Callable[[], Iterator[tuple[str, Image, int]]]
    """Each image, uint8 or uint16 [H, W, C], valid until the next, with words that say where it is; and of a web, how
    many rows of the frame before stand above it."""


def find_good_images(good: Path, recipe: Recipe) -> dict[str, GoodImages]:
    """The good images of every station in `good`: a recording, or a folder with one subfolder per station.

    A line of one station may have its images in the folder itself. Raises SourceError or CalibrationError, which say
    what was expected where.
    """
    quiet_opencv()
    if not good.exists():
        raise SourceError(f"{good}: no such file or folder; good parts come from a folder of images or a recording")
    if good.is_dir():
        return {station.name: _from_folder(good, station, len(recipe.stations)) for station in recipe.stations}
    recording = Recording(good)
    return {station.name: _from_recording(recording, station) for station in recipe.stations}


def _from_folder(good: Path, station: Station, stations: int) -> GoodImages:
    folder = good / station.name
    if not folder.is_dir():
        if stations > 1:
            raise SourceError(
                f"{folder}: no such folder; the recipe has {stations} stations, and each needs a folder of good images"
                " with its name"
            )
        folder = good
    files = list_images(folder)

    def images() -> Iterator[tuple[str, Image, int]]:
        window = _Window(station)
        for number, file in enumerate(files):
            shot = read_image(file, max_pixels(station.frame))
            if shot.image is None:
                raise CalibrationError(f"{shot.detail}; take it out of the good parts")
            yield str(file), *window.of(number, shot.image)

    return GoodImages(len(files), 0, images)


def _from_recording(recording: Recording, station: Station) -> GoodImages:
    name = station.source.channel or station.name
    if name not in recording.stations:
        raise SourceError(
            f"{recording.path}: no station {name!r} in this recording, which has: {', '.join(recording.stations)}"
        )
    bad = {number for number, truth in recording.truths(name).items() if truth.bad}
    numbers = [event.number for event in recording.events(name) if isinstance(event, RecordedFrame)]

    def images() -> Iterator[tuple[str, Image, int]]:
        window = _Window(station)
        for event in recording.events(name):
            if isinstance(event, RecordedFrame) and event.number not in bad:
                where = f"{recording.path}: frame {event.number} of {name}"
                try:
                    yield where, *window.of(event.number, event.decode(max_pixels(station.frame)))
                except BadImageError as error:
                    raise CalibrationError(f"{where}: {error}; calibrate on a recording of good parts") from error

    return GoodImages(sum(number not in bad for number in numbers), len(bad.intersection(numbers)), images)


class _Window:
    """What is inspected with each good frame: of a web, the rows of the one before as well."""

    def __init__(self, station: Station) -> None:
        self._stitcher = Stitcher(station, 0)
        self._shape = (station.frame.height_px, station.frame.width_px, station.frame.channels)
        seen = station.window
        self._out = np.empty((seen.height_px, seen.width_px, seen.channels), seen.dtype) if station.web else None

    def of(self, number: int, image: Image) -> tuple[Image, int]:
        """The window of a frame, and how many rows of it are of the frame before; one of another size as it is, for its
        reader to refuse."""
        if self._out is None or image.shape != self._shape or image.dtype != self._out.dtype:
            return image, 0
        rows_before = self._stitcher.fill(number, image, self._out)
        self._stitcher.keep(number, image)
        return self._out, rows_before
