"""Image messages of bags as arrays: camera images, label maps exactly as recorded, and scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vl4ad_model.errors import EvaluationError


def first_line(error: BaseException) -> str:
    """What an exception says, short."""
    return (str(error) or repr(error)).strip().splitlines()[0][:200]


def decode_image(message: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an Image or CompressedImage.

    Raises:
        ImageError: the message holds no image that can be read.
    """
    from vl4ad_model import image_encoding

    if hasattr(message, "format"):
        return image_encoding.decode_compressed(message.data, message.format)
    return image_encoding.decode_raw(
        message.data,
        height=message.height,
        width=message.width,
        encoding=message.encoding,
        step=message.step,
        is_bigendian=bool(message.is_bigendian),
    )


def decode_labels(message: Any) -> np.ndarray:
    """(H, W) uint8 exactly as recorded: mono8 or 8UC1, or a losslessly compressed grey image.

    Raises:
        EvaluationError: anything else.
    """
    if hasattr(message, "format"):
        if "jpeg" in message.format.lower() or "jpg" in message.format.lower():
            raise EvaluationError(f"labels are compressed as '{message.format}': JPEG changes label values, record PNG or mono8")
        from PIL import Image

        try:
            with Image.open(io.BytesIO(memoryview(message.data))) as image:
                if image.mode not in ("L", "P"):
                    raise EvaluationError(f"labels must be one 8-bit channel, this image has mode {image.mode}")
                return np.asarray(image).astype(np.uint8)
        except EvaluationError:
            raise
        except Exception as error:
            raise EvaluationError(f"compressed labels are damaged ({first_line(error)})") from None
    return _plain(message, ("mono8", "8UC1", "8UC"), np.dtype(np.uint8), "labels")


def decode_scores(message: Any) -> np.ndarray:
    """(H, W) float32 of a 32FC1 Image.

    Raises:
        EvaluationError: anything else.
    """
    if hasattr(message, "format"):
        raise EvaluationError("scores are compressed: record the 32FC1 image")
    order = ">" if message.is_bigendian else "<"
    return _plain(message, ("32FC1",), np.dtype(order + "f4"), "scores").astype(np.float32, copy=False)


def _plain(message: Any, encodings: Sequence[str], dtype: np.dtype, what: str) -> np.ndarray:
    if message.encoding not in encodings:
        raise EvaluationError(f"{what} have encoding '{message.encoding}', {' or '.join(encodings[:2])} is needed")
    row = message.width * dtype.itemsize
    step = message.step or row
    data = np.frombuffer(message.data, np.uint8)
    if message.height <= 0 or message.width <= 0 or step < row or data.size < step * (message.height - 1) + row:
        raise EvaluationError(
            f"{what} are cut off: {data.size} bytes for {message.width}x{message.height} {message.encoding}, step {message.step}"
        )
    return np.ndarray((message.height, message.width), dtype, buffer=data, strides=(step, dtype.itemsize))
