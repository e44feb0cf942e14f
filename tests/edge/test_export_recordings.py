"""Recordings as folders of images and as videos: what is known sorts them, and what was written opens again."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.datasets import find_categories, load_mask
from edge.errors import MasklineError, SourceError
from edge.export.images import export_images
from edge.export.video import export_video
from edge.messages import Verdict, View, ViewResult, field_names, fields_of
from edge.recipes import load_recipe
from edge.recording import RecordedTruth, RecordingWriter
from edge.sources import Image
from edge.verdict import Decision, Reason
from tests.support import marker_recipe

START_NS = 1_767_225_600_000_000_000
STEP_NS = 100_000_000


def picture(number: int, shape: tuple[int, int, int] = (48, 64, 1), dtype: str = "uint8") -> Image:
    return np.random.default_rng(number).integers(0, 200, shape).astype(dtype)


def said(number: int, decision: Decision, reason: Reason | None = None, station: str = "cam") -> ViewResult:
    boxes = [[10, 12, 20, 8]] if decision is Decision.REJECT else []
    return ViewResult(station, number, 1, decision, reason, score=0.25 + number, threshold=0.5, boxes=boxes)


def verdict(result: ViewResult, decision: Decision) -> Verdict:
    fields = {name: value for name, value in fields_of(result).items() if name in field_names(View)}
    view = View(**fields, bundle="")
    return Verdict(
        line="test", lane=result.station, part=result.number, part_id=None, count=None, decision=decision,
        reason=result.reason, late=False, epoch="e", seq=result.number, topic_seq=result.number, run=1, score=None,
        threshold=None, views=[view], simulated=True, recipe="r", boot_id="b", trigger_ns=1, deadline_ns=2,
        decided_ns=3, trigger_utc_ns=4, decided_utc_ns=5,
    )  # fmt: skip


def write_part(
    out: RecordingWriter, number: int, image: Image | None, encoding: str = "png", station: str = "cam"
) -> int:
    at_ns = START_NS + number * STEP_NS
    out.trigger(station, number, at_ns)
    if image is not None:
        out.frame(station, number, at_ns, image, encoding)
    return at_ns


def mask_png(shape: tuple[int, int]) -> bytes:
    mask = np.zeros(shape, np.uint8)
    mask[10:20, 30:50] = 255
    return cv2.imencode(".png", mask)[1].tobytes()


@pytest.fixture
def with_truth(tmp_path: Path) -> Path:
    """12 parts; 2, 5, 8 and 11 have a hole; the line, which errs, rejects 0 and 2."""
    path = tmp_path / "truth.mcap"
    with RecordingWriter(path, {"simulated": "true"}) as out:
        for number in range(12):
            at_ns = write_part(out, number, picture(number))
            bad = number % 3 == 2
            mask = mask_png((48, 64)) if bad else b""
            out.truth("cam", RecordedTruth(number, at_ns, bad, "hole" if bad else "", mask_png=mask))
            out.result(said(number, Decision.REJECT if number in (0, 2) else Decision.PASS), at_ns)
    return path


@pytest.fixture
def with_decisions(tmp_path: Path) -> Path:
    """10 parts that nobody knows the truth of: 3 is rejected, 5 is black, 6 has no frame, 7 was never answered, 8 was
    late, and of 9 only the verdict is there."""
    path = tmp_path / "line.mcap"
    words = {3: (Decision.REJECT, None), 5: (Decision.UNINSPECTED, Reason.BLACK_FRAME)}
    with RecordingWriter(path, {}) as out:
        for number in range(10):
            at_ns = write_part(out, number, None if number == 6 else picture(number))
            result = said(number, *words.get(number, (Decision.PASS, None)))
            if number not in (6, 7, 9):
                out.result(result, at_ns)
            if number == 8:
                result = said(number, Decision.UNINSPECTED, Reason.DEADLINE)
            if number != 7:
                out.verdict(verdict(result, result.decision), at_ns)
    return path


def files(folder: Path) -> dict[str, list[int]]:
    """The parts in each folder of images."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.rglob("*.png")):
        found.setdefault(str(path.parent.relative_to(folder)), []).append(int(path.stem.split("_")[1]))
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "parts.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_truth_sorts_the_images_whatever_the_line_said(with_truth: Path, tmp_path: Path) -> None:
    told = export_images([with_truth], tmp_path / "out")
    cam = tmp_path / "out/cam"
    assert files(cam) == {
        "train/good": [0, 1, 3, 6, 7, 9],
        "test/good": [4, 10],
        "test/hole": [2, 5, 8, 11],
        "ground_truth/hole": [2, 5, 8, 11],
    }
    assert told[0] == "cam: 2 test/good, 4 test/hole, 6 train/good"
    (category,) = find_categories([tmp_path / "out"])  # the reader that fits and compares engines
    assert (category.name, len(category.train), len(category.test)) == ("cam", 6, 6)
    hole = category.test[2]
    expected = np.zeros((48, 64), bool)
    expected[10:20, 30:50] = True
    np.testing.assert_array_equal(load_mask(hole, (48, 64)), expected)
    np.testing.assert_array_equal(cv2.imread(str(hole.path), cv2.IMREAD_UNCHANGED), picture(2)[..., 0])
    table = {int(row["part"]): row for row in rows(cam)}
    assert len(table) == 12
    assert (table[0]["truth"], table[0]["decision"], table[0]["boxes"]) == ("good", "REJECT", "10 12 20 8")
    assert table[11]["file"] == "test/hole/truth_00000011.png"
    assert (table[11]["truth"], table[11]["utc"]) == ("bad", "2026-01-01T00:00:01.100+00:00")
    assert (float(table[11]["score"]), float(table[11]["threshold"])) == (11.25, 0.5)


def test_without_truth_the_decisions_sort_and_nothing_claims_to_be_ground_truth(
    with_decisions: Path, tmp_path: Path
) -> None:
    told = export_images([with_decisions], tmp_path / "out")
    cam = tmp_path / "out/cam"
    assert files(cam) == {
        "train/good": [0, 1, 2, 8, 9],  # 8: what judge said of it counts, not that it came late
        "test/good": [4],
        "test/reject": [3],
        "uninspected/black_frame": [5],
        "unsorted": [7],
    }
    assert "cam: 1 parts without a frame" in told
    table = {int(row["part"]): row for row in rows(cam)}
    assert (table[8]["decision"], table[8]["published"], table[8]["reason"]) == ("PASS", "UNINSPECTED", "")
    assert (table[5]["decision"], table[5]["reason"]) == ("UNINSPECTED", "black_frame")
    assert table[7]["decision"] == table[7]["truth"] == ""


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_out_as_they_were_recorded(tmp_path: Path, dtype: str, channels: int) -> None:
    images = {n: picture(n, (30, 50, channels), dtype) * (1 if dtype == "uint8" else 20) for n in range(3)}
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for (number, image), encoding in zip(images.items(), ("png", "raw", "zstd"), strict=True):
            write_part(out, number, image, encoding)
    export_images([tmp_path / "a.mcap"], tmp_path / "out")
    for number, image in images.items():
        found = cv2.imread(str(tmp_path / f"out/cam/unsorted/a_{number:08d}.png"), cv2.IMREAD_UNCHANGED)
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found[..., ::-1] if channels == 3 else found[..., None], image)


def test_a_jpeg_stays_the_file_that_it_was(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        write_part(out, 0, picture(0), "jpeg")
    export_images([tmp_path / "a.mcap"], tmp_path / "out")
    found = (tmp_path / "out/cam/unsorted/a_00000000.jpg").read_bytes()
    assert found == cv2.imencode(".jpg", picture(0), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def test_no_frame_is_decoded_that_has_more_pixels_than_its_recipe_allows(tmp_path: Path) -> None:
    """A few kilobytes that declare, and become, 96 MiB."""
    recipe = load_recipe(marker_recipe(tmp_path))
    huge = np.zeros((8192, 12_288, 1), np.uint8)
    with RecordingWriter(tmp_path / "a.mcap", {"recipe": recipe.model_dump_json()}) as out:
        write_part(out, 0, huge, "zstd", "s0")
        write_part(out, 1, picture(1), "zstd", "s0")
    told = export_images([tmp_path / "a.mcap"], tmp_path / "out")
    assert files(tmp_path / "out/s0") == {"unsorted": [1]}
    assert any("part 0: the shape (8192, 12288, 1); decoded are up to 67108864 pixels" in line for line in told)


def test_rolls_of_one_run_know_of_each_other_and_other_runs_do_not(tmp_path: Path) -> None:
    def roll(name: str, run: str, numbers: range, rejected: int) -> Path:
        with RecordingWriter(tmp_path / name, {"epoch": "e"}) as out:
            for number in numbers:
                write_part(out, number, picture(number))
            at_ns = START_NS + 99 * STEP_NS
            if name == "first.mcap":  # the frame of this part comes a roll later
                out.trigger("cam", 3, at_ns)
            out.result(said(rejected, Decision.REJECT), at_ns)
            out.add_metadata("maskline.end", {"epoch": "e", "run": run})
        return tmp_path / name

    first = roll("first.mcap", "1", range(3), rejected=0)
    second = roll("second.mcap", "1", range(3, 6), rejected=2)  # the answer to part 2 is in the next roll
    other = roll("other.mcap", "2", range(3), rejected=1)
    told = export_images([first, second, other], tmp_path / "out")
    assert not any("without a frame" in line for line in told)
    names = sorted(p.name for p in (tmp_path / "out/cam/test/reject").iterdir())
    assert names == ["first_00000000.png", "first_00000002.png", "other_00000001.png"]


def test_frames_that_do_not_decode_are_left_out_named_and_counted(
    with_truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.recording import RecordedFrame
    from edge.sources.images import BadImageError

    decode = RecordedFrame.decode

    def fail_some(frame: RecordedFrame, max_pixels: int) -> Image:
        if frame.number in (3, 4):
            raise BadImageError("does not decode")
        return decode(frame, max_pixels)

    monkeypatch.setattr(RecordedFrame, "decode", fail_some)
    told = export_images([with_truth], tmp_path / "out")
    assert "cam: 2 frames left out, for they do not decode:" in told
    assert "  truth.mcap: part 3: does not decode" in told
    assert 3 not in files(tmp_path / "out/cam")["train/good"]


def test_a_recording_cannot_name_a_file_outside_of_the_folder(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number, kind in enumerate(["../../../escaped", "good", "", ".hidden", "a/b"]):
            at_ns = write_part(out, number, picture(number))
            out.truth("cam", RecordedTruth(number, at_ns, True, kind))
    export_images([tmp_path / "a.mcap"], tmp_path / "out")
    assert set(files(tmp_path)) == {
        f"out/cam/test/{kind}" for kind in ("_.._.._escaped", "defect_good", "defect", "hidden", "a_b")
    }


def test_what_cannot_be_exported_is_named_and_leaves_nothing(with_truth: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/keep.txt").write_text("mine")
    with pytest.raises(SourceError, match="something already"):
        export_images([with_truth], tmp_path / "full")
    with pytest.raises(SourceError, match="named twice"):
        export_images([with_truth, with_truth], tmp_path / "out")
    RecordingWriter(tmp_path / "empty.mcap", {}).close()
    with pytest.raises(SourceError, match=r"empty\.mcap: no frame"):
        export_images([tmp_path / "empty.mcap"], tmp_path / "out")
    with pytest.raises(SourceError, match=r"gone\.mcap"):
        export_images([tmp_path / "gone.mcap"], tmp_path / "out")
    with pytest.raises(SourceError, match="cannot write"):
        export_images([with_truth], Path("/proc/no/where"))
    assert {p.name for p in tmp_path.iterdir()} == {"full", "truth.mcap", "empty.mcap"}
    assert (tmp_path / "full/keep.txt").read_text() == "mine"


def decoded(path: Path) -> tuple[list[Image], float]:
    """The frames of a video, RGB, and its rate: by another library than the one that wrote it."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[..., ::-1])


def is_near(pixels: Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) < 40).all(axis=-1)


RED, GREEN, TRUTH = (220, 40, 40), (60, 160, 60), (0, 220, 255)


def test_a_video_shows_each_part_with_its_decision_its_boxes_and_the_truth(with_truth: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs av: pip install 'maskline[video]'")
    told = export_video([with_truth], tmp_path / "out")
    assert told[0] == "cam: 12 parts at 10 per second"
    frames, rate = decoded(tmp_path / "out/cam.mp4")
    assert (len(frames), rate) == (12, 10)
    assert {frame.shape for frame in frames} == {(48 * 8 + 56, 64 * 8, 3)}
    for number, frame in enumerate(frames):
        band, image = frame[-4:], frame[: 48 * 8]
        assert is_near(band, RED if number in (0, 2) else GREEN).mean() > 0.9
        corner = image[12 * 8 - 3 : 12 * 8 + 3, 10 * 8 + 4 : 30 * 8 - 4]  # upper edge of the box
        assert is_near(corner, RED).any() == (number in (0, 2))
        outline = image[9 * 8 : 11 * 8, 30 * 8 : 50 * 8]
        assert is_near(outline, TRUTH).any() == (number % 3 == 2)
        inside = image[30 * 8 : 44 * 8, 8:-8]
        enlarged = np.repeat(np.repeat(picture(number)[30:44, 1:-1], 8, 0), 8, 1)
        assert np.abs(inside.astype(int) - enlarged).mean() < 12  # the picture itself, but for the compression


def test_a_video_shows_frames_of_any_size_and_depth(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs av: pip install 'maskline[video]'")
    shapes = [(300, 2500, 3), (2500, 300, 1), (17, 33, 1), (48, 64, 1)]
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        for number, shape in enumerate(shapes):
            write_part(out, number, np.full(shape, 3000, np.uint16), "raw")
    export_video([tmp_path / "a.mcap"], tmp_path / "out")
    frames, _ = decoded(tmp_path / "out/cam.mp4")
    assert len(frames) == 4
    height, width = frames[0].shape[:2]
    assert (height, width) == (230 + 56, 1920)
    grey = (3000 >> 4,) * 3
    assert all(is_near(frame[20:200, 955:965], grey).mean() > 0.8 for frame in frames)


def test_a_video_needs_its_extra_and_something_to_show(
    with_truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="needs av: pip install 'maskline[video]'")
    with RecordingWriter(tmp_path / "a.mcap", {}) as out:
        write_part(out, 0, None)
    with pytest.raises(SourceError, match="no frame"):
        export_video([tmp_path / "a.mcap"], tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MasklineError, match=r"pip install 'maskline\[video\]'"):
        export_video([with_truth], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_on_a_web_boxes_count_from_the_frame_that_was_recorded(tmp_path: Path) -> None:
    """A web is judged with rows of the frame before above each frame; they are not recorded again."""
    recipe = marker_recipe(tmp_path, parts=None)
    text = recipe.read_text().replace('name = "s0"', 'name = "cam"').replace('lane = "s0"', 'lane = "cam"')
    recipe.write_text(text + "[stations.web]\noverlap_px = 32\nmm_per_line = 0.5\n")
    with RecordingWriter(tmp_path / "a.mcap", {"recipe": load_recipe(recipe).model_dump_json()}) as out:
        at_ns = write_part(out, 0, picture(0, (224, 224, 1)))
        boxes = [[5, 42, 20, 8], [5, 30, 20, 8], [5, 2, 20, 8]]  # in the frame, across its border, in the one before
        out.result(ViewResult("cam", 0, 1, Decision.REJECT, boxes=boxes), at_ns)
    export_images([tmp_path / "a.mcap"], tmp_path / "out")
    assert rows(tmp_path / "out/cam")[0]["boxes"] == "5 10 20 8; 5 0 20 6"
