"""What the evaluation tests share: small frames, folders and bags of them, and the command line in this process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

START = 1_700_000_000 * 10**9
STEP = 100_000_000


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def vl4ad(capfd, *arguments: Any) -> Outcome:
    """Run the command line in this process."""
    from vl4ad_model import cli

    words = [str(argument) for argument in arguments]
    code = cli.run(words)
    out, err = capfd.readouterr()
    return Outcome(code, out, err)


def small_frames(count: int = 4, seed: int = 0, height: int = 48, width: int = 64):
    """Frames with a blob that scores high, some of it wrong: (scores float32, labels uint8 0/1/255)."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        labels = np.zeros((height, width), np.uint8)
        top, left = int(rng.integers(8, 20)), int(rng.integers(4, 30))
        labels[top : top + 16, left : left + 20] = 1
        labels[:4] = 255
        scores = rng.normal(0.2, 0.1, labels.shape) + np.roll(labels == 1, index, axis=1) * 0.5
        frames.append((scores.astype(np.float32), labels))
    return frames


def write_folders(root: Path, frames, suffix: str = ".npy") -> tuple[Path, Path]:
    """scores/ and labels/ of frames named 000, 001, ..."""
    for name in ("scores", "labels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index, (scores, labels) in enumerate(frames):
        np.save(root / "scores" / f"{index:03}{suffix}", scores)
        Image.fromarray(labels).save(root / "labels" / f"{index:03}.png")
    return root / "scores", root / "labels"


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth (H, W, 3) uint8 image."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 255 // width, y * 255 // height, np.full_like(x, 40 * seed % 256)), axis=-1).astype(np.uint8)


def png(array: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, quality=95) if kind == "JPEG" else Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def write_bag(
    path: Path,
    messages: list[tuple[str, int, Any]],
    *,
    storage: str = "mcap",
    compression: str | None = None,
    delay: dict[str, int] | None = None,
) -> Path:
    """Write a rosbag2 recording.

    Args:
        path: a new folder.
        messages: (topic, stamp in ns, payload): (H, W) uint8 = mono8, (H, W) float32 = 32FC1, (H, W, 3) uint8 = rgb8,
            (format, bytes) = CompressedImage, (encoding, array) = Image of that encoding, bytes = such a message, as it is, on a
            topic that has others.
        storage: mcap or sqlite3.
        compression: None, "file", "message" or "storage".
        delay: ns by which messages of a topic are recorded after their stamp.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    kinds = store.types
    writer = Writer(path, version=8, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        timed = [(stamp + (delay or {}).get(topic, 0), topic, stamp, payload) for topic, stamp, payload in messages]
        for recorded, topic, stamp, payload in sorted(timed, key=lambda message: message[:3]):
            if isinstance(payload, bytes):
                writer.write(connections[topic], recorded, payload)
                continue
            header = kinds["std_msgs/msg/Header"](kinds["builtin_interfaces/msg/Time"](stamp // 10**9, stamp % 10**9), "camera")
            message = _message(kinds, header, payload)
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connections[topic], recorded, store.serialize_cdr(message, message.__msgtype__))
    return path


def without_index(bag: Path, *, summary: bool = True, last_first: bool = False) -> Path:
    """Write the mcap files of a bag anew as rosbag2's storage preset `fastwrite` does: messages one after the other, no chunks.

    Args:
        bag: a folder; its files are replaced.
        summary: with topics and counts at the end.
        last_first: messages in the opposite order.
    """
    from mcap.reader import make_reader
    from mcap.writer import CompressionType, IndexType, Writer

    for file in sorted(bag.glob("*.mcap")):
        with file.open("rb") as stream:
            messages = list(make_reader(stream).iter_messages())
        with file.open("wb") as stream:
            writer = Writer(
                stream,
                use_chunking=False,
                compression=CompressionType.NONE,
                index_types=IndexType.NONE,
                repeat_channels=summary,
                repeat_schemas=summary,
                use_statistics=summary,
                use_summary_offsets=summary,
            )
            writer.start("ros2")
            channels: dict[str, int] = {}
            for schema, channel, message in reversed(messages) if last_first else messages:
                if channel.topic not in channels:
                    number = writer.register_schema(schema.name, schema.encoding, schema.data)
                    channels[channel.topic] = writer.register_channel(channel.topic, "cdr", number, channel.metadata)
                writer.add_message(channels[channel.topic], message.log_time, message.data, message.publish_time)
            writer.finish()
    return bag


def _message(kinds, header, payload):
    if isinstance(payload, str):
        return kinds["std_msgs/msg/String"](payload)
    if isinstance(payload, tuple) and isinstance(payload[1], bytes):
        return kinds["sensor_msgs/msg/CompressedImage"](header, payload[0], np.frombuffer(payload[1], np.uint8))
    encoding = None
    if isinstance(payload, tuple):
        encoding, payload = payload
    if encoding is None:
        encoding = "rgb8" if payload.ndim == 3 else {"uint8": "mono8", "float32": "32FC1"}[str(payload.dtype)]
    raw = np.ascontiguousarray(payload).view(np.uint8).reshape(payload.shape[0], -1)
    return kinds["sensor_msgs/msg/Image"](header, payload.shape[0], payload.shape[1], encoding, 0, raw.shape[1], raw.ravel())


def scored_messages(frames, *, scores: str = "/vl4ad/score", labels: str = "/camera/labels"):
    """Messages of recorded scores and their labels."""
    found = []
    for index, (score, label) in enumerate(frames):
        stamp = START + index * STEP
        found += [(scores, stamp, score), (labels, stamp, label)]
    return found
