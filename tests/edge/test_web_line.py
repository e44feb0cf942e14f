"""A web through a whole line: every frame has one verdict, and the roll map knows what was not inspected."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import RecipeError, ResourceError
from edge.journal import open_for_reading
from edge.marker import draw
from edge.messages import Verdict
from edge.paths import journal_path
from edge.recording import RecordingWriter
from edge.settings import Frame
from edge.sources.marker import background
from edge.verdict import Decision
from edge.webs.geometry import web_geometry
from edge.webs.journal import read_roll
from edge.webs.roll import NOT_SEEN, RollMap, roll_map
from edge.webs.table import summary
from tests.listeners import Listener
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe, wait_until

LINES, OVERLAP, MARGIN = 224, 32, 8

pytestmark = pytest.mark.line


def web_recipe(folder: Path, *changes: tuple[str, str], encoder: str = "", parts: int | None = None) -> Path:
    """A line whose frames, each with a marker, follow each other on a web of 0.5 mm per line."""
    path = marker_recipe(folder, parts=parts, rate_hz=20, deadline_ms=20_000)
    text = path.read_text(encoding="utf-8").replace(
        "[stations.source]",
        f"tiling = {{ margin_px = {MARGIN} }}\n"
        f"web = {{ mm_per_line = 0.5, overlap_px = {OVERLAP}{encoder} }}\n[stations.source]",
    )
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def record(path: Path, frames: list[tuple[int | None, bool | None]]) -> None:
    """A recording of frames: (the encoder's count, whether it is bad; None: there is no frame)."""
    image = background(Frame(width_px=LINES, height_px=LINES))
    with RecordingWriter(path, {}) as out:
        for number, (count, bad) in enumerate(frames):
            at_ns = 1_700_000_000_000_000_000 + number * 100_000_000
            out.trigger("s0", number, at_ns, count=count)
            if bad is not None:
                draw(image, number, bad)
                out.frame("s0", number, at_ns + 1_000_000, image)


def mapped(state: Path) -> RollMap:
    roll = read_roll(journal_path(state))
    return roll_map(roll.looks, web_geometry(roll.station))


def assert_one_verdict_each(verdicts: list[Verdict]) -> None:
    assert [v.part for v in verdicts] == list(range(len(verdicts)))
    assert all(v.views[0].witness == v.part for v in verdicts if v.decision is not Decision.UNINSPECTED)


def test_an_encoder_that_turns_back_and_jumps(tmp_path: Path, runtime_dir: Path) -> None:
    """448 counts are a frame."""
    frames: list[tuple[int | None, bool | None]] = [
        (1000, False),
        (1448, True),
        (1896, None),  # a trigger without a frame
        (2344, False),
        (2792, False),
        (2500, False),  # back by 146 lines
        (2948, True),
        (3396 + 2 * 448, False),  # two frames that nobody triggered
        (4740 + 100, False),  # no whole frame
        (None, False),
    ]
    record(tmp_path / "web.mcap", frames)
    source = 'kind = "recording"\npath = "web.mcap"'
    recipe = web_recipe(
        tmp_path,
        ('kind = "marker"', source),
        ('mode = "live"', 'mode = "lossless"'),
        ('triggers = "inferred"', 'triggers = "independent"'),
        ("rate_hz = 20\ndefect_share = 0.3\nseed = 7", ""),
        encoder=", mm_per_count = 0.25",
    )
    state = tmp_path / "state"
    calibrate_marker(recipe, state)
    with RunningLine(recipe, state, runtime_dir) as line:
        assert line.wait() == 0, line.log.read_text()
    verdicts = sorted(journal_verdicts(state), key=lambda v: v.part)
    assert_one_verdict_each(verdicts)
    assert [v.reason.value if v.reason else v.decision.value for v in verdicts] == [
        *("PASS", "REJECT", "missed_frame", "PASS", "PASS", "tracking", "REJECT", "PASS", "tracking", "tracking")
    ]
    assert [v.views[0].rows_before for v in verdicts] == [0, OVERLAP, 0, 0, OVERLAP, 0, OVERLAP, 0, 0, 0]

    command = [sys.executable, "-m", "edge.cli", "roll", str(recipe), "--state-dir", str(state), "--out", "map"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 defects" in done.stdout
    with (tmp_path / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    defects = [(float(row["from_m"]), float(row["left_mm"]), row["frames"]) for row in rows if row["kind"] == "defect"]
    assert [(round(at, 3), frames) for at, _, frames in defects] == [(0.12, "1"), (0.495, "6")]
    assert all(left == 8.0 for _, left, _ in defects)
    picture = cv2.imread(str(tmp_path / "map.png"))
    assert picture is not None
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 5


def test_a_capture_process_that_dies_in_the_middle_of_a_roll(tmp_path: Path, runtime_dir: Path) -> None:
    """Numbers and positions go on. The first frame after it has no rows of the one before: its border is open."""
    recipe, state = web_recipe(tmp_path), tmp_path / "state"
    calibrate_marker(recipe, state)

    def inspected(verdicts: list[Verdict]) -> list[Verdict]:
        return [v for v in verdicts if v.decision is not Decision.UNINSPECTED]

    with RunningLine(recipe, state, runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(inspected(heard.verdicts)) > 5)
        capture = line.children()["capture.s0"]
        os.kill(capture, signal.SIGKILL)
        wait_until(lambda: line.children().get("capture.s0", capture) != capture)
        before = max(v.part for v in heard.verdicts)
        wait_until(lambda: len([v for v in inspected(heard.verdicts) if v.part > before]) > 5)
        assert line.stop() == 0
    verdicts = sorted(journal_verdicts(state), key=lambda v: v.part)
    assert_one_verdict_each(verdicts)
    good = {v.part for v in inspected(verdicts)}
    alone = [v.part for v in inspected(verdicts) if v.views[0].rows_before == 0]
    assert len(alone) == 2, "the first of the roll, and the first after the restart"
    assert alone[0] == 0
    roll = mapped(state)
    assert (roll.start, roll.end) == (0, LINES * len(verdicts))
    not_inspected = np.zeros(roll.end, bool)
    for gap in roll.gaps:
        not_inspected[gap.start : gap.end] = True
    for part in range(len(verdicts)):
        own = not_inspected[part * LINES : (part + 1) * LINES]
        assert own[MARGIN:-MARGIN].all() == (part not in good)
        if part in good:
            assert not own[MARGIN:-MARGIN].any()
            assert own[:MARGIN].all() == (part in alone)
            assert own[-MARGIN:].all() == (part + 1 in alone or part + 1 not in good)
    assert roll.gaps[0].why == NOT_SEEN
    rejected = {v.part for v in verdicts if v.decision is Decision.REJECT}
    assert {n for d in roll.defects for n in d.numbers} == rejected
    assert [d.box.y // LINES for d in roll.defects] == sorted(rejected)
    assert "m were not inspected" in summary(roll)
    assert_a_roll_can_be_a_part_of_a_run(state)


def assert_a_roll_can_be_a_part_of_a_run(state: Path) -> None:
    path = journal_path(state)
    with closing(open_for_reading(path)) as db:
        seen = dict(db.execute("SELECT number, seen_utc_ns FROM triggers WHERE number IN (2, 5)"))
    assert [look.number for look in read_roll(path, since_ns=seen[2], until_ns=seen[5]).looks] == [2, 3, 4]
    with pytest.raises(ResourceError, match="no frame of station s0 in run 1 and this time"):
        read_roll(path, since_ns=time.time_ns())
    with pytest.raises(ResourceError, match="no run 7"):
        read_roll(path, run=7)
    with pytest.raises(RecipeError, match=r"'top' has no \[stations.web\]; stations with a web: s0"):
        read_roll(path, station="top")
