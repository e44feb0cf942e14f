"""Recordings: MCAP files of triggers, frames and, for simulated streams, the truth.

Topics are `/STATION/trigger`, `/STATION/frame` and `/STATION/truth`; messages are msgpack maps with a version `v`.
Within a station times never fall, and the numbers of its triggers and of its frames rise. Chunks are not compressed
(PNGs do not shrink), so nothing that is read is larger than the file itself. A file without a footer was cut; it is
read as far as it goes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import cv2
import msgpack
import numpy as np
from mcap.exceptions import EndOfFile, McapError
from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, ChunkIndex, Message, Metadata
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import CompressionType, Writer
from numpy.typing import NDArray

from edge.errors import SourceError
from edge.sources import Image
from edge.sources.images import MAX_PIXELS, BadImageError, decode_image

__all__ = ["MAX_NUMBER", "RecordedFrame", "RecordedTrigger", "RecordedTruth", "Recording", "RecordingWriter"]

VERSION = 1
METADATA = "maskline"
MAX_NUMBER = (1 << 32) - 1
_MAX_READ_BYTES = 1 << 30
_PNG_LEVEL = 3
_UNREADABLE = (McapError, OSError, ValueError, LookupError, TypeError, ArithmeticError, NotImplementedError)


@dataclass(frozen=True)
class RecordedTrigger:
    """A part demanded an answer."""

    number: int
    at_ns: int  # UTC


@dataclass(frozen=True)
class RecordedFrame:
    """The frame of a trigger, still encoded."""

    number: int
    at_ns: int  # UTC
    encoding: str  # png, raw (rows of height x width x channels, little-endian)
    height: int
    width: int
    channels: int
    dtype: str
    data: bytes

    def decode(self, max_pixels: int = MAX_PIXELS) -> Image:
        """The pixels: uint8 or uint16 [H, W, C]. Raises BadImageError for too many, or for a content that is wrong."""
        shape = (self.height, self.width, self.channels)
        if min(shape) < 1 or self.height * self.width > max_pixels or self.channels not in (1, 3):
            raise BadImageError(f"the shape {shape}; decoded are up to {max_pixels} pixels of 1 or 3 channels")
        if self.encoding == "png":
            image = decode_image(self.data, max_pixels)
        elif self.encoding == "raw" and self.dtype in ("uint8", "uint16"):
            pixel = np.dtype(self.dtype).newbyteorder("<")
            if len(self.data) != self.height * self.width * self.channels * pixel.itemsize:
                raise BadImageError(f"{len(self.data)} bytes are no {self.dtype} image of the shape {shape}")
            image = np.frombuffer(self.data, pixel).astype(self.dtype, copy=False).reshape(shape)
        else:
            raise BadImageError(f"encoding {self.encoding!r} of {self.dtype!r}; read are png and raw, uint8 and uint16")
        if image.shape != shape or str(image.dtype) != self.dtype:
            raise BadImageError(f"decodes to {image.dtype} {image.shape}, recorded as {self.dtype} {shape}")
        return image


@dataclass(frozen=True)
class RecordedTruth:
    """What is known of a simulated part."""

    number: int
    at_ns: int  # UTC
    bad: bool
    kind: str = ""  # of the defect
    contrast: float = 0.0  # mean visible change, as a share of full scale
    size_px: float = 0.0
    mask_png: bytes = b""

    def mask(self) -> NDArray[np.bool_] | None:
        """Where the defect shows, [H, W]; None for a good part. Raises BadImageError."""
        return decode_image(self.mask_png)[:, :, 0] > 0 if self.mask_png else None


class RecordingWriter:
    """Writes a recording; a context manager. A file that was not closed is a cut one, readable up to its last chunk.

    Raises SourceError if the file cannot be opened, ValueError for a time that falls or a number out of range.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise SourceError(f"{path}: cannot write a recording there: {error.strerror or error}") from error
        self._writer = Writer(self._file, compression=CompressionType.NONE)
        self._writer.start(profile="maskline", library="maskline")
        self._writer.add_metadata(METADATA, {"v": str(VERSION), **metadata})
        self._channels: dict[str, int] = {}
        self._last_ns: dict[str, int] = {}

    def trigger(self, station: str, number: int, at_ns: int) -> None:
        """Write a trigger; `at_ns` is UTC."""
        self._add(station, "trigger", number, at_ns, {})

    def frame(self, station: str, number: int, at_ns: int, image: Image, encoding: str = "png") -> None:
        """Write a frame, uint8 or uint16 [H, W, C] with C = 1 or 3 (RGB), as "png" or "raw"; both are lossless."""
        height, width, channels = image.shape
        data = _png(image) if encoding == "png" else image.astype(image.dtype.newbyteorder("<")).tobytes()
        fields = {"encoding": encoding, "height": height, "width": width, "channels": channels}
        self._add(station, "frame", number, at_ns, {**fields, "dtype": str(image.dtype), "data": data})

    def truth(self, station: str, truth: RecordedTruth) -> None:
        """Write what is known of a part."""
        fields = {"bad": truth.bad, "kind": truth.kind, "contrast": truth.contrast, "size_px": truth.size_px}
        self._add(station, "truth", truth.number, truth.at_ns, {**fields, "mask": truth.mask_png})

    def close(self) -> None:
        """Write the index and the footer, and close the file."""
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _add(self, station: str, topic: str, number: int, at_ns: int, fields: dict[str, Any]) -> None:
        if not 0 <= number <= MAX_NUMBER:
            raise ValueError(f"part number {number}; allowed are 0 to {MAX_NUMBER}")
        if at_ns < self._last_ns.get(station, 0):
            raise ValueError(f"{station}: {at_ns} ns is before {self._last_ns[station]} ns; times never fall")
        self._last_ns[station] = at_ns
        name = f"/{station}/{topic}"
        if name not in self._channels:
            self._channels[name] = self._writer.register_channel(name, "msgpack", schema_id=0)
        data = msgpack.packb({"v": VERSION, "number": number, **fields})
        self._writer.add_message(self._channels[name], at_ns, data, at_ns, sequence=number)


class Recording:
    """A recording to read: its `stations` and `metadata`, whether it is `complete`, and the `damage` met in reading.

    Raises SourceError, at opening or while reading, for what is no recording or comes from another version of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        try:
            self._size = path.stat().st_size
            with self._open() as file:
                self.metadata = _metadata(file)
                index = _index(file)
        except OSError as error:
            raise SourceError(f"{path}: expected a recording, and cannot read it: {error.strerror or error}") from error
        except _UNREADABLE as error:
            raise SourceError(f"{path}: no MCAP file that can be read ({self._size} bytes): {error}") from error
        self.complete = index is not None
        self._chunks, topics = index or ([], set())
        if compressed := sorted({chunk.compression for chunk, _ in self._chunks} - {""}):
            raise SourceError(f"{path}: compressed with {', '.join(compressed)}; only uncompressed recordings are read")
        if not topics:
            topics = {channel.topic for channel, _ in self._messages(None)}
        self.stations = tuple(sorted({topic.split("/")[1] for topic in topics if topic.count("/") == 2}))

    def events(self, station: str) -> Iterator[RecordedTrigger | RecordedFrame]:
        """The triggers and frames of a station in the order of their times; frames are not decoded."""
        for channel, message in self._messages({f"/{station}/trigger", f"/{station}/frame"}):
            number, fields = self._unpack(channel, message)
            if channel.topic.endswith("/trigger"):
                yield RecordedTrigger(number, message.log_time)
                continue
            try:
                height, width, channels = (int(fields[name]) for name in ("height", "width", "channels"))
                encoding, dtype, data = str(fields["encoding"]), str(fields["dtype"]), bytes(fields["data"])
            except _UNREADABLE as error:
                self._refuse(channel, message, f"is no frame: {error!r}")
            yield RecordedFrame(number, message.log_time, encoding, height, width, channels, dtype, data)

    def truths(self, station: str) -> dict[int, RecordedTruth]:
        """What is known of each part of a station, by its number; empty where nothing was simulated."""
        found: dict[int, RecordedTruth] = {}
        for channel, message in self._messages({f"/{station}/truth"}):
            number, fields = self._unpack(channel, message)
            try:
                contrast, size_px = float(fields["contrast"]), float(fields["size_px"])
                kind, mask = str(fields["kind"]), bytes(fields["mask"])
                found[number] = RecordedTruth(
                    number, message.log_time, bool(fields["bad"]), kind, contrast, size_px, mask
                )
            except _UNREADABLE as error:
                self._refuse(channel, message, f"is no truth: {error!r}")
        return found

    def _open(self) -> _Bounded:
        return _Bounded(self.path, self._size)

    def _messages(self, topics: set[str] | None) -> Iterator[tuple[Channel, Message]]:
        """The messages of these topics in the order of the file; notes what could not be read in `damage`."""
        channels: dict[int, Channel] = {}
        self.damage = []
        with self._open() as file:
            for record in self._records(file, topics):
                if isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message):
                    channel = channels.get(record.channel_id)
                    if channel is not None and (topics is None or channel.topic in topics):
                        yield channel, record

    def _records(self, file: _Bounded, topics: set[str] | None) -> Iterator[Any]:
        """Channels and messages, from the indexed chunks or, without an index, from whatever can be read."""
        if self._chunks:
            for index, chunk_topics in self._chunks:
                if topics is None or not chunk_topics or topics & chunk_topics:
                    try:
                        file.seek(index.chunk_start_offset)
                        yield from _chunk_records(next(StreamReader(file, skip_magic=True, emit_chunks=True).records))
                    except _UNREADABLE as error:
                        self.damage.append(f"the chunk at byte {index.chunk_start_offset} is damaged: {error}")
            return
        good = 0
        try:
            for record in StreamReader(file, emit_chunks=True).records:
                yield from _chunk_records(record)
                good = file.tell()
        except _UNREADABLE as error:
            self.damage.append(f"cut or damaged after byte {good} of {self._size}: {error or type(error).__name__}")

    def _unpack(self, channel: Channel, message: Message) -> tuple[int, dict[str, Any]]:
        try:
            fields = msgpack.unpackb(message.data)
            version, number = fields["v"], fields["number"]
        except _UNREADABLE as error:
            self._refuse(channel, message, f"is no message of maskline: {error!r}")
        if version != VERSION:
            self._refuse(channel, message, f"has version {version!r}; this maskline reads version {VERSION}")
        if not isinstance(number, int) or not 0 <= number <= MAX_NUMBER:
            self._refuse(channel, message, f"has the part number {number!r}; allowed are 0 to {MAX_NUMBER}")
        return number, fields

    def _refuse(self, channel: Channel, message: Message, what: str) -> NoReturn:
        raise SourceError(f"{self.path}: message {message.sequence} of {channel.topic} {what}")


class _Bounded(io.BufferedReader):
    """A file that refuses to read more than it has, so that a length in damaged bytes allocates nothing."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(io.FileIO(path))
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= min(self._size - self.tell(), _MAX_READ_BYTES):
            raise EndOfFile
        return super().read(size)


def _metadata(file: _Bounded) -> dict[str, str]:
    """What the writer said of the file: its first metadata record, which stands before all messages."""
    try:
        for record in StreamReader(file, emit_chunks=True).records:
            if isinstance(record, Metadata) and record.name == METADATA:
                return {str(k): str(v) for k, v in record.metadata.items()}
            if isinstance(record, (Chunk, Message)):
                break
    except EndOfFile:
        if file.tell() < len(b"\x89MCAP0\r\n"):
            raise
    return {}


def _index(file: _Bounded) -> tuple[list[tuple[ChunkIndex, set[str]]], set[str]] | None:
    """The chunks of a complete file with the topics in each, and all its topics; None for a file that was cut."""
    file.seek(0)
    try:
        summary = SeekingReader(file).get_summary()
        if summary is None or not summary.channels:
            return None if summary is None else ([], set())
        names = {number: channel.topic for number, channel in summary.channels.items()}
        indexes = sorted(summary.chunk_indexes, key=lambda index: index.chunk_start_offset)
        return [(i, {names[c] for c in i.message_index_offsets}) for i in indexes], set(names.values())
    except _UNREADABLE:
        return None


def _chunk_records(record: Any) -> list[Any]:
    """The records in a chunk, after its checksum; anything else is passed on."""
    if not isinstance(record, Chunk):
        return [record]
    if record.compression:
        raise ValueError(f"compressed with {record.compression}; only uncompressed recordings are read")
    return breakup_chunk(record, validate_crc=True)


def _png(image: Image) -> bytes:
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    if not done:
        raise ValueError(f"a {image.dtype} image of the shape {image.shape} does not encode as PNG")
    return bytes(data.tobytes())
