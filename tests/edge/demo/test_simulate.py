"""The simulated web and its recordings: seeded, from the right half, with the truth beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.demo import simulate as simulation
from edge.demo.simulate import Simulated, simulate, web_of
from edge.demo.web import Web, load_photo, photo_names
from edge.errors import SourceError
from edge.recording import RecordedFrame, Recording
from edge.settings import Frame, Station
from edge.sources import Ended, Exposed, open_source

SMALL = Frame(width_px=96, height_px=80)


def web(**fields: Any) -> Web:
    return Web(**{"texture": "brick", "frame": SMALL, "seed": 3, "defect_share": 0.4, **fields})


def test_any_part_can_be_made_again() -> None:
    forwards = [web().shot(n) for n in range(8)]
    for number in reversed(range(8)):
        again = web().shot(number)
        np.testing.assert_array_equal(again.image, forwards[number].image)
        assert (again.defect is None) == (forwards[number].defect is None)


def test_frames_are_no_repeats_even_where_nothing_is_wrong() -> None:
    images = [web(defect_share=0.0).shot(n).image for n in range(40)]
    for i, one in enumerate(images):
        for other in images[i + 1 :]:
            assert np.abs(one.astype(int) - other).mean() > 2


def test_truth_is_what_the_seed_says() -> None:
    camera = web()
    shots = [camera.shot(n) for n in range(40)]
    assert [s.defect is not None for s in shots] == [camera.is_bad(n) for n in range(40)]
    assert 5 < sum(camera.is_bad(n) for n in range(40)) < 30


def test_a_defect_changes_the_frame_under_its_mask_only() -> None:
    good, bad = web(defect_share=0.0), web(defect_share=1.0)
    for number in range(10):
        shot = bad.shot(number)
        assert shot.defect is not None
        change = np.abs(shot.image.astype(int) - good.shot(number).image)[:, :, 0]
        assert change[shot.defect.mask].mean() > 0.09 * 255
        assert change[~shot.defect.mask].max() <= 0.05 * 255


def test_a_half_is_all_that_its_camera_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.zeros((512, 512), np.float32)
    photo[:, 256:] = 0.8
    monkeypatch.setattr("edge.demo.web.load_photo", lambda name: photo)
    for number in range(20):
        assert web(half="left", defect_share=0.0).shot(number).image.max() < 0.05 * 255
        assert web(half="right", defect_share=0.0).shot(number).image.min() > 0.6 * 255


@pytest.mark.parametrize(
    ("frame", "scale"),
    [
        ({"width_px": 96, "height_px": 80, "bit_depth": 12, "channels": 3}, 1.0),
        ({"width_px": 300, "height_px": 600}, 1.0),
        ({"width_px": 224, "height_px": 224}, 1.75),
        ({"width_px": 256, "height_px": 512}, 1.0),
    ],
)
def test_frames_have_the_declared_size_and_depth(frame: dict[str, int], scale: float) -> None:
    declared = Frame.model_validate(frame)
    image = web(frame=declared, scale=scale, half="left").shot(5).image
    assert image.shape == (declared.height_px, declared.width_px, declared.channels)
    assert str(image.dtype) == declared.dtype
    full_scale = (1 << declared.bit_depth) - 1
    assert 0.2 * full_scale < image.mean() < 0.8 * full_scale
    assert image.max() <= full_scale


def test_unknown_photographs_and_halves_are_errors_that_name_those_that_exist() -> None:
    assert photo_names() == ["brick", "grass", "gravel"]
    with pytest.raises(SourceError, match=r"no photograph 'silk'.*brick, grass, gravel"):
        load_photo("silk")
    with pytest.raises(SourceError, match=r"half = 'top'.*left"):
        web(half="top")
    with pytest.raises(SourceError, match="40 x 80 px are too small"):
        web(frame=Frame(width_px=40, height_px=80))


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Simulated]:
    def record(name: str = "a.mcap", **change: Any) -> Simulated:
        fields = {"parts": 12, "seed": 5, "frame": SMALL, "defect_share": 0.5, **change}
        return simulate(tmp_path / name, {"left-cam": "brick", "right-cam": "gravel"}, **fields)

    return record


def test_the_same_seed_gives_the_same_bytes(recorded: Callable[..., Simulated]) -> None:
    first = recorded("a.mcap").path.read_bytes()
    assert recorded("b.mcap").path.read_bytes() == first
    assert recorded("c.mcap", seed=6).path.read_bytes() != first


def test_a_recording_holds_frames_and_their_truth(recorded: Callable[..., Simulated]) -> None:
    result = recorded()
    recording = Recording(result.path)
    assert recording.stations == ("left-cam", "right-cam")
    assert recording.metadata["simulated"] == "true"
    assert recording.metadata["seed"] == "5"
    assert recording.metadata["licence"].startswith("CC0")
    assert 0 < sum(result.bad.values()) == sum(result.kinds.values())
    for name, texture in {"left-cam": "brick", "right-cam": "gravel"}.items():
        camera = web_of(name, texture, 5, "right", SMALL, 1.0, 0.5)
        truths = recording.truths(name)
        frames = [e for e in recording.events(name) if isinstance(e, RecordedFrame)]
        assert [f.number for f in frames] == list(range(12)) == sorted(truths)
        assert sum(t.bad for t in truths.values()) == result.bad[name]
        for frame in frames:
            shot = camera.shot(frame.number)
            np.testing.assert_array_equal(frame.decode(), shot.image)
            assert truths[frame.number].bad == (shot.defect is not None)
            if shot.defect is not None:
                np.testing.assert_array_equal(truths[frame.number].mask(), shot.defect.mask)


def test_the_left_half_is_for_calibration_and_has_good_parts_only(recorded: Callable[..., Simulated]) -> None:
    result = recorded(half="left")
    assert result.bad == {"left-cam": 0, "right-cam": 0}
    assert not any(t.bad for t in Recording(result.path).truths("left-cam").values())


def test_a_recording_plays_on_a_line(recorded: Callable[..., Simulated]) -> None:
    station = Station.model_validate(
        {
            "name": "left-cam",
            "bundle": "x",
            "frame": SMALL.model_dump(),
            "source": {"kind": "recording", "path": recorded().path, "mode": "lossless", "triggers": "independent"},
        }
    )
    assert_plays(station, 12)


def test_a_web_plays_on_a_line() -> None:
    source = {"kind": "web", "texture": "gravel", "half": "right", "mode": "lossless", "parts": 4, "seed": 9}
    station = Station.model_validate({"name": "a", "bundle": "x", "frame": SMALL.model_dump(), "source": source})
    images = assert_plays(station, 4)
    np.testing.assert_array_equal(images[2], Web("gravel", SMALL, 9, "right").shot(2).image)


def assert_plays(station: Station, parts: int) -> list[np.ndarray]:
    source = open_source(station, 0, 0)
    images = []
    while not isinstance(event := source.poll(1.0), Ended):
        if isinstance(event, Exposed):
            assert event.image is not None
            images.append(event.image.copy())
    assert event == Ended(parts)
    assert [i.shape for i in images] == [(80, 96, 1)] * parts
    return images


def test_a_recording_that_fails_leaves_no_file(
    tmp_path: Path, recorded: Callable[..., Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more disk")

    with pytest.raises(SourceError, match="silk"):
        simulate(tmp_path / "a.mcap", {"x": "silk"}, parts=3)
    with pytest.raises(SourceError, match="parts = 0"):
        recorded(parts=0)
    with pytest.raises(SourceError, match="no station"):
        simulate(tmp_path / "a.mcap", {}, parts=3)
    with pytest.raises(SourceError, match="cannot write"):
        simulate(tmp_path / "no" / "a.mcap", {"x": "brick"}, parts=3)
    monkeypatch.setattr(simulation, "_truth", fail)
    with pytest.raises(RuntimeError):
        recorded()
    assert list(tmp_path.iterdir()) == []
