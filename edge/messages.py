"""What travels over sockets: small msgpack maps, never pixels.

Every message is a map with `v` (schema version), `type` and the fields of its dataclass. `decode` trusts nothing: a
message from another version, of an unknown type, with a missing, unknown or wrongly typed field raises ProtocolError,
and lengths are capped before anything is allocated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import msgpack

from edge.fields import MAX_INTEGER, ProtocolError, builder
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
    "place",
]

VERSION = 1
MAX_MESSAGE_BYTES = 1 << 20

Boxes = list[list[int]]
"""Defects in frame pixels: [x, y, width, height] each."""


@dataclass(frozen=True)
class Trigger:
    """Capture to gate: a part demands an answer. It is seen once the gate has it in the journal."""

    station: str
    number: int
    at_ns: int  # monotonic clock
    missed: bool = False  # inferred from a gap: no image will follow
    count: int | None = None  # of the line's encoder
    part_id: int | None = None  # where a PLC gives parts their ids


@dataclass(frozen=True)
class SourceEnded:
    """Capture to gate: no more triggers; numbers below `next_number` that the gate has not seen were lost."""

    station: str
    next_number: int


@dataclass(frozen=True)
class FrameRef:
    """The descriptor of one frame on its way through the line: an index, not a picture."""

    station: str
    number: int
    slot: int
    generation: int
    at_ns: int
    stamps: list[int]  # monotonic, when each stage was done: capture, prepare, detect, judge
    reason: Reason | None = None  # set by the first stage that finds the image unusable; the rest pass it on
    place: list[float] = dataclasses.field(default_factory=list)  # set by prepare, where parts are located: see View
    rows_before: int = 0  # of a web: rows of the frame before that stand above this frame's own
    engine: dict[str, str] = dataclasses.field(default_factory=dict)  # set by detect: what computed the reconstruction
    witness: int | None = None  # set by the marker engine: the part number that it read in the pixels
    decision: Decision | None = None  # set by judge


@dataclass(frozen=True)
class ViewResult:
    """Judge (or capture, when there is no image) to gate: the answer for one view."""

    station: str
    number: int
    at_ns: int
    decision: Decision
    reason: Reason | None = None
    score: float | None = None
    threshold: float | None = None
    boxes: Boxes = dataclasses.field(default_factory=list)
    witness: int | None = None
    picture: str = ""  # where the images of this view are kept, relative to the state directory
    engine: dict[str, str] = dataclasses.field(default_factory=dict)
    calibration: str = ""  # sha256 of the calibration used
    stamps: list[int] = dataclasses.field(default_factory=list)
    rows_before: int = 0  # see FrameRef
    place: list[float] = dataclasses.field(default_factory=list)  # see View
    areas_px: list[float] = dataclasses.field(default_factory=list)  # see View


@dataclass(frozen=True)
class View:
    """One view in a verdict."""

    station: str
    decision: Decision
    reason: Reason | None
    score: float | None
    threshold: float | None
    boxes: Boxes
    witness: int | None
    picture: str
    at_ns: int
    bundle: str
    calibration: str
    engine: dict[str, str]
    stamps: list[int]
    rows_before: int = 0  # see FrameRef
    place: list[float] = dataclasses.field(default_factory=list)  # located: shift in x and y [px] and turn [degrees]
    areas_px: list[float] = dataclasses.field(default_factory=list)  # of the defect in each box, in frame pixels
    scale_mm_per_px: float | None = None  # of the frame, as the recipe says


@dataclass(frozen=True)
class Verdict:
    """Gate to the world, on `verdict.<line>.<lane>.`: the one final answer for a part."""

    line: str
    lane: str
    part: int
    part_id: int | None  # what the PLC calls it
    count: int | None  # of the line's encoder, at the trigger of the lane's first station
    decision: Decision
    reason: Reason | None
    late: bool  # past its deadline when it was decided: nobody may act on it but by rejecting
    epoch: str
    seq: int
    topic_seq: int
    run: int
    score: float | None
    threshold: float | None
    views: list[View]
    simulated: bool
    recipe: str
    boot_id: str
    trigger_ns: int  # monotonic: first view
    deadline_ns: int  # monotonic
    decided_ns: int  # monotonic
    trigger_utc_ns: int
    decided_utc_ns: int


@dataclass(frozen=True)
class Heartbeat:
    """Gate to the world, on `health.<line>.`: silence for three intervals means that nothing may be passed."""

    line: str
    epoch: str
    state: GateState
    trouble: list[str]
    seq: int  # newest verdict
    chain: str  # hash over it and all verdicts before it, 64 hex digits: who notes it can prove them
    open: int  # parts that wait for their answer
    interval_ms: int
    safe_state: str
    simulated: bool
    at_ns: int
    utc_ns: int
    boot_id: str
    counters: dict[str, int]


@dataclass(frozen=True)
class Hello:
    """Subscriber to channel: who it is, and after which verdict it goes on."""

    epoch: str  # empty with seq -1
    seq: int  # the last verdict that it has handled; -1: from now on
    credit: int  # how many verdicts may be sent beyond it
    name: str  # for the log; whom it may trust, the channel knows from the key


@dataclass(frozen=True)
class Ack:
    """Subscriber to channel, every heartbeat interval and whenever credit is needed: it lives, and how far it is."""

    epoch: str
    seq: int  # all up to this one are handled
    credit: int  # how many verdicts may be sent beyond it
    sent_ns: int  # monotonic clock of the subscriber


@dataclass(frozen=True)
class Welcome:
    """Channel to subscriber: the answer to a hello; and again, unasked, when what it said has changed."""

    line: str
    epoch: str
    seq: int  # newest verdict
    first: int  # the oldest one that is still there, or the next one when none is
    interval_ms: int  # of the heartbeats, both ways
    boot_id: str


@dataclass(frozen=True)
class Clock:
    """Channel to subscriber: the answer to an ack, from which the offset between two clocks follows."""

    sent_ns: int  # of the ack
    received_ns: int  # monotonic clock of the line's box
    boot_id: str


@dataclass(frozen=True)
class Refusal:
    """Channel to subscriber: what it sent was not taken. It may say hello again, once per heartbeat interval."""

    why: str


Message = Trigger | SourceEnded | FrameRef | ViewResult | Verdict | Heartbeat | Hello | Ack | Welcome | Clock | Refusal

_TYPES: dict[str, type] = {
    "trigger": Trigger,
    "source_ended": SourceEnded,
    "frame": FrameRef,
    "view_result": ViewResult,
    "verdict": Verdict,
    "heartbeat": Heartbeat,
    "hello": Hello,
    "ack": Ack,
    "welcome": Welcome,
    "clock": Clock,
    "refused": Refusal,
}
_NAMES = {cls: name for name, cls in _TYPES.items()}
_BUILDERS = {cls: builder(cls) for cls in _TYPES.values()}


def encode(message: Message) -> bytes:
    """The bytes of a message; the same message always gives the same bytes."""
    fields = {"v": VERSION, "type": _NAMES[type(message)], **vars(message)}
    if isinstance(message, Verdict):
        fields["views"] = [vars(view) for view in message.views]
    packed: bytes = msgpack.packb(fields)
    return packed


def decode(data: bytes, *expected: type[Any]) -> Any:
    """The message in `data`, which must be one of the `expected` types.

    Raises ProtocolError, which says what is wrong.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(data)
    except Exception as error:  # msgpack raises ValueError, its own classes and, on deep nesting, RecursionError
        raise ProtocolError(f"not msgpack: {error}") from error
    if not isinstance(fields, dict):
        raise ProtocolError(f"expected a map, found {type(fields).__name__}")
    version, name = fields.pop("v", None), fields.pop("type", None)
    if type(version) is not int or version != VERSION:
        raise ProtocolError(f"message of protocol version {version!r}; this is version {VERSION}")
    cls = _TYPES.get(name) if isinstance(name, str) else None
    if cls not in expected:
        raise ProtocolError(f"message type {name!r}; expected one of {[_NAMES[e] for e in expected]}")
    return _BUILDERS[cls](fields)


def place(data: bytes) -> tuple[str, int]:
    """Epoch and seq of a verdict that the line's own gate has made: the rest of it is for others to look at.

    Raises ProtocolError.
    """
    try:
        fields = msgpack.unpackb(data)
        epoch, seq = fields["epoch"], fields["seq"]
    except Exception as error:
        raise ProtocolError(f"not a verdict: {error!r}") from error
    if type(epoch) is not str or type(seq) is not int:
        raise ProtocolError(f"a verdict of epoch {epoch!r} and seq {seq!r}")
    return epoch, seq
