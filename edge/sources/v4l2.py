"""Video4Linux devices (USB cameras, frame grabbers) through OpenCV.

Tried with a fake device only: no machine that this was written on has a real one, or the kernel module that makes one.
OpenCV hands on neither the driver's frame counter nor its error flags, so missing frames show in the times of the
buffers alone (edge/sources/frame_count.py). Exposure and the like are set with `v4l2-ctl` before the line starts.

For devices that run freely. OpenCV gives up on one that is silent in the same way as on one that is unplugged, and
irregular times look like frames that are missing: one that waits for triggers would be away whenever the belt stands.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import cv2

from edge.errors import SourceError
from edge.settings import Frame, Station
from edge.sources.blocking import LIMITS, BlockingCamera, Limits
from edge.sources.camera import Grabbed
from edge.sources.frame_count import FrameCount
from edge.sources.images import BadImageError, as_image, quiet_opencv
from edge.verdict import Reason

__all__ = ["Capture", "V4l2Camera", "open_capture"]


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool: ...  # noqa: N802 - OpenCV's name

    def read(self) -> tuple[bool, Any]: ...

    def get(self, prop: int, /) -> float: ...

    def release(self) -> None: ...


def open_capture(address: str, frame: Frame, silence_s: float) -> Capture:
    """Open a device with OpenCV, and ask it for frames of the recipe's size."""
    os.environ["OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"] = str(max(1, round(silence_s)))  # seconds; it would be 10
    quiet_opencv()
    size = [cv2.CAP_PROP_FRAME_WIDTH, frame.width_px, cv2.CAP_PROP_FRAME_HEIGHT, frame.height_px]
    return cv2.VideoCapture(address, cv2.CAP_V4L2, size)


class V4l2Camera(BlockingCamera):
    """A device such as /dev/video0; see `edge.sources.camera.Camera`."""

    def __init__(
        self,
        station: Station,
        limits: Limits = LIMITS,
        opener: Callable[[str, Frame, float], Capture] = open_capture,
    ) -> None:
        """Raises SourceError if there is no such device, or it is no camera."""
        address = station.source.address or ""
        name = f"{station.name}: {address}"
        super().__init__(name, lambda: _Device(name, opener(address, station.frame, limits.silence_s), station), limits)


class _Device:
    def __init__(self, name: str, capture: Capture, station: Station) -> None:
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{name}: no camera that can be opened; is it there, and not in use?")
        self._name, self._capture, self._grey = name, capture, station.frame.channels == 1
        self._count = FrameCount(capture.get(cv2.CAP_PROP_FPS))

    def read(self) -> Grabbed | None:
        """See `edge.sources.blocking.Device`."""
        delivered, pixels = self._capture.read()
        arrived_ns = time.monotonic_ns()
        if not delivered:
            raise SourceError(
                f"{self._name}: no frame; was it unplugged? One that waits for triggers needs genicam or gentl"
            )
        at_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC)  # when the driver got the frame, on its own clock
        camera_ns = round(at_ms * 1e6) if at_ms > 0 else None
        frame_id = self._count.next(camera_ns)
        try:
            image = as_image(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if self._grey and pixels.ndim == 3 else pixels)
        except (BadImageError, cv2.error) as error:
            return Grabbed(None, arrived_ns, frame_id, camera_ns, Reason.BAD_IMAGE, str(error))
        return Grabbed(image, arrived_ns, frame_id, camera_ns)

    def close(self) -> None:
        self._capture.release()
