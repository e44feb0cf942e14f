"""The ids of parts that a PLC holds in a register: whose they are, and what a dead, slow or garbling PLC costs."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plc_register import ADDRESS, UNIT, Plc
from structlog.testing import capture_logs

from edge.errors import RecipeError
from edge.settings import PartIds, Station
from edge.sources import Triggered
from edge.sources.camera import CameraSource, Grabbed
from edge.sources.part_ids import PartIdReader, Reading, Register
from edge.testing import wait_until
from tests.edge.actuators.driver_helpers import free_port

MS = 1_000_000
TIMEOUT = 20
PATIENT_MS = 10_000
"""A test's machine may stand still."""


def register(*readings: tuple[int, int]) -> Register:
    """What was read: id and begin in ms, from 1 on; each took 1 ms."""
    made = Register(0, TIMEOUT * MS)
    for part_id, begun_ms in readings:
        made.read(Reading(part_id, begun_ms * MS, (begun_ms + 1) * MS))
    return made


def taken(made: Register, *triggers_ms: int | None) -> list[int]:
    """The ids of triggers at these times; None: of one at a time that nobody knows."""
    found = []
    for at_ms in triggers_ms:
        if at_ms is None:
            made.untimed()
        else:
            found.append(made.take(at_ms * MS, at_ms * MS)[0])
    return found


def test_a_part_has_the_id_that_was_read_first_after_its_trigger() -> None:
    made = register((5, 1), (6, 10), (6, 20), (7, 30), (7, 110), (8, 130), (8, 205))
    assert taken(made, 10, 105, 200) == [6, 7, 8]


@pytest.mark.parametrize(("earliest", "at", "expected"), [(100, 100, 6), (100, 111, 6), (90, 100, 0), (100, 112, 0)])
def test_a_reading_that_may_be_of_the_next_part_is_of_none(earliest: int, at: int, expected: int) -> None:
    made = register((5, 10), (6, 111))
    made.read(Reading(7, 130 * MS, 131 * MS))
    assert taken(made, 5) == [0]
    assert made.take(earliest * MS, at * MS)[0] == expected


def test_an_id_that_does_not_change_is_of_the_first_part_only() -> None:
    made = register((5, 1), (6, 10), (6, 110), (6, 210), (7, 310))
    assert taken(made, 10, 110, 210, 310) == [6, 0, 0, 7]


def test_an_id_that_comes_again_at_once_is_of_the_first_part_only() -> None:
    assert taken(register((5, 1), (6, 10), (9, 60), (6, 110)), 10, 110) == [6, 0]


def test_after_a_start_an_id_counts_once_it_was_seen_to_change() -> None:
    assert taken(register((6, 1), (6, 10), (7, 110)), 10, 110) == [0, 7]
    assert taken(register((5, 1), (6, 10)), 10) == [6]


def test_after_a_part_without_an_id_it_must_be_seen_to_change_too() -> None:
    """What the PLC holds then may be of the part that could not be asked for."""
    assert taken(register((5, 1), (6, 10), (7, 160), (7, 210)), 10, 110, 210) == [6, 0, 0]
    assert taken(register((5, 1), (6, 10), (7, 160), (8, 210)), 10, 110, 210) == [6, 0, 8]


def test_a_reading_that_was_under_way_at_a_trigger_shows_no_change_since() -> None:
    made = register((5, 1), (6, 10))
    assert taken(made, 10, 110) == [6, 0]
    made.read(Reading(6, 105 * MS, 140 * MS))  # 7 was written meanwhile, for the part that was triggered at 110
    made.read(Reading(7, 210 * MS, 211 * MS))
    assert taken(made, 210) == [0]


def test_each_trigger_at_an_unknown_time_takes_one_change() -> None:
    assert taken(register((5, 1), (6, 10), (7, 110)), 10, None, 110) == [6, 0]
    assert taken(register((5, 1), (6, 10), (7, 60), (8, 110)), 10, None, 110) == [6, 8]
    assert taken(register((5, 1), (6, 10), (7, 40), (8, 70), (8, 110), (9, 210)), 10, None, None, 110, 210) == [6, 0, 9]


def test_no_id_is_0_and_ids_wrap() -> None:
    assert taken(register((65534, 1), (65535, 10), (1, 110), (0, 210), (2, 310)), 10, 110, 210, 310) == [65535, 1, 0, 0]
    assert taken(register((65534, 1), (65535, 10), (0, 60), (1, 110)), 10, 110) == [65535, 1]


def test_it_is_said_why_there_is_none() -> None:
    made = register((5, 1), (6, 40), (0, 60), (7, 160), (7, 200))
    found = [made.take(at_ms * MS, at_ms * MS) for at_ms in (60, 150, 195, 300)]
    unchanged = "the register holds 7, and was not seen to change since the trigger before"
    unanswered = "the PLC had not answered 20 ms after the trigger"
    assert found == [(0, "the register holds 0"), (0, unchanged), (0, unchanged), (0, unanswered)]


def test_times_that_fall_get_no_id() -> None:
    assert taken(register((5, 1), (6, 10), (7, 110)), 10, 110, 10, 11) == [6, 7, 0, 0]


def test_a_long_rest_forgets_no_id() -> None:
    made = register((5, 1), (6, 10))
    assert taken(made, 10) == [6]
    for ms in range(100, 100_000, 10):  # the PLC writes the next one early
        made.read(Reading(7, ms * MS, (ms + 1) * MS))
    assert taken(made, 99_990) == [7]


@st.composite
def belts(draw: st.DrawFn) -> tuple[list[Reading], list[tuple[int, int, int | None, int]]]:
    """Readings, and triggers (earliest, at, when it was or None: nobody knows, id or 0: the PLC did not write one)."""
    now, value = draw(st.integers(1, 50)), draw(st.integers(0, 3))
    written, triggers = [(0, value)], []
    for number in range(draw(st.integers(1, 12))):
        written_at = now + draw(st.integers(0, 30))
        advances = draw(st.integers(0, 4)) > 0
        if advances:
            value = number + 10
            written.append((written_at, value))
        at = written_at + draw(st.integers(0, 30))
        known = draw(st.integers(0, 4)) > 0
        early, late = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        triggers.append((at - early, at + late, at if known else None, value if advances else 0))
        now = at + TIMEOUT + draw(st.integers(1, 40))
    readings, ms = [], 1
    while ms < now:
        begun, took = ms + draw(st.integers(0, 15)), draw(st.integers(0, 8))
        sampled = begun + draw(st.integers(0, took))
        held = [v for w, v in written if w <= sampled][-1]
        readings.append(Reading(held, begun * MS, (begun + took) * MS))
        ms = begun + took + 1 + draw(st.sampled_from([0, 0, 0, 0, 60, 150]))  # it is away now and then
    return readings, triggers


@given(belts())
def test_no_part_gets_the_id_of_another(belt: tuple[list[Reading], list[tuple[int, int, int | None, int]]]) -> None:
    readings, triggers = belt
    made, waiting = Register(0, TIMEOUT * MS), deque(readings)
    for earliest, at, when, own in triggers:
        while waiting and waiting[0].done_ns <= (earliest + TIMEOUT) * MS:
            made.read(waiting.popleft())
        if when is None:
            made.untimed()
        else:
            assert made.take(earliest * MS, at * MS)[0] in (0, own)


# The thread, against pymodbus' own server.


@pytest.fixture
def opened() -> Iterator[Callable[..., PartIdReader]]:
    """Opens readers; nothing of them is left behind."""
    with ExitStack() as stack:

        def open_reader(port: int, **changes: Any) -> PartIdReader:
            return stack.enter_context(closing(PartIdReader(settings(port, **changes), "top")))

        yield open_reader
    assert [t.name for t in threading.enumerate() if t.name in ("part_ids", "plc")] == []


def settings(port: int, **changes: Any) -> PartIds:
    fields = {"host": "127.0.0.1", "port": port, "unit": UNIT, "address": ADDRESS, "cycle_ms": 5}
    return PartIds.model_validate(fields | {"timeout_ms": PATIENT_MS} | changes)


def trigger(reader: PartIdReader) -> int | None:
    """Now."""
    now_ns = time.monotonic_ns()
    return reader.take(now_ns, now_ns)


def test_ids_are_read_and_wrap(opened: Callable[..., PartIdReader]) -> None:
    with Plc(free_port(), 65_000) as plc:
        reader = opened(plc.port)
        plc.hear()
        found = []
        for part_id in (65_534, 65_535, 1, 2):
            plc.register = part_id
            found.append(trigger(reader))
    assert found == [65_534, 65_535, 1, 2]


def test_a_part_without_an_id_is_counted_and_said_once(opened: Callable[..., PartIdReader]) -> None:
    with Plc(free_port(), 7) as plc, capture_logs() as logs:
        reader = opened(plc.port)
        plc.hear()
        plc.register = 8
        assert [trigger(reader) for _ in range(4)] == [8, None, None, None]
        assert reader.take(None, time.monotonic_ns()) is None
    assert reader.missing == 4
    (said,) = [entry for entry in logs if entry["event"] == "trigger_without_part_id"]
    assert "holds 8, and was not seen to change" in said["why"]
    assert (said["station"], said["plc"]) == ("top", f"127.0.0.1:{plc.port}")


def test_a_plc_that_dies_and_comes_back(opened: Callable[..., PartIdReader]) -> None:
    port = free_port()
    with capture_logs() as logs:
        reader = opened(port)
        assert trigger(reader) is None, "it never was there, and nothing waits for it"
        for first in (10, 20):
            with Plc(port, first) as plc:
                plc.hear()
                plc.register = first + 1
                assert trigger(reader) == first + 1
            wait_until(lambda: [e["event"] for e in logs][-1] == "plc_away")
            assert trigger(reader) is None
    events = [e["event"] for e in logs if e["event"].startswith("plc")]
    assert events in (["plc_away", "plc_heard"] * 2 + ["plc_away"], ["plc_heard", "plc_away"] * 2)


def test_a_plc_that_says_nothing_is_waited_for_once(opened: Callable[..., PartIdReader]) -> None:
    with Plc(free_port(), 7) as plc:
        reader = opened(plc.port, timeout_ms=1_000)
        wait_until(lambda: reader._prompt)
        plc.delay_s = 3600
        assert trigger(reader) is None, "given up with the request"
        assert not reader._prompt, "so no other trigger waits"
        assert [trigger(reader) for _ in range(100)] == [None] * 100
        assert reader.missing == 101


def test_a_plc_that_is_too_slow_is_none(opened: Callable[..., PartIdReader]) -> None:
    with Plc(free_port(), 7) as plc:
        plc.delay_s = 0.2
        reader = opened(plc.port, timeout_ms=100)
        plc.hear()
        plc.register = 8
        assert trigger(reader) is None
        assert not reader._prompt, "so no trigger waits"
        plc.delay_s = 0.0
        wait_until(lambda: reader._prompt)


def test_a_plc_that_refuses(opened: Callable[..., PartIdReader]) -> None:
    with Plc(free_port(), 7) as plc, capture_logs() as logs:
        plc.refuses = True
        reader = opened(plc.port)
        wait_until(lambda: bool(logs))
        assert trigger(reader) is None
        plc.refuses = False
        wait_until(lambda: reader._prompt)
    assert "reading register 40" in logs[0]["why"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 300,
        b"HTTP/1.1 200 OK\r\n\r\n" * 20,
        bytes(range(256)),
        b"\0\1\0\0\0\3\3\3\0",  # no registers
        b"\0\1\0\0\0\7\3\3\4\0\5\0\6",  # two of them
        b"\0\1\0\0\0\5\4\3\2\0\5",  # of another unit
        b"\0\2\0\0\0\5\3\3\2\0\5",  # to another request
    ],
)
def test_garbage_is_no_id(opened: Callable[..., PartIdReader], garbage: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, capture_logs() as logs:
        reader = opened(listener.getsockname()[1], timeout_ms=20)
        for _ in range(2):  # it connects again
            connection, _ = listener.accept()
            with connection:
                connection.recv(64)
                connection.sendall(garbage)
                while connection.recv(64):
                    pass
        assert trigger(reader) is None
    assert [e["event"] for e in logs] == ["plc_away", "trigger_without_part_id"]


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(RecipeError, match=r"station top: part_ids needs pymodbus: pip install 'maskline\[plc\]'"):
        PartIdReader(settings(502), "top")


# Through a camera: the PLC writes an id, triggers it, and leaves the id.

IMAGE = np.zeros((48, 64, 1), np.uint8)


class Machine:
    """PLC and camera: each grab is a part. `ids`: what the PLC writes before each; None: nothing. A tuple of several:
    parts whose frames the camera loses, and then one."""

    def __init__(self, plc: Plc, *ids: int | tuple[int, ...] | None) -> None:
        self.plc, self.ids, self.frame_id, self.closed = plc, deque(ids), 0, False

    def grab(self, timeout_s: float) -> Grabbed | None:
        if not self.ids:
            return None
        part_ids = self.ids.popleft()
        for part_id in part_ids if isinstance(part_ids, tuple) else (part_ids,):
            self.plc.hear()
            if part_id is not None:
                self.plc.register = part_id
            self.frame_id += 1
        self.plc.hear()
        now_ns = time.monotonic_ns()
        return Grabbed(IMAGE, now_ns, self.frame_id, now_ns)

    def close(self) -> None:
        self.closed = True


def station(port: int, **source: Any) -> Station:
    fields = {"kind": "genicam", "address": "192.0.2.1", "camera": {}, **source}
    frame = {"width_px": 64, "height_px": 48}
    ids = settings(port).model_dump()
    return Station.model_validate(
        {"name": "top", "bundle": "marker", "frame": frame, "source": fields, "part_ids": ids}
    )


def said(plc: Plc, camera: Any, /, **source: Any) -> list[tuple[int, int | None]]:
    """Number and id of each trigger."""
    where = station(plc.port, **source)
    assert where.part_ids
    made = CameraSource(camera, where, 0, ids=PartIdReader(where.part_ids, "top"))
    with closing(made):
        plc.hear()
        found = list(itertools.takewhile(lambda e: e is not None, iter(lambda: made.poll(0.05), 0)))
    return [(e.number, e.part_id) for e in found if isinstance(e, Triggered)]


def test_the_triggers_of_a_camera_have_the_ids_of_their_parts() -> None:
    with Plc(free_port(), 5) as plc:
        machine = Machine(plc, 6, 7, None, 65_535, 1)
        assert said(plc, machine) == [(0, None), (1, 7), (2, None), (3, 65_535), (4, 1)], "first, its clock is learnt"
        assert machine.closed


def test_a_frame_that_is_missed_has_no_id_and_takes_that_of_no_other() -> None:
    with Plc(free_port(), 5) as plc:
        assert said(plc, Machine(plc, 6, 7, (8, 9), 10)) == [(0, None), (1, 7), (2, None), (3, 9), (4, 10)]


class Counter(Machine):
    """A camera that counts its triggers, and never sends an image. `ids`: of one trigger; a tuple: of several at one
    look."""

    def __init__(self, plc: Plc, *ids: int | tuple[int, ...]) -> None:
        super().__init__(plc, *ids)
        self.count = 100

    def grab(self, timeout_s: float) -> None:
        time.sleep(timeout_s)
        if self.ids:
            part_ids = self.ids.popleft()
            for part_id in part_ids if isinstance(part_ids, tuple) else (part_ids,):
                self.plc.hear()
                self.plc.register = part_id
                self.plc.hear()
                self.count += 1

    def triggers(self) -> int | None:
        return self.count


def test_counted_triggers_have_ids_and_two_at_once_have_none() -> None:
    source = {"triggers": "independent", "frame_timeout_ms": 1, "camera": {"chunks": {"trigger": "Counter0"}}}
    with Plc(free_port(), 5) as plc:
        assert said(plc, Counter(plc, 6, (7, 8), 9, 10), **source) == [(0, 6), (1, None), (2, None), (3, 9), (4, 10)]
