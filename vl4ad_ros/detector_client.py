"""A program's side of the detector: send images, collect outputs, change parameters. For the demo, the benchmark and the tests."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from vl4ad_model.errors import Vl4adError
from vl4ad_ros import images, outputs, transport

NODE = "/vl4ad_detector"
BUILT = ("done", "failed")
"""Values of "engine build" in that status when no engine is being built."""
Stamp = tuple[int, int]
"""Seconds and nanoseconds of a header: what an output is matched to its image by."""


@dataclass
class Received:
    """One output message (of `hazards`, its content) and when it came (time.time())."""

    message: Any
    when: float


@dataclass
class Labels:
    """One announcement of words; `content` is its JSON."""

    content: dict[str, Any]
    when: float


@dataclass
class Collected:
    """Everything that came so far: outputs by topic and stamp, announcements, the newest diagnostics."""

    outputs: dict[str, dict[Stamp, Received]] = field(default_factory=dict)
    labels: list[Labels] = field(default_factory=list)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: dict[str, tuple[int, str]] = field(default_factory=dict)


def stamp_of(header: Header) -> Stamp:
    return header.stamp.sec, header.stamp.nanosec


class DetectorClient:
    """A node in a thread of its own; a context manager.

    Args:
        domain: ROS_DOMAIN_ID.
        topics: outputs to subscribe to, of `outputs.TYPES`.
        camera: of which camera; empty = the only one.
        image_topic: where images are sent.
        compressed: send CompressedImage.
        reliable: the sender's reliability.
        keep: how many outputs per topic are kept; 0 = all.
        stamps_only: outputs are taken as they come off the wire and only their stamps and times are kept, as little work as a
            recorder has with them; their `message` is None.
    """

    def __init__(
        self,
        *,
        domain: int,
        topics: tuple[str, ...] = tuple(outputs.MAPS),
        camera: str = "",
        image_topic: str = "/image",
        compressed: bool = False,
        reliable: bool = True,
        keep: int = 0,
        stamps_only: bool = False,
        node_name: str = "vl4ad_client",
        detector: str = NODE,
    ) -> None:
        transport.prepare_this_process()
        self._detector, self._status = detector, f"{detector.lstrip('/')}: detector"
        self.collected = Collected({topic: {} for topic in topics})
        self.domain, self._keep = domain, keep
        self._changed = threading.Condition()
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = rclpy.create_node(node_name, context=self._context)
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        kind = CompressedImage if compressed else Image
        topic = image_topic + "/compressed" if compressed and not image_topic.endswith("/compressed") else image_topic
        self._publisher = self.node.create_publisher(kind, topic, QoSProfile(depth=1, reliability=reliability))
        prefix = f"{detector}/{camera}/" if camera else f"{detector}/"
        for name in topics:
            kind = outputs.TYPES[name]
            raw = stamps_only and kind is not String  # which has no header
            self.node.create_subscription(kind, prefix + name, self._keeper(name, raw), outputs.MAPS_QOS, raw=raw)
        self.node.create_subscription(String, f"{detector}/labels", self._on_labels, outputs.EVERY_VERSION)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._clients: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._closing = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            try:
                self._executor.spin()
            except InvalidHandle:  # rclpy's own race between spinning and being shut down
                if not self._closing:
                    raise

    def _keeper(self, name: str, raw: bool) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            if isinstance(message, String):
                message = json.loads(message.data)
                stamp = message["stamp"]["sec"], message["stamp"]["nanosec"]
            else:
                # The serialized form begins with four bytes that name it, and the header's stamp.
                stamp = struct.unpack_from("<iI", message, 4) if raw else stamp_of(message.header)
            with self._changed:
                kept = self.collected.outputs[name]
                kept[stamp] = Received(None if raw else message, time.time())
                if self._keep and len(kept) > self._keep:
                    kept.pop(next(iter(kept)))
                self._changed.notify_all()

        return keep

    def _on_labels(self, message: String) -> None:
        with self._changed:
            self.collected.labels.append(Labels(json.loads(message.data), time.time()))
            self._changed.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self._changed:
            for status in message.status:
                self.collected.diagnostics[status.name] = {pair.key: pair.value for pair in status.values}
                self.collected.messages[status.name] = (status.level[0], status.message)
            self._changed.notify_all()

    # --- images -----------------------------------------------------------------------------------------------------------

    def now(self) -> Time:
        return self.node.get_clock().now().to_msg()

    def send(self, values: np.ndarray, encoding: str = "rgb8", *, frame: str = "camera", stamp: Time | None = None) -> Stamp:
        """Publish an array as an image stamped now."""
        header = Header(stamp=stamp or self.now(), frame_id=frame)
        self._publisher.publish(images.from_array(values, encoding, header))
        return stamp_of(header)

    def send_message(self, message: Any) -> Stamp:
        """Publish a message as it is."""
        self._publisher.publish(message)
        return stamp_of(message.header)

    def wait_for(self, condition: Callable[[Collected], Any], timeout: float = 30.0) -> Any:
        """Wait until `condition(collected)` is true.

        Returns:
            its value; the last false one if the time is over.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (value := condition(self.collected)) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.5))
        return value

    def output(self, topic: str, stamp: Stamp, timeout: float = 30.0) -> Image | None:
        """The output for the image of that stamp, waiting for it; None if it does not come."""
        received = self.wait_for(lambda collected: collected.outputs[topic].get(stamp), timeout)
        return received.message if received else None

    def take(self, *topics: str) -> dict[Stamp, tuple[Received, ...]]:
        """The outputs of every stamp that all these topics have; they are no longer kept here."""
        with self._changed:
            kept = [self.collected.outputs[topic] for topic in topics]
            whole = [stamp for stamp in kept[0] if all(stamp in other for other in kept[1:])]
            return {stamp: tuple(outputs.pop(stamp) for outputs in kept) for stamp in whole}

    def wait_until_connected(self, timeout: float = 60.0) -> None:
        """Wait until the detector subscribes to our images and we to its outputs.

        Raises:
            Vl4adError: it does not within the timeout.
        """
        deadline = time.monotonic() + timeout
        topics = [
            f"{subscription.topic_name}" for subscription in self.node.subscriptions if "diagnostics" not in subscription.topic_name
        ]
        while time.monotonic() < deadline:
            if self._publisher.get_subscription_count() and all(self.node.count_publishers(topic) for topic in topics):
                return
            time.sleep(0.02)
        if not self._publisher.get_subscription_count():
            raise Vl4adError(
                f"no detector subscribed to {self._publisher.topic_name} within {timeout:.0f} s: is another name its image topic?"
            )
        missing = next(topic for topic in topics if not self.node.count_publishers(topic))
        raise Vl4adError(
            f"nothing publishes {missing} within {timeout:.0f} s: is the detector called {self._detector}, and has it one camera?"
        )

    def check_alone(self) -> None:
        """Make sure that only one node answers to the detector's name.

        Raises:
            Vl4adError: there are several.
        """
        names = ["/".join((space.rstrip("/"), name)) for name, space in self.node.get_node_names_and_namespaces()]
        if (count := names.count(self._detector)) > 1:
            raise Vl4adError(f"{count} nodes are called {self._detector}: end all but one")

    def check_connected(self) -> None:
        """Make sure that somebody still reads our images.

        Raises:
            Vl4adError: nobody does.
        """
        if not self._publisher.get_subscription_count():
            raise Vl4adError(f"the detector is gone: nobody subscribes to {self._publisher.topic_name} any more")

    def wait_until_built(self, timeout: float = 600.0, say: Callable[[str], None] = lambda text: None) -> dict[str, str]:
        """Wait until the detector builds no engine any more; until then PyTorch answers, with other times and last digits.

        Args:
            say: called with one line where there is something to wait for.

        Returns:
            its status; empty where no detector of this name says one.

        Raises:
            Vl4adError: the build takes too long.
        """
        build = "engine build"
        self.wait_for(lambda c: build in c.diagnostics.get(self._status, {}), timeout=10)
        status = self.collected.diagnostics.get(self._status, {})
        if build in status and status[build] not in BUILT:
            say("the detector builds its engine (the first time only)")
            if not self.wait_for(lambda c: c.diagnostics[self._status].get(build) in BUILT, timeout):
                raise Vl4adError(f"the engine was not built within {timeout:.0f} s")
        return dict(self.collected.diagnostics.get(self._status, {}))

    # --- services ---------------------------------------------------------------------------------------------------------

    def call(self, kind: Any, name: str, request: Any, timeout: float = 60.0) -> Any:
        """Call a service of the detector.

        Raises:
            Vl4adError: it does not answer in time.
        """
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.node.create_client(kind, f"{self._detector}/{name}")
        done = threading.Event()
        if not client.wait_for_service(timeout):
            raise Vl4adError(f"the detector has no service {name}: is it running?")
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout):
            raise Vl4adError(f"service {name} did not answer within {timeout:.0f} s")
        return future.result()

    def set_parameter(self, name: str, value: Any) -> tuple[bool, str]:
        """Set one parameter as `ros2 param set` does.

        Returns:
            whether it was accepted, and the reason if not.
        """
        # "[]" on the command line is an empty bool array.
        message = (
            ParameterValue(type=6) if isinstance(value, list) and not value else Parameter(name, value=value).get_parameter_value()
        )
        request = SetParameters.Request(parameters=[ParameterMessage(name=name, value=message)])
        result = self.call(SetParameters, "set_parameters", request).results[0]
        return result.successful, result.reason

    def set_parameters_together(self, values: dict[str, Any]) -> tuple[bool, str]:
        """Set several parameters as one."""
        messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        result = self.call(
            SetParametersAtomically, "set_parameters_atomically", SetParametersAtomically.Request(parameters=messages)
        ).result
        return result.successful, result.reason

    def get_parameter(self, name: str) -> Any:
        """Its value.

        Raises:
            Vl4adError: the node has no such parameter.
        """
        values = self.call(GetParameters, "get_parameters", GetParameters.Request(names=[name])).values
        if not values:
            raise Vl4adError(f"the detector has no parameter '{name}'")
        return Parameter.from_parameter_msg(ParameterMessage(name=name, value=values[0])).value

    def reload_vocabulary(self) -> tuple[bool, str]:
        answer = self.call(Trigger, "reload_vocabulary", Trigger.Request())
        return answer.success, answer.message

    def change_state(self, transition: str, timeout: float = 120.0) -> bool:
        """configure, activate, deactivate or cleanup."""
        number = getattr(Transition, "TRANSITION_" + transition.upper())
        return self.call(ChangeState, "change_state", ChangeState.Request(transition=Transition(id=number)), timeout).success

    def state(self) -> str:
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def close(self) -> None:
        self._closing = True
        self._executor.shutdown(timeout_sec=1.0)
        self._context.try_shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()

    def __enter__(self) -> DetectorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pixels(message: Image) -> np.ndarray:
    """The values of an output image: (H, W) uint8 or float32, or (H, W, 3) uint8."""
    dtype, channels = {"mono8": (np.uint8, 1), "32FC1": (np.float32, 1), "rgb8": (np.uint8, 3)}[message.encoding]
    values = np.frombuffer(message.data, dtype)
    shape = (message.height, message.width) if channels == 1 else (message.height, message.width, channels)
    return values.reshape(shape)


def deserialize_image(raw: bytes, message_type: str) -> Any:
    """An Image or CompressedImage message from its serialized bytes."""
    from rclpy.serialization import deserialize_message

    return deserialize_message(raw, CompressedImage if message_type.endswith("CompressedImage") else Image)
