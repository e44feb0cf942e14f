"""What a network costs per tile, from its architecture alone: products, weights, and what moves through memory.

A network is a list of steps, one per kernel of a backend that fuses well: biases, activations, residual sums and
positions cost nothing of their own, for they are done as a product is written, and attention keeps its scores on the
chip. Multiplications and additions are exact: the tests compare them with what torch counts. What moves is exact for
such kernels if nothing stays in a cache between them. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from engines.architecture import (
    AnovitArchitecture,
    Architecture,
    MaeArchitecture,
    MalaArchitecture,
    MetalArchitecture,
    RetouchArchitecture,
    SdcArchitecture,
)
from engines.architecture.lite0 import CHANNELS, STAGES, STEM, STRIDE_PX
from engines.architecture.retouch import RINGS, WIDER
from engines.plans import named_plan, plan_inputs

__all__ = ["Step", "gflop", "million_parameters", "naive_mae_steps", "steps"]


@dataclass(frozen=True)
class Step:
    """One kernel, for one tile. Values are numbers of whatever precision; a multiplication and an addition are two."""

    name: str
    flop: int
    """In matrix products and convolutions; all the rest is a hundredth of it."""
    weights: int
    """Values of parameters that it reads, the same for every tile."""
    moved: int
    """Values of activations that it reads and writes."""
    folded: bool = False
    """No work per tile: what torch computes each time and a backend once, when it loads, or what only fitting needs."""


def gflop(steps: list[Step]) -> float:
    """Billions of multiplications and additions per tile, without what backends fold."""
    return sum(step.flop for step in steps if not step.folded) / 1e9


def million_parameters(steps: list[Step]) -> float:
    """Of the whole network: every step has its own, whatever the plan."""
    return sum(step.weights for step in steps) / 1e6


def steps(architecture: Architecture, plan: str) -> list[Step]:
    """The steps of a network under a mask plan.

    Raises NotImplementedError for a kind that is not counted here (`engines.networks.count_work` counts every kind,
    with torch), ValueError for a plan that the network does not have.
    """
    plan_inputs(architecture, plan)
    match architecture:
        case MaeArchitecture():
            return list(_mae(architecture, plan, naive=False))
        case SdcArchitecture():
            return list(_sdc(architecture))
        case MetalArchitecture():
            return list(_metal(architecture))
        case AnovitArchitecture():
            return list(_anovit(architecture))
        case MalaArchitecture():
            return list(_mala(architecture))
        case RetouchArchitecture():
            return list(_retouch(architecture, plan))
    raise NotImplementedError(f"networks of kind {architecture.kind!r} are not counted without torch")


def naive_mae_steps(architecture: MaeArchitecture, plan: str) -> list[Step]:
    """Every variant by itself, as `engines.reference` does: it embeds all patches of its masked copy, and the decoder
    repaints all tokens in every block."""
    return list(_mae(architecture, plan, naive=True))


def _mae(a: MaeArchitecture, plan: str, naive: bool) -> Iterator[Step]:
    sets, extra = named_plan(plan, a), int(a.class_token)
    variants, visible, hidden = sets.variants, sets.visible.shape[1] + extra, sets.hidden.shape[1]
    every, asked = a.tokens + extra, a.tokens if naive else hidden
    waves = a.tokens if a.positions == "offset" else 0
    yield _product("embed", variants * a.tokens if naive else a.tokens, a.patch_values, a.width)
    yield Step("gather", 0, extra * a.width, 2 * variants * visible * a.width)
    if a.target == "normalised":
        yield Step("own", 4 * variants * asked * (a.tokens if naive else sets.visible.shape[1]), 0, 0)
    for k in range(a.depth):
        yield from _block(f"encoder.{k}", variants, visible, visible, a.width, a.heads, a.mlp_ratio, waves)
    yield _normalisation("encoder.norm", variants * visible, a.width)
    if a.decoder == "self":
        yield _product("decoder.enter", variants * visible, a.width, a.decoder_width)
    yield Step("decoder.ask", 0, a.decoder_width, variants * asked * a.decoder_width)
    for k in range(a.decoder_depth):
        last = k == a.decoder_depth - 1
        together = a.decoder == "self"
        yield from _block(
            f"decoder.{k}",
            variants,
            every if together and (naive or not last) else asked,
            every if together else visible,
            a.decoder_width,
            a.decoder_heads,
            a.decoder_mlp_ratio,
            waves,
            None if together else a.width,
        )
    yield _normalisation("head.norm", variants * asked, a.decoder_width)
    yield _product("head", variants * asked, a.decoder_width, a.patch_values)
    yield Step("place", 0, 0, 2 * a.tokens * a.patch_values)


def _block(
    name: str,
    variants: int,
    asked: int,
    seen: int,
    width: int,
    heads: int,
    mlp_ratio: float,
    waves: int = 0,
    seen_width: int | None = None,
) -> Iterator[Step]:
    """A pre-norm transformer block in which `asked` tokens of each variant look at `seen` ones.

    seen_width: of tokens from elsewhere, which arrive normalised; None: the asked tokens are among the seen ones.
    waves: tokens of the grid, where each head has two matrices that turn their positions.
    """
    rows, mlp = variants * asked, int(width * mlp_ratio)
    context = 0 if seen_width is not None or asked == seen else variants * seen
    yield _normalisation(f"{name}.norm", rows + context, width)
    if waves:
        turned = heads * (width // heads) ** 2
        yield Step(f"{name}.positions", 4 * waves * turned, 2 * turned, 0, folded=True)
    yield _product(f"{name}.q", rows, width, width)
    yield _product(f"{name}.kv", variants * seen, seen_width or width, 2 * width)
    yield Step(f"{name}.attention", 4 * rows * seen * width, 0, 2 * variants * (asked + seen) * width)
    yield _product(f"{name}.out", rows, width, width, residual=True)
    yield _normalisation(f"{name}.mlp_norm", rows, width)
    yield _product(f"{name}.mlp.0", rows, width, mlp)
    yield _product(f"{name}.mlp.2", rows, mlp, width, residual=True)


def _product(name: str, rows: int, wide: int, to: int, *, residual: bool = False) -> Step:
    """[rows, wide] times [wide, to], plus a bias, plus what was there before."""
    return Step(name, 2 * rows * wide * to, (wide + 1) * to, rows * (wide + (1 + residual) * to))


def _normalisation(name: str, rows: int, width: int) -> Step:
    return Step(name, 0, 2 * width, 2 * rows * width)


def _sdc(a: SdcArchitecture) -> Iterator[Step]:
    side: int = a.tile_px
    wide: int = a.channels
    if a.normalise == "local":
        yield Step("light", 0, 0, 8 * side**2 * a.channels)  # about: three pictures made, and read
    for level in range(a.levels):
        for k in range(a.encoder_convolutions):
            yield _convolution(f"encode{level}_{k}", side, side, wide, a.width << level, 2)
            wide = a.width << level
        yield Step(f"pool{level}", 0, 0, side**2 * wide * 5 // 4)
        side //= 2
    for k in range(a.stacks):
        for rate in a.dilations:
            yield _convolution(f"stack{k}.{rate}", side, side, wide, a.branch_width, 2)
        wide = a.branch_width * len(a.dilations)
        if a.mix_px:
            yield _convolution(f"mix{k}", side, side, wide, wide, 2, a.mix_px)
    for level in reversed(range(a.levels)):
        yield _convolution(f"up{level}", side, 2 * side, wide, a.width << level, 2)
        side, wide = side * 2, a.width << level
        for k in range(a.decoder_convolutions):
            yield _convolution(f"decode{level}_{k}", side, side, wide, wide, 2)
    yield _convolution("out", side, side, wide, a.channels, 1, 1)


def _metal(a: MetalArchitecture) -> Iterator[Step]:
    tokens, wide, strict = a.side**2, a.token_width, a.attention == "strict"
    near = tokens * (a.side - 1)  # every patch has its own view of the others of its line
    yield _product("square", tokens, a.patch_values, a.width)
    if a.stripes != "none":
        segments = a.side * a.width
        flop = 2 * tokens * a.patch_values * segments
        yield Step("stripe", flop, (a.side * a.patch_values + 1) * segments, tokens * (a.patch_values + segments))
        yield Step("stripe.without", 2 * tokens * a.side * segments, 0, 2 * tokens * segments)
    yield Step("where", 0, (1 + strict) * tokens * wide, 2 * (tokens + near) * wide)
    for k in range(a.depth):
        mlp = int(wide * a.mlp_ratio)
        seen = tokens * (tokens - a.side) + near  # pairs of a patch and what it sees
        yield _normalisation(f"encoder.{k}.norm", tokens, wide)
        yield _normalisation(f"encoder.{k}.context_norm", tokens + near, wide)
        yield _product(f"encoder.{k}.q", tokens, wide, wide)
        yield _product(f"encoder.{k}.kv", tokens + near, wide, 2 * wide)
        yield Step(f"encoder.{k}.attention", 4 * seen * wide, 0, 2 * (2 * tokens + near) * wide)
        yield _product(f"encoder.{k}.out", tokens, wide, wide, residual=True)
        yield _normalisation(f"encoder.{k}.mlp.0", tokens, wide)
        yield _product(f"encoder.{k}.mlp.1", tokens, wide, mlp)
        yield _product(f"encoder.{k}.mlp.3", tokens, mlp, wide, residual=True)
    yield _normalisation("decoder.0", tokens, wide)
    yield _product("decoder.1", tokens, wide, int(wide * a.mlp_ratio))
    yield _product("head", tokens, int(wide * a.mlp_ratio), a.patch_values)


def _anovit(a: AnovitArchitecture) -> Iterator[Step]:
    tokens, side, wide = a.side**2, a.side, a.width
    yield _product("embed", tokens, a.patch_values, a.width)
    yield Step("where", 0, (tokens + 2) * a.width, 2 * (tokens + 1) * a.width)
    for k in range(a.depth):
        yield from _block(f"encoder.{k}", 1, tokens + 1, tokens + 1, a.width, a.heads, a.mlp_ratio)
    yield _normalisation("norm", tokens + 1, a.width)
    for k, to in enumerate((*a.decoder_widths, a.channels)):
        after = side + 2 if k < 3 else 2 * side - 1
        yield _convolution(f"decoder.{k}", side, after, wide, to, 1)
        side, wide = after, to
        if k < 5:
            yield Step(f"decoder.{k}.norm", 0, 0, 3 * side**2 * to)  # read for the statistics, and again to apply them
    yield Step("resize", 0, 0, (side**2 + a.tile_px**2) * a.channels)


def _mala(a: MalaArchitecture) -> Iterator[Step]:
    net, pixels = a.autoencoder, a.tile_px**2
    tokens, balanced, values = net.tokens, a.balance_width, 2 * a.patch_px**2
    waves = tokens if net.positions == "offset" else 0
    yield _product("embed", tokens, net.patch_values, a.width)
    for k in range(a.depth):
        yield from _block(f"encoder.{k}", 1, tokens, tokens, a.width, a.heads, a.mlp_ratio, waves)
    yield _normalisation("encoder.norm", tokens, a.width)
    yield _product("decoder.enter", tokens, a.width, a.decoder_width)
    heads, mlp_ratio = a.decoder_heads, a.decoder_mlp_ratio
    for k in range(a.decoder_depth):
        yield from _block(f"decoder.{k}", 1, tokens, tokens, a.decoder_width, heads, mlp_ratio, waves)
    yield _normalisation("head.norm", tokens, a.decoder_width)
    yield _product("head", tokens, a.decoder_width, net.patch_values)
    for k, wide in enumerate((a.width, a.width, a.decoder_width)):
        yield _normalisation(f"balance.{k}.norm", tokens, wide)
        yield _product(f"balance.{k}", tokens, wide, balanced)
    yield _product("balance.weigh", tokens, 3 * balanced, 3)
    yield Step("balance.add", 0, 0, 4 * tokens * balanced)
    yield _product("map.0", tokens, balanced, 2 * balanced)
    yield _product("map.2", tokens, 2 * balanced, values)
    yield Step("map.pool", 0, 0, 4 * pixels)
    pseudo = (net.patch_values + 1) * a.width + (a.width + 1) * 2
    yield Step("stage 1", 0, pseudo + a.decoder_width, 0, folded=True)  # pseudo labels, and the token of hidden patches


def _retouch(a: RetouchArchitecture, plan: str) -> Iterator[Step]:
    """What is usual for good parts counts as moved, for it was measured and is no parameter."""
    planes, px, errors = a.channels, a.tile_px, a.channels * len(a.sigmas_px)
    for step in _mae(a.pixels, plan, naive=False):
        yield step if step.folded else replace(step, flop=planes * step.flop, moved=planes * step.moved)
    for sigma in a.sigmas_px:
        yield from _blur(f"error.{sigma:g}", px, planes, sigma)
    yield Step("error.light", 2 * 3 * 3, 0, planes * px**2)
    yield _unusual("error.white", px, errors, errors * _rings(px, a.pixels.patch_px))
    if a.features == "none":
        return
    yield from _lite0(px)
    side, described = px // STRIDE_PX, 2 * CHANNELS
    rings, blocks = _rings(side, 1), (side // 2) ** 2
    yield Step("feature.rest", 0, 0, side**2 * CHANNELS + blocks * described)
    basis = described * a.context
    yield Step("feature.context", 2 * blocks * basis, 0, blocks * (described + a.context) + basis)
    yield _unusual("feature.repaint", side, a.context + 1, CHANNELS * rings)
    yield _unusual("feature.white", side, CHANNELS, CHANNELS)
    for sigma in WIDER:
        yield from _blur(f"wider.{sigma:g}", side, 1, sigma)
    yield Step("together", 0, 0, (1 + len(WIDER)) * side**2 + 2 * px**2)


def _rings(side: int, width: int) -> int:
    """How many of RINGS a tile has."""
    return min(RINGS - 1, (side - 1) // 2 // width) + 1


def _blur(name: str, side: int, channels: int, sigma: float) -> Iterator[Step]:
    """Along rows, then along columns."""
    for along in ("rows", "columns"):
        yield Step(f"{name}.{along}", 2 * side**2 * channels * (2 * round(3 * sigma) + 1), 0, 2 * side**2 * channels)


def _unusual(name: str, side: int, wide: int, to: int) -> Step:
    """A product with measured numbers at every place; the result is squared and summed, or taken off, as it comes."""
    return Step(name, 2 * side**2 * wide * to, 0, side**2 * (wide + 1) + wide * to)


def _lite0(px: int) -> Iterator[Step]:
    yield _strided("lite0.stem", px // 2, 2, 3, STEM, 3)
    side, wide, number = px // 2, STEM, 0
    for expansion, filters, count, filter_px, first_stride in STAGES:
        for k in range(count):
            stride, inside, name = first_stride if k == 0 else 1, wide * expansion, f"lite0.{number}"
            if expansion > 1:
                yield _convolution(f"{name}.expand", side, side, wide, inside, 2, 1)
            side //= stride
            yield _strided(f"{name}.depthwise", side, stride, inside, inside, filter_px, groups=inside)
            yield _convolution(f"{name}.project", side, side, inside, filters, 2, 1)
            wide, number = filters, number + 1


def _strided(name: str, after: int, stride: int, wide: int, to: int, px: int, groups: int = 1) -> Step:
    """`px` x `px` to after x after positions from `stride` times as many each way."""
    weights = wide * to * px**2 // groups
    return Step(name, 2 * after**2 * weights, weights + 2 * to, (after * stride) ** 2 * wide + after**2 * to)


def _convolution(name: str, side: int, after: int, wide: int, to: int, per_filter: int, px: int = 3) -> Step:
    """`px` x `px` over side x side positions, `after` x `after` where it is transposed and larger. per_filter: a bias,
    or scale and shift of a normalisation that folds into it."""
    weights = wide * to * px**2
    moved = side**2 * wide + after**2 * to
    return Step(name, 2 * side**2 * weights, weights + per_filter * to, moved)
