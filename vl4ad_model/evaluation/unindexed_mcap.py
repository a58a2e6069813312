"""MCAP files without chunks, such as rosbag2 records with the storage preset `fastwrite`: where their image messages lie.

Nothing in such a file says where a message is, so that a reader goes through all of it for every frame it is asked for. Stepping
over the messages once is enough to go to each. Format: https://mcap.dev/spec.
"""

from __future__ import annotations

import bisect
import io
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vl4ad_model.errors import EvaluationError

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
_RECORD = struct.Struct("<BQ")  # opcode, length of what follows
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, time of recording, time of publication


class _Place(NamedTuple):
    """Where a message's data lies in its file."""

    recorded: int
    offset: int
    size: int
    topic: str


@dataclass(frozen=True)
class UnindexedMcap:
    """The messages of some types in one file, by the time they were recorded at; make one with `index`."""

    file: Path
    places: list[_Place]

    def messages(
        self, topics: Collection[str], start: int | None = None, stop: int | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, int, bytes]]:
        """Read messages.

        Args:
            topics: of these.
            start, stop: recorded from `start` until before `stop`, nanoseconds; None = no limit.
            enough: only so many bytes of each; None = all.

        Yields:
            (topic, time of recording, data).

        Raises:
            EvaluationError: the file became shorter.
            OSError: it cannot be read.
        """
        first = 0 if start is None else bisect.bisect_left(self.places, start, key=lambda place: place.recorded)
        last = None if stop is None else bisect.bisect_left(self.places, stop, key=lambda place: place.recorded)
        with self.file.open("rb") as stream:
            for place in self.places[first:last]:
                if place.topic in topics:
                    stream.seek(place.offset)
                    yield place.topic, place.recorded, _exactly(stream, place.size if enough is None else min(enough, place.size))


def index(file: Path, types: Collection[str]) -> UnindexedMcap | None:
    """Go through a file once, over what its messages hold.

    Args:
        file: an MCAP file.
        types: names of the message types to remember, such as sensor_msgs/msg/Image.

    Returns:
        None where messages are in chunks, which a file has an index of, or which are skipped as a whole.

    Raises:
        EvaluationError: the file is damaged.
        OSError: it cannot be read.
    """
    schemas: dict[int, str] = {}
    topics: dict[int, str] = {}
    places = []
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise EvaluationError("it does not begin as an MCAP file")
        end = stream.seek(0, io.SEEK_END)
        position = len(_MAGIC)
        while position < end:
            stream.seek(position)
            kind, length = _RECORD.unpack(_exactly(stream, _RECORD.size))
            body = position + _RECORD.size
            position = body + length
            if position > end:
                raise EvaluationError(f"the record at byte {body - _RECORD.size} is longer than the file")
            if kind == _CHUNK:
                return None
            if kind in (_DATA_END, _FOOTER):
                break
            if kind == _SCHEMA:
                record = io.BytesIO(_exactly(stream, length))
                (number,) = struct.unpack("<H", _exactly(record, 2))
                schemas[number] = _string(record)
            elif kind == _CHANNEL:
                record = io.BytesIO(_exactly(stream, length))
                number, schema = struct.unpack("<HH", _exactly(record, 4))
                if schemas.get(schema) in types:
                    topics[number] = _string(record)
            elif kind == _MESSAGE:
                channel, _, recorded, _ = _MESSAGE_HEAD.unpack(_exactly(stream, _MESSAGE_HEAD.size))
                if channel in topics:
                    size = length - _MESSAGE_HEAD.size
                    places.append(_Place(recorded, body + _MESSAGE_HEAD.size, size, topics[channel]))
    places.sort(key=lambda place: place.recorded)
    return UnindexedMcap(file, places)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    found = stream.read(count)
    if len(found) != count:
        raise EvaluationError(f"{count} bytes are needed and {len(found)} are there")
    return found


def _string(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<I", _exactly(stream, 4))
    return _exactly(stream, length).decode()
