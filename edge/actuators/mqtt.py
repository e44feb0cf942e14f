"""Decisions for dashboards and factory systems, through an MQTT broker: QoS 1, birth, last will, numbered messages.

It tells, and does nothing else: a broker may deliver late or twice, so it has neither inputs nor an ejector. A broker
that is away stops nothing. Messages wait in a bounded queue; when that is full the oldest go, which is counted and
shows as a gap in `seq`. A message that may have been lost with a connection is sent again under its own `seq`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import secrets
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog

from edge.actuators.driver import DriverError, Edge, PartOutcome, Status
from edge.actuators.driver_settings import MqttDriver
from edge.loop_thread import LoopThread
from edge.messages import Verdict

if TYPE_CHECKING:
    from aiomqtt import Client

__all__ = ["VERSION", "Mqtt"]

VERSION = 1
"""Of the payloads, as `v` in each."""
BATCH = 8
"""Messages on their way to the broker at a time; aiomqtt warns of more than ten."""
FAREWELL_S = 1.0
"""How long `close` lets the broker take what is queued."""
_log = structlog.get_logger()


class Mqtt:
    """Driver `mqtt`. Topics: `<topic>/state`, retained, and `<topic>/parts`."""

    def __init__(self, settings: MqttDriver) -> None:
        """Begin to connect. Raises DriverError without aiomqtt, and for a file that cannot be read."""
        try:
            import aiomqtt  # noqa: F401
        except ImportError as error:
            raise DriverError("the driver mqtt needs aiomqtt: pip install 'maskline[plc]'") from error
        logging.getLogger("mqtt").setLevel(logging.CRITICAL)  # what matters of it is said here
        self._settings = settings
        self._session = secrets.token_hex(8)
        self._tls, self._password = _tls(settings), _password(settings)
        self._lock = threading.Lock()  # guards what follows
        self._parts: deque[tuple[int, str]] = deque()  # seq, payload
        self._sending = 0  # so many of them, from the left, are on their way
        self._seq = self._dropped = self._births = self._states = 0
        self._status = Status(gate=None)
        self._changed = True
        self._polled = False
        try:
            self._thread = LoopThread("mqtt", self._run)
        except Exception as error:
            raise DriverError(f"cannot start the driver mqtt: {error}") from error

    def poll(self, timeout_ms: int) -> list[Edge]:
        """Nothing, after the timeout: there are no inputs. The loop that polls is what keeps `state` coming."""
        self._polled = True
        if self._thread.failure:
            raise DriverError(f"the driver mqtt has ended: {self._thread.failure!r}") from self._thread.failure
        time.sleep(timeout_ms / 1000)
        return []

    def count(self) -> int | None:
        """None: there is no encoder."""
        return None

    def eject(self, on: bool) -> None:
        """Raises DriverError: there is no ejector."""
        raise DriverError("the driver mqtt has no ejector: a broker may deliver late; use gpio or modbus to eject")

    def line_ok(self, level: bool) -> None:
        """Nothing: an interlock over a broker would be none. `state` and the last will say who is alive."""

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        """Queue a message on `<topic>/parts`."""
        fields = _part_fields(verdict, part)
        with self._lock:
            self._seq += 1
            message = {"v": VERSION, "session": self._session, "seq": self._seq, **fields}
            if len(self._parts) >= self._settings.queued_messages:
                del self._parts[self._sending]
                self._dropped += 1
            self._parts.append((self._seq, json.dumps(message)))
        self._thread.wake()

    def report(self, status: Status) -> None:
        """Publish a new state."""
        self._status, self._changed = status, True
        self._thread.wake()

    def close(self) -> None:
        """Send what is queued and a last state, for a moment; then go."""
        self._thread.close(FAREWELL_S)

    async def _run(self, thread: LoopThread) -> None:
        """Connect, talk, and connect again until told to stop; each failure doubles the wait before the next try."""
        from aiomqtt import Client, MqttError

        thread.started()
        first_s, most_s = self._settings.reconnect_ms / 1000, self._settings.reconnect_max_ms / 1000
        wait_s, last_error = first_s, ""
        while not thread.stopping:
            births, self._births = self._births, self._births + 1
            try:
                async with Client(**self._connection()) as client:
                    _log.info("mqtt_connected", broker=self._address)
                    wait_s, last_error = first_s, ""
                    await self._talk(thread, client)
            except (MqttError, OSError) as error:
                if str(error) != last_error:
                    last_error = str(error)
                    _log.warning("mqtt_lost", broker=self._address, error=last_error, births=births)
            if not thread.stopping:
                await thread.pause(wait_s)
            wait_s = min(2 * wait_s, most_s)

    async def _talk(self, thread: LoopThread, client: Client) -> None:
        """Send until told to stop; MqttError as soon as the connection is lost, also while nothing is to be sent."""
        tasks = [asyncio.ensure_future(self._send(thread, client)), asyncio.ensure_future(_until_lost(client))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _send(self, thread: LoopThread, client: Client) -> None:
        """Birth, then what comes; a last state once everything is sent and the driver stops."""
        interval_s = self._settings.interval_ms / 1000
        self._changed, due = True, 0.0
        while True:
            if self._changed or (self._polled and time.monotonic() >= due):
                self._changed = self._polled = False
                due = time.monotonic() + interval_s
                await self._publish(client, "state", self._state(online=True), retain=True)
            if batch := self._next_batch():
                await asyncio.gather(*(self._publish(client, "parts", payload) for _, payload in batch))
                self._delivered(batch)
            elif thread.stopping:
                await self._publish(client, "state", self._state(online=False, why="stopped"), retain=True)
                return
            elif not self._changed:
                left_s = due - time.monotonic()
                await thread.woken(left_s if left_s > 0 else interval_s)

    async def _publish(self, client: Client, topic: str, payload: str, retain: bool = False) -> None:
        await client.publish(f"{self._settings.topic}/{topic}", payload, qos=1, retain=retain)

    def _next_batch(self) -> list[tuple[int, str]]:
        with self._lock:
            batch = list(itertools.islice(self._parts, BATCH))
            self._sending = len(batch)
            return batch

    def _delivered(self, batch: list[tuple[int, str]]) -> None:
        with self._lock:
            while self._parts and self._parts[0][0] <= batch[-1][0]:
                self._parts.popleft()
            self._sending = 0

    @property
    def _address(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    def _connection(self) -> dict[str, Any]:
        from aiomqtt import Will

        settings = self._settings
        will = {"v": VERSION, "session": self._session, "birth": self._births, "online": False, "why": "lost"}
        return {
            "hostname": settings.host,
            "port": settings.port,
            "identifier": settings.client_id or f"maskline-{self._session}",
            "username": settings.username,
            "password": self._password,
            "tls_context": self._tls,
            "keepalive": settings.keepalive_s,
            "timeout": settings.timeout_ms / 1000,
            "will": Will(f"{settings.topic}/state", json.dumps(will), qos=1, retain=True),
        }

    def _state(self, online: bool, why: str = "") -> str:
        with self._lock:
            self._states += 1
            status = self._status
            fields = {
                "v": VERSION,
                "session": self._session,
                "birth": self._births,
                "seq": self._states,
                "online": online,
                "why": why,
                "gate": status.gate and status.gate.value,
                "fault": status.fault.name.lower(),
                "fault_code": int(status.fault),
                "commissioning": status.commissioning,
                "recipe": status.recipe,
                "parts_seq": self._seq,
                "queued": len(self._parts),
                "dropped": self._dropped,
                "interval_ms": self._settings.interval_ms,
                "utc_ms": time.time_ns() // 1_000_000,
            }
        return json.dumps(fields)


async def _until_lost(client: Client) -> None:
    async for _ in client.messages:  # nothing is subscribed; it raises when the connection goes
        pass


def _part_fields(verdict: Verdict | None, part: PartOutcome) -> dict[str, object]:
    return {
        "lane": part.lane,
        "part": part.number,
        "part_id": part.part_id,
        "id16": part.id16,
        "decision": part.decision.value,
        "why": part.why,
        "ejected": part.ejected,
        "utc_ms": time.time_ns() // 1_000_000,
        "verdict": verdict and _verdict_fields(verdict),
    }


def _verdict_fields(verdict: Verdict) -> dict[str, object]:
    return {
        "line": verdict.line,
        "epoch": verdict.epoch,
        "seq": verdict.seq,
        "decision": verdict.decision.value,
        "reason": verdict.reason and verdict.reason.value,
        "late": verdict.late,
        "score": _finite(verdict.score),
        "threshold": _finite(verdict.threshold),
        "defects": sum(len(v.boxes) for v in verdict.views),
        "simulated": verdict.simulated,
        "recipe": verdict.recipe,
        "trigger_utc_ms": verdict.trigger_utc_ns // 1_000_000,
        "decided_utc_ms": verdict.decided_utc_ns // 1_000_000,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _tls(settings: MqttDriver) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls.ca_file)
        if settings.tls.cert_file:
            context.load_cert_chain(settings.tls.cert_file, settings.tls.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise DriverError(f"driver mqtt, tls: {error}; expected PEM files that can be read") from error
    return context


def _password(settings: MqttDriver) -> str | None:
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text().splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DriverError(f"driver mqtt: no password in {settings.password_file}: {error}") from error
