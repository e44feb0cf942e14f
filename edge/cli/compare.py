"""`maskline compare` and `maskline bootstrap`: detectors beside each other. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["bootstrap", "compare"]


def compare(
    recipe: Annotated[str, typer.Argument(help="A recipe: its tiling, mask plan and backend.", metavar="RECIPE")],
    data: Annotated[list[Path], typer.Option(help="A category in MVTec-AD's layout, or a folder of them; repeatable.")],
    engines: Annotated[
        str | None, typer.Option(help="Engines, separated by commas; default: all. A bundle is taken as it is.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Of each fit; default: the engine's own.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the networks; `maskline engines` lists them.")] = None,
    tile_px: Annotated[int | None, typer.Option(help="Side of their tiles.")] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Three channels.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Of every engine that is fitted; repeatable; see `fit`."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the crops.")] = 0,
    station: Annotated[str | None, typer.Option(help="Of the recipe; default: its first.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Leave fitted bundles here; the next call finds them.")] = None,
    false_reject_rate: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Wanted, of good parts.")] = 0.01,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the threshold.")] = 0.95,
    details: Annotated[
        Path | None, typer.Option(help="Write what was said of each image (.npz, for `maskline bootstrap`).")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here, as one flat object.")
    ] = None,
) -> None:
    """Fit, calibrate and measure engines on your own images, and print a leaderboard.

    Every folder in DATA holds CATEGORY/train/good (all that is learnt from), CATEGORY/test/good, CATEGORY/test/DEFECT
    and CATEGORY/ground_truth/DEFECT/NAME_mask.png. Defects whose folder's name ends in _tiny are reported apart: they
    count in no figure but those that say `with_tiny`, and their own. Needs the extra `train`.
    """
    from calib.compare import Choice
    from calib.compare import compare as run
    from calib.datasets import find_categories
    from calib.details import save_details
    from calib.fitting import Targets
    from calib.kept_fits import FitChoice
    from calib.leaderboard import by_defect, flat, leaderboard
    from edge.bench import machine, write_json
    from edge.errors import MasklineError
    from edge.recipes import load_recipe
    from engines.registry import ENGINES

    line, console = load_recipe(recipe), Console(soft_wrap=True)
    stations = [s.name for s in line.stations]
    if station is not None and station not in stations:
        raise MasklineError(f"--station {station!r}: the recipe has {', '.join(stations)}")
    choice = Choice(
        engines=tuple(dict.fromkeys(engines.split(","))) if engines else tuple(ENGINES),
        fit=FitChoice(
            size, tile_px, channels=3 if colour else 1, steps=steps, seed=seed, settings=tuple(settings or ())
        ),
        seed=seed,
        targets=Targets(false_reject_rate=false_reject_rate, confidence=confidence),
    )
    results = run(line, station or stations[0], find_categories(data), choice, keep=keep, console=console)
    console.print(f"machine: {machine()}", *leaderboard(results), by_defect(results), sep="\n")
    if json_path:
        write_json(json_path, flat(results))
    if details:
        save_details(details, {(r.category, r.engine): r.evaluation.details for r in results})


def bootstrap(
    ours: Annotated[
        str, typer.Argument(help="What `maskline compare --details` wrote: a file, or several, separated by commas.")
    ],
    theirs: Annotated[str, typer.Argument(help="The same of another detector, of the same test images; or OURS.")],
    detector: Annotated[str | None, typer.Option(help="In OURS; default: the only one.")] = None,
    against: Annotated[str | None, typer.Option(help="In THEIRS; default: the only one.")] = None,
    resamples: Annotated[int, typer.Option(min=100)] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here, as one flat object.")
    ] = None,
) -> None:
    """Say by how much a detector is better than another over all categories, and how sure that is.

    The difference of the mean image AUROC and of the mean pixel AUROC, each with its 95 % interval by paired bootstrap
    over the test images; with and without the defects whose kind ends in _tiny.
    """
    from calib.details import load_all_details
    from calib.head_to_head import FEW, head_to_head
    from edge.bench import write_json

    console = Console(soft_wrap=True)
    left, right = (load_all_details([Path(name) for name in side.split(",")]) for side in (ours, theirs))
    found = head_to_head(left, right, detector, against, resamples=resamples, seed=seed)
    console.print(*found.tables(), f"* under {FEW} defective images: a single one decides", sep="\n")
    if json_path:
        write_json(json_path, found.flat())
