"""A PLC as an actuator's hardware, over Modbus TCP: it polls our registers, or we read and write in its own.

pymodbus runs in a thread of its own. That thread and the actuator's loop meet in the handshake, under one lock: each
request of the PLC sees the registers at one moment, and no call of the loop waits for the network.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog

from edge.actuators.driver import DriverError, Edge, PartOutcome, Status
from edge.actuators.driver_settings import ModbusDriver
from edge.actuators.handshake import Handshake
from edge.actuators.modbus_map import CONTROL_WORDS, RESULT, STATUS_WORDS, StatusWord
from edge.loop_thread import LoopThread
from edge.messages import Verdict

if TYPE_CHECKING:
    from pymodbus.client import AsyncModbusTcpClient
    from pymodbus.constants import ExcCodes

__all__ = ["Modbus"]

MAX_EDGES = 4096
RECONNECT_MAX_S = 2.0
LAST_IMAGE_S = 0.5
"""So long a close waits for the PLC to take the outputs as they were set last."""
_REGISTER_FUNCTIONS = frozenset({3, 4, 6, 16, 22, 23})
_log = structlog.get_logger()


class _RefusedError(Exception):
    """The PLC answered, with an exception code."""


class Modbus:
    """Driver `modbus`. The PLC's trigger is the part sensor, its ejector hangs on our bit EJECT."""

    def __init__(self, settings: ModbusDriver, *, eject: bool) -> None:
        """Listen, or begin to connect. `eject`: the level at which the bit EJECT starts.

        Raises DriverError without pymodbus, and for an address that cannot be used.
        """
        try:
            import pymodbus  # noqa: F401
        except ImportError as error:
            raise DriverError("the driver modbus needs pymodbus: pip install 'maskline[plc]'") from error
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # what matters of it is said here
        self._settings = settings
        self._handshake = Handshake(settings, eject=eject and settings.ejector)
        self._ready = threading.Condition()  # guards the handshake and the edges
        self._edges: deque[Edge] = deque()
        self._lost = 0
        self._exchanged_ns: int | None = None
        self._error = ""
        server = settings.role == "server"
        try:
            self._thread = LoopThread("modbus", self._serve if server else self._exchange)
        except Exception as error:
            raise DriverError(f"cannot serve Modbus on {self._address}: {error}; is the port in use?") from error

    def poll(self, timeout_ms: int) -> list[Edge]:
        """What the PLC said. Raises DriverError while its heartbeat stands still, and once if edges were lost."""
        give_up = time.monotonic() + timeout_ms / 1000
        with self._ready:
            while True:
                if self._handshake.beat(time.monotonic_ns()):
                    self._thread.wake()
                self._handshake.advance(time.monotonic_ns())
                left_s = give_up - time.monotonic()
                if self._edges or left_s <= 0:
                    break
                self._ready.wait(min(left_s, self._settings.heartbeat_ms / 1000))
            edges = list(self._edges)
            self._edges.clear()
            if not edges:
                self._check()
            return edges

    def count(self) -> int | None:
        """None: a count that comes over the network is too old to fire on."""
        return None

    def eject(self, on: bool) -> None:
        """The bit EJECT. Raises DriverError while the PLC does not read it; it is set all the same."""
        if not self._settings.ejector:
            raise DriverError(f"the recipe says that the PLC {self._address} drives no ejector")
        with self._ready:
            self._handshake.eject(on)
            self._thread.wake()
            self._check()

    def line_ok(self, level: bool) -> None:
        """The bit LINE_OK. Raises DriverError while the PLC does not read it; it is set all the same."""
        with self._ready:
            self._handshake.line_ok(level)
            self._thread.wake()
            self._check()

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        """Queue a result; while the PLC is silent, and when the queue is full, it counts as missed."""
        with self._ready:
            self._handshake.tell(verdict, part, time.monotonic_ns())
            self._thread.wake()

    def report(self, status: Status) -> None:
        """Gate state, fault code, commissioning and the recipe's number."""
        with self._ready:
            self._handshake.report(status)
            self._thread.wake()

    def close(self) -> None:
        """Close all connections. As a client, write first what was set last: the PLC would keep what it was before."""
        self._thread.close(LAST_IMAGE_S)

    @property
    def _address(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    def _check(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            raise DriverError(
                f"{lost} edges from the PLC {self._address} were lost: the loop did not poll for too long"
            )
        if self._thread.failure:
            raise DriverError(f"the driver modbus has ended: {self._thread.failure!r}") from self._thread.failure
        if self._handshake.silent:
            since_ns = self._exchanged_ns
            last = (
                "never wrote" if since_ns is None else f"wrote {(time.monotonic_ns() - since_ns) // 1_000_000} ms ago"
            )
            raise DriverError(
                f"the PLC is silent: its heartbeat register must change within {self._settings.heartbeat_timeout_ms} "
                f"ms; it {last} ({self._settings.role} on {self._address}{self._error})"
            )

    def _written(self, offset: int, values: list[int]) -> None:
        """The PLC wrote into the control block. In pymodbus' thread."""
        with self._ready:
            was_silent = self._handshake.silent
            edges = self._handshake.written(offset, values, time.monotonic_ns())
            room = MAX_EDGES - len(self._edges)
            self._lost += max(0, len(edges) - room)
            self._edges += edges[:room]
            self._exchanged_ns = time.monotonic_ns()
            self._ready.notify()
        if was_silent and not self._handshake.silent:
            _log.info("plc_heard", plc=self._address, role=self._settings.role)

    def _image(self) -> list[int]:
        with self._ready:
            return self._handshake.image(time.monotonic_ns())

    def _seen(self, image: list[int]) -> None:
        with self._ready:
            self._handshake.seen(image)

    async def _serve(self, thread: LoopThread) -> None:
        """Role server: both blocks are registers here."""
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        control, status = self._settings.control_address, self._settings.status_address
        registers = [
            SimData(control, count=CONTROL_WORDS, datatype=DataType.REGISTERS),
            SimData(status, count=STATUS_WORDS, datatype=DataType.REGISTERS, readonly=True),
        ]
        device = SimDevice(id=0, simdata=registers, action=self._accessed)  # 0: every unit
        server = ModbusTcpServer(device, address=(self._settings.host, self._settings.port))
        await server.serve_forever(background=True)
        _log.warning("modbus_listens", address=self._address, note="Modbus has no passwords: keep its network apart")
        thread.started()
        try:
            while not thread.stopping:
                await thread.pause(3600)
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]

    async def _accessed(
        self, function: int, first: int, address: int, count: int, registers: list[int], values: Any
    ) -> ExcCodes | None:
        """pymodbus is about to read `count` registers, or to write `values`; the request is answered without another
        being looked at in between, so that it reads the registers of one moment."""
        from pymodbus.constants import ExcCodes

        if function not in _REGISTER_FUNCTIONS:
            return ExcCodes.ILLEGAL_FUNCTION
        if not self._handshake.alive:  # the first answer is a HEARTBEAT that the PLC does not know: a change
            return ExcCodes.DEVICE_BUSY
        control, status = self._settings.control_address, self._settings.status_address
        if values is not None:  # pymodbus lets nobody write the status block, or beyond the control block
            self._written(address - control, list(values))
            return None
        image = self._image()
        registers[status - first : status - first + STATUS_WORDS] = image
        if address <= status + StatusWord.BITS < address + count:
            self._seen(image)
        return None

    async def _exchange(self, thread: LoopThread) -> None:
        """Role client: both blocks are registers of the PLC; read and write them until told to stop."""
        from pymodbus.client import AsyncModbusTcpClient
        from pymodbus.exceptions import ModbusException

        thread.started()
        wait_s = self._settings.cycle_ms / 1000
        while not thread.stopping:
            client = AsyncModbusTcpClient(
                self._settings.host,
                port=self._settings.port,
                timeout=self._settings.request_timeout_ms / 1000,
                retries=0,
                reconnect_delay=0,
            )
            try:
                if await client.connect():
                    wait_s, self._error = self._settings.cycle_ms / 1000, ""
                    await self._cycles(thread, client)
                else:
                    self._error = "; no connection"
            except (ModbusException, _RefusedError, OSError) as error:
                self._error = f"; last error: {error}"
            finally:
                client.close()
            await thread.pause(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_MAX_S)

    async def _cycles(self, thread: LoopThread, client: AsyncModbusTcpClient) -> None:
        """Read the control block, write what has changed. The result block goes first, in one request: the PLC never
        sees RESULTS_VALID before the whole of it."""
        place = self._settings.status_address
        result: list[int] = []
        if self._exchanged_ns is None:
            stood = await self._read(client, place, STATUS_WORDS)
            with self._ready:
                self._handshake.resume(stood)
        while True:
            stopping = thread.stopping  # whatever was set before that is in this image
            self._written(0, await self._read(client, self._settings.control_address, CONTROL_WORDS))
            image = self._image()
            if image[RESULT] != result:
                result = image[RESULT]
                await self._write(client, place + StatusWord.RESULT_HEAD, result)
            await self._write(client, place, image[: StatusWord.RESULT_HEAD])
            self._seen(image)
            if stopping:
                return
            await thread.woken(self._settings.cycle_ms / 1000)

    async def _read(self, client: AsyncModbusTcpClient, address: int, count: int) -> list[int]:
        answer = await client.read_holding_registers(address, count=count, device_id=self._settings.unit)
        if answer.isError():
            raise _RefusedError(f"reading registers from {address} on: {answer}")
        return list(answer.registers)

    async def _write(self, client: AsyncModbusTcpClient, address: int, values: list[int]) -> None:
        answer = await client.write_registers(address, values, device_id=self._settings.unit)
        if answer.isError():
            raise _RefusedError(f"writing registers from {address} on: {answer}")
