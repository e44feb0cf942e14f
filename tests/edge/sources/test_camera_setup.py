"""What a recipe says of a camera: its fields, their features, pixels, frame ids, and the calibration's hash."""

from __future__ import annotations

import hashlib
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import structlog
from pydantic import ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from edge.errors import RecipeError
from edge.settings import Frame, Recipe, Source, Station, scoring_sha256
from edge.sources.aravis import ChunkReader
from edge.sources.camera_features import (
    FeatureError,
    Value,
    chunk_counters,
    features_of,
    pixel_format,
    set_up,
    unnamed,
    warn_of_unnamed,
)
from edge.sources.camera_settings import CameraSettings, Chunks
from edge.sources.frame_ids import FrameIds
from edge.sources.pixels import PFNC, Pixels


def station(source: dict[str, Any] | None = None, frame: dict[str, Any] | None = None, **camera: Any) -> Station:
    fields = {"kind": "genicam", "address": "192.0.2.1", "camera": camera, **(source or {})}
    size = {"width_px": 64, "height_px": 48, **(frame or {})}
    return Station.model_validate({"name": "top", "bundle": "marker", "frame": size, "source": fields})


class Nodes:
    """A camera's features as a dictionary; it remembers what was written, selectors included."""

    def __init__(self, **there: Value) -> None:
        self.there, self.written = dict(there), list[tuple[str, Value]]()

    def has(self, name: str) -> bool:
        return name in self.there

    def write(self, name: str, value: Value) -> None:
        self.written.append((name, value))
        if isinstance(value, str) != isinstance(self.there[name], str):
            raise FeatureError("another type")
        self.there[name] = value

    def read(self, name: str) -> Value:
        return self.there[name]


BASICS: dict[str, Value] = {"PixelFormat": "", "Width": 0, "Height": 0}


def written(settings: Station, **more: Value) -> list[tuple[str, Value]]:
    camera = Nodes(**BASICS, **more)
    set_up(camera, features_of(settings), "camera x")
    return camera.written


def test_a_camera_is_set_up_in_an_order_in_which_it_can_follow() -> None:
    found = written(station(offset_x_px=8), OffsetX=3, OffsetY=3, AcquisitionMode="")
    assert found == [
        ("AcquisitionMode", "Continuous"),
        ("PixelFormat", "Mono8"),
        ("OffsetX", 0),
        ("OffsetY", 0),
        ("Width", 64),
        ("Height", 48),
        ("OffsetX", 8),
        ("OffsetY", 0),
    ]


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        ({"kind": "internal"}, [("TriggerSelector", "FrameStart"), ("TriggerMode", "Off")]),
        (
            {"kind": "edge", "source": "Line3", "delay_us": 50},
            [
                ("TriggerSelector", "FrameStart"),
                ("TriggerSource", "Line3"),
                ("TriggerActivation", "RisingEdge"),
                ("TriggerDelay", 50),
                ("TriggerMode", "On"),
            ],
        ),
        (
            {"kind": "level", "selector": "ExposureActive", "activation": "low"},
            [
                ("ExposureMode", "TriggerWidth"),
                ("TriggerSelector", "ExposureActive"),
                ("TriggerSource", "Line1"),
                ("TriggerActivation", "LevelLow"),
                ("TriggerDelay", 0),
                ("TriggerMode", "On"),
            ],
        ),
    ],
)
def test_the_vocabulary_of_triggers(trigger: dict[str, Any], expected: list[tuple[str, Value]]) -> None:
    names = {"TriggerSelector": "", "TriggerMode": "", "TriggerSource": "", "TriggerActivation": "", "ExposureMode": ""}
    found = written(station(trigger=trigger), TriggerDelay=0.0, **names)
    assert [f for f in found if f[0].startswith(("Trigger", "ExposureMode"))] == expected


def test_older_names_are_found_and_automatics_are_switched_off() -> None:
    found = written(
        station(exposure_us=900, gain_db=6, trigger={"rate_hz": 30}),
        ExposureTimeAbs=0.0,
        ExposureAuto="Continuous",
        GainRaw=0,
        GainAuto="Continuous",
        AcquisitionFrameRateAbs=0.0,
    )
    assert found[3:] == [
        ("ExposureAuto", "Off"),
        ("ExposureTimeAbs", 900),
        ("GainAuto", "Off"),
        ("GainRaw", 6),
        ("AcquisitionFrameRateAbs", 30),
    ]


def test_a_strobe_is_an_output_line() -> None:
    found = written(station(strobe={"line": "Line2"}), LineSelector="", LineMode="", LineSource="", LineInverter=True)
    assert found[3:] == [
        ("LineSelector", "Line2"),
        ("LineMode", "Output"),
        ("LineSource", "ExposureActive"),
        ("LineInverter", False),
    ]


def test_chunks_bring_a_counter_of_the_trigger_and_the_encoder() -> None:
    settings = station(
        {"triggers": "independent"},
        trigger={"kind": "edge", "source": "Line1"},
        chunks={"trigger": "Counter0", "encoder": "Encoder0"},
    )
    features = [(f.names[0], f.value) for f in features_of(settings)]
    assert features[-8:] == [
        ("CounterSelector", "Counter0"),
        ("CounterEventSource", "Line1"),
        ("CounterEventActivation", "RisingEdge"),
        ("ChunkSelector", "CounterValue"),
        ("ChunkEnable", True),
        ("ChunkSelector", "EncoderValue"),
        ("ChunkEnable", True),
        ("CounterSelector", "Counter0"),
    ]
    assert settings.source.camera is not None
    assert [(c.key, c.feature, c.selector, c.name) for c in chunk_counters(settings.source.camera)] == [
        ("trigger_id", "ChunkCounterValue", "ChunkCounterSelector", "Counter0"),
        ("count", "ChunkEncoderValue", "ChunkEncoderSelector", "Encoder0"),
    ]


ENCODER_IN_COUNTER1 = {
    "trigger": {"kind": "edge", "source": "Line1"},
    "chunks": {"trigger": "Counter0", "encoder": "Counter1"},
    "features": {"CounterSelector": "Counter1", "CounterEventSource": "Encoder0"},
}
COUNTERS: dict[str, Value] = {
    **{"CounterSelector": "", "CounterEventSource": "", "ChunkModeActive": False, "ChunkSelector": ""},
    **{"ChunkEnable": False, "TriggerSelector": "", "TriggerMode": "", "TriggerSource": "", "TriggerActivation": ""},
}


def test_the_trigger_s_counter_is_selected_after_others_were_set_up() -> None:
    """What is read as `CounterValue` then is the triggers, and not the encoder."""
    found = written(station({"triggers": "independent"}, **ENCODER_IN_COUNTER1), **COUNTERS)
    selected, source_of = "", dict[Value, Value]()
    for name, value in found:
        if name == "CounterSelector":
            selected = str(value)
        elif name == "CounterEventSource":
            source_of[selected] = value
    assert source_of == {"Counter0": "Line1", "Counter1": "Encoder0"}
    assert selected == "Counter0"


def test_a_camera_that_does_not_go_back_to_the_trigger_s_counter_is_refused() -> None:
    class Stays(Nodes):
        def write(self, name: str, value: Value) -> None:
            if (name, self.there[name]) != ("CounterSelector", "Counter1"):
                super().write(name, value)

    settings = station({"triggers": "independent"}, **ENCODER_IN_COUNTER1)
    with pytest.raises(RecipeError, match=r"camera\.chunks\.trigger: .* CounterSelector = 'Counter0'.*'Counter1'"):
        set_up(Stays(**BASICS, **COUNTERS), features_of(settings), "camera x")


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        ({}, {"ExposureAuto": "Continuous", "ExposureTimeAbs": 900.0, "GainAuto": "Once", "Gain": 3.0}),
        ({"exposure_us": 900}, {"GainAuto": "Once", "Gain": 3.0}),
        ({"gain_db": 3}, {"ExposureAuto": "Continuous", "ExposureTimeAbs": 900.0}),
        ({"exposure_us": 900, "gain_db": 3}, {}),
        ({"trigger": {"kind": "level"}, "gain_db": 3}, {}),
        (
            {"gain_db": 3, "features": {"ExposureTimeAbs": 900, "ExposureMode": "Timed"}},
            {"ExposureAuto": "Continuous"},
        ),
    ],
)
def test_what_of_exposure_and_gain_no_recipe_names_is_said(camera: dict[str, Any], expected: dict[str, Value]) -> None:
    settings = station(**camera)
    there = Nodes(**BASICS, ExposureAuto="Continuous", ExposureTimeAbs=900.0, GainAuto="Once", Gain=3.0, GainRaw=30)
    with structlog.testing.capture_logs() as logs:
        warn_of_unnamed(there, settings)
    assert logs == [
        {"event": "imaging_not_in_recipe", "log_level": "warning", "station": "top", "found": expected}
    ] * bool(expected)


def test_a_feature_that_is_described_and_cannot_be_read_is_left_out() -> None:
    class Unavailable(Nodes):
        def read(self, name: str) -> Value:
            raise FeatureError("not available")

    assert unnamed(Unavailable(Gain=3.0), CameraSettings()) == {}


def test_what_a_camera_rounds_a_little_is_taken_and_what_it_ignores_is_not() -> None:
    class Rounding(Nodes):
        def read(self, name: str) -> Value:
            return {"ExposureTime": 1010.0, "Gain": 0.0}.get(name, self.there[name])

    set_up(Rounding(**BASICS, ExposureTime=0.0), features_of(station(exposure_us=1000)), "camera x")
    with pytest.raises(RecipeError, match=r"camera x: source\.camera\.gain_db: .* Gain = 6.0: it stays at 0.0"):
        set_up(Rounding(**BASICS, Gain=0.0), features_of(station(gain_db=6)), "camera x")


def test_a_selected_feature_is_read_back_at_once() -> None:
    class Deaf(Nodes):
        def write(self, name: str, value: Value) -> None:
            if name != "LineSource":
                super().write(name, value)

    lines: dict[str, Value] = {"LineSelector": "", "LineMode": "", "LineSource": "Off", "LineInverter": False}
    with pytest.raises(
        RecipeError, match=r"camera\.strobe\.source: .* LineSource = 'ExposureActive': it stays at 'Off'"
    ):
        set_up(Deaf(**BASICS, **lines), features_of(station(strobe={"line": "Line2"})), "camera x")


def test_a_feature_that_moves_what_was_set_before_is_found() -> None:
    class Clipping(Nodes):
        def write(self, name: str, value: Value) -> None:
            super().write(name, value)
            if name == "Binning":
                self.there["Width"] = 32

    with pytest.raises(RecipeError, match=r"frame\.width_px: .* Width = 64: it stays at 32"):
        set_up(Clipping(**BASICS, Binning=1), features_of(station(features={"Binning": 2})), "camera x")


@pytest.mark.parametrize(
    ("source", "camera", "message"),
    [
        ({"address": None}, {}, "need an address"),
        ({"kind": "marker"}, {}, "need an address, and no other kind has one"),
        ({"mode": "lossless"}, {}, "a camera cannot wait"),
        ({"kind": "gentl"}, {}, r"needs camera\.producer"),
        ({"kind": "rtsp"}, {"gain_db": 1}, "has no section camera"),
        ({"triggers": "independent"}, {"chunks": {"encoder": "Encoder0"}}, "a camera must count them"),
        ({}, {"trigger": {"kind": "edge", "activation": "high"}}, 'with kind = "edge" it is one of'),
        ({}, {"trigger": {"kind": "edge", "rate_hz": 5}}, 'only kind = "internal" has a rate'),
        ({}, {"trigger": {"kind": "level"}, "exposure_us": 5}, "the trigger exposes for as long as it lasts"),
        ({}, {"features": {"A B": 5}}, "pattern"),
        ({}, {"packet_bytes": 100}, "576"),
    ],
)
def test_fields_that_do_not_fit(source: dict[str, Any], camera: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        station(source, **camera)


def test_only_cameras_are_real_and_a_simulated_one_says_so() -> None:
    assert not station().source.simulated
    assert station(simulated=True).source.simulated
    assert Source(kind="marker").simulated
    assert Source.model_validate({"kind": "recording", "path": "x.mcap", "camera": {"gain_db": 1}}).simulated


def test_an_address_is_shown_without_its_password() -> None:
    assert (
        Source.model_validate({"kind": "rtsp", "address": "rtsp://me:p@ss@10.0.0.7/a"}).shown_address
        == "rtsp://10.0.0.7/a"
    )
    assert station().source.shown_address == "192.0.2.1"


# The calibration's hash.


@pytest.mark.parametrize(
    "other",
    [
        {"exposure_us": 1001},
        {"gain_db": 1},
        {"pixel_format": "Mono8"},
        {"offset_x_px": 2},
        {"features": {"Gamma": 0.7}},
    ],
)
def test_a_calibration_holds_for_one_exposure_gain_and_format(other: dict[str, Any]) -> None:
    assert scoring_sha256(station(exposure_us=1000)) != scoring_sha256(station(**{"exposure_us": 1000, **other}))


@pytest.mark.parametrize(
    "other", [{"buffers": 4}, {"packet_bytes": 1500}, {"strobe": {"line": "Line2"}}, {"resend": False}]
)
def test_what_changes_no_pixel_changes_no_calibration(other: dict[str, Any]) -> None:
    assert scoring_sha256(station(exposure_us=1000)) == scoring_sha256(station(exposure_us=1000, **other))


def test_a_recording_with_the_cameras_settings_has_the_calibration_of_the_camera() -> None:
    recorded = station({"kind": "recording", "address": None, "path": "x.mcap"}, exposure_us=1000)
    assert scoring_sha256(recorded) == scoring_sha256(station(exposure_us=1000))


def test_without_a_camera_the_hash_is_what_it_was() -> None:
    simulated = Station.model_validate(
        {"name": "a", "bundle": "marker", "frame": {"width_px": 64, "height_px": 48}, "source": {"kind": "marker"}}
    )
    fields = {
        "frame": simulated.frame.model_dump(mode="json"),
        "tiling": simulated.tiling.model_dump(mode="json", exclude={"ignore_mask"}),
        "ignore_mask": None,
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert scoring_sha256(simulated) == hashlib.sha256(text.encode()).hexdigest()


# Pixels.


def frame_of(name: str) -> Frame:
    bits = int("".join(c for c in name if c.isdigit()))
    return Frame.model_validate(
        {"width_px": 16, "height_px": 16, "channels": 1 if name.startswith("Mono") else 3, "bit_depth": bits}
    )


@pytest.mark.parametrize("name", [n for n in PFNC if n.startswith("Bayer")])
def test_each_mosaic_gives_its_colour(name: str) -> None:
    pixels, frame = Pixels(name, frame_of(name)), frame_of(name)
    bright = (1 << frame.bit_depth) - 1
    for channel, letter in enumerate("RGB"):
        quad = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}[name[5:7]]
        mosaic = np.zeros((16, 16), frame.dtype)
        for place, colour in enumerate(quad):
            if colour == letter:
                mosaic[place // 2 :: 2, place % 2 :: 2] = bright
        image = pixels.image(mosaic.view(np.uint8).reshape(-1))
        assert image.dtype == mosaic.dtype
        inner = image[4:12, 4:12].reshape(-1, 3)
        assert (inner == np.eye(3, dtype=int)[channel] * bright).all(), (name, letter)


def test_grey_pixels_are_a_view_and_rows_may_be_padded() -> None:
    pixels = Pixels("Mono12", frame_of("Mono12"))
    buffer = np.arange(16 * 36, dtype=np.uint8)
    image = pixels.image(buffer, row_padding=4)
    assert image.shape == (16, 16, 1)
    assert np.shares_memory(image, buffer)
    assert image[1, 0, 0] == 36 + 37 * 256


def test_rgb_and_bgr() -> None:
    buffer = np.random.default_rng(0).integers(0, 255, 16 * 16 * 3, dtype=np.uint8)
    rgb, bgr = (Pixels(n, frame_of(n)).image(buffer.copy()) for n in ("RGB8", "BGR8"))
    assert np.array_equal(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), bgr)
    assert np.array_equal(rgb.reshape(-1), buffer)


def test_the_default_format_is_that_of_the_frame() -> None:
    found = station(frame={"bit_depth": 12})
    assert found.source.camera is not None
    assert pixel_format(found.source.camera, found.frame) == "Mono12"
    with pytest.raises(RecipeError, match="a frame of 3 channels needs one"):
        features_of(station(frame={"channels": 3}))


@pytest.mark.parametrize(("name", "of"), [("Mono12p", "Mono12"), ("Mono8", "Mono12"), ("BayerRG8", "Mono8")])
def test_a_format_that_does_not_give_the_frame(name: str, of: str) -> None:
    with pytest.raises(RecipeError, match=r"source\.camera\.pixel_format"):
        Pixels(name, frame_of(of))


# Frame ids.


def unwrapped(*ids: int) -> list[int]:
    frame_ids = FrameIds()
    return [frame_ids.unwrap(i) for i in ids]


def test_ids_of_sixteen_bits_go_on_after_their_end() -> None:
    assert unwrapped(65534, 65535, 1, 2) == [65534, 65535, 65536, 65537]
    assert unwrapped(65533, 3) == [65533, 65538]


def test_ids_of_sixty_four_bits_stay_as_they_are() -> None:
    assert unwrapped(65535, 65536, 1 << 40) == [65535, 65536, 1 << 40]


def test_a_counter_that_began_anew_is_no_wrap() -> None:
    assert unwrapped(20_000, 1) == [20_000, 1]
    assert unwrapped(65535, 1, 30_000, 1)[2:] == [95_535, 65_536]


def test_an_id_from_before_the_wrap_stays_before_it() -> None:
    assert unwrapped(65534, 1, 65535, 2) == [65534, 65536, 65535, 65537]


def test_every_station_of_a_recipe_may_have_a_camera() -> None:
    recipe = Recipe.model_validate(
        {
            "line": "l",
            "safe_state": "reject_all",
            "line_ok": {"wired": "plc"},
            "deadline": {"deadline_ms": 500},
            "stations": [station().model_dump(), {**station(simulated=True).model_dump(), "name": "b", "lane": "b"}],
        }
    )
    assert recipe.simulated  # one that simulates is enough
    assert Recipe.model_validate_json(recipe.model_dump_json()).sha256 == recipe.sha256


def test_the_recipe_in_the_manual_is_one() -> None:
    manual = (Path(__file__).parents[3] / "docs/cameras.md").read_text(encoding="utf-8")
    block = manual[manual.index("    [stations.source]") : manual.index("| `trigger.kind`")]
    fields = tomllib.loads(textwrap.dedent(block).replace("# simulated", "simulated").replace("# producer", "producer"))
    source = Source.model_validate(fields["stations"]["source"])
    assert source.camera is not None
    assert source.camera.model_fields_set == set(type(source.camera).model_fields)


# Chunk data: no simulated camera sends counters, so Aravis' parser is a stand-in here.


class Parser:
    """A camera with two counters in its chunk data, and the parser of its buffers."""

    def __init__(self, **features: Any) -> None:
        self.features, self.selected = features, dict[str, str]()

    def create_chunk_parser(self) -> Parser:
        return self

    def get_device(self) -> Parser:
        return self

    def get_feature(self, name: str) -> Any:
        return self.features.get(name)

    def set_string(self, name: str, value: str) -> None:
        if name == "ChunkSelector" and value not in ("FrameID", "Timestamp"):
            raise LookupError(value)
        self.selected[name] = value

    def get_boolean(self, name: str) -> bool:
        return name == "ChunkEnable"

    def get_integer(self, name: str) -> int:
        return int(self.features[name])

    def get_integer_value(self, buffer: dict[str, int], name: str) -> int:
        return buffer[self.selected["ChunkCounterSelector"] if name == "ChunkCounterValue" else name]


def test_chunk_data_gives_ids_times_and_both_counters() -> None:
    names = dict.fromkeys(("ChunkFrameID", "ChunkTimestamp", "ChunkCounterSelector"), 1)
    settings = CameraSettings(chunks=Chunks(trigger="Counter0", encoder="Counter1"))
    reader = ChunkReader(Parser(**names, GevTimestampTickFrequency=125_000_000), settings, LookupError)
    assert reader.has_frame_id
    for trigger_id in (7, 8):
        buffer = {"ChunkFrameID": 3, "ChunkTimestamp": 125, "Counter0": trigger_id, "Counter1": 4711}
        assert reader.read(buffer) == {"frame_id": 3, "camera_ns": 1000, "trigger_id": trigger_id, "count": 4711}


def test_chunk_data_without_a_selector_or_a_clock() -> None:
    settings = CameraSettings(chunks=Chunks(trigger="Counter0", encoder="Encoder0"))
    reader = ChunkReader(Parser(), settings, LookupError)
    assert not reader.has_frame_id
    assert [w[1:3] for w in reader._wanted] == [("ChunkCounterValue", ""), ("ChunkEncoderValue", "")]
    assert ChunkReader(Parser(), CameraSettings(), LookupError).read({}) == {}
