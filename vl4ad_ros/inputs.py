"""One camera's subscription, and what may be wrong with its topic."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CompressedImage, Image

from vl4ad_ros import transport
from vl4ad_ros.diagnostics import QUIET_SECONDS, WINDOW_SECONDS
from vl4ad_ros.parameters import Settings

_FIRST_SECONDS = 5.0
"""How long a camera's first image may take before anything is said; the interval while only one has come."""
_MISSED = 3
"""So many times the interval between the last two images without another is silence."""
_LOST, _LOST_SHARE = 3, 0.1
"""So many images, and of those that were sent this share, that are lost are said."""
_TYPES = {"sensor_msgs/msg/Image": "raw", "sensor_msgs/msg/CompressedImage": "compressed"}


class CameraInput:
    """Subscribes to `image` (or `<camera>/image`), newest frame only.

    With `image_transport` compressed the topic is `<image>/compressed`, as everywhere in ROS, after remapping `image`.

    Args:
        receive: called with (camera, message) in the executor's thread.
        lost: called there with the number of images that were sent and did not arrive, where the middleware knows.
    """

    def __init__(
        self,
        node: LifecycleNode,
        camera: str,
        settings: Settings,
        receive: Callable[[str, Any], None],
        lost: Callable[[int], None],
    ) -> None:
        self.camera, self._lost = camera, lost
        self._node, self._transport, self._receive = node, settings.image_transport, receive
        self._automatic = settings.qos_reliability == "auto"
        self._message_type = CompressedImage if self._transport == "compressed" else Image
        # rclpy remaps whatever name it is given: a resolved one would go through the rules twice, and two swapped cameras back.
        self._name = f"{camera}/image" if camera else "image"
        self.topic = node.resolve_topic_name(self._name)
        if self._transport == "compressed":
            self.topic += "" if self.topic.endswith("/compressed") else "/compressed"
            self._name = self.topic
        self._subscribe(best_effort=settings.qos_reliability == "best_effort" or (self._automatic and self._offers_best_effort()))

    def _subscribe(self, *, best_effort: bool) -> None:
        self._best_effort = best_effort
        self._last: float | None = None  # when the last image came on this subscription, and how long after the one before
        self._interval = _FIRST_SECONDS
        self._losses: deque[tuple[float, int]] = deque()
        self._arrivals: deque[float] = deque()
        self._alone = self._silent = 0  # seconds without a publisher, and with one but without any image yet
        reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
        subscribe = partial(
            self._node.create_subscription,
            self._message_type,
            self._name,
            self._on_message,
            QoSProfile(depth=1, reliability=reliability),
        )
        try:
            self._subscription = subscribe(event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost))
        except UnsupportedEventTypeError:
            self._subscription = subscribe()

    def _on_lost(self, event: Any) -> None:
        self._losses.append((time.monotonic(), event.total_count_change))
        self._lost(event.total_count_change)

    def _loss(self) -> str:
        """That many images do not arrive, of those that were sent; or nothing."""
        before = time.monotonic() - WINDOW_SECONDS
        while self._losses and self._losses[0][0] < before:
            self._losses.popleft()
        while self._arrivals and self._arrivals[0] < before:
            self._arrivals.popleft()
        lost = sum(count for _, count in self._losses)
        sent = lost + len(self._arrivals)
        if lost < max(_LOST, _LOST_SHARE * sent):
            return ""
        return f"{lost} of {sent} images on {self.topic} were lost on the way in {WINDOW_SECONDS:.0f} s: {_large_image_advice()}"

    def _on_message(self, message: Any) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._interval = now - self._last
        self._last = now
        self._arrivals.append(now)
        self._receive(self.camera, message)

    def _publishers(self) -> list[Any]:
        return self._node.get_publishers_info_by_topic(self._name)

    def _offers_best_effort(self) -> bool:
        return any(each.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for each in self._publishers())

    def look_after(self) -> str:
        """Once a second: adapt to the publishers' reliability, and say what keeps images from arriving.

        Returns:
            the problem in words; empty while images arrive.
        """
        if self._automatic and not self._best_effort and self._offers_best_effort():
            self._node.get_logger().info(f"{self.topic} is published best effort: subscribing with best effort")
            self._node.destroy_subscription(self._subscription)
            self._subscribe(best_effort=True)
        silence = 0.0 if self._last is None else time.monotonic() - self._last
        if self._last is not None and silence < 1:
            self._alone = 0
            return self._loss()
        # A slow camera is no silent one: what is long depends on how long it took before.
        overdue = silence > max(QUIET_SECONDS, _MISSED * self._interval)
        missing = f"no image came on {self.topic} for {silence:.0f} s" if overdue else ""
        publishers = self._publishers()
        self._alone = 0 if publishers else self._alone + 1
        self._silent = self._silent + 1 if publishers else 0
        if self._alone >= 2 and (other := self._other_transport()):
            return other
        if not publishers:
            name = f"{self.camera}/image" if self.camera else "image"
            launched = "image:=[/one, /for, /each] beside cameras:=" if self.camera else "image:=/your/topic"
            hint = f"remap with -r {name}:=/your/topic ({launched} in ros2 launch, IMAGE=/your/topic in make run)"
            hint += ", and is ROS_DOMAIN_ID the same?"
            if self._alone < 5:
                return missing
            self._last = None  # whoever publishes next is another camera
            return f"no publisher on {self.topic}: {hint}"
        others = {each.topic_type for each in publishers} - {_name_of(self._message_type)}
        if others:
            found = sorted(others)[0]
            hint = f": start the detector with -p image_transport:={_TYPES[found]} (ros2 launch: no -p)" if found in _TYPES else ""
            return f"{self.topic} carries {found}, not {_name_of(self._message_type)}{hint}"
        if not self._best_effort and self._offers_best_effort():
            return f"{self.topic} is published best effort only: start the detector with -p qos_reliability:=auto"
        if loss := self._loss():
            return loss
        if self._last is None and self._silent > _FIRST_SECONDS:
            silent = f"{self.topic} has a publisher but no image arrives"
            return f"{silent}: is it sending? If so: {_large_image_advice()}"
        return missing

    def _other_transport(self) -> str:
        """What to say where the camera publishes the other kind of image, on the other topic; empty where it does not."""
        compressed = self._transport == "compressed"
        topic = self.topic.removesuffix("/compressed") if compressed else self.topic + "/compressed"
        wanted = "raw" if compressed else "compressed"
        if not any(_TYPES.get(each.topic_type) == wanted for each in self._node.get_publishers_info_by_topic(topic)):
            return ""
        hint = f"start the detector with -p image_transport:={wanted} (ros2 launch: no -p)"
        return f"no publisher on {self.topic}, but on {topic}: {hint}"

    def destroy(self) -> None:
        self._node.destroy_subscription(self._subscription)


def _large_image_advice() -> str:
    advice = transport.socket_advice(get_rmw_implementation_identifier(), transport.socket_limit())
    return advice or "large images need the transport profile, see docs/ros.md"


def _name_of(message_type: type) -> str:
    return f"sensor_msgs/msg/{message_type.__name__}"
