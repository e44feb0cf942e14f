"""AnoViT's encoder from the weights of a published vision transformer (Dosovitskiy et al., 2021). Needs torch.

Two layouts: timm's, and that of Hugging Face's transformers. What a classifier adds to the transformer (head, pooler)
is left out; what has anything else is refused. AnoViT shows pixels in [-1, 1], as Google's networks and timm's `augreg`
ones saw them; others (DeiT's) saw them less ImageNet's mean and over its deviation, and have to get used to it.

The weights are the user's own copy, under the licence that they came with; nothing of them ships with us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from edge.errors import MasklineError
from engines.anovit import AnoVit
from engines.architecture import AnovitArchitecture
from engines.checkpoint_keys import encoder_shapes, our_name, our_state, their_name
from engines.checkpoints import ENCODER_HEADS, HUGGING_FACE_EPS
from engines.weight_files import find_file, name_some, read_tensors

__all__ = ["load_encoder"]

TIMM, HUGGING_FACE = 0, 1
"""The layouts, as `engines.checkpoint_keys` counts them."""
HEADS = {192: 3, 384: 6, **ENCODER_HEADS}
"""By width, as published: no shape tells them. Other widths have those of the architecture."""
ENCODER = ("class_token", "where", "embed.", "encoder.", "norm.")
"""How our names for what belongs to the transformer begin."""
CLASSIFIER = ("head.", "pre_logits.", "classifier.", "pooler.", "vit.pooler.")
"""How either layout's keys for the rest begin."""


def load_encoder(path: Path, architecture: AnovitArchitecture) -> AnoVit:
    """A network whose encoder has the weights in a file (.safetensors, .pth), or in a folder of Hugging Face's, and
    whose decoder has fresh ones, drawn with torch's seed.

    Its architecture is the one given, but with as many heads as such weights were published with, and the epsilon of
    their layer norms. Positions of another grid are interpolated, as in section 3.2 there; the kernels of the three
    colours are added up where tiles are grey, which is the same as to show them grey in colour. Raises MasklineError,
    which says what does not fit.
    """
    file = find_file(path)
    tensors, layout = _read(file)
    changes = {"heads": HEADS.get(architecture.width, architecture.heads)}
    eps = HUGGING_FACE_EPS if layout == HUGGING_FACE else architecture.norm_eps
    a = architecture.model_copy(update=changes | {"norm_eps": eps})
    _check(file, tensors, a, layout)
    network = AnoVit(a)
    network.load_state_dict(network.state_dict() | _state(tensors, a))
    return network


def _read(path: Path) -> tuple[Mapping[str, Tensor], int]:
    """The transformer's tensors under our names, and the number of the layout; refuses what has more than those."""
    held = read_tensors(path)
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in held.items():
        ours = our_name(key) or ""
        if ours.startswith(ENCODER) and ours not in tensors and isinstance(value, Tensor):
            tensors[ours] = value
        elif not key.startswith(CLASSIFIER):
            unknown.append(key)
    if unknown:
        raise MasklineError(
            f"checkpoint {path}: no plain vision transformer, it has {name_some(unknown)}; expected keys such as "
            "blocks.0.attn.qkv.weight or vit.encoder.layer.0.attention.attention.query.weight, and a classifier's"
        )
    return tensors, HUGGING_FACE if any("embeddings." in key for key in held) else TIMM


def _check(path: Path, tensors: Mapping[str, Tensor], a: AnovitArchitecture, layout: int) -> None:
    """Its sizes are those of `a`; every tensor is there, has its shape and is made of floats."""
    kernel, where = tensors.get("embed.weight"), tensors.get("where")
    if kernel is not None and kernel.ndim == 4:
        depth = len({name.split(".")[1] for name in tensors if name.startswith("encoder.")})
        if (len(kernel), depth, kernel.shape[3]) != (a.width, a.depth, a.patch_px):
            raise MasklineError(
                f"checkpoint {path}: a width of {len(kernel)}, {depth} blocks, patches of {kernel.shape[3]} pixels; "
                f"expected {a.width}, {a.depth} and {a.patch_px}: take other weights, or a size that they fit"
            )
    side = math.isqrt(max(0, where.shape[1] - 1)) if where is not None and where.ndim == 3 else 0
    colour = a.model_copy(update={"channels": 3})
    expected = dict(encoder_shapes(colour, side * side, fused=layout == TIMM))
    missing = [their_name(name, layout) for name in expected if name not in tensors]
    if missing:
        raise MasklineError(f"checkpoint {path}: keys are missing: {name_some(missing)}; get the file again")
    for name, value in tensors.items():
        theirs, shape = their_name(name, layout), list(value.shape)
        if shape != list(expected.get(name, ())):
            wanted = list(expected[name]) if name in expected else "another layout's"
            raise MasklineError(f"checkpoint {path}: {theirs} has the shape {shape}, expected {wanted}")
        if not value.is_floating_point():
            raise MasklineError(f"checkpoint {path}: {theirs} holds {value.dtype}, expected floating-point numbers")


def _state(tensors: Mapping[str, Tensor], a: AnovitArchitecture) -> dict[str, Tensor]:
    """The encoder's state dict."""
    state = {name: value.float() for name, value in our_state(tensors)}
    state["class_token"] = tensors["class_token"].float()
    state["where"] = _placed(tensors["where"].float(), a.side)
    if a.channels == 1:
        state["embed.weight"] = state["embed.weight"].reshape(a.width, -1, 3).sum(2)
    return state


def _placed(where: Tensor, side: int) -> Tensor:
    """Positions [1, 1 + T, D] for a grid of another `side`: [1, 1 + side^2, D]; the class token's stays as it is."""
    rows = math.isqrt(where.shape[1] - 1)
    grid = where[:, 1:].transpose(1, 2).reshape(1, -1, rows, rows)  # [1, D, rows, rows]
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([where[:, :1], grid.flatten(2).transpose(1, 2)], 1)
