"""PLCs made of pymodbus' own client and server, with a program that keeps to the handshake, scan after scan."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.actuators.modbus_map import (
    CONTROL_WORDS,
    RESULT,
    STATUS_WORDS,
    ControlBit,
    ControlWord,
    StatusBit,
    StatusWord,
)
from edge.loop_thread import LoopThread

__all__ = ["CONTROL", "STATUS", "Master", "Plc", "Slave"]

CONTROL, STATUS = 10, 200
SCAN_S = 0.002
PATIENCE = 500
"""So many scans with the same heartbeat, and the actuator is dead."""


class Plc:
    """The program: what it does with what it reads, scan after scan. The subclasses are the two ways to read."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.control = [0] * CONTROL_WORDS
        self.status = [0] * STATUS_WORDS
        self.alive = self.takes_results = True
        self.bits = ControlBit(0)  # held, beside those of the handshake
        self.to_trigger: deque[int] = deque()
        self.results: list[list[int]] = []
        self.seen: list[list[int]] = []  # status blocks, one for each change
        self._beat = self._same_beat = 0

    def on(self, bit: StatusBit) -> bool:
        """Whether the newest scan read this bit."""
        return bool(self.status[StatusWord.BITS] & bit)

    def scan(self, status: list[int]) -> list[int]:
        """One turn: the control block that follows from the status block."""
        self._same_beat = self._same_beat + 1 if status[StatusWord.HEARTBEAT] == self._beat else 0
        self.status, self._beat = status, status[StatusWord.HEARTBEAT]
        if self.seen[-1:] != [status]:
            self.seen.append(status)
        if self._same_beat > PATIENCE:
            self.lost()
        before = ControlBit(self.control[ControlWord.BITS])
        bits = self.bits
        if self.on(StatusBit.RESULTS_VALID) and self.takes_results:
            if not before & ControlBit.RESULTS_ACK:
                self.results.append(status[RESULT])
            bits |= ControlBit.RESULTS_ACK
        if before & ControlBit.TRIGGER:
            if self.on(StatusBit.TRIGGER_ACK):
                self.to_trigger.popleft()
            else:
                bits |= ControlBit.TRIGGER
        elif self.to_trigger and self.on(StatusBit.TRIGGER_READY):
            self.control[ControlWord.PART_ID] = self.to_trigger[0]
            bits |= ControlBit.TRIGGER
        self.control[ControlWord.BITS] = int(bits)
        self.control[ControlWord.HEARTBEAT] = (self.control[ControlWord.HEARTBEAT] + self.alive) & 0xFFFF
        return self.control

    def lost(self) -> None:
        """The actuator is dead: nothing of what it said holds, and nothing is asked of it."""
        self.status = [0] * STATUS_WORDS
        self.control[ControlWord.BITS] = 0


class Master(Plc):
    """It polls our server."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(SCAN_S):
            client = ModbusTcpClient("127.0.0.1", port=self.port, timeout=1, retries=0)
            try:
                while client.connect() and not self._stop.wait(SCAN_S):
                    status = client.read_holding_registers(STATUS, count=STATUS_WORDS)
                    if status.isError():
                        self.lost()
                    else:
                        client.write_registers(CONTROL, self.scan(list(status.registers)))
            except (ModbusException, OSError):
                self.lost()
            finally:
                client.close()

    def __enter__(self) -> Master:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(100)


class Slave(Plc):
    """Our client reads and writes its registers."""

    async def _run(self, thread: LoopThread) -> None:
        registers = [SimData(a, count=n, datatype=DataType.REGISTERS) for a, n in _BLOCKS]
        server = ModbusTcpServer(SimDevice(id=3, simdata=registers), address=("127.0.0.1", self.port))
        await server.serve_forever(background=True)
        thread.started()
        try:
            while not thread.stopping:
                status = await server.async_getValues(3, 3, STATUS, STATUS_WORDS)
                await server.async_setValues(3, 16, CONTROL, self.scan([int(word) for word in status]))
                await thread.pause(SCAN_S)
        finally:
            await server.shutdown()

    def __enter__(self) -> Slave:
        self._thread = LoopThread("plc", self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.close()


_BLOCKS = ((CONTROL, CONTROL_WORDS), (STATUS, STATUS_WORDS))
