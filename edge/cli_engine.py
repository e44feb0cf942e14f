"""`maskline engine ...`: engines compiled for NVIDIA GPUs. Thin, as `edge.cli` is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.errors import EngineError

__all__ = ["engine"]

engine = typer.Typer(no_args_is_help=True, help="Compile bundles for NVIDIA GPUs (TensorRT), compare, prove.")

BundleArgument = Annotated[str, typer.Argument(help="A bundle that ships, or a path.", metavar="BUNDLE")]
Plans = Annotated[str, typer.Option(help="Mask plans, separated by commas; `cascade` needs x1,x16.")]
Precision = Annotated[str, typer.Option(help="f32, f16, bf16 or int8.")]
Batch = Annotated[int, typer.Option(min=1, max=1024, help="Tiles at a time; the line runs 1.")]
Good = Annotated[
    Path | None, typer.Option(help="Images of good parts; without them textures are made up. int8 needs them.")
]
Count = Annotated[int, typer.Option(min=2, max=10_000, help="How many tiles to compare on.")]


@engine.command()
def build(
    bundle: BundleArgument,
    plan: Plans = "x1",
    precision: Precision = "f16",
    target: Annotated[
        str | None, typer.Option(help="GPUs, such as sm86,sm120; default: the one in this machine.")
    ] = None,
    batch: Batch = 1,
    good: Good = None,
    tiles: Count = 48,
) -> None:
    """Build engines of a bundle and keep them; those for the GPU in this machine are verified at once."""
    from edge.samples import good_tiles
    from engines.backends.tensorrt.api import find_tensorrt
    from engines.backends.tensorrt.build import build_for
    from engines.backends.tensorrt.cache import EngineCache, EngineKey
    from engines.bundle import find_bundle, load_bundle

    if precision == "int8" and good is None:
        raise EngineError("--precision int8 takes the range of every activation from good parts: name them with --good")
    found, api, cache, console = load_bundle(find_bundle(bundle)), find_tensorrt(), EngineCache(), Console()
    calibration = good_tiles(found.manifest, good, tiles) if precision == "int8" else None
    gpus = [_this_gpu(api.targets)] if target is None else [(name.strip(), "") for name in target.split(",")]
    for wanted in plan.split(","):
        for gpu in gpus:
            key = EngineKey.of(found, wanted, precision, batch, flavour=api.flavour, version=api.version, gpu=gpu)
            stored = build_for(api, cache, found, key, calibration)
            size = stored.manifest.engine_bytes / 1e6
            console.print(f"{wanted} {precision} for {gpu[0]}, {size:.1f} MB: {stored.folder}", soft_wrap=True)
    if target is None:
        verify(bundle, plan, precision, batch, good, tiles)


@engine.command()
def verify(
    bundle: BundleArgument,
    plan: Plans = "x1",
    precision: Precision = "f16",
    batch: Batch = 1,
    good: Good = None,
    tiles: Count = 48,
) -> None:
    """Compare engines with the CPU's float32 answers; one that differs too much is not served (exit code 78)."""
    from edge.samples import samples
    from engines.backends.tensorrt.verify import TOLERANCES
    from engines.backends.tensorrt.verify import verify as compare
    from engines.bundle import find_bundle, load_bundle

    found, console, failed = load_bundle(find_bundle(bundle)), Console(), []
    chosen = samples(found.manifest, good, tiles)
    for wanted in plan.split(","):
        result = compare(found, wanted, precision, batch, chosen)
        console.print(
            f"{wanted} {precision}: largest error {result.max_error:.2g}, mean {result.mean_error:.2g}, "
            f"{result.agreement:.1%} of {result.tiles} decisions equal: {'passed' if result.passed else 'REFUSED'}",
            soft_wrap=True,
        )
        if not result.passed:
            failed.append(wanted)
    if failed:
        most = TOLERANCES[precision]
        raise EngineError(
            f"{precision} of {', '.join(failed)} differs from the CPU by more than {most.max_error} at most, "
            f"{most.mean_error} in the mean, or in more than {1 - most.agreement:.0%} of the decisions; "
            "it will not be served: build another precision"
        )


@engine.command()
def selftest() -> None:
    """Prove on this box that engines build, run, repeat and are refused when broken; says what it proved."""
    from edge.samples import samples
    from engines.backends.tensorrt.selftest import Box
    from engines.backends.tensorrt.selftest import selftest as run
    from engines.bundle import find_bundle, load_bundle

    console, found = Console(), load_bundle(find_bundle("texture-s"))
    with tempfile.TemporaryDirectory(prefix="maskline-engines-") as folder:
        run(
            Box(found, samples(found.manifest, None, 24), Path(folder)),
            lambda what, result: console.print(f"[green]proved[/green]  {what:24}{result}", soft_wrap=True),
        )
    console.print("all of it holds on this box")


def _this_gpu(targets: tuple[str, ...]) -> tuple[str, str]:
    """Compute capability and name of the GPU in this machine."""
    from engines.backends.tensorrt.api import find_tensorrt
    from engines.backends.tensorrt.device import CudaGpu

    try:
        gpu = CudaGpu(find_tensorrt())
    except EngineError as error:
        hint = f"; to build for others, name them: --target {','.join(targets)}" if targets else ""
        raise EngineError(f"{error}{hint}") from error
    gpu.close()
    return gpu.info.target, gpu.info.name
