"""A real mosquitto on loopback, that can die and come back, and a subscriber that remembers all it gets."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
import pytest

from edge.testing import wait_until
from tests.edge.actuators.driver_helpers import free_port

__all__ = ["Broker", "Subscriber"]

_MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


class Broker:
    """mosquitto with these further lines of configuration; it remembers sessions over its death."""

    def __init__(self, folder: Path, *lines: str) -> None:
        if _MOSQUITTO is None:
            pytest.skip("needs mosquitto: apt install mosquitto")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = lines or ("allow_anonymous true",)
        kept = (
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_interval 1",
            "autosave_on_changes true",
        )
        settings = [f"listener {self.port} 127.0.0.1", "user root", *kept, *lines]
        self._config.write_text("\n".join(settings) + "\n")
        self._log = (folder / "mosquitto.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert _MOSQUITTO is not None
        self._process = subprocess.Popen([_MOSQUITTO, "-c", str(self._config)], stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(100)
            self._process = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._log.close()


class Subscriber:
    """Connects again by itself, as paho does; what is published meanwhile, the broker keeps for it."""

    def __init__(self, port: int, topic: str) -> None:
        self.messages: list[tuple[str, int, bool, dict[str, Any]]] = []  # topic, qos, retained, payload
        self.subscriptions = 0
        self._topic = topic
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=secrets.token_hex(8), clean_session=False
        )
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{topic}/#", 1)
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._received
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def _subscribed(self, *_: object) -> None:
        self.subscriptions += 1

    def _received(self, client: object, data: object, message: paho.MQTTMessage) -> None:
        payload = json.loads(message.payload, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        self.messages.append((message.topic.removeprefix(f"{self._topic}/"), message.qos, message.retain, payload))

    def of(self, topic: str) -> list[dict[str, Any]]:
        """The payloads on a topic."""
        return [payload for name, _, _, payload in list(self.messages) if name == topic]

    def has_part(self, number: int) -> bool:
        """Whether it was told of a part."""
        return any(p["part"] == number for p in self.of("parts"))

    def __enter__(self) -> Subscriber:
        wait_until(lambda: self.subscriptions > 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()
