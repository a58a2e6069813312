"""A consumer of the detector: says every new thing once, where it stands and what it is taken for. Copy it and go on from here.

    python3 examples/hazard_watch.py                         # beside a running detector, in a shell with ROS 2

Each entry of ~/hazards has an id that it keeps from image to image. The class ids of ~/segmentation mean what ~/labels says of the
version that ~/hazards names for the same stamp.
"""

from __future__ import annotations

import json

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

DETECTOR = "/vl4ad_detector"
VOID = 255
KEPT = 30  # images of which one half has come


class HazardWatch(Node):
    def __init__(self) -> None:
        super().__init__("hazard_watch")
        latched = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.names: dict[int, dict[int, str]] = {}  # by version: what each class id means
        self.hazards: dict[tuple[int, int], dict] = {}  # by stamp
        self.images: dict[tuple[int, int], Image] = {}
        self.said: set[int] = set()
        self.create_subscription(String, f"{DETECTOR}/labels", self.on_labels, latched)
        self.create_subscription(String, f"{DETECTOR}/hazards", self.on_hazards, 5)
        self.create_subscription(Image, f"{DETECTOR}/segmentation", self.on_segmentation, 5)

    def on_labels(self, message: String) -> None:
        content = json.loads(message.data)
        if content["version"] < max(self.names, default=0):  # another process of the detector: it counts from 1 again
            self.names.clear()
            self.said.clear()
        self.names[content["version"]] = {entry["id"]: entry["name"] for entry in content["classes"]} | {VOID: "nothing"}
        self.look()

    def on_hazards(self, message: String) -> None:
        content = json.loads(message.data)
        self.hazards[content["stamp"]["sec"], content["stamp"]["nanosec"]] = content
        self.look()

    def on_segmentation(self, message: Image) -> None:
        self.images[message.header.stamp.sec, message.header.stamp.nanosec] = message
        self.look()

    def look(self) -> None:
        """Whatever came last: the images whose things, labels and words are all there."""
        for stamp in sorted(self.hazards.keys() & self.images.keys()):
            if self.hazards[stamp]["version"] in self.names:
                self.say(self.hazards.pop(stamp), self.images.pop(stamp))
        for waiting in (self.hazards, self.images):
            for stamp in sorted(waiting)[:-KEPT]:
                del waiting[stamp]

    def say(self, content: dict, image: Image) -> None:
        labels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width)
        names = self.names[content["version"]]
        for thing in content["hazards"]:
            if thing["id"] in self.said:
                continue
            self.said.add(thing["id"])
            # Boxes are in the camera image's pixels, the labels perhaps smaller (publish_resolution).
            left, top, width, height = (round(side * image.width / content["width"]) for side in thing["box"])
            label = names[int(np.bincount(labels[top : top + height, left : left + width].ravel()).argmax())]
            where = thing["ground"] or "the image's edge"
            self.get_logger().info(
                f"{thing['name']} ({thing['score']:.2f}), {width} x {height} pixels, on {where}, labelled {label}"
            )


def main() -> None:
    rclpy.init()
    node = HazardWatch()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
