"""The demo's bag: camera messages to play at their own times, and the labels that say where the hazards are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.label_files import FIRST_HAZARD, read_hazard_names


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
    from vl4ad_model.evaluation import bags

    source = bags.open_bag(path, label_values="classes", class_count=FIRST_HAZARD)
    image_topic, label_topic = source.image_topic or "", source.label_topic or ""
    entries = [entry for entry in source.entries() if not entry.failure]
    if len(entries) < 2:
        raise EvaluationError(f"{path}: images and labels have no times in common")
    times = [next(stamp for topic, stamp, _ in entry.key if topic == image_topic) for entry in entries]
    frames = []
    for time, messages in zip(times, bags.raw_messages(path, [entry.key for entry in entries]), strict=True):
        kind, raw = messages[image_topic]
        labels = bags.decode_labels(bags.decoded({label_topic: messages[label_topic]})[label_topic])
        frames.append(RecordedFrame((time - times[0]) * 1e-9, bytes(raw), kind, labels))
    legend = source.hazards_file()
    return Recording(tuple(frames), image_topic, read_hazard_names(legend) if legend else {})
