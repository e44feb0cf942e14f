"""Recipes with actuators: what cannot be safe is refused, and says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from edge.actuators.belt import BeltSettings
from edge.actuators.process import actuate, chosen
from edge.actuators.settings import MatchByCount
from edge.cli import app
from edge.errors import RecipeError
from edge.recipes import load_recipe
from tests.conveyor_line import conveyor_recipe
from tests.edge.actuators.actuator_helpers import actuator


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timing": {"unit": "counts", "delay": 8, "pulse": 8, "tolerance": 3, "min_spacing": 12}}, "pass the sensor"),
        ({"match": {"by": "count", "distance_counts": 60, "window_counts": 6}}, "two parts would fit"),
        ({"match": {"by": "time", "delay_ms": 60, "window_ms": 4}}, "goes with timing.unit"),
        ({"min_age_ms": 1000}, "is not less than max_age_ms"),
        ({"drivers": [{"kind": "mqtt", "host": "h", "topic": "t"}]}, "0 of its drivers have an ejector"),
        ({"match": {"by": "number"}}, "number"),
        ({"channel": "tcp://10.0.0.5:5599"}, "anybody could say PASS"),
        ({"server_key": "line.key"}, "go together"),
        ({"channel": "tcp://10.0.0.5:5599", "client_key": "a", "insecure": True}, "go together"),
    ],
)
def test_settings_that_cannot_be_safe_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        actuator(**changes)


def test_a_plc_that_follows_its_parts_itself_needs_no_ejector_of_ours() -> None:
    """It triggers at the camera, and many parts are on their way before the first result."""
    timing = {"unit": "ms", "delay": 400, "pulse": 10, "tolerance": 50, "min_spacing": 20}
    drivers = [{"kind": "modbus", "role": "server", "host": "127.0.0.1", "ejector": False}]
    assert actuator(drivers=drivers, match={"by": "id"}, timing=timing).timing.delay == 400
    with pytest.raises(ValidationError, match="pass the sensor"):
        actuator(match={"by": "id"}, timing=timing)


def test_a_plc_that_ejects_may_trigger_at_the_sensor() -> None:
    """Then one part at a time is between it and its ejector, and needs no id."""
    drivers = [{"kind": "modbus", "role": "server", "host": "127.0.0.1", "ejector": False}]
    assert not actuator(drivers=drivers).has_ejector
    with pytest.raises(ValidationError, match="pass the sensor"):
        actuator(drivers=drivers, timing={"unit": "counts", "delay": 8, "pulse": 8, "tolerance": 3, "min_spacing": 12})


@pytest.mark.parametrize("channel", ["", "ipc:///run/x", "tcp://127.0.0.1:5599", "tcp://[::1]:5599"])
def test_on_this_machine_a_channel_needs_no_keys(channel: str) -> None:
    assert actuator(channel=channel).server_key is None


def test_from_another_machine_it_has_keys_or_says_that_it_has_none() -> None:
    there = "tcp://10.0.0.5:5599"
    assert actuator(channel=there, server_key="line.key", client_key="client.key_secret").channel == there
    assert actuator(channel=there, insecure=True).insecure


def test_actuators_that_are_meant(tmp_path: Path) -> None:
    path = conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", BeltSettings())
    text = path.read_text()
    path.write_text(text + text[text.index("[[actuators]]") :].replace('name = "ejector"', 'name = "second"'))
    recipe = load_recipe(path)
    assert [a.name for a in chosen(recipe, None)] == ["ejector", "second"]
    assert [a.name for a in chosen(recipe, "second")] == ["second"]
    with pytest.raises(RecipeError, match="no actuator 'third'; the recipe has ejector, second"):
        chosen(recipe, "third")
    with pytest.raises(RecipeError, match="has no commissioning mode"):
        actuate(recipe, None, tmp_path, tmp_path, commissioning="ada")
    with pytest.raises(RecipeError, match=r"has no \[\[actuators\]\]"):
        chosen(load_recipe("web"), None)


def changed(tmp_path: Path, before: str, after: str) -> Path:
    path = conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", BeltSettings())
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return path


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('lane = "cam"', 'lane = "other"', "no lane 'other'"),
        ('name = "ejector"', 'name = "Ejector"', "actuators.0.name"),
        ('kind = "conveyor", ', 'kind = "marker", ', 'kind = "conveyor" needs an endpoint'),
        ("max_age_ms = ", "max_age_ms = 0 # ", "max_age_ms = 0"),
        ('at_rest = "reject"', "", "at_rest: this field is required"),
    ],
)
def test_a_wrong_recipe_says_which_field(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(changed(tmp_path, before, after))


def test_by_id_a_camera_needs_the_ids_of_a_plc(tmp_path: Path) -> None:
    path = conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", BeltSettings(part_ids=True), by="id")
    assert load_recipe(path).actuator("ejector").match.by == "id"
    conveyor = next(line for line in path.read_text().splitlines() if line.startswith("source = "))
    camera = 'source = { kind = "genicam", address = "camera-1" }'
    path.write_text(path.read_text().replace(conveyor, camera))
    with pytest.raises(RecipeError, match=r"from the PLC at the trigger .* station cam \(genicam\) gets none: add"):
        load_recipe(path)
    ids = '\npart_ids = { host = "10.0.0.7", address = 2 }'
    path.write_text(path.read_text().replace(camera, camera + ids))
    assert load_recipe(path).actuator("ejector").match.by == "id"


def test_by_id_the_first_camera_of_a_lane_says_which_part_it_is(tmp_path: Path) -> None:
    path = conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", BeltSettings(part_ids=True), by="id")
    text = path.read_text()
    head, station, rest = text.partition("[[stations]]")
    station += rest[: rest.index("[[actuators]]")]
    conveyor = next(line for line in text.splitlines() if line.startswith("source = "))
    first = station.replace(conveyor, 'source = { kind = "genicam", address = "camera-1" }\nlane = "cam"')
    second = first.replace('name = "cam"', 'name = "side"\nbehind = { delay_ms = 1, window_ms = 1 }')
    ids = 'lane = "cam"\npart_ids = { host = "10.0.0.7", address = 2 }'
    rest = rest[rest.index("[[actuators]]") :]
    path.write_text(head + first.replace('lane = "cam"', ids) + second + rest)
    assert load_recipe(path).actuator("ejector").match.by == "id"
    path.write_text(head + first + second.replace('lane = "cam"', ids) + rest)
    with pytest.raises(RecipeError, match="station side: part_ids belong to cam, the first station of lane cam"):
        load_recipe(path)


def test_after_a_change_over_actuators_start_with_the_recipe_in_use(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLINE_RUNTIME_DIR", str(runtime_dir))
    path = conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", BeltSettings())
    other = tmp_path / "other.toml"
    text = path.read_text()
    other.write_text(text[: text.index("[[actuators]]")])
    (tmp_path / "recipe_in_use.json").write_text(json.dumps({"recipe": str(other)}))
    done = CliRunner().invoke(app, ["actuate", str(path), "--state-dir", str(tmp_path)])
    assert isinstance(done.exception, RecipeError)
    assert "the recipe has no [[actuators]]" in str(done.exception)


def test_an_ejector_that_rests_at_pass_needs_a_wired_line_ok(tmp_path: Path) -> None:
    path = changed(tmp_path, 'at_rest = "reject"', 'at_rest = "pass"')
    assert load_recipe(path).actuator("ejector").at_rest == "pass"
    path.write_text(path.read_text().replace('wired = "plc"', 'wired = "none", because = "a test"'))
    with pytest.raises(RecipeError, match="lets everything pass when this box dies"):
        load_recipe(path)


def test_names_are_unique(tmp_path: Path) -> None:
    path = conveyor_recipe(tmp_path, "ipc:///tmp/nowhere", BeltSettings())
    text = path.read_text()
    path.write_text(text + text[text.index("[[actuators]]") :])
    with pytest.raises(RecipeError, match="actuators named twice: ejector"):
        load_recipe(path)


def test_the_shipped_recipe_fits_the_conveyor() -> None:
    recipe, belt = load_recipe("conveyor"), BeltSettings()
    found = recipe.actuator("ejector")
    assert isinstance(found.match, MatchByCount)
    assert found.match.distance_counts == (belt.sensor_mm - belt.camera_mm) * belt.counts_per_mm
    last_counts = (belt.ejector_mm - belt.sensor_mm) * belt.counts_per_mm
    reach_counts = belt.reach_mm * belt.counts_per_mm
    timing = found.timing
    assert timing.delay + timing.tolerance < last_counts - reach_counts
    assert timing.delay + timing.pulse > last_counts + reach_counts
    assert timing.min_spacing <= (belt.spacing_mm - 2 * belt.jitter_mm) * belt.counts_per_mm


def test_a_hash_of_a_recipe_is_the_same_in_every_process(tmp_path: Path) -> None:
    path = changed(tmp_path, "max_late", 'watch = ["bin_full", "air_ok"]\nmax_late')
    command = [sys.executable, "-c", f"from edge.recipes import load_recipe; print(load_recipe({str(path)!r}).sha256)"]
    found = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
