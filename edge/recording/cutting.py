"""Copies stretches of time out of a recording into one of its own: what outlives a file that must go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mcap.records import Attachment, Channel
from mcap.writer import CompressionType, Writer

from edge.recording.container import DamageError, McapFile, messages_in, parse, read_header
from edge.recording.contents import Contents, read_index, read_metadata
from edge.recording.format import FIRST_NUMBERS, METADATA

__all__ = ["cut"]


def cut(path: Path, stretches: Sequence[tuple[int, int]], out: Path) -> Iterator[None]:
    """Copy what was recorded within the stretches (first and last time, UTC, ns), one message a step.

    Messages are copied as they stand, with all that is said about the recording, but for the numbers with which the
    whole file began. Raises OSError, and DamageError for what is no MCAP file or has no index.
    """
    with McapFile(path) as file, out.open("wb") as target:
        contents = read_index(file)
        if contents is None:
            raise DamageError("it has no index: the recorder was killed before its end")
        writer = Writer(target, compression=CompressionType.NONE)
        writer.start(profile=read_header(file).profile, library=METADATA)
        for place in contents.metadata:
            found = read_metadata(file, place)
            about = {name: value for name, value in found.metadata.items() if name != FIRST_NUMBERS}
            writer.add_metadata(found.name, {**about, "cut_from": path.name})
        for place in contents.attachments:
            kept: Attachment = parse(Attachment, file.body(*place))
            writer.add_attachment(kept.create_time, kept.log_time, kept.name, kept.media_type, kept.data)
        channels: dict[int, int] = {}
        for channel, sequence, at_ns, data in _messages(file, contents, stretches):
            if channel.id not in channels:
                about = channel.metadata
                channels[channel.id] = writer.register_channel(channel.topic, channel.message_encoding, 0, about)
            writer.add_message(channels[channel.id], at_ns, bytes(data), at_ns, sequence)
            yield
        writer.finish()  # type: ignore[no-untyped-call]


def _messages(
    file: McapFile, contents: Contents, stretches: Sequence[tuple[int, int]]
) -> Iterator[tuple[Channel, int, int, memoryview]]:
    """The messages within the stretches, in the order of the file; chunks without any are not read."""

    def within(first_ns: int, last_ns: int) -> bool:
        return any(first_ns <= last and first <= last_ns for first, last in stretches)

    for place in contents.chunks:
        if within(place.start_ns, place.end_ns):
            for message in messages_in(file.chunk_records(place), dict(contents.channels)):
                if within(message[2], message[2]):
                    yield message
