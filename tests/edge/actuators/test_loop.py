"""The loop, turn by turn: what it takes from driver and channel, what it sets, and that LINE-OK moves only while
everything is right."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from edge.actuators.driver import Driver, DriverError, Edge, Fault, Input, PartOutcome, Status
from edge.actuators.driver_settings import GpioDriver
from edge.actuators.gpio import Gpio
from edge.actuators.latch import Latch, actuator_dir
from edge.actuators.loop import Loop
from edge.actuators.panel import ActuatorError, Panel, ask, read_status
from edge.audit import AuditTrail, audit_path
from edge.clock import ClockOffset
from edge.messages import Verdict
from edge.testing import PATIENCE_S
from edge.verdict import Decision, GateState
from edge.verdicts import Event, Gap, Silence
from tests.edge.actuators.actuator_helpers import BOOT, Events, actuator, heartbeat, verdict
from tests.edge.actuators.fake_gpio import FakeChip, install

MS = 1_000_000


class Hardware:
    """Records outputs; its inputs are what a test puts there."""

    def __init__(self) -> None:
        self.edges: list[Edge] = []
        self.encoder: int | None = 0
        self.ejecting: bool | None = None
        self.commands: list[bool] = []
        self.toggles = 0
        self.level = False
        self.told: list[PartOutcome] = []
        self.status: Status | None = None
        self.broken: set[str] = set()  # calls that fail
        self._failed = False  # one of this turn has

    def poll(self, timeout_ms: int) -> list[Edge]:
        self._failed = False
        self._obey("poll")
        edges, self.edges = self.edges, []
        return edges

    def count(self) -> int | None:
        self._obey("count")
        return self.encoder

    def eject(self, on: bool) -> None:
        self._obey("eject")
        self.commands.append(on)
        self.ejecting = on

    def line_ok(self, level: bool) -> None:
        self._obey("line_ok")
        if level is not self.level:
            assert not self._failed, "LINE-OK moves in a turn in which something failed"
            self.toggles, self.level = self.toggles + 1, level

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        self._obey("tell")
        self.told.append(part)

    def report(self, status: Status) -> None:
        self._obey("report")
        self.status = status

    def close(self) -> None: ...

    def _obey(self, call: str) -> None:
        if call in self.broken:
            self._failed = True
            raise DriverError(f"{call}: unplugged")


ALL = frozenset({"poll", "count", "eject", "line_ok", "tell", "report"})


class Bench:
    """A loop on a bench. One count is one millisecond."""

    def __init__(
        self,
        folder: Path,
        safe_state: str = "reject_all",
        commissioner: str = "",
        *,
        driver: Driver | None = None,
        **changes: Any,
    ) -> None:
        self.folder, self.ms = folder, 0
        self.hardware, self.channel = Hardware(), Events()
        self.driver = driver or self.hardware
        self.wanted: list[int] = []
        self.make = lambda: self._loop(safe_state, commissioner, changes)
        self.loop = self.make()

    def _loop(self, safe_state: str, commissioning: str, changes: dict[str, Any]) -> Loop:
        state, made = self.folder / "state", actuator(line_ok_ms=5, **changes)
        audit = AuditTrail(audit_path(state))
        latch = Latch(actuator_dir(state, made.name), made.name, audit)
        panel = Panel(state, self.folder / "run", made.name)
        clock: Callable[[], int] = lambda: self.ms * MS  # noqa: E731
        return Loop(
            *(made, safe_state, self.driver, self.channel, latch, panel, audit),
            boot_id=BOOT,
            commissioning=commissioning,
            change_recipe=self.wanted.append,
            clock=clock,
        )

    def turn(self, ms: int = 1, counts: int | None = None) -> None:
        self.ms += ms
        if self.hardware.encoder is not None:
            self.hardware.encoder += ms if counts is None else counts
        self.loop.turn()

    def run(self, ms: int) -> int:
        """Turn so often; how often LINE-OK moved."""
        before = self.hardware.toggles
        for _ in range(ms):
            self.turn()
        return self.hardware.toggles - before

    def hear(self, *events: Event) -> None:
        self.channel.events += events

    def input(self, which: Input, level: bool = True, **fields: Any) -> None:
        self.hardware.edges.append(Edge(which, level, self.ms * MS, **fields))

    def part(self, n: int, decision: Decision = Decision.PASS, boot_id: str = BOOT) -> bool:
        """Let a part be triggered, sensed and brought to the ejector; whether it was let pass."""
        made = verdict(n, decision, count=self.hardware.encoder, trigger_ns=self.ms * MS, boot_id=boot_id)
        self.run(20)
        self.hear(made)
        self.run(40)
        self.input(Input.SENSOR, count=self.hardware.encoder)
        self.input(Input.SENSOR, False, count=self.hardware.encoder)
        self.run(6)
        passed = self.way_is_open
        self.run(10)
        return passed

    @property
    def way_is_open(self) -> bool:
        return self.hardware.ejecting is False

    def ready(self) -> Bench:
        """A line that is ready, and an order of parts that is known."""
        self.hear(heartbeat())
        self.turn()
        self.part(0)
        assert self.part(1)
        assert self.hardware.ejecting is True
        return self


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path).ready()


def audited(bench: Bench) -> list[dict[str, Any]]:
    path = audit_path(bench.folder / "state")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


def test_a_recipe_that_names_no_commissioning_mode_has_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, commissioner="ada")
    bench.hear(heartbeat())
    bench.input(Input.COMMISSIONING)
    assert bench.run(20) > 1
    assert bench.hardware.status == Status(GateState.READY)
    assert audited(bench) == []


def test_commissioning_that_cannot_be_recorded_does_not_begin(tmp_path: Path) -> None:
    audit_path(tmp_path / "state").mkdir(parents=True)
    bench = Bench(tmp_path, at_rest="pass", commissioning={"line_ok": "toggles"})
    bench.hear(heartbeat())
    bench.input(Input.COMMISSIONING)
    bench.turn()
    assert bench.hardware.status == Status(GateState.READY)


@pytest.mark.parametrize(("line_ok", "moves"), [("stops", False), ("toggles", True)])
def test_commissioning(tmp_path: Path, line_ok: str, moves: bool) -> None:
    bench = Bench(tmp_path, commissioner="ada", at_rest="pass", commissioning={"line_ok": line_ok})
    bench.hear(heartbeat())
    assert bool(bench.run(20)) is moves
    bench.part(0, Decision.REJECT)
    assert bench.hardware.told[-1].decision is Decision.REJECT, "verdicts are live"
    assert bench.hardware.ejecting is False, "and the ejector rests"
    assert bench.hardware.status == Status(GateState.READY, commissioning=True)
    assert [(r["what"], r["who"]) for r in audited(bench)] == [("actuator.commissioning", "ada")]
    bench.input(Input.COMMISSIONING, False)
    bench.turn()
    assert bench.hardware.status == Status(GateState.READY, commissioning=True), "a switch that is off ends nothing"
    bench.input(Input.COMMISSIONING, True)
    bench.input(Input.COMMISSIONING, False)
    bench.turn()
    assert bench.run(20) > 1
    assert audited(bench)[-1]["what"] == "actuator.production"
    bench.input(Input.SENSOR, count=bench.hardware.encoder)
    bench.run(6)
    assert bench.hardware.ejecting is True


@pytest.mark.parametrize(("at_rest", "let_pass"), [("pass", True), ("reject", False)])
def test_an_inhibited_ejector_is_left_at_rest_at_the_end(tmp_path: Path, at_rest: str, let_pass: bool) -> None:
    bench = Bench(tmp_path, commissioner="ada", at_rest=at_rest, commissioning={"line_ok": "stops"})
    bench.hear(heartbeat())
    bench.run(5)
    bench.loop.stop()
    assert bench.hardware.commands[-1] is not let_pass
    assert set(bench.hardware.commands) == {not let_pass}


@pytest.mark.parametrize("at_rest", ["pass", "reject"])
def test_in_commissioning_nothing_is_ejected_and_nothing_is_reconciled(tmp_path: Path, at_rest: str) -> None:
    """At rest at reject every part lands in the reject chute, and none was commanded to."""
    changes = {"at_rest": at_rest, "commissioning": {"line_ok": "toggles"}, "confirmation": {"within_ms": 50}}
    bench = Bench(tmp_path, commissioner="ada", **changes)
    bench.hear(heartbeat())
    bench.turn()
    for n in range(5):
        bench.part(n, Decision.REJECT)
        if at_rest == "reject":
            bench.input(Input.CONFIRM)
    bench.run(100)
    assert [p.ejected for p in bench.hardware.told] == [False] * 5
    assert bench.loop.unable == ""
    bench.input(Input.COMMISSIONING, True)
    bench.turn()
    bench.input(Input.COMMISSIONING, False)
    for _ in range(3):  # they were on their way to the bin
        bench.input(Input.CONFIRM)
    bench.turn()
    assert bench.loop.unable == ""
    for n in range(5, 8):
        bench.part(n, Decision.REJECT)
    assert [p.ejected for p in bench.hardware.told[5:]] == [True] * 3
    assert bench.loop.unable == "fault confirmation"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever asks at the panel: the loop of a bench turns when the machine lets it."""
    monkeypatch.setattr("edge.actuators.panel.FRESH_S", PATIENCE_S)


def asked(bench: Bench, wish: Any) -> tuple[str, bool]:
    """What a loop in another thread would answer, and whether it refused. The belt stands."""
    said: list[tuple[str, bool]] = []

    def person() -> None:
        try:
            said.append((ask(bench.folder / "state", "ejector", wish, "ada", "a test"), False))
        except ActuatorError as error:
            said.append((str(error), True))

    thread = threading.Thread(target=person)
    thread.start()
    while thread.is_alive():
        bench.turn(2, counts=0)
        thread.join(0.001)
    return said[0]


def test_a_person_resets_over_the_panel(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_rejects=2)
    bench.hear(heartbeat())
    bench.part(0, Decision.REJECT)
    bench.part(1, Decision.REJECT)
    assert bench.loop.unable == "fault consecutive_rejects"
    bench.turn(300)
    shown = read_status(tmp_path / "run", "ejector")
    assert shown is not None
    assert shown["faults"] == [{"fault": "consecutive_rejects", "detail": "2 parts in a row were rejected"}]
    assert asked(bench, "reset") == ("reset: consecutive_rejects", False)
    assert not bench.part(2), "somebody may have moved what was in flight"
    assert bench.loop.unable == "", "and the count begins again"
    assert bench.part(3)
    assert audited(bench)[-1]["who"] == "ada"


def test_a_test_fire_is_for_commissioning_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, at_rest="pass", commissioning={"line_ok": "stops"})
    bench.hear(heartbeat())
    said, refused = asked(bench, "test_fire")
    assert refused, said
    assert "needs commissioning mode" in said
    bench.input(Input.COMMISSIONING)
    bench.turn()
    assert asked(bench, "test_fire") == ("the ejector acts for 300 ms", False)
    bench.turn(1)
    assert bench.hardware.ejecting is True
    bench.turn(300)
    assert bench.hardware.ejecting is False
    assert [r["what"] for r in audited(bench)] == ["actuator.commissioning", "actuator.test_fire"]


def plc_ejects(**changes: Any) -> dict[str, Any]:
    """An actuator whose PLC ejects by the results that it is told."""
    plc = {"kind": "modbus", "role": "client", "host": "192.0.2.1", "ejector": False}
    return {"drivers": [plc], "commissioning": {"line_ok": "toggles"}, **changes}


def test_there_is_no_test_fire_without_an_ejector_of_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path, commissioner="ada", **plc_ejects())
    bench.hear(heartbeat())
    bench.turn()
    said, refused = asked(bench, "test_fire")
    assert refused, said
    assert "the PLC has the ejector" in said
    assert [r["what"] for r in audited(bench)] == ["actuator.commissioning"]


def test_a_plc_is_told_of_commissioning_before_the_results_of_that_turn(tmp_path: Path) -> None:
    """It rests or ejects by that bit: a reject that it read under the mode before would pass."""
    bench = Bench(tmp_path, **plc_ejects())
    bench.hear(heartbeat())
    bench.turn()
    said: list[tuple[bool, bool]] = []
    bench.hardware.tell = lambda verdict, part: said.append(  # type: ignore[method-assign]
        (bench.hardware.status is not None and bench.hardware.status.commissioning, part.ejected)
    )
    for n, wanted in enumerate((True, False)):
        bench.input(Input.SENSOR, count=bench.hardware.encoder)
        bench.turn()
        bench.input(Input.COMMISSIONING, wanted)
        bench.turn(4, counts=4)
        assert len(said) == n + 1, "decided in the turn in which the mode changed"
        bench.turn(100)
    assert said == [(True, False), (False, True)]


def test_a_test_fire_never_opens_the_way_for_a_part_that_is_seen(tmp_path: Path) -> None:
    bench = Bench(tmp_path, commissioner="ada", commissioning={"line_ok": "toggles"})
    bench.hear(heartbeat())
    bench.turn()
    bench.input(Input.SENSOR, count=bench.hardware.encoder)
    bench.turn()
    said, refused = asked(bench, "test_fire")
    assert refused, said
    assert "opens the way, and parts are on it" in said
    bench.run(20)
    assert set(bench.hardware.commands) == {True}
    assert asked(bench, "test_fire") == ("the ejector acts for 300 ms", False)
    bench.turn()
    assert bench.way_is_open
    bench.input(Input.SENSOR, count=bench.hardware.encoder)
    bench.turn()
    assert not bench.way_is_open
    bench.run(20)
    assert not bench.way_is_open, "and it stays closed"


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
