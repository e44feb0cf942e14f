"""Published vision transformers, in both layouts, give what transformers' ViT gives; what is none is refused."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edge.cli.networks import fit
from edge.errors import MasklineError
from engines import fit as fitting
from engines.anovit import AnoVit
from engines.architecture import ANOVIT_PAPER, AnovitArchitecture
from engines.bundle import Bundle
from engines.checkpoint_keys import encoder_shapes
from engines.export import load_model
from engines.mae import patchify
from engines.registry import ENGINES, EngineKind, Fitting
from engines.textures import canvas
from engines.vit_weights import HEADS, load_encoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import ViTConfig, ViTForImageClassification

State = dict[str, Tensor]

TINY = AnovitArchitecture(
    tile_px=32, patch_px=8, channels=3, width=32, depth=2, heads=4, decoder_widths=(16, 12, 8, 8, 8)
)


@pytest.fixture(scope="module")
def oracle() -> nn.Module:
    """A classifier with random weights large enough to matter."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=5,
        attn_implementation="eager",
    )
    model: nn.Module = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.4 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.1))
    return model


@pytest.fixture(scope="module")
def folder(oracle: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on the hub."""
    path: Path = tmp_path_factory.mktemp("hub")
    oracle.save_pretrained(path)  # type: ignore[operator]
    return path


@pytest.fixture(scope="module")
def state(folder: Path) -> State:
    """Hugging Face's layout, as published since version 4."""
    found: State = load_file(folder / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in found
    return found


def timm(state: State) -> State:
    """The same in timm's names, written out here a second time: what the loader knows must not be what tests it."""
    whole = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.layernorm": "norm",
        "classifier": "head",
    }
    parts = {
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    renamed: State = {}
    for key, value in state.items():
        stem, dot, kind = key.rpartition(".") if key.endswith((".weight", ".bias")) else (key, "", "")
        if stem in whole:
            renamed[whole[stem] + dot + kind] = value
            continue
        number, _, part = stem.removeprefix("vit.encoder.layer.").partition(".")
        if part in parts:
            renamed[f"blocks.{number}.{parts[part]}.{kind}"] = value
        elif part.endswith(".query"):
            three = [state[key.replace("query", name)] for name in ("query", "key", "value")]
            renamed[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(three)
    return renamed


def written(path: Path, state: State) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def some_tiles(a: AnovitArchitecture) -> Tensor:
    shape = (2, a.tile_px, a.tile_px, a.channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def tokens(network: AnoVit, tiles: Tensor) -> Tensor:
    with torch.no_grad():
        return network.encode(patchify(tiles / 127.5 - 1, network.architecture.patch_px))


def theirs(oracle: nn.Module, tiles: Tensor) -> Tensor:
    values = (tiles / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        found: Tensor = oracle.vit(values, interpolate_pos_encoding=True).last_hidden_state  # type: ignore[operator]
    return found


def assert_same(found: Tensor, expected: Tensor) -> None:
    scale = 1 / expected.std()  # unit variance: the tolerance means something
    torch.testing.assert_close(found * scale, expected * scale, atol=1e-4, rtol=0)
    assert (expected - expected.mean((0, 1))).std() > 0.1 * expected.std()  # answers differ between places


def test_a_folder_of_hugging_face_gives_the_tokens_of_transformers(oracle: nn.Module, folder: Path) -> None:
    network, tiles = load_encoder(folder, TINY), some_tiles(TINY)
    assert network.architecture.norm_eps == 1e-12
    assert_same(tokens(network, tiles), theirs(oracle, tiles))


def test_a_file_of_timm_gives_the_same_tokens(oracle: nn.Module, state: State, tmp_path: Path) -> None:
    network, tiles = load_encoder(written(tmp_path / "vit.safetensors", timm(state)), TINY), some_tiles(TINY)
    assert network.architecture == TINY
    assert_same(tokens(network, tiles), theirs(oracle, tiles))
    torch.save(timm(state), tmp_path / "vit.pth")
    assert torch.equal(tokens(load_encoder(tmp_path / "vit.pth", TINY), tiles), tokens(network, tiles))


@pytest.mark.parametrize("tile_px", [24, 64])
def test_positions_of_another_grid_are_interpolated(oracle: nn.Module, folder: Path, tile_px: int) -> None:
    a = TINY.model_copy(update={"tile_px": tile_px})
    assert_same(tokens(load_encoder(folder, a), some_tiles(a)), theirs(oracle, some_tiles(a)))


def test_grey_tiles_are_seen_as_grey_in_colour(oracle: nn.Module, folder: Path) -> None:
    a = TINY.model_copy(update={"channels": 1})
    grey = some_tiles(a)
    assert_same(tokens(load_encoder(folder, a), grey), theirs(oracle, grey.repeat(1, 1, 1, 3)))


def test_half_precision_becomes_float32_and_a_bare_transformer_will_do(state: State, tmp_path: Path) -> None:
    bare = {name.removeprefix("vit."): value.half() for name, value in state.items() if name.startswith("vit.")}
    bare |= {"pooler.dense.weight": torch.zeros(32, 32), "pooler.dense.bias": torch.zeros(32)}
    network, tiles = load_encoder(written(tmp_path / "half.safetensors", bare), TINY), some_tiles(TINY)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    whole = tokens(load_encoder(written(tmp_path / "whole.safetensors", state), TINY), tiles)
    torch.testing.assert_close(tokens(network, tiles), whole, atol=0.02, rtol=0)


def test_heads_are_those_of_the_published_widths(tmp_path: Path) -> None:
    assert HEADS[ANOVIT_PAPER.width] == 12 != ANOVIT_PAPER.heads
    a = AnovitArchitecture(tile_px=32, channels=3, width=192, depth=1, heads=8, decoder_widths=(8, 8, 8, 8, 8))
    zeros = {"embed.weight": "patch_embed.proj.weight", "embed.bias": "patch_embed.proj.bias"}
    zeros |= {"class_token": "cls_token", "where": "pos_embed"}
    renamed = {"encoder.": "blocks.", ".mlp_norm.": ".norm2.", "0.norm.": "0.norm1.", ".qkv.": ".attn.qkv."}
    renamed |= {".out.": ".attn.proj.", ".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2."}
    file: State = {}
    for name, shape in encoder_shapes(a, a.side**2, fused=True):
        key = zeros.get(name, name)
        for ours, new in renamed.items():
            key = key.replace(ours, new)
        file[key] = torch.zeros(shape)
    assert load_encoder(written(tmp_path / "ti.safetensors", file), a).architecture.heads == 3


def test_the_decoder_is_fresh_and_follows_the_seed(folder: Path) -> None:
    torch.manual_seed(3)
    first = load_encoder(folder, TINY).decoder.state_dict()
    torch.manual_seed(3)
    same, other = (load_encoder(folder, TINY).decoder.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "other sizes": (lambda s: None, r"a width of 32, 2 blocks, patches of 8 pixels; expected 64, 2 and 8"),
    "distilled": (
        lambda s: s.update(dist_token=torch.zeros(1, 1, 32)),
        "no plain vision transformer, it has dist_token",
    ),
    "a decoder": (lambda s: s.update(mask_token=torch.zeros(1, 1, 32)), "it has mask_token"),
    "cut": (lambda s: s.pop("blocks.1.attn.proj.bias"), r"keys are missing: blocks\.1\.attn\.proj\.bias"),
    "no positions": (lambda s: s.pop("pos_embed"), "keys are missing: pos_embed"),
    "nothing": (lambda s: s.clear() or s.update({"head.bias": torch.zeros(5)}), "keys are missing: cls_token"),  # type: ignore[func-returns-value]
    "no square": (lambda s: s.update(pos_embed=torch.zeros(1, 16, 32)), r"pos_embed has the shape \[1, 16, 32\]"),
    "grey": (
        lambda s: s.update({"patch_embed.proj.weight": torch.zeros(32, 1, 8, 8)}),
        r"patch_embed\.proj\.weight has the shape \[32, 1, 8, 8\], expected \[32, 3, 8, 8\]",
    ),
    "two layouts": (
        lambda s: s.update({"encoder.layer.0.attention.attention.query.bias": torch.zeros(32)}),
        "has the shape .32., expected another layout's",
    ),
    "whole numbers": (lambda s: s.update({"norm.bias": torch.zeros(32, dtype=torch.int32)}), "holds torch.int32"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_in_words(kind: str, state: State, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    file = timm(state)
    change(file)
    a = TINY.model_copy(update={"width": 64}) if kind == "other sizes" else TINY
    with pytest.raises(MasklineError, match=message):
        load_encoder(written(tmp_path / "vit.safetensors", file), a)


def test_what_is_no_file_of_weights_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match="there is no such file"):
        load_encoder(tmp_path / "nothing.safetensors", TINY)
    (tmp_path / "text.safetensors").write_text("these are no weights")
    with pytest.raises(MasklineError, match="neither a torch file nor safetensors"):
        load_encoder(tmp_path / "text.safetensors", TINY)


@pytest.fixture
def tiny_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ENGINES["anovit"]
    tiny = EngineKind(plain.paper, {"tiny": TINY}, plain.error_map, plain.score, plain.fitting, tuning=plain.tuning)
    for module in ("engines.fit", "engines.settings"):
        monkeypatch.setattr(f"{module}.ENGINES", dict(ENGINES) | {"anovit": tiny})


@pytest.mark.usefixtures("tiny_engine")
def test_a_bundle_says_which_weights_it_started_from(state: State, tmp_path: Path) -> None:
    file = written(tmp_path / "vit.safetensors", timm(state))
    start = fitting.from_scratch("anovit", channels=3, weights=file)
    before = {name: value.clone() for name, value in start.network.state_dict().items()}
    expected = load_encoder(file, TINY).state_dict()
    assert all(torch.equal(before[name], expected[name]) for name in expected if not name.startswith("decoder."))
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "0.png"), canvas(1, 0, 48))
    made = fitting.fit(tmp_path / "good", start, tmp_path / "out", Fitting(steps=2, batch=2), quiet=True)
    trained = made.manifest.trained
    assert trained is not None
    assert trained.base == f"vit.safetensors {hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert made.manifest.licence == "yours, and that of vit.safetensors, where fitting began"
    assert moved(made, before)


def moved(bundle: Bundle, before: State) -> bool:
    """Encoder and decoder were both fitted."""
    after = load_model(bundle).state_dict()
    return all(not torch.equal(after[name], before[name]) for name in ("encoder.0.q.weight", "decoder.0.weight"))


def test_other_engines_take_no_weights_and_a_bundle_takes_none_beside_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match=r"--weights .*: engine 'sdc' takes none; those that do: anovit"):
        fitting.from_scratch("sdc", weights=folder)
    with pytest.raises(MasklineError, match=r"--bundle texture-s and --weights .*: fitting starts from one of them"):
        fit(good=tmp_path, out=tmp_path / "out", bundle="texture-s", weights=folder)
