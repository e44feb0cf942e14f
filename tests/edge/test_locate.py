"""Parts that are shifted and turned: where they are found, by how much that is off, and what becomes of their defects.

The parts are painted from real photographs (`tests.edge.painted_parts`), so that the truth is known between pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.calibration import StationCalibration, save_calibration
from calib.fitting import assemble
from calib.inspection import Inspector
from calib.run import calibrate
from edge import tiling as t
from edge.detector import Detector, open_detectors
from edge.errors import CalibrationError, RecipeError
from edge.judge import Judge, Judgement
from edge.paths import calibration_path, make_private
from edge.place.geometry import Place, boxes_to_region, warp
from edge.place.locate import Located, make_locator
from edge.plan import StationPlan, plan_line, plan_station
from edge.prepare import prepare_view
from edge.recipes import load_recipe
from edge.settings import Recipe, Station, scoring_sha256
from edge.tiling import Box
from edge.verdict import Decision, Reason
from engines.bundle import find_bundle, load_bundle
from tests.edge.painted_parts import FRAME, PART, blank, paint_part, save, where_in_frame
from tests.support import RunningLine, journal_verdicts

IN_PLACE = Place(0.0, 0.0, 0.0)
REGION = Box(128, 90, 224, 224)
SHIFT_PX, TURN_DEG = 40.0, 8.0


def fields(reference: Path, by: str, **locate: Any) -> dict[str, Any]:
    return {
        "name": "cam",
        "source": {"kind": "web"},
        "frame": {"width_px": FRAME[1], "height_px": FRAME[0]},
        "tiling": {"region": dict(zip(("x_px", "y_px", "width_px", "height_px"), REGION, strict=True))},
        "bundle": "texture-s",
        "plan": "x32",
        "locate": {
            "by": by,
            "reference": str(reference),
            "max_shift_px": SHIFT_PX,
            "max_angle_deg": TURN_DEG,
            **locate,
        },
    }


def station(folder: Path, by: str, kind: str = "rectangle", texture: str = "gravel", **locate: Any) -> Station:
    reference = save(paint_part(IN_PLACE, 0, kind=kind, texture=texture), folder / f"{kind}-{texture}.png")
    return Station.model_validate(fields(reference, by, **locate))


def find(where: Station, frame: np.ndarray) -> Located:
    locator = make_locator(where)
    assert locator is not None
    return locator.find(frame)


def of_region(place: Place, part: Box = PART) -> Place:
    """Where the region's centre goes when the part moves about its own."""
    centre = np.array([REGION.x + REGION.width / 2, REGION.y + REGION.height / 2])
    matrix = place.matrix(part)
    moved = matrix[:, :2] @ centre + matrix[:, 2] - centre
    return Place(float(moved[0]), float(moved[1]), place.angle_deg)


def off_by(found: Located, truth: Place) -> tuple[float, float]:
    """Pixels, degrees."""
    assert found.reason is None, found
    assert found.place is not None
    expected = of_region(truth)
    shift = math.hypot(found.place.dx_px - expected.dx_px, found.place.dy_px - expected.dy_px)
    return shift, abs(found.place.angle_deg - truth.angle_deg)


def some_places(count: int, seed: int = 1) -> list[Place]:
    rng = np.random.default_rng(seed)
    return [Place(*rng.uniform(-24, 24, 2).tolist(), float(rng.uniform(-7.5, 7.5))) for _ in range(count)]


@pytest.mark.parametrize(
    ("by", "kind"), [("edge", "rectangle"), ("edge", "L"), ("template", "rectangle"), ("template", "L")]
)
def test_a_part_is_found_between_pixels(by: str, kind: str, tmp_path: Path) -> None:
    where = station(tmp_path, by, kind)
    errors = []
    for number, place in enumerate(some_places(15)):
        defect = (60.0, 180.0, 14.0) if number % 3 == 0 else None
        frame = paint_part(place, number + 1, kind=kind, defect=defect, gain=(0.9, 1.0, 1.1)[number % 3])
        errors.append(off_by(find(where, frame), place))
    shift, turn = np.array(errors).T
    assert shift.mean() < 0.04, shift
    assert shift.max() < 0.1, shift
    assert turn.mean() < 0.015, turn
    assert turn.max() < 0.05, turn


def test_a_part_in_its_place_stays_there(tmp_path: Path) -> None:
    for by in ("edge", "template"):
        shift, turn = off_by(find(station(tmp_path, by), paint_part(IN_PLACE, 7)), IN_PLACE)
        assert shift < 0.02
        assert turn < 0.01


def test_a_small_template_and_a_search_area_do(tmp_path: Path) -> None:
    template = {"x_px": 200, "y_px": 150, "width_px": 96, "height_px": 80}
    search = {"x_px": 60, "y_px": 40, "width_px": 380, "height_px": 340}
    where = station(tmp_path, "template", template=template, search=search)
    for number, place in enumerate(some_places(6, seed=2)):
        shift, turn = off_by(find(where, paint_part(place, number + 1)), place)
        assert shift < 0.1
        assert turn < 0.05


def test_what_the_outline_cannot_tell_stays(tmp_path: Path) -> None:
    """A disc has no angle; a strip that runs through the picture no place along itself."""
    place = Place(9.3, -5.6, 0.0)
    found = find(station(tmp_path, "edge", "disc"), paint_part(place, 3, kind="disc"))
    shift, turn = off_by(found, place)
    assert shift < 0.1
    assert turn < 0.2
    strip = Box(-40, 100, FRAME[1] + 80, 190)
    reference = save(paint_part(IN_PLACE, 0, part=strip), tmp_path / "strip.png")
    where = Station.model_validate(fields(reference, "edge"))
    found = find(where, paint_part(Place(0.0, 6.4, 1.5), 3, part=strip))
    assert found.place is not None
    assert found.reason is None
    assert found.place.angle_deg == pytest.approx(1.5, abs=0.02)
    assert found.place.dy_px == pytest.approx(6.4, abs=0.1)
    assert abs(found.place.dx_px) < 1.0


def test_a_dark_part_is_found_by_its_edge(tmp_path: Path) -> None:
    negative = 255 - paint_part(IN_PLACE, 0)
    where = Station.model_validate(fields(save(negative, tmp_path / "dark.png"), "edge", part="darker"))
    place = Place(11.2, 4.7, -3.3)
    shift, turn = off_by(find(where, 255 - paint_part(place, 1)), place)
    assert shift < 0.1
    assert turn < 0.05


@pytest.mark.parametrize("by", ["edge", "template"])
@pytest.mark.parametrize(("channels", "depth"), [(3, 8), (1, 12), (3, 16)])
def test_colour_and_deep_frames(by: str, channels: int, depth: int, tmp_path: Path) -> None:
    def seen(place: Place, seed: int) -> np.ndarray:
        frame = np.repeat(paint_part(place, seed), channels, axis=2)
        return frame if depth == 8 else (frame.astype(np.uint16) << (depth - 8))

    reference = tmp_path / "reference.png"
    cv2.imwrite(str(reference), seen(IN_PLACE, 0))
    declared = fields(reference, by)
    declared["frame"] |= {"channels": channels, "bit_depth": depth}
    place = Place(-13.4, 8.1, 4.2)
    shift, turn = off_by(find(Station.model_validate(declared), seen(place, 1)), place)
    assert shift < 0.1
    assert turn < 0.05


@pytest.mark.parametrize("by", ["edge", "template"])
def test_an_empty_place_has_no_part(by: str, tmp_path: Path) -> None:
    found = find(station(tmp_path, by), np.clip(np.rint(blank(4)), 0, 255).astype(np.uint8)[..., None])
    assert (found.reason, found.place) == (Reason.NO_PART, None)
    assert found.detail


def test_a_part_that_is_another_one_is_none(tmp_path: Path) -> None:
    other = paint_part(IN_PLACE, 1, texture="brick")
    assert find(station(tmp_path, "template"), other).reason is Reason.NO_PART


@pytest.mark.parametrize("by", ["edge", "template"])
def test_two_parts_are_several(by: str, tmp_path: Path) -> None:
    small, second = Box(60, 120, 130, 130), Box(290, 140, 130, 130)
    reference = save(paint_part(IN_PLACE, 0, part=small), tmp_path / "one.png")
    declared = fields(reference, by)
    declared["tiling"] = {
        "region": dict(zip(("x_px", "y_px", "width_px", "height_px"), small, strict=True)),
        "resize": 2.0,
    }
    where = Station.model_validate(declared)
    one = paint_part(Place(4.0, -3.0, 2.0), 1, part=small)
    assert find(where, one).reason is None
    both = paint_part(Place(0.0, 0.0, -4.0), 2, part=second, onto=one[..., 0].astype(np.float32), noise=0.5)
    assert find(where, both).reason is Reason.SEVERAL_PARTS


def test_two_parts_that_touch_are_several(tmp_path: Path) -> None:
    small = Box(100, 120, 130, 130)
    reference = save(paint_part(IN_PLACE, 0, part=small), tmp_path / "one.png")
    declared = fields(reference, "edge")
    declared["tiling"] = {"region": {"x_px": 100, "y_px": 120, "width_px": 130, "height_px": 130}, "resize": 2.0}
    one = paint_part(IN_PLACE, 1, part=small)[..., 0].astype(np.float32)
    both = paint_part(IN_PLACE, 2, part=Box(228, 120, 130, 130), onto=one, noise=0.5)
    assert find(Station.model_validate(declared), both).reason is Reason.SEVERAL_PARTS


@pytest.mark.parametrize("by", ["edge", "template"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(31.0, 28.0, 0.0), "shifted by"),
        (Place(2.0, 3.0, 10.0), "turned by"),
        (Place(2.0, 3.0, -10.0), "turned by"),
        (Place(0.0, 39.0, 7.0), "lower edge of the frame"),
        (Place(0.0, -39.0, 7.0), "upper edge of the frame"),
    ],
)
def test_beyond_the_limits_a_part_is_misplaced(by: str, place: Place, words: str, tmp_path: Path) -> None:
    frame = paint_part(place, 1)
    where = station(tmp_path, by)
    if "edge" in words:  # the region is moved to that edge of the frame
        at = {"y_px": 140 if "lower" in words else 30}
        region = where.tiling.region.model_copy(update=at)
        where = where.model_copy(update={"tiling": where.tiling.model_copy(update={"region": region})})
    found = find(where, frame)
    assert found.reason is Reason.MISPLACED, found
    assert words.split(" ", 1)[-1] in found.detail
    assert found.place is not None, "a verdict says where it was"


@pytest.mark.parametrize("by", ["edge", "template"])
@settings(max_examples=25)
@given(noise=st.integers(0, 2**32 - 1), flat=st.sampled_from([None, 0, 90, 255]))
def test_any_picture_is_answered(
    by: str, noise: int, flat: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = station(tmp_path_factory.mktemp("any"), by)
    rng = np.random.default_rng(noise)
    frame = rng.integers(0, 256, (*FRAME, 1), np.uint8) if flat is None else np.full((*FRAME, 1), flat, np.uint8)
    assert find(where, frame).reason in (Reason.NO_PART, Reason.SEVERAL_PARTS, Reason.MISPLACED)


def test_equal_frames_are_found_equally(tmp_path: Path) -> None:
    """Bit for bit, whichever frames came in between and whoever looks."""
    for by in ("edge", "template"):
        where = station(tmp_path, by)
        frames = [paint_part(place, n) for n, place in enumerate(some_places(3))]
        once = [find(where, f) for f in frames]
        assert [find(where, f) for f in reversed(frames)] == list(reversed(once))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"locate": {"reference": "nothing.png"}}, "nothing.png"),
        ({"locate": {"reference": "small.png"}}, "is 64 x 64 px"),
        ({"locate": {"reference": "black.png"}}, "areas brighter than"),
        ({"locate": {"reference": "black.png", "by": "template"}}, "all of one grey"),
        ({"locate": {"by": "template", "template": {"x_px": 0, "y_px": 0, "width_px": 900, "height_px": 9}}}, "inside"),
        ({"locate": {"search": {"x_px": 0, "y_px": 0, "width_px": 900, "height_px": 9}}}, "does not lie inside"),
    ],
)
def test_a_reference_that_cannot_serve_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(np.zeros((64, 64, 1), np.uint8), tmp_path / "small.png")
    save(np.zeros((*FRAME, 1), np.uint8), tmp_path / "black.png")
    declared = fields(save(paint_part(IN_PLACE), tmp_path / "good.png"), "edge")
    changed = declared["locate"] | change["locate"]
    changed["reference"] = str(tmp_path / Path(changed["reference"]).name)
    with pytest.raises(RecipeError, match=words):
        plan_station(Station.model_validate(declared | {"locate": changed}))


def test_a_template_that_looks_like_others_is_refused(tmp_path: Path) -> None:
    """A piece of a wall of bricks: it would match in several places of every part."""
    template = {"x_px": 200, "y_px": 150, "width_px": 96, "height_px": 80}
    with pytest.raises(RecipeError, match="looks like nothing else"):
        plan_station(station(tmp_path, "template", texture="brick", template=template))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tiling": {}}, "needs tiling.region"),
        ({"locate": {"by": "smell"}}, "by"),
        ({"locate": {"by": "edge", "reference": "x", "max_angle_deg": 5}}, "max_shift_px"),
        ({"smallest_defect_mm2": 0.5}, "needs scale_mm_per_px"),
    ],
)
def test_a_recipe_that_cannot_locate_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        Station.model_validate(fields(tmp_path / "x.png", "edge") | change)


def test_only_what_changes_pixels_or_scores_needs_another_calibration(tmp_path: Path) -> None:
    plain = load_recipe("web").stations[0]
    before = "501af59c610158c0a8db1d608e6d39ff6ec13ef39a75cbbca12054742ddb4c4c"
    assert scoring_sha256(plain) == before, "the hash of a station without these sections is what it was"
    assert scoring_sha256(plain.model_copy(update={"scale_mm_per_px": 0.1})) == before
    located = station(tmp_path, "edge")
    first = scoring_sha256(located)

    def with_locate(**changes: Any) -> str:
        return scoring_sha256(located.model_copy(update={"locate": located.locate.model_copy(update=changes)}))

    assert with_locate(max_shift_px=12.0) == first
    assert with_locate(max_angle_deg=3.0) != first
    assert with_locate(level=99) != first
    other = save(paint_part(IN_PLACE, 5), tmp_path / "other.png")
    assert with_locate(reference=other) != first


def test_a_located_station_without_a_shift_has_the_same_tiles() -> None:
    """One interpolation, which changes nothing where there is none to do; behind it the steps are the same."""
    rng = np.random.default_rng(1)
    for shape, dtype, scale, channels in (
        ((120, 140, 1), np.uint8, 1.0, 1),
        ((120, 140, 3), np.uint8, 0.5, 1),
        ((120, 140, 1), np.uint16, 1.0, 3),
    ):
        frame = rng.integers(0, np.iinfo(dtype).max, shape, dtype)
        arguments = {
            "tile": 24,
            "region": Box(10, 12, 96, 72),
            "scale": scale,
            "channels": channels,
            "window": (0, 65535),
        }
        plain, located = (t.plan_prepare(shape, dtype, located=at, **arguments) for at in (False, True))
        tiles = [t.prepare(frame, plan, np.empty(plan.tiles_shape, np.uint8)) for plan in (plain, located)]
        np.testing.assert_array_equal(*tiles)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_region_moves_with_the_part(scale: float) -> None:
    """What is seen of a moved part is what is seen of it in its place, but for the interpolation."""
    part = cv2.GaussianBlur(paint_part(IN_PLACE, 0, noise=0)[..., 0], (0, 0), 1.5)[..., None]
    plan = t.plan_prepare(part.shape, tile=112, region=REGION, scale=scale, located=True)
    seen = t.prepare(part, plan, np.empty(plan.tiles_shape, np.uint8)).astype(float)
    place = Place(12.4, -7.7, 5.3)
    matrix = place.matrix(REGION)
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    moved = cv2.warpAffine(part, matrix, FRAME[::-1], flags=cv2.INTER_CUBIC)[..., None]
    back = t.prepare(moved, plan, np.empty(plan.tiles_shape, np.uint8), place).astype(float)
    assert np.abs(back - seen).mean() < 1.5
    assert np.abs(t.prepare(moved, plan, np.empty(plan.tiles_shape, np.uint8)) - seen).mean() > 10


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 60))
def test_boxes_enclose_what_was_boxed_wherever_it_lies(
    dx: float, dy: float, angle: float, scale: float, at: int
) -> None:
    plan = t.plan_prepare((400, 480, 1), tile=16, region=Box(140, 120, 200, 160), scale=scale, located=True)
    place = Place(dx, dy, angle)
    box = Box(at, at // 2, 9, 5)
    (found,) = t.boxes_to_frame([box], plan, place)
    matrix = place.matrix(plan.region)
    for x, y in ((box.x, box.y), (box.x + 9, box.y), (box.x, box.y + 5), (box.x + 9, box.y + 5)):
        seen = matrix @ (140 + x / plan.scale_x, 120 + y / plan.scale_y, 1)
        assert found.x - 1e-6 <= seen[0] <= found.x + found.width + 1e-6
        assert found.y - 1e-6 <= seen[1] <= found.y + found.height + 1e-6
    side = (9 + 5) / scale + 4
    assert found.width <= side
    assert found.height <= side
    ((left, top, width, height),) = boxes_to_region([found], plan.region, place)
    middle = (box.x + 4.5) / scale + 140, (box.y + 2.5) / scale + 120
    assert math.hypot(left + width / 2 - middle[0], top + height / 2 - middle[1]) < 2.5
    assert t.boxes_to_frame([box], plan, IN_PLACE) == t.boxes_to_frame([box], plan)


def test_a_warp_reads_nothing_beyond_the_frame() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 1), np.uint8)
    whole = Box(0, 0, 80, 60)
    out = warp(frame, whole, Place(-0.4, 0.4, 0.0), np.empty((60, 80, 1), np.uint8))
    assert out.shape == frame.shape


class Inspected:
    """A line's pure functions, calibrated on shifted and turned good parts."""

    def __init__(self, folder: Path, by: str) -> None:
        rng = np.random.default_rng(5)
        good = folder / "good"
        good.mkdir()
        for number in range(14):
            place = Place(*rng.uniform(-20, 20, 2).tolist(), float(rng.uniform(-5, 5)))
            save(paint_part(place, number + 1, texture="brick"), good / f"{number:02}.png")
        declared = station(folder, by, texture="brick").model_dump()
        declared["tiling"]["margin_px"] = 8
        self.recipe = recipe_of(declared)
        self.limits: StationCalibration = calibrate(self.recipe, good).stations["cam"]
        line = plan_line(self.recipe)
        self.plan: StationPlan = line.stations["cam"]
        self.detector: Detector = open_detectors(line)["cam"]
        self.tiles = np.empty(self.plan.prepare.tiles_shape, np.uint8)

    def judge(self, frame: np.ndarray, *, located: bool = True) -> Judgement:
        found = prepare_view(frame, self.plan, self.tiles)
        assert found.reason is None, found
        if not located:
            t.prepare(frame, self.plan.prepare, self.tiles)
        repainted = np.empty(self.plan.bundle.manifest.answer_shape(self.tiles.shape), np.float32)
        self.detector.infer(self.tiles, repainted, self.limits)
        maps = np.empty(self.tiles.shape[:3], np.float32)
        return Judge(self.plan, self.limits).judge(self.tiles, repainted, maps, self.detector.info, found.place)


_CALIBRATED: dict[str, Inspected] = {}


@pytest.fixture
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Inspected]:
    """A calibrated station by how it locates: made once for all tests."""

    def made(by: str) -> Inspected:
        if by not in _CALIBRATED:
            _CALIBRATED[by] = Inspected(tmp_path_factory.mktemp(by), by)
        return _CALIBRATED[by]

    return made


def recipe_of(declared: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "line": "placed",
            "safe_state": "reject_all",
            "line_ok": {"wired": "none", "because": "a test"},
            "deadline": {"deadline_ms": 60_000},
            "journal": {"reserve_mib": 1},
            "stations": [declared],
        }
    )


def assert_boxed(judgement: Judgement, place: Place, defect: tuple[float, float, float]) -> None:
    """The largest box lies around the defect, where it is in the frame, and is not much larger."""
    assert judgement.boxes
    assert judgement.areas_px
    x, y, width, height = judgement.boxes[0]
    middle = where_in_frame(place, *defect[:2])
    assert x <= middle[0] <= x + width
    assert y <= middle[1] <= y + height
    assert max(width, height) < 3 * defect[2]
    assert 0.2 < judgement.areas_px[0] / (math.pi / 4 * defect[2] ** 2) < 4


@pytest.mark.parametrize("by", ["edge", "template"])
def test_shifted_good_parts_pass_and_defects_are_found_where_they_are(
    by: str, calibrated: Callable[[str], Inspected]
) -> None:
    line = calibrated(by)
    for number, place in enumerate(some_places(6, seed=9)):
        good = paint_part(place, 200 + number, texture="brick")
        assert line.judge(good).decision is Decision.PASS, place
        assert line.judge(good, located=False).decision is Decision.REJECT, "it needs to be located"
        defect = (60.0 + 20 * number, 160.0 - 15 * number, 26.0)
        found = line.judge(paint_part(place, 200 + number, texture="brick", defect=defect))
        assert found.decision is Decision.REJECT, place
        assert_boxed(found, place, defect)


def test_evaluation_locates_as_the_line_does(tmp_path: Path, calibrated: Callable[[str], Inspected]) -> None:
    line = calibrated("edge")
    inspector = Inspector(line.recipe.stations[0], load_bundle(find_bundle("texture-s")), line.recipe.engine)
    place, defect = Place(14.3, -9.2, 4.4), (90.0, 140.0, 26.0)
    good, bad = paint_part(place, 300, texture="brick"), paint_part(place, 300, texture="brick", defect=defect)
    found = inspector.inspect(save(good, tmp_path / "good.png"), line.limits)
    assert found.passed
    assert found.score == line.judge(good).score
    found = inspector.inspect(save(bad, tmp_path / "bad.png"), line.limits)
    assert not found.passed
    assert found.score == line.judge(bad).score
    row, column = np.unravel_index(np.argmax(cv2.blur(found.anomaly_map, (21, 21))), FRAME)
    x, y = where_in_frame(place, *defect[:2])
    assert math.hypot(column - x, row - y) < 13
    far = save(paint_part(Place(60.0, 0.0, 0.0), 300, texture="brick"), tmp_path / "far.png")
    away = inspector.inspect(far, line.limits.model_copy(update={"score_threshold": 1e9}))
    assert not away.passed, "a part that was not found is not passed"


def test_a_good_part_that_is_not_found_is_named(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for number in range(12):
        save(paint_part(IN_PLACE, number), good / f"{number:02}.png")
    save(paint_part(Place(60.0, 0.0, 0.0), 1), good / "05.png")
    with pytest.raises(CalibrationError, match=r"05\.png: misplaced, shifted by 60\.\d px"):
        calibrate(recipe_of(station(tmp_path, "edge").model_dump()), good)


@pytest.mark.line
def test_a_line_finds_its_parts(tmp_path: Path, runtime_dir: Path, calibrated: Callable[[str], Inspected]) -> None:
    """Good, defective, none, too far, the same bytes twice, out of focus: each has its answer, its place, its box."""
    line = calibrated("edge")
    place, defect = Place(17.2, -11.6, 4.1), (90.0, 120.0, 28.0)
    good, bad = paint_part(place, 400, texture="brick"), paint_part(place, 401, texture="brick", defect=defect)
    background = np.clip(np.rint(blank(5)), 0, 255).astype(np.uint8)[..., None]
    soft = cv2.GaussianBlur(paint_part(place, 402, texture="brick"), (0, 0), 6)[..., None]
    parts = [
        (good, Decision.PASS, None),
        (good, Decision.UNINSPECTED, Reason.FROZEN_FRAME),
        (bad, Decision.REJECT, None),
        (background, Decision.UNINSPECTED, Reason.NO_PART),
        (paint_part(Place(50.0, 0.0, 0.0), 403, texture="brick"), Decision.UNINSPECTED, Reason.MISPLACED),
        (soft, Decision.UNINSPECTED, Reason.DEFOCUSED),
        (paint_part(IN_PLACE, 404, texture="brick"), Decision.PASS, None),
    ]
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, (frame, _, _) in enumerate(parts):
        save(frame, folder / f"{number}.png")
    declared = line.recipe.stations[0].model_dump(mode="json")
    declared |= {"validity": {"frozen": True}, "scale_mm_per_px": 0.25}
    declared["source"] = {"kind": "folder", "path": str(folder), "mode": "lossless", "rate_hz": 50}
    recipe = recipe_of(declared)
    write_recipe(recipe, tmp_path / "recipe.toml")
    state = tmp_path / "state"
    save_calibration(assemble({"cam": line.limits}, "painted"), calibration_path(make_private(state)))
    with RunningLine(tmp_path / "recipe.toml", state, runtime_dir) as running:
        assert running.wait(90) == 0, running.log.read_text()
    verdicts = sorted(journal_verdicts(state), key=lambda v: v.part)
    assert [(v.decision, v.reason) for v in verdicts] == [(d, r) for _, d, r in parts], running.log.read_text()
    views = [v.views[0] for v in verdicts]
    expected = of_region(place)
    for view in (views[0], views[2], views[5]):
        assert view.place == pytest.approx([expected.dx_px, expected.dy_px, expected.angle_deg], abs=0.2)
        assert view.scale_mm_per_px == 0.25
    assert views[1].place == views[3].place == []
    assert math.hypot(*views[4].place[:2]) == pytest.approx(50, abs=0.2)
    judged = Judgement(verdicts[2].decision, boxes=views[2].boxes, areas_px=views[2].areas_px)
    assert_boxed(judged, place, defect)
    same = line.judge(bad)
    assert (views[2].score, views[2].boxes) == (same.score, same.boxes), "the line and the pure functions agree"


def write_recipe(recipe: Recipe, path: Path) -> None:
    """As TOML, whose values are almost those of JSON."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{" + ", ".join(f"{k} = {value(v)}" for k, v in of.items() if v is not None) + "}"
        if isinstance(of, list):
            return "[" + ", ".join(value(v) for v in of) + "]"
        return json.dumps(of)

    content = recipe.model_dump(mode="json", exclude_unset=True)
    path.write_text("\n".join(f"{k} = {value(v)}" for k, v in content.items() if v is not None), encoding="utf-8")
