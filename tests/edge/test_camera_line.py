"""A line with two stations, one with a camera that is away from the start, or goes and comes back: the other one never
waits for it, and no restart budget is spent."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge.cli import app
from edge.journal import open_for_reading
from edge.messages import Verdict
from edge.paths import journal_path
from edge.recording import RecordedTrigger, Recording
from edge.testing import RunningLine, journal_verdicts, wait_until
from edge.verdict import Decision, GateState
from tests.edge.actuators.driver_helpers import free_port
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

sys.path.insert(0, str(Path(__file__).with_name("sources")))
from fake_gige import fake_camera
from plc_register import ADDRESS, UNIT, Plc

gi = pytest.importorskip("gi", reason="PyGObject is not installed (extra gige)")
try:
    gi.require_version("Aravis", "0.8")
except ValueError:
    pytest.skip("Aravis is not installed (gir1.2-aravis-0.8)", allow_module_level=True)

pytestmark = pytest.mark.line

CONFIG = 78

CAMERA = """
[[stations]]
name = "cam"
lane = "{lane}"
bundle = "null"
frame = {{ width_px = 224, height_px = 224 }}
slots = 64
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
        deadline_ms=20_000,
        engine="null",
        same_lane=same_lane,
        extra="supervision = { restarts = 0, window_s = 3600 }",
    )
    recipe.write_text(recipe.read_text() + CAMERA.format(address=address, lane="lane" if same_lane else "cam"))
    calibrate_marker(recipe, folder / "state")
    return recipe


def of(listener: Listener, lane: str) -> list[Verdict]:
    return [v for v in listener.verdicts if v.lane == lane]


def assert_never_waited(verdicts: list[Verdict]) -> None:
    """Each part was inspected in time, one after the other."""
    assert [v.part for v in verdicts] == list(range(verdicts[0].part, verdicts[0].part + len(verdicts)))
    assert {v.decision for v in verdicts} <= {Decision.PASS, Decision.REJECT}


def test_a_camera_that_is_not_there_from_the_start(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = two_stations(tmp_path, "192.0.2.1")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as listener:
        wait_until(lambda: line.log.read_text().count("camera_away") >= 2)
        wait_until(lambda: len(of(listener, "s0")) >= 40)
        assert listener.state is GateState.DEGRADED
        assert listener.trouble == ["the camera of station cam is away and tried again: genicam 192.0.2.1"]
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
        wait_until(lambda: "line_ready" in line.log.read_text())
        fake.start()
        wait_until(lambda: "lane_not_aligned" in line.log.read_text())
        wait_until(lambda: len(of(listener, "lane")) >= 10)
        assert line.stop() == 0, line.log.read_text()
    assert Decision.PASS not in {v.decision for v in listener.verdicts}


def test_a_recipe_that_the_camera_does_not_take_ends_the_line_before_it_is_up(
    tmp_path: Path, runtime_dir: Path
) -> None:
    recipe = two_stations(tmp_path, "127.0.0.1")
    recipe.write_text(recipe.read_text().replace("rate_hz = 20 }", "rate_hz = 20 }, features = { Gammma = 1 }"))
    with fake_camera(), RunningLine(recipe, tmp_path / "state", runtime_dir) as line:
        assert line.wait() == CONFIG
    assert "source.camera.features.Gammma: this camera has no feature Gammma" in line.log.read_text()


def test_a_camera_that_goes_and_comes_back(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = two_stations(tmp_path, "127.0.0.1")
    with (
        fake_camera() as fake,
        RunningLine(recipe, tmp_path / "state", runtime_dir) as line,
        Listener(line.endpoint) as listener,
    ):
        wait_until(lambda: len(of(listener, "cam")) >= 10)
        wait_until(lambda: listener.state is GateState.READY)
        fake.kill()
        wait_until(lambda: listener.state is GateState.DEGRADED)
        assert listener.trouble == ["the camera of station cam is away and tried again: genicam 127.0.0.1"]
        before, others = len(of(listener, "cam")), len(of(listener, "s0"))
        wait_until(lambda: len(of(listener, "s0")) >= others + 20)
        assert len(of(listener, "cam")) == before
        fake.start()
        wait_until(lambda: len(of(listener, "cam")) >= before + 10)
        wait_until(lambda: listener.state is GateState.READY)
        assert line.stop() == 0, line.log.read_text()
    assert_never_waited(of(listener, "s0"))
    seen = of(listener, "cam")
    assert [v.part for v in seen] == list(range(seen[0].part, seen[0].part + len(seen)))
    assert all(v.simulated for v in seen)


IDENTIFIED = """
[stations.part_ids]
host = "127.0.0.1"
port = {port}
unit = {unit}
address = {address}
timeout_ms = 10_000
[[actuators]]
name = "ejector"
lane = "cam"
at_rest = "reject"
max_age_ms = 2_000
match = {{ by = "id" }}
drivers = [{{ kind = "gpio", ejector = {{ line = 1 }} }}]
timing = {{ unit = "ms", delay = 10, pulse = 20, tolerance = 5, min_spacing = 50 }}
"""
SOFTWARE_TRIGGER = 0x30C
"""Of the simulated camera: it exposes a frame when 1 is written here."""


def test_the_ids_of_a_plc_reach_verdicts_journal_and_recording(tmp_path: Path, runtime_dir: Path) -> None:
    port = free_port()
    recipe = two_stations(tmp_path, "127.0.0.1")
    text = recipe.read_text().replace("trigger = { rate_hz = 20 }", 'trigger = { kind = "edge", source = "Software" }')
    text = text.replace("supervision =", 'recording = { folder = "recorded" }\nsupervision =')
    recipe.write_text(text + IDENTIFIED.format(port=port, unit=UNIT, address=ADDRESS))
    with (
        fake_camera() as fake,
        RunningLine(recipe, tmp_path / "state", runtime_dir) as line,
        Listener(line.endpoint) as listener,
    ):

        def part_of(plc: Plc, written: int | None) -> int | None:
            """The id of the verdict on a part, of which the PLC writes that id."""
            if written is not None:
                plc.register = written
            plc.hear()
            before = len(of(listener, "cam"))
            fake.write_register(SOFTWARE_TRIGGER, 1)
            wait_until(lambda: len(of(listener, "cam")) > before)
            return of(listener, "cam")[-1].part_id

        with Plc(port, 900) as plc:
            wait_until(lambda: listener.state is GateState.READY)
            wait_until(lambda: part_of(plc, plc.register + 1) is not None)  # the camera's clock is known then
            found = [part_of(plc, written) for written in (65_535, 1, None, 2)]
        wait_until(lambda: line.log.read_text().count("plc_away") > 0)
        with Plc(port, 2) as plc:
            found += [part_of(plc, written) for written in (None, 3, 4)]
        assert found == [65_535, 1, None, 2, None, 3, 4]
        verdicts = of(listener, "cam")
        assert line.stop() == 0, line.log.read_text()
    told = [v.part_id for v in journal_verdicts(tmp_path / "state") if v.lane == "cam"]
    assert told == [v.part_id for v in verdicts]
    with closing(open_for_reading(journal_path(tmp_path / "state"))) as db:
        assert told == [row[0] for row in db.execute("SELECT part_id FROM triggers WHERE station = 'cam'")]
    asked = ["journal", "query", str(recipe), "--state-dir", str(tmp_path / "state"), "--part-id", "65535", "--json"]
    (line_of_it,) = CliRunner().invoke(app, asked).output.splitlines()
    assert json.loads(line_of_it)["part"] == told.index(65_535)
    (file,) = (tmp_path / "recorded").glob("*.mcap")
    recorded = [e.part_id for e in Recording(file).events("cam") if isinstance(e, RecordedTrigger)]
    assert recorded == told
