"""Reads recordings: by index where there is one, as far as it goes where the file was cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mcap.records import Attachment, Channel

from edge.errors import SourceError
from edge.messages import MAX_INTEGER, Verdict, ViewResult
from edge.recording.container import (
    MAX_RECORD_BYTES,
    ChunkPlace,
    DamageError,
    McapFile,
    UnsupportedError,
    messages_in,
    parse,
    read_header,
)
from edge.recording.contents import Contents, last_at_most, read_index, read_metadata, walk
from edge.recording.format import (
    CALIBRATION,
    METADATA,
    VERSION,
    VERSIONS,
    RecordedRefusal,
    RecordedTrigger,
    RecordedTruth,
    refusal_of,
    result_of,
    split_topic,
    topic_of,
    trigger_of,
    truth_of,
    unpack,
    verdict_of,
)
from edge.recording.frames import RecordedFrame, frame_of

if TYPE_CHECKING:
    from calib.calibration import Calibration
    from edge.settings import Recipe

__all__ = ["Recording"]

_MAX_RECORDS = 1000
_STATION_KINDS = frozenset({"trigger", "frame", "result", "truth"})
T = TypeVar("T")


class Recording:
    """A recording to read: its `stations` and `metadata`, whether it is `complete`, and the `damage` met so far.

    `complete`: it was closed and has its index. `metadata` describes it, `metadata_records` are all there are, by name,
    in their order: what was known only at the end comes last.

    Raises SourceError, at opening or while reading, for what is no recording or comes from another version of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        with self._open() as file:
            if (profile := read_header(file).profile) != METADATA:
                raise SourceError(f"{path}: an MCAP file, but no recording of maskline: its profile is {profile!r}")
            self._contents, self.complete = self._find(file)
            if len(self._contents.metadata) > _MAX_RECORDS:
                raise SourceError(f"{path}: {len(self._contents.metadata)} metadata records; at most {_MAX_RECORDS}")
            self.metadata_records = tuple(self._read_metadata(file))
        self.metadata = next((fields for name, fields in self.metadata_records if name == METADATA), {})
        self._check_version()
        self._channels = {n: c for n, c in self._contents.channels.items() if split_topic(c.topic)}
        topics = {split_topic(channel.topic) for channel in self._channels.values()}
        self.stations = tuple(sorted({t[0] for t in topics if t and t[1] in _STATION_KINDS}))
        self._by_channel: dict[int, list[ChunkPlace]] = {}
        for place in self._contents.chunks:
            for number in place.channels & self._channels.keys():
                self._by_channel.setdefault(number, []).append(place)
        self._firsts: dict[tuple[int, int], int] = {}  # by channel and place of the chunk

    @property
    def channels(self) -> dict[int, Channel]:
        """The channels that are known, by their ids in the file."""
        return dict(self._contents.channels)

    @property
    def lossless(self) -> bool:
        """Whether every frame is recorded as the camera gave it."""
        return all(c.metadata.get("encoding") != "jpeg" for c in self._channels.values())

    def events(self, station: str) -> Iterator[RecordedTrigger | RecordedFrame]:
        """The triggers and frames of a station in the order of the file; frames are not decoded.

        A frame may follow the trigger of a later part.
        """
        for message in self._messages(station, "trigger", "frame"):
            yield self._event(message)

    def inputs(self, station: str) -> Iterator[RecordedTrigger | RecordedFrame | RecordedRefusal]:
        """What the line was given: as `events`, and the reasons why there was no image."""
        for message in self._messages(station, "trigger", "frame", "result"):
            if message.kind != "result":
                yield self._event(message)
            elif refusal := self._made(message, refusal_of):
                yield refusal

    def results(self) -> Iterator[tuple[int, ViewResult]]:
        """When each view was judged (UTC, ns) and what was said of it, of all stations, in the order of the file."""
        for message in self._messages(None, "result"):
            yield message.at_ns, self._made(message, result_of)

    def verdicts(self) -> Iterator[Verdict]:
        """The verdicts of all lanes, in the order of the file."""
        for message in self._messages(None, "verdict"):
            yield self._made(message, verdict_of)

    def truths(self, station: str) -> dict[int, RecordedTruth]:
        """What is known of each part of a station, by its number; empty where nothing was simulated."""
        return {message.number: self._made(message, truth_of) for message in self._messages(station, "truth")}

    def frame(self, station: str, number: int) -> RecordedFrame | None:
        """The frame of a part, or None: found by the index, without reading what lies before it."""
        wanted = topic_of(station, "frame")
        with self._open() as file:
            for channel in [c for c in self._channels.values() if c.topic == wanted]:
                if (place := self._seek(file, channel.id, number)) is None:
                    continue
                for found, sequence, at_ns, data in messages_in(file.chunk_records(place), {channel.id: channel}):
                    if sequence == number and found.id == channel.id:
                        return self._frame(self._message(channel, sequence, at_ns, data))
        return None

    @property
    def span_ns(self) -> tuple[int, int] | None:
        """The first and the last time, UTC, of the messages in it; None where there is none."""
        chunks = [place for place in self._contents.chunks if place.channels]
        if not chunks:
            return None
        return min(place.start_ns for place in chunks), max(place.end_ns for place in chunks)

    def verify(self) -> int:
        """Read every chunk and prove its checksum; how many there are. What is wrong is in `damage` afterwards."""
        with self._open() as file:
            for place in self._contents.chunks:
                for _ in self._chunk(file, place):
                    pass
        return len(self._contents.chunks)

    def attachment(self, name: str) -> bytes | None:
        """A file that was put into the recording, or None."""
        with self._open() as file:
            for place in self._contents.attachments[:_MAX_RECORDS]:
                found = parse(Attachment, file.body(*place))
                if found.name == name:
                    return bytes(found.data)
        return None

    def calibration(self) -> Calibration | None:
        """The calibration that was in force, or None. Raises SourceError if it is none of this maskline."""
        from calib.calibration import Calibration

        data = self.attachment(CALIBRATION)
        return None if data is None else self._described(CALIBRATION, lambda: Calibration.model_validate_json(data))

    def recipe(self) -> Recipe | None:
        """The recipe that was in force, resolved, or None. Raises SourceError if it is none of this maskline."""
        from edge.settings import Recipe

        data = self.metadata.get("recipe")
        return None if data is None else self._described("recipe", lambda: Recipe.model_validate(json.loads(data)))

    def _seek(self, file: McapFile, channel: int, number: int) -> ChunkPlace | None:
        """The one chunk that can hold the message of that number in a channel whose numbers rise."""
        chunks = self._by_channel.get(channel, [])

        def first(index: int) -> int:
            at = chunks[index].at
            if (channel, at) not in self._firsts:
                self._firsts[channel, at] = file.first_sequence(chunks[index], channel)
            return self._firsts[channel, at]

        index = last_at_most(first, len(chunks), number)
        return None if index is None else chunks[index]

    @contextmanager
    def _open(self) -> Iterator[McapFile]:
        try:
            with McapFile(self.path) as file:
                yield file
        except OSError as error:
            raise SourceError(
                f"{self.path}: expected a recording, and cannot read it: {error.strerror or error}"
            ) from error
        except DamageError as error:
            raise SourceError(f"{self.path}: no recording that can be read: {error}") from error

    def _find(self, file: McapFile) -> tuple[Contents, bool]:
        """What is in the file, and whether its own index says so."""
        try:
            if index := read_index(file):
                return index, True
        except DamageError as error:
            self.damage.append(str(error))
        contents = walk(file)
        self.damage += contents.damage
        self.damage[-1] += "; `maskline recover` makes a whole file of what is left"
        return contents, False

    def _read_metadata(self, file: McapFile) -> Iterator[tuple[str, dict[str, str]]]:
        left = MAX_RECORD_BYTES
        for place in self._contents.metadata:
            try:
                found = read_metadata(file, place)
            except DamageError as error:
                self.damage.append(str(error))
                continue
            left -= place[1]
            if left < 0:
                self.damage.append(f"more than {MAX_RECORD_BYTES} bytes of metadata: what is beyond is left out")
                return
            yield found.name, dict(found.metadata)

    def _check_version(self) -> None:
        version = self.metadata.get("v")
        if version is None:
            why = "; ".join(self._contents.damage) or "nobody wrote one"
            raise SourceError(f"{self.path}: cannot be read without its description, which is missing: {why}")
        if version not in map(str, VERSIONS):
            raise SourceError(
                f"{self.path}: a recording of version {version!r}; this maskline reads versions 1 to {VERSION}: "
                "use a newer one"
            )

    def _messages(self, name: str | None, *kinds: str) -> Iterator[_Message]:
        """The messages of these kinds, of one station or lane or of all, in the order of the file.

        Chunks that are damaged are left out, and noted in `damage`.
        """
        wanted = {n for n, c in self._channels.items() if _is_of(c.topic, name, kinds)}
        with self._open() as file:
            for place in self._contents.chunks:
                if place.channels.isdisjoint(wanted):
                    continue
                for channel, sequence, at_ns, data in self._chunk(file, place):
                    if channel.id in wanted:
                        yield self._message(channel, sequence, at_ns, data)

    def _chunk(self, file: McapFile, place: ChunkPlace) -> Iterator[tuple[Channel, int, int, memoryview]]:
        try:
            yield from messages_in(file.chunk_records(place), dict(self._channels))
        except UnsupportedError:
            raise
        except DamageError as error:
            if str(error) not in self.damage:
                self.damage.append(str(error))

    def _message(self, channel: Channel, sequence: int, at_ns: int, data: memoryview) -> _Message:
        try:
            number, fields = unpack(data)
            if number != sequence or at_ns > MAX_INTEGER:
                raise ValueError(f"has the part number {number} and the time {at_ns} ns")
        except ValueError as error:
            raise self._refusal(channel, sequence, error) from error
        return _Message(channel, number, at_ns, fields)

    def _event(self, message: _Message) -> RecordedTrigger | RecordedFrame:
        return self._made(message, trigger_of) if message.kind == "trigger" else self._frame(message)

    def _frame(self, message: _Message) -> RecordedFrame:
        frame = self._made(message, frame_of)
        if not frame.lossless and message.channel.metadata.get("encoding") != frame.encoding:
            raise self._refusal(message.channel, message.number, "is a JPEG in a channel that does not say so")
        return frame

    def _made(self, message: _Message, make: Callable[[int, int, dict[str, Any]], T]) -> T:
        try:
            return make(message.number, message.at_ns, message.fields)
        except ValueError as error:
            raise self._refusal(message.channel, message.number, error) from error

    def _refusal(self, channel: Channel, number: int, what: ValueError | str) -> SourceError:
        return SourceError(f"{self.path}: message {number} of {channel.topic} {what}")

    def _described(self, name: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.path}: its {name} is none of this maskline: {str(error)[:1000]}") from error


@dataclass(frozen=True)
class _Message:
    channel: Channel
    number: int
    at_ns: int
    fields: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.channel.topic).rpartition("/")[2]


def _is_of(topic: str, name: str | None, kinds: tuple[str, ...]) -> bool:
    split = split_topic(topic)
    return split is not None and split[1] in kinds and name in (None, split[0])
