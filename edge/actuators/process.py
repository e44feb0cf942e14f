"""`maskline actuate`: every actuator of a recipe, or one, each in a thread of this process.

The process lives as long as all of its actuators: when one of them cannot go on, it ends, and LINE-OK stops for all.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import threading
import time
from pathlib import Path

import structlog

from edge import change_over
from edge.actuators.drivers import open_drivers
from edge.actuators.latch import Latch, actuator_dir
from edge.actuators.loop import Loop, safe_level
from edge.actuators.panel import ActuatorError, Panel, hold
from edge.actuators.settings import Actuator, MatchByWeb
from edge.audit import AuditTrail, audit_path
from edge.errors import MasklineError, RecipeError
from edge.journal import boot_id
from edge.keys import load_pair, load_public_key
from edge.notify import Notifier
from edge.paths import channel_endpoint
from edge.recipes import load_recipe
from edge.settings import Recipe
from edge.verdicts import Channel
from edge.webs.geometry import WebGeometry, web_geometry

__all__ = ["actuate", "chosen"]

HANGS_S = 2.0
LOOK_S = 0.1


def chosen(recipe: Recipe, only: str | None) -> tuple[Actuator, ...]:
    """The actuators that are meant. Raises RecipeError when there is none of that name, or none at all."""
    if not recipe.actuators:
        raise RecipeError(f"line {recipe.line}: the recipe has no [[actuators]]")
    found = tuple(a for a in recipe.actuators if only in (None, a.name))
    if not found:
        raise RecipeError(f"no actuator {only!r}; the recipe has {', '.join(a.name for a in recipe.actuators)}")
    return found


def actuate(recipe: Recipe, only: str | None, state_dir: Path, runtime_dir: Path, commissioning: str = "") -> None:
    """Run actuators until SIGTERM or SIGINT. `commissioning`: who wants that mode; empty: nobody.

    Raises RecipeError, LineBusyError, DriverError, ResourceError; ActuatorError when one of them cannot go on.
    """
    actuators = chosen(recipe, only)
    if commissioning and (without := [a.name for a in actuators if a.commissioning is None]):
        raise RecipeError(
            f"actuator {without[0]}: has no commissioning mode; the recipe must say what LINE-OK does meanwhile: "
            'commissioning = { line_ok = "stops" }'
        )
    numbers = _recipe_numbers(recipe)
    over = threading.Event()
    before = {s: signal.signal(s, lambda *_: over.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    notifier = Notifier.from_environment()
    try:
        with contextlib.ExitStack() as owned:
            threads = [
                _Thread(recipe, numbers, a, state_dir, runtime_dir, commissioning, over, owned) for a in actuators
            ]
            for thread in threads:
                thread.start()
            notifier.ready()
            while not over.wait(LOOK_S):
                notifier.watchdog([t.name for t in threads if t.hangs])
            notifier.stopping()
            for thread in threads:
                thread.join()
        if failed := [t for t in threads if t.failure]:
            raise ActuatorError(f"{failed[0].name}: {failed[0].failure}")
    finally:
        notifier.close()
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


class _Thread(threading.Thread):
    """One actuator."""

    def __init__(
        self,
        recipe: Recipe,
        recipe_numbers: dict[str, int],
        actuator: Actuator,
        state_dir: Path,
        runtime_dir: Path,
        commissioning: str,
        over: threading.Event,
        owned: contextlib.ExitStack,
    ) -> None:
        super().__init__(name=actuator.name, daemon=True)
        self.failure: BaseException | None = None
        self._over = over
        self._context = contextvars.copy_context()  # its log says which process it is of
        self._turned = time.monotonic()
        owned.callback(os.close, hold(state_dir, actuator.name))
        audit = AuditTrail(audit_path(state_dir))
        latch = Latch(actuator_dir(state_dir, actuator.name), actuator.name, audit)
        panel = Panel(state_dir, runtime_dir, actuator.name)
        at_start = safe_level(actuator, recipe.safe_state, inhibited=bool(commissioning))
        driver = open_drivers(actuator.drivers, eject=at_start)
        owned.callback(driver.close)
        channel = owned.enter_context(_channel(recipe, actuator, runtime_dir))
        self._loop = Loop(
            actuator,
            recipe.safe_state,
            driver,
            channel,
            latch,
            panel,
            audit,
            boot_id=boot_id(),
            commissioning=commissioning,
            change_recipe=lambda number: _change(recipe, number, actuator.name, runtime_dir),
            recipe_numbers=recipe_numbers,
            webs=_webs(recipe, actuator),
        )

    @property
    def hangs(self) -> bool:
        """Whether it has not turned for a while."""
        return time.monotonic() - self._turned > HANGS_S

    def run(self) -> None:
        self._context.run(self._work)

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                self._loop.turn()
                self._turned = time.monotonic()
            self._loop.stop()
        except BaseException as error:  # whatever it is, nothing more may pass
            self.failure = error
            structlog.get_logger().exception("actuator_failed", actuator=self.name)
            with contextlib.suppress(Exception):
                self._loop.stop()
        finally:
            self._over.set()


def _recipe_numbers(recipe: Recipe) -> dict[str, int]:
    """What the PLC calls the recipes that it may ask for, by their hash, as their files are now."""
    numbers = {}
    for number, path in recipe.change_over.items():
        try:
            numbers[load_recipe(path).sha256] = number
        except MasklineError as error:
            structlog.get_logger().warning("change_over_recipe", number=number, error=str(error))
    return numbers


def _webs(recipe: Recipe, actuator: Actuator) -> dict[str, WebGeometry] | None:
    """What a marker's cameras see; None for an ejector."""
    if not isinstance(actuator.match, MatchByWeb):
        return None
    return {name: web_geometry(recipe.station(name)) for name in recipe.lane_views(actuator.lane)}


def _channel(recipe: Recipe, actuator: Actuator, runtime_dir: Path) -> Channel:
    endpoint = actuator.channel or channel_endpoint(runtime_dir)
    pair = load_pair(actuator.client_key) if actuator.client_key else None
    line_key = load_public_key(actuator.server_key) if actuator.server_key else None
    if actuator.insecure:
        log = structlog.get_logger()
        log.warning("insecure", actuator=actuator.name, channel=endpoint, who="whoever answers there is believed")
    try:
        return Channel(endpoint, line=recipe.line, name=actuator.name, pair=pair, line_key=line_key)
    except ValueError as error:
        raise RecipeError(f"actuator {actuator.name}: channel = {error}") from error


def _change(recipe: Recipe, number: int, name: str, runtime_dir: Path) -> None:
    """The PLC wants another recipe: pass it on to the line on this machine."""
    log = structlog.get_logger()
    wanted = recipe.change_over.get(number)
    if wanted is None:
        log.error("change_over_refused", error=f"the recipe names none with number {number}", actuator=name)
        return
    try:
        change_over.ask(str(wanted), f"PLC, through the actuator {name}", runtime_dir)
    except MasklineError as error:
        log.error("change_over_refused", error=str(error), actuator=name)
