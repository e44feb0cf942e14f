"""What happens on a line, for people: a line of text per verdict, as they come."""

from __future__ import annotations

from datetime import datetime, timezone

from rich.console import Console
from rich.markup import escape

from edge.messages import Heartbeat, Verdict
from edge.supervisor import Supervisor
from edge.verdict import Decision, GateState
from edge.verdicts import Event, Gap, Refused, Silence, Subscriber

__all__ = ["Watcher", "describe_verdict", "show_while_running"]

_STYLE = {Decision.PASS: "green", Decision.REJECT: "bold red", Decision.UNINSPECTED: "yellow"}
_STATE_STYLE = {GateState.READY: "green", GateState.DEGRADED: "yellow"}


def describe_verdict(verdict: Verdict) -> str:
    """One line, with rich's markup: time, lane, part, verdict, score against threshold, latency."""
    when = datetime.fromtimestamp(verdict.decided_utc_ns / 1e9, timezone.utc).strftime("%H:%M:%S.%f")[:-3]
    said = verdict.decision.value + (f" ({verdict.reason.value})" if verdict.reason else "")
    score = "-" if verdict.score is None else f"{verdict.score:.4g}"
    threshold = "-" if verdict.threshold is None else f"{verdict.threshold:.4g}"
    waited_ms = (verdict.decided_ns - verdict.trigger_ns) / 1e6
    notes = (" late" if verdict.late else "") + (" simulated" if verdict.simulated else "")
    style = _STYLE[verdict.decision]
    return (
        f"[dim]{when}Z[/] {escape(verdict.lane):<12} part {verdict.part:>6}  [{style}]{said:<24}[/] "
        f"score {score:>7} / {threshold:>7}  {waited_ms:7.0f} ms[dim]{notes}[/]"
    )


class Watcher:
    """Prints what happens on a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._health: tuple[GateState, tuple[str, ...]] | None = None
        self.heard = False

    def show(self, event: Event) -> None:
        """Print one event; heartbeats only when the gate's state or its trouble changes."""
        if isinstance(event, Verdict):
            self._console.print(describe_verdict(event), highlight=False)
        elif isinstance(event, Heartbeat):
            health = (event.state, tuple(event.trouble))
            if health != self._health:
                style, trouble = _STATE_STYLE.get(event.state, "yellow"), "; ".join(event.trouble)
                self._console.print(f"[{style}]line {event.line} is {event.state.value}[/] {escape(trouble)}")
            self._health, self.heard = health, True
        elif isinstance(event, Silence):
            self._health = None
            what = "SILENCE: no heartbeat" if self.heard else "nothing heard yet"
            self._console.print(f"[bold red]{what} for {event.for_ms} ms, nothing may be passed[/]")
        elif isinstance(event, Gap):
            self._console.print(f"[yellow]lane {event.lane}: verdicts {event.first} to {event.last} did not arrive[/]")
        elif isinstance(event, Refused):
            self._console.print(f"[yellow]a message was refused: {escape(event.why)}[/]")


def show_while_running(supervisor: Supervisor, console: Console) -> None:
    """Run a line and print its verdicts as they are published."""
    watcher = Watcher(console)
    with Subscriber(supervisor.endpoint, supervisor.recipe.line) as line:

        def show() -> None:
            while events := line.poll(0):
                for event in events:
                    if watcher.heard or not isinstance(event, Silence):  # a line that starts is silent by right
                        watcher.show(event)

        supervisor.run(on_tick=show)
        show()
