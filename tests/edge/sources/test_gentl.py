"""GenTL, against the producer that simulates: EMVA's Viky, which comes with harvesters. None here has a device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import RecipeError, SourceError
from edge.settings import Station
from edge.sources import Exposed, Triggered, open_source
from edge.sources.camera import Grabbed
from edge.sources.gentl import GentlCamera
from edge.testing import PATIENCE_S
from edge.verdict import Reason

genicam = pytest.importorskip("genicam", reason="harvesters is not installed (extra gige)")
VIKY = Path(genicam.__file__).with_name("viky.cti")
if not VIKY.is_file():
    pytest.skip("this version of genicam comes without the producer Viky", allow_module_level=True)

RED = "VikyTL_DEV_red"


def station(address: str = RED, frame: dict[str, Any] | None = None, **camera: Any) -> Station:
    fields = {"kind": "gentl", "address": address, "camera": {"producer": VIKY, "simulated": True, **camera}}
    size = {"width_px": 400, "height_px": 300, **(frame or {})}
    return Station.model_validate({"name": "top", "bundle": "marker", "frame": size, "source": fields})


@pytest.fixture
def camera() -> Iterator[GentlCamera]:
    with closing(GentlCamera(station(trigger={"rate_hz": 100}))) as opened:
        yield opened


def grabs(camera: GentlCamera, count: int) -> Iterator[Grabbed]:
    give_up = time.monotonic() + PATIENCE_S
    while count:
        assert time.monotonic() < give_up, f"{count} frames did not come"
        if grabbed := camera.grab(0.1):
            yield grabbed
            count -= 1


def test_frames_come_with_rising_ids(camera: GentlCamera) -> None:
    found = list(grabs(camera, 10))
    first = found[0].frame_id
    assert first is not None
    assert [g.frame_id for g in found] == [first + i for i in range(10)]


def test_images_are_those_of_the_recipe(camera: GentlCamera) -> None:
    for grabbed in grabs(camera, 5):
        assert grabbed.reason is None
        assert grabbed.image is not None
        assert (grabbed.image.shape, grabbed.image.dtype) == ((300, 400, 1), np.uint8)
        assert grabbed.image.max() > grabbed.image.min()  # a ball on a field


def test_a_source_of_parts() -> None:
    with closing(open_source(station(trigger={"rate_hz": 100}), 0, 3)) as source:
        found = [source.poll(5) for _ in range(6)]
    assert [e.number for e in found if isinstance(e, Triggered | Exposed)] == [3, 3, 4, 4, 5, 5]


def test_it_can_be_opened_again_once_it_was_closed() -> None:
    for _ in range(2):
        with closing(GentlCamera(station())) as camera:
            assert len(list(grabs(camera, 1))) == 1


def test_a_frame_that_harvesters_throws_away_is_a_bad_image(camera: GentlCamera) -> None:
    acquirer = camera._camera
    acquirer._emit_callbacks(acquirer.Events.INCOMPLETE_BUFFER)
    (grabbed,) = grabs(camera, 1)
    assert (grabbed.image, grabbed.reason, grabbed.frame_id) == (None, Reason.BAD_IMAGE, None)
    (after,) = grabs(camera, 1)
    assert after.reason is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": {"Nonsense": 5}}, r"camera\.features\.Nonsense: this camera has no feature Nonsense"),
        ({"frame": {"width_px": 1600}}, r"frame\.width_px: the camera does not take Width = 1600: .*Max = 800"),
        ({"pixel_format": "Mono16", "frame": {"bit_depth": 16}}, "does not take PixelFormat = 'Mono16'"),
        ({"features": {"BouncingBallSize": "big"}}, "BouncingBallSize = 'big'"),
        ({"exposure_us": 100}, r"camera\.exposure_us: this camera has no feature ExposureTime or ExposureTimeAbs"),
        ({"simulated": False}, r"is a simulated camera; say so: source\.camera\.simulated = true"),
        ({"producer": "/nowhere.cti"}, r"camera\.producer = '/nowhere.cti': cannot be loaded"),
        ({"producer": __file__}, r"cannot be loaded as a GenTL producer"),
    ],
)
def test_what_does_not_fit_is_said_with_its_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        GentlCamera(station(**settings))
    with closing(GentlCamera(station())) as camera:  # it was let go of
        assert len(list(grabs(camera, 1))) == 1


def test_a_camera_that_the_producer_does_not_see() -> None:
    with pytest.raises(SourceError, match=f"no camera has this id.*the producer sees: {RED}"):
        GentlCamera(station("VikyTL_DEV_mauve"))


def test_features_reach_the_camera() -> None:
    with closing(GentlCamera(station(features={"BouncingBallSize": 33}, trigger={"rate_hz": 50}))) as camera:
        assert camera._nodes.get_node("BouncingBallSize").value == 33
        assert camera._nodes.get_node("AcquisitionFrameRate").value == 50


def test_a_silent_camera_is_asked_whether_it_is_there(camera: GentlCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    from genicam.genapi import GenericException

    class Gone:
        def get_node(self, name: str) -> Any:
            raise GenericException("the device is gone", "", 0)

    monkeypatch.setattr(camera._camera, "try_fetch", lambda **_: None)
    assert camera.grab(0.01) is None
    monkeypatch.setattr(camera, "_heard_ns", 0)
    assert camera.grab(0.01) is None  # it is there
    monkeypatch.setattr(camera, "_heard_ns", 0)
    monkeypatch.setattr(camera, "_nodes", Gone())
    with pytest.raises(SourceError, match="is gone"):
        camera.grab(0.01)


def test_what_no_recipe_names_is_looked_for_once_the_camera_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Viky has neither exposure nor gain."""
    found: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        "edge.sources.gentl.warn_of_unnamed", lambda camera, where: found.append((where.name, camera.read("Width")))
    )
    GentlCamera(station()).close()
    assert found == [("top", 400)]
