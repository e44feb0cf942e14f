"""What can be set of an engine is listed, reaches the network from the command line, and is written down."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import torch
from texture_helpers import stripes
from typer.testing import CliRunner

from calib.kept_fits import FitChoice, fit_or_find
from edge.cli import app
from edge.errors import MasklineError
from engines.bundle import Bundle, SmoothedMap, SsimL1Map, load_bundle
from engines.export import load_model
from engines.fit import from_bundle, from_scratch
from engines.registry import ENGINES
from engines.settings import changed, default_settings, listed
from tests.calib.category_helpers import recipe, write_category

SIZES = [(engine, size) for engine, kind in ENGINES.items() for size in kind.sizes]
SMALL = {"sdc": ["dilations=1,2", "stacks=1"], "metal": ["width=16", "depth=1"]}
"""Beside tiles of 32 pixels, in which the edge size's dilations alone would not fit."""
HAS = "engine 'sdc' has no such setting; it has "


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), stripes()[40 * k : 40 * k + 40, :40])
    return folder


def maskline(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception:
        raise result.exception
    return result.stdout


def fitted(good: Path, out: Path, engine: str, *said: str) -> Bundle:
    """By `maskline fit`, two steps of tiny tiles, with these settings."""
    sets = [word for text in (*SMALL[engine], *said) for word in ("--set", text)]
    maskline("fit", "--good", good, "--out", out, "--engine", engine, "--tile-px", 32, "--steps", 2, *sets)
    return load_bundle(out)


@pytest.mark.parametrize(("engine", "size"), SIZES)
def test_every_setting_says_what_it_is_and_can_be_set_to_what_it_is(engine: str, size: str) -> None:
    settings = default_settings(engine, size)
    rows = listed(settings)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.meaning, row
        assert row.allowed, row
        values = row.value if isinstance(row.value, tuple) else (row.value,)
        text = ",".join("null" if value is None else str(value).lower() for value in values)
        assert changed(settings, [f"{row.name}={text}"]) == settings


def test_the_command_line_lists_an_engines_settings_of_a_size() -> None:
    told = maskline("engines", "metal")
    assert re.search(r"│ stripes +│ rows +│ rows, columns, none +│ as wide as the tile", told)
    assert re.search(r"│ patch_px +│ 8 ", told)
    assert re.search(r"│ patch_px +│ 16 ", maskline("engines", "metal", "--size", "paper"))
    assert re.search(r"│ corruption.kinds +│ elastic,brightness,blur,flat ", maskline("engines", "sdc"))
    with pytest.raises(MasklineError, match="engine 'yolo': there is no such engine; there are: retouch, mae"):
        maskline("engines", "yolo")
    with pytest.raises(MasklineError, match="ask one by one"):
        maskline("engines", "--size", "paper")


@pytest.mark.parametrize(
    ("engine", "said", "message"),
    [
        ("sdc", "objektive=3", rf"--set objektive=3: {HAS}.*objective, .*score\.kind"),
        ("sdc", "tile_px=64", f"--set tile_px=64: {HAS}"),
        ("retouch", "pixels.width=64", r"--set pixels\.width=64: .* it has features"),
        ("sdc", "objective=2", "--set objective=2: .*1 or 3; `maskline engines sdc` lists what can be set"),
        ("metal", "stripes=diagonals", "--set stripes=diagonals: .*'rows', 'columns' or 'none'"),
        ("metal", "width=wide", "--set width=wide: .*valid integer"),
        ("metal", "heads=3", "engine 'metal': tokens of 128 values cannot be shared by 3 heads"),
        ("sdc", "corruption.kinds=elastic,rust", "--set corruption.kinds=elastic,rust: .*'blur' or 'flat'"),
        ("sdc", "corruption.patches=2,1", r"engine 'sdc': corruption: patches is \(2, 1\)"),
        ("sdc", "fitting.learning_rate=nan", r"--set fitting\.learning_rate=nan: .*finite"),
        ("sdc", "score.map_quantile=1", r"--set score\.map_quantile=1: .*less than 1"),
        ("sdc", "error_map.kind=direct", r"error_map\.kind=direct: engine 'sdc' can have smoothed, ssim_l1"),
        ("mala", "error_map.kind=smoothed", r"error_map\.kind=smoothed: engine 'mala' can have direct"),
        ("sdc", "error_map.opening_px=2", rf"error_map\.opening_px=2: {HAS}"),
        ("sdc", "objective", "--set objective: expected NAME=VALUE"),
    ],
)
def test_what_cannot_be_set_is_named_with_what_can(engine: str, said: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match=message):
        maskline("fit", "--good", tmp_path, "--out", tmp_path / "out", "--engine", engine, "--set", said)
    assert not (tmp_path / "out").exists()


def test_a_list_takes_one_value_or_more_and_another_kind_of_map_its_own_defaults() -> None:
    settings = default_settings("sdc")
    a = changed(settings, ["corruption.kinds=elastic", "dilations=1, 2", "corruption.size_px=5,20"]).architecture
    assert a.kind == "sdc"
    assert (a.corruption.kinds, a.dilations, a.corruption.size_px) == (("elastic",), (1, 2), (5.0, 20.0))
    found = changed(settings, ["error_map.opening_px=2", "error_map.kind=ssim_l1"])
    assert found.error_map == SsimL1Map(opening_px=2)
    assert changed(settings, ["error_map.kind=smoothed"]).error_map == settings.error_map
    mae = changed(default_settings("mae"), ["error_map.kind=smoothed", "error_map.norm=signed", "context=null"])
    assert mae.error_map == SmoothedMap(norm="signed")


def test_the_objective_reaches_the_network_and_the_manifest(good: Path, tmp_path: Path) -> None:
    plain = fitted(good, tmp_path / "plain", "sdc")
    said = ("objective=3", "corruption.kinds=elastic,brightness", "score.kind=area", "score.map_quantile=0.99")
    other = fitted(good, tmp_path / "other", "sdc", *said, "fitting.batch=2")
    assert (weights := "network.safetensors") in plain.manifest.files
    assert other.manifest.files[weights] != plain.manifest.files[weights]
    a, m = other.manifest.architecture, other.manifest
    assert a.kind == "sdc"
    assert (a.objective, a.corruption.kinds) == (3, ("elastic", "brightness"))
    assert (m.score.kind, m.score.map_quantile) == ("area", 0.99)
    assert m.trained is not None
    assert (m.trained.batch, m.trained.learning_rate, m.trained.average, m.trained.resize) == (2, 2e-3, 0.98, 1.0)
    assert load_model(other).architecture == a
    assert from_bundle(other.path).network.architecture == a, "what goes on from it goes on with it"


@pytest.mark.parametrize("said", ["stripes=columns", "stripes=none", "attention=literal"])
def test_variants_of_the_masked_transformer_reach_the_network_and_the_manifest(
    said: str, good: Path, tmp_path: Path
) -> None:
    bundle = fitted(good, tmp_path / "made", "metal", said)
    name, value = said.split("=")
    assert getattr(bundle.manifest.architecture, name) == value
    tile = torch.from_numpy(stripes()[None, 40:72, :32].reshape(1, 32, 32, 1))
    plain = from_scratch("metal", tile_px=32).network.eval()
    variant = from_scratch("metal", tile_px=32, settings=[said]).network.eval()
    with torch.no_grad():
        assert not torch.allclose(plain(tile), variant(tile), atol=1e-4)


def test_a_fit_that_goes_on_may_be_judged_otherwise_but_not_be_another_network(good: Path, tmp_path: Path) -> None:
    first = fitted(good, tmp_path / "first", "sdc")
    go_on = ("fit", "--good", good, "--bundle", first.path, "--steps", 0, "--out")
    maskline(*go_on, tmp_path / "judged", "--set", "score.kind=area", "--set", "objective=3")
    judged = load_bundle(tmp_path / "judged").manifest
    assert judged.files == first.manifest.files
    assert judged.score.kind == "area"
    assert judged.architecture == first.manifest.architecture.model_copy(update={"objective": 3})
    with pytest.raises(MasklineError, match=r"with --set stacks=2: its weights do not fit such a network"):
        maskline(*go_on, tmp_path / "other", "--set", "stacks=2")


def test_weights_that_an_engine_starts_from_are_kept_where_the_network_is_the_same() -> None:
    judged = from_scratch("mae", settings=["score.kind=max"])
    assert judged.base.startswith("texture-s ")
    assert judged.manifest.score.kind == "max"
    assert from_scratch("mae", settings=["depth=1"]).base == ""


def test_kept_fits_with_other_settings_are_other_fits(good: Path, tmp_path: Path) -> None:
    images = sorted(good.iterdir())

    def kept(*said: str) -> Path:
        choice = FitChoice(tile_px=32, steps=1, settings=(*SMALL["sdc"], *said))
        return fit_or_find("sdc", images, tmp_path / "keep", choice, scale=1.0, quiet=True)[0].path

    plain = kept()
    others = [kept("objective=3"), kept("score.kind=area"), kept("fitting.batch=1")]
    assert len({plain, *others}) == 4
    assert kept("objective=3") == others[0]


def test_a_comparison_refuses_settings_before_it_fits(tmp_path: Path) -> None:
    recipe(tmp_path)
    write_category(tmp_path / "tile")
    ask = ("compare", tmp_path / "recipe.toml", "--data", tmp_path / "tile", "--engines")
    with pytest.raises(MasklineError, match="--set objective=3: engine 'metal' has no such setting"):
        maskline(*ask, "sdc,metal", "--set", "objective=3")
    with pytest.raises(MasklineError, match="--set objective=3: nothing is fitted here"):
        maskline(*ask, "null", "--set", "objective=3")
