"""MCAP as a container that nobody vouches for: records, chunks and the index, each length checked before it is used.

The records themselves are parsed by the library `mcap`; what it would allocate or follow unchecked is done here. All
that is wrong raises DamageError. Every place in the file that is named to a user counts from its first byte.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Header

from edge.recording.format import MAX_CHUNK_BYTES

__all__ = [
    "FRAMING",
    "MAGIC",
    "MAX_RECORD_BYTES",
    "MESSAGE",
    "ChunkHeader",
    "ChunkPlace",
    "DamageError",
    "McapFile",
    "UnsupportedError",
    "declare",
    "messages_in",
    "parse",
    "read_header",
    "records_in",
]

MAGIC = b"\x89MCAP0\r\n"
FRAMING = struct.Struct("<BQ")  # opcode and length of a record
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
MAX_RECORD_BYTES = 1 << 26
"""Of anything but a chunk: an index, a description, an attachment."""

_CHUNK = struct.Struct("<QQQII")  # first and last time, size and checksum of the records, length of what follows

Read = Callable[[int, int], Any]
"""From a place and a length to so many bytes. Raises DamageError where there are fewer."""


class DamageError(ValueError):
    """The file is no MCAP here: cut, damaged, or made to harm. The message says where, and what is wrong."""


class UnsupportedError(DamageError):
    """An MCAP file that may well be whole, and is not read here."""


@dataclass(frozen=True)
class ChunkHeader:
    """What a chunk says of itself; `at` is where its records begin."""

    start_ns: int
    end_ns: int
    crc: int
    at: int
    length: int


@dataclass(frozen=True)
class ChunkPlace:
    """A chunk's record in the file: where it begins, its length with its framing, and what it says of its messages."""

    at: int
    length: int
    channels: frozenset[int]
    start_ns: int  # of its messages, UTC
    end_ns: int


class McapFile:
    """A file to read at any place; a context manager. Raises OSError, and DamageError for what is no MCAP file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # the latter: opening a pipe must not wait
        try:
            about = os.fstat(self._fd)
            if not stat.S_ISREG(about.st_mode):
                raise DamageError("it is not a file")
            self.size = about.st_size
            self._check_magic()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> McapFile:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, at: int, length: int) -> bytes:
        """`length` bytes from `at` on. Raises DamageError where the file has fewer: nothing is allocated for those."""
        if at < 0 or length < 0 or at + length > self.size:
            raise DamageError(f"cut or damaged: {length} bytes from byte {at} on, of {self.size}")
        data = os.pread(self._fd, length, at)
        if len(data) != length:
            raise DamageError(f"it became shorter while it was read: {len(data)} of {length} bytes from byte {at} on")
        return data

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill `buffer` from `at` on."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], at + done)
            if not got:
                raise DamageError(f"it became shorter while it was read: {done} of {len(buffer)} bytes from {at} on")
            done += got

    def records(self, at: int, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        """See `records_in`."""
        return records_in(self.read, at, self.size if end is None else end)

    def body(self, at: int, length: int) -> bytes:
        """The body of a record that is no chunk."""
        if length > MAX_RECORD_BYTES:
            raise DamageError(f"the record at byte {at} has {length} bytes; at most {MAX_RECORD_BYTES} are read")
        return self.read(at, length)

    def chunk_header(self, at: int, length: int) -> ChunkHeader:
        """The header of the chunk whose body is there. Raises DamageError, also for a chunk that is compressed."""
        fixed = self.read(at, min(length, _CHUNK.size))
        if len(fixed) < _CHUNK.size:
            raise DamageError(f"the chunk at byte {at} has {length} bytes")
        start_ns, end_ns, size, crc, name_bytes = _CHUNK.unpack(fixed)
        if name_bytes:
            name = self.read(at + _CHUNK.size, min(name_bytes, 16)).decode(errors="replace")
            raise UnsupportedError(
                f"the chunk at byte {at} is compressed ({name}), and only uncompressed ones are read; "
                "`mcap compress --compression none` of the MCAP tools rewrites it"
            )
        (records_bytes,) = struct.unpack("<Q", self.read(at + _CHUNK.size, 8))
        if records_bytes != length - _CHUNK.size - 8 or size != records_bytes:
            raise DamageError(
                f"the chunk at byte {at} declares {records_bytes} bytes and {size} uncompressed, and has {length}"
            )
        if size > MAX_CHUNK_BYTES:
            raise DamageError(f"the chunk at byte {at} has {size} bytes; at most {MAX_CHUNK_BYTES} are read")
        return ChunkHeader(start_ns, end_ns, crc, at + _CHUNK.size + 8, size)

    def chunk_at(self, place: ChunkPlace) -> ChunkHeader:
        """The header of a chunk that an index names. Raises DamageError where there is no such chunk."""
        opcode, length = FRAMING.unpack(self.read(place.at, FRAMING.size))
        if opcode != Opcode.CHUNK or length + FRAMING.size != place.length:
            raise DamageError(f"there is no chunk of {place.length} bytes at byte {place.at}; its index is wrong")
        return self.chunk_header(place.at + FRAMING.size, length)

    def chunk_records(self, place: ChunkPlace) -> memoryview:
        """The records of a chunk, after its checksum."""
        header = self.chunk_at(place)
        data = self.read(header.at, header.length)
        if header.crc and zlib.crc32(data) != header.crc:
            raise DamageError(f"the chunk at byte {place.at} is damaged: its checksum does not match")
        return memoryview(data)

    def first_sequence(self, place: ChunkPlace, channel: int) -> int:
        """The sequence of the first message of a channel in a chunk; no message is read. Raises DamageError."""
        header = self.chunk_at(place)
        for opcode, at, length in self.records(header.at, header.at + header.length):
            if opcode == Opcode.MESSAGE and length >= MESSAGE.size:
                found, sequence, _, _ = MESSAGE.unpack(self.read(at, MESSAGE.size))
                if found == channel:
                    return int(sequence)
        raise DamageError(f"no message of channel {channel} in the chunk at byte {place.at}; its index is wrong")

    def _check_magic(self) -> None:
        if not self.size:
            raise DamageError("it is empty: nothing was ever written to it")
        start = self.read(0, min(self.size, len(MAGIC)))
        if start == MAGIC:
            return
        if MAGIC.startswith(start):
            raise DamageError(f"cut after {self.size} bytes, before anything was recorded")
        if start.startswith(MAGIC[:5]):
            raise UnsupportedError(f"version {start[5:6]!r} of MCAP; this maskline reads version 0: use a newer one")
        raise DamageError(f"it begins with {start!r}, and a recording with {MAGIC!r}; is it another file, renamed?")


def records_in(read: Read, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Opcode, place and length of the body of each record from `at` to `end`. Raises DamageError at the first that is
    none, or that does not end there."""
    while at < end:
        if at + FRAMING.size > end:
            raise DamageError(f"cut or damaged after byte {at}")
        opcode, length = FRAMING.unpack(read(at, FRAMING.size))
        body = at + FRAMING.size
        if not opcode or length > end - body:
            raise DamageError(f"cut or damaged after byte {at}: a record of {length} bytes, and {end - body} follow")
        yield opcode, body, length
        at = body + length


def messages_in(records: memoryview, channels: dict[int, Channel]) -> Iterator[tuple[Channel, int, int, memoryview]]:
    """Channel, sequence, time [ns] and data of each message among the records of a chunk, of the known channels.

    Channels that the records themselves declare are added. Raises DamageError.
    """
    for opcode, at, length in records_in(lambda at, n: records[at : at + n], 0, len(records)):
        if opcode == Opcode.MESSAGE:
            if length < MESSAGE.size:
                raise DamageError(f"a message of {length} bytes")
            number, sequence, time_ns, _ = MESSAGE.unpack_from(records, at)
            if (channel := channels.get(number)) is not None:
                yield channel, sequence, time_ns, records[at + MESSAGE.size : at + length]
        elif opcode == Opcode.CHANNEL:
            declare(channels, bytes(records[at : at + length]))


def declare(channels: dict[int, Channel], body: bytes) -> None:
    """Add a channel; what was declared first stays."""
    channel = parse(Channel, body)
    channels.setdefault(channel.id, channel)


def parse(kind: type[Any], body: bytes) -> Any:
    """A record from its body. Raises DamageError."""
    try:
        return kind.read(ReadDataStream(BytesIO(body)))
    except (McapError, ValueError, struct.error, OverflowError) as error:
        raise DamageError(f"a damaged {kind.__name__} record: {error or type(error).__name__}") from error


def read_header(file: McapFile) -> Header:
    """The first record of the file."""
    for opcode, at, length in file.records(len(MAGIC)):
        if opcode == Opcode.HEADER:
            header: Header = parse(Header, file.body(at, length))
            return header
        break
    raise DamageError("it has no header")
