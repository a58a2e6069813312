"""Between ROS image messages and arrays, without a copy where that is possible."""

from __future__ import annotations

import array
import importlib
import importlib.util
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.logging import get_logger
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vl4ad_model import image_encoding

_PLAIN = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1", "8UC3")


def to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image message; for unpadded rgb8 a view of its data.

    Raises:
        ImageError: the message is no usable image; the text says why.
    """
    if isinstance(message, CompressedImage):
        return image_encoding.decode_compressed(message.data, message.format)
    arguments = {
        "height": message.height,
        "width": message.width,
        "encoding": message.encoding,
        "step": message.step,
        "is_bigendian": bool(message.is_bigendian),
    }
    if message.encoding not in _PLAIN:
        pixels, _ = image_encoding.view_raw(message.data, **arguments)
        # Rows padded by part of a pixel come out skewed from cv_bridge, without an error.
        rgb = _through_cv_bridge(message) if pixels.flags.c_contiguous else None
        if rgb is not None:
            return rgb
    return image_encoding.decode_raw(message.data, **arguments)


def _through_cv_bridge(message: Image) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, or None where cv_bridge is missing, broken, or does not know the encoding."""
    bridge = _cv_bridge()
    if bridge is None:
        return None
    try:
        rgb = np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
    except Exception:
        return None
    return rgb if rgb.dtype == np.uint8 and rgb.shape == (message.height, message.width, 3) else None


_PROBE = """
import sys
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import Image
values = np.full(16, 9 * 257, np.uint16)
image = Image(height=4, width=4, encoding="mono16", step=8, is_bigendian=int(sys.byteorder == "big"), data=values.tobytes())
result = np.asarray(CvBridge().imgmsg_to_cv2(image, "rgb8"))
if result.shape != (4, 4, 3) or (result != 9).any():
    raise SystemExit("it gives wrong values")
"""


@lru_cache(maxsize=1)
def _cv_bridge() -> Any | None:
    """The distribution's cv_bridge where it is installed and works; None otherwise, with a warning where it is broken.

    It is tried in a process of its own first: one built for another numpy takes the whole process down (segmentation fault at
    the first conversion under numpy 2).
    """
    if importlib.util.find_spec("cv_bridge") is None:
        return None
    logger = get_logger("vl4ad_detector.images")
    problem = problem_of_cv_bridge()
    if not problem:
        try:
            bridge_module = importlib.import_module("cv_bridge")
            bridge = bridge_module.CvBridge()
            logger.info(f"uncommon encodings are read with cv_bridge ({Path(bridge_module.__file__ or '').parent})")
            return bridge
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    logger.warning(
        f"cv_bridge is installed but does not work with numpy {np.__version__} ({problem}): "
        "uncommon encodings are read with rosbags-image instead"
    )
    return None


def problem_of_cv_bridge() -> str:
    """Why the installed cv_bridge cannot be used, in a few words; empty where it can."""
    try:
        trial = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"trying it failed: {error}"[:200]
    if trial.returncode < 0:
        return f"it crashes, signal {-trial.returncode}"
    said = trial.stderr.strip().splitlines()
    return "" if trial.returncode == 0 else said[-1][:200] if said else f"exit status {trial.returncode}"


def from_array(values: np.ndarray, encoding: str, header: Header) -> Image:
    """An image message of a (H, W) or (H, W, C) array."""
    values = np.ascontiguousarray(values)
    message = Image()
    message.header = header
    message.height, message.width = values.shape[:2]
    message.encoding = encoding
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = values.strides[0]
    # Any other way of filling `data` costs a check of every byte, 300 ms for 6 MB.
    data = array.array("B")
    data.frombytes(values.data.cast("B"))
    message.data = data
    return message


def to_jpeg(rgb: np.ndarray, header: Header, quality: int) -> CompressedImage:
    """A message of a (H, W, 3) uint8 RGB image as image_transport's compressed plugin makes it."""
    import cv2

    encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    data = array.array("B")
    data.frombytes(encoded.data.cast("B"))
    return CompressedImage(header=header, format="rgb8; jpeg compressed bgr8", data=data)
