"""`maskline bench`: what this machine does, against its budgets. Thin, as `edge.cli` is."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edge.bench import Budget
from edge.errors import MasklineError

__all__ = ["bench"]


def bench(
    name: Annotated[
        str, typer.Argument(help="transport, pipeline, memory, engine, cascade, gate, record, replay, faults, or all.")
    ] = "all",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here, as one flat object.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How many, in a bench that has rounds: faults, gate; default: its own.")
    ] = None,
) -> None:
    """Measure this machine: a table for people, --json for programs. Exit code 1 when a budget does not hold."""
    from edge.bench import BENCHES, machine, write_json

    if name not in (*BENCHES, "all"):
        raise MasklineError(f"bench {name!r}: there is no such bench; there are: {', '.join(BENCHES)}, all")
    console = Console(soft_wrap=True)
    console.print(f"machine: {machine()}")
    figures: dict[str, float] = {}
    broken = []
    for bench_name in BENCHES if name == "all" else [name]:
        module = importlib.import_module(f"edge.bench.{bench_name}")
        takes_rounds = rounds is not None and "rounds" in inspect.signature(module.run).parameters
        with console.status(bench_name) as status:
            found = module.run(
                progress=lambda text, n=bench_name: status.update(f"{n}: {text}"),
                **({"rounds": rounds} if takes_rounds else {}),
            )
        broken += _print_figures(console, BENCHES[bench_name], found, module.BUDGETS)
        figures |= found
    if json_path:
        write_json(json_path, figures)
    if broken:
        raise MasklineError(f"over budget: {', '.join(broken)}")


def _print_figures(console: Console, title: str, figures: dict[str, float], budgets: dict[str, Budget]) -> list[str]:
    """Print one bench's table; returns the figures that break their budget."""
    table = Table("figure", "value", "budget", title=title, title_justify="left")
    broken = [key for key, budget in budgets.items() if key in figures and not budget.holds(figures[key])]
    for key, value in figures.items():
        style = "red" if key in broken else "green" if key in budgets else ""
        table.add_row(key, f"{value:.4g}", str(budgets.get(key, "")), style=style)
    console.print(table)
    return broken
