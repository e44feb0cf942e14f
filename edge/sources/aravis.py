"""Aravis from Python: its import, the features of its cameras, the chunk data of its buffers."""

from __future__ import annotations

from typing import Any

from edge.errors import RecipeError
from edge.sources.camera_features import FeatureError, Value, chunk_counters
from edge.sources.camera_settings import CameraSettings

__all__ = ["AravisFeatures", "ChunkReader", "import_aravis"]


def import_aravis() -> tuple[Any, type[Any]]:
    """The module, and the error that it raises. Raises RecipeError that says what to install."""
    try:
        import gi

        gi.require_version("Aravis", "0.8")
        from gi.repository import Aravis, GLib
    except (ImportError, ValueError) as error:
        raise RecipeError(
            f'kind = "genicam" needs PyGObject and Aravis ({error}): apt install gir1.2-aravis-0.8 aravis-tools-cli '
            "libgirepository1.0-dev libcairo2-dev pkg-config gcc, then pip install 'maskline[gige]'"
        ) from error
    return Aravis, GLib.Error


class AravisFeatures:
    """The features of a camera; see `edge.sources.camera_features.Features`."""

    def __init__(self, aravis: Any, camera: Any, error: type[Any]) -> None:
        self._aravis, self._camera, self._device, self._error = aravis, camera, camera.get_device(), error

    def has(self, name: str) -> bool:
        """Whether the camera describes a feature of that name."""
        return self._device.get_feature(name) is not None

    def write(self, name: str, value: Value) -> None:
        """Raises FeatureError."""
        node, aravis, camera = self._device.get_feature(name), self._aravis, self._camera
        try:
            if isinstance(node, aravis.GcCommand):
                camera.execute_command(name)
            elif isinstance(node, aravis.GcBoolean):
                camera.set_boolean(name, bool(value))
            elif isinstance(node, aravis.GcString):  # enumerations too
                camera.set_string(name, str(value))
            elif isinstance(node, aravis.GcFloat):
                _require_bounds(float(value), *camera.get_float_bounds(name))
                camera.set_float(name, float(value))
            else:
                _require_bounds(float(value), *camera.get_integer_bounds(name))
                camera.set_integer(name, round(float(value)))
        except self._error as error:
            raise FeatureError(error.message) from error
        except ValueError as error:
            raise FeatureError("it is a number") from error

    def read(self, name: str) -> Value:
        """The value now; a command has none and reads as done. Raises FeatureError."""
        node, aravis, camera = self._device.get_feature(name), self._aravis, self._camera
        try:
            if isinstance(node, aravis.GcCommand):
                return True
            if isinstance(node, aravis.GcBoolean):
                return bool(camera.get_boolean(name))
            if isinstance(node, aravis.GcString):
                return str(camera.get_string(name))
            if isinstance(node, aravis.GcFloat):
                return float(camera.get_float(name))
            return int(camera.get_integer(name))
        except self._error as error:
            raise FeatureError(error.message) from error


def _require_bounds(value: float, low: float, high: float) -> None:
    """Aravis asks cameras for more than they allow unless it is told not to, and some then stop."""
    if low <= high and not low <= value <= high:
        raise FeatureError(f"it is between {low:g} and {high:g}")


class ChunkReader:
    """Reads from a buffer what the camera added to the frame."""

    def __init__(self, camera: Any, settings: CameraSettings, error: type[Any]) -> None:
        """For a camera that was set up. Raises `error`."""
        self._camera = camera
        self._wanted: list[tuple[str, str, str, str]] = []  # name in `read`, feature, selector, value of the selector
        self._selected: dict[str, str] = {}
        if settings.chunks is None:
            return
        self._parser = camera.create_chunk_parser()
        device = camera.get_device()
        for name, content in (("frame_id", "FrameID"), ("camera_ns", "Timestamp")):
            if device.get_feature(f"Chunk{content}") is not None and self._is_on(content, error):
                self._wanted.append((name, f"Chunk{content}", "", ""))
        for counter in chunk_counters(settings):
            selects = device.get_feature(counter.selector) is not None
            self._wanted.append((counter.key, counter.feature, counter.selector if selects else "", counter.name))
        hertz = "GevTimestampTickFrequency"
        frequency = camera.get_integer(hertz) if device.get_feature(hertz) is not None else 0
        self._tick_ns = 1e9 / frequency if frequency > 0 else 1.0

    def _is_on(self, content: str, error: type[Any]) -> bool:
        try:
            self._camera.set_string("ChunkSelector", content)
            return bool(self._camera.get_boolean("ChunkEnable"))
        except error:
            return False

    @property
    def has_frame_id(self) -> bool:
        """Whether frames are counted by their chunk data."""
        return any(name == "frame_id" for name, *_ in self._wanted)

    def read(self, buffer: Any) -> dict[str, int]:
        """What this camera sends of frame_id, camera_ns, trigger_id and count. Raises Aravis' error where it is not."""
        found: dict[str, int] = {}
        for name, feature, selector, value in self._wanted:
            if selector and self._selected.get(selector) != value:
                self._camera.set_string(selector, value)
                self._selected[selector] = value
            found[name] = int(self._parser.get_integer_value(buffer, feature))
        if "camera_ns" in found:
            found["camera_ns"] = round(found["camera_ns"] * self._tick_ns)
        return found
