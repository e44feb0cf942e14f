"""The commands about one line: check, calibrate, run, watch, report, and the simulations. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.cli.arguments import RecipeArgument, StateDir
from edge.cli.record import record_with
from edge.errors import MasklineError

__all__ = ["calibrate", "check", "demo", "report", "run", "simulate", "watch"]


def check(recipe: RecipeArgument) -> None:
    """Check a recipe: print it as it is resolved, and its hash; or say which field is wrong (exit code 78)."""
    from edge.plan import plan_line
    from edge.recipes import load_recipe

    resolved = load_recipe(recipe)
    plan = plan_line(resolved)
    console = Console(soft_wrap=True)
    console.print_json(resolved.model_dump_json())
    for name, station in plan.stations.items():
        count, height, width, channels = station.prepare.tiles_shape
        megabytes = station.layout.slot_bytes * station.layout.count / 2**20
        console.print(
            f"station {name}: {count} tile{'s' if count > 1 else ''} of {width} x {height} x {channels}, "
            f"bundle {station.bundle.manifest.name} ({station.bundle.sha256[:12]}), "
            f"{megabytes:.0f} MiB of shared memory"
        )
    if recording := resolved.recording:
        megabytes = recording.slots * sum(s.frame.nbytes for s in resolved.stations) / 2**20
        console.print(f"recording: {recording.encoding}, {megabytes:.0f} MiB of shared memory")
    console.print(f"sha256 {resolved.sha256}")


def run(
    recipe: RecipeArgument,
    state_dir: StateDir = None,
    show: Annotated[bool, typer.Option(help="Print verdicts as they come.")] = False,
    record: Annotated[bool, typer.Option(help="Record it, as the recipe's [recording] says.")] = False,
    recordings: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Record it, into this folder.")] = None,
) -> None:
    """Run a line until it is stopped (SIGTERM, Ctrl-C) or its sources end.

    With the recipe that `maskline recipe use` chose last, if it did.
    """
    from edge.change_over import recipe_to_run
    from edge.logs import configure_logs
    from edge.paths import runtime_dir
    from edge.recipes import load_recipe
    from edge.show import show_while_running
    from edge.supervisor import Supervisor

    configure_logs("supervisor")
    if record or recordings:
        record_with(recordings)
    given = load_recipe(recipe)
    state = _state(given.line, state_dir)
    supervisor = Supervisor(recipe_to_run(given, state), runtime_dir(given.line), state)
    if show:
        show_while_running(supervisor, Console(soft_wrap=True))
    else:
        supervisor.run()


def _state(line: str, chosen: Path | None) -> Path:
    from edge.paths import state_dir

    return chosen or state_dir(line)


def demo(
    out: Annotated[Path, typer.Option(help="Recordings, journal, pictures and report go here.")] = Path("out/demo"),
    parts: Annotated[
        int | None, typer.Option(min=4, help="Test parts per station; default: what fits two minutes.")
    ] = None,
) -> None:
    """Run a whole line on real photographs with painted defects: calibrate, inspect, report."""
    from edge.demo.run import run_demo

    run_demo(out, Console(soft_wrap=True), parts)


def simulate(
    out: Annotated[Path, typer.Argument(help="The recording to write, .mcap.")],
    texture: Annotated[list[str], typer.Option(help="STATION=PHOTOGRAPH (brick, grass, gravel); repeatable.")],
    parts: Annotated[int, typer.Option(min=1, help="Per station.")] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    half: Annotated[str, typer.Option(help="left (good parts only, for calibration), right, or whole.")] = "right",
    scale: Annotated[float, typer.Option(min=0.25, max=8, help="Frame pixels per pixel of the photograph.")] = 1.0,
    rate_hz: Annotated[float, typer.Option(min=0.01)] = 5.0,
    defect_share: Annotated[float, typer.Option(min=0, max=1)] = 0.2,
    roll: Annotated[bool, typer.Option(help="Frames follow each other on a web: for configs/roll.toml.")] = False,
) -> None:
    """Write a recording of simulated parts: photographs of textures with painted defects, and their truth."""
    from edge.demo.simulate import DEFAULT_FRAME, ROLL_FRAME
    from edge.demo.simulate import simulate as write

    named = {station: photograph or station for station, _, photograph in (t.partition("=") for t in texture)}
    made = write(
        *(out, named),
        parts=parts,
        seed=seed,
        half=half,
        frame=ROLL_FRAME if roll else DEFAULT_FRAME,
        scale=scale,
        rate_hz=rate_hz,
        defect_share=defect_share,
        roll=roll,
    )
    Console(soft_wrap=True).print(
        f"{made.path}: {made.parts} parts per station, with a defect: {made.bad}, kinds: {made.kinds}"
    )


def calibrate(
    recipe: RecipeArgument,
    good: Annotated[
        Path, typer.Option(help="Good parts only: a folder of images (one per station: a folder each), or a recording.")
    ],
    state_dir: StateDir = None,
    false_reject_rate: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Wanted, of good parts.")] = 0.01,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of what is said about it.")] = 0.95,
) -> None:
    """Compute the line's thresholds from good parts, and say what they can promise."""
    from calib.calibration import save_calibration
    from calib.fitting import Targets
    from calib.run import calibrate as compute
    from edge.paths import calibration_path, make_private
    from edge.recipes import load_recipe

    resolved = load_recipe(recipe)
    path = calibration_path(make_private(_state(resolved.line, state_dir)), resolved.name)
    targets = Targets(false_reject_rate=false_reject_rate, confidence=confidence)
    save_calibration(compute(resolved, good, targets=targets, console=Console(soft_wrap=True)), path)
    Console(soft_wrap=True).print(f"Calibration: {path}")


def watch(
    endpoint: Annotated[
        str, typer.Argument(help="A line on this machine by its name, or an endpoint such as tcp://HOST:PORT.")
    ],
    key: Annotated[Path | None, typer.Option(help="Our own NAME.key_secret, where the endpoint wants keys.")] = None,
    line_key: Annotated[str | None, typer.Option(help="The line's public key, or the file that holds it.")] = None,
) -> None:
    """Show verdicts as they come, and silence when they do not."""
    from edge.keys import load_pair, parse_public_key
    from edge.paths import runtime_dir, verdict_endpoint
    from edge.show import Watcher
    from edge.verdicts import Subscriber

    if (key is None) != (line_key is None):
        raise MasklineError("--key and --line-key go together: who we are, and whom we trust to be the line")
    pair, public = key and load_pair(key), line_key and parse_public_key(line_key)
    watcher = Watcher(Console(soft_wrap=True))
    try:
        where = endpoint if "://" in endpoint else verdict_endpoint(runtime_dir(endpoint))
        with Subscriber(where, pair=pair or None, line_key=public or None) as line:
            for event in line:
                watcher.show(event)
    except ValueError as error:
        raise MasklineError(str(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def report(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    state_dir: StateDir = None,
    truth: Annotated[Path | None, typer.Option(help="A recording that knows which parts were good.")] = None,
    run: Annotated[int | None, typer.Option(help="The run's number in the journal; default: the newest.")] = None,
) -> None:
    """Write the report of a run: one HTML file with pictures of rejects, misses and some passes."""
    from calib.report import summarise, write_report
    from edge.recipes import load_recipe
    from edge.report import collect_run

    collected = collect_run(_state(load_recipe(recipe).line, state_dir), truth, run)
    write_report(collected, out)
    Console(soft_wrap=True).print(f"{summarise(collected.parts)}\nReport: {out}")
