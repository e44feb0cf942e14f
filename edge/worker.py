"""What every process of the line stands on: its place in the slab, its sockets, its heartbeat, its end.

`python -m edge NAME` is how the supervisor starts a process of the table. A worker dies with the supervisor
(`edge.parent`), reads the resolved recipe from the runtime directory and never from the user's file, and says in its
row of the slab when it is ready and when it last turned its loop.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import zmq

from edge.errors import MasklineError
from edge.logs import configure_logs
from edge.messages import MAX_MESSAGE_BYTES, FrameRef, Message, ProtocolError, decode, encode
from edge.paths import calibration_path, verdict_endpoint
from edge.plan import LinePlan, plan_line
from edge.processes import BUILD, CHANNEL, GATE, RECORD, Process, capture
from edge.settings import Recipe
from edge.slab import Ending, EngineState, Orphans, Slab, State

if TYPE_CHECKING:
    from calib.calibration import Calibration

__all__ = ["IDLE_MS", "Worker", "start_command"]

IDLE_MS = 100
"""An idle loop turns this often, to say that it lives."""

QUEUE_MESSAGES = 10_000
"""Bound of every socket queue. Descriptors are bounded by the slots; this bounds triggers while the gate restarts."""

RECEIVE_AT_ONCE = 1_000

_SEE_NO_PIXELS = (GATE, BUILD, CHANNEL)


class Worker:
    """One process of a running line."""

    def __init__(self, process: Process, plan: LinePlan, slab: Slab, runtime_dir: Path, state_dir: Path) -> None:
        self.process = process
        self.plan = plan
        self.recipe: Recipe = plan.recipe
        self.slab = slab
        self.runtime_dir = runtime_dir
        self.state_dir = state_dir
        self.log = structlog.get_logger()
        self.stopping = False
        self.zmq = zmq.Context()
        self._row = slab.row(process.index)
        self._numbered = slab.head["next_trigger"]  # the gate looks at it several times a turn
        self._index_of = {p.name: p.index for p in plan.processes}
        self._inbox: zmq.Socket[bytes] | None = None
        self._outboxes: dict[str, zmq.Socket[bytes]] = {}
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the supervisor decides

    def _on_sigterm(self, *_: Any) -> None:
        self.stopping = True

    def index_of(self, process: str) -> int:
        """The number of a process of this line."""
        return self._index_of[process]

    def beat(self) -> None:
        """Say that the loop turns."""
        self._row["beat_ns"] = time.monotonic_ns()

    def ready(self) -> None:
        """Say that this process is up."""
        self.beat()
        self.report(State.RUNNING)

    def report(self, state: int) -> None:
        """Say in what state this process is: State.RUNNING or State.DONE."""
        self._row["state"] = state

    def count(self, counter: str, by: int = 1) -> None:
        """Raise a counter of this process's row: `done`, `failed`, `stale`, or one of what is recorded."""
        self._row[counter] = int(self._row[counter]) + by

    def report_open(self, parts: int) -> None:
        """Gate: how many parts wait for their answer, triggers on their way included."""
        self._row["open"] = parts

    @property
    def line_started(self) -> bool:
        """Whether every process was up once: before that no part is triggered."""
        return bool(self.slab.head["start_ns"])

    @property
    def line_ending(self) -> Ending:
        """Whether the supervisor is draining the line, and why."""
        return Ending(int(self.slab.head["ending"]))

    def numbered(self, station: str) -> int:
        """How many triggers the capture process of a station has numbered, and whether they arrived or not."""
        return int(self._numbered[self._index_of[capture(station)]])

    def source_ended(self, station: str) -> bool:
        """Whether the source of a station has said that it has no more parts."""
        return int(self.slab.row(self.index_of(capture(station)))["state"]) == State.DONE

    @property
    def engine_served(self) -> bool:
        """Whether frames may go to detect; not while a stale engine is built and opened."""
        return self.slab.engine is EngineState.SERVED

    def processes_not_running(self) -> list[str]:
        """The processes that should run and are starting or restarting."""
        up = (State.RUNNING, State.DONE)
        loops = [p for p in self.plan.processes if p.should_run(self.slab.engine) and not p.tries]
        return [p.name for p in loops if int(self.slab.row(p.index)["state"]) not in up]

    @property
    def verdict_endpoint(self) -> str:
        """Where the gate publishes for everyone on this machine."""
        return verdict_endpoint(self.runtime_dir)

    def calibration(self) -> Calibration | None:
        """The calibration that was there when the line started, or None: one that is made meanwhile waits for the next
        start, so that no two processes ever judge by different thresholds."""
        from calib.calibration import load_calibration

        return load_calibration(calibration_path(self.runtime_dir))

    def inbox(self) -> zmq.Socket[bytes]:
        """The socket on which this process receives; it is bound at the first call."""
        if self._inbox is None:
            self._inbox = self.zmq.socket(zmq.PULL)
            self._inbox.set_hwm(QUEUE_MESSAGES)
            self._inbox.maxmsgsize = MAX_MESSAGE_BYTES  # a larger one is never allocated: its sender is cut off
            self._inbox.bind(self._endpoint(self.process.name))
        return self._inbox

    def send(self, to: str, message: Message) -> bool:
        """Send without waiting; False (and a count) when the receiver's queue is full."""
        if to not in self._outboxes:
            socket = self.zmq.socket(zmq.PUSH)
            socket.set_hwm(QUEUE_MESSAGES)
            socket.linger = 1000
            socket.connect(self._endpoint(to))
            self._outboxes[to] = socket
        try:
            self._outboxes[to].send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            self.count("failed")
            return False
        return True

    @property
    def records(self) -> bool:
        """Whether this line records what it sees."""
        return RECORD in self._index_of

    def record(self, message: Message) -> None:
        """Have it recorded, if this line records: nothing waits for that, and what is lost is counted."""
        if self.records and not self.send(RECORD, message):
            self.count("messages_unrecorded")

    def pass_on(self, frame: FrameRef, to: str) -> None:
        """Make `to` the holder of the frame's slot, then send it the descriptor."""
        self.slab.hand_over(frame.slot, self.index_of(to))
        self.send(to, frame)

    def receive(self, timeout_ms: int, *expected: type[Any]) -> list[Any]:
        """All messages that are there; waits `timeout_ms` for the first. Garbage is counted, logged and dropped."""
        messages: list[Any] = []
        socket = self.inbox()
        if not socket.poll(timeout_ms):
            return messages
        for _ in range(RECEIVE_AT_ONCE):
            try:
                data = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                messages.append(decode(data, *expected))
            except ProtocolError as error:
                self.count("failed")
                self.log.warning("message_refused", error=str(error), bytes=len(data))
        return messages

    def turns(self, wait_ms: Callable[[], int], held: Callable[[], Collection[int]]) -> Iterator[list[FrameRef]]:
        """The frames that came to us, once per turn of the loop, until SIGTERM; turns the loop's heartbeat.

        `wait_ms`: how long this turn may wait for a frame. `held`: the slots of all frames that came in earlier turns
        and were neither passed on nor released. Stale descriptors are dropped, orphaned slots released.
        """
        orphans = Orphans(self.slab, self.process.index, _patience_ns(self.recipe.deadline.deadline_ms))
        next_sweep_ns = 0
        while not self.stopping:
            self.beat()
            came, known = [], set(held())
            for frame in self.receive(wait_ms(), FrameRef):
                if frame.slot in known or not self.slab.holds(frame.slot, frame.generation, self.process.index):
                    self.count("stale")
                    continue
                came.append(frame)
                known.add(frame.slot)
            now_ns = time.monotonic_ns()
            if now_ns >= next_sweep_ns:
                next_sweep_ns = now_ns + 250_000_000
                if lost := orphans.release(known, now_ns):
                    self.log.warning("orphaned_slots_released", slots=lost)
            yield came

    def frames(self, each_turn: Callable[[], None] = lambda: None) -> Iterator[FrameRef]:
        """The frames that are ours to work on, one per turn of the loop (`turns`), until SIGTERM.

        When the caller returns for the next one, it must have passed on or released the slot. `each_turn` is called
        whether or not a frame is there.
        """
        queue: deque[FrameRef] = deque()
        for came in self.turns(lambda: 0 if queue else IDLE_MS, lambda: [f.slot for f in queue]):
            each_turn()
            queue.extend(came)
            if queue:
                yield queue.popleft()
                self.count("done")

    def close(self) -> None:
        """Close every socket; what was sent may leave for one second."""
        self.zmq.destroy(linger=1000)

    def _endpoint(self, process: str) -> str:
        return f"ipc://{self.runtime_dir}/{process}"


def _patience_ns(deadline_ms: int) -> int:
    """How long a descriptor may be on its way before its slot counts as orphaned. In a replay nothing is ever late, and
    on a box with more to do than cores two processes may take seconds to find each other."""
    return max(1_000_000_000, deadline_ms * 1_000_000 // 20)


def start_command(name: str) -> list[str]:
    """The command that starts a process of the table."""
    return [sys.executable, "-m", "edge", name]


def main() -> None:
    """Run one process of the table; its environment comes from the supervisor."""
    if len(sys.argv) != 2 or "MASKLINE_SUPERVISOR_PID" not in os.environ:
        sys.exit("maskline: the supervisor starts this; people start a line with `maskline run RECIPE`")
    name = sys.argv[1]
    configure_logs(name)
    log = structlog.get_logger()
    runtime_dir = Path(os.environ["MASKLINE_LINE_RUNTIME_DIR"])
    try:
        recipe = Recipe.model_validate_json((runtime_dir / "recipe.json").read_text(encoding="utf-8"))
        plan = plan_line(recipe)
        process = next(p for p in plan.processes if p.name == name)
        os.nice(process.niceness)
        slab = Slab(int(os.environ["MASKLINE_SLAB_FD"]), plan.layouts, populate=name not in _SEE_NO_PIXELS)
        worker = Worker(process, plan, slab, runtime_dir, Path(os.environ["MASKLINE_LINE_STATE_DIR"]))
        worker.beat()
        run: Callable[[Worker], None] = importlib.import_module(process.entry).run
        gc.freeze()  # what was imported lives as long as the process: a full collection need not walk it
        run(worker)
        worker.close()
    except MasklineError as error:
        log.error("cannot_go_on", error=str(error))
        sys.exit(error.exit_code)
