"""Calibrating a line as a user does: a recipe, and good parts in a folder or a recording."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from calib.calibration import mismatch
from calib.fitting import Targets
from calib.run import calibrate
from edge.demo.simulate import simulate
from edge.detector import open_detectors
from edge.errors import CalibrationError, SourceError
from edge.judge import provenance
from edge.plan import plan_line
from edge.recipes import load_recipe
from edge.recording import RecordedTruth, RecordingWriter
from edge.settings import Frame, Recipe

STATION = """
[[stations]]
name = "{name}"
lane = "{lane}"
bundle = "null"
plan = "{plan}"
frame = {{ width_px = {side}, height_px = {side} }}
source = {{ kind = "folder", path = "." }}
"""


def recipe(folder: Path, *names: str, plan: str = "x1", lane: str = "", side: int = 224) -> Recipe:
    head = 'line = "test"\nsafe_state = "reject_all"\nline_ok = { wired = "none", because = "a test" }\n'
    head += 'deadline = { deadline_ms = 1000 }\nengine = { backend = "null" }\n'
    stations = "".join(STATION.format(name=n, lane=lane, plan=plan, side=side) for n in names)
    (folder / "recipe.toml").write_text(head + stations)
    return load_recipe(folder / "recipe.toml")


def fill(folder: Path, count: int, side: int = 224) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = np.random.default_rng(i).integers(60, 190, (side, side), np.uint8)
        cv2.imwrite(str(folder / f"{i:03}.png"), image)
    return folder


def test_a_folder_calibrates_a_line_and_matches_what_runs_it(tmp_path: Path) -> None:
    line = recipe(tmp_path, "web")
    said = io.StringIO()
    found = calibrate(line, fill(tmp_path / "good", 12), console=Console(file=said, width=200))
    limits = found.stations["web"]
    assert (limits.parts_fit, limits.parts_held_out) == (6, 6)
    assert limits.cascade_band is None
    assert found.source == str(tmp_path / "good")
    assert "web: score threshold" in said.getvalue()
    assert "cannot promise" in said.getvalue()
    plan = plan_line(line)
    info = open_detectors(plan)["web"].info
    assert mismatch(limits, provenance(plan.stations["web"], info)) is None
    assert "plan" in str(mismatch(limits, provenance(plan.stations["web"], {**info, "plan": "x4"})))


def test_a_cascade_gets_its_band(tmp_path: Path) -> None:
    found = calibrate(recipe(tmp_path, "web", plan="cascade"), fill(tmp_path / "good", 10))
    assert found.stations["web"].cascade_band == (0, 0)  # the null engine repaints the same by every plan
    assert found.stations["web"].provenance.plan == "cascade"


def test_two_stations_need_a_folder_each_and_share_a_part(tmp_path: Path) -> None:
    line = recipe(tmp_path, "left", "right", lane="both")
    fill(tmp_path / "good" / "left", 10)
    with pytest.raises(SourceError, match="right: no such folder; the recipe has 2 stations"):
        calibrate(line, tmp_path / "good")
    fill(tmp_path / "good" / "right", 14)
    found = calibrate(line, tmp_path / "good", targets=Targets(false_reject_rate=0.02))
    assert {s.target_false_reject_rate for s in found.stations.values()} == {0.01}
    assert [s.parts_held_out for s in found.stations.values()] == [5, 7]


def test_a_recording_calibrates_without_its_bad_parts(tmp_path: Path) -> None:
    line = recipe(tmp_path, "web")
    good = simulate(
        tmp_path / "good.mcap", {"web": "gravel"}, parts=10, half="left", frame=Frame(width_px=224, height_px=224)
    )
    assert calibrate(line, good.path).stations["web"].parts_held_out == 5
    with RecordingWriter(tmp_path / "mixed.mcap", {}) as writer:
        for i in range(14):
            image = np.random.default_rng(i).integers(60, 190, (224, 224, 1), np.uint8)
            writer.trigger("web", i, i)
            writer.frame("web", i, i, image)
            writer.truth("web", RecordedTruth(i, i, bad=i % 7 == 0, kind="hole"))
    found = calibrate(line, tmp_path / "mixed.mcap")
    assert (found.stations["web"].parts_fit, found.stations["web"].parts_held_out) == (6, 6)
    assert "2 views of parts that are bad in truth left out" in found.source
    with pytest.raises(SourceError, match=r"no station 'other' in this recording, which has: web"):
        calibrate(recipe(tmp_path, "other"), tmp_path / "mixed.mcap")


def test_what_is_no_good_part_is_named(tmp_path: Path) -> None:
    line, good = recipe(tmp_path, "web"), fill(tmp_path / "good", 10)
    cv2.imwrite(str(good / "003.png"), np.full((224, 224), 7, np.uint8))
    with pytest.raises(CalibrationError, match=r"station web: .*003\.png: all of one grey"):
        calibrate(line, good)
    cv2.imwrite(str(good / "003.png"), np.zeros((224, 225), np.uint8))
    with pytest.raises(CalibrationError, match=r"003\.png: frame is 225x224 px.*declares 224x224 px"):
        calibrate(line, good)
    (good / "003.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match=r"003\.png: .*take it out"):
        calibrate(line, good)
    with pytest.raises(CalibrationError, match="3 good parts"):
        calibrate(line, fill(tmp_path / "few", 3))
    with pytest.raises(SourceError, match="no such file or folder"):
        calibrate(line, tmp_path / "nowhere")
