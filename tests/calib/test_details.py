"""The file of details: what was written is read, nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib.details import Details, load_all_details, load_details, save_details
from calib.pixels import PixelCounts
from edge.errors import MasklineError


def made(seed: int = 0, defects: tuple[str, ...] = ("", "", "hole", "nep_tiny")) -> Details:
    rng = np.random.default_rng(seed)
    n = len(defects)
    good, bad = (rng.integers(0, 50, (n, 16)).astype(np.uint32) for _ in range(2))
    bad[[not kind for kind in defects]] = 0
    names = np.array([f"{kind or 'good'}/{i}.png" for i, kind in enumerate(defects)])
    return Details(names, np.array(defects), rng.random(n), PixelCounts(good, bad))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = {("tile", "sdc"): made(0), ("tile", "mae"): made(1), ("cloth", "sdc"): made(2)}
    save_details(tmp_path / "details.npz", written)
    assert [p.name for p in tmp_path.iterdir()] == ["details.npz"]
    found = load_details(tmp_path / "details.npz")
    assert found.keys() == written.keys()
    for key, details in written.items():
        for field in ("names", "defects", "scores"):
            assert np.array_equal(getattr(found[key], field), getattr(details, field))
        assert np.array_equal(found[key].pixels.good, details.pixels.good)
        assert np.array_equal(found[key].pixels.bad, details.pixels.bad)


def test_several_files_are_read_as_one_unless_they_say_the_same_thing_twice(tmp_path: Path) -> None:
    fabrics, tiles, again = (tmp_path / name for name in ("fabrics.npz", "tiles.npz", "again.npz"))
    save_details(fabrics, {("cloth", "sdc"): made(0), ("denim", "sdc"): made(1)})
    save_details(tiles, {("tile", "sdc"): made(2), ("cloth", "mae"): made(3)})
    found = load_all_details([fabrics, tiles])
    assert list(found) == [("cloth", "sdc"), ("denim", "sdc"), ("cloth", "mae"), ("tile", "sdc")]
    assert np.array_equal(found["tile", "sdc"].scores, made(2).scores)
    save_details(again, {("cloth", "sdc"): made(4)})
    with pytest.raises(MasklineError, match=r"again\.npz: cloth/sdc is in .*fabrics\.npz as well"):
        load_all_details([fabrics, tiles, again])


def test_kinds_of_images_are_told_apart() -> None:
    details = made()
    details.pixels.good[2] = details.pixels.bad[2] = 0  # no mask
    assert details.bad.tolist() == [False, False, True, True]
    assert details.tiny.tolist() == [False, False, False, True]
    assert details.known.tolist() == [True, True, False, True]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    with pytest.raises(MasklineError, match=r"file\.npz: no file of details.*No such file"):
        load_details(path)
    path.write_bytes(b"no archive")
    with pytest.raises(MasklineError, match="no file of details"):
        load_details(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(MasklineError, match="a single array"):
        load_details(path)
    with path.open("wb") as file:  # an array of objects is a pickle, which would run code
        np.savez(file, **{"tile/sdc/names": np.array([{}], object)})  # type: ignore[arg-type]
    with pytest.raises(MasklineError, match="allow_pickle"):
        load_details(path)
    with pytest.raises(MasklineError, match=r"nowhere/x\.npz: cannot write"):
        save_details(tmp_path / "nowhere" / "x.npz", {})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", None, "tile/sdc has no scores"),
        ("scores", np.zeros(3), r"do not belong together: names \(4,\), defects \(4,\), scores \(3,\)"),
        ("scores", np.array([0, 1, np.nan, 2]), "not finite"),
        ("bad", np.zeros((4, 3), np.uint32), "do not belong together"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    path = tmp_path / "details.npz"
    save_details(path, {("tile", "sdc"): made()})
    with np.load(path) as file:
        arrays = dict(file)
    if value is None:
        del arrays[f"tile/sdc/{field}"]
    else:
        arrays[f"tile/sdc/{field}"] = value
    np.savez(path, **arrays)
    with pytest.raises(MasklineError, match=message):
        load_details(path)
