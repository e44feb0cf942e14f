"""A PLC with the id of the part in a register, made of pymodbus' own server."""

from __future__ import annotations

import asyncio
import queue

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.loop_thread import LoopThread
from edge.testing import PATIENCE_S

__all__ = ["ADDRESS", "UNIT", "Plc"]

ADDRESS, UNIT = 40, 3


class Plc:
    """Use it as a context; it listens until the block ends."""

    def __init__(self, port: int, part_id: int = 0) -> None:
        self.port = port
        self.register = part_id
        self.delay_s = 0.0  # before each answer
        self.refuses = False
        self.requests: queue.SimpleQueue[int] = queue.SimpleQueue()

    def hear(self) -> None:
        """Return once a request that comes from now on has had its answer: another one follows."""
        while not self.requests.empty():
            self.requests.get()
        for _ in range(3):
            self.requests.get(timeout=PATIENCE_S)

    async def _answer(
        self, function: int, first: int, address: int, count: int, registers: list[int], values: object
    ) -> ExcCodes | None:
        self.requests.put(function)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        registers[ADDRESS - first] = self.register
        return ExcCodes.DEVICE_FAILURE if self.refuses else None

    async def _run(self, thread: LoopThread) -> None:
        device = SimDevice(id=UNIT, simdata=[SimData(ADDRESS, datatype=DataType.REGISTERS)], action=self._answer)
        server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await server.serve_forever(background=True)
        thread.started()
        try:
            while not thread.stopping:
                await thread.pause(3600)
        finally:
            await server.shutdown()

    def __enter__(self) -> Plc:
        self._thread = LoopThread("plc", self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.close()
