"""A folder of images as a stream: sorted by name, one part each."""

from __future__ import annotations

import os
from pathlib import Path

from edge.errors import SourceError
from edge.settings import Frame, Station
from edge.sources import Image
from edge.sources.images import MAX_PIXELS, BadImageError, decode_image, quiet_opencv
from edge.sources.pacing import Part, Rate, Shot
from edge.verdict import Reason

__all__ = ["MAX_FILE_BYTES", "SUFFIXES", "FolderFeed", "list_images", "load_image", "max_pixels", "read_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_FILE_BYTES = 1 << 30


class FolderFeed:
    """The images of a folder at a rate. A file that cannot be read is a part with a bad image."""

    def __init__(self, station: Station) -> None:
        assert station.source.path is not None
        quiet_opencv()
        self._files = list_images(station.source.path)
        self._rate = Rate(station.source.rate_hz)
        self._max_pixels = max_pixels(station.frame)

    def part(self, number: int) -> Part | None:
        if number >= len(self._files):
            return None
        return self._rate.part(number, lambda: self._load(self._files[number]))

    def first_due(self, elapsed_ns: int, number: int) -> int:
        return max(number, min(self._rate.first_due(elapsed_ns, number), len(self._files)))

    def close(self) -> None:
        self._files = []

    def _load(self, path: Path) -> Shot:
        return read_image(path, self._max_pixels)


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name, without subfolders. Raises SourceError if there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file())
    except OSError as error:
        raise SourceError(
            f"{folder}: expected a folder of images, and cannot read it: {error.strerror or error}. "
            "Name an existing folder in the source's path"
        ) from error
    if not names:
        raise SourceError(f"{folder}: no images in this folder; read are files named *{', *'.join(SUFFIXES)}")
    return [folder / name for name in names]


def read_image(path: Path, max_pixels: int) -> Shot:
    """Read one file: its image, or BAD_IMAGE with the path and why. Never raises for what is in the file."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadImageError(f"{size} bytes; at most {MAX_FILE_BYTES} are read")
        return Shot(decode_image(path.read_bytes(), max_pixels))
    except BadImageError as error:
        return Shot(None, Reason.BAD_IMAGE, f"{path}: {error}")
    except OSError as error:
        return Shot(None, Reason.BAD_IMAGE, f"{path}: cannot be read: {error.strerror or error}")


def load_image(path: Path) -> Image:
    """Read one file: uint8 or uint16 [H, W, C], C = 1 or 3 (RGB). Raises SourceError with the path and why not."""
    quiet_opencv()
    shot = read_image(path, MAX_PIXELS)
    if shot.image is None:
        raise SourceError(f"{shot.detail}; take it out of the folder, or save it again")
    return shot.image


def max_pixels(frame: Frame) -> int:
    """How many pixels are decoded at most: 64 million, or the recipe's frame if that is larger."""
    return max(1 << 26, frame.width_px * frame.height_px)
