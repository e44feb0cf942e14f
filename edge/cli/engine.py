"""`maskline engine ...`: engines that are built before a line starts, for NVIDIA GPUs and int8 for the processor; and
networks that others have published.

Thin, as `edge.cli` is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from edge.cli.networks import import_checkpoint
from edge.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engines.backends.manifest import Verification
    from engines.backends.verify import Samples
    from engines.bundle import Bundle

__all__ = ["engine"]

engine = typer.Typer(no_args_is_help=True, help="Build engines (TensorRT, int8 with OpenVINO), compare, prove, import.")
engine.command("import")(import_checkpoint)

BundleArgument = Annotated[str, typer.Argument(help="A bundle that ships, or a path.", metavar="BUNDLE")]
Plans = Annotated[str, typer.Option(help="Mask plans, separated by commas; `cascade` needs x1,x32.")]
Precision = Annotated[
    str | None, typer.Option(help="f32, f16, bf16 or int8; default: f16 with tensorrt, int8 with openvino.")
]
Served = Annotated[Literal["tensorrt", "openvino"], typer.Option("--backend", help="What will run it.")]
Batch = Annotated[int, typer.Option(min=1, max=1024, help="Tiles at a time, as `engine.batch` of the recipe says.")]
Good = Annotated[
    Path | None, typer.Option(help="Images of good parts; without them textures are made up. int8 needs them.")
]
Count = Annotated[int, typer.Option(min=2, max=10_000, help="How many tiles to quantise and to compare on.")]

DEFAULTS = {"tensorrt": "f16", "openvino": "int8"}
"""The precision of each backend when none is named."""


@engine.command()
def build(
    bundle: BundleArgument,
    plan: Plans = "x1",
    precision: Precision = None,
    backend: Served = "tensorrt",
    target: Annotated[
        str | None, typer.Option(help="GPUs, such as sm86,sm120; default: the one in this machine.")
    ] = None,
    batch: Batch = 1,
    good: Good = None,
    tiles: Count = 48,
) -> None:
    """Build engines of a bundle and keep them; those for this machine are verified at once."""
    from edge.samples import good_tiles
    from engines.bundle import find_bundle, load_bundle

    found, precision, calibration = load_bundle(find_bundle(bundle)), precision or DEFAULTS[backend], None
    if precision == "int8":
        if good is None:
            raise EngineError(
                "--precision int8 takes the range of every activation from good parts: name them with --good"
            )
        calibration = good_tiles(found.manifest, good, tiles)
    if backend == "openvino":
        if target is not None:
            raise EngineError("--target names GPUs: openvino builds for the processor in this machine")
        _build_for_openvino(found, plan, precision, batch, calibration)
    else:
        _build_for_tensorrt(found, plan, precision, batch, calibration, target)
    if target is None:
        verify(bundle, plan, precision, backend, batch, good, tiles)


def _build_for_tensorrt(
    bundle: Bundle, plans: str, precision: str, batch: int, calibration: NDArray[np.uint8] | None, target: str | None
) -> None:
    from engines.backends.cache import EngineCache
    from engines.backends.manifest import EngineKey
    from engines.backends.tensorrt.api import find_tensorrt
    from engines.backends.tensorrt.build import build_for

    api, cache, console = find_tensorrt(), EngineCache(), Console()
    gpus = [_this_gpu(api.targets)] if target is None else [(name.strip(), "") for name in target.split(",")]
    for wanted in plans.split(","):
        for gpu in gpus:
            key = EngineKey.of(bundle, wanted, precision, batch, flavour=api.flavour, version=api.version, gpu=gpu)
            stored = build_for(api, cache, bundle, key, calibration)
            size = stored.manifest.engine_bytes / 1e6
            console.print(f"{wanted} {precision} for {gpu[0]}, {size:.1f} MB: {stored.folder}", soft_wrap=True)


def _build_for_openvino(
    bundle: Bundle, plans: str, precision: str, batch: int, calibration: NDArray[np.uint8] | None
) -> None:
    from engines.backends.cache import EngineCache
    from engines.backends.openvino.compiling import key_of, require_precision
    from engines.backends.openvino.int8 import build_for

    if calibration is None:
        raise EngineError(f"openvino compiles {precision} by itself when a line starts: only int8 is built before")
    require_precision(precision)
    cache, console = EngineCache(), Console()
    for wanted in plans.split(","):
        stored = build_for(cache, bundle, key_of(bundle, wanted, precision, batch), calibration)
        size, target = stored.manifest.engine_bytes / 1e6, stored.manifest.key.target
        console.print(f"{wanted} {precision} for {target}, {size:.1f} MB: {stored.folder}", soft_wrap=True)


@engine.command()
def verify(
    bundle: BundleArgument,
    plan: Plans = "x1",
    precision: Precision = None,
    backend: Served = "tensorrt",
    batch: Batch = 1,
    good: Good = None,
    tiles: Count = 48,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="No engine of tensorrt, but its graph on this CPU: what rounding alone does.")
    ] = False,
) -> None:
    """Compare engines with the CPU's float32 answers; one that differs too much is not served (exit code 78)."""
    if cpu and backend == "openvino":
        raise EngineError("--cpu is for graphs of tensorrt: openvino runs on the CPU")
    from edge.samples import samples
    from engines.backends.openvino.speed import speedup
    from engines.backends.verify import TOLERANCES
    from engines.bundle import find_bundle, load_bundle

    found, precision, console, failed = load_bundle(find_bundle(bundle)), precision or DEFAULTS[backend], Console(), []
    chosen = samples(found.manifest, good, tiles)
    for wanted in plan.split(","):
        result = _compare("cpu" if cpu else backend, found, wanted, precision, batch, chosen)
        speed = ""
        if backend == "openvino":
            speed = f", {speedup(found, wanted, precision, batch, chosen.tiles):.2f} times as fast as f32"
        console.print(
            f"{wanted} {precision}: largest error {result.max_error:.2g}, mean {result.mean_error:.2g}, "
            f"{result.agreement:.1%} of {result.tiles} decisions equal{speed}: "
            f"{'passed' if result.passed else 'REFUSED'}",
            soft_wrap=True,
        )
        if not result.passed:
            failed.append(wanted)
    if failed:
        most = TOLERANCES[precision]
        raise EngineError(
            f"{precision} of {', '.join(failed)} differs from the CPU by more than {most.max_error} at most, "
            f"{most.mean_error} in the mean, or in more than {1 - most.agreement:.0%} of the decisions: "
            "take another precision"
        )


def _compare(where: str, bundle: Bundle, plan: str, precision: str, batch: int, chosen: Samples) -> Verification:
    if where == "cpu":
        from engines.backends.tensorrt.estimate import estimate

        return estimate(bundle, plan, precision, chosen)
    if where == "openvino":
        from engines.backends.openvino import OpenVinoBackend
        from engines.backends.verify import verify as compare

        return compare(OpenVinoBackend(verified_only=False), bundle, plan, precision, batch, chosen)
    from engines.backends.tensorrt.verify import verify as compare_tensorrt

    return compare_tensorrt(bundle, plan, precision, batch, chosen)


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
