"""A web whose areas are added up from frame to frame: a line, and replays of what it recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from edge.marker import draw
from edge.messages import ViewResult
from edge.paths import journal_path
from edge.recipes import load_recipe
from edge.recording import Recording, RecordingWriter
from edge.replay.alone import replay_process
from edge.replay.run import ReplayOptions, replay_recording
from edge.replay.setup import set_up
from edge.replay.stages import Stages
from edge.testing import RunningLine, calibrate_by_hand, journal_verdicts
from edge.tiling import Box
from edge.webs.geometry import web_geometry
from edge.webs.journal import read_roll
from edge.webs.roll import roll_map
from engines.bundle import Score, find_bundle, load_bundle, write_bundle
from tests.replay.recording_helpers import rewriting

pytestmark = [pytest.mark.line, pytest.mark.timeout(180)]

LINES, OVERLAP, MARGIN = 164, 60, 28
LIMIT = 700
"""A defect has 30 x 30 px. Lines from `LINES - 32` of a frame on are first judged with the next one, and the four
before `LINES - 28` with both."""
ACROSS, WITHIN = LINES - 32 - 18, 60
"""Where a marker's first line is: half of its rim is above that line, or all of it far from there."""
PLACES = {0: ACROSS, 2: ACROSS, 5: WITHIN}
MISSED = 3
SAID = [("PASS", 19 * 30), ("REJECT", 900), ("PASS", 19 * 30), ("missed_frame", None), ("PASS", 0), ("REJECT", 900)]

RECIPE = f"""
line = "test"
safe_state = "reject_all"
line_ok = {{ wired = "none", because = "a test" }}
engine = {{ backend = "marker", batch = 2 }}
deadline = {{ deadline_ms = 60000, view_timeout_ms = 60000 }}
journal = {{ reserve_mib = 1 }}
pictures = {{ keep = "none" }}
recording = {{ folder = "rec", encoding = "png" }}
[[stations]]
name = "cam"
bundle = "area"
frame = {{ width_px = 224, height_px = {LINES} }}
tiling = {{ margin_px = {MARGIN} }}
web = {{ mm_per_line = 1.0, overlap_px = {OVERLAP} }}
scale_mm_per_px = 1.0
smallest_defect_mm2 = {LIMIT + 1}
source = {{ kind = "recording", path = "web.mcap", mode = "lossless", triggers = "independent" }}
"""


def image(number: int, y: int | None) -> np.ndarray:
    """A frame, with a defect whose marker begins in line `y`."""
    grey = np.full((LINES, 224, 1), 110, np.uint8)
    if y is not None:
        draw(grey, number, True, x=90, y=y, cell_px=3)
    return grey


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a line that has seen a web of six frames."""
    folder = tmp_path_factory.mktemp("web")
    shipped = load_bundle(find_bundle("marker")).manifest
    write_bundle(folder / "area", shipped.model_copy(update={"score": Score(kind="area")}), {})
    with RecordingWriter(folder / "web.mcap", {}) as out:
        for number in range(len(SAID)):
            out.trigger("cam", number, number * 1_000_000)
            if number != MISSED:
                out.frame("cam", number, number * 1_000_000 + 1, image(number, PLACES.get(number)))
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    calibrate_by_hand(load_recipe(folder / "recipe.toml"), folder / "state", score_threshold=LIMIT)
    with tempfile.TemporaryDirectory(prefix="ml-") as sockets:
        with RunningLine(folder / "recipe.toml", folder / "state", Path(sockets)) as running:
            assert running.wait(120) == 0, running.log.read_text()
    return folder


def recorded(line: Path) -> Path:
    (path,) = (line / "rec").glob("*.mcap")
    return path


def test_a_line_rejects_a_defect_that_no_frame_shows_enough_of(line: Path) -> None:
    verdicts = sorted(journal_verdicts(line / "state"), key=lambda v: v.part)
    assert [(v.reason.value if v.reason else v.decision.value, v.score) for v in verdicts] == SAID
    assert [v.views[0].areas_px for v in verdicts if v.views[0].boxes] == [[900], [900]]
    roll = read_roll(journal_path(line / "state"))
    across, within = roll_map(roll.looks, web_geometry(roll.station)).defects
    assert across.box == Box(93, LINES - 32, 30, 15), "its part in the frame that is rejected"
    assert within.box == Box(93, 5 * LINES + WITHIN + 3, 30, 30)


def test_a_replay_adds_up_as_the_line_did_whatever_its_batch(line: Path, tmp_path: Path) -> None:
    recipe = load_recipe(line / "recipe.toml")
    other = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"batch": 5})})
    found = replay_recording(recorded(line), ReplayOptions(recipe=other, expected="recorded", out=tmp_path / "out"))
    assert found.comparison is not None
    assert found.comparison.same, found.comparison.differences
    assert found.comparison.scores_compared == len(SAID) - 1
    assert [o["score"] for o in found.outcomes] == [score for _, score in SAID]


@pytest.mark.parametrize("name", ["judge", "detect"])
def test_one_process_alone_adds_up_too(line: Path, name: str) -> None:
    found = replay_process(recorded(line), name, ReplayOptions())
    assert found.comparison is not None
    assert found.comparison.same, found.comparison.differences
    assert [o["part"] for o in found.outcomes] == [2], "those with both frames before them, as the line had them"


def test_alone_it_adds_nothing_of_a_frame_that_the_line_did_not_judge(line: Path, tmp_path: Path) -> None:
    """Frame 2 is there, and had no slot when it came: frame 3 was judged by itself."""

    def written(name: str, results: Iterable[ViewResult] = ()) -> Path:
        with rewriting(recorded(line), tmp_path / name) as (_, out):
            for number in range(8):
                out.trigger("cam", number, number)
                out.frame("cam", number, number, image(number, None if number % 2 else ACROSS))
            for view in results:
                out.result(view, view.number)
        return tmp_path / name

    ready = set_up(Recording(written("seen.mcap")), None, None)
    (plan,) = ready.plan.stations.values()
    stages = Stages(plan, ready.detectors["cam"], ready.calibration)
    judged = [replace(view, stamps=[1]) for view in stages.views(lambda number: number != 2)]
    assert [(view.number, view.score) for view in judged] == [
        (0, 570), (1, 900), (3, 450), (4, 570), (5, 900), (6, 570), (7, 900)
    ]  # fmt: skip
    found = replay_process(written("told.mcap", judged), "judge", ReplayOptions()).comparison
    assert found is not None
    assert found.same, found.differences
    assert found.parts == len(judged) - 2
