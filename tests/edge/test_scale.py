"""Pixels to millimetres: measured with a checkerboard, carried in verdicts, shown in reports, and what counts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.calibration import StationCalibration
from calib.fitting import GoodView, StationSpec, fit_station
from calib.millimetres import where_words
from calib.pictures import view_panels
from calib.report_data import ReportStation, ReportView
from edge.detector import Detector
from edge.errors import SourceError
from edge.judge import Judge, Judgement, provenance
from edge.ledger import view_of
from edge.messages import ViewResult
from edge.place.geometry import Box, Place
from edge.place.scale import MAX_SPREAD, measure_scale
from edge.plan import StationPlan, plan_station
from edge.settings import Station, scoring_sha256
from edge.tiling import cut
from edge.verdict import Decision
from engines.backends import BackendInfo
from engines.bundle import DirectMap, Score, SsimL1Map
from tests.command import maskline

SQUARES, SQUARE_MM = (9, 6), 5.0
FOCAL_PX, SIZE = 3000.0, (480, 640)
ENGINE = {"backend": "b", "version": "1", "device": "d", "precision": "f32", "isa": "i", "plan": "x1"}


def board(
    px_per_square: float = 36.0, *, tilt_deg: float = 0.0, angle_deg: float = 0.0, noise: float = 2.0, seed: int = 0
) -> np.ndarray:
    """A camera's view of a checkerboard, uint8 [H, W, 1], through a pinhole, blurred by a pixel and noisy."""
    across, down = (n + 2 for n in SQUARES)
    squares = np.indices((down, across)).sum(axis=0) % 2 == 0
    squares[[0, -1]] = False
    squares[:, [0, -1]] = False
    drawn = np.where(squares, 20, 235).astype(np.uint8).repeat(80, 0).repeat(80, 1)
    step = SQUARE_MM / 80
    to_mm = np.array(
        [[step, 0, -step * (drawn.shape[1] - 1) / 2], [0, step, -step * (drawn.shape[0] - 1) / 2], [0, 0, 1]]
    )
    tilt, angle = math.radians(tilt_deg), math.radians(angle_deg)
    about_y = np.array([[math.cos(tilt), 0, math.sin(tilt)], [0, 1, 0], [-math.sin(tilt), 0, math.cos(tilt)]])
    about_z = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    turned = about_y @ about_z
    camera = np.array([[FOCAL_PX, 0, (SIZE[1] - 1) / 2], [0, FOCAL_PX, (SIZE[0] - 1) / 2], [0, 0, 1]])
    away = np.array([0, 0, FOCAL_PX * SQUARE_MM / px_per_square])
    seen = camera @ np.column_stack([turned[:, 0], turned[:, 1], away]) @ to_mm
    fine = np.array([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]]) @ seen
    large = cv2.warpPerspective(drawn, fine, (4 * SIZE[1], 4 * SIZE[0]), borderValue=235)
    small = cv2.GaussianBlur(cv2.resize(large, SIZE[::-1], interpolation=cv2.INTER_AREA), (0, 0), 1.0)
    noisy = small + np.random.default_rng(seed).normal(0, noise, SIZE)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize(
    ("px", "angle", "noise"), [(36.0, 0.0, 2.0), (36.0, 33.0, 2.0), (31.7, 91.0, 2.0), (42.3, 3.0, 10.0)]
)
def test_the_scale_is_found_within_its_uncertainty(px: float, angle: float, noise: float) -> None:
    off = []
    for seed in range(4):
        found = measure_scale(board(px, angle_deg=angle, noise=noise, seed=seed), SQUARES, SQUARE_MM)
        off.append((found.mm_per_px - SQUARE_MM / px) / found.uncertainty)
        assert found.uncertainty / found.mm_per_px < 0.004
        assert found.residual_px < 0.2
        assert found.tilt_deg < 3
        assert found.corners == 40
    assert max(map(abs, off)) < 1.5, off


def test_a_slight_tilt_costs_certainty_and_an_oblique_view_is_refused() -> None:
    upright, slight = (measure_scale(board(tilt_deg=d), SQUARES, SQUARE_MM) for d in (0.0, 3.0))
    assert slight.uncertainty > 3 * upright.uncertainty
    assert slight.tilt_deg == pytest.approx(3, abs=1)
    assert abs(slight.mm_per_px - SQUARE_MM / 36) < slight.uncertainty
    for tilt in (12.0, 25.0):
        with pytest.raises(SourceError, match=rf"oblique view.*at most {MAX_SPREAD:.0%}"):
            measure_scale(board(tilt_deg=tilt), SQUARES, SQUARE_MM)


def test_deep_and_colour_pictures_do() -> None:
    plain = measure_scale(board(), SQUARES, SQUARE_MM)
    colour = measure_scale(np.repeat(board(), 3, axis=2), SQUARES, SQUARE_MM)
    deep = measure_scale(board().astype(np.uint16) * 257, SQUARES, SQUARE_MM)
    assert colour.mm_per_px == pytest.approx(plain.mm_per_px, rel=1e-4)
    assert deep.mm_per_px == pytest.approx(plain.mm_per_px, rel=1e-4)


@pytest.mark.parametrize(
    ("squares", "words"),
    [((8, 5), "counts squares, not corners"), ((7, 8), "no checkerboard of 7x8"), ((3, 9), "4 squares a side")],
)
def test_a_board_that_is_not_there_is_refused(squares: tuple[int, int], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        measure_scale(board(), squares, SQUARE_MM)


def bent(amount: float) -> np.ndarray:
    """A board under a lens that bends lines: the scale is that of `board` in the middle, and another one outside."""
    image = board()[..., 0]
    rows, columns = np.indices(image.shape, np.float32)
    x, y = columns - SIZE[1] / 2, rows - SIZE[0] / 2
    stretch = 1 + amount * (x * x + y * y)
    at = (x * stretch + SIZE[1] / 2, y * stretch + SIZE[0] / 2)
    return cv2.remap(image, *at, cv2.INTER_LINEAR, borderValue=235)[..., None]


def test_a_lens_that_bends_lines_costs_certainty_or_is_refused() -> None:
    plain, slight = measure_scale(board(), SQUARES, SQUARE_MM), measure_scale(bent(2e-7), SQUARES, SQUARE_MM)
    assert slight.uncertainty > 3 * plain.uncertainty
    assert abs(slight.mm_per_px - SQUARE_MM / 36) < slight.uncertainty, "the middle is within it"
    with pytest.raises(SourceError, match="off a plane grid"):
        measure_scale(bent(1.2e-6), SQUARES, SQUARE_MM)


def test_the_command_prints_what_the_recipe_takes(tmp_path: Path) -> None:
    path = tmp_path / "board.png"
    cv2.imwrite(str(path), board())

    said = maskline("scale", path, "--squares", "9x6", "--square-mm", "5")
    assert said.returncode == 0, said.stderr
    line = said.stdout.splitlines()[0]
    name, value = line.split("#")[0].split("=")
    assert name.strip() == "scale_mm_per_px"
    assert float(value) == pytest.approx(SQUARE_MM / 36, rel=1e-3)
    assert "+-" in line
    for arguments, words in (
        (["--squares", "9by6"], "such as 9x6"),
        (["--squares", "8x5"], "not corners"),
    ):
        refused = maskline("scale", path, *arguments, "--square-mm", "5")
        assert refused.returncode == 1
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    (tmp_path / "none.png").write_bytes(b"nothing")
    refused = maskline("scale", tmp_path / "none.png", "--squares", "9x6", "--square-mm", "5")
    assert refused.returncode == 1
    assert "neither PNG" in refused.stderr


def station(**changes: object) -> Station:
    fields: dict[str, object] = {
        "name": "cam",
        "source": {"kind": "web"},
        "frame": {"width_px": 448, "height_px": 448},
        "tiling": {"resize": 0.5},
        "bundle": "marker",
    }
    return Station.model_validate(fields | changes)


def test_the_smallest_defect_is_an_area_of_the_prepared_picture() -> None:
    assert plan_station(station()).smallest_defect_px == 0
    plan = plan_station(station(scale_mm_per_px=0.1, smallest_defect_mm2=2.0))
    assert plan.smallest_defect_px == pytest.approx(2.0 / 0.1**2 / 4)
    other = station(scale_mm_per_px=0.1, smallest_defect_mm2=3.0)
    assert scoring_sha256(plan.station) != scoring_sha256(station())
    assert scoring_sha256(plan.station) != scoring_sha256(other), "what counts is what a calibration is made for"
    assert scoring_sha256(plan.station) != scoring_sha256(station(scale_mm_per_px=0.2, smallest_defect_mm2=2.0))


def good_view(number: int, spot_px: int) -> GoodView:
    """A part whose map has a speck of about `spot_px` pixels."""
    tiles = np.random.default_rng(number).integers(60, 180, (1, 64, 64, 1), np.uint8)
    repainted = (tiles / 255).astype(np.float32)
    side = math.isqrt(spot_px)
    repainted[:, 20 : 20 + side, 20 : 20 + side] += 0.3
    return GoodView(tiles, repainted)


def fitted(smallest_px: float, kind: str = "area") -> tuple[float, float, str]:
    made = provenance(plan_station(station()), ENGINE)
    spec = StationSpec(SsimL1Map(ssim_window=7), Score(kind=kind, map_quantile=0.99), made, smallest_px=smallest_px)
    found = fit_station((good_view(i, 16 + i) for i in range(40)), 40, spec)
    return found.score_threshold, found.rejected_held_out, found.statement


def test_what_does_not_count_is_said_and_calibrated_for() -> None:
    threshold, rejected, statement = fitted(0.0)
    assert rejected == 0
    raised, _, said = fitted(500.2)
    assert raised == 500, "an area of 501 px is rejected, and one of 500 is not"
    assert said.startswith(statement)
    assert f"raised the threshold from {threshold:.0f} to 500 px" in said
    assert "pass because the recipe says so" in said
    kept, _, said = fitted(5.0)
    assert kept == threshold, "it never lowers a threshold: more would be rejected than was promised"
    assert "may not be found" in said
    assert fitted(500.0, kind="mean") == fitted(0.0, kind="mean"), "where the score is no area, it decides nothing"


def judged(smallest_mm2: float | None, defects: list[int], kind: str = "max") -> tuple[Decision, list[float]]:
    """What is shown of square defects of so many pixels a side; 10 px are a millimetre, half of them when prepared."""
    changes: dict[str, object] = {"scale_mm_per_px": 0.1, "smallest_defect_mm2": smallest_mm2}
    plan = plan_station(station(**changes))
    manifest = plan.bundle.manifest.model_copy(update={"score": Score(kind=kind)})
    plan = replace(plan, bundle=replace(plan.bundle, manifest=manifest))
    from tests.edge.test_validity import calibration

    limits = calibration(plan, None).model_copy(update={"provenance": provenance(plan, ENGINE)})
    tiles = np.random.default_rng(0).integers(60, 180, plan.prepare.tiles_shape, np.uint8)
    repainted = (tiles / 255).astype(np.float32)
    for number, side in enumerate(defects):
        at = 20 + 60 * number
        repainted[0, at : at + side, at : at + side] += 2.0
    found = Judge(plan, limits).judge(tiles, repainted, np.empty(tiles.shape[:3], np.float32), ENGINE)
    return found.decision, found.areas_px or []


def test_a_reject_stays_one_and_shows_at_least_its_largest_defect() -> None:
    decision, shown = judged(None, [6, 20])
    assert decision is Decision.REJECT
    assert len(shown) == 2
    decision, shown = judged(6.0, [6, 20])
    assert (decision, len(shown)) == (Decision.REJECT, 1), "the small one does not count"
    assert shown[0] * 0.1**2 > 6.0
    decision, shown = judged(1000.0, [6, 12])
    assert (decision, len(shown)) == (Decision.REJECT, 1), "but a part is not rejected for nothing to be seen"


class Across:
    """A station of four tiles of 224 px, 0.1 mm per pixel, whose network answers with its map: areas are exact."""

    def __init__(self, smallest_mm2: float | None = 4.0, engine: dict[str, str] = ENGINE, **changes: object) -> None:
        declared = station(tiling={}, scale_mm_per_px=0.1, smallest_defect_mm2=smallest_mm2, **changes)
        plan = plan_station(declared)
        exact = {"error_map": DirectMap(), "score": Score(kind="area", map_quantile=0.99)}
        manifest = plan.bundle.manifest.model_copy(update=exact)
        self.plan: StationPlan = replace(plan, bundle=replace(plan.bundle, manifest=manifest))
        self.engine = engine
        self.tiles = np.random.default_rng(0).integers(60, 180, plan.prepare.tiles_shape, np.uint8)

    def answer(self, *boxes: tuple[int, int, int, int]) -> np.ndarray:
        """The network's answer to defects at x, y, width, height of the frame; each tile has its piece."""
        picture = np.zeros((448, 448, 1), np.float32)
        for x, y, width, height in boxes:
            picture[y : y + height, x : x + width] = 0.9
        maps = cut(picture, self.plan.prepare.tiling, np.empty((4, 224, 224, 1), np.float32))
        return np.concatenate([(self.tiles / 255).astype(np.float32), maps], axis=-1)

    def limits(self, *cheap: tuple[int, int, int, int]) -> StationCalibration:
        """From parts with an area of 8 px on one tile and of 6 + 6 px on two; a cheap plan sees `cheap`."""
        manifest, made = self.plan.bundle.manifest, provenance(self.plan, self.engine)
        spec = StationSpec(manifest.error_map, manifest.score, made, smallest_px=self.plan.smallest_defect_px)
        good = self.answer((20, 20, 4, 2), (222, 300, 4, 3))
        rough = self.answer(*cheap) if cheap else None
        views = (GoodView(self.tiles, good, rough, joined=self.plan.joined) for _ in range(40))
        return fit_station(views, 40, spec)

    def judge(self, limits: StationCalibration, *boxes: tuple[int, int, int, int]) -> Judgement:
        maps = np.empty(self.tiles.shape[:3], np.float32)
        return Judge(self.plan, limits).judge(self.tiles, self.answer(*boxes), maps, self.engine)


@pytest.mark.parametrize(
    ("x", "y"), [(100, 100), (214, 100), (214, 214), (209, 230)], ids=["inside", "border", "corner", "beside"]
)
def test_the_smallest_defect_is_the_same_wherever_it_lies(x: int, y: int) -> None:
    across = Across()
    limits = across.limits()
    assert limits.score_threshold == 399
    assert limits.score_quantiles["max"] == 12, "good parts are scored as the line scores them"
    for side, decision in ((25, Decision.REJECT), (20, Decision.REJECT), (19, Decision.PASS)):
        found = across.judge(limits, (x, y, side, side))
        assert (found.decision, found.score) == (decision, side**2)
        assert found.areas_px == ([side**2] if decision is Decision.REJECT else None), "the score is what is shown"


def test_without_a_smallest_defect_each_tile_is_scored_alone() -> None:
    across = Across(smallest_mm2=None)
    limits = across.limits()
    assert across.plan.joined is None
    assert limits.score_quantiles["max"] == 8
    assert across.judge(limits, (214, 100, 25, 25)).score == 15 * 25


class Answers:
    """A backend that is handed what it answers to each tile."""

    def __init__(self, of_tile: np.ndarray) -> None:
        self.of_tile = of_tile
        self.asked: list[int] = []

    def describe(self) -> BackendInfo:
        return BackendInfo("b", "1", "d", "f32", "i", "")

    def infer(self, tiles: np.ndarray, out: np.ndarray) -> None:
        whole = len(tiles) == len(self.of_tile)
        number = 0 if whole else next(i for i, t in enumerate(ACROSS_TILES) if np.array_equal(t, tiles[0]))
        self.asked += range(4) if whole else [number]
        out[:] = self.of_tile if whole else self.of_tile[number : number + 1]


ACROSS_TILES = Across().tiles


@pytest.mark.parametrize(
    ("cheap", "doubted"),
    [
        ((214, 100, 25, 16), [0, 1]),  # 400 px of two tiles: rejected, if the exact plan sees as much
        ((214, 100, 25, 15), [0, 1]),  # 375 px, not enough, if it sees no more
        ((214, 100, 25, 30), []),  # far above, though neither half is
        ((214, 100, 25, 8), []),
    ],
)
def test_a_cascade_doubts_every_tile_of_a_doubtful_area(cheap: tuple[int, int, int, int], doubted: list[int]) -> None:
    across = Across(engine=ENGINE | {"plan": "cascade"}, plan="cascade")
    limits = across.limits((20, 20, 4, 1), (222, 300, 4, 17)).model_copy(update={"cascade_band": (-50.0, 50.0)})
    exact, rough = Answers(across.answer((214, 100, 25, 25))), Answers(across.answer(cheap))
    detector = Detector(across.plan, exact, rough)  # type: ignore[arg-type]
    out = np.empty_like(exact.of_tile)
    detector.infer(across.tiles, out, limits)
    assert exact.asked == doubted
    found = Judge(across.plan, limits).judge(across.tiles, out, np.empty((4, 224, 224), np.float32), across.engine)
    assert found.score == (625 if doubted else cheap[2] * cheap[3])


def test_the_band_of_a_cascade_is_that_of_whole_areas() -> None:
    limits = Across().limits((20, 20, 4, 1), (222, 300, 4, 17))
    assert limits.cascade_band == (-56, 4), "12 less 68 px where it lies on two tiles, 8 less 4 on one"


def test_on_a_web_an_area_is_of_both_pitches() -> None:
    web = {"mm_per_line": 0.5, "overlap_px": 0}
    lines = Across(web=web)
    assert lines.plan.smallest_defect_px == pytest.approx(4.0 / (0.1 * 0.5))
    limits = lines.limits()
    assert limits.score_threshold == 79
    assert lines.judge(limits, (214, 100, 10, 8)).decision is Decision.REJECT, "1 x 4 mm"
    assert lines.judge(limits, (214, 100, 10, 7)).decision is Decision.PASS


def test_a_view_carries_scale_and_areas() -> None:
    result = ViewResult("cam", 1, 2, Decision.REJECT, boxes=[[1, 2, 3, 4]], areas_px=[7.5], place=[1.5, -2.0, 0.25])
    view = view_of(result, "bundle", 0.05)
    assert (view.areas_px, view.place, view.scale_mm_per_px) == ([7.5], [1.5, -2.0, 0.25], 0.05)
    assert view_of(result, "bundle").scale_mm_per_px is None


REGION = Box(100, 50, 200, 160)


def test_words_have_millimetres_beside_pixels() -> None:
    view = ReportView("cam", Decision.REJECT, boxes=[(140, 80, 20, 10)], areas_px=[120.0], scale_mm_per_px=0.05)
    assert where_words(view, REGION) == ["0.3 mm² in 1 x 0.5 mm at 2.5, 1.75 (120 px² in 20 x 10 px at 50, 35)"]
    assert where_words(replace(view, scale_mm_per_px=None), REGION) == ["120 px² in 20 x 10 px at 50, 35"]
    assert where_words(replace(view, areas_px=()), None) == ["1 x 0.5 mm at 7.5, 4.25 (20 x 10 px at 150, 85)"]
    assert where_words(replace(view, boxes=()), REGION) == []
    assert where_words(replace(view, boxes=view.boxes * 5), REGION)[-1] == "and 2 more"
    web = ["1.5 mm² in 1 x 2.5 mm at 2.5, 8.75 (120 px² in 20 x 10 px at 50, 35)"]
    assert where_words(replace(view, mm_per_line=0.25), REGION) == web
    assert where_words(replace(view, mm_per_line=0.25, scale_mm_per_px=None), REGION)[0].startswith("120 px²")


def test_positions_are_those_on_the_part() -> None:
    """Turned by a right angle about the region's centre, then shifted: the same spot of the part has the same words."""
    flat = ReportView("cam", Decision.REJECT, boxes=[(140, 80, 10, 10)], areas_px=[60.0], scale_mm_per_px=0.05)
    turned = replace(flat, boxes=[(245, 55, 10, 10)], place=Place(5.0, -15.0, 90.0))
    first, *rest = where_words(turned, REGION)
    assert first == "shifted by 5.0, -15.0 px (0.25, -0.75 mm), turned by 90.00 degrees"
    assert rest == where_words(flat, REGION)


def test_boxes_and_truth_lie_over_the_straightened_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "tiles.png"), np.zeros((160, 200), np.uint8))
    place = Place(12.0, -7.0, 20.0)
    seen_at = place.matrix(REGION) @ (160, 95, 1)
    mask = np.zeros((300, 400), np.uint8)
    cv2.circle(mask, (round(float(seen_at[0])), round(float(seen_at[1]))), 6, 255, -1)
    box = (round(float(seen_at[0])) - 7, round(float(seen_at[1])) - 7, 14, 14)
    view = ReportView("cam", Decision.REJECT, boxes=[box], image=tmp_path / "tiles.png", truth_mask=mask, place=place)
    overlay = view_panels(view, ReportStation("cam", REGION, 0.5, 0.3), None).whole[0].overlay
    (drawn,) = overlay.boxes
    assert drawn.x + drawn.width / 2 == pytest.approx(60, abs=1.5)
    assert drawn.y + drawn.height / 2 == pytest.approx(45, abs=1.5)
    points = np.array([[float(v) for v in p.split()] for p in overlay.truth_paths[0][1:-1].split("L")])
    assert points.mean(axis=0) == pytest.approx((60, 45), abs=2.5)
