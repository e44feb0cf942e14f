"""Engines beside each other: what is learnt from, what is kept, and what comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from category_helpers import BlurBackend, recipe, write_category, write_null_bundle

from calib.compare import Choice, compare, split
from calib.datasets import find_categories
from calib.details import load_details, save_details
from calib.kept_fits import FitChoice
from calib.leaderboard import by_defect, flat, leaderboard
from edge.errors import CalibrationError, MasklineError
from tests.command import maskline


def test_good_images_are_split_once_and_for_all() -> None:
    good = [Path(f"{k:03}.png") for k in range(50)]
    fit_on, calibrate_on = split(good, 3)
    assert (fit_on, calibrate_on) == split(good, 3)
    assert fit_on == sorted(fit_on)
    assert len(calibrate_on) == 15
    assert sorted([*fit_on, *calibrate_on]) == good
    assert calibrate_on != sorted(calibrate_on)
    assert set(calibrate_on) != set(split(good, 4)[1])
    assert len(split(good[:12], 0)[1]) == 10
    with pytest.raises(CalibrationError, match="10 good images; 10 are needed"):
        split(good[:10], 0)


def test_bundles_are_measured_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.backends.null.NullBackend", BlurBackend)
    category = find_categories([write_category(tmp_path / "tile")])
    blur = str(write_null_bundle(tmp_path / "blur"))
    (found,) = compare(recipe(tmp_path), "cam", category, Choice(engines=(blur,)))
    figures = flat([found])
    assert figures["tile.blur.image_auroc"] == 1
    assert figures["tile.blur.pixel_auroc"] > 0.95
    assert figures["tile.blur.aupro_30"] > 0.9
    assert figures["tile.blur.escape_rate"] == 0
    assert figures["tile.blur.defect.spot_tiny.image_auroc"] == 1
    assert figures["tile.blur.with_tiny.image_auroc"] == 1
    assert figures["tile.blur.ms_per_tile"] > 0
    assert "tile.blur.fit_s" not in figures
    assert (found.limits.parts_fit, found.limits.parts_held_out) == (5, 5)


def test_nothing_of_test_is_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.backends.null.NullBackend", BlurBackend)
    blur, limits = str(write_null_bundle(tmp_path / "blur")), []
    for name, test in (("one", 6), ("other", 9)):
        category = find_categories([write_category(tmp_path / name, test=test)])
        limits.append(compare(recipe(tmp_path), "cam", category, Choice(engines=(blur,)))[0].limits)
    assert limits[0] == limits[1]


def test_an_engine_that_is_none_is_named(tmp_path: Path) -> None:
    category = find_categories([write_category(tmp_path / "tile")])
    with pytest.raises(MasklineError, match=r"--engines yolo: no engine \(.*sdc.*\), and as a bundle: .*yolo"):
        compare(recipe(tmp_path), "cam", category, Choice(engines=("yolo",)))
    with pytest.raises(MasklineError, match="--engines: there is more than one 'sdc'"):
        compare(recipe(tmp_path), "cam", category, Choice(engines=("sdc", str(write_null_bundle(tmp_path / "sdc")))))
    few = find_categories([write_category(tmp_path / "few", train=8)])
    with pytest.raises(CalibrationError, match="8 good images"):
        compare(recipe(tmp_path), "cam", few, Choice(engines=("null",)))


def test_an_error_names_category_and_engine(tmp_path: Path) -> None:
    category = find_categories([write_category(tmp_path / "tile")])
    mask = next((tmp_path / "tile" / "ground_truth" / "spot").iterdir())
    mask.write_bytes(b"no image")
    with pytest.raises(MasklineError, match=rf"tile, null: .*{mask.name}: neither PNG"):
        compare(recipe(tmp_path), "cam", category, Choice(engines=("null",)))


def test_fitted_engines_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = pytest.importorskip("engines.fit", reason="needs torch: pip install 'maskline[train]'")
    categories = find_categories([write_category(tmp_path / "tile", sizes=((64, 64), (80, 70), (40, 64)))])
    line = recipe(tmp_path, backend="openvino")
    choice = Choice(engines=("sdc",), fit=FitChoice(tile_px=64, steps=2))
    (first,) = compare(line, "cam", categories, choice, keep=tmp_path / "keep")
    assert first.fit_s is not None
    (bundle,) = (path for path in (tmp_path / "keep" / "tile").iterdir() if path.is_dir())
    assert bundle.name.startswith("sdc-")
    assert json.loads((tmp_path / "keep" / "tile" / f"{bundle.name}.json").read_text())["fitting"]["steps"] == 2

    def fitted(*_: object, **__: object) -> None:
        raise AssertionError("it was fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(fit, "fit", fitted)
        (again,) = compare(line, "cam", categories, choice, keep=tmp_path / "keep")
        assert again.fit_s == first.fit_s
        assert np.array_equal(again.evaluation.details.scores, first.evaluation.details.scores)
        other = Choice(engines=("sdc",), fit=FitChoice(tile_px=64, steps=3))
        with pytest.raises(AssertionError, match="fitted again"):
            compare(line, "cam", categories, other, keep=tmp_path / "keep")
    (resumed,) = compare(line, "cam", categories, other, keep=tmp_path / "keep")
    assert resumed.fit_s is None  # it was interrupted: how long it took is not known
    assert math.isfinite(flat([resumed])["tile.sdc.image_auroc"])


def test_a_leaderboard_is_ranked_and_means_are_over_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.backends.null.NullBackend", BlurBackend)
    for name in ("cloth", "tile"):
        write_category(tmp_path / "data" / name)
    (tmp_path / "data/cloth/test/spot_tiny").rename(tmp_path / "data/cloth/test/spot_large")
    bundles = [str(write_null_bundle(tmp_path / name, tile_px=px)) for name, px in (("fine", 32), ("coarse", 64))]
    chosen = Choice(engines=("null", *bundles))
    results = compare(recipe(tmp_path), "cam", find_categories([tmp_path / "data"]), chosen)
    figures, tables = flat(results), leaderboard(results)
    assert [table.title for table in tables] == ["cloth", "tile", "mean of 2 categories"]
    for table, place in zip(tables, ("cloth", "tile", "mean"), strict=True):
        ranked = [figures[f"{place}.{engine}.image_auroc"] for engine in table.columns[0].cells]
        assert len(ranked) == 3
        assert ranked == sorted(ranked, reverse=True)
    for figure in ("image_auroc", "with_tiny.image_auroc", "ms_per_tile", "escape_rate"):
        of_cloth = figures[f"cloth.fine.{figure.removeprefix('with_tiny.')}"]  # which has no tiny defect
        assert figures[f"mean.fine.{figure}"] == pytest.approx((of_cloth + figures[f"tile.fine.{figure}"]) / 2)
    assert "cloth.null.with_tiny.image_auroc" not in figures
    assert "tile.null.with_tiny.image_auroc" in figures
    kinds = list(by_defect(results).columns[2].cells)
    assert "spot_tiny (apart)" in kinds
    assert kinds.count("all, tiny ones too") == 3


def test_compare_and_bootstrap_from_the_command_line(tmp_path: Path) -> None:
    recipe(tmp_path)
    write_category(tmp_path / "data" / "tile")
    done = maskline(
        *("compare", tmp_path / "recipe.toml", "--data", tmp_path / "data", "--engines", "null"),
        *("--json", tmp_path / "a.json", "--details", tmp_path / "a.npz"),
    )
    assert done.returncode == 0, done.stderr
    assert "image AUROC" in done.stdout
    figures = json.loads((tmp_path / "a.json").read_text())
    assert {"machine", "commit", "tile.null.image_auroc", "tile.null.ms_per_tile"} <= figures.keys()
    assert all(isinstance(value, str | float | int) for value in figures.values())
    assert load_details(tmp_path / "a.npz").keys() == {("tile", "null")}
    said = load_details(tmp_path / "a.npz")["tile", "null"]
    save_details(tmp_path / "cloth.npz", {("cloth", "null"): said})
    save_details(tmp_path / "both.npz", {("cloth", "peer"): said, ("tile", "peer"): said})
    ours = f"{tmp_path / 'a.npz'},{tmp_path / 'cloth.npz'}"
    done = maskline("bootstrap", ours, tmp_path / "both.npz", "--json", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr
    assert "+0.0000 to +0.0000" in done.stdout
    figures = json.loads((tmp_path / "b.json").read_text())
    assert all(figures[f"{where}.null_less_peer.image_auroc"] == 0 for where in ("tile", "cloth", "mean"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "web", "--data", "no-such-folder"), "no-such-folder: there is no such folder"),
        (("compare", "web", "--data", ".", "--station", "x"), "--station 'x': the recipe has cam"),
        (("bootstrap", "a.npz,c.npz", "b.npz"), "a.npz: no file of details"),
    ],
)
def test_a_mistake_is_named_without_a_traceback(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = maskline(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("maskline: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
