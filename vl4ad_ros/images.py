"""Between ROS image messages and arrays, without a copy where that is possible."""

from __future__ import annotations

import array
import importlib
import sys
from functools import lru_cache
from typing import Any

import numpy as np
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
    bridge = None if message.encoding in _PLAIN else _cv_bridge()
    if bridge is not None:
        try:
            return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception:  # not one that it knows, or bad data: ours says which
            pass
    return image_encoding.decode_raw(message.data, **arguments)


@lru_cache(maxsize=1)
def _cv_bridge() -> Any | None:
    """The distribution's cv_bridge where it is installed and works; None otherwise.

    Built against numpy 1 it takes the whole process down under numpy 2, so it is not even imported there.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        return None
    try:
        bridge = importlib.import_module("cv_bridge").CvBridge()
        probe = from_array(np.full((4, 4), 257 * 9, np.uint16), "mono16", Header())
        works = (np.asarray(bridge.imgmsg_to_cv2(probe, "rgb8")) == 9).all()
    except Exception:
        return None
    return bridge if works else None


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
