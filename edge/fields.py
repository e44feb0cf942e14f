"""Checks that what came out of msgpack has the types that a dataclass declares; made once per class, for speed."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

__all__ = ["MAX_INTEGER", "ProtocolError", "builder"]

MAX_INTEGER = (1 << 63) - 1
"""What the journal can hold; msgpack can carry twice as much."""

Check = Callable[[Any], Any]
"""From a plain value to what the field holds. Raises ProtocolError."""


class ProtocolError(ValueError):
    """A message that is not of this version of the protocol."""


def builder(cls: type[Any]) -> Check:
    """Makes instances of a dataclass out of maps, with all of its required fields, no unknown one and no other type.

    What has just the type that its field declares is taken without a call. A frozen dataclass sets its fields one by
    one through `object.__setattr__`, which took half of the time: here they are put in place at once, in their order.
    """
    hints = typing.get_type_hints(cls)
    fields_of = dataclasses.fields(cls)
    defaults = {f.name: _default(f) for f in fields_of if _default(f) is not None}
    plan = [(f.name, _exact(hints[f.name]), _check(f"{cls.__name__}.{f.name}", hints[f.name])) for f in fields_of]
    names = set(hints)

    def build(fields: dict[str, Any]) -> Any:
        if fields.keys() != names:
            fields = _completed(cls.__name__, fields, hints, defaults)
        values = {}
        for name, exact, check in plan:
            value = fields[name]
            values[name] = value if type(value) is exact else check(value)
        made = object.__new__(cls)
        made.__dict__.update(values)
        return made

    return build


def _default(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    if field.default is not dataclasses.MISSING:
        return lambda: field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory


def _exact(hint: Any) -> type[Any] | None:
    """The one type that needs no further look, if there is one."""
    return hint if hint in (str, bool, float) else None


def _completed(owner: str, fields: dict[str, Any], hints: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields, with defaults for what is not there. Raises ProtocolError if one must be there, or is unknown."""
    if lacking := [n for n in hints if n not in fields and n not in defaults]:
        raise ProtocolError(f"{owner} without {', '.join(lacking)}")
    if unknown := [n for n in fields if n not in hints]:
        raise ProtocolError(f"{owner} with unknown field {unknown[0]!r}")
    return {n: fields[n] if n in fields else defaults[n]() for n in hints}


def _check(label: str, hint: Any) -> Check:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # only `X | None` occurs
        some = _check(label, arguments[0])
        return lambda value: None if value is None else some(value)
    if origin is list:
        return _list(label, hint, _check(label, arguments[0]))
    if origin is dict:
        return _dict(label, hint, _check(label, arguments[0]), _check(label, arguments[1]))
    if dataclasses.is_dataclass(hint):
        return _map(label, hint, builder(typing.cast(type[Any], hint)))
    if issubclass(hint, Enum):
        return _enum(label, hint)
    return {int: _integer, float: _float}.get(hint, _plain)(label, hint)


def _wrong(label: str, hint: Any, value: Any) -> ProtocolError:
    return ProtocolError(f"{label} is {type(value).__name__}, expected {hint}")


def _plain(label: str, hint: Any) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not hint:
            raise _wrong(label, hint, value)
        return value

    return check


def _integer(label: str, hint: Any) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not int:
            raise _wrong(label, hint, value)
        if value > MAX_INTEGER:
            raise ProtocolError(f"{label} is {value}, expected at most {MAX_INTEGER}")
        return value

    return check


def _float(label: str, hint: Any) -> Check:
    def check(value: Any) -> Any:
        if type(value) not in (float, int):
            raise _wrong(label, hint, value)
        return float(value)

    return check


def _enum(label: str, hint: Any) -> Check:
    members = {member.value: member for member in hint}

    def check(value: Any) -> Any:
        if type(value) is not str:
            raise _wrong(label, hint, value)
        if value not in members:
            raise ProtocolError(f"{label}: {value!r} is not a valid {hint.__name__}")
        return members[value]

    return check


def _list(label: str, hint: Any, inner: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise _wrong(label, hint, value)
        return [inner(v) for v in value]

    return check


def _dict(label: str, hint: Any, key: Check, inner: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(label, hint, value)
        return {key(k): inner(v) for k, v in value.items()}

    return check


def _map(label: str, hint: Any, build: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(label, hint, value)
        return build(value)

    return check
