"""Whether a frame is a picture at all: frozen, out of focus. Black and saturated: tests/calib/test_calibration.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.calibration import (
    Calibration,
    Provenance,
    SharpnessSeen,
    StationCalibration,
    load_calibration,
    sharpness_trouble,
)
from calib.fitting import GoodView, StationSpec, fit_station
from edge.demo.web import Web
from edge.judge import Judge, provenance
from edge.plan import plan_station
from edge.recipes import load_recipe
from edge.recording import RecordingWriter
from edge.settings import Frame, Recipe, Station
from edge.testing import limits_by_hand
from edge.validity import FrozenWatch, refuses_frozen, sharpness
from edge.verdict import Decision, Reason
from engines.bundle import Score, SsimL1Map

TEXTURES = [("brick", 2.0), ("brick", 1.0), ("gravel", 1.0), ("gravel", 2.0), ("grass", 1.0)]
ENGINE = {"backend": "b", "version": "1", "device": "d", "precision": "f32", "isa": "i", "plan": "x1"}


def frame(seed: int, shape: tuple[int, ...] = (100, 60, 1), dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (1, np.uint16)])
def test_the_same_bytes_twice_are_frozen(channels: int, dtype: Any) -> None:
    watch, image = FrozenWatch(), frame(1, (100, 60, channels), dtype)
    assert not watch.is_frozen(image), "there is none before the first"
    watch.keep(image)
    assert watch.is_frozen(image.copy())
    assert watch.is_frozen(image), "and a third time"
    watch.keep(frame(2, image.shape, dtype))
    assert not watch.is_frozen(image), "a picture that was there before is another frame"


@given(st.integers(0, 99), st.integers(0, 59))
def test_one_pixel_makes_another_frame(row: int, column: int) -> None:
    watch, image = FrozenWatch(), frame(1)
    watch.keep(image)
    image[row, column] ^= 1  # the camera's own buffer, which it uses again
    assert not watch.is_frozen(image)


def station(**source: Any) -> Station:
    fields = {"kind": "folder", "path": "x"} | source
    return Station(name="cam", source=fields, frame=Frame(width_px=64, height_px=64), bundle="marker")


def with_frozen(chosen: bool | None, **source: Any) -> Station:
    return Station.model_validate(station(**source).model_dump() | {"validity": {"frozen": chosen}})


def test_the_recipe_decides_and_else_the_kind_of_source() -> None:
    assert not refuses_frozen(station()), "the same picture twice in a folder are two parts"
    assert refuses_frozen(with_frozen(True))
    assert not refuses_frozen(station(kind="web", path=None))
    for kind, expected in (("genicam", True), ("gentl", True), ("v4l2", True), ("rtsp", False)):
        camera = station().model_copy(update={"source": station().source.model_copy(update={"kind": kind})})
        assert refuses_frozen(camera) is expected
        off = camera.model_copy(update={"validity": camera.validity.model_copy(update={"frozen": False})})
        assert not refuses_frozen(off)


def recipe_with(recorded: Station) -> str:
    made = Recipe.model_validate(load_recipe("web").model_dump() | {"stations": [recorded.model_dump()]})
    return made.model_dump_json()


@pytest.mark.parametrize(
    ("metadata", "encoding", "expected"),
    [
        ({"simulated": "false"}, "png", True),
        ({"simulated": "true"}, "png", False),
        ({}, "png", False),
        ({"simulated": "false"}, "jpeg", False),
        ({"simulated": "false", "recipe": recipe_with(station())}, "png", False),
        ({"simulated": "true", "recipe": recipe_with(with_frozen(True))}, "png", True),
        ({"simulated": "false", "recipe": "{}"}, "png", True),
    ],
)
def test_a_recording_is_what_was_recorded(
    metadata: dict[str, str], encoding: str, expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "r.mcap"
    with RecordingWriter(path, metadata) as out:
        out.trigger("cam", 0, 1)
        out.frame("cam", 0, 2, frame(1, (64, 64, 1)), encoding=encoding)
    assert refuses_frozen(station(kind="recording", path=str(path))) is expected


def shot(texture: str, scale: float, number: int, bad: bool = False) -> np.ndarray:
    web = Web(texture, Frame(width_px=224, height_px=224), seed=3, scale=scale, defect_share=float(bad))
    return web.shot(number).image


def blurred(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Out of focus, under the same noise of the sensor."""
    soft = cv2.GaussianBlur(image[..., 0].astype(np.float32), (0, 0), sigma)
    noisy = soft + np.random.default_rng(seed).normal(0, 1.5, soft.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize(("texture", "scale"), TEXTURES)
def test_defocus_lowers_the_sharpness_and_light_and_defects_do_not(texture: str, scale: float) -> None:
    good = [sharpness(shot(texture, scale, n)[None]) for n in range(12)]
    seen = SharpnessSeen(low=min(good), high=max(good))
    for number in range(12, 24):
        image = shot(texture, scale, number)
        found = [sharpness(blurred(image, sigma)[None]) for sigma in (1, 2, 3, 5)]
        assert found == sorted(found, reverse=True)
        assert sharpness_trouble(seen, found[-2]) is Reason.DEFOCUSED
        assert sharpness_trouble(seen, found[-1]) is Reason.DEFOCUSED
        assert sharpness_trouble(seen, sharpness(image[None])) is None
        assert sharpness_trouble(seen, sharpness(shot(texture, scale, number, bad=True)[None])) is None
        dim = (image * 0.6).astype(np.uint8)
        assert sharpness(dim[None]) == pytest.approx(sharpness(image[None]), rel=0.05)


def test_colour_and_many_tiles_are_seen_alike() -> None:
    image = shot("gravel", 1.0, 0)
    one = sharpness(image[None])
    assert sharpness(np.repeat(image[None], 100, axis=0)) == pytest.approx(one)
    assert sharpness(np.repeat(image[None], 3, axis=3)) == pytest.approx(one)
    assert sharpness(np.zeros((2, 64, 64, 1), np.uint8)) == 0


def calibration(plan: Any, seen: SharpnessSeen | None) -> StationCalibration:
    return limits_by_hand(provenance(plan, ENGINE), sharpness=seen)


def test_the_judge_says_it_against_the_calibrations_range() -> None:
    declared = Station(name="cam", source={"kind": "web"}, frame=Frame(width_px=224, height_px=224), bundle="marker")
    plan = plan_station(declared)
    image = shot("gravel", 1.0, 0)[None]
    seen = SharpnessSeen(low=sharpness(image), high=sharpness(image))
    soft = blurred(image[0], 3)[None]

    def decide(judged: Any, limits: StationCalibration, tiles: np.ndarray, off: float = 0.0) -> Any:
        repainted = (tiles / 255 + off).astype(np.float32)
        return Judge(judged, limits).judge(tiles, repainted, np.empty(tiles.shape[:3], np.float32), ENGINE)

    assert decide(plan, calibration(plan, seen), image).decision is Decision.PASS
    found = decide(plan, calibration(plan, seen), soft)
    assert (found.decision, found.reason) == (Decision.UNINSPECTED, Reason.DEFOCUSED)
    assert found.score is not None
    rejected = decide(plan, calibration(plan, seen), soft, off=1.0)
    assert rejected.reason is Reason.DEFOCUSED, "what cannot be seen sharply is not judged, either way"
    assert decide(plan, calibration(plan, None), soft).decision is Decision.PASS, "calibrations that never learned it"
    lenient = plan_station(
        declared.model_copy(update={"validity": declared.validity.model_copy(update={"defocused": False})})
    )
    assert decide(lenient, calibration(lenient, seen), soft).decision is Decision.PASS


def test_calibration_learns_the_range() -> None:
    tiles = [shot("brick", 2.0, n)[None] for n in range(12)]
    views = (GoodView(t, (t / 255).astype(np.float32)) for t in tiles)
    made = provenance(plan_station(load_recipe("web").stations[0]), ENGINE)
    found = fit_station(views, 12, StationSpec(SsimL1Map(), Score(kind="max"), made))
    values = [sharpness(t) for t in tiles]
    assert found.sharpness == SharpnessSeen(low=min(values), high=max(values))


def test_a_calibration_from_before_keeps_its_hash(tmp_path: Path) -> None:
    plan = plan_station(load_recipe("web").stations[0])
    whole = Calibration(maskline_version="0", created_utc="1970", source="", stations={"cam": calibration(plan, None)})
    assert "sharpness" not in json.loads(whole.to_bytes())["stations"]["cam"]
    (tmp_path / "c.json").write_bytes(whole.to_bytes())
    loaded = load_calibration(tmp_path / "c.json")
    assert loaded is not None
    assert loaded.sha256 == whole.sha256
    assert isinstance(loaded.stations["cam"].provenance, Provenance)
