"""A recording with everything in it, and recordings that nobody would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
from mcap.writer import CompressionType, Writer

from edge.messages import Verdict, ViewResult
from edge.recording import RecordedTruth, RecordingWriter
from edge.verdict import Decision, Reason

__all__ = ["PARTS", "PERIOD_NS", "START_NS", "picture", "raw_recording", "result", "verdict", "write", "write_all"]

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
PARTS = 12


def picture(number: int, shape: tuple[int, ...] = (40, 60, 1), dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(number).integers(0, np.iinfo(dtype).max, shape, dtype)


def write(path: Path, stations: tuple[str, ...] = ("top", "side"), parts: int = PARTS, size: int = 40) -> Path:
    mask = np.zeros((size, 60), np.uint8)
    mask[3:9, 5:8] = 255
    png = cv2.imencode(".png", mask)[1].tobytes()
    with RecordingWriter(path, {"simulated": "true", "seed": "3"}) as out:
        for number in range(parts):
            for station in stations:
                now_ns = START_NS + number * PERIOD_NS
                out.trigger(station, number, now_ns)
                out.frame(station, number, now_ns + 5_000_000, picture(number, (size, 60, 1)))
                bad = number % 3 == 2
                out.truth(station, RecordedTruth(number, now_ns + 5_000_000, bad, "hole" if bad else "", 0.3, 6.5, png))
    return path


def result(number: int, station: str = "top", **changes: Any) -> ViewResult:
    fields = {"decision": Decision.PASS, "score": 0.1 * number, "boxes": [[1, 2, 3, 4]], "engine": {"backend": "null"}}
    return ViewResult(station, number, number * 7, **{**fields, **changes})


def verdict(part: int, lane: str = "left") -> Verdict:
    return Verdict(
        line="test", lane=lane, part=part, part_id=None, count=None, decision=Decision.PASS, reason=None, late=False,
        epoch="e1", seq=part, topic_seq=part, run=1, score=0.1, threshold=0.2, views=[], simulated=True, recipe="r",
        boot_id="b", trigger_ns=1, deadline_ns=2, decided_ns=3, trigger_utc_ns=4, decided_utc_ns=5,
    )  # fmt: skip


def write_all(path: Path, parts: int = 6, chunk_bytes: int = 1 << 12) -> Path:
    """Every topic and encoding; part 3 has no image, and the frame of a part stands behind the next trigger."""
    with RecordingWriter(path, {"simulated": "true"}, chunk_bytes) as out:
        out.add_attachment("calibration.json", b"{}")
        out.trigger("top", 0, START_NS)
        for number, encoding in zip(range(parts), ["raw", "zstd", "png", "raw", "jpeg", "raw"] * parts, strict=False):
            now_ns = START_NS + number * PERIOD_NS
            out.trigger("top", number + 1, now_ns + PERIOD_NS, count=number, part_id=number or None)
            if number != 3:
                out.frame("top", number, now_ns + 9, picture(number), encoding, quality=90)
            missed = {"decision": Decision.UNINSPECTED, "reason": Reason.REPEATED_FRAME} if number == 3 else {}
            out.result(result(number, **missed), now_ns + 20)
            out.verdict(verdict(number), now_ns + 30)
            out.truth("top", RecordedTruth(number, now_ns, number == 2, "hole"))
        out.add_metadata("maskline.end", {"dropped": "0"})
    return path


def raw_recording(
    path: Path, fields: object, topic: str = "/top/frame", profile: str = "maskline", **options: Any
) -> Path:
    """A recording of one message as it is given, or its bytes."""
    with path.open("wb") as file:
        writer = Writer(file, **{"compression": CompressionType.NONE, **options})
        writer.start(profile)
        writer.add_metadata("maskline", {"v": "2"})
        channel = writer.register_channel(topic, "msgpack", 0)
        data = fields if isinstance(fields, bytes) else msgpack.packb(fields)
        writer.add_message(channel, START_NS, data, START_NS)
        writer.finish()
    return path
