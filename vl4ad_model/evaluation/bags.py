"""rosbag2 recordings as frames: images and label maps (or recorded scores) that carry the same header stamp.

Read through `rosbags`, so no ROS installation is needed: mcap and sqlite3, compressed or not, Image and CompressedImage.
Listing the frames reads every message of its topics once; frames are then read by time, so processes can share one bag.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError, MissingDependencyError, Vl4adError
from vl4ad_model.evaluation import label_files, unindexed_mcap
from vl4ad_model.evaluation.bag_messages import decode_image, decode_labels, decode_scores, first_line
from vl4ad_model.evaluation.sources import Entry, Frame, FrameFailure

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_LABEL_WORDS = ("label", "ground_truth", "semantic")
_MCAP_END = b"\x89MCAP0\r\n"
_NS = 1_000_000_000
_CLOSE = _NS // 10
"""Stamps this near may be meant to be the same."""
_FAR_APART = _NS
"""A frame's messages that were recorded further apart than this are read one by one, not with all that lies between."""
_KEPT_STAMPS = 1_000_000
_LOOKED_AT = 10
_HEADER_BYTES = 12
"""Of a message: what CDR begins with, and the stamp."""


class _Message(NamedTuple):
    """A message's header stamp and the time it was recorded at, both in nanoseconds."""

    stamp: int
    recorded: int


class _Listed(NamedTuple):
    """The messages of a topic.

    Attributes:
        messages: by stamp; of several with one stamp the first counts.
        repeated: how many do not count.
        short: when those were recorded that are too short for a header, nanoseconds.
    """

    messages: dict[int, _Message]
    repeated: int
    short: tuple[int, ...]


@dataclass(frozen=True)
class BagSource:
    """Frames of one bag; make one with `open_bag`, which finds the topics.

    Attributes:
        path: the bag's folder, or one .mcap or .db3 file.
        name: what the bag is called in reports; frames are called name/seconds.nanoseconds.
        image_topic, label_topic, score_topic: None = not used.
        label_values: "anomaly" or "classes".
        class_count: K of the vocabulary, for class labels.
        tolerance_ns: how far apart the stamps of an image and its label may be.
        every_ns: of the images, keep one in this time.
        hazard_names: whether to read what the hazards in class labels are called.
    """

    path: Path
    name: str
    image_topic: str | None = None
    label_topic: str | None = None
    score_topic: str | None = None
    label_values: str = "anomaly"
    class_count: int = 19
    tolerance_ns: int = 0
    every_ns: int = 0
    hazard_names: bool = False

    def names(self) -> dict[int, str]:
        """What the hazards in the labels are called, from hazards.json in the bag's folder.

        Raises:
            EvaluationError: that file is malformed.
        """
        file = self._names_file()
        return label_files.read_hazard_names(file) if file else {}

    def _names_file(self) -> Path | None:
        return self.hazards_file() if self.hazard_names and self.label_values == "classes" else None

    def hazards_file(self) -> Path | None:
        """hazards.json in the bag's folder, which also says that labels are classes."""
        file = (self.path if self.path.is_dir() else self.path.parent) / label_files.HAZARDS_FILE
        return file if file.is_file() else None

    @property
    def _seen_topic(self) -> str:
        """What is evaluated."""
        return self.score_topic or self.image_topic or ""

    @property
    def _topics(self) -> list[str]:
        return [topic for topic in (self.image_topic, self.score_topic, self.label_topic) if topic]

    def _pairs(self) -> list[tuple[int, int | None]]:
        """Each label's stamp, and that of the image or scores it belongs to, if any."""
        listed = _messages_of(self.path, self._topics)
        labels, seen = listed[self.label_topic or ""].messages, listed[self._seen_topic].messages
        return _nearest(sorted(labels), sorted(seen), self.tolerance_ns)

    def left_out(self) -> list[str]:
        """What of the bag is not used, one line each."""
        listed = _messages_of(self.path, self._topics)
        lines = [
            f"{self.path}: {each.repeated} messages on {topic} repeat a stamp and are left out"
            for topic, each in listed.items()
            if each.repeated and set(each.messages) != {0}  # which is an error
        ]
        if self.label_topic:
            used = sum(stamp is not None for _, stamp in self._pairs())
            what = "score maps" if self.score_topic else "images"
            if lonely := len(listed[self._seen_topic].messages) - used:
                lines.append(f"{self.path}: {lonely} {what} on {self._seen_topic} have no label and are left out")
        return lines

    def entries(self) -> list[Entry]:
        self.names()
        listed = _messages_of(self.path, self._topics)
        for topic, each in listed.items():
            if each.repeated and set(each.messages) == {0}:
                raise EvaluationError(
                    f"{self.path}: all {each.repeated + 1} messages on {topic} have stamp 0, "
                    "so frames cannot be told apart, nor matched with labels"
                )
        seen = listed[self._seen_topic].messages
        labels = listed[self.label_topic].messages if self.label_topic else {}
        pictures = listed[self.image_topic].messages if self.image_topic else {}
        names_file = self._names_file()
        state = _state(self.path) + (_state(names_file) if names_file and self.path.is_file() else [])
        version = " ".join(f"{name}:{size}:{modified}" for name, size, modified in state)
        entries = [
            (recorded, Entry(f"{self._frame_name(recorded)} on {topic}", (), version, "the message is too short for a header"))
            for topic, each in listed.items()
            for recorded in each.short
        ]  # with their stamps, which order them
        last = None
        if not self.label_topic:
            matched: list[tuple[int, int | None]] = [(stamp, None) for stamp in sorted(seen)]
        else:
            nearest = self._pairs()
            matched = sorted((stamp, label) for label, stamp in nearest if stamp is not None)
            lonely = [label for label, stamp in nearest if stamp is None]
            reasons = [f"no message on {self._seen_topic} has this label's stamp{each}" for each in self._how_near(lonely, seen)]
            entries += [
                (label, Entry(self._frame_name(label), (), version, reason)) for label, reason in zip(lonely, reasons, strict=True)
            ]
        for stamp, label in matched:
            if self.every_ns and last is not None and stamp - last < self.every_ns:
                continue
            last = stamp
            wanted = {self._seen_topic: seen[stamp]}
            if label is not None:
                wanted[self.label_topic or ""] = labels[label]
            if self.image_topic and stamp in pictures:
                wanted[self.image_topic] = pictures[stamp]
            key = tuple(sorted((topic, *message) for topic, message in wanted.items()))
            entries.append((stamp, Entry(self._frame_name(stamp), key, version)))
        return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]

    def _how_near(self, labels: list[int], seen: Iterable[int]) -> Iterator[str]:
        """For labels that belong to nothing: how far the nearest stamp is, and what to do about it."""
        others = sorted(seen)
        for label in labels:
            place = bisect.bisect_left(others, label)
            apart = min(abs(other - label) for other in others[max(0, place - 1) : place + 1])
            if apart <= self.tolerance_ns:
                yield ": the nearest one belongs to another label"
            else:
                yield f": the nearest is {_seconds(apart)} s away" + (
                    f" (--tolerance {_seconds(apart)} takes it)" if apart <= _CLOSE else ""
                )

    def _frame_name(self, stamp: int) -> str:
        return f"{self.name}/{stamp // _NS}.{stamp % _NS:09}"

    def frames(self, entries: Sequence[Entry], *, pictures: bool = True) -> Iterator[Frame | FrameFailure]:
        skip = self.image_topic if self.score_topic and not pictures else None
        wanted = [[part for part in entry.key if part[0] != skip] for entry in entries if not entry.failure]
        found, names = raw_messages_or_errors(self.path, wanted), self.names()
        for entry in entries:
            if entry.failure:
                yield FrameFailure(entry.name, entry.failure)
                continue
            try:
                messages = next(found)
                if isinstance(messages, Vl4adError):
                    raise messages
                yield self._frame(entry.name, decoded(messages), names)
            except Vl4adError as error:
                yield FrameFailure(entry.name, f"{entry.name}: {error}")

    def _frame(self, name: str, messages: dict[str, Any], names: dict[int, str]) -> Frame:
        image, scores, label = (messages.get(topic or "") for topic in (self.image_topic, self.score_topic, self.label_topic))
        rgb = decode_image(image) if image is not None else None
        values = decode_scores(scores) if scores is not None else None
        truth = None
        if label is not None:
            raw = decode_labels(label)
            truth = label_files.interpret(raw, self.label_values, self.class_count, "labels", names)
            seen = values if values is not None else rgb
            if seen is not None and seen.shape[:2] != raw.shape:
                raise EvaluationError(
                    f"the label is {raw.shape[1]}x{raw.shape[0]} but the image is {seen.shape[1]}x{seen.shape[0]}"
                )
        return Frame(name, rgb, values, truth)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"bag": str(self.path)}
        for key in ("image_topic", "score_topic", "label_topic"):
            if getattr(self, key):
                described[key] = getattr(self, key)
        if self.label_topic:
            described |= {"label_values": self.label_values, "tolerance_s": self.tolerance_ns / _NS}
        names_file = self._names_file()
        if names_file:
            described["hazard_names"] = str(names_file)
        if self.every_ns:
            described["every_s"] = self.every_ns / _NS
        return described


def open_bag(
    path: Path,
    *,
    name: str | None = None,
    image_topic: str | None = None,
    label_topic: str | None = None,
    score_topic: str | None = None,
    need_labels: bool = True,
    use_labels: bool = False,
    label_values: str = "auto",
    class_count: int = 19,
    tolerance: float = 0.0,
    every: float = 0.0,
    hazard_names: bool = False,
) -> BagSource:
    """Look into a bag and choose its topics.

    Args:
        path: the bag.
        name: for reports; None = the file's or folder's.
        image_topic, label_topic: None = the only one that can be meant.
        score_topic: recorded 32FC1 scores to evaluate instead of running a model.
        need_labels: whether a label topic must be there.
        use_labels: whether one is used where there is one, though none is needed.
        label_values: "anomaly", "classes", or "auto": what the first labels can be.
        class_count: K.
        tolerance: seconds.
        every: seconds between images that are kept; 0 = all.
        hazard_names: whether to read what the hazards in class labels are called.

    Raises:
        EvaluationError: no bag, damaged, or no such topic; the message lists the topics there are.
    """
    path = Path(path)
    for name_, seconds in (("tolerance", tolerance), ("every", every)):
        if not 0 <= seconds < math.inf:
            raise EvaluationError(f"{name_} must be a number of seconds, not {seconds}")
    reader = _reader(path)
    topics = {
        connection.topic: (connection.msgtype, connection.msgcount)
        for connection in reader.connections
        if connection.msgtype in (IMAGE, COMPRESSED)
    }
    looks_labelled = [topic for topic in topics if any(word in topic.lower() for word in _LABEL_WORDS)]
    if need_labels and label_topic is None:
        label_topic = _choose(path, looks_labelled, topics, "label")
    elif use_labels and label_topic is None:
        holds_labels = [topic for topic in looks_labelled if topic != image_topic and _first_labels(path, topic)]
        label_topic = _choose(path, holds_labels, topics, "label") if holds_labels else None
    if score_topic is None and image_topic is None:
        others = [topic for topic in topics if topic not in (label_topic, score_topic) and topic not in looks_labelled]
        image_topic = _choose(path, others, topics, "image")
    if label_topic is not None and label_topic in (image_topic, score_topic):
        raise EvaluationError(f"{path}: {label_topic} cannot be what is evaluated and its labels, too")
    for topic in (image_topic, label_topic, score_topic):
        if topic is not None and topic not in topics:
            kinds = {connection.topic: connection.msgtype for connection in reader.connections}
            if topic in kinds:
                raise EvaluationError(f"{path}: topic {topic} carries {kinds[topic]}, images are needed")
            raise EvaluationError(f"{path} has no topic {topic}: its image topics are {_listed(topics)}")
    source = BagSource(
        path,
        name or path.stem,
        image_topic,
        label_topic,
        score_topic,
        "anomaly" if label_values == "auto" else label_values,
        class_count,
        round(tolerance * _NS),
        round(every * _NS),
        hazard_names,
    )
    # Of the first labels only; a later one that contradicts is an error of its frame.
    if label_topic and label_values == "auto" and (source.hazards_file() or _have_classes(_first_labels(path, label_topic))):
        source = replace(source, label_values="classes")
    return source


def _choose(path: Path, candidates: list[str], topics: dict[str, tuple[str, int]], what: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    why = f"no {what} topic was found" if not candidates else f"several could be the {what} topic"
    raise EvaluationError(f"{path}: {why}: pass --{what}-topic with one of {_listed(topics)}")


def _listed(topics: dict[str, tuple[str, int]]) -> str:
    parts = [f"{topic} ({kind.rpartition('/')[2]}, {count} messages)" for topic, (kind, count) in topics.items()]
    return ", ".join(parts) or "none"


def _have_classes(labels: Sequence[np.ndarray]) -> bool:
    return any(map(label_files.looks_like_classes, labels))


def _first_labels(path: Path, topic: str) -> list[np.ndarray]:
    """The first labels that can be read."""
    found = []
    for connection, _, raw in itertools.islice(_raw(path, [topic]), _LOOKED_AT):
        with contextlib.suppress(Vl4adError):
            found.append(decode_labels(decoded({topic: (connection.msgtype, raw)})[topic]))
    return found


# --- reading ----------------------------------------------------------------------------------------------------------------

_readers: dict[tuple[Any, ...], Any] = {}


def _reader(path: Path) -> Any:
    """The open reader of this process for a bag; a few are kept open, since opening can mean decompressing everything."""
    _check_bag(path)
    key = (path, *_state(path))
    if key in _readers:
        return _readers[key]
    try:
        from rosbags.rosbag2 import Reader
    except ModuleNotFoundError:
        raise MissingDependencyError("rosbags", "evaluation", "reading bags") from None
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # damage shows itself in many ways: structs, YAML, SQL, decompressors
        why = first_line(error)
        if isinstance(error, KeyError) and error.args in (("jsonschema",), ("protobuf",), ("flatbuffer",), ("ros1msg",)):
            why = f"a topic is described as {error.args[0]}: copy the image topics into a bag of their own, with `mcap filter -y`"
        raise EvaluationError(f"{path} cannot be read as a rosbag2 recording: {why}") from None
    while len(_readers) >= 4:
        _readers.pop(next(iter(_readers))).close()
    _readers[key] = reader
    return reader


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a bag's files: changes when the bag does."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _check_bag(path: Path) -> None:
    """What is commonly wrong with a bag, in words."""
    if not path.exists():
        raise EvaluationError(f"no bag at {path}")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        files = [file.name for file in path.iterdir() if file.suffix in (".mcap", ".db3", ".zstd")]
        if not files:
            raise EvaluationError(f"{path} is no bag: it has no metadata.yaml and no .mcap or .db3 file")
        raise EvaluationError(
            f"{path} has no metadata.yaml (was the recorder killed?): make it with `ros2 bag reindex {path}`"
            + (", or name the .mcap file itself" if any(name.endswith(".mcap") for name in files) else "")
        )
    if path.is_file() and path.suffix not in (".mcap", ".db3"):
        raise EvaluationError(f"{path} is no rosbag2 recording: a folder with metadata.yaml, a .mcap or a .db3 file is needed")
    for file in sorted(path.glob("*.mcap")) if path.is_dir() else [path] if path.suffix == ".mcap" else []:
        with file.open("rb") as stream:
            stream.seek(0, io.SEEK_END)
            stream.seek(max(0, stream.tell() - len(_MCAP_END)))
            if stream.read() != _MCAP_END:
                raise EvaluationError(
                    f"{file} is cut off: its end is missing; repair it with `mcap recover {file} -o repaired.mcap`"
                )


def _raw(
    path: Path, topics: Sequence[str], start: int | None = None, stop: int | None = None, *, enough: int | None = None
) -> Iterator[tuple[Any, int, bytes]]:
    """(connection, time of recording, data); of the data perhaps no more than the first `enough` bytes."""
    reader = _reader(path)
    connections = [connection for connection in reader.connections if connection.topic in topics]
    try:
        unindexed = _unindexed(path)
        if unindexed is None:
            yield from reader.messages(connections, start=start, stop=stop)
            return
        of_topic = {connection.topic: connection for connection in connections}
        for file in unindexed:
            for topic, recorded, raw in file.messages(of_topic, start, stop, enough):
                yield of_topic[topic], recorded, raw
    except Exception as error:
        raise EvaluationError(f"{path} is damaged: {first_line(error)}") from None


_unindexed_files: dict[tuple[Any, ...], list[unindexed_mcap.UnindexedMcap] | None] = {}


def _unindexed(path: Path) -> list[unindexed_mcap.UnindexedMcap] | None:
    """Where the images of a bag lie, if it is of mcap files that do not say so themselves; kept for as long as its reader."""
    key = (path, *_state(path))
    if key not in _unindexed_files:
        for old in [old for old in _unindexed_files if old not in _readers]:
            del _unindexed_files[old]
        reader = _reader(path)
        # With file compression these are the files that the reader has unpacked.
        files = [Path(each.path) for each in getattr(reader.storage, "storages", [reader.storage])]
        found: list[unindexed_mcap.UnindexedMcap] = []
        for file in files if not reader.compression_mode or reader.compression_mode == "file" else []:
            one = unindexed_mcap.index(file, (IMAGE, COMPRESSED)) if file.suffix == ".mcap" else None
            if one is None:
                found = []
                break
            found.append(one)
        _unindexed_files[key] = found or None
    return _unindexed_files[key]


def stamp_of(raw: bytes) -> int | None:
    """Nanoseconds of the header, the first field of Image and CompressedImage, without decoding the rest; None = too short."""
    if len(raw) < _HEADER_BYTES:
        return None
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * _NS + nanoseconds


_listings: dict[tuple[Any, ...], dict[str, _Listed]] = {}


def _messages_of(path: Path, topics: Sequence[str]) -> dict[str, _Listed]:
    """The messages of topics. A bag is read for it once; what was found of the latest ones is kept."""
    _check_bag(path)
    key = (path, *_state(path), *topics)
    if key in _listings:
        return _listings[key]
    found: dict[str, dict[int, _Message]] = {topic: {} for topic in topics}
    repeated = dict.fromkeys(topics, 0)
    short: dict[str, list[int]] = {topic: [] for topic in topics}
    for connection, recorded, raw in _raw(path, topics, enough=_HEADER_BYTES):
        topic, stamp = connection.topic, stamp_of(raw)
        if stamp is None:
            short[topic].append(recorded)
        elif stamp in found[topic]:
            repeated[topic] += 1
        else:
            found[topic][stamp] = _Message(stamp, recorded)
    for topic in topics:
        if not found[topic]:
            what = "message on it that is long enough for a header" if short[topic] else "messages"
            raise EvaluationError(f"{path}: topic {topic} has no {what}")
    listed = {topic: _Listed(found[topic], repeated[topic], tuple(short[topic])) for topic in topics}
    while _listings and sum(len(each.messages) for kept in [*_listings.values(), listed] for each in kept.values()) > _KEPT_STAMPS:
        _listings.pop(next(iter(_listings)))
    _listings[key] = listed
    return listed


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / _NS:.9f}".rstrip("0").rstrip(".")


def _nearest(wanted: list[int], available: list[int], tolerance: int) -> list[tuple[int, int | None]]:
    """For each wanted stamp the nearest available one within the tolerance; each is used once, the closest pairs first."""
    candidates = []
    for stamp in wanted:
        near = available[bisect.bisect_left(available, stamp - tolerance) : bisect.bisect_right(available, stamp + tolerance)]
        candidates += [(abs(other - stamp), stamp, other) for other in near]
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for _, stamp, other in sorted(candidates):
        if stamp not in pairs and other not in used:
            pairs[stamp] = other
            used.add(other)
    return [(stamp, pairs.get(stamp)) for stamp in wanted]


def topic_kind(path: Path, topic: str) -> str:
    """The message type of a topic."""
    return next(connection.msgtype for connection in _reader(path).connections if connection.topic == topic)


@lru_cache(maxsize=1)
def _typestore() -> Any:
    """What images are like, of ROS itself: it is the same in every version, and bags need not say it."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)


def decoded(messages: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Messages by topic from their bytes.

    Raises:
        EvaluationError: one is damaged.
    """
    try:
        return {topic: _typestore().deserialize_cdr(raw, kind) for topic, (kind, raw) in messages.items()}
    except Exception as error:  # rosbags raises what its parser meets
        raise EvaluationError(f"a message cannot be decoded ({first_line(error)})") from None


def raw_messages(path: Path, wanted: Sequence[Sequence[tuple[str, int, int]]]) -> Iterator[dict[str, tuple[str, bytes]]]:
    """For each frame its messages by topic, as (type, bytes), in the given order; reads on only as far as the next frame needs.

    Args:
        path: the bag.
        wanted: per frame, (topic, stamp, time of recording) as in `Entry.key`.
    """
    for far, frames in itertools.groupby(wanted, _far_apart):
        if far:
            yield from map(partial(_one_by_one, path), frames)
        else:
            yield from _in_a_row(path, list(frames))


def raw_messages_or_errors(
    path: Path, wanted: Sequence[Sequence[tuple[str, int, int]]]
) -> Iterator[dict[str, tuple[str, bytes]] | Vl4adError]:
    """The same, with why a frame's messages cannot be read in their place."""
    messages = raw_messages(path, wanted)
    for done in range(1, len(wanted) + 1):
        try:
            yield next(messages)
        except Vl4adError as error:
            yield error
            messages = raw_messages(path, wanted[done:])  # a generator that has raised gives nothing more


def _far_apart(frame: Sequence[tuple[str, int, int]]) -> bool:
    times = [recorded for _, _, recorded in frame]
    return max(times) - min(times) > _FAR_APART


def _one_by_one(path: Path, frame: Sequence[tuple[str, int, int]]) -> dict[str, tuple[str, bytes]]:
    """Messages of a frame, each by its own time."""
    found = {}
    for topic, stamp, recorded in frame:
        raw = next((raw for _, _, raw in _raw(path, [topic], recorded, recorded + 1) if stamp_of(raw) == stamp), None)
        if raw is None:
            raise EvaluationError(_GONE.format(path))
        found[topic] = (topic_kind(path, topic), raw)
    return found


_GONE = "{}: a message that was listed is gone: was the bag changed?"


def _in_a_row(path: Path, wanted: Sequence[Sequence[tuple[str, int, int]]]) -> Iterator[dict[str, tuple[str, bytes]]]:
    """Messages of frames in one pass, from the first to the last."""
    needed = {(topic, stamp) for frame in wanted for topic, stamp, _ in frame}
    times = [recorded for frame in wanted for _, _, recorded in frame]
    stream = _raw(path, sorted({topic for topic, _ in needed}), min(times), max(times) + 1)
    held: dict[tuple[str, int], bytes] = {}
    reader = _reader(path)
    kinds = {connection.topic: connection.msgtype for connection in reader.connections}
    for frame in wanted:
        keys = [(topic, stamp) for topic, stamp, _ in frame]
        while not all(key in held for key in keys):
            message = next(stream, None)
            if message is None:
                raise EvaluationError(_GONE.format(path))
            topic, found = message[0].topic, stamp_of(message[2])
            if found is not None and (topic, found) in needed:
                held.setdefault((topic, found), message[2])
        yield {topic: (kinds[topic], held.pop((topic, stamp))) for topic, stamp in keys}
