"""What the node publishes: the maps and things of each camera, and the words that say what their numbers mean."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String

from vl4ad_model import detections
from vl4ad_model.tracking import Tracker
from vl4ad_model.vocabulary import VOID_ID
from vl4ad_ros import images

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from vl4ad_model.detections import Detection
    from vl4ad_model.segmenter import Segmentation
    from vl4ad_model.vocabulary import Vocabulary

MAPS = {"segmentation": "mono8", "anomaly_score": "32FC1", "anomaly_mask": "mono8", "overlay": "rgb8"}
"""Topic -> encoding."""
JPEG, HAZARDS, DETECTIONS = "overlay/compressed", "hazards", "detections"
TYPES: dict[str, Any] = {**dict.fromkeys(MAPS, Image), JPEG: CompressedImage, HAZARDS: String}
"""Topic -> message type, of what is published per image everywhere; `DETECTIONS` needs vision_msgs."""
JPEG_QUALITY = 85
MAPS_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
EVERY_VERSION = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""For whoever hears announcements: with a depth of 1, the second of two in quick succession replaces the first."""


def vision_messages(needed: str) -> Any | None:
    """`vision_msgs.msg`, or None where it is not installed or too old to have the message `needed`."""
    try:
        types = importlib.import_module("vision_msgs.msg")
        getattr(types, needed)
    except (ImportError, AttributeError):
        return None
    return types


class Limits(NamedTuple):
    """What an image's anomaly mask and areas depend on besides its maps.

    Attributes:
        threshold: of the score.
        min_area: of an area, as a share of the image.
        void_anomalies: whether a known class is void where the score is above the threshold.
    """

    threshold: float
    min_area: float
    void_anomalies: bool


class Answer(NamedTuple):
    """What is published of one image.

    Attributes:
        header: the image's.
        size: its height and width.
        version: of the words.
        maps: topic -> message.
        areas: what is in view; None where nobody wants to know.
    """

    header: Header
    size: tuple[int, int]
    version: int
    maps: dict[str, Any]
    areas: list[Detection] | None


class CameraOutputs:
    """The publishers of one camera. Only what somebody subscribed to is computed.

    Args:
        camera: its name; empty where there is only one.
        numbers: for the things that come into view.
    """

    def __init__(self, node: LifecycleNode, camera: str, numbers: Iterator[int]) -> None:
        self._node = node
        self._vision = vision_messages("Detection2DArray")
        types = TYPES if self._vision is None else {**TYPES, DETECTIONS: self._vision.Detection2DArray}
        prefix = f"~/{camera}/" if camera else "~/"
        self._tracker = Tracker(numbers)
        self._publishers = {name: node.create_lifecycle_publisher(kind, prefix + name, MAPS_QOS) for name, kind in types.items()}

    def wanted(self) -> frozenset[str]:
        """The topics that have a subscriber now."""
        return frozenset(name for name, publisher in self._publishers.items() if publisher.get_subscription_count())

    def encode(self, wanted: frozenset[str], rgb: np.ndarray, result: Segmentation, header: Header, limits: Limits) -> Answer:
        """What takes time, and depends on no other image.

        Args:
            rgb: the camera image, for the overlay.
        """
        maps: dict[str, Any] = {}
        for name in ("segmentation", "anomaly_score", "anomaly_mask"):
            if name in wanted:
                maps[name] = images.from_array(_pixels(name, result, limits), MAPS[name], header)
        if {"overlay", JPEG} & wanted:
            from vl4ad_model import visualization

            overlay = visualization.overlay(rgb, result)
            if "overlay" in wanted:
                maps["overlay"] = images.from_array(overlay, MAPS["overlay"], header)
            if JPEG in wanted:
                maps[JPEG] = images.to_jpeg(overlay, header, JPEG_QUALITY)
        areas, size = None, (rgb.shape[0], rgb.shape[1])
        if {HAZARDS, DETECTIONS} & wanted:
            areas = detections.find(result, threshold=limits.threshold, min_area=limits.min_area, size=size)
        return Answer(header, size, result.vocabulary_version, maps, areas)

    def publish(self, wanted: frozenset[str], answer: Answer, min_images: int) -> None:
        """Send an answer, in the order in which images were taken.

        Args:
            min_images: in which a thing must have been seen to be listed.
        """
        messages = dict(answer.maps)
        if answer.areas is not None:
            stamp = answer.header.stamp
            taken_s = stamp.sec + stamp.nanosec * 1e-9 or time.monotonic()
            things = self._tracker.update(answer.areas, taken_s, answer.version)
            things = [thing for thing in things if thing.images >= min_images]
            if HAZARDS in wanted:
                messages[HAZARDS] = _hazards_json(things, answer)
            if DETECTIONS in wanted:
                messages[DETECTIONS] = _detection_array(self._vision, things, answer.header)
        for name, message in messages.items():
            self._publishers[name].publish(message)

    def destroy(self) -> None:
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}


def _hazards_json(things: list[Detection], answer: Answer) -> String:
    """What is in view, as `ros2 topic echo` shows it in a few lines; also where vision_msgs is not installed."""
    content = {
        "stamp": {"sec": answer.header.stamp.sec, "nanosec": answer.header.stamp.nanosec},
        "frame_id": answer.header.frame_id,
        "width": answer.size[1],
        "height": answer.size[0],
        "version": answer.version,
        "hazards": [thing.to_json_dict() for thing in things],
    }
    return String(data=json.dumps(content, ensure_ascii=False))


_SMALLEST_SHARE = 0.01


def _detection_array(types: Any, things: list[Detection], header: Header) -> Any:
    """vision_msgs/Detection2DArray: a hypothesis for each name, the likeliest first; their scores add up to the area's mean."""
    array = types.Detection2DArray(header=header)
    for thing in things:
        left, top, width, height = thing.box
        entry = types.Detection2D(header=header, id=str(thing.number))
        entry.bbox.center.position.x, entry.bbox.center.position.y = left + width / 2, top + height / 2
        entry.bbox.size_x, entry.bbox.size_y = float(width), float(height)
        for name, share in thing.shares:
            if share >= _SMALLEST_SHARE:
                hypothesis = types.ObjectHypothesisWithPose()
                hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = name, thing.score * share
                entry.results.append(hypothesis)
        array.detections.append(entry)
    return array


def _pixels(name: str, result: Segmentation, limits: Limits) -> np.ndarray:
    if name == "segmentation":
        if not limits.void_anomalies:
            return result.labels
        unnamed = (result.anomaly > limits.threshold) & (result.labels < result.vocabulary.known_count)
        return np.where(unnamed, np.uint8(VOID_ID), result.labels)
    if name == "anomaly_score":
        return result.anomaly
    # A comparison is 0 or 1; the product with 255 stays 8 bit.
    return (result.anomaly > limits.threshold).view(np.uint8) * np.uint8(255)


class LabelOutputs:
    """Says what label ids mean: always before the first frame of new words, and again to whoever subscribes later."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._labels = node.create_lifecycle_publisher(String, "~/labels", LATCHED)
        self._label_info: Any = None
        self._types = vision_messages("LabelInfo")
        if self._types is not None:
            self._label_info = node.create_lifecycle_publisher(self._types.LabelInfo, "~/label_info", LATCHED)
        self._info_of: tuple[int, float] | None = None
        self._begun: tuple[int, dict[str, Any]] = (0, {})  # a version, and `after` as it was when that was first announced
        self.version = 0
        """The vocabulary version last announced."""

    def announce(
        self, vocabulary: Vocabulary, version: int, *, model: str, threshold: float, after: Mapping[str, Time | None]
    ) -> None:
        """Publish the words of a version once; every later call with the same version does nothing.

        LabelInfo also says the threshold, and is published again when that changes.

        Args:
            after: the stamp of the last frame of each camera that was scored with older words: later frames have these.
        """
        if self._types is not None and self._info_of != (version, threshold):
            info = self._types.LabelInfo(threshold=float(threshold))
            info.header.stamp = self._node.get_clock().now().to_msg()
            info.class_map = [self._types.VisionClass(class_id=i, class_name=name) for i, name in enumerate(vocabulary.names)]
            self._label_info.publish(info)
            self._info_of = (version, threshold)
        if version == self.version:
            return
        if version != self._begun[0]:
            stamps = {camera: stamp and {"sec": stamp.sec, "nanosec": stamp.nanosec} for camera, stamp in after.items()}
            self._begun = version, stamps
        content = {"version": version, "model": model, **vocabulary.to_json_dict(), "after": self._begun[1]}
        self._labels.publish(String(data=json.dumps(content, ensure_ascii=False)))
        self.version = version

    def begin_again(self, camera: str) -> None:
        """From here on every frame of this camera has the announced words, whatever its stamp; the next call says so."""
        version, after = self._begun
        if after.get(camera) is not None:
            self._begun = version, {**after, camera: None}
            self.version = 0

    def forget(self) -> None:
        """Say everything again at the next call."""
        self.version, self._info_of = 0, None

    def destroy(self) -> None:
        self._node.destroy_lifecycle_publisher(self._labels)
        if self._label_info is not None:
            self._node.destroy_lifecycle_publisher(self._label_info)
