"""Makes a whole recording of one that a crash cut: chunks are copied as they are, and the index is written anew.

Of each chunk the checksum is proved and the headers of its messages are read, never the messages. One chunk at a time
is in memory, whatever the size of the file.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Statistics,
)

from edge.errors import SourceError
from edge.recording.container import FRAMING, MAGIC, MESSAGE, DamageError, McapFile, declare, parse, records_in
from edge.recording.reader import Recording

__all__ = ["Recovered", "recover"]

_FLUSH_BYTES = 1 << 25
"""So much is written before the kernel is told to begin with the disk: else it waits for the end."""


@dataclass(frozen=True)
class Recovered:
    """What could be saved."""

    path: Path
    messages: int
    chunks: int
    lost_bytes: int  # of damaged chunks, and behind the last whole record


def recover(path: Path, out: Path) -> Recovered:
    """Write what is whole of the recording `path` to `out`, which appears whole or not at all.

    At most the chunk that was open when the writer died is lost, and chunks whose checksum does not match. Raises
    SourceError for what is no recording, an `out` that exists, or one that cannot be written.
    """
    channels = Recording(path).channels  # or says why it cannot be recovered
    if out.exists():
        raise SourceError(f"{out}: exists already; name another file")
    partial = out.with_name(out.name + ".partial")
    try:
        with McapFile(path) as file, partial.open("wb", buffering=0) as target:
            copied = _Copy(file, target, channels)
            copied.run()
            os.fsync(target.fileno())
        partial.rename(out)
    except OSError as error:
        raise SourceError(f"{out}: cannot write the recovered recording there: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Recovered(out, copied.messages, copied.chunks, copied.lost_bytes)


class _Copy:
    """One recovery on its way from file to file."""

    def __init__(self, file: McapFile, target: BinaryIO, channels: dict[int, Channel]) -> None:
        self._file, self._target, self._channels = file, target, channels
        self._at = self._flushed = 0  # in the target
        self._buffer = bytearray()
        self._indexes = RecordBuilder()  # of the summary: chunks, metadata, attachments
        self._counts = defaultdict[int, int](int)
        self._times: list[int] = []  # first and last
        self._records = defaultdict[int, int](int)  # by opcode
        self.lost_bytes = 0

    @property
    def messages(self) -> int:
        return sum(self._counts.values())

    @property
    def chunks(self) -> int:
        return self._records[Opcode.CHUNK]

    def run(self) -> None:
        """Copy all that is whole, then write the index."""
        self._write(MAGIC)
        end = len(MAGIC)
        try:
            for opcode, at, length in self._file.records(len(MAGIC)):
                if opcode == Opcode.DATA_END:
                    end = self._file.size
                    break
                if opcode != Opcode.MESSAGE_INDEX:  # chunks get a new one
                    self._copy(opcode, at, length)
                end = at + length
        except DamageError:  # here the file was cut
            pass
        self.lost_bytes += self._file.size - end
        self._finish()

    def _copy(self, opcode: int, at: int, length: int) -> None:
        """Copy one record, unless it is damaged."""
        try:
            if opcode == Opcode.CHUNK:
                self._chunk(at, length)
            else:
                self._other(opcode, at, length)
        except DamageError:
            self.lost_bytes += FRAMING.size + length

    def _chunk(self, at: int, length: int) -> None:
        header = self._file.chunk_header(at, length)
        start, size = at - FRAMING.size, length + FRAMING.size
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        record = memoryview(self._buffer)[:size]
        self._file.read_into(start, record)
        records = record[header.at - start :]
        if header.crc and zlib.crc32(records) != header.crc:
            raise DamageError("its checksum does not match")
        entries = self._entries(records)
        chunk_at = self._at
        self._write(record)
        self._index_chunk(chunk_at, size, header.length, entries)

    def _entries(self, records: memoryview) -> dict[int, list[tuple[int, int]]]:
        """Time and place of each message in a chunk, by channel."""
        found: dict[int, list[tuple[int, int]]] = {}
        for opcode, at, length in records_in(lambda at, n: records[at : at + n], 0, len(records)):
            if opcode == Opcode.MESSAGE and length >= MESSAGE.size:
                channel, _, time_ns, _ = MESSAGE.unpack_from(records, at)
                found.setdefault(channel, []).append((time_ns, at - FRAMING.size))
            elif opcode == Opcode.CHANNEL:
                declare(self._channels, bytes(records[at : at + length]))
        return found

    def _index_chunk(self, chunk_at: int, size: int, length: int, entries: dict[int, list[tuple[int, int]]]) -> None:
        """Write the index behind a chunk, and note it for the summary."""
        behind, offsets = RecordBuilder(), {}
        for channel, places in entries.items():
            offsets[channel] = self._at + behind.count
            MessageIndex(channel, places).write(behind)
            self._counts[channel] += len(places)
        times = [time_ns for places in entries.values() for time_ns, _ in places]
        first, last = min(times, default=0), max(times, default=0)
        self._times = [min([first, *self._times]), max([last, *self._times])]
        self._records[Opcode.CHUNK] += 1
        ChunkIndex(
            chunk_length=size,
            chunk_start_offset=chunk_at,
            compression="",
            compressed_size=length,
            message_end_time=last,
            message_index_length=behind.count,
            message_index_offsets=offsets,
            message_start_time=first,
            uncompressed_size=length,
        ).write(self._indexes)
        self._write(_bytes(behind))

    def _other(self, opcode: int, at: int, length: int) -> None:
        """Copy a description, an attachment, or whatever else stands between chunks."""
        body = self._file.body(at, length)
        if opcode == Opcode.METADATA:
            name = parse(Metadata, body).name
            MetadataIndex(self._at, length + FRAMING.size, name).write(self._indexes)
        elif opcode == Opcode.ATTACHMENT:
            found: Attachment = parse(Attachment, body)
            AttachmentIndex(
                offset=self._at,
                length=length + FRAMING.size,
                log_time=found.log_time,
                create_time=found.create_time,
                data_size=len(found.data),
                name=found.name,
                media_type=found.media_type,
            ).write(self._indexes)
        elif opcode == Opcode.CHANNEL:
            declare(self._channels, body)
        self._records[opcode] += 1
        self._write(FRAMING.pack(opcode, length) + body)

    def _finish(self) -> None:
        """Write what a complete file has behind its data: the summary and the footer."""
        self._write(_record(DataEnd(data_section_crc=0)))
        start = self._at
        summary = RecordBuilder()
        for channel in self._channels.values():
            channel.write(summary)
        Statistics(
            attachment_count=self._records[Opcode.ATTACHMENT],
            channel_count=len(self._channels),
            channel_message_counts=dict(self._counts),
            chunk_count=self.chunks,
            message_count=self.messages,
            message_end_time=max(self._times, default=0),
            message_start_time=min(self._times, default=0),
            metadata_count=self._records[Opcode.METADATA],
            schema_count=0,
        ).write(summary)
        data = _bytes(summary) + _bytes(self._indexes)
        self._write(data)
        footer = _record(Footer(summary_start=start, summary_offset_start=0, summary_crc=0))
        crc = zlib.crc32(footer[:-4], zlib.crc32(data))
        self._write(_record(Footer(summary_start=start, summary_offset_start=0, summary_crc=crc)) + MAGIC)

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = self._target.write(view)
            self._at += written
            view = view[written:]
        if self._at - self._flushed > _FLUSH_BYTES:
            self._flushed = self._at
            os.posix_fadvise(self._target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write, waits for nothing


def _record(record: DataEnd | Footer) -> bytes:
    builder = RecordBuilder()
    record.write(builder)
    return _bytes(builder)


def _bytes(builder: RecordBuilder) -> bytes:
    return bytes(builder.end())  # type: ignore[no-untyped-call]
