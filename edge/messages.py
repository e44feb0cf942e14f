"""What travels over sockets: small msgpack maps, never pixels.

Every message is a map with `v` (schema version), `type` and the fields of its dataclass. `decode` trusts nothing: a
message from another version, of an unknown type, with a missing, unknown or wrongly typed field raises ProtocolError,
and lengths are capped before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

import msgpack

from edge.verdict import Decision, GateState, Reason

__all__ = [
    "Boxes",
    "FrameRef",
    "Heartbeat",
    "Message",
    "ProtocolError",
    "SourceEnded",
    "Trigger",
    "Verdict",
    "View",
    "ViewResult",
    "decode",
    "encode",
]

VERSION = 1
MAX_MESSAGE_BYTES = 1 << 20
MAX_INTEGER = (1 << 63) - 1
"""What the journal can hold; msgpack can carry twice as much."""

Boxes = list[list[int]]
"""Defects in frame pixels: [x, y, width, height] each."""


class ProtocolError(ValueError):
    """A message that is not of this version of the protocol."""


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
    open: int  # parts that wait for their answer
    interval_ms: int
    safe_state: str
    simulated: bool
    at_ns: int
    utc_ns: int
    boot_id: str
    counters: dict[str, int]


Message = Trigger | SourceEnded | FrameRef | ViewResult | Verdict | Heartbeat

_TYPES: dict[str, type] = {
    "trigger": Trigger,
    "source_ended": SourceEnded,
    "frame": FrameRef,
    "view_result": ViewResult,
    "verdict": Verdict,
    "heartbeat": Heartbeat,
}
_NAMES = {cls: name for name, cls in _TYPES.items()}
_HINTS = {cls: typing.get_type_hints(cls) for cls in (*_TYPES.values(), View)}
_REQUIRED = {
    cls: [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for cls in _HINTS
}


def encode(message: Message) -> bytes:
    """The bytes of a message; the same message always gives the same bytes."""
    fields = {k: _plain(v) for k, v in vars(message).items()}
    packed: bytes = msgpack.packb({"v": VERSION, "type": _NAMES[type(message)], **fields})
    return packed


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return vars(value) if isinstance(value, View) else value


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
    return _build(cls, fields)


def _build(cls: Any, fields: dict[str, Any]) -> Any:
    hints = _HINTS[cls]
    if missing := [n for n in _REQUIRED[cls] if n not in fields]:
        raise ProtocolError(f"{cls.__name__} without {', '.join(missing)}")
    if unknown := [n for n in fields if n not in hints]:
        raise ProtocolError(f"{cls.__name__} with unknown field {unknown[0]!r}")
    return cls(**{name: _check(cls.__name__, name, hints[name], value) for name, value in fields.items()})


def _check(owner: str, name: str, hint: Any, value: Any) -> Any:
    """`value` as the type that the field declares; ProtocolError if it is another one."""
    if type(value) is hint:
        if hint is int and value > MAX_INTEGER:
            raise ProtocolError(f"{owner}.{name} is {value}, expected at most {MAX_INTEGER}")
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # only `X | None` occurs
        return None if value is None else _check(owner, name, arguments[0], value)
    if origin is list and isinstance(value, list):
        return [_check(owner, name, arguments[0], v) for v in value]
    if origin is dict and isinstance(value, dict):
        return {_check(owner, name, arguments[0], k): _check(owner, name, arguments[1], v) for k, v in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint is View and isinstance(value, dict):
        return _build(View, value)
    if isinstance(hint, type) and issubclass(hint, (Decision, Reason, GateState)):
        try:
            return hint(value)
        except ValueError as error:
            raise ProtocolError(f"{owner}.{name}: {error}") from error
    raise ProtocolError(f"{owner}.{name} is {type(value).__name__}, expected {hint}")
