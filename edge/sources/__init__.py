"""Sources of frames: one Protocol, and one file each for what implements it.

A source delivers events in order. Every trigger has a number; numbers of one station rise by one. A source says
`Triggered` for each part, then `Exposed` with its image or with the reason why there is none, then the next part's; a
trigger that is `missed` has no `Exposed`. `Ended` is its last word.

*Independent* triggers are said when they are due, whatever becomes of the image. *Inferred* ones are known from the
images alone: a gap in the frame ids is noticed with the next frame, and said as `missed`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from edge.verdict import Reason

if TYPE_CHECKING:
    from edge.settings import Station
    from edge.sources.camera import Camera
    from edge.sources.pacing import Feed

__all__ = ["Ended", "Event", "Exposed", "Image", "Source", "Triggered", "open_source"]

Image = NDArray[Any]
"""uint8 or uint16 [H, W, C], C = 1 or 3 (RGB)."""


@dataclass(frozen=True)
class Triggered:
    """A part demands an answer."""

    number: int
    at_ns: int  # monotonic clock of the host
    missed: bool = False  # inferred from a gap in the frame ids: there will be no image
    count: int | None = None  # of the line's encoder at the trigger
    part_id: int | None = None  # where a PLC gives parts their ids


@dataclass(frozen=True)
class Exposed:
    """The image of a trigger, or the reason why there is none. The array is valid until the next `poll`."""

    number: int
    image: Image | None
    reason: Reason | None = None
    detail: str = ""  # for the log: what is wrong with the image, in words


@dataclass(frozen=True)
class Ended:
    """The source has no more parts; `next_number` is the number that the next one would have had."""

    next_number: int


Event = Triggered | Exposed | Ended


class Source(Protocol):
    """What a capture process reads from."""

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, or None when nothing happened for `timeout_s`. Raises SourceError when it cannot go on."""
        ...

    def close(self) -> None: ...


def open_source(station: Station, start_ns: int, first_number: int, alone: bool = True, astray: bool = False) -> Source:
    """Open the source of a station.

    `start_ns`: monotonic time at which trigger 0 of a simulated stream is due. `first_number`: the first trigger number
    not used yet (not 0 when capture was restarted). A lossless source goes on there; a live one goes on with the part
    that passes now, and the numbers between are parts that nobody saw. A live source that starts late at 0 says what it
    missed. Of cameras (edge/sources/camera.py): `alone`, no other station sees the parts of its lane; `astray`, others
    do, and some may have passed uncounted.

    Raises SourceError, which names the file and what was expected.
    """
    if station.source.is_camera:
        from edge.sources.camera import CameraSource
        from edge.sources.part_ids import PartIdReader

        with contextlib.ExitStack() as opened:
            ids = PartIdReader(station.part_ids, station.name) if station.part_ids else None
            if ids:
                opened.callback(ids.close)
            camera = _open_camera(station)
            opened.callback(camera.close)
            source = CameraSource(camera, station, first_number, alone, astray, ids=ids)
            opened.pop_all()
            return source
    if station.source.kind == "conveyor":
        from edge.sources.conveyor import ConveyorSource

        return ConveyorSource(station, start_ns, first_number)
    from edge.sources.pacing import PacedSource

    return PacedSource(_open_feed(station), station.source, start_ns, first_number)


def _open_camera(station: Station) -> Camera:
    kind = station.source.kind
    if kind == "genicam":
        from edge.sources.genicam import GenicamCamera

        return GenicamCamera(station)
    if kind == "gentl":
        from edge.sources.gentl import GentlCamera

        return GentlCamera(station)
    if kind == "rtsp":
        from edge.sources.rtsp import RtspCamera

        return RtspCamera(station)
    if kind == "v4l2":
        from edge.sources.v4l2 import V4l2Camera

        return V4l2Camera(station)
    raise AssertionError(kind)  # every kind of CAMERA_KINDS stands above


def _open_feed(station: Station) -> Feed:
    kind = station.source.kind
    if kind == "marker":
        from edge.sources.marker import MarkerFeed

        return MarkerFeed(station)
    if kind == "web":
        from edge.sources.web import WebFeed

        return WebFeed(station)
    if kind == "folder":
        from edge.sources.folder import FolderFeed

        return FolderFeed(station)
    if kind == "video":
        from edge.sources.video import VideoFeed

        return VideoFeed(station)
    from edge.sources.recorded import RecordedFeed

    return RecordedFeed(station)
