"""The calibration file: whole or not at all, and only for what it was made with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from calib import calibration as ca
from edge.errors import CalibrationError
from edge.tiling import FrameLevels
from edge.verdict import Reason


def provenance(**changes: str) -> ca.Provenance:
    fields = {
        "bundle_sha256": "a" * 64,
        "recipe_sha256": "b" * 64,
        "backend": "openvino",
        "backend_version": "2026.1",
        "device": "CPU",
        "precision": "f32",
        "isa": "avx2",
        "plan": "x1",
    }
    return ca.Provenance(**(fields | changes))


def station(**changes: Any) -> ca.StationCalibration:
    fields: dict[str, Any] = {
        "provenance": provenance(),
        "map_threshold": 0.2,
        "map_quantile": 0.999,
        "score_threshold": 0.31,
        "parts_fit": 30,
        "parts_held_out": 30,
        "rejected_held_out": 0,
        "target_false_reject_rate": 0.01,
        "confidence": 0.95,
        "false_reject_upper_bound": 0.095,
        "extrapolated": True,
        "score_quantiles": {"min": 0.1, "max": 0.3},
        "levels": ca.LevelsSeen(mean_low=0.4, mean_high=0.6, contrast_low=0.1),
        "statement": "little",
    }
    return ca.StationCalibration(**(fields | changes))


@pytest.fixture
def calibration() -> ca.Calibration:
    return ca.Calibration(
        maskline_version="0.1.0", created_utc="2026-01-01T00:00:00+00:00", source="good/", stations={"web": station()}
    )


def test_what_is_saved_is_loaded(calibration: ca.Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    ca.save_calibration(calibration, path)
    ca.save_calibration(calibration, path)
    loaded = ca.load_calibration(path)
    assert loaded == calibration
    assert loaded.sha256 == calibration.sha256
    assert path.read_bytes() == calibration.to_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]


def test_no_calibration_is_none_and_never_a_number(tmp_path: Path) -> None:
    assert ca.load_calibration(tmp_path / "calibration.json") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format=2), ["format 2", "calibrate again"]),
        (lambda d: d["stations"]["web"].update(score_threshold=-1), ["stations.web.score_threshold", "-1"]),
        (lambda d: d["stations"]["web"].update(score_threshold=float("nan")), ["score_threshold", "finite"]),
        (lambda d: d["stations"]["web"].pop("map_threshold"), ["stations.web.map_threshold", "required"]),
        (lambda d: d.update(extra=1), ["extra", "not permitted"]),
        (lambda d: d.update(source="x" * 5000), ["source", "4000"]),
        (lambda d: d.update(stations={}), ["stations"]),
    ],
)
def test_a_wrong_file_says_where(calibration: ca.Calibration, tmp_path: Path, change: Any, words: list[str]) -> None:
    path = tmp_path / "calibration.json"
    data = json.loads(calibration.to_bytes())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError) as caught:
        ca.load_calibration(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000, b"0" * (ca.MAX_CALIBRATION_BYTES + 1)]
)
def test_a_damaged_file_is_not_an_absent_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"calibration\.json"):
        ca.load_calibration(path)


def test_a_failed_save_leaves_the_old_file(
    calibration: ca.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    ca.save_calibration(calibration, path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CalibrationError, match="No space left"):
        ca.save_calibration(calibration.model_copy(update={"source": "other"}), path)
    assert ca.load_calibration(path) == calibration
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CalibrationError, match="cannot write"):
        ca.save_calibration(calibration, tmp_path / "nowhere" / "calibration.json")


def test_only_an_exact_match_is_calibrated() -> None:
    assert ca.mismatch(station(), provenance()) is None
    text = ca.mismatch(station(), provenance(precision="bf16"))
    assert text == "precision is 'bf16', calibrated with 'f32'"
    text = ca.mismatch(station(), provenance(bundle_sha256="c" * 64, plan="x4"))
    assert text is not None
    assert "cccccccccccc…, calibrated with aaaaaaaaaaaa…" in text
    assert "plan is 'x4'" in text
    for name in ca.Provenance.model_fields:
        assert name in str(ca.mismatch(station(), provenance(**{name: "d" * 64})))


@pytest.mark.parametrize(
    ("mean", "contrast", "expected"),
    [
        (0.5, 0.2, None),
        (0.35, 0.03, None),
        (0.1, 0.2, Reason.BLACK_FRAME),
        (0.0, 0.0, Reason.BLACK_FRAME),
        (0.9, 0.2, Reason.SATURATED_FRAME),
        (0.45, 0.01, Reason.BLACK_FRAME),
        (0.55, 0.01, Reason.SATURATED_FRAME),
    ],
)
def test_levels_far_from_every_good_part_are_trouble(mean: float, contrast: float, expected: Reason | None) -> None:
    assert ca.levels_trouble(station().levels, FrameLevels(mean, contrast)) is expected
