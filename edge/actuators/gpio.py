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
    from gpiod.line import Value

__all__ = ["Gpio"]

EVENT_BUFFER = 1024
"""Edges that the kernel keeps for a loop that is late; what it has to throw away is noticed."""
_LEVELS = (Input.BIN_FULL, Input.AIR_OK, Input.COMMISSIONING)
"""Inputs whose level at the start is news."""


class Gpio:
    """Driver `gpio`."""

    def __init__(self, settings: GpioDriver, *, eject: bool) -> None:
        """Take the lines, the ejector's last and at the level `eject`. Raises DriverError without gpiod, and for a chip
        or line that cannot be had."""
        self._gpiod = _gpiod()
        self._settings = settings
        self._requests: list[LineRequest] = []
        self._seqno: int | None = None  # of the newest edge
        self._lost = 0
        try:
            with self._gpiod.Chip(str(settings.chip)) as chip:
                self._inputs = {Input(n): chip.line_offset_from_id(i.line) for n, i in settings.inputs.items()}
                outputs = {"line_ok": settings.line_ok, "ejector": settings.ejector}
                self._offsets = {name: chip.line_offset_from_id(o.line) for name, o in outputs.items() if o}
                wired = self._input_settings()
                self._events = self._request(chip, wired, self._inputs.values()) if wired else None
                self._names = {offset: name for name, offset in self._inputs.items()}
                self._pending = self._levels()
                self._outputs: dict[str, LineRequest] = {}
                if settings.line_ok:
                    self._outputs["line_ok"] = self._take_line_ok(chip, settings.line_ok)
                if settings.ejector:
                    self._outputs["ejector"] = self._take_ejector(chip, settings.ejector, eject)
        except (OSError, ValueError) as error:
            self.close()
            raise DriverError(f"{settings.chip}: {error}; gpioinfo lists its lines and who uses them") from error

    def poll(self, timeout_ms: int) -> list[Edge]:
        """Edges as the kernel saw them. Raises DriverError once if it had to throw some away."""
        edges, self._pending = self._pending, []
        if self._lost and not edges:
            lost, self._lost = self._lost, 0
            raise DriverError(f"{self._settings.chip}: {lost} edges were lost: the loop did not poll for too long")
        timeout_s = 0 if edges else timeout_ms / 1000
        give_up = time.monotonic() + timeout_s
        try:
            if self._events is None:
                time.sleep(timeout_s)
            elif self._events.wait_edge_events(timeout_s):
                events, count = self._events.read_edge_events(EVENT_BUFFER), self._count_if_any()
                edges += [self._edge(event, count) for event in events]
        except OSError as error:
            if not edges:
                time.sleep(max(0.0, give_up - time.monotonic()))
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

    def _output_settings(self, output: GpioOutput, value: Value) -> LineSettings:
        line = self._gpiod.line
        settings: LineSettings = self._gpiod.LineSettings(
            direction=line.Direction.OUTPUT,
            drive=line.Drive[output.drive.upper()],
            active_low=output.active_low,
            output_value=value,
        )
        return settings

    def _take_ejector(self, chip: Chip, output: GpioOutput, eject: bool) -> LineRequest:
        """The kernel makes the line an output at the level that is asked for, without another one in between."""
        return self._request(chip, [self._output_settings(output, self._value(eject))], [self._offsets["ejector"]])

    def _take_line_ok(self, chip: Chip, output: GpioOutput) -> LineRequest:
        """Take the line as it is, read its level, and only then drive it, at that level: an edge would say that all is
        well."""
        offset = self._offsets["line_ok"]
        as_it_is = self._gpiod.LineSettings(direction=self._gpiod.line.Direction.AS_IS, active_low=output.active_low)
        request = self._request(chip, [as_it_is], [offset])
        request.reconfigure_lines({offset: self._output_settings(output, request.get_value(offset))})
        return request

    def _request(self, chip: Chip, settings: list[LineSettings], offsets: Iterable[int]) -> LineRequest:
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
        now_ns, active = time.monotonic_ns(), self._value(True)
        return [
            Edge(name, self._events.get_value(offset) is active, now_ns)
            for name, offset in self._inputs.items()
            if name in _LEVELS
        ]

    def _count_if_any(self) -> int | None:
        """The encoder for an edge; None where it cannot be read: the edge is told, and `count` says what is wrong."""
        try:
            return self.count()
        except DriverError:
            return None

    def _edge(self, event: EdgeEvent, count: int | None) -> Edge:
        if self._seqno is not None:
            self._lost += event.global_seqno - self._seqno - 1
        self._seqno = event.global_seqno
        rising = event.event_type is event.Type.RISING_EDGE
        return Edge(self._names[event.line_offset], rising, event.timestamp_ns, count=count)

    def _value(self, active: bool) -> Value:
        value: type[Value] = self._gpiod.line.Value
        return value.ACTIVE if active else value.INACTIVE

    def _set(self, output: str, on: bool) -> None:
        try:
            self._outputs[output].set_value(self._offsets[output], self._value(on))
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
