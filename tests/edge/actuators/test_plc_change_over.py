"""A PLC wants another product: Modbus to the actuator, the actuator to the supervisor, the line to the other recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.actuators.modbus_map import ControlBit, ControlWord, StatusBit, StatusWord
from edge.audit import audit_path
from edge.bench.conveyor_line import RunningActuator
from edge.recipes import load_recipe
from edge.testing import RunningLine, wait_until
from tests.edge.actuators.driver_helpers import free_port
from tests.edge.actuators.plc_helpers import CONTROL, STATUS, Master
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

pytestmark = pytest.mark.line

CAN = 7
"""What the PLC calls the other product."""

PLC = """
name = "{name}"
change_over = {{ {number} = "{other}" }}
[[actuators]]
name = "plc"
lane = "s0"
at_rest = "reject"
match = {{ by = "id" }}
timing = {{ unit = "ms", delay = 1, pulse = 50, tolerance = 20, min_spacing = 100 }}
max_age_ms = 2000
[[actuators.drivers]]
kind = "modbus"
role = "server"
host = "127.0.0.1"
port = {port}
unit = 3
ejector = false
control_address = {control}
status_address = {status}
heartbeat_timeout_ms = 10000
"""


def product(folder: Path, name: str, other: Path, port: int) -> Path:
    """The recipe of one product; its PLC knows `other` by the number CAN."""
    (folder / name).mkdir()
    extra = PLC.format(name=name, number=CAN, other=other, port=port, control=CONTROL, status=STATUS)
    path = marker_recipe(folder / name, parts=None, rate_hz=20, extra=extra)
    calibrate_marker(path, folder / "state")
    return path


def test_a_plc_changes_the_recipe_of_the_running_line(tmp_path: Path, runtime_dir: Path) -> None:
    port, state = free_port(), tmp_path / "state"
    can = product(tmp_path, "can", tmp_path / "can" / "recipe.toml", port)
    bottle = product(tmp_path, "bottle", can, port)
    hashes = [load_recipe(path).sha256 for path in (bottle, can)]
    with RunningLine(bottle, state, runtime_dir) as line, Listener(line.endpoint) as heard:
        actuator = RunningActuator(bottle, state, runtime_dir)
        try:
            with Master(port) as plc:
                wait_until(lambda: plc.on(StatusBit.TRIGGER_READY))
                wait_until(lambda: len(heard.verdicts) > 5)
                assert plc.status[StatusWord.RECIPE] == 0, "the PLC has no number for it"
                plc.control[ControlWord.RECIPE], plc.bits = CAN, ControlBit.CHANGE_OVER
                wait_until(lambda: plc.on(StatusBit.CHANGE_OVER_ACK))
                plc.bits = ControlBit(0)
                wait_until(lambda: heard.verdicts[-1].recipe == hashes[1])
                wait_until(lambda: plc.on(StatusBit.TRIGGER_READY))
                wait_until(lambda: plc.status[StatusWord.RECIPE] == CAN)
            assert actuator.stop() == 0, actuator.log.read_text()
        finally:
            actuator.kill()
        assert line.stop() == 0
    assert {v.recipe for v in heard.verdicts} == set(hashes)
    record = json.loads(audit_path(state).read_text().splitlines()[-1])
    assert (record["what"], record["who"], record["sha256"]) == (
        "recipe.use",
        "PLC, through the actuator plc",
        hashes[1],
    )
