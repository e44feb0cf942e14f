"""Files of references: what is written comes back to the bit, a line per part, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import MasklineError
from edge.replay.compare import compare
from edge.replay.outcome import outcome
from edge.replay.references import References, ReferencesError, read_references, write_references
from edge.verdict import Reason
from tests.replay.verdict_helpers import ENGINE, refused, rejected, verdict, view

OUTCOMES = [
    outcome(verdict(0, view(score=0.1 + 0.2))),
    outcome(verdict(1, rejected(score=1 / 3))),
    outcome(verdict(2, refused(Reason.MISSED_FRAME, engine={}, bundle="b" * 64, calibration=""))),
    outcome(verdict(3, view(engine={**ENGINE, "isa": "other"}))),
]


def write(path: Path) -> Path:
    write_references(path, References("a.mcap", "a machine", OUTCOMES))
    return path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    found = read_references(write(tmp_path / "r.json"))
    assert (found.recording, found.machine) == ("a.mcap", "a machine")
    assert found.outcomes == OUTCOMES
    assert compare(found.outcomes, OUTCOMES).same


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_scores_keep_every_bit(tmp_path_factory: pytest.TempPathFactory, score: float) -> None:
    path = tmp_path_factory.mktemp("r") / "r.json"
    write_references(path, References("a", "m", [outcome(verdict(0, view(score=score)))]))
    assert read_references(path).outcomes[0]["score"] == score


def test_a_part_is_a_line_and_says_its_engine_only_where_it_is_another(tmp_path: Path) -> None:
    lines = write(tmp_path / "r.json").read_text().splitlines()
    parts = [line for line in lines if line.startswith('  {"lane"')]
    assert len(parts) == len(OUTCOMES)
    assert ["engine" in p for p in parts] == [False, False, True, True]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 2}',
        b'{"format": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1, "recording": "a", "machine": "m", "made_with": {}, "parts": 3}',
        b'{"format": 1, "recording": "a", "machine": "m", "made_with": {}, "parts": [{}]}',
        b'{"format": 1, "recording": "a", "machine": "m", "made_with": [], "parts": [{"lane": "l"}]}',
    ],
)
def test_what_is_no_file_of_references_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ReferencesError, match=r"r\.json"):
        read_references(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MasklineError, match="--update-reference writes them"):
        read_references(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("name", "value"), [("score", "high"), ("threshold", True), ("decision", 1), ("engine", "openvino")]
)
def test_a_wrong_field_of_a_view_is_refused(tmp_path: Path, name: str, value: object) -> None:
    path = write(tmp_path / "r.json")
    content = json.loads(path.read_text())
    content["parts"][3]["views"][0][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ReferencesError, match="no references"):
        read_references(path)
