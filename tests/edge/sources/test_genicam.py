"""GigE Vision, against Aravis' simulated camera on loopback."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gige import FakeCamera, fake_camera
from structlog.testing import capture_logs

from edge.errors import RecipeError, SourceError
from edge.settings import Station
from edge.sources import Event, Exposed, Source, Triggered, open_source
from edge.sources.camera import CountsTriggers, Grabbed
from edge.sources.genicam import GenicamCamera
from edge.testing import PATIENCE_S
from edge.verdict import Reason

gi = pytest.importorskip("gi", reason="PyGObject is not installed (extra gige)")
try:
    gi.require_version("Aravis", "0.8")
except ValueError:
    pytest.skip("Aravis is not installed (gir1.2-aravis-0.8)", allow_module_level=True)


EMPTY = np.empty((0, 0, 1), np.uint8)


def station(width_px: int = 512, height_px: int = 512, address: str = "127.0.0.1", **camera: Any) -> Station:
    """`frame` and `source` among the camera's fields go to these sections."""
    frame = {"width_px": width_px, "height_px": height_px, **camera.pop("frame", {})}
    source = camera.pop("source", {})
    fields = {"kind": "genicam", "address": address, "camera": {"simulated": True, **camera}, **source}
    return Station.model_validate({"name": "top", "bundle": "marker", "frame": frame, "source": fields})


@pytest.fixture(scope="module", autouse=True)
def _discovery() -> None:
    """Aravis keeps the socket with which it looks for cameras."""
    from gi.repository import Aravis

    Aravis.update_device_list()


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with fake_camera() as running:
        yield running


def grabs(camera: GenicamCamera, count: int) -> Iterator[Grabbed]:
    give_up = time.monotonic() + PATIENCE_S
    while count:
        if grabbed := camera.grab(0.1):
            yield grabbed
            count -= 1
        assert time.monotonic() < give_up, f"{count} frames did not come"


def first_whole(camera: GenicamCamera) -> Grabbed:
    """The first frame that came whole: one that the camera is held up in for long is not, and that is no fault here."""
    return next(grabbed for grabbed in grabs(camera, 1_000_000) if grabbed.reason is None)


def answers(events: list[Event]) -> Counter[str]:
    """How often each answer was given; the parts are numbered from 0 without gaps, and each has one."""
    said: dict[int, str] = {}
    for event in events:
        if isinstance(event, Triggered):
            assert event.number == len(said)
            said[event.number] = "unseen" if event.missed else "open"
        elif isinstance(event, Exposed):
            assert said[event.number] == "open"
            said[event.number] = event.reason.value if event.reason else "ok"
    assert "open" not in said.values()
    return Counter(said.values())


def is_whole(image: np.ndarray) -> bool:
    """Whether every pixel is that of the simulated camera's ramp."""
    height, width, _ = image.shape
    ramp = np.add.outer(np.arange(height), np.arange(width)) + int(image[0, 0, 0])
    return bool(np.array_equal(image[..., 0].astype(int) % 255, ramp % 255))


def play(source: Source, parts: int) -> list[Event]:
    """The events of so many parts; each good image must be whole."""
    events: list[Event] = []
    give_up = time.monotonic() + PATIENCE_S
    while sum(isinstance(e, Triggered) for e in events) < parts or not isinstance(events[-1], Exposed):
        event = source.poll(0.5)
        if isinstance(event, Exposed) and event.image is not None:
            if event.number % 10 == 0:
                assert is_whole(event.image)
            event = replace(event, image=EMPTY)
        events.extend([event] if event else [])
        assert time.monotonic() < give_up, f"{parts} parts did not come; {len(events)} events did"
    return events


def test_ninety_frames_per_second_lose_nothing_and_the_frame_ids_wrap() -> None:
    found = Counter[str]()
    for _ in range(3):  # a machine that stands still for longer than a frame may take loses that one
        with fake_camera(), closing(open_source(station(160, 120, trigger={"rate_hz": 90}), 0, 0)) as source:
            assert source._camera._camera.get_float("AcquisitionFrameRate") == pytest.approx(90, rel=0.01)
            found = answers(play(source, 220))  # the simulated camera begins 134 frames before its ids wrap
        if set(found) == {"ok"}:
            return
    pytest.fail(f"frames were lost each time: {found}")


def test_lost_packets_make_bad_images_that_say_how_many_and_no_others() -> None:
    with (
        fake_camera(lost_percent=5),
        closing(open_source(station(64, 48, trigger={"rate_hz": 90}), 0, 0)) as source,
    ):
        events = play(source, 200)
    found = answers(events)
    assert set(found) == {"ok", "bad_image"}
    assert found["bad_image"] > 10  # 1 - 0.95^5 of 200 is 45
    details = {e.detail for e in events if isinstance(e, Exposed) and e.reason}
    assert all(re.fullmatch(r"[1-5] of 5 packets are missing", d) for d in details), details


def test_the_missing_packets_are_those_that_were_lost() -> None:
    with (
        fake_camera(lost_percent=5),
        closing(open_source(station(512, 512, trigger={"rate_hz": 90}), 0, 0)) as source,
    ):
        events = play(source, 60)
    assert set(answers(events)) == {"bad_image"}  # all 195 packets of a frame come once in 22,000 frames
    missing = [int(e.detail.split()[0]) for e in events if isinstance(e, Exposed)]
    assert 0.8 * 0.05 * 195 < statistics.mean(missing) < 0.5 * 195  # Aravis would count nearly all


def test_a_camera_that_is_killed_is_gone_and_can_be_opened_when_it_is_back(fake: FakeCamera) -> None:
    source = open_source(station(64, 48, trigger={"rate_hz": 90}), 0, 0)
    before = play(source, 5)
    fake.kill()
    with pytest.raises(SourceError, match=r"camera 127\.0\.0\.1: is gone"):
        play(source, 1_000_000)
    source.close()
    fake.start()
    with closing(open_source(station(64, 48, trigger={"rate_hz": 90}), 0, 5)) as again:
        after = play(again, 5)
    assert answers(before)["ok"]
    assert isinstance(after[0], Triggered)
    assert after[0].number == 5


def test_a_camera_that_was_started_again_at_once_is_noticed_too(fake: FakeCamera) -> None:
    source = open_source(station(64, 48, trigger={"rate_hz": 90}), 0, 0)
    play(source, 5)
    fake.kill()
    fake.start()  # it runs, and knows nothing of us
    with pytest.raises(SourceError, match="is gone"):
        play(source, 1_000_000)
    source.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"features": {"ExposureTimme": 5}},
            r"camera\.features\.ExposureTimme: this camera has no feature ExposureTimme",
        ),
        (
            {"pixel_format": "BayerRG12", "frame": {"channels": 3, "bit_depth": 12}},
            "does not take PixelFormat = 'BayerRG12'",
        ),
        ({"frame": {"width_px": 4096}}, r"frame\.width_px: the camera does not take Width = 4096: it is between"),
        ({"features": {"Width": "wide"}}, "Width = 'wide': it is a number"),
        ({"features": {"Height": 100}}, r"frame\.height_px: .* Height = 48: it stays at 100"),
        (
            {"trigger": {"kind": "edge", "source": "Line0", "activation": "falling"}},
            r"trigger\.activation: .* = 'FallingEdge'",
        ),
        ({"trigger": {"kind": "level"}}, r"trigger\.kind: this camera has no feature ExposureMode"),
        ({"strobe": {"line": "Line2"}}, r"strobe\.line: this camera has no feature LineSelector"),
        ({"chunks": {"trigger": "Counter0"}}, r"camera\.chunks: this camera has no feature ChunkModeActive"),
        ({"simulated": False}, r"is Aravis' simulated camera; say so: source\.camera\.simulated = true"),
    ],
)
def test_what_the_camera_does_not_take_is_said_with_its_field(
    fake: FakeCamera, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        GenicamCamera(station(64, 48, **settings))
    GenicamCamera(station(64, 48)).close()  # it was let go of


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(SourceError, match=r"camera 192\.0\.2\.1: cannot be opened: .*arv-tool"):
        GenicamCamera(station(address="192.0.2.1"))


def test_a_camera_that_another_program_holds(fake: FakeCamera) -> None:
    with closing(GenicamCamera(station(64, 48))), pytest.raises(SourceError, match="another program holds this camera"):
        GenicamCamera(station(64, 48))


@pytest.mark.parametrize(
    ("name", "frame", "dtype"),
    [
        ("Mono8", {}, np.uint8),
        ("Mono16", {"bit_depth": 16}, np.uint16),
        ("BayerRG8", {"channels": 3}, np.uint8),
        ("BayerGB8", {"channels": 3}, np.uint8),
        ("RGB8", {"channels": 3}, np.uint8),
    ],
)
def test_pixel_formats_and_the_region(fake: FakeCamera, name: str, frame: dict[str, int], dtype: type) -> None:
    settings = station(96, 32, pixel_format=name, frame=frame, offset_x_px=16, offset_y_px=8)
    with closing(GenicamCamera(settings)) as camera:
        grabbed = first_whole(camera)
        assert grabbed.image is not None
        assert (grabbed.image.shape, grabbed.image.dtype) == ((32, 96, frame.get("channels", 1)), dtype)
        assert [camera._camera.get_integer(f) for f in ("OffsetX", "OffsetY", "Width", "Height")] == [16, 8, 96, 32]


def test_the_image_is_a_view_of_the_buffer_that_the_camera_fills(fake: FakeCamera) -> None:
    with closing(GenicamCamera(station(64, 48))) as camera:
        grabbed = first_whole(camera)
        assert grabbed.image is not None
        assert any(np.shares_memory(grabbed.image, memory) for memory in camera._memory.values())


def test_a_triggered_camera_is_silent_until_it_is_triggered(fake: FakeCamera) -> None:
    trigger = {"kind": "edge", "source": "Software", "delay_us": 0}
    with closing(GenicamCamera(station(64, 48, trigger=trigger))) as camera:
        assert [camera.grab(0.1) for _ in range(3)] == [None] * 3
        camera._camera.software_trigger()
        (grabbed,) = grabs(camera, 1)
        assert grabbed.image is not None
        assert camera.grab(0.2) is None


@pytest.fixture
def _traffic() -> Iterator[None]:
    """Packets on the camera's network that are not for it, as fast as they can be sent."""
    code = "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\nwhile True: s.sendto(bytes(48), ('127.0.0.1', 9))"
    senders = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    yield
    for sender in senders:
        sender.kill()
        sender.wait()


@pytest.mark.usefixtures("_traffic")
def test_other_traffic_is_not_taken_for_frames(fake: FakeCamera) -> None:
    for _ in range(20):
        with closing(GenicamCamera(station(64, 48, trigger={"kind": "edge", "source": "Software"}))) as camera:
            assert camera.grab(0.05) is None


def test_exposure_and_gain_are_set_and_what_no_recipe_names_is_said(fake: FakeCamera) -> None:
    with capture_logs() as logs, closing(GenicamCamera(station(64, 48, exposure_us=1234, gain_db=6))) as camera:
        assert camera._camera.get_exposure_time() == pytest.approx(1234)
        assert camera._camera.get_integer("GainRaw") == 6
    assert logs == []
    with capture_logs() as logs:
        GenicamCamera(station(64, 48, exposure_us=1234)).close()
    (said,) = [entry for entry in logs if entry["event"] == "imaging_not_in_recipe"]
    assert said["station"] == "top"
    assert (said["found"]["GainRaw"], "ExposureTimeAbs" in said["found"]) == (6, False)


@pytest.mark.parametrize(("resend", "expected"), [(True, "always"), (False, "never")])
def test_packets_resends_and_buffers_are_those_of_the_recipe(fake: FakeCamera, resend: bool, expected: str) -> None:
    """576 bytes a packet, less 36 of headers, are 540 of the frame: 64 x 48 px come in 6."""
    with closing(GenicamCamera(station(64, 48, packet_bytes=576, resend=resend, buffers=5))) as camera:
        assert camera._camera.gv_get_packet_size() == 576
        assert camera._stream.get_property("packet-resend").value_nick == expected
        assert len(camera._memory) == 5
        first_whole(camera)
        assert [len(camera._packets(buffer)) for buffer in camera._memory] == [6] * 5


COUNTER = 0x2F00
WITH_COUNTERS = f"""
<Category Name="Root"><pFeature>CounterSelector</pFeature></Category>
<Enumeration Name="CounterSelector"><EnumEntry Name="Counter0"><Value>0</Value></EnumEntry>
  <EnumEntry Name="Counter1"><Value>1</Value></EnumEntry><Value>0</Value></Enumeration>
<Enumeration Name="CounterEventSource"><EnumEntry Name="Line0"><Value>0</Value></EnumEntry>
  <EnumEntry Name="Encoder0"><Value>1</Value></EnumEntry><Value>0</Value></Enumeration>
<Integer Name="CounterValue"><pValue>CounterRegister</pValue></Integer>
<IntReg Name="CounterRegister"><Address>{COUNTER:#x}</Address><pIndex Offset="4">CounterSelector</pIndex>
  <Length>4</Length><AccessMode>RO</AccessMode>
  <pPort>Device</pPort><Cachable>NoCache</Cachable><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
<Boolean Name="ChunkModeActive"><Value>0</Value><OnValue>1</OnValue><OffValue>0</OffValue></Boolean>
<Enumeration Name="ChunkSelector"><EnumEntry Name="CounterValue"><Value>0</Value></EnumEntry>
  <Value>0</Value></Enumeration>
<Boolean Name="ChunkEnable"><Value>0</Value><OnValue>1</OnValue><OffValue>0</OffValue></Boolean>
<Enumeration Name="LineSelector"><EnumEntry Name="Line2"><Value>2</Value></EnumEntry><Value>2</Value></Enumeration>
<Enumeration Name="LineMode"><EnumEntry Name="Output"><Value>1</Value></EnumEntry><Value>1</Value></Enumeration>
<Enumeration Name="LineSource"><EnumEntry Name="Off"><Value>0</Value></EnumEntry>
  <EnumEntry Name="ExposureActive"><Value>1</Value></EnumEntry><Value>0</Value></Enumeration>
<Boolean Name="LineInverter"><Value>0</Value><OnValue>1</OnValue><OffValue>0</OffValue></Boolean>
</RegisterDescription>"""


@pytest.fixture
def counting(tmp_path: Path, fake: FakeCamera) -> FakeCamera:
    """Counter0, its value in a register, and Counter1, in the next one."""
    fake.kill()
    description = tmp_path / "with_counters.xml"
    description.write_text(fake.genicam().replace("</RegisterDescription>", WITH_COUNTERS), encoding="utf-8")
    fake.describe(description)
    fake.start()
    return fake


def test_triggers_are_counted_by_the_camera_and_missed_without_an_image(counting: FakeCamera) -> None:
    counting.write_register(COUNTER, 41)
    counted = station(
        64,
        48,
        trigger={"kind": "edge", "source": "Line0"},
        strobe={"line": "Line2", "inverted": True},
        chunks={"trigger": "Counter0"},
        source={"triggers": "independent", "frame_timeout_ms": 50},
    )
    with closing(open_source(counted, 0, 0)) as source:
        assert source.poll(0.2) is None  # silent, and nothing is wrong
        counting.write_register(COUNTER, 43)
        events = play(source, 2)
        camera = source._camera
        assert isinstance(camera, CountsTriggers)
        assert camera._camera.get_string("LineSource") == "ExposureActive"
        assert camera._camera.get_boolean("LineInverter")
    assert [e.reason for e in events if isinstance(e, Exposed)] == [Reason.MISSED_FRAME] * 2


def test_an_encoder_in_another_counter_is_not_taken_for_triggers(counting: FakeCamera) -> None:
    counting.write_register(COUNTER, 41)
    settings = station(
        64,
        48,
        trigger={"kind": "edge", "source": "Line0"},
        chunks={"trigger": "Counter0"},
        features={"CounterSelector": "Counter1", "CounterEventSource": "Encoder0"},
        source={"triggers": "independent"},
    )
    with closing(GenicamCamera(settings)) as camera:
        counting.write_register(COUNTER + 4, 4711)
        assert camera.triggers() == 41
        camera._camera.set_string("CounterSelector", "Counter1")
        assert camera.triggers() == 4711, "the simulated camera has two counters"
