"""Network video: RTSP, and MJPEG over HTTP, decoded by FFmpeg (PyAV, extra `video`).

RTSP comes over TCP: packets that are lost are sent again, and what is missing was dropped by the camera or its encoder.
Frames have no ids; the times in the stream show which are missing (edge/sources/frame_count.py). Between key frames a
frame is predicted from those before it, and a decoder that has lost one goes on with what it has, without a word. So
after a gap, and in the beginning, frames are UNINSPECTED(bad_image) up to the next key frame. MJPEG has no others.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from edge.errors import RecipeError, SourceError
from edge.settings import Station
from edge.sources.blocking import LIMITS, BlockingCamera, Limits
from edge.sources.camera import Grabbed
from edge.sources.frame_count import FrameCount
from edge.sources.images import MAX_PIXELS
from edge.verdict import Reason

__all__ = ["RtspCamera", "without_credentials"]

_NETWORK = {
    "protocol_whitelist": "rtsp,rtsps,rtp,udp,tcp,http,https,httpproxy,tls,crypto",  # what a server names is no file
    "probesize": "65536",  # bytes, and microseconds, until FFmpeg must know what the stream is
    "analyzeduration": "500000",
    "fpsprobesize": "0",
    "fflags": "nobuffer",  # what was read to find that out is too old to be answered
}
_RTSP = {"rtsp_transport": "tcp", "allowed_media_types": "video"}
_PREDICTED = "predicted from frames that did not come; waits for a key frame"


class RtspCamera(BlockingCamera):
    """A network camera; see `edge.sources.camera.Camera`."""

    def __init__(self, station: Station, limits: Limits = LIMITS) -> None:
        """Raises SourceError if there is no stream in time, RecipeError if the extra `video` is not installed."""
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise RecipeError(f"kind = \"rtsp\" needs {error.name}: pip install 'maskline[video]'") from error
        address = station.source.address or ""
        name = f"{station.name}: {without_credentials(address)}"
        grey = station.frame.channels == 1
        super().__init__(name, lambda: _Stream(name, address, grey, limits), limits)


class _Stream:
    """The first video stream at an address. Its calls end within the limits, but for the name server's."""

    def __init__(self, name: str, address: str, grey: bool, limits: Limits) -> None:
        import av

        self._name, self._format = name, "gray" if grey else "rgb24"
        options = _NETWORK | (_RTSP if address.startswith("rtsp") else {})
        try:
            self._container = av.open(address, options=options, timeout=(limits.open_s, limits.silence_s))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._failed("no stream", error) from error
        try:
            if not self._container.streams.video:
                raise SourceError(f"{name}: no video in this stream")
            stream = self._container.streams.video[0]
            codec = stream.codec_context
            if codec.width * codec.height > MAX_PIXELS:
                raise SourceError(f"{name}: {codec.width} x {codec.height} px; at most {MAX_PIXELS} are decoded")
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            codec.thread_count = 1  # each more would hold a frame back
            self._intra_only = codec.codec.intra_only
            rate = stream.average_rate or stream.guessed_rate
            self._count = FrameCount(float(rate) if rate else None)
            self._tick_ns = float(stream.time_base or 0) * 1e9
            self._packets = self._container.demux(stream)
        except SourceError:
            self._container.close()
            raise
        self._needs_key = not self._intra_only
        self._decoded: deque[Grabbed] = deque()

    def read(self) -> Grabbed | None:
        """See `edge.sources.blocking.Device`."""
        if not self._decoded:
            self._take(self._next_packet())
        return self._decoded.popleft() if self._decoded else None

    def close(self) -> None:
        self._container.close()

    def _next_packet(self) -> Any:
        import av

        try:
            packet = next(self._packets, None)
        except (av.error.FFmpegError, OSError) as error:
            raise self._failed("the stream broke off", error) from error
        if packet is None or packet.size == 0:  # an empty one stands for the end
            raise SourceError(f"{self._name}: the stream has ended")
        return packet

    def _take(self, packet: Any) -> None:
        """Decode a packet. What it shows is a part, whether or not it can be decoded."""
        import av

        arrived_ns = time.monotonic_ns()
        if self._needs_key and not packet.is_keyframe:
            self._unusable(packet, arrived_ns, _PREDICTED)
            return
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            self._needs_key = not self._intra_only
            self._unusable(packet, arrived_ns, f"does not decode: {error}")
            return
        for frame in frames:
            self._show(frame, arrived_ns)

    def _show(self, frame: Any, arrived_ns: int) -> None:
        camera_ns, frame_id = self._counted(frame.pts)
        if frame.key_frame and not frame.is_corrupt:
            self._needs_key = False
        elif frame.is_corrupt or self._gap:
            self._needs_key = not self._intra_only
        if frame.is_corrupt or self._needs_key:
            detail = "damaged on its way" if frame.is_corrupt else _PREDICTED
            self._decoded.append(Grabbed(None, arrived_ns, frame_id, camera_ns, Reason.BAD_IMAGE, detail))
            return
        pixels = frame.to_ndarray(format=self._format)
        image = pixels[..., None] if pixels.ndim == 2 else pixels
        self._decoded.append(Grabbed(image, arrived_ns, frame_id, camera_ns))

    def _unusable(self, packet: Any, arrived_ns: int, detail: str) -> None:
        camera_ns, frame_id = self._counted(packet.pts if packet.dts is None else packet.dts)
        self._decoded.append(Grabbed(None, arrived_ns, frame_id, camera_ns, Reason.BAD_IMAGE, detail))

    def _counted(self, at: int | None) -> tuple[int | None, int]:
        """Time and id of a frame that is `at` so many ticks of the stream's clock."""
        camera_ns = None if at is None or not self._tick_ns else round(at * self._tick_ns)
        before = self._count.last
        frame_id = self._count.next(camera_ns)
        self._gap = frame_id - before > 1
        return camera_ns, frame_id

    def _failed(self, what: str, error: Exception) -> SourceError:
        import av

        timed_out = isinstance(error, av.error.ExitError)  # how PyAV ends a call that takes too long
        why = "it does not answer" if timed_out else getattr(error, "strerror", None) or type(error).__name__
        return SourceError(f"{self._name}: {what}: {why}")


def without_credentials(address: str) -> str:
    """An address as it may be shown: without user and password."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
