"""sd_notify: what the supervisor tells systemd. Without a NOTIFY_SOCKET it tells nobody.

Nothing here may harm the line: a message is sent without waiting, and when it cannot be sent the line goes on. What
systemd must not miss (READY, STOPPING) is tried again with the next word; a watchdog that went unheard comes again
after a quarter of its time anyway.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

import structlog

__all__ = ["Notifier"]

START_WORD_S = 1.0
"""While the line starts, systemd hears of it this often,"""
START_PATIENCE_S = 30.0
"""and shall wait so long for the next word. How long a process may take to start stands in the process table alone."""


class Notifier:
    """Speaks the protocol of sd_notify(3): datagrams of `KEY=value` lines on a Unix socket."""

    def __init__(self, address: str, watchdog_usec: int = 0) -> None:
        """`address`: a path, or an abstract name after `@`; empty for silence. `watchdog_usec`: 0 for no watchdog."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval_s = watchdog_usec / 1e6 / 4
        self._next_word = 0.0
        self._next_watchdog = 0.0
        self._status = ""
        self._owed: list[str] = []
        self._complained = False
        self._socket = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls) -> Notifier:
        """As systemd set it: $NOTIFY_SOCKET, and $WATCHDOG_USEC when it is meant for this process."""
        usec = os.environ.get("WATCHDOG_USEC", "0")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(os.environ.get("NOTIFY_SOCKET", ""), int(usec) if mine and usec.isdigit() else 0)

    def starting(self, waiting_for: Sequence[str]) -> None:
        """These processes are not up yet, and none of them is late: systemd shall not give the start up. Call it as
        often as you like."""
        now = time.monotonic()
        if now >= self._next_word:
            self._next_word = now + START_WORD_S
            self._say_status(f"starting: {', '.join(waiting_for)}", f"EXTEND_TIMEOUT_USEC={START_PATIENCE_S * 1e6:.0f}")

    def ready(self) -> None:
        """The whole line is up."""
        self._must_hear("READY=1")
        self._say_status("every process is up")

    def engine(self, served: bool) -> None:
        """Whether a line that is up inspects, or only answers because its engine is being built."""
        building = "the engine is being built: parts are UNINSPECTED(not_ready)"
        self._say_status("the engine was built: every process is up" if served else building)

    def changing_over(self, recipe: str) -> None:
        """The line drains, to start again with another recipe."""
        self._say_status(f"change-over to {recipe}: NOT_READY until every process is up")

    def watchdog(self, hung: Sequence[str] = ()) -> None:
        """Every process makes progress; or these do not, then systemd is told why it is not fed.

        Sent four times per watchdog interval at most; call it as often as you like.
        """
        self._pay()
        if hung:
            self._say_status(f"hung: {', '.join(hung)}")
            return
        if self._status.startswith("hung"):
            self._say_status("every hung process was replaced")
        now = time.monotonic()
        if self._interval_s and now >= self._next_watchdog:
            self._next_watchdog = now + self._interval_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The line drains and ends."""
        self._must_hear("STOPPING=1")
        self._say_status("draining: parts in flight get their answer")

    def close(self) -> None:
        """Close the socket; what is said after that is said to nobody."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say_status(self, text: str, *more: str) -> None:
        """One line for `systemctl status`; not repeated, unless there is more to say with it."""
        if more or text != self._status:
            self._status = text
            self._send("\n".join([f"STATUS={text}", *more]))

    def _must_hear(self, message: str) -> None:
        self._owed.append(message)
        self._pay()

    def _pay(self) -> None:
        while self._owed and self._send(self._owed[0]):
            del self._owed[0]

    def _send(self, message: str) -> bool:
        """Whether systemd has it; also true when there is nobody to tell."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:  # full, gone, or no socket at all: the line matters more
            if not self._complained:
                self._complained = True
                structlog.get_logger().warning("systemd_does_not_hear", error=str(error), message=message)
            return False
        return True
