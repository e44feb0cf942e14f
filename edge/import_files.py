"""Folders of images and video files as recordings: each image, each frame a part, at a given rate.

What does not decode is left out, named and counted: a recording has no parts that never were. The files' own times are
not used; the first part is at the beginning of 2026, so that the same files give the same recording.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from calib.datasets import GOOD, TestImage, load_mask
from edge.errors import SourceError
from edge.recording import RecordedTruth, RecordingWriter
from edge.recording.frames import encode_frame
from edge.section import Name
from edge.settings import Frame, Mode, Source, Station
from edge.sources import Image
from edge.sources.folder import SUFFIXES, list_images, read_image
from edge.sources.images import MAX_PIXELS, MAX_SIDE_PX, quiet_opencv
from edge.sources.pacing import Shot
from edge.sources.video import VideoFeed

__all__ = ["import_files"]

STATION = "cam"
"""Where no station is named."""

EPOCH_NS = 1_767_225_600_000_000_000
"""2026-01-01 00:00:00 UTC."""

_IMAGES_HZ = 5.0
_NAMED = 5
"""So many files that do not decode are named one by one; the others are counted."""
_SAYS_EVERY = 25
_LARGEST = Frame(width_px=MAX_SIDE_PX // 2, height_px=MAX_SIDE_PX // 2)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Item:
    """One image to be."""

    name: str
    load: Callable[[], Shot]
    truth: TestImage | None = None


@dataclass
class _Made:
    """What became of the files of one station."""

    parts: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # by part
    next_ns: int = EPOCH_NS

    def add(self, name: str, image: Image, next_ns: int) -> None:
        height, width, channels = image.shape
        self.shapes[f"{width} x {height} px, {channels} channel{'s' if channels > 1 else ''}, {image.dtype}"] += 1
        self.files.append(name)
        self.parts, self.next_ns = self.parts + 1, next_ns


def import_files(
    sources: Sequence[str],
    out: Path,
    *,
    rate_hz: float | None = None,
    grey: bool = False,
    progress: Progress = lambda text: None,
) -> list[str]:
    """Write a recording of `sources`, each PATH or STATION=PATH; returns what there is to say of it.

    Sources of the same station follow each other. The recording appears whole or not at all. Raises SourceError for a
    source that is not there or of which nothing decodes, and for a recording that is there or cannot be written.
    """
    quiet_opencv()
    if out.exists():
        raise SourceError(f"--out {out}: there is a file already; name another, or remove it")
    named = [_named(source) for source in sources]
    made: dict[str, _Made] = {}
    metadata = {"generator": "maskline import 1", "sources": ", ".join(f"{name}: {path}" for name, path in named)}
    scratch = out.with_name(out.name + ".partial")
    try:
        with RecordingWriter(scratch, metadata) as writer:
            for station, path in named:
                items, own_hz = _items(path, grey)
                station_made = made.setdefault(station, _Made())
                _write(writer, station, items, rate_hz or own_hz, grey, station_made, progress)
            for station, told in made.items():
                writer.add_metadata(f"files.{station}", {str(number): name for number, name in enumerate(told.files)})
        for station, told in made.items():
            if not told.parts:
                raise SourceError(f"{station}: none of its files decodes: {told.bad[0]}")
        scratch.replace(out)
    except OSError as error:
        raise SourceError(f"{out}: cannot write this recording: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return [line for station, told in made.items() for line in _summary(station, told)] + [f"Recording: {out}"]


def _named(source: str) -> tuple[str, Path]:
    """Station and path of `PATH` or `STATION=PATH`. Raises SourceError for a name that no station can have."""
    station, equals, path = source.partition("=")
    if not equals or Path(source).exists():
        return STATION, Path(source)
    try:
        return TypeAdapter(Name).validate_python(station), Path(path)
    except ValidationError as error:
        raise SourceError(
            f"{source}: {station!r} is no name of a station: up to 31 of a-z, 0-9, _ and -, beginning with a-z or 0-9"
        ) from error


def _items(path: Path, grey: bool) -> tuple[Iterator[_Item], float]:
    """The images of a source, and its own rate. Raises SourceError for what is neither folder nor video."""
    if not path.is_dir():
        return _video_items(path, grey)
    if (path / "test").is_dir():
        raise SourceError(f"{path}: a category in MVTec-AD's layout; name its test or its train/good folder")
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    if folders and not any(f.suffix.lower() in SUFFIXES for f in path.iterdir()):
        return (item for folder in folders for item in _kind_items(folder)), _IMAGES_HZ
    return (_Item(file.name, partial(read_image, file, MAX_PIXELS)) for file in list_images(path)), _IMAGES_HZ


def _kind_items(folder: Path) -> Iterator[_Item]:
    """The images of test/good or test/DEFECT, with their truth."""
    for file in list_images(folder):
        kind, mask = folder.name, folder.parent.parent / "ground_truth" / folder.name / f"{file.stem}_mask.png"
        image = TestImage(file, "" if kind == GOOD else kind, mask if mask.is_file() else None)
        yield _Item(f"{kind}/{file.name}", partial(read_image, file, MAX_PIXELS), image)


def _video_items(path: Path, grey: bool) -> tuple[Iterator[_Item], float]:
    frame = _LARGEST.model_copy(update={"channels": 1 if grey else 3})
    source = Source(kind="video", path=path, mode=Mode.LOSSLESS)
    feed = VideoFeed(Station(name=STATION, bundle="none", frame=frame, source=source))

    def items() -> Iterator[_Item]:
        with contextlib.closing(feed):
            for number in itertools.count():
                if (part := feed.part(number)) is None:
                    return
                yield _Item(f"{path.name} frame {number}", part.load)

    return items(), feed.own_rate_hz or _IMAGES_HZ


def _write(
    writer: RecordingWriter,
    station: str,
    items: Iterator[_Item],
    rate_hz: float,
    grey: bool,
    made: _Made,
    progress: Progress,
) -> None:
    """Add the parts of one source to those that the station has."""
    start_ns, first = made.next_ns, made.parts
    for item in items:
        shot = item.load()
        if shot.image is None:
            made.bad.append(shot.detail or item.name)
            continue
        image = _grey(shot.image) if grey else shot.image
        number, at_ns = made.parts, start_ns + round((made.parts - first) * 1e9 / rate_hz)
        if number % _SAYS_EVERY == 0:
            progress(f"{station}: {item.name}")
        writer.trigger(station, number, at_ns)
        writer.frame(station, number, at_ns, image)
        if item.truth is not None:
            writer.truth(station, _truth(item.truth, number, at_ns, image))
        made.add(item.name, image, at_ns + round(1e9 / rate_hz))


def _grey(image: Image) -> Image:
    return image if image.shape[2] == 1 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None]


def _truth(truth: TestImage, number: int, at_ns: int, image: Image) -> RecordedTruth:
    mask = load_mask(truth, image.shape[:2]) if truth.defect else None
    png = b"" if mask is None else encode_frame(mask[..., None].astype(np.uint8) * 255, "png", 0)["data"]
    return RecordedTruth(number, at_ns, bool(truth.defect), truth.defect, mask_png=png)


def _summary(station: str, made: _Made) -> list[str]:
    shapes = "; ".join(f"{count} of {shape}" for shape, count in made.shapes.most_common())
    said = [f"{station}: {made.parts} parts, {shapes}"]
    if made.bad:
        said.append(f"{station}: {len(made.bad)} files or frames left out, for they do not decode:")
        said += [f"  {what}" for what in made.bad[:_NAMED]]
        said += [f"  and {len(made.bad) - _NAMED} more"] if len(made.bad) > _NAMED else []
    return said
