"""Every engine from a folder of good parts to a verdict: fitted, served by OpenVINO, calibrated, judged."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from texture_helpers import stripes
from typer.testing import CliRunner

from calib.inspection import Inspector
from edge.anomaly import error_map
from edge.cli import app
from edge.scores import view_score
from edge.sources.folder import load_image
from edge.tiling import plan_prepare, prepare
from engines.bundle import Bundle, DirectMap, load_bundle
from engines.export import load_model
from engines.fit import fit, from_scratch
from engines.networks import plan_arguments
from engines.registry import ENGINES, Fitting
from engines.retouch import Retouch
from tests.calib.category_helpers import recipe

TILE_PX = {"retouch": 112, "mae": 56, "sdc": 64, "metal": 64, "anovit": 64, "mala": 64}
"""As small as the networks can be cut: those that start from `texture-s` keep its weights, for tiles of any size."""
UNTAUGHT = ("mala",)
"""Whose map says nothing yet after two steps: what a defect is it learns from nothing, in hundreds."""


def test_every_engine_of_the_table_is_tried() -> None:
    assert TILE_PX.keys() == ENGINES.keys()


def part(k: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A good one: a woven surface, each a little brighter or darker."""
    y, x = np.random.default_rng(k).integers(0, 100, 2)
    return (stripes()[y : y + height, x : x + width] * (0.9 + 0.02 * (k % 5))).astype(np.uint8)


def good_parts(folder: Path, tile_px: int, count: int = 12) -> list[Path]:
    """Pictures of two tiles."""
    folder.mkdir()
    paths = [folder / f"{k:02}.png" for k in range(count)]
    for k, path in enumerate(paths):
        cv2.imwrite(str(path), part(k, tile_px, tile_px * 5 // 4))
    return paths


def bad_part(path: Path, tile_px: int) -> Path:
    """One tile with a large, dark hole."""
    image = part(50, tile_px, tile_px)
    side = tile_px // 4
    image[side : 2 * side, side : 2 * side] = 0
    cv2.imwrite(str(path), image)
    return path


def inspector(bundle: Bundle, folder: Path) -> Inspector:
    line = recipe(folder, backend="openvino", bundle=bundle.path, plan="x16")
    return Inspector(line.stations[0], bundle, line.engine)


def by_torch(bundle: Bundle, picture: Path, plan: str) -> npt.NDArray[np.float32]:
    """The map float32 [1, h, w] that the network in torch makes of a picture of one tile."""
    tile = load_image(picture)[None]
    network = load_model(bundle)
    with torch.no_grad():
        answer = network(torch.from_numpy(tile), *plan_arguments(network.architecture, plan)).numpy()
    return error_map(tile, answer, bundle.manifest.error_map)


@pytest.mark.parametrize("engine", ENGINES)
def test_from_a_folder_of_good_parts_to_a_verdict(engine: str, tmp_path: Path) -> None:
    tile_px = TILE_PX[engine]
    good, bad = good_parts(tmp_path / "good", tile_px), bad_part(tmp_path / "bad.png", tile_px)
    start = from_scratch(engine, tile_px=tile_px)
    bundle = fit(good, start, tmp_path / "made", Fitting(steps=2, batch=2, every=2), quiet=True)
    assert bundle.manifest.error_map == ENGINES[engine].error_map

    served = inspector(bundle, tmp_path)
    limits = served.calibrate(good)
    assert (limits.parts_fit, limits.parts_held_out) == (6, 6)
    assert (limits.provenance.backend, limits.provenance.bundle_sha256) == ("openvino", bundle.sha256)
    assert served.inspect(good[-1], limits).passed, "its score is one of those that set the threshold"

    found, m = served.inspect(bad, limits), bundle.manifest
    expected = by_torch(bundle, bad, limits.provenance.plan)
    np.testing.assert_allclose(found.anomaly_map[None], expected, rtol=0, atol=0.01 * float(expected.std()))
    assert found.score == pytest.approx(view_score(found.anomaly_map[None], m.score, limits.map_threshold).score)
    assert found.passed == (found.score <= limits.score_threshold)
    assert engine in UNTAUGHT or not found.passed


def test_fitting_without_naming_an_engine_makes_a_bundle_that_tells_a_bad_part(tmp_path: Path) -> None:
    tile_px = TILE_PX["retouch"]
    good, bad = good_parts(tmp_path / "good", tile_px), bad_part(tmp_path / "bad.png", tile_px)
    arguments = ("--good", tmp_path / "good", "--out", tmp_path / "made", "--tile-px", tile_px, "--steps", 1)
    result = CliRunner().invoke(app, ["fit", *map(str, arguments)])
    assert result.exception is None
    bundle = load_bundle(tmp_path / "made")
    assert f"Bundle: {bundle.path} ({bundle.sha256[:12]}); it needs a calibration of its own" in result.stdout
    m = bundle.manifest
    assert (m.architecture.kind, isinstance(m.error_map, DirectMap)) == ("retouch", True)
    assert m.trained is not None
    assert (m.trained.steps, m.trained.base.split()[0]) == (1, "texture-s")
    assert {"loss.png", "repainted.png"} <= {path.name for path in bundle.path.iterdir()}
    served = inspector(bundle, tmp_path)
    limits = served.calibrate(good)
    assert served.inspect(good[-1], limits).passed
    assert not served.inspect(bad, limits).passed


def test_what_is_usual_is_learnt_from_tiles_as_the_line_cuts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[npt.NDArray[np.uint8]] = []
    measure = Retouch.measure
    monkeypatch.setattr(Retouch, "measure", lambda self, tiles: (seen.append(tiles.numpy()), measure(self, tiles)))
    tile_px = TILE_PX["retouch"]
    good = good_parts(tmp_path / "good", tile_px, 4)
    fit(good, from_scratch("retouch", tile_px=tile_px), tmp_path / "made", Fitting(steps=1, batch=1), quiet=True)
    image = load_image(good[0])
    plan = plan_prepare(image.shape, image.dtype, tile=tile_px, scale=1, channels=1, window=(0, 65535), overlap=0)
    cut = [prepare(load_image(path), plan, np.empty(plan.tiles_shape, np.uint8)) for path in good]
    (tiles,) = seen
    np.testing.assert_array_equal(tiles, np.concatenate(cut))
