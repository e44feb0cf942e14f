"""A video file as a stream: one part per frame, whatever times the file gives them.

Limits of what a decoder tells: damage that it conceals (repeated or smeared frames) cannot be seen from here; frames
that it drops can, because the container says how many there should be.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import structlog

from edge.errors import SourceError
from edge.settings import Station
from edge.sources import Image
from edge.sources.folder import max_pixels
from edge.sources.images import MAX_SIDE_PX, as_image, quiet_opencv
from edge.sources.pacing import Part, Rate, Shot
from edge.verdict import Reason

__all__ = ["VideoFeed"]


class VideoFeed:
    """The frames of a video file at a rate. Frames that the container promises and the decoder does not deliver are
    parts with a bad image; where in the file they were is not known, so they are said last.

    Video stores no grey: for a recipe with one channel, a frame is its luminance.
    """

    def __init__(self, station: Station) -> None:
        assert station.source.path is not None
        self._path = station.source.path
        self._rate = Rate(station.source.rate_hz)
        self._grey = station.frame.channels == 1
        self._capture = _open(self._path, max_pixels(station.frame))
        self._promised = _promised_frames(self._capture, self._path)
        own_rate_hz = self._capture.get(cv2.CAP_PROP_FPS)
        self.own_rate_hz = own_rate_hz if 0 < own_rate_hz <= 1000 else None  # what the file says of itself
        self._buffer: Any = None
        self._at = -1  # the frame that the decoder delivered last, counted in what it delivers
        self._delivered = 0
        self._over = False
        self._advance(decode=True)
        if self._image is None:
            self.close()
            raise SourceError(
                f"{self._path}: opens as a video, but no frame of it decodes; is the file cut or damaged?"
            )

    def part(self, number: int) -> Part | None:
        while self._at < number and not self._over:
            self._advance(decode=self._at == number - 1)
        if self._over:
            return None
        shot = Shot(self._image)
        if self._image is None:
            detail = f"{self._path}: frame {number} of {self._promised} does not decode; is the file cut or damaged?"
            shot = Shot(None, Reason.BAD_IMAGE, detail)
        return self._rate.part(number, lambda: shot)

    def first_due(self, elapsed_ns: int, number: int) -> int:
        due = self._rate.first_due(elapsed_ns, number)
        return max(number, min(due, self._promised)) if self._promised else due

    def close(self) -> None:
        self._capture.release()

    def _advance(self, decode: bool) -> None:
        """Go to the next frame. The stream is over when it fails after as many frames as were promised."""
        self._at += 1
        self._image: Image | None = None
        if decode:
            delivered, frame = self._capture.read(self._buffer)
            if delivered:
                self._buffer = frame
                self._image = as_image(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if self._grey else frame)
        else:
            delivered = self._capture.grab()
        self._delivered += bool(delivered)
        self._over = not delivered and self._at >= self._promised
        if self._over and self._delivered < self._promised:
            structlog.get_logger().warning(
                "video_incomplete", path=str(self._path), promised=self._promised, decoded=self._delivered
            )


def _open(path: Path, pixels: int) -> cv2.VideoCapture:
    """Open a video file. Raises SourceError if it is missing, no video, or larger than what is decoded here."""
    if not path.is_file():
        raise SourceError(f"{path}: expected a video file, and there is none; name an existing one in its path")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    quiet_opencv()
    ffmpeg = cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG if ffmpeg else cv2.CAP_ANY)
    if not capture.isOpened():
        raise SourceError(f"{path}: no video that can be opened ({path.stat().st_size} bytes); is the file cut?")
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if max(width, height) > MAX_SIDE_PX or width * height > pixels:
        capture.release()
        raise SourceError(f"{path}: {width:.0f} x {height:.0f} px; at most {pixels} pixels are decoded here")
    return capture


def _promised_frames(capture: cv2.VideoCapture, path: Path) -> int:
    """How many frames the container declares; 0 if it does not say, or says more than it has bytes."""
    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return promised if 0 < promised <= path.stat().st_size else 0
