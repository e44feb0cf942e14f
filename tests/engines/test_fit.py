"""Fitting at a tiny size: it leaves a bundle and pictures, resumes, and names what it cannot use."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from engine_helpers import TINY

from edge.errors import MasklineError, SourceError
from edge.tiling import cut, plan_prepare, prepare
from engines import fit as module
from engines.bundle import Bundle, Manifest, load_bundle
from engines.export import export_bundle
from engines.fit import as_seen, fit, from_bundle, from_scratch, load_good
from engines.loss_curve import draw_curve
from engines.mae import MaskedAutoencoder
from engines.registry import Fitting
from engines.textures import canvas

MANIFEST = Manifest(name="tiny", architecture=TINY, licence="none", files={"network.onnx": "0" * 64})
SHORT = Fitting(steps=6, batch=2, every=2)


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    return export_bundle(tmp_path / "base", MaskedAutoencoder(TINY), MANIFEST)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    for k in range(4):
        cv2.imwrite(str(folder / f"{k}.png"), canvas(1, k, 64))
    return folder


def test_a_bundle_with_pictures_comes_out(base: Bundle, good: Path, tmp_path: Path) -> None:
    bundle = fit(good, from_bundle(base.path), tmp_path / "out", SHORT, quiet=True)
    assert load_bundle(tmp_path / "out") == bundle
    assert bundle.manifest.name == "out"
    assert bundle.manifest.trained is not None
    assert bundle.manifest.trained.base == f"tiny {base.sha256}"
    assert bundle.manifest.error_map == base.manifest.error_map
    assert bundle.read("network.safetensors") != base.read("network.safetensors")
    assert cv2.imread(str(tmp_path / "out" / "loss.png")).shape == (360, 640, 3)
    assert cv2.imread(str(tmp_path / "out" / "repainted.png")).shape == (96, 6 * 48, 3)
    assert not (tmp_path / "out.fit").exists()


def test_an_interrupted_run_ends_the_same(
    base: Bundle, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(good, from_bundle(base.path), tmp_path / "whole", SHORT, name="same", quiet=True)
    monkeypatch.setattr(module, "_crops", interrupted_after(6, module._crops))
    with pytest.raises(KeyboardInterrupt):
        fit(good, from_bundle(base.path), tmp_path / "cut", SHORT, name="same", quiet=True)
    monkeypatch.undo()
    again = fit(good, from_bundle(base.path), tmp_path / "cut", SHORT, name="same", quiet=True)
    assert again.manifest.files["network.safetensors"] == whole.manifest.files["network.safetensors"]


def interrupted_after(calls: int, function: object) -> object:
    left = iter(range(calls))

    def once(*args: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args)  # type: ignore[operator]

    return once


def test_a_run_with_other_settings_is_not_resumed(
    base: Bundle, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_crops", interrupted_after(4, module._crops))
    with pytest.raises(KeyboardInterrupt):
        fit(good, from_bundle(base.path), tmp_path / "cut", SHORT, quiet=True)
    with pytest.raises(MasklineError, match="other settings"):
        fit(good, from_bundle(base.path), tmp_path / "cut", Fitting(steps=7, batch=2, every=2), quiet=True)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing: .*No such file or directory"):
        load_good(tmp_path / "nothing", MANIFEST)
    with pytest.raises(SourceError, match="no images"):
        load_good(tmp_path, MANIFEST)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"broken\.png: neither PNG, JPEG, TIFF nor BMP; take it out"):
        load_good(tmp_path, MANIFEST)
    with pytest.raises(SourceError, match=r"gone\.png: cannot be read"):
        load_good([tmp_path / "gone.png"], MANIFEST)


def test_folders_below_and_named_files_are_read(good: Path) -> None:
    (good / "below").mkdir()
    (good / "0.png").rename(good / "below" / "0.png")
    in_folder = load_good(good, MANIFEST)
    assert len(in_folder) == 4
    named = load_good([good / "3.png", good / "below" / "0.png"], MANIFEST)
    assert [np.array_equal(*pair) for pair in zip(named, (in_folder[2], in_folder[3]), strict=True)] == [True, True]


def test_what_is_smaller_than_a_tile_is_mirrored() -> None:
    image = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60, 1).astype(np.uint8)
    seen = as_seen(image, MANIFEST)
    assert seen.shape == (48, 60, 1)
    assert np.array_equal(seen[4:44], image)
    assert np.array_equal(seen[:4], image[4:0:-1])
    assert np.array_equal(seen[44:], image[-2:-6:-1])
    assert as_seen(image[:3, :1], MANIFEST).shape == (48, 48, 1)


def test_images_are_scaled_and_cut_as_the_line_does_it() -> None:
    rng = np.random.default_rng(0)
    for image in (
        rng.integers(0, 256, (120, 96, 3)).astype(np.uint8),
        rng.integers(0, 65536, (97, 101, 1)).astype(np.uint16),
    ):
        for channels in (1, 3):
            manifest = MANIFEST.model_copy(update={"architecture": TINY.model_copy(update={"channels": channels})})
            plan = plan_prepare(
                image.shape, image.dtype, tile=48, scale=0.5, channels=channels, window=(0, 65535), overlap=7
            )
            tiles = prepare(image, plan, np.empty(plan.tiles_shape, np.uint8))
            seen = as_seen(image, manifest, 0.5)
            assert np.array_equal(cut(seen, plan.tiling, np.empty_like(tiles)), tiles)


def test_a_fit_takes_files_and_a_scale(base: Bundle, good: Path, tmp_path: Path) -> None:
    files = sorted(good.iterdir())[:3]
    bundle = fit(files, from_bundle(base.path), tmp_path / "out", SHORT, scale=2.0, quiet=True)
    assert bundle.manifest.trained is not None
    assert bundle.manifest.trained.data == "3 images of good"
    same = fit(good, from_bundle(base.path), tmp_path / "same", SHORT, name="out", quiet=True)
    assert bundle.read("network.safetensors") != same.read("network.safetensors")


def test_grey_colour_and_deep_images_fit_the_bundle(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 50, 3), (10, 20, 200), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((50, 50), 32768, np.uint16))
    grey = load_good(tmp_path, MANIFEST)
    assert [i.shape for i in grey] == [(50, 50, 1)] * 2
    assert grey[1][0, 0, 0] == 128
    colour = MANIFEST.model_copy(update={"architecture": TINY.model_copy(update={"channels": 3})})
    found = load_good(tmp_path, colour)
    assert found[0][0, 0].tolist() == [200, 20, 10]
    assert found[1][0, 0].tolist() == [128] * 3


def test_a_curve_can_be_drawn_of_anything() -> None:
    for seen, held in (([], []), ([0.5], []), ([0.9, 0.5, 0.4], [0.6])):
        assert draw_curve(seen, held, 2).shape == (360, 640, 3)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"engine": "yolo"}, "engine 'yolo': there is no such engine; there are: .*sdc"),
        ({"engine": "mae", "size": "huge"}, "--size 'huge': engine 'mae' has the sizes edge"),
        ({"engine": "mae", "tile_px": 225}, "tile_px 225 is no multiple of patch_px 14"),
    ],
)
def test_an_engine_that_cannot_be_had_is_named(choice: dict[str, object], message: str) -> None:
    with pytest.raises(MasklineError, match=message):
        from_scratch(**choice)  # type: ignore[arg-type]


def test_fresh_weights_follow_the_seed() -> None:
    first, same, other = (from_scratch("mae", tile_px=56, seed=seed).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert from_scratch("mae").base.startswith("texture-s ")


def test_a_network_of_one_pass_is_fitted_from_fresh_weights(good: Path, tmp_path: Path) -> None:
    bundle = fit(
        good, from_scratch("sdc", tile_px=64), tmp_path / "out", Fitting(steps=4, batch=1, every=2), quiet=True
    )
    assert bundle.manifest.architecture.kind == "sdc"
    assert bundle.manifest.plans == ("x1",)
    assert bundle.manifest.error_map.kind == "smoothed"
    assert bundle.manifest.trained is not None
    assert bundle.manifest.trained.base == ""
    again = fit(good, from_bundle(bundle.path), tmp_path / "more", Fitting(steps=2, batch=1), quiet=True)
    assert again.manifest.trained is not None
    assert again.manifest.trained.base == f"out {bundle.sha256}"
