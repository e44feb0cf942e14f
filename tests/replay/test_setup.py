"""What a recording is replayed with, and what it is refused for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from calib.calibration import Calibration, load_calibration
from edge.detector import open_detectors
from edge.errors import BundleError, CalibrationError, MasklineError
from edge.paths import calibration_path
from edge.plan import plan_line
from edge.recipes import load_recipe
from edge.recording import Recording, RecordingWriter
from edge.replay.setup import ReplayError, Survey, fit_calibration, replay_recipe, set_up, survey
from edge.settings import Mode, Recipe
from edge.testing import calibrate_by_hand
from tests.support import marker_recipe

Numbers = dict[str, Iterable[int]]
FRAME = np.full((224, 224, 1), 100, np.uint8)


def a_recipe(folder: Path, extra: str = "", **options: object) -> Recipe:
    return load_recipe(marker_recipe(folder, stations=2, same_lane=True, extra=extra, **options))  # type: ignore[arg-type]


def calibrated(recipe: Recipe, folder: Path) -> Calibration:
    calibrate_by_hand(recipe, folder / "state")
    made = load_calibration(calibration_path(folder / "state"))
    assert made is not None
    return made


def record(
    folder: Path,
    numbers: Numbers,
    recipe: Recipe | None = None,
    calibration: Calibration | None = None,
    without: Iterable[tuple[str, int]] = (),
    **metadata: str,
) -> Recording:
    path = folder / "a.mcap"
    about = metadata | ({"recipe": recipe.model_dump_json()} if recipe else {})
    with RecordingWriter(path, about) as out:
        if calibration:
            out.calibration(calibration.to_bytes())
        for station, of_station in numbers.items():
            for number in of_station:
                out.trigger(station, number, number)
                if (station, number) not in set(without):
                    out.frame(station, number, number, FRAME)
    return Recording(path)


def surveyed(folder: Path, numbers: Numbers, **options: object) -> Survey:
    recipe = a_recipe(folder)
    return survey(record(folder, numbers, recipe, **options), recipe)  # type: ignore[arg-type]


BOTH: Numbers = {"s0": range(5), "s1": range(5)}


def test_a_recording_brings_all_that_its_replay_needs(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    bundles = {name: p.bundle.sha256 for name, p in plan_line(recipe).stations.items()}
    recording = record(tmp_path, BOTH, recipe, calibrated(recipe, tmp_path), bundles=json.dumps(bundles))
    ready = set_up(recording, None, None)
    assert ready.calibration.sha256 == calibrated(recipe, tmp_path).sha256
    assert ready.notes == ()
    assert ready.survey == Survey({"lane": range(5)}, frozenset(), frozenset({("s0", 0), ("s1", 0)}))


def test_the_line_reads_the_recording_and_reaches_nobody(tmp_path: Path) -> None:
    extra = 'outputs = { publish = ["tcp://127.0.0.1:5999"] }\nrecording = {}\nchange_over = { 1 = "recipe.toml" }\n'
    recipe = a_recipe(tmp_path, extra=extra, deadline_ms=50, triggers="independent")
    recording = record(tmp_path, {"s0": range(3, 9), "s1": range(4, 8)}, recipe)
    line = replay_recipe(recording, recipe, survey(recording, recipe), live=False, pictures=False)
    assert line.simulated
    assert (line.outputs.publish, line.recording, line.change_over, line.pictures.keep) == ((), None, {}, "none")
    assert line.deadline.deadline_ms == 600_000
    for station in line.stations:
        source = station.source
        assert (source.kind, source.path, source.channel) == ("recording", recording.path, station.name)
        assert (source.mode, source.triggers, source.first, source.parts) == (Mode.LOSSLESS, "independent", 4, 4)
    live = replay_recipe(recording, recipe, survey(recording, recipe), live=True, pictures=True)
    assert live.deadline == recipe.deadline
    assert live.stations[0].source.mode is Mode.LIVE
    Recipe.model_validate_json(line.model_dump_json())


def test_parts_are_replayed_that_all_stations_saw(tmp_path: Path) -> None:
    found = surveyed(tmp_path, {"s0": range(100, 110), "s1": range(102, 112)}, without=[("s1", 105)])
    assert found.lanes == {"lane": range(102, 110)}
    assert found.parts == 8
    assert found.unrecorded == {("s1", 105)}
    assert found.after_gap == {("s1", 102), ("s1", 106)}


def test_a_number_that_is_missing_is_a_part_without_a_frame(tmp_path: Path) -> None:
    assert surveyed(tmp_path, {"s0": [1, 2, 5], "s1": range(1, 6)}).unrecorded == {("s0", 3), ("s0", 4)}


def test_a_lane_of_which_no_part_was_seen_by_all(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="no part of lane lane that s0 and s1 both saw"):
        surveyed(tmp_path, {"s0": range(3), "s1": range(7, 9)})


def test_a_recording_that_does_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"part 4000000000 follows part 1; at most 10000"):
        surveyed(tmp_path, {"s0": [0, 1, 4_000_000_000], "s1": [0, 1]})


@pytest.mark.parametrize(
    ("numbers", "given", "expected"),
    [
        (BOTH, False, "no recipe in this recording; name one with --recipe"),
        ({"s0": range(5)}, True, r"the recipe needs s1, and recorded are s0; name them as source.channel"),
    ],
)
def test_a_recipe_that_is_missing_or_does_not_fit(tmp_path: Path, numbers: Numbers, given: bool, expected: str) -> None:
    recording = record(tmp_path, numbers)
    with pytest.raises(ReplayError, match=expected):
        set_up(recording, a_recipe(tmp_path) if given else None, None)


def test_a_bundle_with_another_hash(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    recording = record(tmp_path, BOTH, recipe, calibrated(recipe, tmp_path), bundles=json.dumps({"s1": "0" * 64}))
    with pytest.raises(BundleError, match=r"a\.mcap: station s1 ran with the bundle 000000000000…, and .*marker is"):
        set_up(recording, None, None)
    set_up(recording, recipe, None)  # a recipe that was named is replayed with what it names


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    gone = recipe.stations[0].model_copy(update={"bundle": str(tmp_path / "gone")})
    recipe = recipe.model_copy(update={"stations": (gone, recipe.stations[1])})
    with pytest.raises(BundleError, match=r"a\.mcap: .*station s0: .*gone.*ran with these bundles: s0: 1111"):
        set_up(record(tmp_path, BOTH, recipe, bundles=json.dumps({"s0": "1" * 64})), None, None)


def test_bundles_that_are_no_list_of_bundles(tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match="its bundles cannot be read"):
        set_up(record(tmp_path, BOTH, a_recipe(tmp_path), bundles="[1"), None, None)


def test_a_calibration_that_is_missing(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    with pytest.raises(CalibrationError, match="no calibration in this recording; name one with --calibration"):
        set_up(record(tmp_path, BOTH, recipe), None, None)
    ready = set_up(record(tmp_path, BOTH, recipe), None, calibrated(recipe, tmp_path))
    assert set(ready.calibration.stations) == {"s0", "s1"}


def moved(calibration: Calibration, **provenance: str) -> Calibration:
    limits = calibration.stations["s1"]
    changed = limits.model_copy(update={"provenance": limits.provenance.model_copy(update=provenance)})
    return calibration.model_copy(update={"stations": {**calibration.stations, "s1": changed}})


def test_thresholds_of_another_machine_are_taken_over_and_it_is_said(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    elsewhere = moved(calibrated(recipe, tmp_path), isa="avx512_vnni", backend_version="2019.1", device="GPU")
    ready = set_up(record(tmp_path, BOTH, recipe, elsewhere), None, None)
    assert ready.calibration.stations["s1"] == calibrated(recipe, tmp_path).stations["s1"]
    (note,) = ready.notes
    assert note.startswith("station s1: thresholds are taken over from another machine: ")
    assert "isa is 'any', calibrated with 'avx512_vnni'" in note


@pytest.mark.parametrize(
    "field", ["bundle_sha256", "recipe_sha256", "backend", "precision", "plan"], ids=lambda field: field
)
def test_thresholds_for_something_else_are_not(tmp_path: Path, field: str) -> None:
    recipe = a_recipe(tmp_path)
    wrong = moved(calibrated(recipe, tmp_path), **{field: "0" * 64})
    with pytest.raises(
        CalibrationError, match=f"station s1: the calibration does not hold for this recipe: {field} is"
    ):
        set_up(record(tmp_path, BOTH, recipe, wrong), None, None)


def test_a_calibration_without_a_station(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    plan = plan_line(recipe)
    made = calibrated(recipe, tmp_path)
    short = made.model_copy(update={"stations": {"s0": made.stations["s0"]}})
    with pytest.raises(CalibrationError, match="station s1: the calibration has no thresholds for it"):
        fit_calibration(record(tmp_path, BOTH, recipe), short, plan, open_detectors(plan))
