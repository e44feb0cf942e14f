"""What travels over sockets: small msgpack maps, never pixels.

Every message is a map with `v` (schema version), `type` and the fields of its class. `decode` trusts nothing: a message
from another version, of another type than expected, with a missing, unknown or wrongly typed field raises
ProtocolError, and lengths are capped before anything is allocated.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, Literal, Union

import msgspec

from edge.verdict import Decision, GateState, Reason

__all__ = [
    "MAX_INTEGER",
    "Ack",
    "Boxes",
    "Clock",
    "FrameRef",
    "Heartbeat",
    "Hello",
    "Message",
    "ProtocolError",
    "Refusal",
    "SourceEnded",
    "Trigger",
    "Verdict",
    "View",
    "ViewResult",
    "Welcome",
    "decode",
    "encode",
    "field_names",
    "fields_of",
    "place",
]

VERSION: Final = 1
MAX_MESSAGE_BYTES = 1 << 20
MAX_INTEGER = (1 << 63) - 1
"""What the journal can hold; msgpack can carry twice as much."""

Int64 = Annotated[int, msgspec.Meta(le=MAX_INTEGER)]


class ProtocolError(ValueError):
    """A message that is not of this version of the protocol."""


class _Versioned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    v: Literal[1] = VERSION


Boxes = list[list[Int64]]
"""Defects in frame pixels: [x, y, width, height] each."""


class Trigger(_Versioned, frozen=True, tag="trigger"):
    """Capture to gate: a part demands an answer. It is seen once the gate has it in the journal."""

    station: str
    number: Int64
    at_ns: Int64  # monotonic clock
    missed: bool = False  # inferred from a gap: no image will follow
    count: Int64 | None = None  # of the line's encoder
    part_id: Int64 | None = None  # where a PLC gives parts their ids


class SourceEnded(_Versioned, frozen=True, tag="source_ended"):
    """Capture to gate: no more triggers; numbers below `next_number` that the gate has not seen were lost."""

    station: str
    next_number: Int64


class FrameRef(_Versioned, frozen=True, tag="frame"):
    """The descriptor of one frame on its way through the line: an index, not a picture."""

    station: str
    number: Int64
    slot: Int64
    generation: Int64
    at_ns: Int64
    stamps: list[Int64]  # monotonic, when each stage was done: capture, prepare, detect, judge
    reason: Reason | None = None  # set by the first stage that finds the image unusable; the rest pass it on
    place: list[float] = []  # set by prepare, where parts are located: see View
    rows_before: Int64 = 0  # of a web: rows of the frame before that stand above this frame's own
    engine: dict[str, str] = {}  # set by detect: what computed the reconstruction
    witness: Int64 | None = None  # set by the marker engine: the part number that it read in the pixels
    decision: Decision | None = None  # set by judge


class ViewResult(_Versioned, frozen=True, tag="view_result"):
    """Judge (or capture, when there is no image) to gate: the answer for one view."""

    station: str
    number: Int64
    at_ns: Int64
    decision: Decision
    reason: Reason | None = None
    score: float | None = None
    threshold: float | None = None
    boxes: Boxes = []
    witness: Int64 | None = None
    picture: str = ""  # where the images of this view are kept, relative to the state directory
    engine: dict[str, str] = {}
    calibration: str = ""  # sha256 of the calibration used
    stamps: list[Int64] = []
    rows_before: Int64 = 0  # see FrameRef
    place: list[float] = []  # see View
    areas_px: list[float] = []  # see View


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One view in a verdict."""

    station: str
    decision: Decision
    reason: Reason | None
    score: float | None
    threshold: float | None
    boxes: Boxes
    witness: Int64 | None
    picture: str
    at_ns: Int64
    bundle: str
    calibration: str
    engine: dict[str, str]
    stamps: list[Int64]
    rows_before: Int64 = 0  # see FrameRef
    place: list[float] = []  # located: shift in x and y [px] and turn [degrees]
    areas_px: list[float] = []  # of the defect in each box, in frame pixels
    scale_mm_per_px: float | None = None  # of the frame, as the recipe says


class Verdict(_Versioned, frozen=True, tag="verdict"):
    """Gate to the world, on `verdict.<line>.<lane>.`: the one final answer for a part."""

    line: str
    lane: str
    part: Int64
    part_id: Int64 | None  # what the PLC calls it
    count: Int64 | None  # of the line's encoder, at the trigger of the lane's first station
    decision: Decision
    reason: Reason | None
    late: bool  # past its deadline when it was decided: nobody may act on it but by rejecting
    epoch: str
    seq: Int64
    topic_seq: Int64
    run: Int64
    score: float | None
    threshold: float | None
    views: list[View]
    simulated: bool
    recipe: str
    boot_id: str
    trigger_ns: Int64  # monotonic: first view
    deadline_ns: Int64  # monotonic
    decided_ns: Int64  # monotonic
    trigger_utc_ns: Int64
    decided_utc_ns: Int64


class Heartbeat(_Versioned, frozen=True, tag="heartbeat"):
    """Gate to the world, on `health.<line>.`: silence for three intervals means that nothing may be passed."""

    line: str
    epoch: str
    state: GateState
    trouble: list[str]
    seq: Int64  # newest verdict
    chain: str  # hash over it and all verdicts before it, 64 hex digits: who notes it can prove them
    open: Int64  # parts that wait for their answer
    interval_ms: Int64
    safe_state: str
    simulated: bool
    at_ns: Int64
    utc_ns: Int64
    boot_id: str
    counters: dict[str, Int64]


class Hello(_Versioned, frozen=True, tag="hello"):
    """Subscriber to channel: who it is, and after which verdict it goes on."""

    epoch: str  # empty with seq -1
    seq: Int64  # the last verdict that it has handled; -1: from now on
    credit: Int64  # how many verdicts may be sent beyond it
    name: str  # for the log; whom it may trust, the channel knows from the key


class Ack(_Versioned, frozen=True, tag="ack"):
    """Subscriber to channel, every heartbeat interval and whenever credit is needed: it lives, and how far it is."""

    epoch: str
    seq: Int64  # all up to this one are handled
    credit: Int64  # how many verdicts may be sent beyond it
    sent_ns: Int64  # monotonic clock of the subscriber


class Welcome(_Versioned, frozen=True, tag="welcome"):
    """Channel to subscriber: the answer to a hello; and again, unasked, when what it said has changed."""

    line: str
    epoch: str
    seq: Int64  # newest verdict
    first: Int64  # the oldest one that is still there, or the next one when none is
    interval_ms: Int64  # of the heartbeats, both ways
    boot_id: str


class Clock(_Versioned, frozen=True, tag="clock"):
    """Channel to subscriber: the answer to an ack, from which the offset between two clocks follows."""

    sent_ns: Int64  # of the ack
    received_ns: Int64  # monotonic clock of the line's box
    boot_id: str


class Refusal(_Versioned, frozen=True, tag="refused"):
    """Channel to subscriber: what it sent was not taken. It may say hello again, once per heartbeat interval."""

    why: str


Message = Trigger | SourceEnded | FrameRef | ViewResult | Verdict | Heartbeat | Hello | Ack | Welcome | Clock | Refusal

_encoder = msgspec.msgpack.Encoder()
_NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Message) -> bytes:
    """The bytes of a message; the same message always gives the same bytes."""
    return _encoder.encode(message)


def decode(data: bytes, *expected: type[Any]) -> Any:
    """The message in `data`, which must be one of the `expected` types.

    Raises ProtocolError, which says what is wrong.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        message = _decoder(expected).decode(data)
    except _NOT_DECODED as error:
        raise ProtocolError(_trouble(data, expected, error)) from error
    # msgspec takes a version, or the one type that is expected, for said when it is not; most say them in these bytes
    if not (b"\xa4type" in data and b"\xa1v" in data) and not {"v", "type"} <= msgspec.msgpack.decode(data).keys():
        raise ProtocolError(_trouble(data, expected))
    return message


def field_names(cls: type[msgspec.Struct]) -> list[str]:
    """The fields of a message's class; `v` and `type`, which every message has, are none of them."""
    return [name for name in cls.__struct_fields__ if name != "v"]


def fields_of(message: Message | View) -> dict[str, Any]:
    """What a message says, by field; its views stay as they are."""
    return {name: getattr(message, name) for name in field_names(type(message))}


def place(data: bytes) -> tuple[str, int]:
    """Epoch and seq of a verdict that the line's own gate has made: the rest of it is for others to look at.

    Raises ProtocolError.
    """
    try:
        found = _places.decode(data)
    except _NOT_DECODED as error:
        raise ProtocolError(f"not a verdict: {error}") from error
    return found.epoch, found.seq


class _Place(msgspec.Struct):
    epoch: str
    seq: int


_places = msgspec.msgpack.Decoder(_Place)


@cache
def _decoder(expected: tuple[type[Any], ...]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(Union[expected])  # noqa: UP007 - of so many, known at run time


def _trouble(data: bytes, expected: tuple[type[Any], ...], error: Exception | None = None) -> str:
    """What is wrong with a message that is refused: version and type say more than `error` does of its fields."""
    try:
        fields = msgspec.msgpack.decode(data)
    except _NOT_DECODED:
        return f"not msgpack: {error}"
    if not isinstance(fields, dict):
        return f"expected a map, found {type(fields).__name__}"
    version, name, names = fields.get("v"), fields.get("type"), [e.__struct_config__.tag for e in expected]
    if type(version) is not int or version != VERSION:
        return f"message of protocol version {version!r}; this is version {VERSION}"
    return f"message type {name!r}; expected one of {names}" if name not in names else f"{name}: {error}"
