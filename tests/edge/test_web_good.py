"""Good frames of a web are calibrated from as they are inspected: with the rows of the frame before, if it is there."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from calib.good import find_good_images
from edge.plan import plan_line, record_slots
from edge.recipes import load_recipe
from edge.recording import RecordingWriter
from edge.settings import Recipe

RECIPE = """
line = "test"
safe_state = "reject_all"
line_ok = { wired = "none", because = "a test" }
deadline = { deadline_ms = 1000 }
recording = { folder = "recordings" }
[[stations]]
name = "cam"
bundle = "marker"
frame = { width_px = 224, height_px = 200 }
web = { mm_per_line = 1, overlap_px = 24 }
source = { kind = "marker" }
"""


def frame(number: int) -> np.ndarray:
    return (np.arange(200)[:, None, None] + 50 * number).astype(np.uint8).repeat(224, 1)


def recipe(folder: Path) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(path)


def windows(good: Path, one: Recipe) -> list[tuple[np.ndarray, int]]:
    return [(image[:, 0, 0].copy(), before) for _, image, before in find_good_images(good, one)["cam"].images()]


def expected(number: int, before: int | None) -> np.ndarray:
    above = frame(number)[:24] if before is None else frame(before)[-24:]
    return np.concatenate([above, frame(number)])[:, 0, 0]


def test_of_a_folder_each_follows_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "good" / f"{number}.png"), frame(number))
    found = windows(tmp_path / "good", recipe(tmp_path))
    assert [before for _, before in found] == [0, 24, 24]
    for number, (image, _) in enumerate(found):
        assert np.array_equal(image, expected(number, number - 1 if number else None))


def test_of_a_recording_none_follows_a_gap(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "good.mcap", {}) as out:
        for number in (0, 1, 3):
            out.frame("cam", number, number * 1_000_000, frame(number))
    found = windows(tmp_path / "good.mcap", recipe(tmp_path))
    assert [before for _, before in found] == [0, 24, 0]
    assert np.array_equal(found[1][0], expected(1, 0))
    assert np.array_equal(found[2][0], expected(3, None))


def test_a_slot_has_the_window_and_the_recorder_gets_the_frame(tmp_path: Path) -> None:
    layouts = plan_line(recipe(tmp_path)).layouts
    assert layouts["cam"].arrays[0].shape == (224, 224, 1)
    assert [array.shape for array in layouts[record_slots("cam")].arrays] == [(200, 224, 1)]
