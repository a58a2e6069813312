"""rosbag2 recordings as frames: images and label maps (or recorded scores) that carry the same header stamp.

Read through `rosbags`, so no ROS installation is needed: mcap and sqlite3, compressed or not, Image and CompressedImage.
Listing the frames reads the stamps only; frames are then read by time, so processes can share one bag.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vl4ad_model.errors import EvaluationError, MissingDependencyError, Vl4adError
from vl4ad_model.evaluation import label_files
from vl4ad_model.evaluation.bag_messages import decode_image, decode_labels, decode_scores, first_line
from vl4ad_model.evaluation.sources import Entry, Frame, FrameFailure

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_LABEL_WORDS = ("label", "ground_truth", "semantic")
_MCAP_END = b"\x89MCAP0\r\n"
_NS = 1_000_000_000


class _Message(NamedTuple):
    """A message's header stamp and the time it was recorded at, both in nanoseconds."""

    stamp: int
    recorded: int


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
        if not self.hazard_names or self.label_values != "classes":
            return None
        file = (self.path if self.path.is_dir() else self.path.parent) / label_files.HAZARDS_FILE
        return file if file.is_file() else None

    def entries(self) -> list[Entry]:
        self.names()
        seen_topic = self.score_topic or self.image_topic
        topics = [topic for topic in (self.image_topic, self.score_topic, self.label_topic) if topic]
        stamps = _stamps(self.path, topics)
        seen, labels = stamps[seen_topic or ""], stamps.get(self.label_topic or "", {})
        for topic in topics:
            if len(stamps[topic]) > 1 and not any(stamps[topic]):
                raise EvaluationError(f"{self.path}: every message on {topic} has stamp 0, so images and labels cannot be matched")
        pictures = stamps.get(self.image_topic or "", {})
        names_file = self._names_file()
        state = _state(self.path) + (_state(names_file) if names_file and self.path.is_file() else [])
        version = " ".join(f"{name}:{size}:{modified}" for name, size, modified in state)
        entries: list[tuple[int, Entry]] = []  # with their stamps, which order them
        last = None
        if not self.label_topic:
            matched: list[tuple[int, int | None]] = [(stamp, None) for stamp in sorted(seen)]
        else:
            nearest = _nearest(sorted(labels), sorted(seen), self.tolerance_ns)
            matched = sorted((stamp, label) for label, stamp in nearest if stamp is not None)
            lonely = [label for label, stamp in nearest if stamp is None]
            entries += [
                (label, Entry(self._frame_name(label), (), version, f"no message on {seen_topic} has this label's stamp"))
                for label in lonely
            ]
        for stamp, label in matched:
            if self.every_ns and last is not None and stamp - last < self.every_ns:
                continue
            last = stamp
            wanted = {seen_topic: seen[stamp]}
            if label is not None:
                wanted[self.label_topic] = labels[label]
            if self.image_topic and stamp in pictures:
                wanted[self.image_topic] = pictures[stamp]
            key = tuple(sorted((topic, *message) for topic, message in wanted.items()))
            entries.append((stamp, Entry(self._frame_name(stamp), key, version)))
        return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]

    def _frame_name(self, stamp: int) -> str:
        return f"{self.name}/{stamp // _NS}.{stamp % _NS:09}"

    def frames(self, entries: Sequence[Entry], *, pictures: bool = True) -> Iterator[Frame | FrameFailure]:
        skip = self.image_topic if self.score_topic and not pictures else None
        wanted = [[part for part in entry.key if part[0] != skip] for entry in entries if not entry.failure]
        messages, done, names = raw_messages(self.path, wanted), 0, self.names()
        for entry in entries:
            if entry.failure:
                yield FrameFailure(entry.name, entry.failure)
                continue
            done += 1
            try:
                yield self._frame(entry.name, _decoded(self.path, next(messages)), names)
            except Vl4adError as error:
                yield FrameFailure(entry.name, f"{entry.name}: {error}")
                messages = raw_messages(self.path, wanted[done:])  # a generator that has raised gives nothing more

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
        if not math.isfinite(seconds):
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
    if label_topic and label_values == "auto" and _has_classes(source):
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


def _has_classes(source: BagSource) -> bool:
    """Look at the first labels only; a later one that contradicts is an error of its frame."""
    labelled = [entry for entry in source.entries() if not entry.failure][:10]
    keys = [[part for part in entry.key if part[0] == source.label_topic] for entry in labelled]
    for raw in raw_messages(source.path, keys):
        try:
            messages = _decoded(source.path, raw)
            if label_files.looks_like_classes(decode_labels(messages[source.label_topic or ""])):
                return True
        except Vl4adError:
            continue
    return False


# --- reading ----------------------------------------------------------------------------------------------------------------

_readers: dict[tuple[Any, ...], Any] = {}


def _reader(path: Path) -> Any:
    """The open reader of this process for a bag; a few are kept open, since opening can mean decompressing everything."""
    _check_bag(path)
    key = (path, *_state(path))
    if key in _readers:
        return _readers[key]
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError:
        raise MissingDependencyError("rosbags", "evaluation", "reading bags") from None
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.LATEST))
        reader.open()
    except Exception as error:  # damage shows itself in many ways: structs, YAML, SQL, decompressors
        raise EvaluationError(f"{path} cannot be read as a rosbag2 recording: {first_line(error)}") from None
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


def _raw(path: Path, topics: Sequence[str], start: int | None = None, stop: int | None = None) -> Iterator[tuple[Any, int, bytes]]:
    reader = _reader(path)
    connections = [connection for connection in reader.connections if connection.topic in topics]
    try:
        yield from reader.messages(connections, start=start, stop=stop)
    except Exception as error:
        raise EvaluationError(f"{path} is damaged: {first_line(error)}") from None


def stamp_of(raw: bytes) -> int:
    """Nanoseconds of the header, which is the first field of Image and CompressedImage, without decoding the rest."""
    if len(raw) < 12:
        raise EvaluationError("a message is too short for a header")
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * _NS + nanoseconds


def _stamps(path: Path, topics: Sequence[str]) -> dict[str, dict[int, _Message]]:
    """Per topic, its messages by stamp; of several with one stamp the first counts."""
    found: dict[str, dict[int, _Message]] = {topic: {} for topic in topics}
    for connection, recorded, raw in _raw(path, topics):
        stamp = stamp_of(raw)
        found[connection.topic].setdefault(stamp, _Message(stamp, recorded))
    for topic in topics:
        if not found[topic]:
            raise EvaluationError(f"{path}: topic {topic} has no messages")
    return found


def _nearest(wanted: list[int], available: list[int], tolerance: int) -> list[tuple[int, int | None]]:
    """For each wanted stamp the nearest available one within the tolerance; each is used once, the closest pairs first."""
    import bisect

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


def _decoded(path: Path, messages: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Messages by topic from their bytes.

    Raises:
        EvaluationError: one is damaged.
    """
    reader = _reader(path)
    try:
        return {topic: reader.deserialize(raw, kind) for topic, (kind, raw) in messages.items()}
    except Exception as error:  # rosbags raises what its parser meets
        raise EvaluationError(f"a message cannot be decoded ({first_line(error)})") from None


def raw_messages(path: Path, wanted: Sequence[Sequence[tuple[str, int, int]]]) -> Iterator[dict[str, tuple[str, bytes]]]:
    """For each frame its messages by topic, as (type, bytes), in the given order; reads on only as far as the next frame needs.

    Args:
        path: the bag.
        wanted: per frame, (topic, stamp, time of recording) as in `Entry.key`.
    """
    if not wanted:
        return
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
                raise EvaluationError(f"{path}: a message that was listed is gone: was the bag changed?")
            key = (message[0].topic, stamp_of(message[2]))
            if key in needed and key not in held:
                held[key] = message[2]
        yield {topic: (kinds[topic], held.pop((topic, stamp))) for topic, stamp in keys}
