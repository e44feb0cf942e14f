"""GigE Vision and USB3 Vision cameras through Aravis (extra `gige`, and Debian's gir1.2-aravis-0.8).

Aravis receives in a thread of its own, into buffers that are ours: no copy on the way. A buffer is given back with the
next grab, when capture has copied its image into a slot.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MasklineError, RecipeError, SourceError
from edge.settings import Station
from edge.sources.aravis import AravisFeatures, ChunkReader, import_aravis
from edge.sources.camera import Grabbed
from edge.sources.camera_features import SIMULATED_VENDORS, features_of, pixel_format, set_up, warn_of_unnamed
from edge.sources.camera_settings import CameraSettings
from edge.sources.frame_ids import FrameIds
from edge.sources.pixels import Pixels
from edge.verdict import Reason

__all__ = ["GenicamCamera"]

UNSET = (1 << 64) - 1
"""The frame id of a buffer before it is filled. Where the first packet of a frame is lost, Aravis leaves there the id
of the frame that the buffer held before."""

HEADERS_BYTES, EXTENDED_BYTES = 20 + 8 + 8, 12
"""IP, UDP and GVSP in every packet; and what GVSP adds with frame ids of 64 bits."""

MARK_BYTES = 8

RETENTION_US = 100_000
"""So long a frame waits for its last packets, and all that follow wait behind it: the buffers must last."""


class GenicamCamera:
    """One camera; see `edge.sources.camera.Camera` and `CountsTriggers`."""

    def __init__(self, station: Station) -> None:
        """Open, set up, start. Raises SourceError when it cannot be reached, RecipeError when it does not take the
        recipe's settings, or PyGObject or Aravis are not installed."""
        self._aravis, self._error = import_aravis()
        self._settings = station.source.camera or CameraSettings()
        self._where = f"station {station.name}: camera {station.source.address}"
        self._pixels = Pixels(pixel_format(self._settings, station.frame), station.frame)
        self._ids = FrameIds()
        self._lost = False
        self._held: Any = None  # the buffer whose image is in use
        self._camera: Any = None
        self._stream: Any = None
        self._chunks: Any = None
        self._memory: dict[Any, NDArray[np.uint8]] = {}  # of each buffer
        try:
            self._camera = self._aravis.Camera.new(station.source.address)
        except self._error as error:
            raise SourceError(
                f"{self._where}: cannot be opened: {error.message}. Is it powered, is it in this network, does another "
                "program hold it? `arv-tool-0.8` lists the cameras that can be seen"
            ) from error
        self._on_lost_id = self._camera.get_device().connect("control-lost", self._on_lost)
        try:
            self._require_control()
            self._require_honest()
            self._set_up(station)
            self._start()
        except self._error as error:
            self.close()
            raise SourceError(f"{self._where}: {error.message}") from error
        except MasklineError:
            self.close()
            raise

    def grab(self, timeout_s: float) -> Grabbed | None:
        """The next frame, or None when none came in time. Raises SourceError when the camera is gone."""
        if self._held is not None:
            self._give_back(self._held)
            self._held = None
        buffer = self._stream.timeout_pop_buffer(max(1, round(timeout_s * 1e6)))
        if buffer is None:
            if self._lost:
                raise SourceError(f"{self._where}: is gone: it answers no more, or another program has taken it")
            return None
        arrived_ns, self._held = time.monotonic_ns(), buffer
        image, reason, detail = self._image(buffer)
        if reason is Reason.BAD_IMAGE:  # times and chunks may be of another frame
            frame_id = None if self._chunks.has_frame_id else self._frame_id(buffer)
            return Grabbed(None, arrived_ns, frame_id, reason=reason, detail=detail)
        try:
            chunks = self._chunks.read(buffer)
        except self._error as error:
            raise SourceError(f"{self._where}: a frame without its chunk data: {error.message}") from error
        return Grabbed(
            image,
            arrived_ns,
            self._ids.unwrap(chunks.get("frame_id", buffer.get_frame_id())),
            chunks.get("camera_ns", buffer.get_timestamp()) or None,  # 0: a camera without a clock
            reason,
            detail,
            chunks.get("trigger_id"),
            chunks.get("count"),
        )

    def triggers(self) -> int | None:
        """The camera's counter of trigger edges; None if the recipe names none. Raises SourceError."""
        if self._settings.chunks is None or self._settings.chunks.trigger is None:
            return None
        try:
            return int(self._camera.get_integer("CounterValue"))  # `set_up` selected the counter last of all
        except self._error as error:
            raise SourceError(f"{self._where}: its trigger counter cannot be read: {error.message}") from error

    def close(self) -> None:
        """Stop the camera and let go of it, so that it can be opened again. One that is gone takes Aravis 5 s."""
        device = self._camera.get_device()
        device.disconnect(self._on_lost_id)
        with contextlib.suppress(self._error):
            if not self._lost and self._is_ours():
                self._camera.stop_acquisition()
                if self._camera.is_gv_device():
                    device.leave_control()
        self._held = self._stream = self._chunks = self._camera = None
        self._memory = {}

    def _on_lost(self, *_: Any) -> None:
        self._lost = True  # said by Aravis' heartbeat, in a thread of its own

    def _require_honest(self) -> None:
        """A simulated camera gives simulated verdicts, and what verdicts say stands in the recipe."""
        if self._camera.get_vendor_name() in SIMULATED_VENDORS and not self._settings.simulated:
            raise RecipeError(f"{self._where}: is Aravis' simulated camera; say so: source.camera.simulated = true")

    def _is_ours(self) -> bool:
        return not self._camera.is_gv_device() or self._camera.get_device().is_controller()

    def _require_control(self) -> None:
        if not self._is_ours():
            raise SourceError(f"{self._where}: another program holds this camera; end that one first")

    def _set_up(self, station: Station) -> None:
        self._camera.clear_triggers()
        features = AravisFeatures(self._aravis, self._camera, self._error)
        set_up(features, features_of(station), self._where)
        warn_of_unnamed(features, station)
        if not self._camera.is_gv_device():
            return
        if self._settings.packet_bytes == "auto":
            self._camera.gv_auto_packet_size()
        else:
            self._camera.gv_set_packet_size(self._settings.packet_bytes)

    def _start(self) -> None:
        if self._camera.is_gv_device():  # Aravis' packet socket takes all traffic for frames until its filter is set
            self._camera.gv_set_stream_options(self._aravis.GvStreamOption.PACKET_SOCKET_DISABLED)
        self._stream = self._camera.create_stream(None, None)
        self._packet_bytes = 0  # of the frame, in each packet
        if self._camera.is_gv_device():
            resend = self._aravis.GvStreamPacketResend
            self._stream.set_property("packet-resend", resend.ALWAYS if self._settings.resend else resend.NEVER)
            self._stream.set_property("frame-retention", RETENTION_US)
            extended = "GevGVSPExtendedIDMode"
            wide = self._camera.is_feature_available(extended) and self._camera.get_string(extended) == "On"
            self._packet_bytes = self._camera.gv_get_packet_size() - HEADERS_BYTES - (EXTENDED_BYTES if wide else 0)
        nbytes = self._camera.get_payload()
        if nbytes < self._pixels.nbytes:
            raise SourceError(f"{self._where}: sends {nbytes} bytes per frame; the recipe's have {self._pixels.nbytes}")
        self._chunks = ChunkReader(self._camera, self._settings, self._error)
        self._mark = np.frombuffer(np.random.default_rng().bytes(MARK_BYTES), np.uint8)
        for _ in range(self._settings.buffers):
            memory = np.zeros(nbytes, np.uint8)
            buffer = self._aravis.Buffer.new(nbytes, memory.ctypes.data)
            self._memory[buffer] = memory
            self._give_back(buffer)
        self._camera.start_acquisition()

    def _give_back(self, buffer: Any) -> None:
        buffer.set_frame_id(UNSET)
        if self._packet_bytes:
            self._packets(buffer)[:] = self._mark
        self._stream.push_buffer(buffer)

    def _packets(self, buffer: Any) -> NDArray[np.uint8]:
        """The first bytes of what each packet brings, [N, MARK_BYTES]: marked before, and where the mark is still
        there, the packet did not come. (Aravis counts all packets after a gap as missing.)"""
        memory, size = self._memory[buffer], self._packet_bytes
        count = (len(memory) - MARK_BYTES) // size + 1
        return np.lib.stride_tricks.as_strided(memory, (count, MARK_BYTES), (size, 1))

    def _missing(self, buffer: Any) -> str:
        """How many packets of a frame are missing; empty where a camera sends none."""
        if not self._packet_bytes:
            return ""
        packets = self._packets(buffer)
        pixels, leader = int((packets == self._mark).all(1).sum()), int(buffer.get_frame_id() == UNSET)
        missing = pixels + leader or 1  # or it is the last packet, which says that the frame is over
        return f"{missing} of {len(packets) + 2} packets are missing"

    def _frame_id(self, buffer: Any) -> int | None:
        frame_id = buffer.get_frame_id()
        return None if frame_id == UNSET else self._ids.unwrap(frame_id)

    def _image(self, buffer: Any) -> tuple[NDArray[Any] | None, Reason | None, str]:
        """The image in a buffer, or why there is none."""
        status = buffer.get_status()
        if status != self._aravis.BufferStatus.SUCCESS:
            missing = self._missing(buffer) or f"the frame is not whole ({status.value_nick})"
            return None, Reason.BAD_IMAGE, missing
        code, region = buffer.get_image_pixel_format(), buffer.get_image_region()
        if code != self._pixels.code:
            return None, Reason.WRONG_SIZE, f"pixels of format {code:#010x}; the recipe's are {self._pixels.name}"
        if (region.width, region.height) != self._pixels.size_px:
            return (
                None,
                Reason.WRONG_SIZE,
                f"{region.width} x {region.height} px; the recipe says {self._pixels.size_px}",
            )
        return self._pixels.image(self._memory[buffer], buffer.get_image_padding().x_padding), None, ""
