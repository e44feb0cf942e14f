"""The network equals `transformers`' ViTMAE with the same random weights and the same masks, in torch and exported."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.architecture import MaeArchitecture
from engines.backends import open_backend
from engines.bundle import Manifest
from engines.export import export_bundle
from engines.mae import MaskedAutoencoder, patchify, plan_tensors
from engines.plans import Plan, named_plan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

ARCHITECTURE = MaeArchitecture(
    tile_px=32,
    patch_px=4,
    channels=3,
    width=32,
    depth=2,
    heads=2,
    mlp_ratio=4.0,
    class_token=True,
    decoder="self",
    decoder_width=24,
    decoder_depth=3,
    decoder_heads=3,
    positions="sine",
    normalise="fixed",
    mean=0.45,
    std=0.225,
    norm_eps=1e-12,
)


def positions(side: int, width: int) -> torch.Tensor:
    """The table in published checkpoints: zeros for the class token, then sines and cosines of column and row."""
    table = np.zeros((1, 1 + side * side, width))
    for token in range(side * side):
        for k in range(width // 4):
            for half, at in enumerate((token % side, token // side)):
                angle = at / 10000 ** (4 * k / width)
                table[0, 1 + token, half * width // 2 + k] = np.sin(angle)
                table[0, 1 + token, half * width // 2 + width // 4 + k] = np.cos(angle)
    return torch.from_numpy(table)


@pytest.fixture(scope="module")
def oracle() -> nn.Module:
    a = ARCHITECTURE
    torch.manual_seed(3)
    config = ViTMAEConfig(
        hidden_size=a.width,
        num_hidden_layers=a.depth,
        num_attention_heads=a.heads,
        intermediate_size=int(a.width * a.mlp_ratio),
        image_size=a.tile_px,
        patch_size=a.patch_px,
        num_channels=a.channels,
        decoder_hidden_size=a.decoder_width,
        decoder_num_hidden_layers=a.decoder_depth,
        decoder_num_attention_heads=a.decoder_heads,
        decoder_intermediate_size=int(a.decoder_width * a.decoder_mlp_ratio),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        qkv_bias=True,
        attn_implementation="eager",
    )
    model = ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("position_embeddings", "pos_embed")):  # version 5 leaves them to the checkpoint
                p.copy_(positions(a.grid[0], p.shape[2]))
            else:
                p.add_(torch.randn_like(p) * (0.4 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.1))
    return model


def translate(oracle: nn.Module) -> MaskedAutoencoder:
    """The oracle's weights under our names; every one of both is used."""
    theirs = dict(oracle.state_dict())
    ours = MaskedAutoencoder(ARCHITECTURE)
    state: dict[str, torch.Tensor] = {}

    def take(name: str) -> torch.Tensor:
        return theirs.pop(name)

    kernel = take("vit.embeddings.patch_embeddings.projection.weight")  # [D, C, p, p]
    state["embed.weight"] = kernel.permute(0, 2, 3, 1).flatten(1)
    state["embed.bias"] = take("vit.embeddings.patch_embeddings.projection.bias")
    state["class_token"] = take("vit.embeddings.cls_token")[None]
    state["mask_token"] = take("decoder.mask_token")[None]
    pairs = {"norm": "vit.layernorm", "to_decoder": "decoder.decoder_embed", "decoder_norm": "decoder.decoder_norm"}
    pairs["head"] = "decoder.decoder_pred"
    for ours_name, theirs_name in pairs.items():
        for kind in ("weight", "bias"):
            state[f"{ours_name}.{kind}"] = take(f"{theirs_name}.{kind}")
    layers = [(f"encoder.{i}", f"vit.encoder.layer.{i}", f"vit.layers.{i}") for i in range(ARCHITECTURE.depth)]
    layers += [
        (f"decoder.{i}", f"decoder.decoder_layers.{i}", f"decoder.decoder_layers.{i}")
        for i in range(ARCHITECTURE.decoder_depth)
    ]
    for ours_name, *candidates in layers:
        prefix = next(c for c in candidates if any(k.startswith(c + ".") for k in theirs))
        for part, value in layer(prefix, theirs).items():
            state[f"{ours_name}.{part}"] = value
    assert not [k for k in theirs if "position_embeddings" not in k and "pos_embed" not in k]
    ours.load_state_dict(state)
    return ours.eval()


def layer(prefix: str, theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One transformer block; the names of the attention differ between versions 4 and 5."""
    taken = {k[len(prefix) + 1 :]: theirs.pop(k) for k in list(theirs) if k.startswith(prefix + ".")}

    def of(*ends: str) -> str:
        return next(stem for stem in (k.rsplit(".", 1)[0] for k in taken) if stem.endswith(ends))

    names = {
        "norm": of("layernorm_before"),
        "mlp_norm": of("layernorm_after"),
        "q": of(".query", "q_proj"),
        "out": of("attention.output.dense", "o_proj"),
        "mlp.0": of("intermediate.dense", "fc1"),
        "mlp.2": next(k for k in ("output.dense", "mlp.fc2", "fc2") if f"{k}.weight" in taken),
    }
    result = {f"{a}.{kind}": taken[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
    k, v = of(".key", "k_proj"), of(".value", "v_proj")
    for kind in ("weight", "bias"):
        result[f"kv.{kind}"] = torch.cat([taken[f"{k}.{kind}"], taken[f"{v}.{kind}"]])
    assert len(taken) == 16
    return result


def variant_by_variant(oracle: nn.Module, pixels: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The oracle's answers for the hidden tokens [N, V, H, P]; `noise` decides what is hidden: the highest go."""
    a, answers = ARCHITECTURE, []
    values = ((pixels.float() / 255 - a.mean) / a.std).permute(0, 3, 1, 2)
    for hidden in plan.hidden:
        noise = torch.zeros(len(pixels), a.tokens)
        noise[:, hidden.tolist()] = 1.0
        noise += torch.linspace(0, 0.1, a.tokens)  # no ties
        oracle.config.mask_ratio = oracle.vit.embeddings.config.mask_ratio = len(hidden) / a.tokens
        with torch.no_grad():
            answers.append(oracle(values, noise=noise).logits[:, hidden.tolist()])
    return torch.stack(answers, 1)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("name", ["x1", "x4"])
def test_torch_equals_vitmae(oracle: nn.Module, pixels: torch.Tensor, name: str) -> None:
    plan = named_plan(name, ARCHITECTURE)
    expected = variant_by_variant(oracle, pixels, plan)
    model = translate(oracle)
    scale = 1 / expected.std()  # unit output variance: the tolerance means something
    visible, hidden, _ = plan_tensors(plan)
    with torch.no_grad():
        found, _, _ = model.repaint(patchify(pixels.float() / 255, ARCHITECTURE.patch_px), visible, hidden)
    assert expected.std() > 0.1
    torch.testing.assert_close(found * scale, expected * scale, atol=1e-4, rtol=0)


def test_the_exported_graph_equals_vitmae(oracle: nn.Module, pixels: torch.Tensor, tmp_path: Path) -> None:
    plan = named_plan("x1", ARCHITECTURE)
    answers = variant_by_variant(oracle, pixels, plan)
    model = translate(oracle)
    scale = 0.15 / (answers.std() * ARCHITECTURE.std)  # answers stay inside [0, 1], where nothing is clipped
    with torch.no_grad():
        model.head.weight.mul_(scale)
        model.head.bias.mul_(scale)
    manifest = Manifest(name="vitmae", architecture=ARCHITECTURE, licence="none", files={"network.onnx": "0" * 64})
    bundle = export_bundle(tmp_path / "b", model, manifest)
    backend = open_backend("openvino")
    backend.load(bundle, "x1", precision="f32", threads=1, batch=1)
    found = np.empty(pixels.shape, np.float32)
    backend.infer(pixels.numpy(), found)
    expected = (answers.flatten(1, 2)[:, plan.place] * scale * ARCHITECTURE.std + ARCHITECTURE.mean).clamp(0, 1)
    np.testing.assert_allclose(patchify(torch.from_numpy(found), 4).numpy(), expected.numpy(), atol=1e-4, rtol=0)
