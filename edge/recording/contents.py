"""What is in an MCAP file and where: from its index, or, where it was cut, from record to record."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from mcap.opcode import Opcode
from mcap.records import AttachmentIndex, Channel, Footer, Metadata, MetadataIndex

from edge.recording.container import (
    FRAMING,
    MAGIC,
    ChunkPlace,
    DamageError,
    McapFile,
    UnsupportedError,
    declare,
    parse,
    records_in,
)

__all__ = ["Contents", "last_at_most", "read_index", "read_metadata", "walk"]

_CHUNK_INDEX = struct.Struct("<QQQQI")  # first and last time, place and length, bytes of the offsets that follow
_OFFSET = struct.Struct("<HQ")  # channel, where its messages are indexed
_FOOTER_BYTES = FRAMING.size + 8 + 8 + 4


@dataclass
class Contents:
    """What is in a file and where."""

    chunks: list[ChunkPlace] = field(default_factory=list)
    channels: dict[int, Channel] = field(default_factory=dict)
    metadata: list[tuple[int, int]] = field(default_factory=list)  # where the records begin, and their lengths
    attachments: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0  # behind the last whole record
    damage: list[str] = field(default_factory=list)


def read_index(file: McapFile) -> Contents | None:
    """What a complete file says of its contents; None for one without an index. Raises DamageError for a wrong one."""
    tail_at = file.size - len(MAGIC) - _FOOTER_BYTES
    if tail_at < len(MAGIC) or file.read(tail_at + _FOOTER_BYTES, len(MAGIC)) != MAGIC:
        return None
    tail = file.read(tail_at, _FOOTER_BYTES)
    if FRAMING.unpack_from(tail) != (Opcode.FOOTER, _FOOTER_BYTES - FRAMING.size):
        return None
    footer = parse(Footer, tail[FRAMING.size :])
    if not footer.summary_start:
        return None
    summary = memoryview(file.body(footer.summary_start, tail_at - footer.summary_start))
    if footer.summary_crc and zlib.crc32(tail[:-4], zlib.crc32(summary)) != footer.summary_crc:
        raise DamageError("its index is damaged: the checksum does not match")
    found = Contents(end=footer.summary_start)
    for opcode, at, length in records_in(lambda at, n: summary[at : at + n], 0, len(summary)):
        body = bytes(summary[at : at + length])
        if opcode == Opcode.CHANNEL:
            declare(found.channels, body)
        elif opcode == Opcode.CHUNK_INDEX:
            found.chunks.append(_indexed_chunk(body))
        elif opcode in (Opcode.METADATA_INDEX, Opcode.ATTACHMENT_INDEX):
            metadata = opcode == Opcode.METADATA_INDEX
            other = parse(MetadataIndex if metadata else AttachmentIndex, body)
            others = found.metadata if metadata else found.attachments
            others.append((other.offset + FRAMING.size, other.length - FRAMING.size))
    found.chunks.sort(key=lambda place: place.at)
    _refuse_overlap(found)
    return found


def _refuse_overlap(found: Contents) -> None:
    """Raise DamageError for an index that names a record twice, or one within another: a small file would be read as a
    huge one."""
    others = [(at - FRAMING.size, length + FRAMING.size) for at, length in (*found.metadata, *found.attachments)]
    end = len(MAGIC)
    for at, length in sorted([*((place.at, place.length) for place in found.chunks), *others]):
        if at < end or length < FRAMING.size or at + length > found.end:
            raise DamageError(f"its index is wrong: it names a record of {length} bytes at byte {at}")
        end = at + length


def _indexed_chunk(body: bytes) -> ChunkPlace:
    """The chunk that an index record names. (The library takes ten times as long, and a file has thousands.)"""
    try:
        start_ns, end_ns, at, length, size = _CHUNK_INDEX.unpack_from(body)
        offsets = body[_CHUNK_INDEX.size : _CHUNK_INDEX.size + size]
        channels = frozenset(channel for channel, _ in _OFFSET.iter_unpack(offsets))
        return ChunkPlace(at, length, channels, start_ns, end_ns)
    except struct.error as error:
        raise DamageError(f"a damaged chunk index: {error}") from error


def walk(file: McapFile) -> Contents:
    """What is in a file without an index, from record to record, as far as it goes. No message is read."""
    found = Contents(end=len(MAGIC))
    try:
        for opcode, at, length in file.records(len(MAGIC)):
            if opcode == Opcode.CHUNK:
                _add_chunk(file, at, length, found)
            elif opcode == Opcode.METADATA:
                found.metadata.append((at, length))
            elif opcode == Opcode.ATTACHMENT:
                found.attachments.append((at, length))
            elif opcode == Opcode.DATA_END:
                break
            found.end = at + length
        found.damage.append("it has no index")
    except UnsupportedError:
        raise
    except DamageError:
        found.damage.append(f"cut or damaged after byte {found.end} of {file.size}")
    return found


def read_metadata(file: McapFile, place: tuple[int, int]) -> Metadata:
    """The metadata record that is there."""
    found: Metadata = parse(Metadata, file.body(*place))
    return found


def _add_chunk(file: McapFile, at: int, length: int, found: Contents) -> None:
    """Note a chunk, the channels of the messages in it, and those that it declares; or that it is damaged."""
    met: set[int] = set()
    try:
        header = file.chunk_header(at, length)
        for opcode, inner, size in file.records(header.at, header.at + header.length):
            if opcode == Opcode.MESSAGE:
                met.add(int.from_bytes(file.read(inner, 2), "little"))
            elif opcode == Opcode.CHANNEL:
                declare(found.channels, file.body(inner, size))
    except UnsupportedError:
        raise
    except DamageError as error:
        found.damage.append(str(error))
    else:
        place = at - FRAMING.size, length + FRAMING.size
        found.chunks.append(ChunkPlace(*place, frozenset(met), header.start_ns, header.end_ns))


def last_at_most(value: Callable[[int], int], count: int, wanted: int) -> int | None:
    """Where the last of `count` rising values is that is at most `wanted`; None where there is none.

    Asks for few values: it guesses as if they rose evenly, and halves what is left every other time.
    """
    if not count or value(0) > wanted:
        return None
    low, high = 0, count - 1
    if (at_high := value(high)) <= wanted:
        return high
    at_low, guess = value(low), True
    while high - low > 1:
        share = (wanted - at_low) * (high - low) // (at_high - at_low) if guess else (high - low) // 2
        middle = min(max(low + share, low + 1), high - 1)
        at_middle, guess = value(middle), not guess
        if at_middle <= wanted:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low
