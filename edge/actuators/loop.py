"""The loop of one actuator: inputs and verdicts in, ejector and LINE-OK out.

One turn: take what the driver and the channel have, decide on what has reached the actuator, set the outputs, and only
then write to disk. Whatever is wrong, nothing passes: `unable` says why, and LINE-OK stands still. It changes its level
only in a turn in which everything was right, so a loop that hangs or dies stops it as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import structlog

from edge.actuators.answers import Seen
from edge.actuators.driver import Driver, DriverError, Edge, Fault, Input, Status
from edge.actuators.fifo import Fifo
from edge.actuators.in_flight import Decided, InFlight, Now
from edge.actuators.interlocks import Interlocks
from edge.actuators.latch import Latch
from edge.actuators.panel import Panel, Request
from edge.actuators.settings import Actuator, MatchByTime
from edge.actuators.web_marker import WebMarker
from edge.audit import AuditTrail
from edge.clock import ClockOffset
from edge.errors import MasklineError
from edge.messages import Heartbeat, Verdict
from edge.verdict import GateState
from edge.verdicts import Event, Gap, NewEpoch, Refused, Silence
from edge.webs.geometry import WebGeometry

__all__ = ["Channel", "Loop", "safe_level"]

IDLE_MS = 10
WATCHING_MS = 2
"""While a part is between sensor and ejector and an encoder says when to act, it is asked so often."""
EVENTS_AT_ONCE = 256
SHOW_NS = 200_000_000
SAVE_AGAIN_NS = 1_000_000_000
TEST_FIRE_NS = 300_000_000
_MS = 1_000_000


class Channel(Protocol):
    """Where verdicts come from: `edge.verdicts.Channel`."""

    @property
    def clock(self) -> ClockOffset: ...

    def receive(self, timeout_ms: int | None = None) -> Event | None: ...


def safe_level(actuator: Actuator, safe_state: str, *, inhibited: bool) -> bool:
    """The ejector's level while nothing may pass, before the first turn and after the last: reject. An ejector that
    rests at pass stays there where the recipe's `safe_state` leaves stopping to LINE-OK, and where commissioning mode
    has it `inhibited`."""
    return actuator.at_rest == "reject" or (safe_state == "reject_all" and not inhibited)


class Loop:
    """One actuator at work. Not for several threads."""

    def __init__(
        self,
        actuator: Actuator,
        safe_state: str,
        driver: Driver,
        channel: Channel,
        latch: Latch,
        panel: Panel,
        audit: AuditTrail,
        *,
        boot_id: str,
        commissioning: str = "",
        change_recipe: Callable[[int], None] = lambda _: None,
        recipe_numbers: Mapping[str, int] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        webs: Mapping[str, WebGeometry] | None = None,
    ) -> None:
        """`safe_state`: of the recipe. `commissioning`: who asked for it at the start; empty: nobody. `webs`: of the
        lane's stations, for a marker. `recipe_numbers`: what the PLC calls recipes, by their hash."""
        self._actuator, self._driver, self._channel = actuator, driver, channel
        self._latch, self._panel, self._audit = latch, panel, audit
        self._boot_id, self._clock, self._change_recipe = boot_id, clock, change_recipe
        self._safe_state = safe_state
        self._recipe_numbers, self._recipe = recipe_numbers or {}, ""
        self._log = structlog.get_logger().bind(actuator=actuator.name)
        now_ns = clock()
        self.in_flight: InFlight = WebMarker(actuator, webs, now_ns) if webs else Fifo(actuator, now_ns)
        self.interlocks = Interlocks(actuator)
        self._beat: Heartbeat | None = None
        self._trouble = ""  # of the driver; until a turn in which it did all that it was asked
        self._failed = False  # since its end was looked for
        self._commissioning = ""  # who asked for it
        self._ejecting: bool | None = None  # as commanded; None: not sure
        self._line_ok: bool | None = None  # as commanded; None: never, it stands as it was found
        self._line_ok_ns = 0
        self._firing_until_ns = 0
        self._show_ns = self._save_ns = 0
        self._reported: Status | None = None
        self.unable = "silence"
        """Why nothing may pass; empty: it may."""
        if commissioning:
            self._set_commissioning(commissioning, now_ns)

    def turn(self) -> None:
        """One turn; takes IDLE_MS at most, unless a disk is slow with a new fault."""
        edges = self._poll()
        self._listen()
        now = Now(self._clock(), self._count())
        raised = []
        if self._actuator.at_rest == "reject" and self._ejecting is False and self.in_flight.overrun(now):
            self._log.warning("ejector_stayed_open")
            raised += self.interlocks.late()
        held = bool(self.unable)
        for edge in edges:
            raised += self._take(edge, now, held)
        self.unable = self._why_unable(now.ns)
        if self._commissioning:
            self.interlocks.inhibited(now.ns)
        self._report()  # first: a PLC reads in it whether it may act upon the results
        for part in self.in_flight.advance(now, self.unable):
            decided = _not_ejected(part) if self._commissioning else part
            raised += self.interlocks.decided(decided, now.ns)
            self._try(lambda d=decided: self._driver.tell(d.verdict, d.outcome))  # type: ignore[misc]
        raised += self.interlocks.advance(now.ns, held)
        if self.in_flight.full:
            raised.append((Fault.TRACKING, "the sensor sees more parts than can be"))
        for fault, detail in raised:
            if self._latch.raise_fault(fault, detail):
                self._log.error("fault", fault=fault.name.lower(), detail=detail)
        self.unable = self._why_unable(now.ns)
        self._set_outputs(now)
        self._keep(now.ns)

    def stop(self) -> None:
        """Leave everything as after silence: the ejector in the safe state, or at rest where it is inhibited; LINE-OK
        still."""
        self._try(lambda: self._driver.eject(self._safe_level()))
        self._panel.hide()

    def _poll(self) -> list[Edge]:
        now_ns, due_ns = self._clock(), self.in_flight.next_ns()
        wait_ms = WATCHING_MS if self.in_flight.parts else IDLE_MS
        if due_ns is not None:
            wait_ms = max(0, min(IDLE_MS, (due_ns - now_ns) // _MS))
        try:
            return self._driver.poll(wait_ms)
        except DriverError as error:
            self._fail(error)
            return list(error.edges)

    def _listen(self) -> None:
        for _ in range(EVENTS_AT_ONCE):
            event = self._channel.receive(0)
            if event is None:
                return
            now_ns = self._clock()
            if isinstance(event, Verdict):
                self._recipe = event.recipe
                self.in_flight.hear(event, *self._trigger_ns(event, now_ns), now_ns)
            elif isinstance(event, Heartbeat):
                self._beat = event
                self.in_flight.line(event.epoch, event.boot_id, now_ns)
            elif isinstance(event, Silence):
                self._beat = None
                self.in_flight.lose("silence", now_ns)
                self._log.warning("silence", for_ms=event.for_ms)
            elif isinstance(event, Gap | NewEpoch):
                self.in_flight.lose("verdicts are missing", now_ns)
                self._log.warning("verdicts_missing", what=str(event))
            elif isinstance(event, Refused):
                self._log.warning("channel_refused", why=event.why)

    def _trigger_ns(self, verdict: Verdict, now_ns: int) -> tuple[int | None, int]:
        """When the part of this verdict was triggered, by our clock, and how far off that may be."""
        if verdict.boot_id == self._boot_id:
            return verdict.trigger_ns, 0
        clock = self._channel.clock
        if not clock.known or clock.boot_id != verdict.boot_id:
            return None, 0
        return verdict.trigger_ns - clock.offset_ns(now_ns), clock.bound_ns(now_ns)

    def _take(self, edge: Edge, now: Now, held: bool) -> list[tuple[Fault, str]]:
        if edge.input is Input.SENSOR:
            if edge.level:
                count = edge.count if edge.count is not None else now.count
                self.in_flight.sense(Seen(edge.at_ns, count, edge.part_id), now.ns)
            return []
        if edge.input is Input.COMMISSIONING:
            if edge.level or self.interlocks.level(edge.input):  # off from the start on, it ends nothing
                self._set_commissioning("the machine's switch" if edge.level else "", now.ns)
        elif edge.input is Input.RESET and edge.level:
            self._reset("the machine's reset input", "pressed", now.ns)
        elif edge.input is Input.CHANGE_OVER and edge.recipe is not None:
            self._change_recipe(edge.recipe)
        return self.interlocks.edge(edge, held)

    def _why_unable(self, now_ns: int) -> str:
        """Why nothing may pass, the most lasting cause first; empty: it may."""
        if self._latch.faults:
            return f"fault {self._latch.first.name.lower()}"
        if self._trouble:
            return "driver"
        if unknown := self.interlocks.unknown():
            return f"{unknown[0]} not known"
        if self._beat is None:
            return "silence"
        if self._beat.state not in (GateState.READY, GateState.DEGRADED):
            return f"gate {self._beat.state.value}"
        return "" if self._clock_is_known(self._beat, now_ns) else "clock"

    def _clock_is_known(self, beat: Heartbeat, now_ns: int) -> bool:
        if beat.boot_id == self._boot_id:
            return True
        clock, match = self._channel.clock, self._actuator.match
        if not clock.known or clock.boot_id != beat.boot_id:
            return False
        window_ms = match.window_ms if isinstance(match, MatchByTime) else self._actuator.max_age_ms
        return clock.bound_ns(now_ns) <= window_ms * _MS

    def _set_outputs(self, now: Now) -> None:
        rest = self._actuator.at_rest == "reject"
        if self._commissioning:
            if rest and self.in_flight.parts:  # a test fire opens the way, and here comes a part
                self._firing_until_ns = 0
            wanted = rest is (now.ns >= self._firing_until_ns)
        else:
            wanted = self.in_flight.ejects(now) or (bool(self.unable) and self._safe_level())
        if wanted is not self._ejecting and self._try(lambda: self._driver.eject(wanted)):
            self._ejecting = wanted
        if self._trouble:
            self._look_for_its_end()
            return
        mode = self._actuator.commissioning
        silent = bool(self.unable) or (bool(self._commissioning) and (mode is None or mode.line_ok == "stops"))
        if not silent and now.ns - self._line_ok_ns >= self._actuator.line_ok_ms * _MS:
            self._line_ok_ns, level = now.ns, not self._line_ok
            self._line_ok = level
            self._try(lambda: self._driver.line_ok(level))

    def _look_for_its_end(self) -> None:
        """The driver's trouble is over with a turn in which it did all that it was asked. LINE-OK is among that, at the
        level that it has."""
        level = self._line_ok
        if level is not None:
            self._try(lambda: self._driver.line_ok(level))
        if not self._failed:
            self._log.info("driver_works_again")
            self._trouble = ""
        self._failed = False

    def _keep(self, now_ns: int) -> None:
        """What may wait until the outputs are set: reports, requests, the disk."""
        self._report()
        if self._latch.unsaved and now_ns >= self._save_ns:
            self._latch.save()
            self._save_ns = now_ns + SAVE_AGAIN_NS if self._latch.unsaved else 0
        if now_ns - self._show_ns < SHOW_NS:
            return
        self._show_ns = now_ns
        if request := self._panel.take():
            self._obey(request, now_ns)
        self._panel.show(
            name=self._actuator.name,
            gate=self._beat.state.value if self._beat else None,
            unable=self.unable,
            trouble=self._trouble,
            faults=[{"fault": f.fault.name.lower(), "detail": f.detail} for f in self._latch.faults],
            commissioning=bool(self._commissioning),
            parts=self.in_flight.parts,
            counters=dict(self.in_flight.counters + self.interlocks.counters),
        )

    def _report(self) -> None:
        """Tell the driver what has changed of gate, fault, commissioning and recipe."""
        gate = self._beat.state if self._beat else None
        fault = self._latch.first or (Fault.DRIVER if self._trouble else Fault.NONE)
        fault = fault or {"silence": Fault.SILENCE, "clock": Fault.CLOCK}.get(self.unable, Fault.NONE)
        status = Status(gate, fault, bool(self._commissioning), self._recipe_numbers.get(self._recipe, 0))
        if status != self._reported and self._try(lambda: self._driver.report(status)):
            self._reported = status

    def _obey(self, request: Request, now_ns: int) -> None:
        if request.wish == "reset":
            said, refused = self._reset(request.who, request.why, now_ns)
            self._panel.answer(request, said, refused)
        elif not self._actuator.has_ejector:
            self._panel.answer(request, "the PLC has the ejector, and fires it itself: there is none of ours", True)
        elif not self._commissioning:
            self._panel.answer(request, "a test fire needs commissioning mode: in production parts are there", True)
        elif self._actuator.at_rest == "reject" and self.in_flight.parts:
            self._panel.answer(request, "a test fire opens the way, and parts are on it: try again without them", True)
        else:
            try:
                self._audit.record("actuator.test_fire", request.who, actuator=self._actuator.name, why=request.why)
            except MasklineError as error:
                self._panel.answer(request, str(error), True)
                return
            self._firing_until_ns = now_ns + TEST_FIRE_NS
            self._panel.answer(request, f"the ejector acts for {TEST_FIRE_NS // _MS} ms")

    def _reset(self, who: str, why: str, now_ns: int) -> tuple[str, bool]:
        """Reset every fault; what to say of it, and whether it was refused."""
        try:
            removed = self._latch.reset(who, why)
        except MasklineError as error:
            self._log.error("reset_refused", error=str(error))
            return str(error), True
        self.interlocks.reset()
        self.in_flight.lose("reset", now_ns)
        names = ", ".join(f.fault.name.lower() for f in removed) or "nothing was latched"
        self._log.info("reset", who=who, why=why, faults=names)
        return f"reset: {names}", False

    def _set_commissioning(self, who: str, now_ns: int) -> None:
        """Enter (somebody's) or leave (nobody's) commissioning mode; parts in flight are rejected either way."""
        if bool(who) is bool(self._commissioning):
            return
        if who and self._actuator.commissioning is None:
            self._log.warning("no_commissioning_mode", why="the recipe names none for this actuator")
            return
        what = "actuator.commissioning" if who else "actuator.production"
        try:
            self._audit.record(what, who or self._commissioning, actuator=self._actuator.name)
        except MasklineError as error:
            self._log.error("audit_refused", error=str(error))
            if who:  # not without a record; leaving is safe in any case
                return
        self._commissioning, self._firing_until_ns = who, 0
        self.in_flight.lose("commissioning", now_ns)
        self._log.warning("commissioning" if who else "production", who=who)

    def _count(self) -> int | None:
        try:
            return self._driver.count()
        except DriverError as error:
            self._fail(error)
            return None

    def _try(self, act: Callable[[], None]) -> bool:
        """Whether the driver did it."""
        try:
            act()
        except DriverError as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: DriverError) -> None:
        if not self._trouble:
            self._log.error("driver", error=str(error))
            self.in_flight.lose("driver", self._clock())
        self._trouble, self._failed, self._ejecting = str(error), True, None

    def _safe_level(self) -> bool:
        return safe_level(self._actuator, self._safe_state, inhibited=bool(self._commissioning))


def _not_ejected(part: Decided) -> Decided:
    """What was decided, of an ejector that rests whatever it is."""
    return replace(part, outcome=replace(part.outcome, ejected=False))
