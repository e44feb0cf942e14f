"""A GPIO chip for tests, below gpiod's own Python code: what its C extension would do with the kernel.

gpiod's classes, its names, its waiting on a file descriptor and its error paths are the real ones; only the character
device is made up. Levels here are electrical: `active_low` is applied as the kernel does.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import gpiod
import pytest
from gpiod.line import Value

__all__ = ["FakeChip", "install"]


class FakeChip:
    """The chip behind /dev/gpiochip0: lines with names, who has them, their levels."""

    def __init__(self, names: list[str], buffer: int = 1024) -> None:
        self.names = names
        self.levels = dict.fromkeys(range(len(names)), 0)
        self.taken: dict[int, dict[str, Any]] = {}
        self.driven: list[tuple[str, int]] = []  # electrical levels that outputs were given, in order
        self.inputs: _Request | None = None
        self.buffer = buffer

    def set(self, name: str, level: int, at_ns: int | None = None) -> int:
        """The world changes an input; returns the time of the edge."""
        offset = self.names.index(name)
        before, self.levels[offset] = self.levels[offset], level
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        if self.inputs is not None and offset in self.inputs.offsets and before != level:
            self.inputs.edge(offset, at_ns)
        return at_ns

    def level(self, name: str) -> int:
        """The electrical level of a line."""
        return self.levels[self.names.index(name)]

    def settings(self, name: str) -> dict[str, Any]:
        """How a line was asked for."""
        return self.taken[self.names.index(name)]


class _LineSettings:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields


class _LineConfig:
    def __init__(self) -> None:
        self.lines: dict[int, dict[str, Any]] = {}

    def add_line_settings(self, offsets: list[int], settings: _LineSettings) -> None:
        self.lines.update(dict.fromkeys(offsets, settings.fields))


class _Info:
    def __init__(self, lines: int) -> None:
        self.num_lines = lines


class _Chip:
    def __init__(self, chip: FakeChip) -> None:
        self.chip = chip

    def line_offset_from_id(self, name: str) -> int:
        if name not in self.chip.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.chip.names.index(name)

    def get_info(self) -> _Info:
        return _Info(len(self.chip.names))

    def get_line_name(self, offset: int) -> str:
        return self.chip.names[offset]

    def request_lines(self, config: _LineConfig, consumer: str, buffer_size: int) -> _Request:
        assert consumer == "maskline"
        if set(config.lines) & set(self.chip.taken):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return _Request(self.chip, config.lines)

    def close(self) -> None:
        pass


class _Request:
    chip_name = "gpiochip0"

    def __init__(self, chip: FakeChip, lines: dict[int, dict[str, Any]]) -> None:
        self.chip, self.offsets, self.num_lines = chip, list(lines), len(lines)
        self.fd, self._write = os.pipe()
        self._events: list[tuple[int, int, int, int, int]] = []
        self._seqno = 0
        chip.taken |= lines
        if any(fields["direction"] == gpiod.line.Direction.INPUT.value for fields in lines.values()):
            chip.inputs = self
        self._drive(lines)

    def reconfigure_lines(self, config: _LineConfig) -> None:
        assert set(config.lines) == set(self.offsets)
        self.chip.taken |= config.lines
        self._drive(config.lines)

    def _drive(self, lines: dict[int, dict[str, Any]]) -> None:
        for offset, fields in lines.items():
            if fields["direction"] == gpiod.line.Direction.OUTPUT.value:
                self.set_values({offset: Value(fields["output_value"])})

    def _active(self, offset: int) -> bool:
        return bool(self.chip.levels[offset]) is not self.chip.taken[offset]["active_low"]

    def edge(self, offset: int, at_ns: int) -> None:
        rising, falling = gpiod.EdgeEvent.Type.RISING_EDGE.value, gpiod.EdgeEvent.Type.FALLING_EDGE.value
        self._seqno += 1
        kind = rising if self._active(offset) else falling
        self._events.append((kind, at_ns, offset, self._seqno, self._seqno))
        if len(self._events) > self.chip.buffer:  # the kernel throws away the oldest
            del self._events[0]
        else:
            os.write(self._write, b"e")

    def read_edge_events(self, most: int | None) -> list[gpiod.EdgeEvent]:
        events, self._events = self._events[:most], self._events[most:]
        os.read(self.fd, len(events))
        return [gpiod.EdgeEvent(*event) for event in events]

    def get_values(self, offsets: list[int], values: list[Value]) -> None:
        values[:] = [Value.ACTIVE if self._active(offset) else Value.INACTIVE for offset in offsets]

    def set_values(self, values: dict[int, Value]) -> None:
        for offset, value in values.items():
            assert self.chip.taken[offset]["direction"] == gpiod.line.Direction.OUTPUT.value
            self.chip.levels[offset] = int((value is Value.ACTIVE) is not self.chip.taken[offset]["active_low"])
            self.chip.driven.append((self.chip.names[offset], self.chip.levels[offset]))

    def release(self) -> None:
        os.close(self.fd)
        os.close(self._write)
        for offset in self.offsets:
            del self.chip.taken[offset]


def install(monkeypatch: pytest.MonkeyPatch, chip: FakeChip) -> None:
    """Put the chip at /dev/gpiochip0, for this test."""

    def opened(path: str) -> _Chip:
        if path != "/dev/gpiochip0":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return _Chip(chip)

    monkeypatch.setattr(gpiod._ext, "Chip", opened)
    monkeypatch.setattr(gpiod._ext, "LineSettings", _LineSettings)
    monkeypatch.setattr(gpiod._ext, "LineConfig", _LineConfig)
