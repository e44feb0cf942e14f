"""Cameras behind a vendor's GenTL producer, through harvesters (extra `gige`): frame grabbers, CoaXPress, Camera Link.

Tested with producers that simulate (EMVA's Viky, which comes with harvesters), and with none that has a device.
harvesters throws away a frame that is not whole, without saying whose it was or what was missing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edge.errors import MasklineError, RecipeError, SourceError
from edge.settings import Station
from edge.sources.camera import Grabbed
from edge.sources.camera_features import (
    SIMULATED_VENDORS,
    FeatureError,
    Value,
    chunk_counters,
    features_of,
    pixel_format,
    set_up,
    warn_of_unnamed,
)
from edge.sources.camera_settings import CameraSettings
from edge.sources.frame_ids import FrameIds
from edge.sources.pixels import Pixels
from edge.verdict import Reason

__all__ = ["GentlCamera"]

WAIT_MS = 10
"""harvesters asks the producer again so often."""

PROBE_NS = 2_000_000_000
"""A producer need not say that its camera is gone: after so long a silence it is asked for its width."""


class GentlCamera:
    """One camera; see `edge.sources.camera.Camera` and `CountsTriggers`."""

    def __init__(self, station: Station) -> None:
        """Open, set up, start. Raises SourceError when it cannot be reached, RecipeError when the producer cannot be
        loaded, the camera does not take the recipe's settings, or harvesters is not installed."""
        self._settings = station.source.camera or CameraSettings()
        self._where = f"station {station.name}: camera {station.source.address}"
        self._pixels = Pixels(pixel_format(self._settings, station.frame), station.frame)
        self._ids = FrameIds()
        self._broken = 0  # frames that were not whole, and that nobody was told of
        self._heard_ns = time.monotonic_ns()
        self._held: Any = None  # the buffer whose image is in use
        self._camera: Any
        self._camera = None
        self._harvester, self._errors = _load(self._settings, self._where)
        try:
            self._open(str(station.source.address))
            nodes = self._camera.remote_device.node_map
            features = _Nodes(nodes, self._errors)
            set_up(features, features_of(station), self._where)
            warn_of_unnamed(features, station)
            self._nodes, self._chunks = nodes, chunk_counters(self._settings)
            self._camera.num_buffers = max(self._camera.min_num_buffers, self._settings.buffers)
            self._camera.timeout_period_on_update_event_data_call = WAIT_MS
            self._camera.add_callback(self._camera.Events.INCOMPLETE_BUFFER, _callback(self._throws_away))
            self._camera.start()
        except self._errors as error:
            self.close()
            raise SourceError(f"{self._where}: {error}") from error
        except MasklineError:
            self.close()
            raise

    def grab(self, timeout_s: float) -> Grabbed | None:
        """The next frame, or None when none came in time. Raises SourceError when the camera is gone."""
        if self._broken == 0:
            try:
                self._give_back()
                buffer = self._camera.try_fetch(timeout=max(timeout_s, 0.001), is_raw=True)
                if buffer is not None:
                    return self._take(buffer)
                self._probe()
            except self._errors as error:
                raise SourceError(f"{self._where}: is gone: {error}") from error
        if self._broken == 0:
            return None
        self._broken -= 1
        return Grabbed(None, time.monotonic_ns(), reason=Reason.BAD_IMAGE, detail="the frame is not whole")

    def triggers(self) -> int | None:
        """The camera's counter of trigger edges; None if the recipe names none. Raises SourceError."""
        if self._settings.chunks is None or self._settings.chunks.trigger is None:
            return None
        try:
            return int(self._nodes.get_node("CounterValue").value)  # `set_up` selected the counter last of all
        except self._errors as error:
            raise SourceError(f"{self._where}: its trigger counter cannot be read: {error}") from error

    def close(self) -> None:
        """Stop the camera and unload the producer."""
        with contextlib.suppress(self._errors):
            if self._camera is not None:
                self._give_back()
                self._camera.destroy()
            self._harvester.reset()

    def _give_back(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            held.parent.queue_buffer(held)

    def _throws_away(self) -> None:
        self._broken += 1

    def _open(self, address: str) -> None:
        self._harvester.update()
        found = self._harvester.device_info_list
        names = [[_said(d, key, self._errors) for key in ("id_", "serial_number", "user_defined_name")] for d in found]
        match = [d for d, known in zip(found, names, strict=True) if address in known]
        if len(match) != 1:
            seen = ", ".join(str(id_) for id_, *_ in names) or "none"
            what = "several cameras have" if match else "no camera has"
            raise SourceError(
                f"{self._where}: {what} this id, serial number or user-defined name; the producer sees: {seen}. Is it "
                "powered and connected, does another program hold it?"
            )
        if _said(match[0], "vendor", self._errors) in SIMULATED_VENDORS and not self._settings.simulated:
            raise RecipeError(f"{self._where}: is a simulated camera; say so: source.camera.simulated = true")
        self._camera = self._harvester.create(match[0])

    def _take(self, buffer: Any) -> Grabbed:
        self._held, self._heard_ns = buffer, time.monotonic_ns()
        reason, detail, padding = self._what_is_wrong(buffer)
        image = None
        if reason is None:  # these bytes are no copy: they change when the buffer is given back
            image = self._pixels.image(np.frombuffer(buffer.raw_buffer, np.uint8)[int(buffer.image_offset) :], padding)
        chunks = self._read_chunks()
        return Grabbed(
            image,
            self._heard_ns,
            self._ids.unwrap(int(buffer.frame_id)),
            _camera_ns(buffer, self._errors),
            reason,
            detail,
            chunks.get("trigger_id"),
            chunks.get("count"),
        )

    def _read_chunks(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for counter in self._chunks:
            if self._nodes.has_node(counter.selector):
                self._nodes.get_node(counter.selector).value = counter.name
            found[counter.key] = int(self._nodes.get_node(counter.feature).value)
        return found

    def _what_is_wrong(self, buffer: Any) -> tuple[Reason | None, str, int]:
        """Why a whole buffer holds no image of the recipe's frame, and the padding of its rows [bytes]."""
        try:
            size, code, padding = (buffer.width, buffer.height), buffer.pixel_format, int(buffer.padding_x)
        except self._errors as error:
            return Reason.WRONG_SIZE, f"a payload without a single image: {error}", 0
        if code != self._pixels.code:
            return Reason.WRONG_SIZE, f"pixels of format {code:#010x}; the recipe's are {self._pixels.name}", 0
        if size != self._pixels.size_px:
            return Reason.WRONG_SIZE, f"{size[0]} x {size[1]} px; the recipe says {self._pixels.size_px}", 0
        return None, "", padding

    def _probe(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._heard_ns > PROBE_NS:
            self._heard_ns = now_ns
            width = self._nodes.get_node("Width")
            width.node.invalidate_node()  # or its cached value answers
            _ = width.value


def _load(settings: CameraSettings, where: str) -> tuple[Any, Any]:
    """Load the producer; returns it and the errors that harvesters and GenICam raise. Raises RecipeError."""
    try:
        from genicam.genapi import GenericException as NodeError
        from genicam.gentl import GenericException as ProducerError
        from harvesters.core import Harvester
    except ImportError as error:
        raise RecipeError(f"kind = \"gentl\" needs harvesters ({error}): pip install 'maskline[gige]'") from error
    logging.getLogger("harvesters").setLevel(logging.CRITICAL)  # what it logs comes as an error as well
    harvester = Harvester()
    try:
        harvester.add_file(str(settings.producer), check_existence=True, check_validity=True)
    except (OSError, ProducerError) as error:
        raise RecipeError(
            f"{where}: source.camera.producer = {str(settings.producer)!r}: cannot be loaded as a GenTL producer: "
            f"{error}"
        ) from error
    return harvester, (NodeError, ProducerError, ValueError, OSError)


def _said(device: Any, key: str, errors: Any) -> str:
    """What a producer says of a device; a field that it does not know is empty."""
    try:
        return str(getattr(device, key))
    except errors:
        return ""


def _callback(call: Callable[[], None]) -> Any:
    from harvesters.core import Callback

    class Call(Callback):  # type: ignore[misc]
        def emit(self, context: object = None) -> None:
            call()

    return Call()


def _camera_ns(buffer: Any, errors: Any) -> int | None:
    try:
        return int(buffer.timestamp_ns) or None
    except errors:
        return None  # a producer that knows no unit for its time knows no time


class _Nodes:
    """The features of a camera; see `edge.sources.camera_features.Features`."""

    def __init__(self, nodes: Any, errors: Any) -> None:
        self._nodes, self._errors = nodes, (*errors, TypeError)

    def has(self, name: str) -> bool:
        """Whether the camera describes a feature of that name."""
        return bool(self._nodes.has_node(name))

    def write(self, name: str, value: Value) -> None:
        """Raises FeatureError."""
        try:
            node = self._nodes.get_node(name)
            kind = type(node).__name__
            if kind == "ICommand":
                node.execute()
            else:
                convert: type[Any] = {"IInteger": int, "IFloat": float, "IBoolean": bool}.get(kind, str)
                node.value = convert(value)
        except self._errors as error:
            raise FeatureError(str(error)) from error

    def read(self, name: str) -> Value:
        """The value now; a command has none and reads as done. Raises FeatureError."""
        try:
            node = self._nodes.get_node(name)
            value: Value = True if type(node).__name__ == "ICommand" else node.value
            return value
        except self._errors as error:
            raise FeatureError(str(error)) from error
