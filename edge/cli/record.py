"""`maskline record`, and what `maskline run --record` means. Thin, as `edge.cli` is."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["record", "record_with"]


def record_with(folder: Path | None) -> None:
    """Have every recipe that this process reads record, into `folder` if one is given: the one that the line starts
    with, and those that it changes over to."""
    os.environ.setdefault("MASKLINE__RECORDING", "{}")
    if folder is not None:
        os.environ["MASKLINE__RECORDING__FOLDER"] = str(folder.absolute())


def record(
    recipe: Annotated[str, typer.Argument(help="A recipe: its sources are what is recorded.", metavar="RECIPE")],
    out: Annotated[Path, typer.Option(help="The recording, .mcap; or a folder: then as [recording] rolls and keeps.")],
) -> None:
    """Record the sources of a recipe without judging them, until they end or Ctrl-C: no calibration is needed."""
    from edge.logs import configure_logs
    from edge.recipes import load_recipe
    from edge.recorder.sources import record_sources

    configure_logs("record")
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    console = Console(soft_wrap=True)
    try:
        console.print(record_sources(load_recipe(recipe), out, stop))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
