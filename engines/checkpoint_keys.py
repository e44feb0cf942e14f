"""What published masked autoencoders call their parameters, and how their tensors become ours.

Our names are those of `engines.mae`, with two exceptions before `our_state`: queries, keys and values may still be one
tensor (`qkv`) or three (`q`, `k`, `v`), and the tables of positions are there (`where`, `decoder_where`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from engines.architecture import AnovitArchitecture, MaeArchitecture

__all__ = ["encoder_shapes", "expected_shapes", "our_name", "our_state", "their_name"]

# Our names, then theirs: facebookresearch/mae's, and those of transformers (without "vit.") in the order of its
# versions; 5 loads `decoder.decoder_layers` and saves `decoder.decoder_encoder.layer`.
_STACKS = {
    "encoder": ("blocks", "encoder.layer", "layers"),
    "decoder": ("decoder_blocks", "decoder.decoder_layers", "decoder.decoder_encoder.layer"),
}
_PARTS = {
    "norm": ("norm1", "layernorm_before"),
    "qkv": ("attn.qkv",),
    "q": ("", "attention.attention.query", "attention.q_proj"),
    "k": ("", "attention.attention.key", "attention.k_proj"),
    "v": ("", "attention.attention.value", "attention.v_proj"),
    "out": ("attn.proj", "attention.output.dense", "attention.o_proj"),
    "mlp_norm": ("norm2", "layernorm_after"),
    "mlp.0": ("mlp.fc1", "intermediate.dense"),
    "mlp.2": ("mlp.fc2", "output.dense"),
}
_OUTSIDE = {
    "class_token": ("cls_token", "embeddings.cls_token"),
    "where": ("pos_embed", "embeddings.position_embeddings"),
    "embed": ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    "norm": ("norm", "layernorm"),
    "mask_token": ("mask_token", "decoder.mask_token"),
    "decoder_where": ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    "to_decoder": ("decoder_embed", "decoder.decoder_embed"),
    "decoder_norm": ("decoder_norm", "decoder.decoder_norm"),
    "head": ("decoder_pred", "decoder.decoder_pred"),
}
_LAYER = re.compile(rf"({'|'.join(re.escape(n) for names in _STACKS.values() for n in names)})\.(\d+)\.(.+)")


def our_name(key: str) -> str | None:
    """Our name for a key of either layout, None for one that we do not know."""
    key, end = key.removeprefix("vit."), ""
    if key.endswith((".weight", ".bias")):
        key, _, kind = key.rpartition(".")
        end = f".{kind}"
    if layer := _LAYER.fullmatch(key):
        stack, number, part = (_ours(_STACKS, layer[1]), layer[2], _ours(_PARTS, layer[3]))
        return f"{stack}.{number}.{part}{end}" if part and end else None
    ours = _ours(_OUTSIDE, key)
    bare = ours in ("class_token", "where", "mask_token", "decoder_where")
    return f"{ours}{end}" if ours and bare == (end == "") else None


def _ours(table: Mapping[str, tuple[str, ...]], theirs: str) -> str | None:
    return next((ours for ours, names in table.items() if theirs in names), None)


def their_name(ours: str, layout: int) -> str:
    """The first name that layout 0 (facebookresearch/mae) or 1 (transformers) has for one of ours."""
    stem, dot, end = ours.rpartition(".") if ours.endswith((".weight", ".bias")) else (ours, "", "")
    if layer := re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", stem):
        name = f"{_STACKS[layer[1]][layout]}.{layer[2]}.{_PARTS[layer[3]][layout]}"
    else:
        name = _OUTSIDE[stem][layout]
    prefix = "vit." if layout and not name.startswith("decoder.") else ""
    return f"{prefix}{name}{dot}{end}"


def encoder_shapes(
    a: MaeArchitecture | AnovitArchitecture, tokens: int, *, fused: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes that a plain vision transformer of these sizes has, trained on images of so many tokens."""
    yield "class_token", (1, 1, a.width)
    yield "where", (1, tokens + 1, a.width)
    yield "embed.weight", (a.width, a.channels, a.patch_px, a.patch_px)
    yield "embed.bias", (a.width,)
    yield from _norm("norm", a.width)
    yield from _blocks("encoder", a.depth, a.width, a.mlp_ratio, fused=fused)


def expected_shapes(a: MaeArchitecture, tokens: int, *, fused: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes that a checkpoint of these sizes has, trained on images of so many tokens."""
    yield from encoder_shapes(a, tokens, fused=fused)
    yield "mask_token", (1, 1, a.decoder_width)
    yield "decoder_where", (1, tokens + 1, a.decoder_width)
    yield from _linear("to_decoder", a.width, a.decoder_width)
    yield from _norm("decoder_norm", a.decoder_width)
    yield from _linear("head", a.decoder_width, a.patch_values)
    yield from _blocks("decoder", a.decoder_depth, a.decoder_width, a.decoder_mlp_ratio, fused=fused)


def _blocks(
    stack: str, depth: int, width: int, mlp_ratio: float, *, fused: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for prefix in (f"{stack}.{number}" for number in range(depth)):
        yield from _norm(f"{prefix}.norm", width)
        yield from _norm(f"{prefix}.mlp_norm", width)
        for part in ("qkv",) if fused else ("q", "k", "v"):
            yield from _linear(f"{prefix}.{part}", width, 3 * width if fused else width)
        yield from _linear(f"{prefix}.out", width, width)
        yield from _linear(f"{prefix}.mlp.0", width, int(width * mlp_ratio))
        yield from _linear(f"{prefix}.mlp.2", int(width * mlp_ratio), width)


def _linear(name: str, inside: int, outside: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outside, inside)
    yield f"{name}.bias", (outside,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{kind}", (width,)) for kind in ("weight", "bias"))


def our_state(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our network's state dict. Patches are (row, column, channel) here, as in both layouts' last layer."""
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name == "embed.weight":
            yield name, value.permute(0, 2, 3, 1).flatten(1)
        elif name in ("class_token", "mask_token"):
            yield name, value[None]
        elif stem.endswith(".qkv"):
            third = len(value) // 3
            yield f"{stem[:-3]}q.{kind}", value[:third]
            yield f"{stem[:-3]}kv.{kind}", value[third:]
        elif stem.endswith(".k"):
            yield f"{stem[:-1]}kv.{kind}", torch.cat([value, tensors[f"{stem[:-1]}v.{kind}"]])
        elif not stem.endswith(".v") and name not in ("where", "decoder_where"):
            yield name, value
