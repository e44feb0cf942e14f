"""The handshake with a PLC, without a network: its rules, and that no result is lost uncounted or shown twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.actuators.driver import Edge, Fault, Input, Status, id16
from edge.actuators.driver_settings import ModbusDriver
from edge.actuators.handshake import Handshake
from edge.actuators.modbus_map import (
    CONTROL_WORDS,
    DECISIONS,
    NO_SCORE,
    OTHER_WHY,
    RESULT,
    STATUS_WORDS,
    WHY,
    ControlBit,
    ControlWord,
    StatusBit,
    StatusWord,
    why_code,
)
from edge.verdict import GateState, Reason
from tests.edge.actuators.driver_helpers import outcome, verdict

MS = 1_000_000
READY = Status(GateState.READY)


class Plc:
    """A PLC whose program is the test: it writes its whole block each time, heartbeat included."""

    def __init__(self, **settings: Any) -> None:
        fields = {"kind": "modbus", "role": "server", "host": "127.0.0.1", **settings}
        self.handshake = Handshake(ModbusDriver.model_validate(fields), eject=False)
        self.now_ns = 5_000 * MS
        self.control = [0] * CONTROL_WORDS
        self.handshake.report(READY)
        self.write()
        self.write()

    def write(self, bits: int = 0, *, beat: bool = True, after_ms: float = 1, **words: int) -> list[Edge]:
        self.now_ns += int(after_ms * MS)
        self.control[ControlWord.BITS] = int(bits)
        self.control[ControlWord.HEARTBEAT] += beat
        for name, value in words.items():
            self.control[ControlWord[name.upper()]] = value
        return self.handshake.written(0, self.control, self.now_ns)

    def read(self) -> list[int]:
        image = self.handshake.image(self.now_ns)
        self.handshake.seen(image)
        return image

    @property
    def bits(self) -> StatusBit:
        return StatusBit(self.read()[StatusWord.BITS])

    def result(self) -> tuple[int, int]:
        image = self.read()
        assert image[StatusWord.RESULT_HEAD] == image[StatusWord.RESULT_TAIL]
        return image[StatusWord.RESULT_HEAD], image[StatusWord.RESULT_ID]

    def tell(self, part_id: int, **changes: Any) -> None:
        self.handshake.tell(None, outcome(part_id, part_id=part_id, **changes), self.now_ns)


def test_a_trigger_is_acknowledged_and_busy_until_its_result_is_taken() -> None:
    plc = Plc()
    assert StatusBit.TRIGGER_READY in plc.bits
    (edge,) = plc.write(ControlBit.TRIGGER, part_id=77)
    assert (edge.input, edge.level, edge.part_id, edge.at_ns) == (Input.SENSOR, True, 77, plc.now_ns)
    assert StatusBit.TRIGGER_ACK | StatusBit.BUSY in plc.bits
    assert StatusBit.TRIGGER_READY not in plc.bits
    assert plc.read()[StatusWord.TRIGGER_ID] == 77
    assert plc.write(ControlBit.TRIGGER) == []  # held: one part
    (edge,) = plc.write()
    assert (edge.input, edge.level) == (Input.SENSOR, False)
    assert StatusBit.TRIGGER_READY | StatusBit.BUSY in plc.bits
    plc.tell(77)
    assert StatusBit.RESULTS_VALID in plc.bits
    assert StatusBit.BUSY not in plc.bits
    assert plc.result() == (1, 77)
    plc.write(ControlBit.RESULTS_ACK)
    assert StatusBit.RESULTS_VALID not in plc.bits


def test_the_result_block_says_what_was_decided() -> None:
    plc = Plc()
    seen = verdict(score=1.5, threshold=1.0, late=True)
    plc.handshake.tell(seen, outcome(5, part_id=5, why="deadline", ejected=True), plc.now_ns)
    block = plc.read()[RESULT]
    assert block == [1, 5, DECISIONS[outcome(5).decision], WHY["deadline"], 0b111, 1500, 0, 1]


@pytest.mark.parametrize(
    ("score", "threshold", "expected"),
    [
        (None, 1.0, NO_SCORE),
        (1.0, None, NO_SCORE),
        (1.0, 0.0, NO_SCORE),
        (float("nan"), 1.0, NO_SCORE),
        (1e9, 1.0, NO_SCORE - 1),
        (-1.0, 1.0, 0),
        (0.25, 0.5, 500),
    ],
)
def test_scores_fit_into_a_register(score: float, threshold: float, expected: int) -> None:
    plc = Plc()
    plc.handshake.tell(verdict(score=score, threshold=threshold), outcome(why="from the future"), plc.now_ns)
    assert plc.read()[StatusWord.SCORE] == expected
    assert plc.read()[StatusWord.WHY] == OTHER_WHY


def test_every_reason_has_a_number_of_its_own() -> None:
    assert {r.value for r in Reason} <= set(WHY)
    assert len(set(WHY.values())) == len(WHY)
    assert set(DECISIONS) == {outcome(n).decision for n in range(3)}


@pytest.mark.parametrize(
    ("why", "code"),
    [
        ("", 0),
        ("deadline", 2),
        ("too young", 38),
        ("fault air", 44),
        ("gate STOPPING", 45),
        ("air_ok not known", 46),
        ("too odd", OTHER_WHY),
        ("faulty", OTHER_WHY),
    ],
)
def test_what_an_actuator_says_of_a_part_has_a_code(why: str, code: int) -> None:
    assert why_code(why) == code


def test_ids_wrap_in_16_bits_and_zero_is_no_part() -> None:
    assert [id16(n) for n in (1, 65535, 65536, 131070, 131071)] == [1, 65535, 1, 65535, 1]
    assert 0 not in {id16(n) for n in range(140_000)}
    assert outcome(None).id16 == 0
    assert outcome(65536).id16 == 1
    assert outcome(3, part_id=9).id16 == 9


def test_the_number_of_the_result_wraps_over_zero() -> None:
    plc = Plc()
    plc.handshake._words[StatusWord.RESULT_HEAD] = 65_533
    heads = []
    for part_id in (1, 2, 3, 4):
        plc.tell(part_id)
        heads.append(plc.result()[0])
        plc.write(ControlBit.RESULTS_ACK)
        plc.write()
    assert heads == [65534, 65535, 1, 2]


@pytest.mark.parametrize(
    "status",
    [Status(None), Status(GateState.NOT_READY), Status(GateState.STOPPING), Status(GateState.READY, fault=Fault.AIR)],
)
def test_a_trigger_while_not_ready_is_an_overrun_and_a_part_all_the_same(status: Status) -> None:
    plc = Plc()
    plc.handshake.report(status)
    assert StatusBit.TRIGGER_READY not in plc.bits
    (edge,) = plc.write(ControlBit.TRIGGER, part_id=3)
    assert (edge.input, edge.level, edge.part_id) == (Input.SENSOR, True, 3)
    assert StatusBit.OVERRUN in plc.bits
    assert StatusBit.TRIGGER_ACK not in plc.bits
    assert plc.read()[StatusWord.OVERRUNS] == 1
    plc.write(ControlBit.RESET)
    assert StatusBit.OVERRUN not in plc.bits
    assert plc.read()[StatusWord.OVERRUNS] == 1  # counters go on


def test_not_ready_while_so_many_parts_are_in_flight() -> None:
    plc = Plc(parts_in_flight=2)
    for part_id in (1, 2, 3):
        plc.write(ControlBit.TRIGGER, part_id=part_id)
        plc.write()
    assert plc.read()[StatusWord.OVERRUNS] == 1
    plc.tell(2)
    assert StatusBit.TRIGGER_READY | StatusBit.BUSY in plc.bits


def test_a_trigger_without_an_id_is_answered_with_the_number_of_the_part() -> None:
    plc = Plc()
    (edge,) = plc.write(ControlBit.TRIGGER, part_id=0)
    assert edge.part_id is None
    plc.handshake.tell(None, outcome(70_000), plc.now_ns)
    assert StatusBit.BUSY not in plc.bits
    assert plc.result() == (1, 70_000 - 65_535)


def test_a_result_that_nobody_acknowledges_is_missed_and_withdrawn_before_the_next() -> None:
    plc = Plc(ack_timeout_ms=50)
    plc.tell(1)
    plc.tell(2)
    assert plc.result() == (1, 1)
    for _ in range(6):
        plc.write(after_ms=10)
    assert plc.read()[StatusWord.MISSES] == 1
    assert StatusBit.MISSED in plc.bits
    assert StatusBit.RESULTS_VALID not in plc.bits
    plc.write(ControlBit.RESULTS_ACK, beat=False)  # decided upon before it was withdrawn: it is not for the next
    assert StatusBit.RESULTS_VALID not in plc.bits
    plc.write()
    assert StatusBit.RESULTS_VALID in plc.bits
    assert plc.result() == (2, 2)


def test_a_withdrawn_result_stays_withdrawn_until_the_plc_has_seen_it() -> None:
    plc = Plc(ack_timeout_ms=50)
    plc.tell(1)
    plc.tell(2)
    for _ in range(12):
        plc.write(after_ms=10)
    assert plc.handshake.image(plc.now_ns)[StatusWord.RESULT_ID] == 1
    plc.read()
    plc.write()
    assert plc.result() == (2, 2)


def test_results_beyond_the_buffer_and_results_that_never_come_are_missed() -> None:
    plc = Plc(buffered_results=2, result_timeout_ms=100)
    for part_id in range(1, 6):
        plc.tell(part_id)
    image = plc.read()
    assert (image[StatusWord.RESULT_ID], image[StatusWord.BUFFERED], image[StatusWord.MISSES]) == (1, 2, 2)
    plc.write(ControlBit.TRIGGER, part_id=9)
    assert StatusBit.BUSY in plc.bits
    plc.write(after_ms=101)
    assert StatusBit.BUSY not in plc.bits
    assert plc.read()[StatusWord.MISSES] == 3


def test_silence_of_the_plc_drops_what_was_for_it() -> None:
    plc = Plc(heartbeat_timeout_ms=100)
    plc.write(ControlBit.TRIGGER, part_id=9)
    for part_id in (1, 2):
        plc.tell(part_id)
    for _ in range(11):
        plc.write(ControlBit.TRIGGER, beat=False, after_ms=10)
    assert plc.handshake.silent
    assert plc.read()[StatusWord.MISSES] == 3  # shown, buffered, and the trigger's
    plc.tell(3)
    assert plc.read()[StatusWord.MISSES] == 4
    assert plc.bits & (StatusBit.PLC_SILENT | StatusBit.RESULTS_VALID | StatusBit.BUSY) == StatusBit.PLC_SILENT
    plc.write()
    plc.tell(4)
    assert not plc.handshake.silent
    assert plc.result() == (2, 4)  # nothing stale


def test_a_heartbeat_register_that_only_holds_a_value_is_no_heartbeat() -> None:
    handshake = Handshake(ModbusDriver(kind="modbus", role="client", host="plc"), eject=True)
    for now_ms in range(0, 100, 10):
        handshake.written(0, [0, 4711, 0, 0, 0], now_ms * MS)
    assert handshake.silent
    handshake.written(0, [0, 4712, 0, 0, 0], 100 * MS)
    assert not handshake.silent


def test_a_reset_that_is_stuck_high_resets_nothing_and_a_trigger_that_is_high_is_a_part() -> None:
    handshake = Handshake(ModbusDriver(kind="modbus", role="client", host="plc"), eject=True)
    stuck = int(ControlBit.RESET | ControlBit.CHANGE_OVER | ControlBit.TRIGGER)
    edges = handshake.written(0, [stuck, 1, 5, 2, 0], 0)
    assert [e.input for e in edges] == [Input.SENSOR]
    handshake.written(0, [0, 2, 5, 2, 0], MS)
    edges = handshake.written(0, [int(ControlBit.RESET), 3, 5, 2, 0], 2 * MS)
    assert [e.input for e in edges] == [Input.RESET]


def test_a_reset_across_a_silence_resets_nothing() -> None:
    plc = Plc(heartbeat_timeout_ms=100)
    assert plc.write(ControlBit.RESET, after_ms=500) == []
    plc.write()
    assert [e.input for e in plc.write(ControlBit.RESET)] == [Input.RESET]


def test_a_change_over_names_the_recipe_and_is_acknowledged() -> None:
    plc = Plc()
    (edge,) = plc.write(ControlBit.CHANGE_OVER, recipe=12)
    assert (edge.input, edge.level, edge.recipe) == (Input.CHANGE_OVER, True, 12)
    assert StatusBit.CHANGE_OVER_ACK in plc.bits
    assert StatusBit.TRIGGER_READY not in plc.bits
    assert plc.write(ControlBit.CHANGE_OVER) == []
    plc.write()
    assert StatusBit.CHANGE_OVER_ACK not in plc.bits
    plc.handshake.report(Status(GateState.READY, recipe=12))
    assert plc.read()[StatusWord.RECIPE] == 12


def test_levels_are_told_when_they_change_and_only_if_wired() -> None:
    plc = Plc(inputs={"air_ok", "confirm"})  # the first write told that air_ok is low
    edges = plc.write(ControlBit.AIR_OK | ControlBit.BIN_FULL | ControlBit.COMMISSIONING, confirmed=2)
    told = [(e.input, e.level) for e in edges]
    assert told == [(Input.CONFIRM, True)] * 2 + [(Input.AIR_OK, True), (Input.COMMISSIONING, True)]
    assert plc.write(ControlBit.AIR_OK | ControlBit.COMMISSIONING, confirmed=40_000) == []  # a PLC that began again
    assert [e.input for e in plc.write(ControlBit.AIR_OK | ControlBit.COMMISSIONING, confirmed=40_001)] == [
        Input.CONFIRM
    ]


def test_an_air_pressure_that_was_never_told_is_no_edge() -> None:
    wired = ModbusDriver(kind="modbus", role="server", host="127.0.0.1", inputs=("air_ok",))
    handshake = Handshake(wired, eject=True)
    assert handshake.written(ControlWord.HEARTBEAT, [1], 0) == []
    assert [e.input for e in handshake.written(ControlWord.BITS, [0], 0)] == [Input.AIR_OK]


def test_outputs_and_states_are_bits() -> None:
    plc = Plc()
    plc.handshake.eject(True)
    plc.handshake.line_ok(True)
    plc.handshake.report(Status(GateState.DEGRADED, fault=Fault.BIN_FULL, commissioning=True))
    assert plc.bits == StatusBit.EJECT | StatusBit.LINE_OK | StatusBit.FAULT | StatusBit.COMMISSIONING
    assert plc.read()[StatusWord.FAULT] == Fault.BIN_FULL
    assert plc.read()[StatusWord.GATE_STATE] == 3
    plc.handshake.eject(False)
    assert StatusBit.EJECT not in plc.bits


@pytest.mark.parametrize("eject", [True, False])
def test_the_first_image_says_where_the_ejector_starts_and_is_no_sign_of_life(eject: bool) -> None:
    handshake = Handshake(ModbusDriver(kind="modbus", role="client", host="plc"), eject=eject)
    stood = [0] * STATUS_WORDS
    stood[StatusWord.BITS], stood[StatusWord.HEARTBEAT] = int(StatusBit.LINE_OK | StatusBit.RESULTS_VALID), 65_535
    handshake.resume(stood)
    image = handshake.image(5_000 * MS)
    ejects = StatusBit.EJECT if eject else StatusBit(0)
    assert image[StatusWord.BITS] == StatusBit.PLC_SILENT | StatusBit.LINE_OK | ejects
    assert image[StatusWord.HEARTBEAT] == 65_535
    assert not handshake.alive
    assert handshake.beat(5_000 * MS)
    assert handshake.alive
    assert handshake.image(5_000 * MS)[StatusWord.HEARTBEAT] == 0


def test_our_heartbeat_changes_when_the_loop_is_alive_and_it_is_due() -> None:
    plc = Plc(heartbeat_ms=200)
    beats = [plc.handshake.beat((10_000 + at_ms) * MS) for at_ms in (0, 100, 199, 200, 399, 400)]
    assert beats == [True, False, False, True, False, True]


@given(
    steps=st.lists(
        st.sampled_from(["tell", "read and ack", "read", "write", "stall", "hang"]),
        max_size=80,
    )
)
def test_each_result_is_taken_once_and_in_order_or_counted_as_missed(steps: list[str]) -> None:
    """Whatever a PLC does that writes an ack only for a result that it has just read."""
    plc = Plc(ack_timeout_ms=30, heartbeat_timeout_ms=200, buffered_results=3)
    told, taken, last = 0, [], 0
    for step in [*steps, *["read and ack", "write"] * 8]:
        if step == "tell":
            told += 1
            plc.tell(told)
        elif step == "read and ack" and StatusBit.RESULTS_VALID in plc.bits:
            number, part_id = plc.result()
            assert number > last
            last = number
            taken.append(part_id)
            plc.write(ControlBit.RESULTS_ACK)
        elif step in ("read", "read and ack"):
            plc.read()
        else:
            plc.write(after_ms={"write": 1, "stall": 31, "hang": 250}[step])
    assert taken == sorted(set(taken))
    image = plc.read()
    waiting = image[StatusWord.BUFFERED] + bool(image[StatusWord.BITS] & StatusBit.RESULTS_VALID)
    assert len(taken) + image[StatusWord.MISSES] + waiting == told
    assert waiting == 0


def test_the_documented_registers_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "plc.md").read_text()
    control, status = text.split("### Control block")[1].split("### Status block")
    status = status.split("### The handshake")[0]
    for part, words, bits in ((control, ControlWord, ControlBit), (status, StatusWord, StatusBit)):
        registers, _, flags = part.partition("| bit |")
        rows = [(int(a), b) for a, b in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", registers, re.M)]
        assert rows == [(int(w), w.name) for w in words]
        rows = [(1 << int(a), b) for a, b in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", flags, re.M)]
        assert rows == [(int(b), b.name) for b in bits]
    tables = status.partition("| fault |")[2].partition("| why |")
    codes = [dict(re.findall(r"\| ([A-Za-z_ ]*?)(?: ?\([^|]+\))? \| (\d+) (?=\|)", table)) for table in tables[::2]]
    assert codes[0] == {f.name: str(int(f)) for f in Fault}
    assert codes[1] == {why: str(code) for why, code in WHY.items()} | {"another": str(OTHER_WHY)}
