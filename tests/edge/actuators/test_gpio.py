"""The driver `gpio`, with gpiod's own Python code over a made-up chip: no GPIO and no gpio-sim is needed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Literal

import gpiod
import pytest

from edge.actuators.belt import BeltSettings
from edge.actuators.driver import DriverError, Edge, Input, Status
from edge.actuators.driver_settings import GpioDriver, MqttDriver
from edge.actuators.drivers import open_drivers
from edge.actuators.gpio import EVENT_BUFFER, Gpio
from edge.actuators.process import actuate
from edge.bench.conveyor_line import conveyor_recipe
from edge.recipes import load_recipe
from edge.verdict import GateState
from tests.edge.actuators.driver_helpers import outcome
from tests.edge.actuators.fake_gpio import FakeChip, install

NAMES = ["sensor", "confirm", "bin", "air", "reset", "valve", "ok"]
INPUTS = {"sensor": {"line": "sensor", "debounce_us": 500, "bias": "pull_up"}, "reset": {"line": 4}}
OUTPUTS = {"ejector": {"line": "valve"}, "line_ok": {"line": 6, "active_low": True, "drive": "open_drain"}}


def settings(**fields: Any) -> GpioDriver:
    return GpioDriver.model_validate({"kind": "gpio", "inputs": INPUTS, **OUTPUTS} | fields)


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> FakeChip:
    made = FakeChip(NAMES)
    install(monkeypatch, made)
    return made


def test_edges_carry_the_kernels_time_and_the_name_of_their_input(chip: FakeChip) -> None:
    driver = Gpio(settings(), eject=True)
    assert driver.poll(0) == []
    chip.set("sensor", 1, at_ns=1000)
    chip.set("reset", 1, at_ns=2000)
    chip.set("sensor", 0, at_ns=3000)
    assert driver.poll(10_000) == [
        Edge(Input.SENSOR, True, 1000),
        Edge(Input.RESET, True, 2000),
        Edge(Input.SENSOR, False, 3000),
    ]
    assert driver.poll(0) == []
    driver.close()
    assert chip.taken == {}


def test_poll_returns_as_soon_as_an_edge_comes(chip: FakeChip) -> None:
    driver = Gpio(settings(), eject=True)
    later = threading.Timer(0.05, chip.set, ("sensor", 1))
    later.start()
    assert [e.input for e in driver.poll(60_000)] == [Input.SENSOR]
    later.join()
    driver.close()


def test_lines_are_asked_for_as_the_recipe_says(chip: FakeChip) -> None:
    driver = Gpio(settings(), eject=True)
    line = gpiod.line
    sensor = chip.settings("sensor")
    assert sensor["debounce_period"] == 500
    assert sensor["bias"] == line.Bias.PULL_UP.value
    assert sensor["edge_detection"] == line.Edge.BOTH.value
    assert sensor["event_clock"] == line.Clock.MONOTONIC.value
    assert sensor["direction"] == line.Direction.INPUT.value
    assert chip.settings("ok")["drive"] == line.Drive.OPEN_DRAIN.value
    assert chip.settings("ok")["direction"] == line.Direction.OUTPUT.value
    driver.close()


@pytest.mark.parametrize("line_ok", [0, 1])
@pytest.mark.parametrize("eject", [False, True])
def test_the_ejector_begins_where_it_is_told_and_line_ok_where_it_stands(
    chip: FakeChip, eject: bool, line_ok: int
) -> None:
    """The valve springs to reject without power: its line is active low."""
    chip.set("valve", int(eject))
    chip.set("ok", line_ok)
    driver = Gpio(settings(ejector={"line": "valve", "active_low": True}), eject=eject)
    assert chip.driven == [("ok", line_ok), ("valve", int(not eject))]
    driver.close()


AT_START = [
    ("reject", "stop_line", "", True),
    ("reject", "reject_all", "ada", True),
    ("pass", "reject_all", "", True),
    ("pass", "stop_line", "", False),
    ("pass", "reject_all", "ada", False),
]


@pytest.mark.parametrize(("at_rest", "safe_state", "commissioning", "ejects"), AT_START)
def test_a_start_that_fails_after_the_lines_were_taken_has_let_nothing_pass(
    chip: FakeChip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_rest: Literal["reject", "pass"],
    safe_state: str,
    commissioning: str,
    ejects: bool,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DriverError("no further")

    monkeypatch.setattr("edge.actuators.process.Loop", broken)
    path = conveyor_recipe(
        *(tmp_path, "ipc:///nowhere", BeltSettings(springs_to=at_rest)),
        safe_state=safe_state,
        extra='commissioning = { line_ok = "stops" }',
    )
    wired = 'kind = "gpio", ejector = { line = "valve", active_low = true }, line_ok = { line = "ok" }'
    path.write_text(path.read_text().replace('kind = "simulated", endpoint = "ipc:///nowhere"', wired))
    with pytest.raises(DriverError, match="no further"):
        actuate(load_recipe(path), None, tmp_path / "state", tmp_path / "run", commissioning)
    assert chip.driven == [("ok", 0), ("valve", int(not ejects))]
    assert chip.taken == {}


def test_where_another_driver_cannot_be_opened_the_outputs_are_left_alone(chip: FakeChip, tmp_path: Path) -> None:
    chip.set("valve", 1)
    broker = MqttDriver(kind="mqtt", host="127.0.0.1", topic="t", password_file=tmp_path / "missing")
    with pytest.raises(DriverError, match="no password in"):
        open_drivers((settings(), broker), eject=True)
    assert (chip.driven, chip.taken) == ([], {})


def test_outputs_follow(chip: FakeChip) -> None:
    driver = Gpio(settings(), eject=True)
    driver.line_ok(False)  # active low
    assert (chip.level("valve"), chip.level("ok")) == (1, 1)
    driver.eject(True)
    driver.line_ok(True)
    assert (chip.level("valve"), chip.level("ok")) == (1, 0)
    driver.eject(False)
    driver.line_ok(False)
    assert (chip.level("valve"), chip.level("ok")) == (0, 1)
    driver.tell(None, outcome())
    driver.report(Status(GateState.READY))
    driver.close()


def test_levels_are_told_at_the_start_and_active_low_is_turned_round(chip: FakeChip) -> None:
    chip.set("air", 1)
    inputs = {"air_ok": {"line": "air", "active_low": True}, "bin_full": {"line": "bin"}, "sensor": {"line": "sensor"}}
    driver = Gpio(settings(inputs=inputs), eject=True)
    assert [(e.input, e.level) for e in driver.poll(60_000)] == [(Input.AIR_OK, False), (Input.BIN_FULL, False)]
    chip.set("air", 0)
    assert [(e.input, e.level) for e in driver.poll(0)] == [(Input.AIR_OK, True)]
    driver.close()


def test_edges_that_the_kernel_threw_away_are_told_once_after_those_that_are_left(chip: FakeChip) -> None:
    chip.buffer = 4
    driver = Gpio(settings(), eject=True)
    chip.set("sensor", 1)
    assert len(driver.poll(0)) == 1
    for n in range(10):
        chip.set("sensor", n % 2)
    assert len(driver.poll(0)) == 4
    with pytest.raises(DriverError, match="6 edges were lost"):
        driver.poll(0)
    assert driver.poll(0) == []
    driver.close()


def test_the_buffer_of_the_kernel_is_read_whole(chip: FakeChip) -> None:
    driver = Gpio(settings(), eject=True)
    for n in range(EVENT_BUFFER):
        chip.set("sensor", (n + 1) % 2)
    assert len(driver.poll(0)) == EVENT_BUFFER
    driver.close()


def test_edges_carry_the_count_of_the_kernels_counter(chip: FakeChip, tmp_path: Path) -> None:
    encoder = tmp_path / "count"
    encoder.write_text("-17\n")
    driver = Gpio(settings(encoder=encoder), eject=True)
    assert driver.count() == -17
    encoder.write_text("23\n")
    chip.set("sensor", 1)
    assert [(e.input, e.count) for e in driver.poll(0)] == [(Input.SENSOR, 23)]
    encoder.unlink()
    chip.set("sensor", 0)
    assert [(e.input, e.count) for e in driver.poll(0)] == [(Input.SENSOR, None)]  # a later count would be another's
    with pytest.raises(DriverError, match="encoder"):
        driver.count()
    driver.close()
    chip_without = Gpio(settings(), eject=True)
    assert chip_without.count() is None
    chip_without.close()


def test_an_output_that_does_not_obey_is_an_error(chip: FakeChip, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Gpio(settings(), eject=True)

    def gone(*_: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(gpiod.LineRequest, "set_value", gone)
    with pytest.raises(DriverError, match=r"setting ejector: .*No such device"):
        driver.eject(True)
    driver.close()


def test_a_chip_that_is_gone_is_said_after_the_edges_that_are_there_and_after_the_timeout(
    chip: FakeChip, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Gpio(settings(inputs={"air_ok": {"line": "air"}}), eject=True)
    slept: list[float] = []

    def gone(*_: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(gpiod.LineRequest, "wait_edge_events", gone)
    monkeypatch.setattr("edge.actuators.gpio.time.sleep", slept.append)
    assert [e.input for e in driver.poll(1_000_000)] == [Input.AIR_OK]
    assert slept == []
    with pytest.raises(DriverError, match=r"reading edges: .*No such device"):
        driver.poll(1_000_000)
    assert sum(slept) > 900
    driver.close()


def test_without_an_ejector_it_only_listens(chip: FakeChip) -> None:
    without = settings(ejector=None, line_ok=None)
    assert not without.ejects
    driver = Gpio(without, eject=True)
    driver.line_ok(True)
    with pytest.raises(DriverError, match="no line for the ejector"):
        driver.eject(True)
    driver.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"chip": "/dev/gpiochip9"}, "/dev/gpiochip9: .*No such file"),
        ({"ejector": {"line": "vlave"}}, "No such file.*gpioinfo"),
        ({"ejector": {"line": 40}}, "out range|out of range"),
        ({"ejector": {"line": 0}}, "busy"),
        ({"inputs": {"sensor": {"line": 0}, "reset": {"line": "sensor"}}}, "two of the recipe's lines are one"),
    ],
)
def test_lines_that_cannot_be_had_are_said_and_all_are_let_go(
    chip: FakeChip, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(DriverError, match=said):
        Gpio(settings(**fields), eject=True)
    assert chip.taken == {}
    assert "valve" not in dict(chip.driven)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ejector": {"line": 6}}, "lines used twice: 6"),
        ({"inputs": {"change_over": {"line": 1}}}, "inputs"),
        ({"inputs": {"sensor": {"line": 1, "bias": "up"}}}, "bias"),
        ({"inputs": {"sensor": {"line": -1}}}, "line"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**fields)


def test_a_missing_or_old_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gpiod, "LineSettings")
    with pytest.raises(DriverError, match=r"needs gpiod 2, found .*pip install 'maskline\[plc\]'"):
        Gpio(settings(), eject=True)
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(DriverError, match=r"pip install 'maskline\[plc\]'"):
        Gpio(settings(), eject=True)
