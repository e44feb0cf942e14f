"""Folders and videos as recordings: each image a part, nothing invented, what does not decode named and counted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import SourceError
from edge.export.images import export_images
from edge.import_files import import_files
from edge.recording import RecordedFrame, RecordedTrigger, Recording
from edge.sources import Image
from edge.sources.images import BadImageError
from tests.command import maskline

SECOND_NS = 1_000_000_000


def picture(number: int, shape: tuple[int, ...] = (48, 64), dtype: str = "uint8") -> Image:
    return np.random.default_rng(number).integers(0, 200, shape).astype(dtype)


def write_images(folder: Path, count: int = 5, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        cv2.imwrite(str(folder / f"{number:03d}.png"), picture(number))
    return folder


def write_video(path: Path, frames: int = 12, fps: float = 20) -> Path:
    """Frame n has the brightness 10 n."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path


def frames(path: Path, station: str = "cam") -> list[RecordedFrame]:
    return [e for e in Recording(path).events(station) if isinstance(e, RecordedFrame)]


def times(path: Path, station: str = "cam") -> list[int]:
    """When its parts were triggered, in ns after the first."""
    found = [e.at_ns for e in Recording(path).events(station) if isinstance(e, RecordedTrigger)]
    return [at_ns - found[0] for at_ns in found]


def test_each_image_is_a_part_in_the_order_of_the_names(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    cv2.imwrite(str(images / "0015.png"), picture(77, (30, 40, 3), "uint16"))  # between 001 and 002
    told = import_files([str(images)], tmp_path / "a.mcap", rate_hz=4)
    recording = Recording(tmp_path / "a.mcap")
    assert recording.complete
    assert recording.lossless
    found = frames(tmp_path / "a.mcap")
    assert [f.number for f in found] == list(range(6))
    for frame, number in zip(found, [0, 1, 77, 2, 3, 4], strict=True):
        expected = picture(number)[..., None] if number != 77 else picture(77, (30, 40, 3), "uint16")[..., ::-1]
        np.testing.assert_array_equal(frame.decode(), expected)
    assert times(tmp_path / "a.mcap") == [n * SECOND_NS // 4 for n in range(6)]
    assert told[0] == "cam: 6 parts, 5 of 64 x 48 px, 1 channel, uint8; 1 of 40 x 30 px, 3 channels, uint16"
    assert dict(recording.metadata_records)["files.cam"]["2"] == "0015.png"
    assert recording.truths("cam") == {}


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    for name in ("a.mcap", "b.mcap"):
        import_files([str(images)], tmp_path / name)
    assert (tmp_path / "a.mcap").read_bytes() == (tmp_path / "b.mcap").read_bytes()


@pytest.mark.parametrize("grey", [False, True])
def test_each_frame_of_a_video_is_a_part_at_its_own_rate(tmp_path: Path, grey: bool) -> None:
    video = write_video(tmp_path / "line.avi")
    import_files([str(video)], tmp_path / "a.mcap", grey=grey)
    found = frames(tmp_path / "a.mcap")
    assert [round(float(f.decode().mean()) / 10) for f in found] == list(range(12))
    assert {(f.height, f.width, f.channels) for f in found} == {(48, 64, 1 if grey else 3)}
    assert times(tmp_path / "a.mcap") == [n * SECOND_NS // 20 for n in range(12)]
    import_files([str(video)], tmp_path / "b.mcap", rate_hz=2)
    assert times(tmp_path / "b.mcap")[-1] == 11 * SECOND_NS // 2


def test_sources_of_a_station_follow_each_other_and_stations_stand_beside_each_other(tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "1", 3), write_images(tmp_path / "2", 2, first=3)
    video = write_video(tmp_path / "line.avi", 4)
    out = tmp_path / "a.mcap"
    import_files([f"top={first}", f"side={video}", f"top={second}"], out, rate_hz=10)
    assert Recording(out).stations == ("side", "top")
    assert [f.number for f in frames(out, "side")] == list(range(4))
    top = frames(out, "top")
    assert [f.number for f in top] == list(range(5))
    assert all(np.array_equal(f.decode()[..., 0], picture(f.number)) for f in top)
    assert times(out, "top") == [n * SECOND_NS // 10 for n in range(5)]


def test_files_that_do_not_decode_are_left_out_named_and_counted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 9)
    for number in (1, 3, 4, 5, 6, 7):
        (images / f"{number:03d}.png").write_bytes((images / f"{number:03d}.png").read_bytes()[:-40])
    (images / "notes.txt").write_text("no image, and no mistake either")
    told = import_files([str(images)], tmp_path / "a.mcap")
    assert [f.number for f in frames(tmp_path / "a.mcap")] == [0, 1, 2]
    assert "cam: 6 files or frames left out, for they do not decode:" in told
    assert f"  {images / '001.png'}: a PNG cut" in told[2]
    assert told[-2] == "  and 1 more"
    assert dict(Recording(tmp_path / "a.mcap").metadata_records)["files.cam"] == {
        "0": "000.png", "1": "002.png", "2": "008.png",
    }  # fmt: skip


def test_a_cut_video_gives_the_frames_that_decode(tmp_path: Path) -> None:
    video = write_video(tmp_path / "line.avi", 20)
    video.write_bytes(video.read_bytes()[: int(video.stat().st_size * 0.8)])
    told = import_files([str(video)], tmp_path / "a.mcap")
    whole = len(frames(tmp_path / "a.mcap"))
    assert 0 < whole < 20
    assert f"cam: {20 - whole} files or frames left out, for they do not decode:" in told


def test_folders_of_folders_keep_their_truth_and_come_out_of_an_export_as_they_went_in(tmp_path: Path) -> None:
    category = tmp_path / "tile"
    write_images(category / "test/good", 3)
    write_images(category / "test/hole", 2, first=3)
    write_images(category / "test/unmasked", 1, first=5)
    (category / "ground_truth/hole").mkdir(parents=True)
    mask = np.zeros((48, 64), np.uint8)
    mask[3:9, 5:8] = 7  # whatever is not 0
    for name in ("003", "004"):
        cv2.imwrite(str(category / f"ground_truth/hole/{name}_mask.png"), mask)
    out = tmp_path / "a.mcap"
    import_files([str(category / "test")], out)
    truths = Recording(out).truths("cam")
    assert [(t.bad, t.kind) for t in truths.values()] == [(False, "")] * 3 + [(True, "hole")] * 2 + [(True, "unmasked")]
    found = truths[4].mask()
    assert found is not None
    np.testing.assert_array_equal(found, mask > 0)
    assert truths[5].mask() is None
    export_images([out], tmp_path / "out")
    cam = tmp_path / "out/cam"
    for number, place in enumerate(["train/good"] * 3 + ["test/hole"] * 2 + ["test/unmasked"]):
        exported = cv2.imread(str(cam / place / f"a_{number:08d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(exported, picture(number))
    assert not (cam / "ground_truth/unmasked").exists()


def test_a_mask_of_another_size_than_its_image_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "test/hole", 1)
    (tmp_path / "ground_truth/hole").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "ground_truth/hole/000_mask.png"), np.ones((20, 20), np.uint8))
    with pytest.raises(SourceError, match=r"000_mask\.png: 20 x 20 px"):
        import_files([str(tmp_path / "test")], tmp_path / "a.mcap")
    assert not list(tmp_path.glob("a.mcap*"))


def test_what_cannot_be_imported_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 2), tmp_path / "a.mcap"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/0.png").write_bytes(b"no image")
    (tmp_path / "junk.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "tile/test").mkdir(parents=True)
    for sources, match in [
        ([images, tmp_path / "gone"], "gone"),
        ([tmp_path / "empty"], "no images"),
        ([tmp_path / "broken"], r"none of its files decodes: .*0\.png"),
        ([tmp_path / "junk.mp4"], r"junk\.mp4: no video"),
        ([tmp_path / "tile"], "name its test or its train/good folder"),
        ([f"Top Camera={images}"], "'Top Camera' is no name of a station"),
    ]:
        with pytest.raises(SourceError, match=match):
            import_files(list(map(str, sources)), out)
        assert not list(tmp_path.glob("a.mcap*")), match
    with pytest.raises(SourceError, match="cannot write"):
        import_files([str(images)], tmp_path / "no" / "a.mcap")
    out.write_text("mine")
    with pytest.raises(SourceError, match="there is a file already"):
        import_files([str(images)], out)
    assert out.read_text() == "mine"


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    images = write_images(tmp_path / "exposure=20", 2)
    import_files([str(images)], tmp_path / "a.mcap")
    assert Recording(tmp_path / "a.mcap").stations == ("cam",)


def test_lossy_images_are_recorded_as_they_decode(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/0.jpg"), picture(0))
    import_files([str(tmp_path / "images")], tmp_path / "a.mcap")
    (frame,) = frames(tmp_path / "a.mcap")
    stored = cv2.imread(str(tmp_path / "images/0.jpg"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(frame.decode()[..., 0], stored)
    with pytest.raises(BadImageError):
        frame.decode(max_pixels=10)


def test_without_a_rate_each_source_keeps_its_own(tmp_path: Path) -> None:
    images, video = write_images(tmp_path / "images", 3), write_video(tmp_path / "line.avi", 4, fps=20)
    import_files([str(images), str(video)], tmp_path / "a.mcap")
    assert times(tmp_path / "a.mcap") == [n * 10_000_000 for n in (0, 20, 40, 60, 65, 70, 75)]


def test_the_commands_say_what_they_did_and_what_is_wrong(tmp_path: Path) -> None:
    done = maskline("import", f"top={write_images(tmp_path / 'images', 4)}", "--out", tmp_path / "a.mcap")
    assert done.returncode == 0, done.stderr
    assert "top: 4 parts, 4 of 64 x 48 px, 1 channel, uint8" in done.stdout
    done = maskline("export", tmp_path / "a.mcap", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "top: 4 unsorted" in done.stdout
    assert len(list((tmp_path / "out/top/unsorted").iterdir())) == 4
    for wrong, words in [
        (("import", tmp_path / "gone", "--out", tmp_path / "b.mcap"), "gone"),
        (("export", tmp_path / "gone.mcap", "--out", tmp_path / "b"), "gone.mcap"),
        (("export", tmp_path / "a.mcap", "--out", tmp_path / "out"), "something already"),
    ]:
        done = maskline(*wrong)
        assert done.returncode == 1
        assert done.stderr.startswith("maskline: ")
        assert words in done.stderr
        assert "Traceback" not in done.stderr
