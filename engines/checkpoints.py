"""Reads published masked autoencoders (He et al., 2021) into our network, so that Dini & Rahtu's detector runs without
training. Needs torch.

Two layouts, each as torch wrote it (read with `weights_only`: nothing in it is executed) or as safetensors: that of
facebookresearch/mae, and that of Hugging Face's transformers. Everything follows from the names and shapes, but for
three things: how many heads there are (a table of the published widths, or config.json), what the answers mean (the
file's name, config.json, or the caller), and the size of a tile (the caller: positions are computed, not learnt).

The weights are the user's own copy. Meta's are licensed for non-commercial use; nothing of them ships with us.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from edge.errors import MasklineError
from engines.architecture import VIT_B, MaeArchitecture
from engines.bases import sine_positions
from engines.bundle import GRAPH, WEIGHTS, Bundle, Manifest, Score, Trained
from engines.checkpoint_keys import expected_shapes, our_name, our_state, their_name
from engines.export import export_bundle
from engines.mae import MaskedAutoencoder
from engines.plans import named_plan
from engines.weight_files import FILES, file_sha256, find_file, name_some, read_tensors

__all__ = ["ENCODER_HEADS", "HUGGING_FACE_EPS", "LICENCE", "import_checkpoint", "load_checkpoint", "summary"]

LICENCE = "CC-BY-NC-4.0 (weights by Meta; not part of maskline)"

ENCODER_HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
"""Heads by width, as published: no shape tells them."""
HUGGING_FACE_EPS = 1e-12
"""What transformers adds in its layer norms unless config.json says otherwise; facebookresearch/mae adds 1e-6."""
WITH_DECODER = {
    768: "mae_visualize_vit_base.pth",
    1024: "mae_visualize_vit_large.pth or mae_visualize_vit_large_ganloss.pth",
    1280: "mae_visualize_vit_huge.pth",
}
"""By the encoder's width, what to take instead of a checkpoint without a decoder."""
POSITIONS_TOLERANCE = 2e-3
"""Half precision is off by 5e-4; a table that was learnt is off by far more."""


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    tile_px: int = 224,
    target: str | None = None,
    ssim_window: int = 11,
    opening_px: int = 2,
) -> Bundle:
    """Writes a published checkpoint as the bundle `out`, with Dini & Rahtu's error map and score.

    The map is SSIM (a window of 7, 9 or 11) and L1, opened with a square of 2 or 4 pixels; the score is its mean. It
    needs a calibration of its own. Raises MasklineError; see `load_checkpoint`.
    """
    if out.exists() and not out.is_dir():
        raise MasklineError(f"--out {out}: there is a file of that name; name a folder to write")
    error_map = {"kind": "ssim_l1", "ssim_window": ssim_window, "opening_px": opening_px}
    fields = {"name": out.name, "architecture": VIT_B, "error_map": error_map, "files": {GRAPH: "0" * 64}}
    try:
        manifest = Manifest.model_validate({**fields, "score": Score(kind="mean"), "licence": LICENCE})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MasklineError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}") from error
    model, path = load_checkpoint(checkpoint, tile_px, target=target), find_file(checkpoint)
    trained = Trained(steps=0, seed=0, data="not recorded in the checkpoint", base=f"{path.name} {file_sha256(path)}")
    try:
        return export_bundle(out, model, manifest.model_copy(update={"trained": trained}))
    except ValueError as error:
        raise MasklineError(f"checkpoint {path}: {error}; get the file again") from error


def summary(bundle: Bundle) -> str:
    """What a person should know about an imported bundle, in a few lines."""
    a = bundle.manifest.architecture
    assert isinstance(a, MaeArchitecture)
    variants = ", ".join(f"{name} {named_plan(name, a).variants}" for name in bundle.manifest.plans)
    bytes_on_disk = sum((bundle.path / name).stat().st_size for name in bundle.manifest.files)
    parameters = (bundle.path / WEIGHTS).stat().st_size / 4
    return (
        f"Licence: {bundle.manifest.licence}\n"
        f"Network: encoder {a.width} x {a.depth}, decoder {a.decoder_width} x {a.decoder_depth}, predicts {a.target}; "
        f"{parameters / 1e6:.1f} M parameters, {bytes_on_disk / 1e6:.0f} MB on disk\n"
        f"Tiles: {a.tile_px} pixels, {a.grid[0]} x {a.grid[1]} tokens of {a.patch_px} pixels; variants: {variants}\n"
        f"Bundle: {bundle.path} ({bundle.sha256[:12]}); it needs a calibration of its own"
    )


def load_checkpoint(
    path: Path,
    tile_px: int = 224,
    *,
    target: str | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> MaskedAutoencoder:
    """A published checkpoint as our network, in float32 and ready to run.

    path: a file in either layout, or a folder with model.safetensors and config.json.
    tile_px: 224 as published, or another multiple of the patch, such as 256 where it has 16 pixels.
    target: "pixels", or "normalised" if it was trained with norm_pix_loss; needed where neither the file's name nor
    config.json tells.
    heads, decoder_heads: of networks whose widths were never published.

    Raises MasklineError, which says what is wrong with the file and which one to take.
    """
    checkpoint = _read(find_file(path))
    a = _architecture(checkpoint, tile_px, target, heads, decoder_heads)
    _check(checkpoint, a)
    model = MaskedAutoencoder(a)
    model.load_state_dict(dict(our_state(checkpoint.tensors)))
    return model.eval()


@dataclass(frozen=True)
class _Checkpoint:
    path: Path
    tensors: Mapping[str, Tensor]
    """Under our names, where queries, keys and values may still be one tensor (`qkv`) or three."""
    theirs: Mapping[str, str]
    """What the file calls each of them."""
    config: Mapping[str, Any]
    """Hugging Face's config.json; empty without one."""

    @property
    def hugging_face(self) -> bool:
        return "embeddings." in self.theirs.get("embed.weight", "")

    def error(self, message: str) -> MasklineError:
        return MasklineError(f"checkpoint {self.path}: {message}")

    def name(self, ours: str) -> str:
        """What this file calls a parameter, or would if it had it."""
        return self.theirs.get(ours) or their_name(ours, int(self.hugging_face))

    def shape(self, ours: str, rank: int) -> tuple[int, ...]:
        if ours not in self.tensors:
            raise self.error(f"{self.name(ours)} is missing; get the file again")
        shape = tuple(self.tensors[ours].shape)
        if len(shape) != rank:
            raise self.error(f"{self.name(ours)} has the shape {list(shape)}, expected {rank} dimensions")
        return shape


def _read(path: Path) -> _Checkpoint:
    """Names what is in the file; refuses what is no masked autoencoder, or has no decoder, or has more than we know."""
    tensors: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    unknown = []
    for key, value in read_tensors(path).items():
        ours = our_name(key)
        if ours is None or ours in tensors or not isinstance(value, Tensor):
            unknown.append(key)
        else:
            tensors[ours], theirs[ours] = value, key
    checkpoint = _Checkpoint(path, tensors, theirs, _config(path))
    if not any(name.startswith("encoder.") for name in tensors):
        raise checkpoint.error(
            f"no masked autoencoder: it has {name_some(unknown) if unknown else 'nothing'}, expected keys such as "
            "blocks.0.attn.qkv.weight or vit.encoder.layer.0.attention.attention.query.weight"
        )
    if not any(name.startswith(("decoder.", "to_decoder.", "head.")) for name in tensors):
        width = checkpoint.shape("embed.bias", 1)[0]
        instead = WITH_DECODER.get(width, "one that was saved with its decoder")
        raise checkpoint.error(f"an encoder alone (width {width}), which cannot repaint; take {instead}")
    if unknown:
        raise checkpoint.error(f"unknown keys: {name_some(unknown)}; not a masked autoencoder as published")
    return checkpoint


def _config(path: Path) -> Mapping[str, Any]:
    """config.json beside a file that is called as in Hugging Face's folders."""
    file = path.parent / "config.json"
    if path.name not in FILES or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MasklineError(f"checkpoint {path}: {file} is no JSON ({error}); get the file again") from error
    kind, activation = (config.get(key) if isinstance(config, dict) else None for key in ("model_type", "hidden_act"))
    if kind != "vit_mae" or activation != "gelu":
        raise MasklineError(
            f"checkpoint {path}: {file} says model_type {kind!r} and hidden_act {activation!r}, "
            "expected 'vit_mae' and 'gelu'"
        )
    return dict(config)


def _architecture(
    checkpoint: _Checkpoint, tile_px: int, target: str | None, heads: int | None, decoder_heads: int | None
) -> MaeArchitecture:
    width, channels, patch, _ = checkpoint.shape("embed.weight", 4)
    decoder_width, config = checkpoint.shape("mask_token", 3)[2], checkpoint.config
    if channels != 3:
        raise checkpoint.error(f"takes images of {channels} channels, expected 3")
    if patch < 1 or tile_px % patch or tile_px < 4 * patch:
        raise checkpoint.error(f"tiles of {tile_px} pixels: expected a multiple of its patches of {patch}, 4 at least")
    fields = {
        **VIT_B.model_dump(),
        "tile_px": tile_px,
        "patch_px": patch,
        "width": width,
        "depth": _depth(checkpoint, "encoder"),
        "heads": heads or config.get("num_attention_heads") or ENCODER_HEADS.get(width),
        "mlp_ratio": checkpoint.shape("encoder.0.mlp.0.weight", 2)[0] / max(1, width),
        "decoder_width": decoder_width,
        "decoder_depth": _depth(checkpoint, "decoder"),
        "decoder_heads": decoder_heads or config.get("decoder_num_attention_heads") or DECODER_HEADS.get(decoder_width),
        "decoder_mlp_ratio": checkpoint.shape("decoder.0.mlp.0.weight", 2)[0] / max(1, decoder_width),
        "norm_eps": config.get("layer_norm_eps", HUGGING_FACE_EPS if checkpoint.hugging_face else VIT_B.norm_eps),
        "target": target or _known_target(checkpoint),
    }
    for name, of in (("heads", width), ("decoder_heads", decoder_width)):
        if fields[name] is None:
            raise checkpoint.error(f"nothing says how many heads a width of {of} has; give {name}")
    try:
        return MaeArchitecture.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise checkpoint.error(f"{'.'.join(map(str, first['loc'])) or 'sizes'}: {first['msg']}") from error


def _depth(checkpoint: _Checkpoint, stack: str) -> int:
    numbers = [int(name.split(".")[1]) for name in checkpoint.tensors if name.startswith(f"{stack}.")]
    return max(numbers, default=0) + 1


def _known_target(checkpoint: _Checkpoint) -> str:
    name, config = checkpoint.path.name, checkpoint.config
    if isinstance(config.get("norm_pix_loss"), bool):
        return "normalised" if config["norm_pix_loss"] else "pixels"
    if name.startswith("mae_visualize_"):
        return "pixels"
    if name.startswith("mae_pretrain_") and "_full" in name:
        return "normalised"
    raise checkpoint.error(
        "neither its name nor a config.json says what it predicts; give the target: normalised if it was trained with "
        "norm_pix_loss (as mae_pretrain_vit_base_full.pth was), pixels if not (as mae_visualize_vit_base.pth)"
    )


def _check(checkpoint: _Checkpoint, a: MaeArchitecture) -> None:
    """Every tensor is there, has its shape and is made of floats; positions are those that we compute."""
    rows = math.isqrt(max(0, checkpoint.shape("where", 3)[1] - 1))
    expected = dict(expected_shapes(a, rows * rows, fused=not checkpoint.hugging_face))
    missing = [checkpoint.name(name) for name in expected if name not in checkpoint.tensors]
    if missing:
        raise checkpoint.error(f"keys are missing: {name_some(missing)}; get the file again")
    for name, value in checkpoint.tensors.items():
        if tuple(value.shape) != expected.get(name):
            shape = list(expected[name]) if name in expected else "another layout's"
            raise checkpoint.error(f"{checkpoint.name(name)} has the shape {list(value.shape)}, expected {shape}")
        if not value.is_floating_point():
            raise checkpoint.error(f"{checkpoint.name(name)} holds {value.dtype}, expected floating-point numbers")
    for name, width in (("where", a.width), ("decoder_where", a.decoder_width)):
        computed = torch.nn.functional.pad(sine_positions((rows, rows), width), (0, 0, 1, 0))
        apart = float((checkpoint.tensors[name][0].float() - computed).abs().max())
        if not apart <= POSITIONS_TOLERANCE:
            raise checkpoint.error(
                f"{checkpoint.name(name)} is not the sine-cosine table of the published checkpoints, it differs by up "
                f"to {apart:.2g}; positions that were learnt cannot be used"
            )
