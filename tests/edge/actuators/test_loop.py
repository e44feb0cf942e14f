"""The loop, turn by turn: what it takes from driver and channel, what it sets, and that LINE-OK moves only while
everything is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from edge.actuators.driver import Fault, Input, Status
from edge.actuators.driver_settings import GpioDriver
from edge.actuators.gpio import Gpio
from edge.clock import ClockOffset
from edge.verdict import Decision, GateState
from edge.verdicts import Gap, Silence
from tests.edge.actuators.actuator_helpers import heartbeat, verdict
from tests.edge.actuators.fake_gpio import FakeChip, install
from tests.edge.actuators.loop_helpers import ALL, MS, Bench, audited


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path).ready()


def test_before_the_first_heartbeat_nothing_passes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.run(50) == 0
    assert bench.hardware.ejecting is True
    bench.hear(heartbeat())
    assert bench.run(50) > 5


def test_parts_are_told_as_they_are_decided(bench: Bench) -> None:
    assert not bench.part(2, Decision.REJECT)
    assert [(p.number, p.decision.value, p.ejected) for p in bench.hardware.told[-2:]] == [
        (1, "PASS", False),
        (2, "REJECT", True),
    ]


@pytest.mark.parametrize("safe_state", ["reject_all", "stop_line"])
def test_silence(tmp_path: Path, safe_state: str) -> None:
    bench = Bench(tmp_path, safe_state).ready()
    bench.hear(Silence(750))
    bench.turn()
    assert bench.run(50) == 0, "LINE-OK stands still"
    assert not bench.part(2)
    assert bench.hardware.ejecting is True
    assert bench.hardware.status == Status(None, Fault.SILENCE)
    bench.hear(heartbeat())
    bench.turn()
    assert bench.part(3)
    assert bench.run(50) > 5


def test_after_silence_parts_in_flight_are_gone(bench: Bench) -> None:
    bench.hear(Silence(750), heartbeat())
    bench.turn()
    assert not bench.part(2)
    assert bench.part(3)


@pytest.mark.parametrize(("safe_state", "held"), [("reject_all", True), ("stop_line", False)])
def test_an_ejector_that_rests_at_pass_is_held_only_where_the_recipe_says_so(
    tmp_path: Path, safe_state: str, held: bool
) -> None:
    bench = Bench(tmp_path, safe_state, at_rest="pass")
    bench.hear(heartbeat())
    bench.run(5)
    assert bench.hardware.ejecting is False
    bench.hear(Silence(750))
    bench.run(5)
    assert bench.hardware.ejecting is held
    bench.input(Input.SENSOR, count=bench.hardware.encoder)
    bench.run(6)
    assert bench.hardware.ejecting is True, "a part without a verdict is thrown out in any case"


@pytest.mark.parametrize("state", [GateState.NOT_READY, GateState.STOPPING])
def test_a_gate_that_is_not_ready(bench: Bench, state: GateState) -> None:
    bench.hear(heartbeat(state))
    bench.turn()
    assert bench.run(20) == 0
    assert not bench.part(2)
    bench.hear(heartbeat(GateState.DEGRADED))
    bench.turn()
    assert bench.part(3)


def test_verdicts_that_are_missing_cost_what_is_in_flight(bench: Bench) -> None:
    bench.hear(Gap(None, 3, 4))
    bench.turn()
    assert bench.loop.in_flight.counters["tracking_lost.verdicts are missing"] == 1


def test_a_driver_that_fails_and_comes_back(bench: Bench) -> None:
    bench.hardware.broken |= ALL
    assert bench.run(20) == 0
    assert bench.loop.unable == "driver"
    bench.hardware.broken, bench.hardware.ejecting = set(), None
    bench.turn()
    assert bench.hardware.ejecting is True, "what it was told before counts for nothing"
    assert not bench.part(2)
    assert bench.part(3)
    assert bench.run(20) > 1


@pytest.mark.parametrize("call", sorted(ALL - {"tell"}))
def test_one_call_that_fails_stops_line_ok_and_is_said_once(tmp_path: Path, call: str) -> None:
    """The others work. `eject` and `report` are asked for something new only by what happens."""
    with capture_logs() as logs:
        bench = Bench(tmp_path).ready()
        bench.hardware.broken = {call}
        if call == "report":
            bench.hear(heartbeat(GateState.DEGRADED))
        bench.turn()
        assert not bench.part(2)
        moved = bench.run(200)
        assert (moved, bench.loop.unable) == (0, "driver")
        assert not bench.part(3)
        assert bench.hardware.status == Status(GateState.READY, Fault.DRIVER) or call == "report"
        bench.hardware.broken = set()
        bench.run(5)
        assert bench.loop.unable == ""
        assert bench.run(20) > 1
    said = [(log["event"], log.get("error")) for log in logs if log["event"].startswith("driver")]
    assert said == [("driver", f"{call}: unplugged"), ("driver_works_again", None)]


def test_line_ok_stands_in_the_very_turn_in_which_the_ejector_does_not_obey(bench: Bench) -> None:
    bench.hear(verdict(2, count=bench.hardware.encoder, trigger_ns=bench.ms * MS))
    bench.run(60)
    bench.input(Input.SENSOR, count=bench.hardware.encoder)
    bench.turn()
    bench.hardware.broken, moved = {"eject"}, bench.hardware.toggles
    bench.turn(5)  # LINE-OK is due, and so is the ejector
    assert bench.loop.in_flight.counters["passed"] == 2
    assert bench.hardware.toggles == moved
    bench.turn(5)
    assert bench.loop.unable == "driver"


def test_a_part_that_cannot_be_told_holds_line_ok_in_that_turn(bench: Bench) -> None:
    bench.hardware.broken = {"tell"}
    assert not bench.part(2)
    bench.hardware.broken = set()
    assert not bench.part(3)
    assert bench.part(4)
    assert bench.run(20) > 1


def test_a_fault_latches_until_it_is_reset(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_rejects=2).ready()
    for n in (2, 3):
        bench.part(n, Decision.REJECT)
    assert bench.run(20) == 0
    assert bench.hardware.status == Status(GateState.READY, Fault.CONSECUTIVE_REJECTS)
    assert not bench.part(4)
    bench.loop = bench.make()
    bench.hear(heartbeat())
    bench.turn()
    assert bench.run(20) == 0, "it survives a restart"
    bench.input(Input.RESET)
    bench.turn()
    assert bench.run(20) > 1
    assert [(r["what"], r["who"]) for r in audited(bench)] == [("actuator.reset", "the machine's reset input")]
    bench.part(5)
    assert bench.part(6)


def test_a_condition_that_lasts_is_a_fault_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, watch=["bin_full"])
    bench.hear(heartbeat())
    assert bench.run(20) == 0
    assert bench.loop.unable == "bin_full not known"
    bench.input(Input.BIN_FULL, False)
    assert bench.run(20) > 1
    bench.input(Input.BIN_FULL, True)
    bench.turn()
    assert bench.run(20) == 0
    bench.input(Input.RESET)
    assert bench.run(20) == 0
    bench.input(Input.BIN_FULL, False)
    bench.input(Input.RESET)
    bench.turn()
    assert bench.run(20) > 1


def test_a_loop_that_slept_while_the_way_was_open_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_late=1).ready()
    bench.hear(verdict(2, count=bench.hardware.encoder, trigger_ns=bench.ms * MS))
    bench.run(60)
    bench.input(Input.SENSOR, count=bench.hardware.encoder)
    bench.run(6)
    assert bench.hardware.ejecting is False
    bench.turn(30)
    assert bench.hardware.ejecting is True
    assert bench.loop.unable == "fault late"


def test_a_plc_asks_for_another_recipe(bench: Bench) -> None:
    bench.input(Input.CHANGE_OVER, recipe=7)
    bench.turn()
    assert bench.wanted == [7]


def test_a_clock_that_is_not_known_well_enough(tmp_path: Path) -> None:
    """Times of another box, its clock 5 s ahead; round trips of 2 ms, then of 20 ms."""
    timing = {"unit": "ms", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12}
    bench = Bench(tmp_path, match={"by": "time", "delay_ms": 60, "window_ms": 4}, timing=timing)
    bench.hear(heartbeat(boot_id="other"))
    assert bench.run(20) == 0
    assert bench.hardware.status == Status(GateState.READY, Fault.CLOCK)

    def part(n: int) -> bool:
        sent = verdict(n, trigger_ns=(bench.ms + 5000) * MS, boot_id="other")
        bench.run(20)
        bench.hear(sent)
        bench.run(40)
        bench.input(Input.SENSOR)
        bench.run(6)
        passed = bench.hardware.ejecting is False
        bench.run(10)
        return passed

    bench.channel.clock.add(bench.ms * MS, (bench.ms + 5001) * MS, (bench.ms + 2) * MS, "other")
    assert bench.run(20) > 1
    part(0)
    assert part(1)
    bench.channel.clock = ClockOffset()
    bench.channel.clock.add(bench.ms * MS, (bench.ms + 5001) * MS, (bench.ms + 20) * MS, "other")
    assert bench.run(20) == 0
    assert not part(2)


def test_at_the_end_the_ejector_is_left_safe(bench: Bench) -> None:
    bench.hardware.ejecting = None
    bench.loop.stop()
    assert bench.hardware.ejecting is True


class OnGpio(Bench):
    """The same with the driver `gpio`, a valve and an encoder."""

    def __init__(self, folder: Path, chip: FakeChip, at_rest: str) -> None:
        self.chip, self.counter, self.rest_is_reject = chip, folder / "count", at_rest == "reject"
        self.counter.write_text("0")
        wired = {"inputs": {"sensor": {"line": "sensor"}}, "line_ok": {"line": "ok"}, "encoder": self.counter}
        valve = {"line": "valve", "active_low": self.rest_is_reject}  # without power it is at rest
        settings = GpioDriver.model_validate({"kind": "gpio", "ejector": valve, **wired})
        super().__init__(folder, driver=Gpio(settings, eject=True), at_rest=at_rest)

    def turn(self, ms: int = 1, counts: int | None = None) -> None:
        self.counter.write_text(str(self.ms + ms))
        super().turn(ms, counts)

    def input(self, which: Input, level: bool = True, **fields: Any) -> None:
        self.chip.set(which.value, int(level), at_ns=self.ms * MS)

    @property
    def way_is_open(self) -> bool:
        return bool(self.chip.level("valve")) is self.rest_is_reject


@pytest.mark.parametrize("at_rest", ["reject", "pass"])
def test_a_pass_and_a_reject_at_a_valve_on_gpio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_rest: str) -> None:
    """What the valve's line does for each: power opens the way for a PASS, or fires at a REJECT."""
    monkeypatch.setattr("edge.actuators.loop.IDLE_MS", 0)
    chip = FakeChip(["sensor", "valve", "ok"])
    install(monkeypatch, chip)
    bench = OnGpio(tmp_path, chip, at_rest)
    bench.hear(heartbeat())
    bench.turn()
    bench.part(0)
    moved: list[list[int]] = []
    for n, decision in enumerate((Decision.PASS, Decision.REJECT, Decision.UNINSPECTED, Decision.PASS), 1):
        before = len(chip.driven)
        assert bench.part(n, decision) is (decision is Decision.PASS)
        moved.append([level for name, level in chip.driven[before:] if name == "valve"])
    still, acts = [], [1, 0]
    assert moved == ([acts, still, still, acts] if at_rest == "reject" else [still, acts, acts, still])
    assert {level for name, level in chip.driven if name == "ok"} == {0, 1}
    bench.driver.close()
