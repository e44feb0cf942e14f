"""Published checkpoints: what is read, what is refused and in which words, and that nothing hidden leaks back."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge.errors import MasklineError
from engines import export
from engines.architecture import VIT_B, VIT_H, VIT_L, MaeArchitecture
from engines.backends import open_backend
from engines.bundle import Bundle, load_bundle
from engines.checkpoint_keys import expected_shapes
from engines.checkpoints import LICENCE, import_checkpoint, load_checkpoint, summary
from engines.export import load_model
from engines.mae import MaskedAutoencoder, plan_tensors
from engines.plans import PLANS, named_plan
from tests.published import HEADS, TINY, State, hugging_face, original, write_hugging_face

PUBLISHED_HEADS = {"heads": 12, "decoder_heads": 16}
NARROW = {"width": 768, "depth": 1, "decoder_width": 512, "decoder_depth": 1, "patch": 14, "side": 4}
"""Of published widths, so that import needs no heads, and small otherwise."""


@pytest.fixture(scope="module")
def state() -> State:
    return original(**TINY, patch=6, side=8)


def written(path: Path, held: object) -> Path:
    torch.save(held, path)
    return path


def load(path: Path, tile_px: int = 48, **more: object) -> MaskedAutoencoder:
    return load_checkpoint(path, tile_px, **{**HEADS, "target": "pixels", **more})  # type: ignore[arg-type]


def some_tiles(side: int, count: int = 1) -> torch.Tensor:
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (count, 3, 8, 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def repaint(model: MaskedAutoencoder, tiles: torch.Tensor, plan: str) -> torch.Tensor:
    with torch.no_grad():
        repainted: torch.Tensor = model(tiles, *plan_tensors(named_plan(plan, model.architecture)))
    return repainted


def same(one: MaskedAutoencoder, other: MaskedAutoencoder) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_every_way_to_write_a_checkpoint_gives_the_same_network(state: State, tmp_path: Path) -> None:
    expected = load(written(tmp_path / "a.pth", {"model": state}))
    options = argparse.Namespace(blr=1e-3, output_dir="out")
    training = {"model": state, "args": options, "epoch": 799, "scaler": {"scale": 65536.0}}
    assert same(expected, load(written(tmp_path / "bare.pth", state)))
    assert same(expected, load(written(tmp_path / "training.pth", training)))
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(expected, load(tmp_path / "old.pth"))
    save_file(state, tmp_path / "a.safetensors")
    assert same(expected, load(tmp_path / "a.safetensors"))
    folder = write_hugging_face(tmp_path / "folder", state, **HEADS)
    assert same(expected, load(folder))
    assert same(expected, load(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    assert same(expected, load(written(folder / "pytorch_model.bin", hugging_face(state)).parent))


def test_half_precision_becomes_float32(state: State, tmp_path: Path) -> None:
    model = load(written(tmp_path / "a.pth", {name: value.half() for name, value in state.items()}))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tiles = some_tiles(48)
    whole = repaint(load(written(tmp_path / "b.pth", state)), tiles, "x4")
    torch.testing.assert_close(repaint(model, tiles, "x4"), whole, atol=0.01, rtol=0)


def test_sizes_follow_from_the_shapes_and_config(state: State, tmp_path: Path) -> None:
    a = load(written(tmp_path / "a.pth", state)).architecture
    expected = VIT_B.model_dump() | {"tile_px": 48, "patch_px": 6, "width": 32, "depth": 2, "heads": 2}
    expected |= {"decoder_width": 24, "decoder_depth": 3, "decoder_heads": 3}
    assert a == MaeArchitecture.model_validate(expected)
    assert a.norm_eps == 1e-6
    folder = write_hugging_face(tmp_path / "folder", state, heads=4, decoder_heads=2, norm_pix_loss=True)
    b = load_checkpoint(folder, 48).architecture
    assert (b.heads, b.decoder_heads, b.norm_eps, b.target) == (4, 2, 1e-12, "normalised")
    assert load_checkpoint(folder, 48, target="pixels").architecture.target == "pixels"


def test_published_sizes() -> None:
    parameters = {
        a.width: sum(math.prod(shape) for name, shape in expected_shapes(a, a.tokens, fused=True))
        for a in (VIT_B, VIT_L, VIT_H)
    }
    assert parameters == {768: 111_907_840, 1024: 329_541_888, 1280: 657_074_508}
    assert [named_plan("x1", a).variants for a in (VIT_B, VIT_L, VIT_H)] == [49, 49, 64]
    assert named_plan("x1", VIT_B.model_copy(update={"tile_px": 256})).variants == 64


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mae_visualize_vit_base.pth", "pixels"),
        ("mae_visualize_vit_large_ganloss.pth", "pixels"),
        ("mae_pretrain_vit_huge_full.pth", "normalised"),
    ],
)
def test_published_names_tell_the_target(name: str, target: str, state: State, tmp_path: Path) -> None:
    assert load(written(tmp_path / name, state), target=None).architecture.target == target


@pytest.mark.parametrize("target", ["pixels", "normalised"])
@pytest.mark.parametrize("plan", PLANS)
def test_nothing_of_a_hidden_block_reaches_its_own_repainting(
    target: str, plan: str, state: State, tmp_path: Path
) -> None:
    model, tiles = load(written(tmp_path / "a.pth", state), target=target), some_tiles(48)
    before = repaint(model, tiles, plan)
    for y, x in ((0, 0), (12, 24), (36, 36)):
        changed = tiles.clone()
        changed[:, y : y + 12, x : x + 12] = 255 - changed[:, y : y + 12, x : x + 12]
        after = repaint(model, changed, plan)
        assert torch.equal(before[:, y : y + 12, x : x + 12], after[:, y : y + 12, x : x + 12])
        assert not torch.equal(before, after)


def test_normalised_answers_take_level_and_contrast_from_around(state: State, tmp_path: Path) -> None:
    model, rng = load(written(tmp_path / "a.pth", state), target="normalised"), np.random.default_rng(0)
    mean, std = (np.float32(x) for x in (VIT_B.mean, VIT_B.std))
    dark, bright = rng.normal(-0.8, 0.3, (48, 24, 1)), rng.normal(0.8, 0.1, (48, 24, 1))
    tile = (255 * (np.concatenate([dark, bright], 1) * std + mean)).clip(0, 255).round().astype(np.uint8)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, -1.0]).repeat(54))  # no level of its own, and a deviation of 1
    repainted = (repaint(model, torch.from_numpy(tile[None]), "x1")[0].numpy() - mean) / std
    for columns, level, deviation in ((slice(0, 12), -0.8, 0.3), (slice(36, 48), 0.8, 0.1)):
        patches = repainted[:, columns].reshape(8, 6, 2, 6, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
        np.testing.assert_allclose(patches.mean(1), level, atol=0.2)
        np.testing.assert_allclose(patches.std(1), deviation, rtol=0.35)


# What is refused, and in which words.


def test_a_checkpoint_without_a_decoder_is_refused_with_the_name_of_the_one_to_take(tmp_path: Path) -> None:
    for width, words in (
        (768, "take mae_visualize_vit_base.pth"),
        (1024, "mae_visualize_vit_large.pth or mae_visualize_vit_large_ganloss.pth"),
        (1280, "take mae_visualize_vit_huge.pth"),
        (32, "width 32"),
    ):
        whole = original(**TINY | {"width": width, "depth": 1}, patch=6, side=8)
        alone = {k: v for k, v in whole.items() if not k.startswith(("decoder", "mask"))}
        with pytest.raises(MasklineError, match=f"encoder alone .*{words}"):
            load(written(tmp_path / "mae_pretrain_vit_base.pth", {"model": alone}))
        theirs = {k.removeprefix("vit."): v for k, v in hugging_face(whole).items() if not k.startswith("decoder")}
        save_file(theirs, tmp_path / "b.safetensors")
        with pytest.raises(MasklineError, match=words):
            load(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm.bias": None}, r"keys are missing: norm\.bias"),
        ({"blocks.1.attn.qkv.bias": None}, r"missing: blocks\.1\.attn\.qkv\.bias"),
        ({"pos_embed": None}, "pos_embed is missing"),
        ({"decoder_blocks.2.mlp.fc1.weight": None}, r"missing: decoder_blocks\.2\.mlp\.fc1\.weight"),
        ({"head.weight": torch.zeros(1)}, r"unknown keys: head\.weight"),
        ({f"more.{n}": torch.zeros(1) for n in range(9)}, r"more\.0, .*more\.3 and 5 more"),
        ({"epoch": 3}, "unknown keys: epoch"),
        ({"norm.weight": torch.zeros(33)}, r"norm\.weight has the shape \[33\], expected \[32\]"),
        ({"cls_token": torch.zeros(32)}, r"cls_token has the shape \[32\], expected \[1, 1, 32\]"),
        ({"patch_embed.proj.weight": torch.zeros(32, 108)}, r"shape \[32, 108\], expected 4 dimensions"),
        ({"patch_embed.proj.weight": torch.zeros(32, 1, 6, 6)}, "1 channels, expected 3"),
        ({"patch_embed.proj.weight": torch.zeros(32, 3, 0, 0)}, "patches of 0"),
        ({"decoder_pred.weight": torch.zeros(108, 32)}, r"decoder_pred\.weight has the shape"),
        ({"norm.weight": torch.zeros(32, dtype=torch.int8)}, "int8, expected floating-point"),
        ({"pos_embed": torch.zeros(1, 65, 32)}, "pos_embed is not the sine-cosine table"),
        ({"decoder_pos_embed": torch.full((1, 65, 24), math.nan)}, "decoder_pos_embed is not the sine-cosine table"),
        ({"pos_embed": torch.zeros(1, 60, 32)}, r"pos_embed has the shape \[1, 60, 32\], expected \[1, 50, 32\]"),
        ({"blocks.99.norm1.weight": torch.zeros(32)}, "depth"),
    ],
)
def test_keys_and_shapes_that_are_not_as_published_are_named(
    change: dict[str, object], words: str, state: State, tmp_path: Path
) -> None:
    held = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(MasklineError, match=words):
        load(written(tmp_path / "a.pth", {"model": held}))


def test_a_missing_key_is_named_as_in_its_own_layout(state: State, tmp_path: Path) -> None:
    held = hugging_face(state)
    del held["vit.encoder.layer.1.attention.attention.key.bias"]
    save_file(held, tmp_path / "a.safetensors")
    with pytest.raises(MasklineError, match=r"missing: vit\.encoder\.layer\.1\.attention\.attention\.key\.bias"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a torch file nor safetensors"),
        (b"<!DOCTYPE html><title>404</title>", "begins with b'<!DOCTYPE'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with"),
        (b"PK\x03\x04 and no more", "damaged, cut off or no checkpoint"),
        (b"\x80\x02 and no more", "damaged, cut off or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(MasklineError, match=words):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_was_cut_off_is_refused(kind: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for kept in (20, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(MasklineError, match=r"cut off|it is not loaded"):  # half a name is an unknown one
            load(path)


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(zipped: bool, state: State, tmp_path: Path) -> None:
    held = {"model": state, "args": _Runs(tmp_path / "ran")}
    torch.save(held, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(MasklineError, match="might run code; it is not loaded"):
        load(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_other_contents_are_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match="holds a list"):
        load(written(tmp_path / "a.pth", [1]))
    with pytest.raises(MasklineError, match=r"no masked autoencoder: it has conv\.weight"):
        load(written(tmp_path / "a.pth", {"conv.weight": torch.zeros(1)}))
    with pytest.raises(MasklineError, match="no such file"):
        load(tmp_path / "nothing.pth")
    with pytest.raises(MasklineError, match=r"a folder without model\.safetensors or pytorch_model\.bin"):
        load(tmp_path)
    folder = write_hugging_face(tmp_path / "folder", state, **HEADS, model_type="vit")
    with pytest.raises(MasklineError, match="model_type 'vit'"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(MasklineError, match="no JSON"):
        load(folder)


def test_what_no_file_tells_must_be_said(state: State, tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", state)
    with pytest.raises(MasklineError, match="norm_pix_loss"):
        load(path, target=None)
    with pytest.raises(MasklineError, match="'pixels' or 'normalised'"):
        load(path, target="both")
    with pytest.raises(MasklineError, match="heads a width of 32 has; give heads"):
        load(path, heads=None)
    with pytest.raises(MasklineError, match="width of 24 has; give decoder_heads"):
        load(path, decoder_heads=None)
    with pytest.raises(MasklineError, match="multiple of 4 x 3 heads"):
        load(path, heads=3)
    for tile_px in (47, 18):
        with pytest.raises(MasklineError, match=f"{tile_px} pixels: expected a multiple of its patches of 6, 4 at"):
            load(path, tile_px)


# From a checkpoint to a bundle.


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("narrow") / "mae_visualize_narrow.pth", {"model": original(**NARROW)})


def by_openvino(bundle: Bundle, tiles: torch.Tensor, plan: str) -> np.ndarray:
    backend = open_backend("openvino")
    backend.load(bundle, plan, precision="f32", threads=1, batch=1)
    out = np.full(tuple(tiles.shape), np.nan, np.float32)
    backend.infer(tiles.numpy(), out)
    return out


@pytest.mark.parametrize("target", ["pixels", "normalised"])
@pytest.mark.parametrize("inside", [True, False])
def test_an_imported_bundle_repaints_as_torch_does(
    target: str, inside: bool, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not inside:
        monkeypatch.setattr(export, "LARGEST_INSIDE_BYTES", 0)
    bundle = import_checkpoint(narrow, tmp_path / "narrow", tile_px=56, target=target)
    graph, weights = ((bundle.path / name).stat().st_size for name in ("network.onnx", "network.safetensors"))
    assert graph > weights if inside else graph < weights / 10
    tiles = some_tiles(56, 2)
    model = load_checkpoint(narrow, 56, target=target)
    assert same(load_model(load_bundle(bundle.path)), model)  # type: ignore[arg-type]
    for plan in ("x1", "x4"):
        expected = repaint(model, tiles, plan).numpy()
        assert expected.std() > 0.05
        np.testing.assert_allclose(by_openvino(bundle, tiles, plan), expected, atol=1e-4, rtol=0)


def test_weights_that_lie_outside_are_checked_too(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_INSIDE_BYTES", 0)
    bundle = import_checkpoint(narrow, tmp_path / "narrow", tile_px=56)
    with (bundle.path / "network.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"changed")
    with pytest.raises(MasklineError, match=r"network\.safetensors: sha256 is"):
        open_backend("openvino").load(bundle, "x1", precision="f32", threads=1, batch=1)


def test_the_manifest_is_dini_and_rahtus_and_says_whose_weights_they_are(narrow: Path, tmp_path: Path) -> None:
    bundle = import_checkpoint(narrow, tmp_path / "vit", tile_px=56, ssim_window=9, opening_px=4)
    m = bundle.manifest
    assert (m.name, m.licence, m.plans) == ("vit", LICENCE, PLANS)
    assert (m.error_map.kind, m.score.kind) == ("ssim_l1", "mean")
    assert m.error_map.model_dump().items() >= {"ssim_window": 9, "opening_px": 4, "l1_weight": 1.0}.items()
    assert m.trained is not None
    assert m.trained.base.startswith("mae_visualize_narrow.pth ")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["architecture"]["std"] == [0.229, 0.224, 0.225]
    text = summary(bundle)
    assert LICENCE in text
    assert "4 x 4 tokens of 14 pixels; variants: x1 4, x4 4, x16 4, x32 2" in text
    assert "calibration" in text


def test_settings_and_weights_that_cannot_be_are_named(narrow: Path, tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match=r"error_map\.\S*ssim_window = 8: .*7, 9 or 11"):
        import_checkpoint(narrow, tmp_path / "a", ssim_window=8)
    with pytest.raises(MasklineError, match=r"name = '\.a'"):
        import_checkpoint(narrow, tmp_path / ".a")
    with pytest.raises(MasklineError, match="a file of that name"):
        import_checkpoint(narrow, narrow)
    endless = original(**NARROW)
    endless["norm.bias"][0] = math.inf
    with pytest.raises(MasklineError, match="not finite"):
        import_checkpoint(written(tmp_path / "mae_visualize_x.pth", endless), tmp_path / "a", tile_px=56)
    assert not (tmp_path / "a").exists()


def test_the_command_imports_and_prints_the_licence(narrow: Path, tmp_path: Path) -> None:
    def maskline(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", "engine", "import", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    done = maskline(narrow, "--out", tmp_path / "b", "--tile-px", 56, "--target", "normalised", "--opening-px", 4)
    assert done.returncode == 0, done.stderr
    assert LICENCE in done.stdout
    a = load_bundle(tmp_path / "b").manifest.architecture
    assert isinstance(a, MaeArchitecture)
    assert (a.target, a.tile_px) == ("normalised", 56)
    refused = maskline(tmp_path / "no.pth", "--out", tmp_path / "c")
    assert refused.returncode == 1
    assert refused.stderr.startswith("maskline: checkpoint ")
