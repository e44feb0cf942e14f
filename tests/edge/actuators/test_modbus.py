"""The driver `modbus` against pymodbus' own client and server on loopback: the same PLC program in both roles."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import ModbusTcpClient

from edge.actuators.driver import DriverError, Edge, Fault, Input, Status
from edge.actuators.driver_settings import ModbusDriver
from edge.actuators.drivers import Drivers, open_drivers
from edge.actuators.latch import Latch
from edge.actuators.loop import Loop
from edge.actuators.modbus import Modbus
from edge.actuators.modbus_map import DECISIONS, STATUS_WORDS, WHY, ControlBit, StatusBit, StatusWord
from edge.actuators.panel import Panel
from edge.audit import AuditTrail, audit_path
from edge.testing import wait_until
from edge.verdict import Decision, GateState
from tests.edge.actuators.actuator_helpers import BOOT, Events, actuator, heartbeat
from tests.edge.actuators.actuator_helpers import verdict as line_verdict
from tests.edge.actuators.driver_helpers import free_port, outcome
from tests.edge.actuators.plc_helpers import CONTROL, STATUS, Master, Plc, Slave

ROLES = {"server": Master, "client": Slave}


def settings(role: str, port: int, **changes: Any) -> ModbusDriver:
    fields = {"kind": "modbus", "role": role, "host": "127.0.0.1", "port": port, "unit": 3}
    fields |= {"control_address": CONTROL, "status_address": STATUS, "cycle_ms": 2, "heartbeat_ms": 20}
    fields |= {"heartbeat_timeout_ms": 10_000, "ack_timeout_ms": 10_000}  # a test's machine may stand still
    return ModbusDriver.model_validate(fields | changes)


class Actuator:
    """A loop that does nothing but poll, in the test's own thread."""

    def __init__(self, driver: Modbus) -> None:
        self.driver = driver
        self.edges: list[Edge] = []
        self.errors: list[str] = []

    def until(self, condition: Callable[[], bool]) -> None:
        """Poll until it is true."""

        def polled() -> bool:
            try:
                self.edges += self.driver.poll(5)
            except DriverError as error:
                self.errors.append(str(error))
            return condition()

        wait_until(polled)

    def of(self, which: Input) -> list[Edge]:
        return [e for e in self.edges if e.input is which]


@pytest.fixture(params=sorted(ROLES))
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(role: str) -> Iterator[Callable[..., tuple[Actuator, Plc]]]:
    """Opens a driver in this role and a PLC in the other; waits until they have heard each other."""
    with ExitStack() as stack:

        def both(**changes: Any) -> tuple[Actuator, Plc]:
            port = free_port()
            driver = Modbus(settings(role, port, **changes), eject=True)
            stack.callback(driver.close)
            plc = stack.enter_context(ROLES[role](port))
            actuator = Actuator(driver)
            driver.report(Status(GateState.READY))
            actuator.until(lambda: plc.on(StatusBit.TRIGGER_READY))
            return actuator, plc

        yield both
    assert [t.name for t in threading.enumerate() if t.name in ("modbus", "plc")] == []


def carry(actuator: Actuator, plc: Plc, ids: list[int]) -> None:
    """The PLC triggers these parts; each is told as soon as its trigger comes."""
    plc.to_trigger.extend(ids)
    told, results = len(actuator.of(Input.SENSOR)), len(plc.results) + len(ids)

    def tell_new() -> bool:
        nonlocal told
        sensed = actuator.of(Input.SENSOR)
        for edge in sensed[told:]:
            if edge.level:
                actuator.driver.tell(None, outcome(0, part_id=edge.part_id))
        told = len(sensed)
        return len(plc.results) >= results

    actuator.until(tell_new)


def block_of(part_id: int) -> list[int]:
    """The result block of a part, between head and tail."""
    part = outcome(0, part_id=part_id)
    return [part_id, DECISIONS[part.decision], WHY[part.why], int(part.ejected), 65535, 0]


def test_parts_are_triggered_answered_and_taken_over_the_wrap_of_their_ids(opened: Callable[..., Any]) -> None:
    actuator, plc = opened()
    ids = [65_520 + n for n in range(16)] + list(range(1, 16))
    carry(actuator, plc, ids)
    assert [r[1:-1] for r in plc.results] == [block_of(i) for i in ids]
    assert [r[0] for r in plc.results] == [r[-1] for r in plc.results] == list(range(1, len(ids) + 1))
    assert plc.status[StatusWord.OVERRUNS] == plc.status[StatusWord.MISSES] == 0
    rising = [e for e in actuator.of(Input.SENSOR) if e.level]
    assert [e.part_id for e in rising] == ids
    assert [e.at_ns for e in rising] == sorted(e.at_ns for e in rising)


def test_a_plc_whose_heartbeat_stops_is_a_fault_until_it_goes_on(opened: Callable[..., Any]) -> None:
    actuator, plc = opened(heartbeat_timeout_ms=1_000)
    carry(actuator, plc, [1])
    plc.alive = plc.takes_results = False
    actuator.driver.tell(None, outcome(0, part_id=2))
    actuator.errors.clear()
    actuator.until(lambda: bool(actuator.errors) and plc.on(StatusBit.PLC_SILENT))
    assert "heartbeat register must change within 1000 ms" in actuator.errors[0]
    with pytest.raises(DriverError, match="silent"):
        actuator.driver.eject(True)
    plc.alive = plc.takes_results = True
    actuator.until(lambda: not plc.on(StatusBit.PLC_SILENT))
    actuator.driver.eject(False)
    carry(actuator, plc, [3])
    assert [r[1] for r in plc.results] == [1, 3]  # what was decided meanwhile is not shown later
    assert plc.status[StatusWord.MISSES] == 1


def test_a_connection_that_is_cut_comes_back(role: str) -> None:
    port = free_port()
    driver = Modbus(settings(role, port, heartbeat_timeout_ms=1_000), eject=True)
    actuator = Actuator(driver)
    try:
        driver.report(Status(GateState.READY))
        for ids in ([1, 2], [3, 4]):
            with ROLES[role](port) as plc:
                actuator.until(lambda plc=plc: plc.on(StatusBit.TRIGGER_READY))  # type: ignore[misc]
                carry(actuator, plc, ids)
                assert [r[1:-1] for r in plc.results] == [block_of(i) for i in ids]
            actuator.errors.clear()
            actuator.until(lambda: bool(actuator.errors))
            assert "silent" in actuator.errors[0]
    finally:
        driver.close()


def test_a_driver_that_starts_again_is_found_again(role: str) -> None:
    port = free_port()
    with ROLES[role](port) as plc:
        for part_id in (1, 2):
            driver = Modbus(settings(role, port), eject=True)
            try:
                driver.report(Status(GateState.READY))
                actuator = Actuator(driver)
                actuator.until(lambda: plc.on(StatusBit.TRIGGER_READY))
                carry(actuator, plc, [part_id])
            finally:
                driver.close()
            wait_until(lambda: not any(plc.status))
    assert [r[1:-1] for r in plc.results] == [block_of(1), block_of(2)]


def test_a_result_that_is_not_taken_in_time_is_missed(opened: Callable[..., Any]) -> None:
    actuator, plc = opened(ack_timeout_ms=50)
    plc.takes_results = False
    for part_id in (1, 2):
        actuator.driver.tell(None, outcome(0, part_id=part_id))
    actuator.until(lambda: plc.status[StatusWord.MISSES] == 2)
    assert plc.on(StatusBit.MISSED)
    plc.takes_results = True
    for part_id in itertools.count(3):  # where the PLC is slow it misses some more
        actuator.driver.tell(None, outcome(0, part_id=part_id))
        actuator.until(lambda n=part_id: bool(plc.results) or plc.status[StatusWord.MISSES] == n)  # type: ignore[misc]
        if plc.results:
            break
    assert [r[1] for r in plc.results] == [part_id], "none of those that were missed is shown again"


def test_a_trigger_while_not_ready_is_an_overrun_and_reaches_the_loop(opened: Callable[..., Any]) -> None:
    actuator, plc = opened()
    actuator.driver.report(Status(GateState.NOT_READY))
    actuator.until(lambda: not plc.on(StatusBit.TRIGGER_READY))
    plc.bits = ControlBit.TRIGGER
    actuator.until(lambda: plc.status[StatusWord.OVERRUNS] == 1)
    assert plc.on(StatusBit.OVERRUN)
    assert not plc.on(StatusBit.TRIGGER_ACK)
    assert len(actuator.of(Input.SENSOR)) == 1


def test_outputs_and_states_reach_the_plc_and_its_wishes_the_loop(opened: Callable[..., Any]) -> None:
    actuator, plc = opened(inputs={"bin_full"})
    actuator.driver.eject(True)
    actuator.driver.line_ok(True)
    actuator.driver.report(Status(GateState.DEGRADED, fault=Fault.CONSECUTIVE_REJECTS, commissioning=True, recipe=7))
    expected = StatusBit.EJECT | StatusBit.LINE_OK | StatusBit.FAULT | StatusBit.COMMISSIONING
    actuator.until(lambda: plc.status[StatusWord.BITS] == expected)
    assert plc.status[StatusWord.GATE_STATE : StatusWord.RECIPE + 1] == [3, 3, 7]
    beat = plc.status[StatusWord.HEARTBEAT]
    actuator.until(lambda: plc.status[StatusWord.HEARTBEAT] != beat)

    plc.control[3] = 12
    plc.bits = ControlBit.CHANGE_OVER | ControlBit.RESET | ControlBit.BIN_FULL
    actuator.until(lambda: plc.on(StatusBit.CHANGE_OVER_ACK))
    actuator.until(lambda: len(actuator.edges) >= 4)
    asked = [(e.input, e.level, e.recipe) for e in actuator.edges]
    assert asked == [
        (Input.BIN_FULL, False, None),
        (Input.BIN_FULL, True, None),
        (Input.RESET, True, None),
        (Input.CHANGE_OVER, True, 12),
    ]


def test_a_block_that_is_read_while_it_changes_is_of_one_part(opened: Callable[..., Any]) -> None:
    actuator, plc = opened()
    reads: list[list[int]] = []
    stop = threading.Event()

    def read() -> None:
        with ModbusTcpClient("127.0.0.1", port=plc.port) as client:
            while not stop.is_set():
                answer = client.read_holding_registers(STATUS, count=STATUS_WORDS, device_id=3)
                reads.append(list(answer.registers))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        carry(actuator, plc, list(range(1, 200)))
    finally:
        stop.set()
        reader.join(100)
    blocks = [r[StatusWord.RESULT_HEAD :] for r in reads if r[StatusWord.RESULT_HEAD]]
    assert len({b[0] for b in blocks}) > 20, "the reader was too slow to see anything change"
    for block in blocks:
        assert block == [block[1], *block_of(block[1]), block[1]]
    shown = [(r[StatusWord.RESULT_HEAD], bool(r[StatusWord.BITS] & StatusBit.RESULTS_VALID)) for r in reads]
    turns = [turn for turn, _ in itertools.groupby(shown)]
    shown_as_valid = [head for head, valid in turns if valid]
    assert shown_as_valid == sorted(set(shown_as_valid))  # the bit never goes up before its block is there


def begin(driver: Modbus) -> None:
    """The first turn of a loop, before the PLC has said anything."""
    with pytest.raises(DriverError, match="silent"):
        driver.poll(0)


def test_a_client_that_only_opens_changes_neither_heartbeat_nor_line_ok_and_says_reject() -> None:
    """An earlier start left the way open, and its heartbeat."""
    port = free_port()
    with Slave(port) as plc:
        plc.alive = False
        with ModbusTcpClient("127.0.0.1", port=port) as world:
            world.write_registers(STATUS, [int(StatusBit.LINE_OK), 1234], device_id=3)
        driver = Modbus(settings("client", port), eject=True)
        try:
            wait_until(lambda: bool(plc.seen[-1][StatusWord.BITS] & StatusBit.PLC_SILENT))
            stood = int(StatusBit.LINE_OK)
            images = [(i[StatusWord.BITS], i[StatusWord.HEARTBEAT]) for i in plc.seen if any(i)]
            assert images == [(stood, 1234), (stood | StatusBit.PLC_SILENT | StatusBit.EJECT, 1234)]
            Actuator(driver).until(lambda: plc.seen[-1][StatusWord.HEARTBEAT] > 1234)
        finally:
            driver.close()


def test_a_client_that_is_closed_writes_what_was_set_last() -> None:
    """The PLC would keep the way open that was open before."""
    port = free_port()
    with Slave(port) as plc:
        for _ in range(20):  # whatever the exchange is at
            driver = Modbus(settings("client", port), eject=False)
            driver.report(Status(GateState.READY))
            Actuator(driver).until(lambda: plc.on(StatusBit.TRIGGER_READY) and not plc.on(StatusBit.EJECT))
            driver.eject(True)
            driver.close()
            with ModbusTcpClient("127.0.0.1", port=port) as world:
                left = world.read_holding_registers(STATUS, count=1, device_id=3).registers
            assert left[0] & StatusBit.EJECT


def test_a_server_answers_once_the_loop_is_alive() -> None:
    """Its first HEARTBEAT is none that the PLC knows."""
    port = free_port()
    driver = Modbus(settings("server", port), eject=True)
    try:
        with ModbusTcpClient("127.0.0.1", port=port) as plc:
            assert plc.read_holding_registers(STATUS, count=STATUS_WORDS).isError()
            assert plc.write_register(CONTROL, int(ControlBit.TRIGGER)).isError()
            begin(driver)
            image = plc.read_holding_registers(STATUS, count=STATUS_WORDS).registers
            assert image[StatusWord.BITS] == StatusBit.PLC_SILENT | StatusBit.EJECT
            assert not any(image[StatusWord.GATE_STATE :])
    finally:
        driver.close()


def test_the_status_block_belongs_to_us_and_only_registers_are_served() -> None:
    port = free_port()
    driver = Modbus(settings("server", port), eject=False)
    begin(driver)
    try:
        with ModbusTcpClient("127.0.0.1", port=port) as plc:
            assert plc.write_register(STATUS, 1).isError()
            assert plc.write_registers(CONTROL, [0] * 6).isError()
            assert plc.read_holding_registers(CONTROL, count=6).isError()
            assert plc.read_coils(CONTROL, count=1).isError()
            assert plc.write_coil(CONTROL, True).isError()
            assert plc.read_holding_registers(STATUS, count=STATUS_WORDS).registers[0] == StatusBit.PLC_SILENT
            assert plc.read_input_registers(STATUS, count=1, device_id=99).registers == [StatusBit.PLC_SILENT]
            assert not plc.write_register(CONTROL, int(ControlBit.TRIGGER)).isError()
            assert plc.read_holding_registers(CONTROL, count=1).registers == [ControlBit.TRIGGER]
            assert not plc.mask_write_register(
                address=CONTROL, and_mask=0, or_mask=int(ControlBit.RESULTS_ACK)
            ).isError()
            assert plc.read_holding_registers(CONTROL, count=1).registers == [ControlBit.RESULTS_ACK]
            both = plc.readwrite_registers(
                read_address=STATUS, read_count=9, write_address=CONTROL, values=[int(ControlBit.TRIGGER)]
            )
            assert both.registers[StatusWord.OVERRUNS] == 2
        assert [(e.input, e.level) for e in driver.poll(0)] == [(Input.SENSOR, up) for up in (True, False, True)]
    finally:
        driver.close()


@pytest.mark.parametrize("decision", [Decision.PASS, Decision.REJECT])
@pytest.mark.parametrize("at_rest", ["reject", "pass"])
def test_a_pass_and_a_reject_at_an_ejector_of_the_plc(
    role: str, tmp_path: Path, at_rest: str, decision: Decision
) -> None:
    """The whole loop, in real time: what the PLC reads of EJECT while a part with that verdict is at the ejector."""
    port, rest = free_port(), at_rest == "reject"
    timing = {"unit": "ms", "delay": 1, "pulse": 5_000, "tolerance": 5_000, "min_spacing": 10_000}
    plan = {"at_rest": at_rest, "match": {"by": "id"}, "timing": timing, "max_age_ms": 60_000}
    made, channel = actuator(drivers=[settings(role, port).model_dump()], **plan), Events()
    audit = AuditTrail(audit_path(tmp_path))
    with closing(open_drivers(made.drivers, eject=True)) as driver, ROLES[role](port) as plc:
        latch, panel = Latch(tmp_path / "latch", made.name, audit), Panel(tmp_path, tmp_path / "run", made.name)
        loop = Loop(made, "reject_all", driver, channel, latch, panel, audit, boot_id=BOOT)

        def until(condition: Callable[[], bool]) -> None:
            wait_until(lambda: bool(loop.turn()) or condition())

        channel.events.append(heartbeat())
        until(lambda: plc.on(StatusBit.TRIGGER_READY) and plc.on(StatusBit.EJECT) is rest)
        channel.events.append(line_verdict(1, decision, part_id=77, trigger_ns=time.monotonic_ns()))
        loop.turn()
        plc.seen.clear()
        plc.to_trigger.append(77)
        until(lambda: bool(plc.results))
        until(lambda: len({image[StatusWord.HEARTBEAT] for image in plc.seen}) > 10)
        acted = {bool(image[StatusWord.BITS] & StatusBit.EJECT) for image in plc.seen} == {True, False}
    assert [result[1:3] for result in plc.results] == [[77, DECISIONS[decision]]]
    assert acted is ((decision is Decision.PASS) if rest else (decision is Decision.REJECT))


def test_garbage_and_strangers_disturb_nobody() -> None:
    port = free_port()
    driver = Modbus(settings("server", port), eject=True)
    driver.report(Status(GateState.READY))
    actuator = Actuator(driver)
    try:
        with Master(port) as plc:
            actuator.until(lambda: plc.on(StatusBit.TRIGGER_READY))
            for garbage in (b"\0" * 4096, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 16):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(garbage)
            carry(actuator, plc, [1, 2, 3])
            assert [r[1] for r in plc.results] == [1, 2, 3]
            assert actuator.driver.poll(0) == []
    finally:
        driver.close()


def test_a_plc_that_accepts_and_never_answers_blocks_no_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        driver = Modbus(settings("client", port, request_timeout_ms=10_000, heartbeat_timeout_ms=50), eject=True)
        try:
            with listener.accept()[0] as silent:
                silent.recv(1)  # it waits for an answer now
                began = time.monotonic()
                for call in (lambda: driver.eject(True), lambda: driver.line_ok(True), lambda: driver.poll(0)):
                    with pytest.raises(DriverError):
                        call()
                driver.tell(None, outcome())
                driver.report(Status(GateState.READY))
                assert time.monotonic() - began < 5
                driver.close()
                assert time.monotonic() - began < 8  # and it ends while it waits
        finally:
            driver.close()


def test_a_plc_without_the_ejector_is_told_and_ejects_nothing() -> None:
    told = settings("client", 502, ejector=False)
    assert not told.ejects
    driver = Modbus(told, eject=True)
    with pytest.raises(DriverError, match="drives no ejector"):
        driver.eject(True)
    driver.close()


def test_edges_that_nobody_fetches_are_bounded_and_the_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.actuators.modbus.MAX_EDGES", 6)
    port = free_port()
    driver = Modbus(settings("server", port), eject=True)
    begin(driver)
    try:
        with ModbusTcpClient("127.0.0.1", port=port) as plc:
            for _ in range(5):
                plc.write_register(CONTROL, int(ControlBit.TRIGGER))
                plc.write_register(CONTROL, 0)
        assert len(driver.poll(0)) == 6
        with pytest.raises(DriverError, match="4 edges from the PLC"):
            driver.poll(0)
    finally:
        driver.close()


def test_a_port_in_use_and_a_missing_library_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(DriverError, match=r"cannot serve Modbus on 127\.0\.0\.1"):
            Modbus(settings("server", taken.getsockname()[1]), eject=True)
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(DriverError, match=r"pip install 'maskline\[plc\]'"):
        Modbus(settings("server", 1502), eject=True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"control_address": 100, "status_address": 104}, "overlap"),
        ({"status_address": 65530}, "pass 65535"),
        ({"role": "both"}, "role"),
        ({"inputs": ["sensor"]}, "inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**({"role": "server", "port": 502} | fields))


class Unplugged:
    """A driver that acts, and cannot."""

    def poll(self, timeout_ms: int) -> list[Edge]:
        raise DriverError("unplugged")

    def close(self) -> None: ...


def test_a_plc_that_is_told_hears_and_is_heard_while_the_driver_that_acts_fails(role: str) -> None:
    port = free_port()
    both: Any = [Unplugged(), Modbus(settings(role, port, ejector=False), eject=False)]
    with closing(Drivers(both, eject=True)) as drivers, ROLES[role](port) as plc:
        beats: set[int] = set()
        found: list[Edge] = []
        plc.bits = ControlBit.RESET

        def polled() -> bool:
            with pytest.raises(DriverError, match="unplugged") as failed:
                drivers.poll(0)
            found.extend(failed.value.edges)
            beats.add(plc.status[StatusWord.HEARTBEAT])
            plc.bits = ControlBit(0) if found else ControlBit.RESET ^ plc.bits
            return len(beats) > 3 and Input.RESET in {e.input for e in found}

        wait_until(polled)
