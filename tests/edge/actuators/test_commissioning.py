"""Commissioning, turn by turn, and what a person asks at the panel."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from edge.actuators.driver import Input, Status
from edge.actuators.panel import ActuatorError, ask, read_status
from edge.audit import audit_path
from edge.testing import PATIENCE_S
from edge.verdict import Decision, GateState
from tests.edge.actuators.actuator_helpers import heartbeat
from tests.edge.actuators.loop_helpers import Bench, audited


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
