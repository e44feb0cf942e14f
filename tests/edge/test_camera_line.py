"""A line with two stations, one with a camera that is away from the start, or goes and comes back: the other one never
waits for it, and no restart budget is spent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edge.messages import Verdict
from edge.testing import RunningLine, wait_until
from edge.verdict import Decision, GateState
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

sys.path.insert(0, str(Path(__file__).with_name("sources")))
from fake_gige import fake_camera

gi = pytest.importorskip("gi", reason="PyGObject is not installed (extra gige)")
try:
    gi.require_version("Aravis", "0.8")
except ValueError:
    pytest.skip("Aravis is not installed (gir1.2-aravis-0.8)", allow_module_level=True)

pytestmark = [pytest.mark.line, pytest.mark.timeout(180)]

CONFIG = 78

CAMERA = """
[[stations]]
name = "cam"
lane = "{lane}"
bundle = "marker"
frame = {{ width_px = 224, height_px = 224 }}
slots = 16
[stations.source]
kind = "genicam"
address = "{address}"
camera = {{ simulated = true, trigger = {{ rate_hz = 20 }} }}
"""


def two_stations(folder: Path, address: str, same_lane: bool = False) -> Path:
    recipe = marker_recipe(
        folder,
        parts=None,
        rate_hz=20,
        deadline_ms=5_000,
        same_lane=same_lane,
        extra="supervision = { restarts = 0, window_s = 3600 }",
    )
    with recipe.open("a", encoding="utf-8") as file:
        file.write(CAMERA.format(address=address, lane="lane" if same_lane else "cam"))
    calibrate_marker(recipe, folder / "state")
    return recipe


def of(listener: Listener, lane: str) -> list[Verdict]:
    return [v for v in listener.verdicts if v.lane == lane]


def trouble(listener: Listener) -> list[str]:
    return listener.beats[-1].trouble if listener.beats else ["no heartbeat"]


def state(listener: Listener) -> GateState | None:
    return listener.beats[-1].state if listener.beats else None


def assert_never_waited(verdicts: list[Verdict]) -> None:
    """Each part was inspected in time, one after the other."""
    assert [v.part for v in verdicts] == list(range(verdicts[0].part, verdicts[0].part + len(verdicts)))
    assert {v.decision for v in verdicts} <= {Decision.PASS, Decision.REJECT}


def test_a_camera_that_is_not_there_from_the_start(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = two_stations(tmp_path, "192.0.2.1")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as listener:
        wait_until(lambda: line.log.read_text().count("camera_away") >= 2, 60)
        wait_until(lambda: len(of(listener, "s0")) >= 40, 60)
        assert state(listener) is GateState.DEGRADED
        assert trouble(listener) == ["the camera of station cam is away and tried again: genicam 192.0.2.1"]
        assert line.stop() == 0, line.log.read_text()
    log = [json.loads(entry) for entry in line.log.read_text().splitlines() if entry.startswith("{")]
    assert any("camera 192.0.2.1: cannot be opened" in entry.get("error", "") for entry in log)
    assert [e["next_try_s"] for e in log if e["event"] == "camera_away"][:2] == [0.5, 1.0]
    assert_never_waited(of(listener, "s0"))
    assert not of(listener, "cam")


def test_a_camera_that_comes_late_to_a_lane_with_others_knows_that_it_has_lost_its_place(
    tmp_path: Path, runtime_dir: Path
) -> None:
    recipe = two_stations(tmp_path, "127.0.0.1", same_lane=True)
    with (
        fake_camera() as fake,
        RunningLine(recipe, tmp_path / "state", runtime_dir) as line,
        Listener(line.endpoint) as listener,
    ):
        fake.kill()
        wait_until(lambda: "line_ready" in line.log.read_text(), 60)
        fake.start()
        wait_until(lambda: "lane_not_aligned" in line.log.read_text(), 60)
        wait_until(lambda: len(of(listener, "lane")) >= 10)
        assert line.stop() == 0, line.log.read_text()
    assert Decision.PASS not in {v.decision for v in listener.verdicts}


def test_a_recipe_that_the_camera_does_not_take_ends_the_line_before_it_is_up(
    tmp_path: Path, runtime_dir: Path
) -> None:
    recipe = two_stations(tmp_path, "127.0.0.1")
    recipe.write_text(recipe.read_text().replace("rate_hz = 20 }", "rate_hz = 20 }, features = { Gammma = 1 }"))
    with fake_camera(), RunningLine(recipe, tmp_path / "state", runtime_dir) as line:
        assert line.wait(60) == CONFIG
    assert "source.camera.features.Gammma: this camera has no feature Gammma" in line.log.read_text()


def test_a_camera_that_goes_and_comes_back(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = two_stations(tmp_path, "127.0.0.1")
    with (
        fake_camera() as fake,
        RunningLine(recipe, tmp_path / "state", runtime_dir) as line,
        Listener(line.endpoint) as listener,
    ):
        wait_until(lambda: len(of(listener, "cam")) >= 10, 60)
        wait_until(lambda: state(listener) is GateState.READY)
        fake.kill()
        wait_until(lambda: state(listener) is GateState.DEGRADED)
        assert trouble(listener) == ["the camera of station cam is away and tried again: genicam 127.0.0.1"]
        before, others = len(of(listener, "cam")), len(of(listener, "s0"))
        wait_until(lambda: len(of(listener, "s0")) >= others + 20)
        assert len(of(listener, "cam")) == before
        fake.start()
        wait_until(lambda: len(of(listener, "cam")) >= before + 10, 60)
        wait_until(lambda: state(listener) is GateState.READY)
        assert line.stop() == 0, line.log.read_text()
    assert_never_waited(of(listener, "s0"))
    seen = of(listener, "cam")
    assert [v.part for v in seen] == list(range(seen[0].part, seen[0].part + len(seen)))
    assert all(v.simulated for v in seen)
