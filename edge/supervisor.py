"""The supervisor: a reconcile loop that makes what runs equal to the process table.

It owns the slab and the lock of the line, starts every process, kills the one that hangs, releases the slots of the one
that died, and gives up when the restart budget is spent. It has no socket: what it knows of its processes stands in
their rows of the slab.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from calib.calibration import Calibration, load_calibration, save_calibration
from edge import change_over
from edge.audit import AuditTrail, audit_path
from edge.backoff import Backoff
from edge.change_over import Request
from edge.errors import EXIT_BUSY, EXIT_CONFIG, EXIT_STALE, LineBusyError, MasklineError, RecipeError, ResourceError
from edge.notify import Notifier
from edge.paths import calibration_path, make_private, verdict_endpoint
from edge.plan import LinePlan, plan_line
from edge.processes import BUILD, DETECT, GATE, Process
from edge.settings import Recipe
from edge.slab import Ending, EngineState, Slab, State
from edge.worker import start_command

__all__ = ["Supervisor"]

TICK_S = 0.02
STOP_BUDGET_S = 2.0
"""SIGTERM to SIGKILL, per process, after the drain."""


class RestartBudgetError(MasklineError):
    """A process died or failed too often: the line is broken, and whoever started it must know."""


@dataclass
class Child:
    """A process of the table, and what became of it."""

    process: Process
    popen: subprocess.Popen[bytes] | None = None
    started_ns: int = 0
    deaths: deque[float] = field(default_factory=deque)
    away: Backoff = field(default_factory=Backoff)  # of a device that may be away
    tried: int = 0  # of its `tries`
    finished: bool = False  # it ended by itself, with nothing more to do
    stopping: bool = False
    killed: bool = False  # it hung, and SIGKILL was sent


class Supervisor:
    """One running line."""

    def __init__(self, recipe: Recipe, runtime_dir: Path, state_dir: Path) -> None:
        """Take the line's lock, make its slab, write down its recipe. Starts nothing yet.

        Raises LineBusyError when another supervisor runs this line, RecipeError, BundleError, ResourceError.
        """
        self.recipe = recipe
        self.runtime_dir, self.state_dir = make_private(runtime_dir.absolute()), make_private(state_dir.absolute())
        self.log = structlog.get_logger()
        plan = plan_line(recipe)
        self._lock = _hold_line(runtime_dir / "lock", recipe.line)
        try:
            with contextlib.suppress(change_over.ChangeOverError):
                change_over.take(self.runtime_dir)  # whoever asked before this start was told that nobody heard it
            self._prepare(plan)
        except BaseException:
            os.close(self._lock)
            raise
        self._notify = Notifier.from_environment()
        self.died: Counter[str] = Counter()  # processes that died, or hung and were killed, while the line was up
        self._stop_requested = False
        self._changing: Request | None = None  # to the recipe that starts now

    def _prepare(self, plan: LinePlan) -> None:
        """What the processes of this plan stand on: nothing of it is shared with another plan's."""
        self.recipe = plan.recipe
        self._freeze(load_calibration(calibration_path(self.state_dir, self.recipe.name)))
        self.slab = Slab.create(plan.layouts)
        self._children = {p.name: Child(p) for p in plan.processes}
        self._quiet_beats: set[int] = set()

    def _freeze(self, calibration: Calibration | None) -> None:
        """Write down what the line runs with, for every process of it: files that change meanwhile change nothing."""
        try:
            (self.runtime_dir / "recipe.json").write_text(self.recipe.model_dump_json(), encoding="utf-8")
            calibration_path(self.runtime_dir).unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"{error.filename}: cannot write what the line runs with: {error.strerror}") from error
        if calibration is not None:
            save_calibration(calibration, calibration_path(self.runtime_dir))

    def run(self, on_tick: Callable[[], None] | None = None) -> None:
        """Run the line until SIGTERM, SIGINT, or until all its sources have ended and every part has its answer.

        Raises RestartBudgetError, or RecipeError and LineBusyError when a process says that it cannot work like that.
        """
        before = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._stop_requested and not self._all_answered():
                self.reconcile()
                self._change_over_if_asked()
                if on_tick:
                    on_tick()
                time.sleep(TICK_S)
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def endpoint(self) -> str:
        """Where the gate of this line publishes."""
        return verdict_endpoint(self.runtime_dir)

    def request_stop(self) -> None:
        """Ask `run` to drain and return."""
        self._stop_requested = True

    def _request_stop(self, *_: object) -> None:
        self.request_stop()

    def reconcile(self) -> None:
        """One tick: what should run, what runs, fix the difference. Calling it twice does no harm."""
        now_ns = time.monotonic_ns()
        for child in self._children.values():
            self._reap(child)
            if child.popen is None and self._should_run(child, now_ns):
                self._start(child)
            elif child.popen is not None and (why := self._hung(child, now_ns)):
                if not child.killed:  # one that the kernel holds stays for long: one line in the log
                    self.log.error("process_hung", child=child.process.name, why=why)
                child.killed = True
                child.popen.kill()  # reaped in a later tick; SIGKILL ends a stopped process too
        self._serve_again()
        self._open_the_line(now_ns)
        self._notify.watchdog(hung=[c.process.name for c in self._children.values() if self._hung(c, now_ns)])

    def _should_run(self, child: Child, now_ns: int) -> bool:
        wanted = not child.finished and child.process.should_run(self.slab.engine)
        return wanted and child.away.is_over(now_ns / 1e9)

    def stop(self) -> None:
        """Drain in-flight triggers for at most `drain_ms`, then end every process, those that owe an answer last."""
        self._notify.stopping()
        self._stop_requested = True
        self._end_line(Ending.STOP)
        self._notify.close()
        os.close(self._lock)

    def _end_line(self, ending: Ending) -> None:
        if not self._children:  # a change-over that could not start again has ended it
            return
        self.slab.head["ending"] = ending
        ordered = sorted(self._children.values(), key=lambda c: c.process.stop_order)
        drained = not self.slab.head["start_ns"]
        for order in sorted({c.process.stop_order for c in ordered}):
            group = [c for c in ordered if c.process.stop_order == order]
            if order > 1 and not drained:
                self._drain()
                drained = True
            self._end(group)
            self._notify.watchdog()
        self.slab.close()
        self._children = {}

    def _change_over_if_asked(self) -> None:
        """Go over to the recipe that was asked for, or go on with this one and say why."""
        if self._changing and self.slab.head["start_ns"]:
            change_over.answer(self.runtime_dir, self._changing, done=True)
            self._changing = None
        try:
            request = change_over.take(self.runtime_dir)
        except (change_over.ChangeOverError, OSError) as error:
            self.log.error("change_over_refused", error=str(error))
            return
        if request is None:
            return
        before = self.recipe.sha256
        try:
            if not self.slab.head["start_ns"]:
                raise change_over.ChangeOverError("the line is starting; ask again when it is up")
            plan = change_over.plan_change(request, self.recipe.line, self.state_dir)
            trail = AuditTrail(audit_path(self.state_dir))
            trail.record("recipe.use", request.who, recipe=request.recipe, sha256=plan.recipe.sha256, before=before)
            change_over.remember(self.state_dir, request)
        except MasklineError as error:
            self.log.error("change_over_refused", recipe=request.recipe, who=request.who, error=str(error))
            why = f"{error}. The line goes on with the recipe {self.recipe.name or before[:12]}"
            change_over.answer(self.runtime_dir, request, refused=why)
            return
        self.log.info("change_over", recipe=request.recipe, who=request.who, sha256=plan.recipe.sha256, before=before)
        change_over.answer(self.runtime_dir, request)
        self._notify.changing_over(request.recipe)
        self._end_line(Ending.CHANGE_OVER)
        self._prepare(plan)
        self._changing = request

    def _drain(self) -> None:
        """Wait until every part has its answer, or the budget is spent; nothing is started any more."""
        give_up = time.monotonic() + self.recipe.deadline.drain_ms / 1000
        self._quiet_beats.clear()
        while time.monotonic() < give_up and not self._gate_is_quiet():
            for child in self._children.values():
                self._reap(child)
            self._notify.watchdog()
            time.sleep(TICK_S)

    def _all_answered(self) -> bool:
        """Whether every source has ended and the gate owes nothing."""
        captures = [c for c in self._children.values() if c.process.station]
        return all(c.finished for c in captures) and self._gate_is_quiet()

    def _gate_is_quiet(self) -> bool:
        """Whether the gate owes nothing. It says so at the end of a turn of its loop, so one whole turn must have
        passed since the first look: what it said then may be older than the last trigger."""
        row = self.slab.row(self._children[GATE].process.index)
        if int(row["state"]) == State.RUNNING and not int(row["open"]):
            self._quiet_beats.add(int(row["beat_ns"]))
        else:
            self._quiet_beats.clear()
        return len(self._quiet_beats) > 2

    def _end(self, children: list[Child]) -> None:
        give_up = time.monotonic() + STOP_BUDGET_S
        for child in children:
            child.stopping = True
            if child.popen is not None:
                child.popen.terminate()
        for child in children:
            if child.popen is None:
                continue
            try:
                child.popen.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.log.error("process_killed", child=child.process.name, why="did not end in time")
                child.popen.kill()
                child.popen.wait()

    def _start(self, child: Child) -> None:
        self._count_try(child)
        row = self.slab.row(child.process.index)
        row["state"], row["beat_ns"] = State.STARTING, time.monotonic_ns()
        environment = os.environ | {
            "MASKLINE_SUPERVISOR_PID": str(os.getpid()),
            "MASKLINE_SLAB_FD": str(self.slab.fd),
            "MASKLINE_LINE_RUNTIME_DIR": str(self.runtime_dir),
            "MASKLINE_LINE_STATE_DIR": str(self.state_dir),
        }
        environment.pop("NOTIFY_SOCKET", None)  # only the supervisor speaks to systemd
        child.started_ns, child.killed = time.monotonic_ns(), False
        child.popen = subprocess.Popen(
            start_command(child.process.name),
            env=environment,
            pass_fds=[self.slab.fd],
            cwd=self.runtime_dir,  # `python -m edge` would take an `edge` that lies in the user's current folder
        )
        self.log.info("process_started", child=child.process.name, pid=child.popen.pid)

    def _reap(self, child: Child) -> None:
        """Take note of a death: release the slots, keep the budget."""
        if child.popen is None or (code := child.popen.poll()) is None:
            return
        child.popen = None
        row = self.slab.row(child.process.index)
        slots = self.slab.reclaim(child.process.index)
        if code == 0 and int(row["state"]) == State.DONE:
            if child.process.name == BUILD:
                self._follow_engine(EngineState.BUILT)
            else:
                child.finished = True
            return
        row["state"] = State.ABSENT
        if child.stopping or self.slab.head["ending"]:
            return
        if code == EXIT_STALE:
            self._follow_engine(EngineState.STALE)
            return
        if child.process.may_be_away and (code != EXIT_CONFIG or self.slab.head["start_ns"]):
            now_s = time.monotonic()
            wait_s = child.away.failed(now_s, now_s - child.started_ns / 1e9)
            event = "camera_away" if child.process.station else "process_died"
            self.log.warning(event, child=child.process.name, exit_code=code, next_try_s=wait_s)
            return
        self.log.error("process_died", child=child.process.name, exit_code=code, slots_released=slots)
        if self.slab.head["start_ns"]:
            self.died[child.process.name] += 1
        if code == EXIT_CONFIG:
            raise RecipeError(
                f"the process {child.process.name} cannot run with this configuration; its message is above"
            )
        if code == EXIT_BUSY:
            raise LineBusyError(
                f"the process {child.process.name} needs what something else holds; its message is above"
            )
        if not child.process.tries:
            self._spend(child)

    def _follow_engine(self, engine: EngineState) -> None:
        """Tell every process what became of the engine."""
        self.slab.head["engine"] = engine
        self.log.info("engine", state=engine.name)
        if self.slab.head["start_ns"]:
            self._notify.engine(served=engine is EngineState.SERVED)

    def _serve_again(self) -> None:
        """Once detect has opened what was built, frames go to it again, and the builder has all its tries again."""
        detect = self.slab.row(self._children[DETECT].process.index)
        if self.slab.engine is EngineState.BUILT and int(detect["state"]) == State.RUNNING:
            self._children[BUILD].tried = 0
            self._follow_engine(EngineState.SERVED)

    def _count_try(self, child: Child) -> None:
        if child.process.tries and child.tried == child.process.tries:
            raise RestartBudgetError(
                f"the process {child.process.name} was tried {child.tried} times, and an engine is still stale: the "
                "line stops; what went wrong is said above. `maskline engine build` builds engines by hand"
            )
        child.tried += 1

    def _spend(self, child: Child) -> None:
        budget, now = self.recipe.supervision, time.monotonic()
        child.deaths.append(now)
        while child.deaths and now - child.deaths[0] > budget.window_s:
            child.deaths.popleft()
        if len(child.deaths) > budget.restarts:
            raise RestartBudgetError(
                f"the process {child.process.name} died {len(child.deaths)} times in {budget.window_s} s "
                f"(supervision.restarts = {budget.restarts}): the line stops"
            )

    def _hung(self, child: Child, now_ns: int) -> str:
        """Why a process counts as hung; empty when it makes progress or is provably idle (an idle loop turns too)."""
        if child.popen is None:
            return ""
        row = self.slab.row(child.process.index)
        state, silent_ms = int(row["state"]), (now_ns - int(row["beat_ns"])) / 1e6
        if state == State.STARTING and (now_ns - child.started_ns) / 1e6 > child.process.start_ms:
            return f"not ready {child.process.start_ms} ms after its start"
        if state == State.RUNNING and silent_ms > child.process.turn_ms:
            return f"its loop has not turned for {silent_ms:.0f} ms"
        return ""

    def _open_the_line(self, now_ns: int) -> None:
        """When every process was up once, the sources may begin and the service is ready. While an engine is built it
        is ready without detect: it answers. It is ready without a camera that was looked for and is away."""
        if self.slab.head["start_ns"]:
            return
        there = [c.process for c in self._children.values() if not c.away.failures]
        needed = [p for p in there if p.should_run(self.slab.engine) and not p.tries]
        if waiting_for := [p.name for p in needed if int(self.slab.row(p.index)["state"]) != State.RUNNING]:
            self._notify.starting(waiting_for)
            return
        self.slab.head["start_ns"] = now_ns
        self.log.info("line_ready", line=self.recipe.line)
        self._notify.ready()
        if self.slab.engine is not EngineState.SERVED:
            self._notify.engine(served=False)


def _hold_line(path: Path, line: str) -> int:
    """The lock of a line; the kernel lets go of it when the supervisor ends, however it ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LineBusyError(f"line {line} is running already (process {holder} holds {path}); stop it first") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
