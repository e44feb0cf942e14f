"""An asyncio loop in a thread of its own, for libraries that are asyncio where the caller is not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine

__all__ = ["LoopThread"]

START_S = 10.0
END_S = 5.0


class LoopThread:
    """Runs `main(self)` until it returns or `close` is called.

    `main` calls `started()` once it works, or raises: the constructor waits for the one and raises the other. What ends
    it later is in `failure`.
    """

    def __init__(self, name: str, main: Callable[[LoopThread], Coroutine[None, None, None]]) -> None:
        self.failure: BaseException | None = None
        self.stopping = False
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._woken = self._stop = asyncio.Event()  # replaced in the thread
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        if not self._started.wait(START_S):
            self.failure = TimeoutError(f"not started within {START_S:.0f} s")
        if self.failure:
            self.close()
            raise self.failure

    def started(self) -> None:
        """From `main`: it works."""
        self._started.set()

    def wake(self) -> None:
        """From any thread: `woken` returns."""
        self._call(self._woken.set)

    async def woken(self, timeout_s: float) -> None:
        """Return after `wake`, `close` or the timeout."""
        await _wait(self._woken, timeout_s)
        self._woken.clear()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not past `close`."""
        await _wait(self._stop, seconds)

    def close(self, grace_s: float = 0.0) -> None:
        """Set `stopping`, let `main` end by itself for a grace, then cancel it."""
        self.stopping = True
        self._call(self._stop.set)
        self.wake()
        self._thread.join(grace_s)
        if self._thread.is_alive() and self._task is not None:
            self._call(self._task.cancel)
        self._thread.join(END_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._body())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # whatever it is, the driver reports it to the actuator's loop
            self.failure = error
        finally:
            self._started.set()

    async def _body(self) -> None:
        self._woken, self._stop = asyncio.Event(), asyncio.Event()
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        await self._main(self)

    def _call(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
