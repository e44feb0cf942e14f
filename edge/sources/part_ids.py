"""Which part a camera was triggered for: an id that a PLC holds in a register, read again and again over Modbus TCP.

The PLC writes the id before it triggers the camera and leaves it there for a while, `timeout_ms`. So the first reading
that was begun after the trigger, and answered within that time, has the part's own id. What cannot be known so is no
id: a part without one is rejected, one with another's id would get the other's verdict.

A register that stands still says nothing of the part that passes: an id counts only if it was seen to take the place of
another one since the trigger before, and, where triggers passed at times that nobody knows, of one for each of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import structlog

from edge.actuators.driver import MAX_ID16
from edge.errors import RecipeError
from edge.loop_thread import LoopThread
from edge.settings import PartIds

if TYPE_CHECKING:
    from pymodbus.client import AsyncModbusTcpClient

__all__ = ["PartIdReader", "Reading", "Register"]

MAX_READINGS = 1024
ANSWER_S = 0.5
RECONNECT_MAX_S = 2.0
SAY_AGAIN_NS = 10_000_000_000
_MS = 1_000_000
_log = structlog.get_logger()


class Reading(NamedTuple):
    """What the register held at some moment between the request and its answer, by the host's monotonic clock."""

    part_id: int  # 1 to 65535; 0: none
    begun_ns: int
    done_ns: int


class Register:
    """What the register held lately, and whose id that was. Pure: it is told the time."""

    def __init__(self, start_ns: int, timeout_ns: int) -> None:
        """`start_ns`: triggers before it were another's. `timeout_ns`: so long after its trigger an id stays."""
        self._timeout_ns = timeout_ns
        self._readings: deque[Reading] = deque(maxlen=MAX_READINGS)  # since the newest trigger
        self._trigger_ns = start_ns  # the newest one at a known time
        self._own = 0  # its id; 0: none
        self._last = 0  # the newest id that a trigger got
        self._untimed = 0  # triggers since then

    def read(self, reading: Reading) -> None:
        """Take a reading; they come in order."""
        self._readings.append(reading)

    def of_trigger(self, at_ns: int) -> Reading | None:
        """The first reading that was begun after a trigger; None: there is none yet."""
        return next((r for r in self._readings if r.begun_ns >= at_ns), None)

    def untimed(self) -> None:
        """There was a trigger, and nobody knows when: it has no id."""
        self._untimed += 1

    def take(self, earliest_ns: int, at_ns: int) -> tuple[int, str]:
        """The id of the part of a trigger that came between these times; 0, and why, where it is not known."""
        before_ns, untimed, found = self._trigger_ns, self._untimed, self.of_trigger(at_ns)
        upto_ns = found.begun_ns if found else before_ns
        seen = {self._own, *(r.part_id for r in self._readings if before_ns <= r.begun_ns <= upto_ns)} - {0}
        self._trigger_ns, self._own, self._untimed = max(at_ns, before_ns), 0, 0
        while self._readings and self._readings[0].begun_ns < self._trigger_ns:
            self._readings.popleft()
        if found is None or found.done_ns > earliest_ns + self._timeout_ns:
            return 0, f"the PLC had not answered {self._timeout_ns // _MS} ms after the trigger"
        if found.part_id == 0:
            return 0, "the register holds 0"
        if found.part_id == self._last or len(seen) < 2 + untimed:
            return 0, f"the register holds {found.part_id}, and was not seen to change since the trigger before"
        self._own = self._last = found.part_id
        return found.part_id, ""


class PartIdReader:
    """Reads the register in a thread of its own. A trigger waits for its id only while the PLC answers in time."""

    def __init__(self, settings: PartIds, station: str) -> None:
        """Begin to connect; a PLC that is away is no error. Raises RecipeError without pymodbus."""
        try:
            import pymodbus  # noqa: F401
        except ImportError as error:
            raise RecipeError(f"station {station}: part_ids needs pymodbus: pip install 'maskline[plc]'") from error
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # what matters of it is said here
        self._settings = settings
        self._timeout_ns = settings.timeout_ms * _MS
        self._log = _log.bind(station=station, plc=f"{settings.host}:{settings.port}")
        self._heard = threading.Condition()  # guards what follows
        self._register = Register(time.monotonic_ns(), self._timeout_ns)
        self._prompt = False  # a reading that is begun now, after the one that is under way, would be in time
        self._connected: bool | None = None
        self.missing = 0
        """Triggers without an id."""
        self._said_ns: int | None = None
        self._thread = LoopThread("part_ids", self._run)

    def take(self, earliest_ns: int | None, at_ns: int) -> int | None:
        """The id of the part whose trigger came between these times, triggers in their order; None: it has none.

        `earliest_ns` None: it is not known. Waits until `timeout_ms` after it, and not at all while the PLC is away.
        """
        with self._heard:
            if earliest_ns is None:
                self._register.untimed()
                part_id, why = 0, "it is not known when it was"
            else:
                self._await(earliest_ns, at_ns)
                part_id, why = self._register.take(earliest_ns, at_ns)
        if not part_id:
            self._say_missing(why)
        return part_id or None

    def close(self) -> None:
        """Close the connection."""
        self._thread.close()

    def _await(self, earliest_ns: int, at_ns: int) -> None:
        """Wait for a reading that was begun after the trigger; whether there is one, `Register.take` says."""
        if self._register.of_trigger(at_ns) or not self._prompt:
            return
        self._thread.wake()
        left_s = (earliest_ns + self._timeout_ns - time.monotonic_ns()) / 1e9
        self._heard.wait_for(lambda: self._register.of_trigger(at_ns) or not self._prompt, max(0.0, left_s))
        self._prompt = self._register.of_trigger(at_ns) is not None

    def _say_missing(self, why: str) -> None:
        """Count a trigger without an id, and say so now and then."""
        self.missing += 1
        now_ns = time.monotonic_ns()
        if self._said_ns is None or now_ns - self._said_ns >= SAY_AGAIN_NS:
            self._said_ns = now_ns
            self._log.warning("trigger_without_part_id", why=why, so_far=self.missing)

    def _hear(self, reading: Reading) -> None:
        with self._heard:
            self._register.read(reading)
            self._prompt = self._prompt or 2 * (reading.done_ns - reading.begun_ns) <= self._timeout_ns
            self._heard.notify()
        if not self._connected:
            self._connected = True
            self._log.info("plc_heard")

    def _lose(self, why: str) -> None:
        with self._heard:
            self._prompt = False
            self._heard.notify()
        if self._connected is not False:
            self._connected = False
            self._log.warning("plc_away", why=why, note="triggers have no part id until it is back")

    async def _run(self, thread: LoopThread) -> None:
        """Read until told to stop; connect again where that fails."""
        from pymodbus.client import AsyncModbusTcpClient

        thread.started()
        cycle_s = wait_s = self._settings.cycle_ms / 1000
        while not thread.stopping:
            client = AsyncModbusTcpClient(
                self._settings.host,
                port=self._settings.port,
                timeout=max(ANSWER_S, self._timeout_ns / 1e9),
                retries=0,
                reconnect_delay=0,
            )
            try:
                if not await client.connect():
                    raise ConnectionError("no connection")
                while not thread.stopping:
                    self._hear(await self._read(client))
                    wait_s = cycle_s
                    await thread.woken(cycle_s)
            except Exception as error:  # whatever a library makes of what a stranger sends: the thread goes on
                self._lose(str(error) or repr(error))
            finally:
                client.close()
            await thread.pause(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_MAX_S)

    async def _read(self, client: AsyncModbusTcpClient) -> Reading:
        begun_ns = time.monotonic_ns()
        answer = await client.read_holding_registers(self._settings.address, count=1, device_id=self._settings.unit)
        done_ns = time.monotonic_ns()
        if answer.isError() or len(answer.registers) != 1 or not 0 <= answer.registers[0] <= MAX_ID16:
            raise ConnectionError(f"reading register {self._settings.address}: {answer}")
        return Reading(int(answer.registers[0]), begun_ns, done_ns)
