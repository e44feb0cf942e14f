"""The simulated conveyor: its physics step by step, and its sockets with the source and the driver that use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

from edge.actuators.belt import Belt, BeltSettings, Crossing, End, Place
from edge.actuators.conveyor import Conveyor
from edge.actuators.driver import DriverError, Edge, Input
from edge.actuators.settings import SimulatedDriver
from edge.actuators.simulated import SILENCE_NS, Simulated
from edge.marker import Marker, read
from edge.settings import Frame, Station
from edge.sources import Exposed, Triggered, open_source
from edge.sources.truth import truth_is_bad
from edge.testing import wait_until


def running(**changes: object) -> Belt:
    """A belt whose LINE-OK toggles; see `run`."""
    return Belt(BeltSettings(**({"jitter_mm": 0.0} | changes)))  # type: ignore[arg-type]


def run(belt: Belt, ms: int, line_ok: bool = True) -> list[Crossing]:
    found = []
    for _ in range(ms):
        if line_ok and int(belt.ms) % 20 == 0:
            belt.set_line_ok(not belt.line_ok)
        found += belt.step(1.0)
    return found


def ends(belt: Belt) -> list[tuple[int, str]]:
    return [(p.serial, p.end.value) for p in belt.ended]


def test_parts_pass_camera_and_sensor_in_order() -> None:
    found = run(running(), 3000)
    assert [c.part.serial for c in found if c.place is Place.CAMERA] == list(range(14))
    sensed = {c.part.serial: c.count for c in found if c.place is Place.SENSOR}
    counts = {c.part.serial: c.count for c in found if c.place is Place.CAMERA}
    assert all(abs(sensed[i] - counts[i] - 4000) <= 10 for i in sensed)
    assert list(sensed) == list(range(10))


def test_without_a_command_everything_is_rejected() -> None:
    belt = running()
    run(belt, 3000)
    assert ends(belt)
    assert {end for _, end in ends(belt)} == {"reject"}


def test_power_lets_pass_and_its_loss_springs_to_reject() -> None:
    belt = running()
    belt.ejects = False
    run(belt, 2000)
    assert {end for _, end in ends(belt)} == {"good"}
    run(belt, 200, line_ok=False)
    assert belt.tripped
    assert belt.deflection == 1.0


def test_the_ejector_needs_time() -> None:
    belt = running(inertia_ms=100.0)
    run(belt, 200)
    belt.ejects = False
    run(belt, 49)
    assert belt.deflection > 0.5
    run(belt, 60)
    assert belt.deflection == 0.0


def test_an_ejector_that_opens_too_late_throws_the_part_out() -> None:
    belt = running(inertia_ms=200.0)
    while not belt.on_belt or belt.moved_mm < 530.0:
        run(belt, 1)
    belt.ejects = False
    run(belt, 400)
    assert ends(belt)[:2] == [(0, "reject"), (1, "good")]


def test_the_interlock_stops_the_belt_in_time() -> None:
    belt = running(interlock_ms=100.0, ramp_ms=50.0)
    run(belt, 1000)
    assert belt.speed == 1.0
    run(belt, 175, line_ok=False)
    where_mm = belt.moved_mm
    run(belt, 100, line_ok=False)
    assert belt.speed == 0.0
    assert belt.moved_mm == where_mm
    run(belt, 500)
    assert belt.speed == 1.0, "and runs again when LINE-OK toggles"


def test_an_interlock_that_springs_to_reject_lets_the_belt_run() -> None:
    belt = running(interlock="reject")
    belt.ejects = False
    run(belt, 3000, line_ok=False)
    assert belt.speed == 1.0
    assert {end for _, end in ends(belt)} == {"reject"}


def test_a_blast_without_air_or_power_lets_everything_pass() -> None:
    belt = running(springs_to="pass")
    belt.ejects, belt.air = True, False
    run(belt, 2500)
    assert {end for _, end in ends(belt)} == {"good"}
    belt.air = True
    before = len(belt.ended)
    run(belt, 1000)
    assert {end for _, end in ends(belt)[before:]} == {"reject"}


def test_rejected_parts_are_confirmed_and_fill_the_bin() -> None:
    belt = running(reject_bin=3)
    found = run(belt, 2200)
    confirmed = [c.part.serial for c in found if c.place is Place.CONFIRM]
    assert confirmed == [p.serial for p in belt.ended][: len(confirmed)]
    assert len(confirmed) == belt.in_reject_bin > 3
    assert belt.bin_full


def test_the_encoder_slips_and_reverses() -> None:
    belt = running()
    run(belt, 1000)
    count = belt.count
    belt.slipped += 500
    assert belt.count == count + 500
    belt.backwards_ms = 300
    found = run(belt, 400)
    assert belt.count < count + 500
    again = [c.part.serial for c in found if c.place is Place.CAMERA]
    assert again, "parts that come back are seen again"
    run(belt, 1000)
    assert belt.speed == 1.0


def test_parts_that_are_missed_or_taken() -> None:
    belt = running()
    belt.misses = 2
    found = run(belt, 1500)
    assert next(c.part.serial for c in found if c.place is Place.CAMERA) == 2
    taken = belt.take(500.0)
    assert taken is not None
    assert ends(belt)[-1] == (taken.serial, "taken")
    found = run(belt, 1000)
    assert taken.serial not in [c.part.serial for c in found if c.place is Place.SENSOR]


def test_it_ends_after_its_parts() -> None:
    belt = running(parts=5)
    run(belt, 4000)
    assert belt.empty
    assert [p.bad for p in belt.ended] == [truth_is_bad(7, i, 0.3) for i in range(5)]


FAST = BeltSettings(speed_mm_s=1000.0, spacing_mm=50.0, jitter_mm=0.0, sensor_mm=200.0, ejector_mm=250.0)
FRAME = Frame(width_px=128, height_px=128)


@pytest.fixture
def endpoint(runtime_dir: Path) -> str:
    return f"ipc://{runtime_dir}/conveyor"


@pytest.fixture
def conveyor(endpoint: str) -> Iterator[Conveyor]:
    with Conveyor(endpoint, FAST, FRAME) as conveyor:
        yield conveyor


def station(endpoint: str) -> Station:
    source = {"kind": "conveyor", "endpoint": endpoint, "triggers": "independent"}
    return Station.model_validate({"name": "cam", "bundle": "marker", "frame": FRAME, "source": source})


def opened(endpoint: str, *, eject: bool = True) -> Simulated:
    return Simulated(SimulatedDriver(kind="simulated", endpoint=endpoint), eject=eject)


def drive(driver: Simulated, until_s: float = 10.0) -> Iterator[list[Edge]]:
    """Keep LINE-OK moving, and hand out what the driver polls."""
    level = False

    def toggle() -> bool:
        nonlocal level
        level = not level
        driver.line_ok(level)
        return False

    for _ in range(int(until_s * 100)):
        toggle()
        yield driver.poll(10)
    raise AssertionError("it did not happen")


def test_source_and_driver_see_the_same_parts(conveyor: Conveyor, endpoint: str) -> None:
    counts: dict[int, int] = {}
    sensed: list[Edge] = []
    with (
        closing(open_source(station(endpoint), 1, 0)) as source,
        closing(opened(endpoint)) as driver,
    ):
        driver.eject(False)
        for edges in drive(driver):
            sensed += [e for e in edges if e.input is Input.SENSOR and e.level]
            while (event := source.poll(0)) is not None:
                if isinstance(event, Triggered):
                    assert event.count is not None
                    counts[event.number] = event.count
                elif isinstance(event, Exposed):
                    assert event.image is not None
                    assert read(np.array(event.image)) == Marker(event.number, truth_is_bad(7, event.number, 0.3))
            if len(sensed) >= 5:
                break
        assert driver.count() is not None
    ways = [(e.count or 0) - counts[i] for i, e in enumerate(sensed)]
    assert all(abs(way - 1000) < 100 for way in ways), ways
    assert conveyor.truth()[0].end is End.GOOD


def test_a_capture_process_that_comes_back_knows_what_it_missed(conveyor: Conveyor, endpoint: str) -> None:
    with closing(opened(endpoint)) as driver:
        seen: list[int] = []
        with closing(open_source(station(endpoint), 42, 0)) as source:
            for _ in drive(driver):
                seen += [e.number for e in [source.poll(0)] if isinstance(e, Triggered)]
                if len(seen) >= 3:
                    break
        before = len(conveyor.truth())
        for _ in drive(driver):
            if len(conveyor.truth()) > before + 5:
                break
        events: list[Triggered] = []
        with closing(open_source(station(endpoint), 42, seen[-1] + 1)) as source:
            for _ in drive(driver):
                while (event := source.poll(0)) is not None:
                    events += [event] if isinstance(event, Triggered) else []
                if [e for e in events if not e.missed]:
                    break
    assert [e.number for e in events] == list(range(seen[-1] + 1, events[-1].number + 1))
    assert [e.missed for e in events][:-1] == [True] * (len(events) - 1)
    assert len(events) > 4


@pytest.mark.parametrize("eject", [True, False])
def test_the_ejector_begins_where_the_driver_is_told(conveyor: Conveyor, endpoint: str, eject: bool) -> None:
    with closing(opened(endpoint, eject=eject)):
        wait_until(lambda: conveyor._belt.ejects is eject)


def test_the_newest_actuator_has_the_outputs(conveyor: Conveyor, endpoint: str) -> None:
    with closing(opened(endpoint)) as first:
        for edges in drive(first):
            if [e for e in edges if e.input is Input.AIR_OK]:
                break
    with closing(opened(endpoint)) as second:
        levels: dict[Input, bool] = {}
        for edges in drive(second):
            levels |= {e.input: e.level for e in edges if e.input in (Input.AIR_OK, Input.BIN_FULL)}
            if len(levels) == 2 and second.count() is not None:
                break
        assert levels == {Input.AIR_OK: True, Input.BIN_FULL: False}
        conveyor.air(False)
        for edges in drive(second):
            if [e for e in edges if e.input is Input.AIR_OK and not e.level]:
                break


def test_without_an_actuator_the_belt_stands(conveyor: Conveyor, endpoint: str) -> None:
    with closing(opened(endpoint)) as driver:
        for _ in drive(driver):
            if conveyor.running:
                break
    wait_until(lambda: not conveyor.running)


def test_garbage_is_counted_and_nothing_else(conveyor: Conveyor, endpoint: str) -> None:
    context = zmq.Context()
    with closing(context.socket(zmq.DEALER)) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        for data in (b"", b"\xc1", msgpack.packb(7), msgpack.packb({"type": "camera"}), msgpack.packb({"type": "?"})):
            socket.send(data)
        wait_until(lambda: conveyor.counters["refused"] == 5)
    context.term()


def test_a_conveyor_that_is_not_there(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.actuators.simulated.SILENCE_NS", SILENCE_NS // 20)

    def works() -> bool:
        try:
            return bool(driver.poll(10))
        except DriverError as error:
            complaints.append(str(error))
            return False

    complaints: list[str] = []
    with (
        closing(opened(endpoint)) as driver,
        closing(open_source(station(endpoint), 1, 0)) as source,
    ):
        wait_until(lambda: works() or bool(complaints))
        assert "has said nothing" in complaints[0]
        assert driver.count() is None
        assert source.poll(0.01) is None
        with Conveyor(endpoint, FAST, FRAME):
            wait_until(works)
            assert driver.count() is not None
