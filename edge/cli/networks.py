"""`maskline fit`, `engines`, `engine import`: where networks come from, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from edge.errors import MasklineError

if TYPE_CHECKING:
    from edge.tiling import Scale
    from engines.listing import Row

__all__ = ["engines", "fit", "import_checkpoint"]


def fit(
    good: Annotated[Path, typer.Option(help="A folder of images of good parts.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; an interrupted run goes on where it stopped.")],
    engine: Annotated[str, typer.Option(help="Which network; `maskline engines` lists them.")] = "retouch",
    size: Annotated[str | None, typer.Option(help="Of a network with fresh weights.")] = None,
    tile_px: Annotated[int | None, typer.Option(help="Side of its tiles.")] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Three channels.")] = False,
    bundle: Annotated[
        str | None, typer.Option(help="Go on from this one instead: a bundle that ships, or a path.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Start from these: a vision transformer's (timm, Hugging Face); engine anovit.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="More steps repaint better; default: the engine's, minutes.")
    ] = None,
    resize: Annotated[str, typer.Option(help="The recipe's tiling.resize: a factor, or 'tile'.")] = "1",
    seed: Annotated[int, typer.Option(min=0, help="Of fresh weights and the crops.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="As objective=3; repeatable; `maskline engines ENGINE` lists them."
        ),
    ] = None,
) -> None:
    """Fit a network to images of good parts (extra `train`); leaves the loss curve and samples as pictures."""
    try:
        from engines.fit import fit as fit_network
        from engines.fit import from_bundle, from_scratch
    except ImportError as error:
        raise MasklineError(f"fit needs {error.name}: pip install 'maskline[train]'") from error
    said = settings or []
    if bundle and weights:
        raise MasklineError(f"--bundle {bundle} and --weights {weights}: fitting starts from one of them; name one")
    if bundle is None:
        start = from_scratch(
            engine,
            size=size,
            tile_px=tile_px,
            channels=3 if colour else 1,
            seed=seed,
            weights=weights,
            settings=said,
        )
    else:
        start = from_bundle(bundle, said)
    fitting = start.fitting.model_copy(update={"seed": seed} | ({} if steps is None else {"steps": steps}))
    made = fit_network(good, start, out, fitting, scale=_scale(resize))
    console = Console(soft_wrap=True)
    if getattr(made.manifest.architecture, "features", "") == "none":
        console.print("It looks at pixels alone; features rank better: pip install 'maskline[features]'")
    console.print(f"Bundle: {made.path} ({made.sha256[:12]}); it needs a calibration of its own")


def _scale(said: str) -> Scale:
    if said == "tile":
        return "tile"
    try:
        return float(said)
    except ValueError:
        raise MasklineError(f"--resize {said}: expected a factor, as 0.5, or tile") from None


def engines(
    engine: Annotated[
        str | None, typer.Argument(help="One of them: list what can be set of it, with `--set` of `fit` and `compare`.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Whose settings; default: the engine's first.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time them here, with fresh weights (extra `train`); minutes.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Instead: what they would cost on GPUs, on paper; Markdown tables.")
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here, as one flat object.")
    ] = None,
) -> None:
    """List the engines and their sizes: licence, parameters, work per tile by plan; or what can be set of one."""
    if engine is not None or size is not None:
        if engine is None or measure or paper or json_path:
            raise MasklineError("engines: settings are of one ENGINE, and measured is the list of all: ask one by one")
        Console(soft_wrap=True).print(_settings_table(engine, size))
        return
    from edge.bench import machine, write_json
    from engines import listing, roofline

    if paper:
        typer.echo("\n\n".join(roofline.tables()))
        return
    console = Console(soft_wrap=True)
    with console.status("counting") as status:
        rows = listing.counted(status.update)
        if measure:
            console.print(f"machine: {machine()}")
            rows = listing.measured(rows, progress=status.update)
    console.print(_engine_table(rows, measure))
    for line in listing.remarks(rows):
        console.print(line, highlight=False)
    console.print("what can be set of one: maskline engines ENGINE", highlight=False)
    if json_path:
        write_json(json_path, listing.figures(rows))


def _settings_table(engine: str, size: str | None) -> Table:
    from engines.registry import ENGINES
    from engines.settings import default_settings, listed

    rows = listed(default_settings(engine, size))
    size = size or next(iter(ENGINES[engine].sizes))
    name = Column("setting", no_wrap=True)  # to be copied
    table = Table(name, "default", "can be", "what it is", title=f"{engine}, size {size}")
    for row in rows:
        value = ",".join(map(str, row.value)) if isinstance(row.value, tuple) else json.dumps(row.value).strip('"')
        table.add_row(row.name, value, row.allowed, row.meaning)
    return table


def _engine_table(rows: list[Row], measured: bool) -> Table:
    table = Table("engine", "size", "tile", "M parameters", "plan", "GFLOP per tile")
    if measured:
        table.add_column("ms per tile")
    for before, row in zip([None, *rows], rows, strict=False):
        a, first = row.architecture, before is None or (before.engine, before.size) != (row.engine, row.size)
        whole = [row.engine, row.size, f"{a.tile_px} x {a.tile_px} x {a.channels}", _figure(row.million_parameters)]
        cells = [*(whole if first else [""] * 4), row.plan, _figure(row.gflop)]
        table.add_row(*cells, *([_figure(row.ms)] if measured else []))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth or .safetensors file, or a folder of Hugging Face's.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    tile_px: Annotated[int, typer.Option(help="224 as published; with patches of 16 pixels also 256.")] = 224,
    target: Annotated[
        str | None, typer.Option(help="What it predicts, pixels or normalised; default: what its name or config says.")
    ] = None,
    ssim_window: Annotated[int, typer.Option(help="7, 9 or 11.")] = 11,
    opening_px: Annotated[int, typer.Option(help="2 or 4; 0: none.")] = 2,
) -> None:
    """Make a bundle of a published masked autoencoder (facebookresearch/mae), which then needs no fitting."""
    try:
        from engines import checkpoints
    except ImportError as error:
        raise MasklineError(f"engine import needs {error.name}: pip install 'maskline[train]'") from error

    made = checkpoints.import_checkpoint(
        checkpoint, out, tile_px=tile_px, target=target, ssim_window=ssim_window, opening_px=opening_px
    )
    Console(soft_wrap=True).print(checkpoints.summary(made), highlight=False)
