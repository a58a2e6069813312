"""The demo's bag: camera messages to play at their own times, and the labels that say where the hazards are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl4ad_model.errors import EvaluationError, MissingDependencyError
from vl4ad_model.evaluation.label_files import FIRST_HAZARD, HAZARDS_FILE, read_hazard_names


@dataclass(frozen=True)
class RecordedFrame:
    """One camera image of the bag.

    Attributes:
        seconds: from the first one.
        raw: the serialized message.
        message_type: of `raw`, for example sensor_msgs/msg/CompressedImage.
        labels: (H, W) uint8: known classes, hazards from 100 on, 255 = ignore.
    """

    seconds: float
    raw: bytes
    message_type: str
    labels: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """(H, W) uint8: 1 hazard, 0 ordinary, 255 ignore."""
        return np.where(self.labels == 255, 255, self.labels >= FIRST_HAZARD).astype(np.uint8)


@dataclass(frozen=True)
class Recording:
    """A bag in memory.

    Attributes:
        frames: in order.
        image_topic: where they were recorded.
        hazard_names: label value -> name; empty where the bag has no legend.
    """

    frames: tuple[RecordedFrame, ...]
    image_topic: str
    hazard_names: dict[int, str]

    @property
    def seconds(self) -> float:
        """How long playing takes."""
        last = self.frames[-1].seconds
        return last + last / max(1, len(self.frames) - 1)

    @property
    def compressed(self) -> bool:
        return self.frames[0].message_type.endswith("CompressedImage")


def read_recording(path: Path) -> Recording:
    """Read a bag with one camera and its labels, of equal stamps.

    Raises:
        EvaluationError: no such bag, damaged, or not of this kind.
    """
    from vl4ad_model.evaluation.bags import decode_labels, open_bag, stamp_of

    source = open_bag(path, label_values="classes", class_count=FIRST_HAZARD)
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError:
        raise MissingDependencyError("rosbags", "evaluation", "reading bags") from None
    images: dict[int, tuple[bytes, str]] = {}
    labels: dict[int, np.ndarray] = {}
    with AnyReader([path], default_typestore=get_typestore(Stores.LATEST)) as reader:
        wanted = [each for each in reader.connections if each.topic in (source.image_topic, source.label_topic)]
        for connection, _, raw in reader.messages(connections=wanted):
            time = stamp_of(raw)  # of the header: image and label are recorded one after the other
            if connection.topic == source.image_topic:
                images[time] = (bytes(raw), connection.msgtype)
            else:
                labels[time] = decode_labels(reader.deserialize(raw, connection.msgtype))
    times = sorted(images.keys() & labels.keys())
    if len(times) < 2:
        raise EvaluationError(f"{path}: images and labels have no times in common")
    frames = tuple(RecordedFrame((time - times[0]) * 1e-9, *images[time], labels[time]) for time in times)
    legend = path / HAZARDS_FILE
    return Recording(frames, str(source.image_topic), read_hazard_names(legend) if legend.is_file() else {})
