"""What the node publishes: the maps of each camera, and the words that say what their numbers mean."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from vl4ad_ros import images

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from vl4ad_model.segmenter import Segmentation
    from vl4ad_model.vocabulary import Vocabulary

MAPS = {"segmentation": "mono8", "anomaly_score": "32FC1", "anomaly_mask": "mono8", "overlay": "rgb8"}
"""Topic -> encoding."""
MAPS_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class CameraOutputs:
    """The publishers of one camera. Only what somebody subscribed to is computed.

    Args:
        camera: its name; empty where there is only one.
    """

    def __init__(self, node: LifecycleNode, camera: str) -> None:
        self._node = node
        prefix = f"~/{camera}/" if camera else "~/"
        self._publishers = {name: node.create_lifecycle_publisher(Image, prefix + name, MAPS_QOS) for name in MAPS}

    def wanted(self) -> frozenset[str]:
        """The topics that have a subscriber now."""
        return frozenset(name for name, publisher in self._publishers.items() if publisher.get_subscription_count())

    def encode(
        self, wanted: frozenset[str], rgb: np.ndarray, result: Segmentation, header: Header, threshold: float
    ) -> dict[str, Image]:
        """Make the messages; each has the input's header.

        Args:
            rgb: the camera image, for the overlay.
            threshold: of the anomaly mask.
        """
        messages = {}
        for name in MAPS:
            if name in wanted:
                messages[name] = images.from_array(_pixels(name, rgb, result, threshold), MAPS[name], header)
        return messages

    def publish(self, messages: dict[str, Image]) -> None:
        for name, message in messages.items():
            self._publishers[name].publish(message)

    def destroy(self) -> None:
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}


def _pixels(name: str, rgb: np.ndarray, result: Segmentation, threshold: float) -> np.ndarray:
    if name == "segmentation":
        return result.labels
    if name == "anomaly_score":
        return result.anomaly
    if name == "anomaly_mask":
        # A comparison is 0 or 1; the product with 255 stays 8 bit.
        return (result.anomaly > threshold).view(np.uint8) * np.uint8(255)
    from vl4ad_model import visualization

    return visualization.overlay(rgb, result)


class LabelOutputs:
    """Says what label ids mean: always before the first frame of new words, and again to whoever subscribes later."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._labels = node.create_lifecycle_publisher(String, "~/labels", LATCHED)
        self._label_info: Any = None
        self._types: Any = None
        try:
            self._types = importlib.import_module("vision_msgs.msg")
            self._label_info = node.create_lifecycle_publisher(self._types.LabelInfo, "~/label_info", LATCHED)
        except (ImportError, AttributeError):
            pass  # older distributions have no LabelInfo
        self._info_of: tuple[int, float] | None = None
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
        if self._label_info is not None and self._info_of != (version, threshold):
            info = self._types.LabelInfo(threshold=float(threshold))
            info.header.stamp = self._node.get_clock().now().to_msg()
            info.class_map = [self._types.VisionClass(class_id=i, class_name=name) for i, name in enumerate(vocabulary.names)]
            self._label_info.publish(info)
            self._info_of = (version, threshold)
        if version == self.version:
            return
        content: dict[str, Any] = {"version": version, "model": model, **vocabulary.to_json_dict()}
        content["after"] = {
            camera: None if stamp is None else {"sec": stamp.sec, "nanosec": stamp.nanosec} for camera, stamp in after.items()
        }
        self._labels.publish(String(data=json.dumps(content, ensure_ascii=False)))
        self.version = version

    def forget(self) -> None:
        """Say everything again at the next call."""
        self.version, self._info_of = 0, None

    def destroy(self) -> None:
        self._node.destroy_lifecycle_publisher(self._labels)
        if self._label_info is not None:
            self._node.destroy_lifecycle_publisher(self._label_info)
