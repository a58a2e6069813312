"""Shared by the tests of the node: a real detector process, a client, and a ROS domain of this run's own."""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import contextmanager, suppress

import numpy as np

SMALL = {"network_size": [64, 96], "engine": "torch"}
"""A network that takes a fraction of a second on a busy machine; what is tested is the node."""
_domains = itertools.count(os.getpid())


def new_domain() -> int:
    """A ROS domain in which nobody of this run is yet."""
    return 1 + next(_domains) % 100


def picture(height=120, width=160, seed=0):
    """(H, W, 3) uint8 with structure, cheap to make and different for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(((x * 2 + seed * 37) % 256, (y * 3 + seed) % 256, (x // 16 + y // 16) % 2 * 200), axis=-1).astype(np.uint8)


@contextmanager
def running_detector(settings=None, *, client=None, connect=True, **process_arguments):
    """A detector that is active and connected, and a client of it."""
    from vl4ad_ros.detector_client import DetectorClient
    from vl4ad_ros.detector_process import DetectorProcess

    domain = new_domain()
    with DetectorProcess({**SMALL, **(settings or {})}, domain=domain, **process_arguments) as detector:
        detector.wait_until_active()
        with DetectorClient(domain=domain, **(client or {})) as user:
            if connect:
                user.wait_until_connected()
                assert user.wait_for(lambda c: c.labels, 30), detector.log
            yield detector, user


@contextmanager
def detector_here(settings=None):
    """An active node in this process, where a test can make something fail, and a client of it."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.parameter import Parameter

    from vl4ad_ros.detector_client import DetectorClient
    from vl4ad_ros.detector_node import DetectorNode

    domain, context = new_domain(), rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    given = [Parameter(name, value=value) for name, value in {**SMALL, **(settings or {})}.items()]
    node = DetectorNode(context=context, parameter_overrides=given)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin():
        with suppress(ExternalShutdownException):
            executor.spin()

    spinning = threading.Thread(target=spin, daemon=True)
    try:
        node.trigger_configure()
        node.trigger_activate()
        spinning.start()
        with DetectorClient(domain=domain) as user:
            user.wait_until_connected()
            assert user.wait_for(lambda c: c.labels, 30)
            yield spinning, user
    finally:
        context.try_shutdown()
        spinning.join(10)
        node.stop_threads()
        node.destroy_node()
