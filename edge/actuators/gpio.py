"""This box's own GPIO as an actuator's hardware, through libgpiod 2: edges with the kernel's times, two outputs.

The kernel takes the time of an edge in its interrupt, on the monotonic clock, so that a loop that wakes late still
knows when the part came. When the process ends, whichever way, the kernel lets go of the outputs: what the ejector and
the machine do then is wiring.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING

from edge.actuators.driver import DriverError, Edge, Input, PartOutcome, Status
from edge.actuators.driver_settings import GpioDriver, GpioOutput
from edge.messages import Verdict

if TYPE_CHECKING:
    from gpiod import Chip, EdgeEvent, LineRequest, LineSettings

__all__ = ["Gpio"]

EVENT_BUFFER = 1024
"""Edges that the kernel keeps for a loop that is late; what it has to throw away is noticed."""
_LEVELS = (Input.BIN_FULL, Input.AIR_OK, Input.COMMISSIONING)
"""Inputs whose level at the start is news."""


class Gpio:
    """Driver `gpio`."""

    def __init__(self, settings: GpioDriver) -> None:
        """Take the lines. Raises DriverError without gpiod, and for a chip or line that cannot be had."""
        self._gpiod = _gpiod()
        self._settings = settings
        self._requests: list[LineRequest] = []
        self._seqno: int | None = None  # of the newest edge
        self._lost = 0
        try:
            with self._gpiod.Chip(str(settings.chip)) as chip:
                self._inputs = {Input(n): chip.line_offset_from_id(i.line) for n, i in settings.inputs.items()}
                outputs = {"ejector": settings.ejector, "line_ok": settings.line_ok}
                wired = {name: o for name, o in outputs.items() if o}
                self._outputs = {name: chip.line_offset_from_id(o.line) for name, o in wired.items()}
                self._events = self._request(chip, self._input_settings(), self._inputs.values())
                self._out = self._request(
                    chip, [self._output_settings(o) for o in wired.values()], self._outputs.values()
                )
            self._names = {offset: name for name, offset in self._inputs.items()}
            self._pending = self._levels()
        except (OSError, ValueError) as error:
            self.close()
            raise DriverError(f"{settings.chip}: {error}; gpioinfo lists its lines and who uses them") from error

    def poll(self, timeout_ms: int) -> list[Edge]:
        """Edges as the kernel saw them. Raises DriverError once if it had to throw some away."""
        edges, self._pending = self._pending, []
        if self._lost and not edges:
            lost, self._lost = self._lost, 0
            raise DriverError(f"{self._settings.chip}: {lost} edges were lost: the loop did not poll for too long")
        try:
            if self._events is None:
                time.sleep(0 if edges else timeout_ms / 1000)
            elif self._events.wait_edge_events(0 if edges else timeout_ms / 1000):
                count = self.count()
                edges += [self._edge(event, count) for event in self._events.read_edge_events(EVENT_BUFFER)]
        except OSError as error:
            raise DriverError(f"{self._settings.chip}: reading edges: {error}") from error
        return edges

    def count(self) -> int | None:
        """The encoder, from the kernel's counter."""
        if self._settings.encoder is None:
            return None
        try:
            return int(self._settings.encoder.read_text())
        except (OSError, ValueError) as error:
            raise DriverError(f"encoder {self._settings.encoder}: {error}") from error

    def eject(self, on: bool) -> None:
        """Set the ejector's line."""
        if "ejector" not in self._outputs:
            raise DriverError(f"{self._settings.chip}: the recipe names no line for the ejector")
        self._set("ejector", on)

    def line_ok(self, level: bool) -> None:
        """Set the line of LINE-OK, where there is one."""
        if "line_ok" in self._outputs:
            self._set("line_ok", level)

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        """Nothing: nobody listens on these wires."""

    def report(self, status: Status) -> None:
        """Nothing: nobody listens on these wires."""

    def close(self) -> None:
        """Let go of the lines."""
        for request in self._requests:
            request.release()
        self._requests.clear()

    def _input_settings(self) -> list[LineSettings]:
        line = self._gpiod.line
        return [
            self._gpiod.LineSettings(
                direction=line.Direction.INPUT,
                edge_detection=line.Edge.BOTH,
                bias=line.Bias[i.bias.upper()],
                active_low=i.active_low,
                debounce_period=timedelta(microseconds=i.debounce_us),
                event_clock=line.Clock.MONOTONIC,
            )
            for i in self._settings.inputs.values()
        ]

    def _output_settings(self, output: GpioOutput) -> LineSettings:
        line = self._gpiod.line
        settings: LineSettings = self._gpiod.LineSettings(
            direction=line.Direction.OUTPUT,
            drive=line.Drive[output.drive.upper()],
            active_low=output.active_low,
            output_value=line.Value.INACTIVE,
        )
        return settings

    def _request(self, chip: Chip, settings: list[LineSettings], offsets: Iterable[int]) -> LineRequest | None:
        if not settings:
            return None
        wanted: dict[Iterable[int | str] | int | str, LineSettings | None] = dict(zip(offsets, settings, strict=True))
        if len(wanted) < len(settings):
            raise ValueError("two of the recipe's lines are one, once by its name and once by its offset")
        request = chip.request_lines(wanted, consumer="maskline", event_buffer_size=EVENT_BUFFER)
        self._requests.append(request)
        return request

    def _levels(self) -> list[Edge]:
        """The inputs that are levels, as they are now."""
        if self._events is None:
            return []
        now_ns = time.monotonic_ns()
        active = self._gpiod.line.Value.ACTIVE
        return [
            Edge(name, self._events.get_value(offset) is active, now_ns)
            for name, offset in self._inputs.items()
            if name in _LEVELS
        ]

    def _edge(self, event: EdgeEvent, count: int | None) -> Edge:
        if self._seqno is not None:
            self._lost += event.global_seqno - self._seqno - 1
        self._seqno = event.global_seqno
        rising = event.event_type is event.Type.RISING_EDGE
        return Edge(self._names[event.line_offset], rising, event.timestamp_ns, count=count)

    def _set(self, output: str, on: bool) -> None:
        value = self._gpiod.line.Value.ACTIVE if on else self._gpiod.line.Value.INACTIVE
        assert self._out is not None  # there is an output
        try:
            self._out.set_value(self._outputs[output], value)
        except OSError as error:
            raise DriverError(f"{self._settings.chip}: setting {output}: {error}") from error


def _gpiod() -> ModuleType:
    try:
        import gpiod
    except ImportError as error:
        raise DriverError("the driver gpio needs gpiod: pip install 'maskline[plc]'") from error
    if not hasattr(gpiod, "LineSettings"):
        raise DriverError(f"the driver gpio needs gpiod 2, found {gpiod.__version__}: pip install 'maskline[plc]'")
    return gpiod
