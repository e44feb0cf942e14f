"""Writes recordings, chunk by chunk: what was written survives the death of the writer, but for the open chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from mcap.writer import CompressionType, Writer

from edge.errors import SourceError
from edge.messages import Verdict, ViewResult, decode, encode
from edge.recording.container import MAX_RECORD_BYTES
from edge.recording.format import (
    CALIBRATION,
    MAX_MESSAGE_BYTES,
    MAX_NUMBER,
    MESSAGE_ENCODING,
    METADATA,
    VERSION,
    RecordedTruth,
    pack,
    topic_of,
)
from edge.recording.frames import encode_frame
from edge.sources import Image

__all__ = ["CHUNK_BYTES", "RecordingWriter"]

CHUNK_BYTES = 1 << 20
"""A chunk is closed when it is larger. Larger ones lose more in a crash, smaller ones make the index longer."""

_MESSAGE_OVERHEAD = 31 + 16
"""Bytes of a message beside its data: its header, and its entry in the chunk's index."""


class RecordingWriter:
    """Writes a recording; a context manager. A file that was not closed is a cut one, readable up to its last chunk.

    Times are UTC and never fall within a topic; the numbers of a station's triggers, and those of its frames, rise.
    `metadata` describes the file; what is known only at its end goes into `add_metadata`.

    Raises SourceError if the file cannot be opened or a message is too large for any reader, ValueError for a time that
    falls or a number that does not rise or is out of range, OSError where writing fails: call `abandon` then.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], chunk_bytes: int = CHUNK_BYTES) -> None:
        self.path = path
        self._channels: dict[tuple[str, str, int], int] = {}
        self._last: dict[str, tuple[int, int]] = {}  # time and number by topic
        self._pending = 0  # bytes in the open chunk
        try:
            self._file = _Unbuffered(path)
            self._writer = Writer(cast(IO[Any], self._file), chunk_size=chunk_bytes, compression=CompressionType.NONE)
            try:
                self._writer.start(profile=METADATA, library=METADATA)
                self.add_metadata(METADATA, {"v": str(VERSION), **metadata})
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise SourceError(f"{path}: cannot write a recording there: {error.strerror or error}") from error

    def trigger(
        self,
        station: str,
        number: int,
        at_ns: int,
        *,
        missed: bool = False,
        count: int | None = None,
        part_id: int | None = None,
    ) -> None:
        """Write a trigger; see `edge.messages.Trigger`."""
        fields = {"missed": missed, "count": count, "part_id": part_id}
        self._add(topic_of(station, "trigger"), number, at_ns, fields, rising=True)

    def frame(
        self, station: str, number: int, at_ns: int, image: Image, encoding: str = "png", quality: int = 95
    ) -> None:
        """Write a frame, uint8 or uint16 [H, W, C] with C = 1 or 3 (RGB): "png", "raw", "zstd", or "jpeg".

        The first three are lossless; `quality`, 1 to 100, is that of the JPEG.
        """
        fields = encode_frame(image, encoding, quality)
        self._add(topic_of(station, "frame"), number, at_ns, fields, True, encoding, quality)

    def result(self, result: ViewResult, at_ns: int) -> None:
        """Write what was said of one view."""
        fields = {"message": encode(result)}
        self._add(topic_of(result.station, "result"), result.number, at_ns, fields)

    def verdict(self, verdict: Verdict | bytes, at_ns: int) -> None:
        """Write a verdict, or the bytes of one as they travelled. Raises ProtocolError for other bytes."""
        data = verdict if isinstance(verdict, bytes) else encode(verdict)
        made: Verdict = decode(verdict, Verdict) if isinstance(verdict, bytes) else verdict
        self._add(topic_of(made.lane, "verdict"), made.part, at_ns, {"message": data})

    def truth(self, station: str, truth: RecordedTruth) -> None:
        """Write what is known of a part."""
        fields = {"bad": truth.bad, "kind": truth.kind, "contrast": truth.contrast, "size_px": truth.size_px}
        self._add(topic_of(station, "truth"), truth.number, truth.at_ns, {**fields, "mask": truth.mask_png})

    def add_metadata(self, name: str, metadata: Mapping[str, str]) -> None:
        """Write a record of strings by name; it is on its way to the disk when this returns."""
        self._writer.add_metadata(name, dict(metadata))

    def add_attachment(self, name: str, data: bytes, media_type: str = "application/json") -> None:
        """Put a small file into the recording, such as `CALIBRATION`. Raises SourceError for what nobody would read."""
        if len(data) > MAX_RECORD_BYTES // 2:
            raise SourceError(f"{self.path}: the attachment {name} is too large: {len(data)} bytes")
        self._writer.add_attachment(0, 0, name, media_type, data)

    def calibration(self, data: bytes) -> None:
        """Put the calibration's file into the recording."""
        self.add_attachment(CALIBRATION, data)

    @property
    def nbytes(self) -> int:
        """Bytes written so far, with those that wait in the open chunk."""
        return self._file.tell() + self._pending

    def flush(self) -> None:
        """Close the open chunk: from now on its messages survive the death of this process."""
        self._writer.flush()  # type: ignore[no-untyped-call]
        self._pending = 0

    def close(self) -> None:
        """Write the index and the footer, and close the file."""
        try:
            if not self._file.closed:
                self._writer.finish()  # type: ignore[no-untyped-call]
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close the file as it is: a cut recording."""
        self._file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self.close() if kind is None else self.abandon()

    def _add(
        self,
        topic: str,
        number: int,
        at_ns: int,
        fields: dict[str, Any],
        rising: bool = False,
        encoding: str = "",
        quality: int = 0,
    ) -> None:
        if not 0 <= number <= MAX_NUMBER:
            raise ValueError(f"{topic}: part number {number}; allowed are 0 to {MAX_NUMBER}")
        last_ns, last = self._last.get(topic, (0, -1))
        if at_ns < last_ns:
            raise ValueError(f"{topic}: {at_ns} ns is before {last_ns} ns; times never fall")
        if rising and number <= last:
            raise ValueError(f"{topic}: part {number} follows part {last}; numbers rise")
        data = pack(number, fields)
        if len(data) > MAX_MESSAGE_BYTES:
            raise SourceError(f"{self.path}: part {number} of {topic} is too large: {len(data)} bytes")
        self._last[topic] = at_ns, number
        written = self._file.tell()
        self._writer.add_message(self._channel(topic, encoding, quality), at_ns, data, at_ns, sequence=number)
        self._pending = 0 if self._file.tell() > written else self._pending + len(data) + _MESSAGE_OVERHEAD

    def _channel(self, topic: str, encoding: str, quality: int) -> int:
        """The channel of a topic. Frames have one for each way they are encoded, which its metadata says."""
        key = topic, encoding, quality if encoding == "jpeg" else 0
        if key not in self._channels:
            about = {"encoding": encoding} if encoding else {}
            if encoding == "jpeg":
                about["quality"] = str(quality)
            self._channels[key] = self._writer.register_channel(topic, MESSAGE_ENCODING, 0, about)
        return self._channels[key]


class _Unbuffered:
    """A file whose every write is in the kernel's hands when it returns, so that it outlives this process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._at = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self._at += written
            view = view[written:]
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None: ...

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed
