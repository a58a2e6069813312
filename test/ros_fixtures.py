"""Shared by the tests of the node: a real detector process, a client, and a ROS domain of this run's own."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager

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
            yield detector, user
