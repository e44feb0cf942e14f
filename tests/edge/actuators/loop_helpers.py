"""An actuator's loop on a bench: hardware, channel and clock are the test's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.actuators.driver import Driver, DriverError, Edge, Input, PartOutcome, Status
from edge.actuators.latch import Latch, actuator_dir
from edge.actuators.loop import Loop
from edge.actuators.panel import Panel
from edge.audit import AuditTrail, audit_path
from edge.messages import Verdict
from edge.verdict import Decision
from edge.verdicts import Event
from edge.webs.geometry import WebGeometry
from tests.edge.actuators.actuator_helpers import BOOT, Events, actuator, heartbeat, verdict

MS = 1_000_000


class Hardware:
    """Records outputs; its inputs are what a test puts there."""

    def __init__(self) -> None:
        self.edges: list[Edge] = []
        self.encoder: int | None = 0
        self.ejecting: bool | None = None
        self.commands: list[bool] = []
        self.toggles = 0
        self.level = False
        self.told: list[PartOutcome] = []
        self.status: Status | None = None
        self.broken: set[str] = set()  # calls that fail
        self._failed = False  # one of this turn has

    def poll(self, timeout_ms: int) -> list[Edge]:
        self._failed = False
        self._obey("poll")
        edges, self.edges = self.edges, []
        return edges

    def count(self) -> int | None:
        self._obey("count")
        return self.encoder

    def eject(self, on: bool) -> None:
        self._obey("eject")
        self.commands.append(on)
        self.ejecting = on

    def line_ok(self, level: bool) -> None:
        self._obey("line_ok")
        if level is not self.level:
            assert not self._failed, "LINE-OK moves in a turn in which something failed"
            self.toggles, self.level = self.toggles + 1, level

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        self._obey("tell")
        self.told.append(part)

    def report(self, status: Status) -> None:
        self._obey("report")
        self.status = status

    def close(self) -> None: ...

    def _obey(self, call: str) -> None:
        if call in self.broken:
            self._failed = True
            raise DriverError(f"{call}: unplugged")


ALL = frozenset({"poll", "count", "eject", "line_ok", "tell", "report"})


class Bench:
    """A loop on a bench. One count is one millisecond."""

    def __init__(
        self,
        folder: Path,
        safe_state: str = "reject_all",
        commissioner: str = "",
        *,
        driver: Driver | None = None,
        webs: Mapping[str, WebGeometry] | None = None,
        **changes: Any,
    ) -> None:
        self.folder, self.ms = folder, 0
        self.hardware, self.channel = Hardware(), Events()
        self.driver, self.webs = driver or self.hardware, webs
        self.wanted: list[int] = []
        self.make = lambda: self._loop(safe_state, commissioner, changes)
        self.loop = self.make()

    def _loop(self, safe_state: str, commissioning: str, changes: dict[str, Any]) -> Loop:
        state, made = self.folder / "state", actuator(line_ok_ms=5, **changes)
        audit = AuditTrail(audit_path(state))
        latch = Latch(actuator_dir(state, made.name), made.name, audit)
        panel = Panel(state, self.folder / "run", made.name)
        clock: Callable[[], int] = lambda: self.ms * MS  # noqa: E731
        return Loop(
            *(made, safe_state, self.driver, self.channel, latch, panel, audit),
            boot_id=BOOT,
            webs=self.webs,
            commissioning=commissioning,
            change_recipe=self.wanted.append,
            clock=clock,
        )

    def turn(self, ms: int = 1, counts: int | None = None) -> None:
        self.ms += ms
        if self.hardware.encoder is not None:
            self.hardware.encoder += ms if counts is None else counts
        self.loop.turn()

    def run(self, ms: int) -> int:
        """Turn so often; how often LINE-OK moved."""
        before = self.hardware.toggles
        for _ in range(ms):
            self.turn()
        return self.hardware.toggles - before

    def hear(self, *events: Event) -> None:
        self.channel.events += events

    def input(self, which: Input, level: bool = True, **fields: Any) -> None:
        self.hardware.edges.append(Edge(which, level, self.ms * MS, **fields))

    def part(self, n: int, decision: Decision = Decision.PASS, boot_id: str = BOOT) -> bool:
        """Let a part be triggered, sensed and brought to the ejector; whether it was let pass."""
        made = verdict(n, decision, count=self.hardware.encoder, trigger_ns=self.ms * MS, boot_id=boot_id)
        self.run(20)
        self.hear(made)
        self.run(40)
        self.input(Input.SENSOR, count=self.hardware.encoder)
        self.input(Input.SENSOR, False, count=self.hardware.encoder)
        self.run(6)
        passed = self.way_is_open
        self.run(10)
        return passed

    @property
    def way_is_open(self) -> bool:
        return self.hardware.ejecting is False

    def ready(self) -> Bench:
        """A line that is ready, and an order of parts that is known."""
        self.hear(heartbeat())
        self.turn()
        self.part(0)
        assert self.part(1)
        assert self.hardware.ejecting is True
        return self


def audited(bench: Bench) -> list[dict[str, Any]]:
    path = audit_path(bench.folder / "state")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
