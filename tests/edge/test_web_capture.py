"""What capture puts above each frame of a web: rows that the camera saw right before it, or none."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from gate_helpers import recipe
from worker_helpers import processes_of

from edge.capture import Capture
from edge.messages import FrameRef
from edge.processes import capture
from edge.settings import Recipe
from edge.slab import EngineState
from edge.sources import Exposed, Triggered
from edge.verdict import Reason
from edge.worker import Worker

OVERLAP = 32


def web_recipe() -> Recipe:
    plain = recipe().model_dump(mode="json")
    plain["stations"][0] |= {"web": {"mm_per_line": 0.5, "overlap_px": OVERLAP}, "validity": {"frozen": True}}
    return Recipe.model_validate(plain)


@pytest.mark.parametrize(
    ("second", "rows_before"),
    [("comes", OVERLAP), ("is frozen", 0), ("has no image", 0), ("has another size", 0), ("is not inspected", OVERLAP)],
)
def test_only_what_the_camera_saw_right_before_stands_above_a_frame(
    second: str, rows_before: int, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three frames, of one brightness each; what stands above the third."""
    sent: list[FrameRef] = []
    monkeypatch.setattr(Worker, "pass_on", lambda _worker, frame, _to: sent.append(frame))
    shots = {n: np.full((224, 224, 1), 50 * n, np.uint8) for n in (1, 2, 3)}
    answer = {
        "comes": Exposed(2, shots[2]),
        "is frozen": Exposed(2, shots[1].copy()),
        "has no image": Exposed(2, None, Reason.BAD_IMAGE),
        "has another size": Exposed(2, shots[2][:200]),
        "is not inspected": Exposed(2, shots[2]),
    }[second]
    with processes_of(web_recipe(), runtime_dir, tmp_path) as start:
        source = Capture(start(capture("s0")))
        for event in (Exposed(1, shots[1]), answer, Exposed(3, shots[3])):
            source.on_trigger(Triggered(event.number, time.monotonic_ns()))
            away = second == "is not inspected" and event.number == 2
            source.slab.head["engine"] = EngineState.STALE if away else EngineState.SERVED
            source.on_frame(event)
        third = sent[-1]
        window = source.slab.arrays(third.slot)["frame"]
        assert [f.number for f in sent] == ([1, 2, 3] if second == "comes" else [1, 3])
        assert third.rows_before == rows_before
        assert (window[OVERLAP:] == 150).all()
        assert (window[:OVERLAP] == (100 if rows_before else 150)).all()
