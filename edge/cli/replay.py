"""`maskline replay`: a recording through the whole line again, or through one process of it. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from calib.calibration import Calibration
    from edge.replay.compare import Comparison
    from edge.replay.run import ReplayOptions, ReplayResult
    from edge.settings import Recipe

__all__ = ["replay"]


def replay(
    recordings: Annotated[
        list[str], typer.Argument(help="Recordings, .mcap, or patterns: 'recordings/*.mcap'.", metavar="RECORDING...")
    ],
    recipe: Annotated[str | None, typer.Option(help="Another recipe than the recorded one.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Another calibration than the recorded one.")] = None,
    speed: Annotated[
        Literal["1", "max"], typer.Option(help="1: live, at the recorded times; max: lossless, as fast as it goes.")
    ] = "max",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="With what was recorded, or with --reference; 1 if it differs or cannot be."),
    ] = False,
    reference: Annotated[Path | None, typer.Option(help="A file of references, to compare with or to update.")] = None,
    update_reference: Annotated[
        bool, typer.Option("--update-reference", help="Write what this replay says to the file of references.")
    ] = False,
    process: Annotated[
        str | None,
        typer.Option(help="Only this one, on its recorded inputs: prepare, detect, judge, gate."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Do not compare this field; views.FIELD of a view; repeatable.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, max=1, help="Scores may differ by this share of the threshold.")
    ] = None,
    diff: Annotated[
        Path | None,
        typer.Option(help="Where all differences of one recording go, if there are any; default: replay-diff.txt."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="What would change side with another recipe or calibration, with pictures (what-if.html); of several "
            "recordings, what became of each (replays.txt)."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the journal and the pictures in this new folder.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here, as one flat object.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Replay so many recordings at once; default: what the cores allow.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Replay on a Ray cluster: HOST:PORT of its head, or auto.", metavar="ADDRESS")
    ] = None,
) -> None:
    """Run a recording through the line again: the same processes, and verdicts that nobody acts on.

    With --recipe or --calibration and without --compare it says which parts would change side, and writes a report.
    """
    from edge.bench import write_json
    from edge.cli.fleet import recording_paths, replay_fleet, require_one
    from edge.replay.alone import require_alone
    from edge.replay.run import ReplayOptions

    paths = recording_paths(recordings)
    recording, several = paths[0], len(paths) > 1 or ray is not None
    if several:
        require_one(reference=reference, update_reference=update_reference, out=out, diff=diff)
    another = bool(recipe or calibration) and not (compare or update_reference or process)
    what_if = another and not several and (reference is not None or _has_verdicts(recording))
    options = ReplayOptions(
        recipe=_recipe(recipe),
        calibration=_calibration(calibration),
        live=speed == "1",
        expected=_expected(compare or what_if, reference, update_reference, process),
        tolerance=tolerance,
        ignore=_fields(ignore or []),
        out=out,
    )
    if process is not None:
        require_alone(process, options)
    console = Console(soft_wrap=True)
    if several:
        replay_fleet(
            paths,
            options,
            process=process,
            what_if=another,
            ray=ray,
            workers=workers,
            report=report,
            json_path=json_path,
            console=console,
        )
        return
    result = _replay(recording, options, process, console)
    _summarise(result, console, what_if)
    if json_path:
        write_json(json_path, result.figures())
    if reference and update_reference:
        _update(reference, result, console)
    if what_if:
        _report(recording, options, result, report or Path("what-if.html"), console)
    elif result.comparison:
        _require_same(recording, result.line, result.comparison, diff or Path("replay-diff.txt"))


def _recipe(given: str | None) -> Recipe | None:
    from edge.recipes import load_recipe

    return None if given is None else load_recipe(given)


def _calibration(given: Path | None) -> Calibration | None:
    from calib.calibration import load_calibration
    from edge.errors import CalibrationError

    if given is None:
        return None
    found = load_calibration(given)
    if found is None:
        raise CalibrationError(f"{given}: no calibration here; name the file that `maskline calibrate` wrote")
    return found


def _has_verdicts(path: Path) -> bool:
    from edge.recording import Recording

    return next(Recording(path).verdicts(), None) is not None


def _expected(
    compare: bool, reference: Path | None, update: bool, process: str | None
) -> Literal["recorded"] | Path | None:
    from edge.errors import MasklineError

    if process is not None and reference is not None:
        raise MasklineError("--process compares with what was recorded; leave --reference out")
    if update and reference is None:
        raise MasklineError("--update-reference: name the file that is to be written with --reference")
    if update and compare:
        raise MasklineError("--update-reference writes what is said now; compare in a run of its own")
    if update:
        return None
    return reference or ("recorded" if compare else None)


def _fields(ignored: list[str]) -> tuple[str, ...]:
    from edge.errors import MasklineError
    from edge.replay.outcome import known_fields

    if unknown := sorted(set(ignored) - set(known_fields())):
        raise MasklineError(f"--ignore {unknown[0]}: no such field; there are: {', '.join(known_fields())}")
    return tuple(ignored)


def _replay(recording: Path, options: ReplayOptions, process: str | None, console: Console) -> ReplayResult:
    from calib.run import progress_bars
    from edge.replay.alone import replay_process
    from edge.replay.run import replay_recording

    if process is not None:
        return replay_process(recording, process, options)
    with progress_bars(console) as bars:
        bar = bars.add_task(f"replaying {recording.name}", total=None)
        return replay_recording(
            recording, options, lambda done, total: bars.update(bar, completed=min(done, total), total=total)
        )


def _summarise(result: ReplayResult, console: Console, what_if: bool) -> None:
    from rich.markup import escape

    from edge.replay.differences import short_text

    said = ", ".join(f"{count} {name}" for name, count in result.decisions.items())
    console.print(f"{len(result.outcomes)} parts: {said}", highlight=False)
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False)
    if result.comparison and not what_if:
        console.print(escape(short_text(result.comparison)), highlight=False)


def _update(reference: Path, result: ReplayResult, console: Console) -> None:
    from edge.bench import machine
    from edge.replay.references import References, write_references

    write_references(reference, References(Path(result.recording).name, machine(), result.outcomes))
    console.print(f"References: {reference}")


def _require_same(recording: Path, line: str, found: Comparison, diff: Path) -> None:
    """Raise MasklineError where anything differs, or where nothing says that it does not."""
    from edge.errors import MasklineError, ResourceError
    from edge.replay.differences import long_text

    if not found.same:
        try:
            diff.write_text(long_text(found, f"{recording}: {line}"), encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"{diff}: cannot write the differences: {error.strerror or error}") from error
        raise MasklineError(f"{recording}: not what was expected; all differences: {diff}")
    if not found.parts:
        raise MasklineError(
            f"{recording}: nothing was compared: {found.apart_parts} parts are told apart, for the reasons above, and "
            "there are no others, so this says nothing of the line"
        )


def _report(recording: Path, options: ReplayOptions, result: ReplayResult, report: Path, console: Console) -> None:
    from edge.replay.what_if import what_if, write_what_if

    found = what_if(recording, options, result)
    write_what_if(found, report)
    console.print(f"{found.summary}\nReport: {report}", highlight=False)
