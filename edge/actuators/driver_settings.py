"""The recipe's part of each driver: which hardware, where, and how it is wired.

The drivers themselves, and the libraries that they need, are loaded only where one is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge.actuators.modbus_map import CONTROL_WORDS, STATUS_WORDS
from edge.section import Section

__all__ = ["GpioDriver", "GpioInput", "GpioOutput", "ModbusDriver", "MqttDriver", "MqttTls"]

Line = Annotated[int, Field(ge=0, le=1023)] | Annotated[str, Field(min_length=1, max_length=31)]
Host = Annotated[str, Field(min_length=1, max_length=253)]
Port = Annotated[int, Field(ge=1, le=65535)]


class GpioInput(Section):
    """One input line of a GPIO chip, by offset or by name."""

    line: Line
    active_low: bool = False
    bias: Literal["as_is", "disabled", "pull_up", "pull_down"] = "as_is"
    debounce_us: int = Field(default=0, ge=0, le=1_000_000)  # delays each edge by as much


class GpioOutput(Section):
    """One output line of a GPIO chip, by offset or by name."""

    line: Line
    active_low: bool = False  # an ejector that springs to reject without power: the line holds it back
    drive: Literal["push_pull", "open_drain", "open_source"] = "push_pull"


class GpioDriver(Section):
    """Inputs and outputs on this box's own GPIO."""

    kind: Literal["gpio"]
    chip: Path = Path("/dev/gpiochip0")
    inputs: dict[Literal["sensor", "confirm", "bin_full", "air_ok", "reset", "commissioning"], GpioInput] = Field(
        default_factory=dict
    )
    ejector: GpioOutput | None = None
    line_ok: GpioOutput | None = None
    encoder: Path | None = None  # a counter's `count` file: /sys/bus/counter/devices/counter0/count0/count

    @model_validator(mode="after")
    def _lines_are_used_once(self) -> GpioDriver:
        outputs = [o for o in (self.ejector, self.line_ok) if o]
        lines = [i.line for i in self.inputs.values()] + [o.line for o in outputs]
        if twice := sorted({str(n) for n in lines if lines.count(n) > 1}):
            raise ValueError(f"lines used twice: {', '.join(twice)}")
        return self

    @property
    def ejects(self) -> bool:
        """Whether it has an ejector's output; without one it only tells."""
        return self.ejector is not None


class ModbusDriver(Section):
    """A PLC over Modbus TCP; see docs/plc.md for the registers and the handshake.

    Modbus knows no passwords: whoever reaches the port can write. Keep it on a network of its own.
    """

    kind: Literal["modbus"]
    role: Literal["server", "client"]  # server: the PLC reads and writes here; client: we read and write in the PLC
    host: Host  # server: the address to listen on; client: the PLC's
    port: Port = 502
    unit: int = Field(default=1, ge=0, le=247)  # client: the PLC's unit; a server answers for every unit
    control_address: int = Field(default=0, ge=0, le=65535)  # first holding register of what the PLC writes
    status_address: int = Field(default=100, ge=0, le=65535)  # first holding register of what we write
    ejector: bool = True  # the PLC drives it, by our bit EJECT; false: another driver does, and the PLC is told
    # What of the PLC's inputs is wired; the others are not looked at.
    inputs: tuple[Literal["confirm", "bin_full", "air_ok"], ...] = ()
    heartbeat_ms: int = Field(default=200, ge=20, le=10_000)  # our word changes so often
    heartbeat_timeout_ms: int = Field(default=1_000, ge=50, le=60_000)  # the PLC's word stands still for as long: fault
    ack_timeout_ms: int = Field(default=1_000, ge=20, le=60_000)  # a result that is not acknowledged by then is missed
    result_timeout_ms: int = Field(default=10_000, ge=20, le=600_000)  # so is the result of an acknowledged trigger
    parts_in_flight: int = Field(default=16, ge=1, le=1024)  # acknowledged triggers without a result: then not ready
    buffered_results: int = Field(default=16, ge=1, le=1024)  # that wait for the PLC; what is more is missed
    cycle_ms: int = Field(default=10, ge=1, le=1_000)  # client: between two exchanges
    request_timeout_ms: int = Field(default=500, ge=20, le=10_000)  # client: for each answer of the PLC

    @model_validator(mode="after")
    def _blocks_fit(self) -> ModbusDriver:
        blocks = {"control_address": (self.control_address, CONTROL_WORDS)}
        blocks["status_address"] = (self.status_address, STATUS_WORDS)
        for name, (first, words) in blocks.items():
            if first + words > 65536:
                raise ValueError(f"{name} = {first}: {words} registers from there on pass 65535")
        (a, a_words), (b, b_words) = blocks.values()
        if a < b + b_words and b < a + a_words:
            raise ValueError(
                f"control_address = {a} ({a_words} registers) and status_address = {b} ({b_words} registers) overlap"
            )
        return self

    @property
    def ejects(self) -> bool:
        """Whether the PLC drives the ejector; otherwise it is only told."""
        return self.ejector


class MqttTls(Section):
    """How the broker is known, and how it knows us."""

    ca_file: Path | None = None  # absent: what the system trusts
    cert_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _key_with_cert(self) -> MqttTls:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class MqttDriver(Section):
    """Decisions for dashboards and factory systems, through an MQTT broker. It only tells: it has no inputs and no
    ejector, because a broker may deliver late."""

    kind: Literal["mqtt"]
    host: Host
    port: Port = 1883
    topic: str = Field(
        pattern=r"^[^/#+$\x00]([^#+\x00]{0,198}[^/#+\x00])?$"
    )  # all topics begin with it: site/line1/ejector1
    client_id: str = Field(default="", max_length=64)  # empty: a new one for each start
    username: str | None = None
    password_file: Path | None = None  # its first line; a recipe holds no secrets
    tls: MqttTls | None = None
    queued_messages: int = Field(default=1_000, ge=16, le=100_000)  # while the broker is away; then the oldest go
    interval_ms: int = Field(default=5_000, ge=100, le=600_000)  # between two states when nothing happens
    keepalive_s: int = Field(default=10, ge=1, le=600)  # the broker publishes the last will after 1.5 times as long
    timeout_ms: int = Field(default=5_000, ge=100, le=60_000)  # for the broker's answers
    reconnect_ms: int = Field(default=500, ge=10, le=60_000)  # first wait before trying again; doubled each time
    reconnect_max_ms: int = Field(default=30_000, ge=10, le=600_000)

    @property
    def ejects(self) -> bool:
        """Never: the actuator needs another driver for its ejector."""
        return False
