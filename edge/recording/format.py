"""What a recording holds: its topics, its messages, and the limits of what is read of it. See docs/recording_format.md.

Topics are `/STATION/trigger`, `/STATION/frame`, `/STATION/result`, `/STATION/truth` and `/LANE/verdict`; every message
is a flat msgpack map with a version `v` and the `number` of its part. Nothing in a file is believed: types are checked,
lengths are capped, and what is wrong raises ValueError, in words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge.messages import MAX_INTEGER, Verdict, ViewResult, decode
from edge.sources.images import MAX_PIXELS, decode_image
from edge.verdict import Decision, Reason

__all__ = [
    "CALIBRATION",
    "FIRST_NUMBERS",
    "MAX_CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_NUMBER",
    "MESSAGE_ENCODING",
    "METADATA",
    "VERSION",
    "VERSIONS",
    "RecordedRefusal",
    "RecordedTrigger",
    "RecordedTruth",
    "pack",
    "refusal_of",
    "result_of",
    "split_topic",
    "take",
    "topic_of",
    "trigger_of",
    "truth_of",
    "unpack",
    "verdict_of",
]

VERSION = 2
VERSIONS = (1, 2)
"""What is read. Version 1 had no results and verdicts, and its triggers nothing but their number."""

METADATA = "maskline"
"""The profile of the file, and the name of the metadata record that describes it."""
CALIBRATION = "calibration.json"
"""Name of the attachment with the calibration that was in force."""
FIRST_NUMBERS = "first_numbers"
"""In the description: with which part of each station the file begins."""
MESSAGE_ENCODING = "msgpack"

MAX_NUMBER = (1 << 32) - 1
MAX_MESSAGE_BYTES = 1 << 29
MAX_CHUNK_BYTES = 1 << 30

_TOPIC = re.compile(r"/([a-z0-9][a-z0-9_-]{0,30})/(trigger|frame|result|truth|verdict)")
_MAX_FIELDS, _MAX_TEXT = 32, 4096
T = TypeVar("T")


@dataclass(frozen=True)
class RecordedTrigger:
    """A part demanded an answer."""

    number: int
    at_ns: int  # UTC
    missed: bool = False  # inferred from a gap in the frame ids
    count: int | None = None  # of the line's encoder
    part_id: int | None = None  # where a PLC gives parts their ids


@dataclass(frozen=True)
class RecordedRefusal:
    """The line had no image of a part, or none that fits, and why."""

    number: int
    at_ns: int  # UTC
    reason: Reason


@dataclass(frozen=True)
class RecordedTruth:
    """What is known of a simulated part."""

    number: int
    at_ns: int  # UTC
    bad: bool
    kind: str = ""  # of the defect
    contrast: float = 0.0  # mean visible change, as a share of full scale
    size_px: float = 0.0
    mask_png: bytes = field(default=b"", repr=False)

    def mask(self, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_] | None:
        """Where the defect shows, [H, W]; None for a good part. Raises BadImageError, also for too many pixels."""
        return decode_image(self.mask_png, max_pixels)[:, :, 0] > 0 if self.mask_png else None


def topic_of(name: str, kind: str) -> str:
    """The topic of a station's or a lane's messages of one kind."""
    return f"/{name}/{kind}"


def split_topic(topic: str) -> tuple[str, str] | None:
    """Station or lane, and kind, of a topic; None for one that is not of a recording."""
    match = _TOPIC.fullmatch(topic)
    return (match[1], match[2]) if match else None


def pack(number: int, fields: dict[str, Any]) -> bytes:
    """The bytes of a message; the same fields always give the same bytes."""
    packed: bytes = msgpack.packb({"v": VERSION, "number": number, **fields})
    return packed


def unpack(data: bytes | memoryview) -> tuple[int, dict[str, Any]]:
    """Number and fields of a message. Raises ValueError."""
    try:
        fields = msgpack.unpackb(
            data, max_map_len=_MAX_FIELDS, max_array_len=0, max_ext_len=0, max_str_len=_MAX_TEXT
        )  # the longest bin is the data itself
    except Exception as error:  # msgpack raises ValueError, its own classes and, on deep nesting, RecursionError
        raise ValueError(f"is no message of maskline: {str(error)[:80] or type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"is no message of maskline: a {type(fields).__name__}, expected a map")
    version, number = fields.get("v"), fields.get("number")
    if version not in VERSIONS:
        raise ValueError(f"has version {version!r}; this maskline reads versions 1 to {VERSION}")
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"has the part number {number!r}; allowed are 0 to {MAX_NUMBER}")
    return number, fields


def take(fields: dict[str, Any], name: str, kind: type[T]) -> T:
    """A field, which must be of that type; integers do for floats. Raises ValueError."""
    value = fields.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is int and not -MAX_INTEGER <= value <= MAX_INTEGER):  # type: ignore[operator]
        raise ValueError(f"has {name} = {_short(value)}; expected {kind.__name__}")
    return value


def trigger_of(number: int, at_ns: int, fields: dict[str, Any]) -> RecordedTrigger:
    """Raises ValueError."""
    if fields["v"] == 1:
        return RecordedTrigger(number, at_ns)
    count, part_id = (None if fields.get(n) is None else take(fields, n, int) for n in ("count", "part_id"))
    return RecordedTrigger(number, at_ns, take(fields, "missed", bool), count, part_id)


def truth_of(number: int, at_ns: int, fields: dict[str, Any]) -> RecordedTruth:
    """Raises ValueError."""
    contrast, size_px = take(fields, "contrast", float), take(fields, "size_px", float)
    bad, kind, mask = take(fields, "bad", bool), take(fields, "kind", str), take(fields, "mask", bytes)
    return RecordedTruth(number, at_ns, bad, kind, contrast, size_px, mask)


def result_of(number: int, at_ns: int, fields: dict[str, Any]) -> ViewResult:
    """Raises ValueError."""
    result: ViewResult = decode(take(fields, "message", bytes), ViewResult)
    return result


def refusal_of(number: int, at_ns: int, fields: dict[str, Any]) -> RecordedRefusal | None:
    """Why there was no frame, if a result says so. Raises ValueError."""
    result = result_of(number, at_ns, fields)
    refused = result.decision is Decision.UNINSPECTED and result.reason in _WITHOUT_IMAGE
    return RecordedRefusal(number, at_ns, result.reason) if refused and result.reason else None


def verdict_of(number: int, at_ns: int, fields: dict[str, Any]) -> Verdict:
    """Raises ValueError."""
    verdict: Verdict = decode(take(fields, "message", bytes), Verdict)
    return verdict


_WITHOUT_IMAGE = frozenset(
    {
        Reason.MISSED_FRAME,
        Reason.REPEATED_FRAME,
        Reason.FRAME_OUT_OF_ORDER,
        Reason.BAD_IMAGE,
        Reason.WRONG_SIZE,
        Reason.TRACKING,
    }
)
"""What capture says of a part when there is no image that fits."""


def _short(value: object) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)[:80]
