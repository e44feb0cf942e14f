"""The drivers of one actuator as one: the one with the ejector (without one, the first) acts, the others are told."""

from __future__ import annotations

import contextlib

import structlog

from edge.actuators import settings
from edge.actuators.driver import Driver, DriverError, Edge, PartOutcome, Status
from edge.actuators.driver_settings import GpioDriver, ModbusDriver, MqttDriver
from edge.messages import Verdict

__all__ = ["Drivers", "open_drivers"]


def open_drivers(wanted: tuple[settings.Driver, ...], *, eject: bool) -> Drivers:
    """Open every driver of an actuator. `eject`: the level at which the ejector starts.

    The one that acts is opened last, so that its outputs are left alone where another one cannot be opened. Raises
    DriverError, and leaves none open then.
    """
    ordered = sorted(wanted, key=lambda d: d.ejects)
    with contextlib.ExitStack() as opened:
        drivers: list[Driver] = []
        for one in ordered:
            drivers.append(_open(one, eject))
            opened.callback(drivers[-1].close)
        opened.pop_all()
    ejects = ordered[-1].ejects
    main = drivers.pop(-1 if ejects else 0)
    return Drivers([main, *drivers], eject=ejects)


def _open(wanted: settings.Driver, eject: bool) -> Driver:
    if isinstance(wanted, GpioDriver):
        from edge.actuators.gpio import Gpio

        return Gpio(wanted, eject=eject)
    if isinstance(wanted, ModbusDriver):
        from edge.actuators.modbus import Modbus

        return Modbus(wanted, eject=eject)
    if isinstance(wanted, MqttDriver):
        from edge.actuators.mqtt import Mqtt

        return Mqtt(wanted)
    from edge.actuators.simulated import Simulated

    return Simulated(wanted, eject=eject)


class Drivers:
    """See `edge.actuators.driver.Driver`. What only listens may fail: that is logged, and nothing else."""

    def __init__(self, drivers: list[Driver], *, eject: bool) -> None:
        """`drivers`: the one that acts first. `eject`: whether it has the ejector; where none has, a PLC acts upon the
        results that it is told."""
        self._main, *self._others = drivers
        self._eject = eject
        self._failing: set[int] = set()

    def poll(self, timeout_ms: int) -> list[Edge]:
        """The inputs of all, those of the one that acts awaited. Where that one fails, the error has the others'."""
        try:
            edges = self._main.poll(timeout_ms)
        except DriverError as error:
            error.edges = tuple(self._poll_others())
            raise
        return edges + self._poll_others()

    def _poll_others(self) -> list[Edge]:
        """They live by it: a PLC that is told sees our heartbeat."""
        edges: list[Edge] = []
        for i, other in enumerate(self._others):
            try:
                edges += other.poll(0)
                self._failing.discard(i)
            except DriverError as error:
                self._complain(i, error)
        return edges

    def count(self) -> int | None:
        return self._main.count()

    def eject(self, on: bool) -> None:
        if self._eject:
            self._main.eject(on)

    def line_ok(self, level: bool) -> None:
        self._main.line_ok(level)

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        for i, other in enumerate(self._others):
            try:
                other.tell(verdict, part)
            except DriverError as error:
                self._complain(i, error)
        self._main.tell(verdict, part)

    def report(self, status: Status) -> None:
        for i, other in enumerate(self._others):
            try:
                other.report(status)
            except DriverError as error:
                self._complain(i, error)
        self._main.report(status)

    def close(self) -> None:
        for driver in (self._main, *self._others):
            driver.close()

    def _complain(self, which: int, error: DriverError) -> None:
        if which not in self._failing:
            self._failing.add(which)
            structlog.get_logger().warning("driver_does_not_tell", error=str(error))
