"""The fields of a recipe that set up a camera: `[stations.source.camera]`. Names and units are those of GenICam's
Standard Features Naming Convention where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edge.section import Section

__all__ = ["CAMERA_KINDS", "CameraSettings", "Chunks", "Strobe", "Trigger"]

CAMERA_KINDS = ("genicam", "gentl", "rtsp", "v4l2")
"""Kinds of sources with a device behind them that may be away: their capture process is started again until it is
there, and the line goes on without it."""

_Feature = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


class Trigger(Section):
    """What exposes a frame."""

    kind: Literal["internal", "edge", "level"] = "internal"  # the camera's own rate; an edge; a level, which is exposed
    selector: _Feature = "FrameStart"  # edge, level: TriggerSelector
    source: _Feature = "Line1"  # edge, level: TriggerSource
    activation: Literal["rising", "falling", "both", "high", "low"] | None = None  # edge: rising; level: high
    delay_us: float = Field(default=0, ge=0, le=10_000_000)  # edge, level: TriggerDelay
    rate_hz: float | None = Field(default=None, gt=0, le=100_000)  # internal: AcquisitionFrameRate

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Trigger:
        allowed = {"internal": (), "edge": ("rising", "falling", "both"), "level": ("high", "low")}[self.kind]
        if self.activation is not None and self.activation not in allowed:
            raise ValueError(f'activation = "{self.activation}": with kind = "{self.kind}" it is one of {allowed}')
        if self.rate_hz is not None and self.kind != "internal":
            raise ValueError(f'rate_hz = {self.rate_hz}: only kind = "internal" has a rate of its own')
        return self


class Strobe(Section):
    """An output of the camera that switches the light."""

    line: _Feature  # LineSelector
    source: _Feature = "ExposureActive"  # LineSource
    inverted: bool = False  # LineInverter


class Chunks(Section):
    """What the camera adds to each frame, beside the frame's id and time."""

    trigger: _Feature | None = None  # a counter of the edges at the trigger's input, such as Counter0
    encoder: _Feature | None = None  # an encoder or counter, such as Encoder0 or Counter1


class CameraSettings(Section):
    """How the camera is set up. What is not named stays as the camera has it."""

    exposure_us: float | None = Field(default=None, gt=0, le=60_000_000)
    gain_db: float | None = Field(default=None, ge=-100, le=200)
    pixel_format: _Feature | None = None  # default: Mono8, Mono10, Mono12, Mono16 after the frame's bit depth
    offset_x_px: int = Field(default=0, ge=0, le=65535)  # of the frame on the sensor
    offset_y_px: int = Field(default=0, ge=0, le=65535)
    trigger: Trigger = Trigger()
    strobe: Strobe | None = None
    chunks: Chunks | None = None
    packet_bytes: Literal["auto"] | Annotated[int, Field(ge=576, le=16_384)] = "auto"  # GigE Vision
    resend: bool = True  # GigE Vision: lost packets are asked for again
    buffers: int = Field(default=16, ge=2, le=256)  # at 90 frames per second, those of 0.18 s
    features: dict[_Feature, bool | int | float | str] = Field(default_factory=dict)  # any others, set last
    producer: Path | None = None  # gentl: the GenTL producer, a .cti file
    simulated: bool = False  # this is no real camera, and verdicts say so

    @model_validator(mode="after")
    def _level_has_no_exposure(self) -> CameraSettings:
        if self.trigger.kind == "level" and self.exposure_us is not None:
            raise ValueError('exposure_us: with trigger.kind = "level" the trigger exposes for as long as it lasts')
        return self

    @property
    def imaging(self) -> dict[str, Any]:
        """The fields that change pixels: a calibration holds for these values only."""
        fields = ("exposure_us", "gain_db", "pixel_format", "offset_x_px", "offset_y_px", "features")
        return self.model_dump(mode="json", include=set(fields))
