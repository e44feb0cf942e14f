"""sd_notify: what the supervisor tells systemd. Without a NOTIFY_SOCKET it tells nobody."""

from __future__ import annotations

import os
import socket
import time

__all__ = ["Notifier"]


class Notifier:
    """Speaks the protocol of sd_notify(3): datagrams of `KEY=value` lines on a Unix socket."""

    def __init__(self, address: str, watchdog_usec: int = 0) -> None:
        """`address`: a path, or an abstract name after `@`; empty for silence. `watchdog_usec`: 0 for no watchdog."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval_s = watchdog_usec / 1e6 / 4
        self._next_watchdog = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None

    @classmethod
    def from_environment(cls) -> Notifier:
        """As systemd set it: $NOTIFY_SOCKET, and $WATCHDOG_USEC when it is meant for this process."""
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(os.environ.get("NOTIFY_SOCKET", ""), int(os.environ.get("WATCHDOG_USEC", "0")) if mine else 0)

    def ready(self) -> None:
        """The whole line is up."""
        self._send("READY=1\nSTATUS=every process is up")

    def stopping(self) -> None:
        """The line drains and ends."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Every process makes progress. Sent four times per watchdog interval at most; call it as often as you like."""
        now = time.monotonic()
        if self._interval_s and now >= self._next_watchdog:
            self._next_watchdog = now + self._interval_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            self._socket.sendto(message.encode(), self._address)
