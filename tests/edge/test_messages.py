"""Messages: what is sent arrives as it was, and nothing else gets in."""

from __future__ import annotations

import tracemalloc
import typing
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.messages import (
    MAX_INTEGER,
    MAX_MESSAGE_BYTES,
    VERSION,
    Ack,
    Clock,
    FrameRef,
    Heartbeat,
    Hello,
    Message,
    ProtocolError,
    Refusal,
    SourceEnded,
    Trigger,
    Verdict,
    View,
    ViewResult,
    Welcome,
    decode,
    encode,
    field_names,
    place,
)
from edge.verdict import Decision, GateState, Reason

EVERY_TYPE = (
    Trigger, SourceEnded, FrameRef, ViewResult, Verdict, Heartbeat, Hello, Ack, Welcome, Clock, Refusal,
)  # fmt: skip

TEXT = st.text(max_size=20)
INTEGER = st.integers(-(1 << 63), MAX_INTEGER)
FLOAT = st.none() | st.floats(allow_nan=False)
REASON = st.none() | st.sampled_from(Reason)
DECISION = st.sampled_from(Decision)
STAMPS = st.lists(INTEGER, max_size=4)
BOXES = st.lists(st.lists(INTEGER, min_size=4, max_size=4), max_size=3)
ENGINE = st.dictionaries(TEXT, TEXT, max_size=3)

OF_HINT: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: INTEGER,
    bool: st.booleans(),
    float | None: FLOAT,
    int | None: st.none() | INTEGER,
    Reason | None: REASON,
    Decision | None: st.none() | DECISION,
    Decision: DECISION,
    GateState: st.sampled_from(GateState),
    list[int]: STAMPS,
    list[float]: st.lists(st.floats(allow_nan=False), max_size=3),
    list[str]: st.lists(TEXT, max_size=3),
    list[list[int]]: BOXES,
    dict[str, str]: ENGINE,
    dict[str, int]: st.dictionaries(TEXT, INTEGER, max_size=3),
}


def of_type(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    fields = {name: OF_HINT[hints[name]] for name in field_names(cls) if hints[name] != list[View]}
    if cls is Verdict:
        fields["views"] = st.lists(of_type(View), max_size=3)
    return st.builds(cls, **fields)


MESSAGES = st.one_of(*(of_type(cls) for cls in EVERY_TYPE))

VIEW_RESULT = ViewResult("cam", 7, 123, Decision.REJECT, score=0.5, threshold=0.25, boxes=[[1, 2, 3, 4]], stamps=[1, 2])


def unpacked(message: Message) -> dict[str, Any]:
    fields = msgpack.unpackb(encode(message))
    assert isinstance(fields, dict)
    return fields


@given(MESSAGES)
def test_every_type_arrives_as_it_was_sent(message: Message) -> None:
    data = encode(message)
    assert decode(data, type(message)) == message
    assert encode(decode(data, type(message))) == data


@given(MESSAGES)
def test_equal_messages_have_equal_bytes(message: Message) -> None:
    assert encode(msgspec.structs.replace(message)) == encode(message)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data, *EVERY_TYPE)


@settings(max_examples=200)
@given(MESSAGES, st.data())
def test_a_damaged_message_is_refused_or_still_well_formed(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(damaged), *EVERY_TYPE)
    except ProtocolError:
        return
    assert decode(encode(found), type(found)) == found or "nan" in repr(found)


@settings(max_examples=150)
@given(MESSAGES, st.data())
def test_any_value_in_any_field_is_refused_or_well_formed(message: Message, data: st.DataObject) -> None:
    anything = st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | TEXT | st.binary(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    )
    fields = unpacked(message)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(anything)
    try:
        found = decode(msgpack.packb(fields), *EVERY_TYPE)
    except ProtocolError:
        return
    hints = typing.get_type_hints(type(found))
    for name in field_names(type(found)):
        hint = hints[name]
        either = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
        allowed = tuple(typing.get_origin(h) or h for h in either)
        assert isinstance(getattr(found, name), allowed), name


@given(MESSAGES, st.data())
def test_a_truncated_message_is_refused(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(ProtocolError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))], *EVERY_TYPE)


@pytest.mark.parametrize("version", [None, 0, VERSION + 1, "1", 1.0, True, [VERSION]])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ProtocolError, match="version"):
        decode(msgpack.packb({**unpacked(VIEW_RESULT), "v": version}), ViewResult)


@pytest.mark.parametrize("name", [None, "", "verdict2", 3, ["trigger"], {"a": 1}])
def test_an_unknown_type_is_refused(name: object) -> None:
    with pytest.raises(ProtocolError, match="message type"):
        decode(msgpack.packb({**unpacked(VIEW_RESULT), "type": name}), ViewResult)


@pytest.mark.parametrize("expected", [(ViewResult,), (ViewResult, Trigger)])
@pytest.mark.parametrize(("field", "message"), [("v", "version None"), ("type", "message type None; expected one of")])
def test_a_message_says_its_version_and_type(field: str, message: str, expected: tuple[type[Any], ...]) -> None:
    fields = unpacked(VIEW_RESULT)
    del fields[field]
    with pytest.raises(ProtocolError, match=message):
        decode(msgpack.packb(fields), *expected)


def test_keys_may_be_written_at_greater_length() -> None:
    data = encode(VIEW_RESULT).replace(b"\xa4type", b"\xd9\x04type").replace(b"\xa1v", b"\xd9\x01v")
    assert decode(data, ViewResult) == VIEW_RESULT


def test_a_known_type_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(ProtocolError, match="message type 'trigger'; expected one of"):
        decode(encode(Trigger("cam", 1, 2)), FrameRef)


def test_a_missing_field_is_named() -> None:
    fields = unpacked(VIEW_RESULT)
    del fields["number"]
    with pytest.raises(ProtocolError, match=r"view_result: .*missing required field `number`"):
        decode(msgpack.packb(fields), ViewResult)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ProtocolError, match="unknown field `command`"):
        decode(msgpack.packb({**unpacked(VIEW_RESULT), "command": "open"}), ViewResult)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("station", 3),
        ("station", b"cam"),
        ("number", "7"),
        ("number", 7.0),
        ("number", True),
        ("number", None),
        ("number", 1 << 63),
        ("decision", "MAYBE"),
        ("decision", None),
        ("decision", []),
        ("reason", "tired"),
        ("score", "0.5"),
        ("score", True),
        ("boxes", [1]),
        ("boxes", {"0": [1]}),
        ("boxes", [[1, "2"]]),
        ("engine", {"backend": 1}),
        ("engine", []),
        ("stamps", [None]),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=field):
        decode(msgpack.packb({**unpacked(VIEW_RESULT), field: value}), ViewResult)


def test_a_wrong_view_inside_a_verdict_is_refused() -> None:
    verdict = unpacked(
        Verdict(
            "l", "a", 1, 7, 8, Decision.PASS, None, False, "e", 1, 1, 1, 0.1, 0.2, [], True, "r", "b", 1, 2, 3, 4, 5
        )
    )
    with pytest.raises(ProtocolError, match=r"verdict: .*missing required field .* at `\$.views\[0\]`"):
        decode(msgpack.packb({**verdict, "views": [{"station": "a"}]}), Verdict)
    with pytest.raises(ProtocolError, match="views"):
        decode(msgpack.packb({**verdict, "views": ["a"]}), Verdict)


def test_a_whole_number_is_a_score() -> None:
    found = decode(msgpack.packb({**unpacked(VIEW_RESULT), "score": 1}), ViewResult)
    assert isinstance(found.score, float)


def test_a_huge_message_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        decode(b"\x00" * (MAX_MESSAGE_BYTES + 1), *EVERY_TYPE)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not msgpack"):
        decode(b"\x91" * 100_000 + b"\xc0", *EVERY_TYPE)
    with pytest.raises(ProtocolError):
        decode(b"\x81\xa1v" * 100_000 + b"\xc0", *EVERY_TYPE)


@pytest.mark.parametrize("header", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_length_that_lies_allocates_nothing(header: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(header + b"\x01" * 64, *EVERY_TYPE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_pickle_and_no_extension_type_gets_in() -> None:
    fields = {**unpacked(VIEW_RESULT), "picture": msgpack.ExtType(5, b"cbuiltins\neval\n")}
    with pytest.raises(ProtocolError, match="picture"):
        decode(msgpack.packb(fields), ViewResult)
    with pytest.raises(ProtocolError):
        decode(msgpack.packb({b"v": VERSION, b"type": "trigger"}), *EVERY_TYPE)


@given(of_type(Verdict))
def test_the_place_of_a_verdict_is_read_without_the_rest(verdict: Verdict) -> None:
    assert place(encode(verdict)) == (verdict.epoch, verdict.seq)


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\x91" * 3000, msgpack.packb([1]), msgpack.packb({"epoch": "e", "seq": "1"}),
             msgpack.packb({"epoch": 1, "seq": 1}), encode(VIEW_RESULT)]
)  # fmt: skip
def test_what_has_no_place_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="verdict"):
        place(data)
