"""A recipe's camera settings as features of GenICam, in the order in which a camera takes them. Pure but for `set_up`
and `warn_of_unnamed`.

Names are those of the Standard Features Naming Convention (SFNC 2.7), followed by the older ones that cameras still
have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from edge.errors import RecipeError
from edge.settings import Frame, Station
from edge.sources.camera_settings import CameraSettings, Chunks, Trigger

__all__ = [
    "SIMULATED_VENDORS",
    "ChunkCounter",
    "Feature",
    "FeatureError",
    "Features",
    "Value",
    "chunk_counters",
    "features_of",
    "pixel_format",
    "set_up",
    "unnamed",
    "warn_of_unnamed",
]

Value = bool | int | float | str

SIMULATED_VENDORS = ("Aravis", "Machine Vision Games Ltd.")
"""Of cameras that simulate: the one of Aravis, and EMVA's Viky."""

EXPOSURE, GAIN = ("ExposureTime", "ExposureTimeAbs"), ("Gain", "GainRaw")

ACTIVATIONS = {
    "rising": "RisingEdge",
    "falling": "FallingEdge",
    "both": "AnyEdge",
    "high": "LevelHigh",
    "low": "LevelLow",
}


class FeatureError(Exception):
    """The camera refuses a feature or a value; the message is the camera's."""


class Features(Protocol):
    """The features of an open camera."""

    def has(self, name: str) -> bool: ...

    def write(self, name: str, value: Value) -> None:
        """Raises FeatureError."""
        ...

    def read(self, name: str) -> Value:
        """Raises FeatureError."""
        ...


@dataclass(frozen=True)
class Feature:
    """One feature to set."""

    names: tuple[str, ...]  # the first of them that the camera has
    value: Value
    field: str  # of the recipe
    needed: bool = True  # False: a camera without it does what is meant anyway
    check: Literal["end", "now", "never"] = "now"  # when it is read back; "end": nothing that follows may move it


def pixel_format(camera: CameraSettings, frame: Frame) -> str:
    """The pixel format that the recipe names, or the grey one of the frame's bit depth. Raises RecipeError."""
    if camera.pixel_format:
        return camera.pixel_format
    if frame.channels == 1:
        return f"Mono{frame.bit_depth}"
    raise RecipeError(
        "source.camera.pixel_format: a frame of 3 channels needs one, such as BayerRG8 or RGB8; `arv-tool-0.8 -a "
        "ADDRESS features PixelFormat` lists what the camera has"
    )


def features_of(station: Station) -> list[Feature]:
    """What to set, in order. Raises RecipeError."""
    camera, frame = station.source.camera or CameraSettings(), station.frame
    return [
        Feature(("AcquisitionMode",), "Continuous", "kind", needed=False),
        Feature(("PixelFormat",), pixel_format(camera, frame), "camera.pixel_format", check="end"),
        Feature(("OffsetX",), 0, "camera.offset_x_px", needed=False, check="never"),  # or Width may not grow
        Feature(("OffsetY",), 0, "camera.offset_y_px", needed=False, check="never"),
        Feature(("Width",), frame.width_px, "frame.width_px", check="end"),
        Feature(("Height",), frame.height_px, "frame.height_px", check="end"),
        Feature(("OffsetX",), camera.offset_x_px, "camera.offset_x_px", needed=camera.offset_x_px > 0),
        Feature(("OffsetY",), camera.offset_y_px, "camera.offset_y_px", needed=camera.offset_y_px > 0),
        *_exposure(camera),
        *_trigger(camera.trigger),
        *_strobe(camera),
        *_chunks(camera),
        *(Feature((name,), value, f"camera.features.{name}") for name, value in camera.features.items()),
        *_trigger_counter(camera),
    ]


def _exposure(camera: CameraSettings) -> Iterator[Feature]:
    if camera.trigger.kind == "level":
        yield Feature(("ExposureMode",), "TriggerWidth", "camera.trigger.kind")
    elif camera.exposure_us is not None:
        yield Feature(("ExposureMode",), "Timed", "camera.exposure_us", needed=False)
        yield Feature(("ExposureAuto",), "Off", "camera.exposure_us", needed=False)
        yield Feature(EXPOSURE, camera.exposure_us, "camera.exposure_us", check="end")
    if camera.gain_db is not None:
        yield Feature(("GainAuto",), "Off", "camera.gain_db", needed=False)
        yield Feature(GAIN, camera.gain_db, "camera.gain_db", check="end")


def _trigger(trigger: Trigger) -> Iterator[Feature]:
    triggered = trigger.kind != "internal"
    yield Feature(("TriggerSelector",), trigger.selector, "camera.trigger.selector", needed=triggered, check="never")
    if not triggered:
        yield Feature(("TriggerMode",), "Off", "camera.trigger.kind", needed=False)
        if trigger.rate_hz is not None:
            yield Feature(("AcquisitionFrameRateEnable",), True, "camera.trigger.rate_hz", needed=False)
            rate = ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")
            yield Feature(rate, trigger.rate_hz, "camera.trigger.rate_hz")
        return
    yield Feature(("TriggerSource",), trigger.source, "camera.trigger.source")
    if trigger.source != "Software":
        yield Feature(("TriggerActivation",), _activation(trigger), "camera.trigger.activation")
    delay = ("TriggerDelay", "TriggerDelayAbs")
    yield Feature(delay, trigger.delay_us, "camera.trigger.delay_us", needed=trigger.delay_us > 0)
    yield Feature(("TriggerMode",), "On", "camera.trigger.kind")


def _activation(trigger: Trigger) -> str:
    return ACTIVATIONS[trigger.activation or ("high" if trigger.kind == "level" else "rising")]


def _strobe(camera: CameraSettings) -> Iterator[Feature]:
    if camera.strobe is None:
        return
    yield Feature(("LineSelector",), camera.strobe.line, "camera.strobe.line", check="never")
    yield Feature(("LineMode",), "Output", "camera.strobe.line", needed=False)  # some lines are never anything else
    yield Feature(("LineSource",), camera.strobe.source, "camera.strobe.source")
    yield Feature(("LineInverter",), camera.strobe.inverted, "camera.strobe.inverted", needed=camera.strobe.inverted)


def _chunks(camera: CameraSettings) -> Iterator[Feature]:
    chunks = camera.chunks
    if chunks is None:
        return
    yield Feature(("ChunkModeActive",), True, "camera.chunks")
    for content in ("FrameID", "Timestamp"):  # without these chunks the frame's own id and time are used
        yield Feature(("ChunkSelector",), content, "camera.chunks", needed=False, check="never")
        yield Feature(("ChunkEnable",), True, "camera.chunks", needed=False, check="never")
    if chunks.trigger:
        trigger, field = camera.trigger, "camera.chunks.trigger"
        yield Feature(("CounterSelector",), chunks.trigger, field, check="never")
        if trigger.kind != "internal":
            yield Feature(("CounterEventSource",), trigger.source, field)
            yield Feature(("CounterEventActivation",), _activation(trigger), field, needed=False)
        yield Feature(("ChunkSelector",), "CounterValue", field, check="never")
        yield Feature(("ChunkEnable",), True, field)
    if chunks.encoder:
        content = "EncoderValue" if chunks.encoder.startswith("Encoder") else "CounterValue"
        yield Feature(("ChunkSelector",), content, "camera.chunks.encoder", check="never")
        yield Feature(("ChunkEnable",), True, "camera.chunks.encoder")


def _trigger_counter(camera: CameraSettings) -> Iterator[Feature]:
    """Once more, and last: `CounterValue` is of the counter that was selected last, and `features` may set up others.
    Nothing selects one after this, so that reading the counter of triggers stays one register."""
    if camera.chunks and camera.chunks.trigger:
        yield Feature(("CounterSelector",), camera.chunks.trigger, "camera.chunks.trigger", check="end")


@dataclass(frozen=True)
class ChunkCounter:
    """Where a counter of the recipe stands in the chunk data."""

    key: Literal["trigger_id", "count"]  # of `Grabbed`
    feature: str
    selector: str
    name: str


def chunk_counters(camera: CameraSettings) -> list[ChunkCounter]:
    """The counters that the recipe names."""
    chunks = camera.chunks or Chunks()
    named: list[tuple[Literal["trigger_id", "count"], str | None]] = [
        ("trigger_id", chunks.trigger),
        ("count", chunks.encoder),
    ]
    return [
        ChunkCounter(key, f"Chunk{kind}Value", f"Chunk{kind}Selector", name)
        for key, name in named
        if name
        for kind in ["Encoder" if name.startswith("Encoder") else "Counter"]
    ]


def unnamed(camera: Features, settings: CameraSettings) -> dict[str, Value]:
    """What of exposure and gain the recipe does not name, as the camera has it: the calibration's hash lacks it."""
    named = set(settings.features)
    if settings.exposure_us is not None or settings.trigger.kind == "level":  # level: each pulse says how long
        named.update(("ExposureAuto", *EXPOSURE))
    if settings.gain_db is not None:
        named.update(("GainAuto", *GAIN))
    found: dict[str, Value] = {}
    for names in (("ExposureAuto",), EXPOSURE, ("GainAuto",), GAIN):
        name = next((n for n in names if camera.has(n)), None)
        if name and named.isdisjoint(names):
            with contextlib.suppress(FeatureError):  # described, and not there as the camera is set up
                found[name] = camera.read(name)
    return found


def warn_of_unnamed(camera: Features, station: Station) -> None:
    """Log what `unnamed` finds: who changes it at the camera changes the pixels under a calibration that goes on."""
    if found := unnamed(camera, station.source.camera or CameraSettings()):
        structlog.get_logger().warning("imaging_not_in_recipe", station=station.name, found=found)


def set_up(camera: Features, features: list[Feature], where: str) -> None:
    """Set the features of an open camera, and read them back: what a camera rounds by more than 5 % it does not do.

    Raises RecipeError, which names the camera, the field of the recipe, the feature, the value and what the camera
    says.
    """
    checks: dict[str, Feature] = {}
    for feature in features:
        name = next((n for n in feature.names if camera.has(n)), None)
        if name is None:
            if feature.needed:
                raise RecipeError(
                    f"{where}: source.{feature.field}: this camera has no feature {' or '.join(feature.names)}; "
                    "`arv-tool-0.8 -a ADDRESS features` lists what it has"
                )
            continue
        try:
            camera.write(name, feature.value)
        except FeatureError as error:
            if feature.needed:
                raise _refused(where, feature, name, str(error)) from error
            continue
        if feature.check == "now":
            _check(camera, where, feature, name)
        elif feature.check == "end":
            checks[name] = feature
    for name, feature in checks.items():
        _check(camera, where, feature, name)


def _check(camera: Features, where: str, feature: Feature, name: str) -> None:
    try:
        found = camera.read(name)
    except FeatureError as error:
        raise _refused(where, feature, name, str(error)) from error
    if not _same(feature.value, found):
        raise _refused(where, feature, name, f"it stays at {found!r}")


def _refused(where: str, feature: Feature, name: str, why: str) -> RecipeError:
    return RecipeError(
        f"{where}: source.{feature.field}: the camera does not take {name} = {feature.value!r}: {why}; "
        f"`arv-tool-0.8 -a ADDRESS features {name}` says what it allows"
    )


def _same(wanted: Value, found: Value) -> bool:
    if isinstance(wanted, (bool, str)) or isinstance(found, str):
        return wanted == found
    return abs(wanted - found) <= max(0.05 * abs(wanted), 0.1)
