"""Checkpoints as they are published, with random weights, in both layouts, written out here a second time: what the
loader knows of names and orders must not be what tests it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

TINY = {"width": 32, "depth": 2, "decoder_width": 24, "decoder_depth": 3}
HEADS = {"heads": 2, "decoder_heads": 3}


def positions(side: int, width: int) -> torch.Tensor:
    """[1, 1 + side^2, width]: zeros for the class token, then sines and cosines of column and row."""
    table = torch.zeros(1 + side * side, width, dtype=torch.float64)
    k = torch.arange(width // 4)
    for token in range(side * side):
        for half, at in enumerate((token % side, token // side)):
            angle = at / 10000 ** (4 * k.double() / width)
            table[1 + token, half * width // 2 :][: len(k)] = angle.sin()
            table[1 + token, half * width // 2 + width // 4 :][: len(k)] = angle.cos()
    return table[None].float()


def original(
    *, width: int, depth: int, decoder_width: int, decoder_depth: int, patch: int = 16, side: int = 14, seed: int = 0
) -> State:
    """facebookresearch/mae's layout, weights large enough to matter: fresh ones answer nearly zero everywhere."""
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def draw(name: str, *shape: int, around: float = 0.0, size: float = 0.1) -> None:
        state[name] = around + size * torch.randn(shape, generator=rng)

    def linear(name: str, inside: int, outside: int) -> None:
        draw(f"{name}.weight", outside, inside, size=inside**-0.5)
        draw(f"{name}.bias", outside)

    def norm(name: str, size: int) -> None:
        draw(f"{name}.weight", size, around=1.0)
        draw(f"{name}.bias", size)

    draw("cls_token", 1, 1, width)
    draw("mask_token", 1, 1, decoder_width)
    state["pos_embed"], state["decoder_pos_embed"] = positions(side, width), positions(side, decoder_width)
    draw("patch_embed.proj.weight", width, 3, patch, patch, size=(3 * patch * patch) ** -0.5)
    draw("patch_embed.proj.bias", width)
    for stack, count, size in (("blocks", depth, width), ("decoder_blocks", decoder_depth, decoder_width)):
        for prefix in (f"{stack}.{number}" for number in range(count)):
            norm(f"{prefix}.norm1", size)
            linear(f"{prefix}.attn.qkv", size, 3 * size)
            linear(f"{prefix}.attn.proj", size, size)
            norm(f"{prefix}.norm2", size)
            linear(f"{prefix}.mlp.fc1", size, 4 * size)
            linear(f"{prefix}.mlp.fc2", 4 * size, size)
    norm("norm", width)
    linear("decoder_embed", width, decoder_width)
    norm("decoder_norm", decoder_width)
    linear("decoder_pred", decoder_width, 3 * patch * patch)
    return state


def hugging_face(state: State) -> State:
    """The same in the names that transformers has published since its version 4."""
    order = (
        ("decoder_blocks.", "decoder.decoder_layers."),
        ("blocks.", "vit.encoder.layer."),
        ("attn.proj.", "attention.output.dense."),
        ("norm1.", "layernorm_before."),
        ("norm2.", "layernorm_after."),
        ("mlp.fc1.", "intermediate.dense."),
        ("mlp.fc2.", "output.dense."),
    )
    whole = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
    }
    renamed: State = {}
    for key, value in state.items():
        if key in whole:
            renamed[whole[key]] = value
            continue
        name = key
        for theirs, new in order:
            name = name.replace(theirs, new, 1)
        if name == key:
            renamed[f"decoder.{key}"] = value
        elif ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = third.clone()
        else:
            renamed[name] = value
    return renamed


def write_hugging_face(folder: Path, state: State, *, heads: int, decoder_heads: int, **more: object) -> Path:
    """A folder as on the hub: model.safetensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face(state), folder / "model.safetensors", metadata={"format": "pt"})
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    decoder_width = state["mask_token"].shape[2]
    config = {
        "model_type": "vit_mae",
        "architectures": ["ViTMAEForPreTraining"],
        "hidden_act": "gelu",
        "hidden_size": width,
        "num_hidden_layers": sum(key.startswith("blocks.") and key.endswith("norm1.bias") for key in state),
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        "patch_size": patch,
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": sum(key.startswith("decoder_blocks.") and "norm1.bias" in key for key in state),
        "decoder_num_attention_heads": decoder_heads,
        "decoder_intermediate_size": 4 * decoder_width,
        "norm_pix_loss": False,
        "layer_norm_eps": 1e-12,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
