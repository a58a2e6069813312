"""Sent images and received outputs as a bag that `ros2 bag play` plays: the serialized messages themselves, nothing converted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl4ad_model.errors import EvaluationError, MissingDependencyError

MESSAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "std_msgs/msg/String")


@dataclass(frozen=True)
class RecordedMessage:
    """One message of a bag.

    Attributes:
        topic: its full name.
        message_type: one of `MESSAGE_TYPES`.
        when: when it was sent or came, nanoseconds.
        message: an rclpy message, or one already serialized.
        latched: late subscribers get it too, also of whoever plays the bag.
    """

    topic: str
    message_type: str
    when: int
    message: Any
    latched: bool = False


def check_place(path: Path) -> None:
    """Before anything is recorded: may a bag be written there? Makes the folder around it.

    Raises:
        EvaluationError: it holds something that is no bag, or nothing can be written there.
    """
    if path.exists() and not (path / "metadata.yaml").is_file():
        raise EvaluationError(f"{path} exists and is no bag: name another place or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EvaluationError(f"cannot write {path}: no permission to write in {path.parent}")


def write_bag(path: Path, messages: Iterable[RecordedMessage]) -> dict[str, int]:
    """Write a bag (mcap, chunks compressed with zstd), in order of time; an older bag at the same place is replaced.

    Returns:
        topic -> number of messages.

    Raises:
        EvaluationError: the place cannot be written, or holds something that is no bag.
        MissingDependencyError: rosbags is not installed.
    """
    try:
        from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError:
        raise MissingDependencyError("rosbags", "evaluation", "writing bags") from None
    from rclpy.serialization import serialize_message

    path = Path(path)
    check_place(path)
    forever = QosTime(9223372036, 854775807)

    def offered(latched: bool) -> Qos:
        durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
        depth = 1 if latched else 5
        return Qos(
            QosHistory.KEEP_LAST,
            depth,
            QosReliability.RELIABLE,
            durability,
            forever,
            forever,
            QosLiveliness.AUTOMATIC,
            forever,
            False,
        )

    store = get_typestore(Stores.ROS2_HUMBLE)
    counts: dict[str, int] = {}
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        # version 8 of the metadata is what Humble to Rolling all read
        writer = Writer(scratch / path.name, version=8, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        connections: dict[str, Any] = {}
        with writer:
            for each in sorted(messages, key=lambda message: message.when):
                if each.topic not in connections:
                    connections[each.topic] = writer.add_connection(
                        each.topic, each.message_type, typestore=store, offered_qos_profiles=[offered(each.latched)]
                    )
                raw = each.message if isinstance(each.message, bytes) else serialize_message(each.message)
                writer.write(connections[each.topic], each.when, raw)
                counts[each.topic] = counts.get(each.topic, 0) + 1
        if path.exists():
            shutil.rmtree(path)
        (scratch / path.name).replace(path)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return counts


def size_of(path: Path) -> int:
    """Bytes of all files of a bag."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
