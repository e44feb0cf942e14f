"""What a line publishes, gathered in a thread while a test does other things."""

from __future__ import annotations

import threading

from edge.messages import GateState, Heartbeat, Verdict
from edge.verdicts import Event, Subscriber

__all__ = ["Listener"]


class Listener:
    """Use it as a context: it listens from before the line is up until the block ends."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.events: list[Event] = []

    def _listen(self) -> None:
        with Subscriber(self._endpoint, "test") as line:
            while not self._over.is_set():
                self.events += line.poll(50)

    @property
    def verdicts(self) -> list[Verdict]:
        return [e for e in list(self.events) if isinstance(e, Verdict)]

    @property
    def beats(self) -> list[Heartbeat]:
        return [e for e in list(self.events) if isinstance(e, Heartbeat)]

    @property
    def state(self) -> GateState | None:
        """What the newest heartbeat says; None before the first."""
        return self.beats[-1].state if self.beats else None

    @property
    def trouble(self) -> list[str]:
        return self.beats[-1].trouble if self.beats else ["no heartbeat yet"]

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
