"""A folder as a stream."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from source_helpers import drain, exposures, make_station, triggers

from edge.errors import SourceError
from edge.sources import Ended, open_source
from edge.verdict import Reason


def fill(folder: Path, names: list[str]) -> None:
    for value, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((48, 64), 10 * value, np.uint8))


def test_images_come_sorted_and_other_files_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, ["b.png", "a.bmp", "c.tif", "D.PNG"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub.png").mkdir()
    events = drain(open_source(make_station("folder", tmp_path), 0, 0))
    assert [int(e.image[0, 0, 0]) for e in exposures(events) if e.image is not None] == [30, 10, 0, 20]
    assert events[-1] == Ended(4)


def test_parts_and_the_first_number_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, [f"{n}.png" for n in range(6)])
    events = drain(open_source(make_station("folder", tmp_path, parts=5), 0, 3))
    assert [t.number for t in triggers(events)] == [3, 4]
    assert [int(e.image[0, 0, 0]) for e in exposures(events) if e.image is not None] == [30, 40]


def test_a_file_that_does_not_decode_is_a_part_with_a_bad_image(tmp_path: Path) -> None:
    fill(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:-20])
    (tmp_path / "2.png").write_bytes(b"")
    source = open_source(make_station("folder", tmp_path), 0, 0)
    (tmp_path / "3.png").unlink()
    seen = exposures(drain(source))
    assert [e.reason for e in seen] == [None, Reason.BAD_IMAGE, Reason.BAD_IMAGE, Reason.BAD_IMAGE]
    assert all(str(tmp_path / f"{e.number}.png") in e.detail for e in seen[1:])


def test_size_depth_and_channels_are_delivered_as_they_are(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((10, 20, 3), np.uint16))
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((30, 20), np.uint8))
    seen = exposures(drain(open_source(make_station("folder", tmp_path), 0, 0)))
    assert [(e.image.shape, str(e.image.dtype)) for e in seen if e.image is not None] == [
        ((10, 20, 3), "uint16"),
        ((30, 20, 1), "uint8"),
    ]


def test_no_folder_and_no_images_are_errors_that_name_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        open_source(make_station("folder", tmp_path / "nowhere"), 0, 0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="file"):
        open_source(make_station("folder", tmp_path / "file"), 0, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty.*\.png"):
        open_source(make_station("folder", tmp_path / "empty"), 0, 0)
