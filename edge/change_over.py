"""Change-over: a running line gets another recipe, without a moment in which two recipes are in force.

Whoever wants it leaves a request in the line's runtime folder, which only its user may enter: `maskline recipe use`, or
the actuator that a PLC told. The supervisor reads the recipe itself, as it would at a start, and refuses what the line
could not run with; the line then goes on as it was. Otherwise parts in flight are finished or become
UNINSPECTED(change_over), every process ends, and the line starts with the other recipe: until all are up, it is
NOT_READY. What was chosen last is what the line starts with next time, whatever its unit file says.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge.errors import CalibrationError, MasklineError, RecipeError, ResourceError
from edge.paths import calibration_path, write_durably
from edge.recipes import load_recipe
from edge.settings import Recipe, scoring_sha256

if TYPE_CHECKING:
    from edge.plan import LinePlan

__all__ = [
    "ChangeOverError",
    "Request",
    "answer",
    "ask",
    "plan_change",
    "recipe_to_run",
    "remember",
    "take",
    "use",
]

MAX_REQUEST_BYTES = 1 << 16
POLL_S = 0.05


class ChangeOverError(MasklineError):
    """The line did not change over; the message says what it runs with now."""


@dataclass(frozen=True)
class Request:
    """Another recipe is wanted."""

    recipe: str  # a path, or the name of one that ships
    who: str
    token: str  # of this request; the answer carries it


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    token: str
    done: bool  # the line runs with it; every process is up
    refused: str  # why not; empty while it is under way


def use(
    recipe: str, who: str, runtime_dir: Path, timeout_s: float, still: Callable[[str], None] = lambda _: None
) -> None:
    """Have the line of this runtime folder change over, and wait until it has. `still` is told what goes on.

    Raises ChangeOverError when the line refuses, does not run, or is not up again after `timeout_s`.
    """
    token = ask(recipe, who, runtime_dir)
    give_up, taken = time.monotonic() + timeout_s, False
    while time.monotonic() < give_up:
        found = _read_answer(runtime_dir)
        if found is not None and found.token == token:
            if found.refused:
                raise ChangeOverError(found.refused)
            if found.done:
                return
            if not taken:
                still("parts in flight are finished; the line is NOT_READY until every process is up")
            taken = True
        time.sleep(POLL_S)
    if not taken:
        with contextlib.suppress(FileNotFoundError):
            _request_path(runtime_dir).unlink()
        raise ChangeOverError(f"{runtime_dir}: nobody took the request in {timeout_s:.0f} s; does the line run?")
    raise ChangeOverError(f"the line was not up {timeout_s:.0f} s after the change-over began; its log says why")


def ask(recipe: str, who: str, runtime_dir: Path) -> str:
    """Leave a request and return its token. Raises ChangeOverError when there is no such line."""
    path = Path(recipe)
    request = Request(str(path.resolve()) if path.exists() else recipe, who, secrets.token_hex(8))
    try:
        write_durably(_request_path(runtime_dir), json.dumps(asdict(request)).encode())
    except OSError as error:
        raise ChangeOverError(
            f"{runtime_dir}: cannot ask this line: {error.strerror}; does it run, and as this user?"
        ) from error
    return request.token


def take(runtime_dir: Path) -> Request | None:
    """The request that was left, once; None when there is none. Raises ChangeOverError for one that is garbled."""
    path = _request_path(runtime_dir)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_REQUEST_BYTES)
        path.unlink()
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(data)
        return Request(str(fields["recipe"]), str(fields["who"]), str(fields["token"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChangeOverError(f"{path}: not a request: {error!r}") from error


def answer(runtime_dir: Path, request: Request, *, done: bool = False, refused: str = "") -> None:
    """Say what became of a request."""
    with contextlib.suppress(OSError):  # whoever asked gives up after a while; the line goes on
        write_durably(_answer_path(runtime_dir), json.dumps(asdict(Answer(request.token, done, refused))).encode())


def plan_change(request: Request, line: str, state_dir: Path) -> LinePlan:
    """The plan of the line with the recipe that is wanted, its bundles loaded and checked.

    Raises MasklineError for what it could not run with: a broken recipe, one of another line, a missing bundle, no
    calibration for it.
    """
    from calib.calibration import load_calibration  # an actuator asks and plans nothing
    from edge.plan import plan_line

    recipe = load_recipe(request.recipe)
    if recipe.line != line:
        raise RecipeError(f"{request.recipe}: a recipe of line {recipe.line}, and this is line {line}")
    plan = plan_line(recipe)
    path = calibration_path(state_dir, recipe.name)
    calibration = load_calibration(path)
    if calibration is None:
        raise CalibrationError(f"{path}: not there; first: maskline calibrate {request.recipe} --good FOLDER")
    for name, station in plan.stations.items():
        known = calibration.stations.get(name)
        made_for = known and (known.provenance.bundle_sha256, known.provenance.recipe_sha256)
        if made_for != (station.bundle.sha256, scoring_sha256(station.station)):
            raise CalibrationError(
                f"{path}: {'made for another bundle or recipe' if known else 'nothing'} for station {name}; first: "
                f"maskline calibrate {request.recipe} --good FOLDER"
            )
    return plan


def remember(state_dir: Path, request: Request) -> None:
    """From now on the line starts with this recipe. Raises ResourceError."""
    said = {"recipe": request.recipe, "who": request.who}
    try:
        write_durably(_chosen_path(state_dir), f"{json.dumps(said)}\n".encode())
    except OSError as error:
        raise ResourceError(f"{_chosen_path(state_dir)}: cannot write what was chosen: {error.strerror}") from error


def recipe_to_run(given: Recipe, state_dir: Path) -> Recipe:
    """What the line starts with: the recipe that it changed over to last, as its file is now; `given` if it never did.

    Raises RecipeError, also when what was chosen cannot be known: then neither of the two is sure to be right.
    """
    path = _chosen_path(state_dir)
    try:
        chosen = str(json.loads(path.read_bytes())["recipe"])
    except FileNotFoundError:
        return given
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: does not say which recipe was chosen last ({error}); remove it to start with the one given"
        ) from error
    recipe = load_recipe(chosen)
    if recipe.line != given.line:
        raise RecipeError(f"{chosen}: the line changed over to it, and now it is a recipe of line {recipe.line}")
    structlog.get_logger().info("recipe_in_use", recipe=chosen, name=recipe.name, sha256=recipe.sha256)
    return recipe


def _request_path(runtime_dir: Path) -> Path:
    return runtime_dir / "change_over.json"


def _answer_path(runtime_dir: Path) -> Path:
    return runtime_dir / "change_over.answer.json"


def _chosen_path(state_dir: Path) -> Path:
    return state_dir / "recipe_in_use.json"


def _read_answer(runtime_dir: Path) -> Answer | None:
    try:
        fields = json.loads(_answer_path(runtime_dir).read_bytes())
        return Answer(str(fields["token"]), bool(fields["done"]), str(fields["refused"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
