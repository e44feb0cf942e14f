"""`maskline recover`: what is done with recordings as files. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["recover"]


def recover(
    recording: Annotated[Path, typer.Argument(help="A recording that was cut or damaged, .mcap.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; default: NAME.recovered.mcap beside it.")] = None,
) -> None:
    """Make a whole recording of one that a crash cut, or that is damaged: the open chunk is lost, and damaged ones."""
    from edge.recording import Recording
    from edge.recording import recover as write

    console = Console(soft_wrap=True)
    found = Recording(recording)
    if found.complete:
        chunks = found.verify()
        if not found.damage:
            console.print(
                f"{recording}: complete: its index and the checksums of its {chunks} chunks are right; "
                "there is nothing to recover"
            )
            return
        for what in found.damage:
            console.print(f"{recording}: {what}")
    made = write(recording, out or recording.with_suffix(".recovered.mcap"))
    console.print(f"{made.path}: {made.messages} messages in {made.chunks} chunks; lost: {made.lost_bytes} bytes")
