"""`maskline export` and `import`: recordings to folders of images or videos, and back. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["export", "import_files"]


def export(
    recordings: Annotated[list[Path], typer.Argument(help="Recordings, the older first.", metavar="RECORDING...")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    video: Annotated[
        bool, typer.Option("--video", help="A video per station instead of images, with boxes and decisions drawn in.")
    ] = False,
) -> None:
    """Write the frames of recordings as folders of images in MVTec-AD's layout, a category for each station.

    OUT/STATION/train/good and test/good hold the good ones, test/KIND the defective ones, ground_truth/KIND their
    masks. What nobody knows better was good if the line passed it. `maskline fit`, `calibrate` and `compare` read
    these. With --video: OUT/STATION.mp4 (extra `video`).
    """
    from edge.export.images import export_images
    from edge.export.video import export_video

    console = Console(soft_wrap=True)
    with console.status("exporting") as status:
        made = (export_video if video else export_images)(recordings, out, status.update)
    for line in made:
        console.print(line, highlight=False, markup=False)


def import_files(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folders of images and video files: PATH, or STATION=PATH.", metavar="[STATION=]PATH..."),
    ],
    out: Annotated[Path, typer.Option(help="The recording to write, .mcap.")],
    rate_hz: Annotated[
        float | None, typer.Option(min=0.01, max=1000, help="Parts per second; default: a video's own, of images 5.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Keep the luminance only: recipes with one channel.")] = False,
) -> None:
    """Make a recording of folders of images and of videos: each image, each frame a part.

    A folder of folders (MVTec-AD's test/) is imported with its truth: `good`, or the kind of defect and its mask.
    """
    from edge.import_files import import_files as make

    console = Console(soft_wrap=True)
    with console.status("importing") as status:
        made = make(sources, out, rate_hz=rate_hz, grey=grey, progress=status.update)
    for line in made:
        console.print(line, highlight=False, markup=False)
