"""Where good parts come from: folders of images, or recordings, whose parts that are bad in truth are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge.errors import CalibrationError, SourceError
from edge.recording import RecordedFrame, Recording
from edge.settings import Recipe, Station
from edge.sources.folder import list_images, max_pixels, read_image
from edge.sources.images import BadImageError, quiet_opencv

__all__ = ["GoodImages", "find_good_images"]

Image = NDArray[Any]


@dataclass(frozen=True)
class GoodImages:
    """The good images of one station."""

    count: int
    bad_left_out: int
    """Recorded parts that are bad in truth."""
    images: Callable[[], Iterator[tuple[str, Image]]]
    """Each image, uint8 or uint16 [H, W, C], valid until the next, with words that say where it is."""


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

    def images() -> Iterator[tuple[str, Image]]:
        for file in files:
            shot = read_image(file, max_pixels(station.frame))
            if shot.image is None:
                raise CalibrationError(f"{shot.detail}; take it out of the good parts")
            yield str(file), shot.image

    return GoodImages(len(files), 0, images)


def _from_recording(recording: Recording, station: Station) -> GoodImages:
    name = station.source.channel or station.name
    if name not in recording.stations:
        raise SourceError(
            f"{recording.path}: no station {name!r} in this recording, which has: {', '.join(recording.stations)}"
        )
    bad = {number for number, truth in recording.truths(name).items() if truth.bad}
    numbers = [event.number for event in recording.events(name) if isinstance(event, RecordedFrame)]

    def images() -> Iterator[tuple[str, Image]]:
        for event in recording.events(name):
            if isinstance(event, RecordedFrame) and event.number not in bad:
                where = f"{recording.path}: frame {event.number} of {name}"
                try:
                    yield where, event.decode(max_pixels(station.frame))
                except BadImageError as error:
                    raise CalibrationError(f"{where}: {error}; calibrate on a recording of good parts") from error

    return GoodImages(sum(number not in bad for number in numbers), len(bad.intersection(numbers)), images)
