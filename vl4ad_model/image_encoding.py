"""Raw or compressed image bytes, as cameras and bags carry them, to an RGB array: the one image decoder.

Encodings are named as in ROS 2's sensor_msgs/image_encodings.hpp. The plain 8-bit ones are views or one OpenCV conversion;
Bayer and YUV go through `rosbags-image`, once padding, byte order and depth are out of the way (it knows none of these).
"""

from __future__ import annotations

import io
import re
import sys
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vl4ad_model.errors import ImageError, MissingDependencyError
from vl4ad_model.image_files import MAX_SIDE, check_size

if TYPE_CHECKING:
    from array import array

    Bytes = bytes | bytearray | memoryview | array | np.ndarray


class Layout(NamedTuple):
    """How the pixels of an encoding lie in memory.

    Attributes:
        channels: values per pixel in a row.
        bits: 8 or 16 per value.
        color: what the values are, named as the 8-bit encoding: mono8, rgb8, bgr8, rgba8, bgra8, bayer_*8, yuv422,
            yuyv, nv12, nv21.
    """

    channels: int
    bits: int
    color: str


def _layouts() -> dict[str, Layout]:
    table = {"mono8": Layout(1, 8, "mono8"), "mono16": Layout(1, 16, "mono8")}
    for order in ("rgb", "bgr", "rgba", "bgra"):
        for bits in (8, 16):
            table[f"{order}{bits}"] = Layout(len(order), bits, f"{order}8")
    # Types without a colour: OpenCV's order, as cv_bridge shows them.
    for channels, color in ((1, "mono8"), (3, "bgr8"), (4, "bgra8")):
        for bits in (8, 16):
            table[f"{bits}UC{channels}"] = Layout(channels, bits, color)
    table["8UC"], table["16UC"] = table["8UC1"], table["16UC1"]
    for pattern in ("rggb", "bggr", "gbrg", "grbg"):
        for bits in (8, 16):
            table[f"bayer_{pattern}{bits}"] = Layout(1, bits, f"bayer_{pattern}8")
    for name in ("yuv422", "uyvy"):
        table[name] = Layout(2, 8, "yuv422")
    for name in ("yuv422_yuy2", "yuyv"):
        table[name] = Layout(2, 8, "yuyv")
    for name in ("nv12", "nv21"):
        table[name] = Layout(1, 8, name)
    return table


LAYOUTS = _layouts()
"""Every raw encoding that can be read."""


def decode_raw(data: Bytes, *, height: int, width: int, encoding: str, step: int = 0, is_bigendian: bool = False) -> np.ndarray:
    """Decode a raw image; arguments and errors are those of `view_raw`.

    Returns:
        (H, W, 3) uint8 RGB; of an unpadded rgb8 image a read-only view of `data`, without any copy.

    Raises:
        MissingDependencyError: Bayer or YUV without `rosbags-image`.
    """
    pixels, layout = view_raw(data, height=height, width=width, encoding=encoding, step=step, is_bigendian=is_bigendian)
    return _to_rgb(_to_8_bit(pixels), layout.color)


def view_raw(
    data: Bytes, *, height: int, width: int, encoding: str, step: int = 0, is_bigendian: bool = False
) -> tuple[np.ndarray, Layout]:
    """Check a raw image and look at its values where they lie.

    Args:
        data: at least step x height bytes (x 3/2 for nv12 and nv21).
        height, width: pixels.
        encoding: one of `LAYOUTS`; upper and lower case are the same.
        step: bytes from one row to the next; 0 = rows are not padded.
        is_bigendian: byte order of 16-bit values.

    Returns:
        (rows, W, channels) uint8 or uint16 view of `data` without the padding, and what the values are.

    Raises:
        ImageError: unknown encoding, unusable size, or data that is too short; the message says which.
    """
    layout = LAYOUTS.get(encoding) or LAYOUTS.get(encoding.lower())
    if layout is None:
        layout = {name.lower(): entry for name, entry in LAYOUTS.items()}.get(encoding.lower())
    if layout is None:
        kind = " (a depth or float image?)" if re.match(r"32[FS]|64F|16S", encoding) else ""
        raise ImageError(f"encoding '{encoding:.40}'{kind} is unknown: use one of {', '.join(LAYOUTS)}")
    check_size(height, width, "image")
    row = width * layout.channels * layout.bits // 8
    step = step or row
    if step < row:
        raise ImageError(f"step {step} is less than a row of {width} pixels {encoding} ({row} bytes)")
    planar = layout.color in ("nv12", "nv21")
    if planar and (height % 2 or width % 2):
        raise ImageError(f"{encoding} needs even sides, not {width}x{height}")
    if layout.color in ("yuv422", "yuyv") and width % 2:
        raise ImageError(f"{encoding} needs an even width, not {width}")
    rows = height * 3 // 2 if planar else height
    # The last row's padding is often left out.
    flat = np.frombuffer(data, np.uint8)
    needed = step * (rows - 1) + row
    if flat.size < needed:
        raise ImageError(f"data has {flat.size} bytes, {rows} rows of step {step} need {step * rows}: the image is cut off")
    dtype = np.dtype(np.uint8) if layout.bits == 8 else np.dtype(np.uint16).newbyteorder(">" if is_bigendian else "<")
    pixels = np.ndarray(
        (rows, width, layout.channels),
        dtype,
        buffer=flat,
        strides=(step, layout.channels * dtype.itemsize, dtype.itemsize),
    )
    return pixels, layout


def decode_compressed(data: Bytes, image_format: str = "") -> np.ndarray:
    """Decode a JPEG, PNG or other compressed image.

    Args:
        data: the file's bytes.
        image_format: what the sender says of them, as in sensor_msgs/CompressedImage; the bytes themselves decide.

    Returns:
        (H, W, 3) uint8 RGB, as stored: an EXIF orientation is ignored, since labels and calibration belong to the stored pixels.

    Raises:
        ImageError: no image, cut off, damaged, or of an unusable size.
    """
    import cv2
    from PIL import Image

    if "compressedDepth" in image_format:
        raise ImageError(f"format '{image_format:.60}' is a depth image: a colour image is needed")
    raw = np.frombuffer(data, np.uint8)
    if raw.size == 0:
        raise ImageError("compressed image is empty (0 bytes)")
    # The header first: a few bytes can claim gigabytes.
    Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
    try:
        with Image.open(io.BytesIO(raw.data)) as header:
            check_size(header.height, header.width, "compressed image")
            kind = header.format
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"compressed image claims more than {MAX_SIDE}x{MAX_SIDE} pixels") from None
    except Exception:
        raise ImageError(f"compressed image ({raw.size} bytes, format '{image_format:.60}') is no image that can be read") from None
    # libjpeg fills what is missing with grey and says nothing; the end marker tells. Some drivers send their whole buffer, filled
    # up with zeros.
    end = b"\xff\xd9"
    if kind == "JPEG" and end not in raw[-1024:].tobytes() and end not in raw.tobytes().rstrip(b"\0")[-1024:]:
        raise ImageError(f"JPEG of {raw.size} bytes is cut off (no end marker)")
    mosaic = image_format.split(";")[0].strip()
    if mosaic.startswith("bayer_"):
        return _decode_mosaic(raw, mosaic)
    flags = cv2.IMREAD_IGNORE_ORIENTATION | getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)
    try:
        image = cv2.imdecode(raw, flags)
    except cv2.error as error:
        raise ImageError(f"compressed image cannot be decoded ({str(error.err)[:80]})") from None
    if image is None:
        raise ImageError(f"{kind} image of {raw.size} bytes is damaged")
    return image if hasattr(cv2, "IMREAD_COLOR_RGB") else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_mosaic(raw: np.ndarray, color: str) -> np.ndarray:
    """A Bayer image that was compressed as it is: ROS's compressed_image_transport leaves such encodings unconverted."""
    import cv2

    pixels = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    layout = LAYOUTS.get(color)
    if pixels is None or layout is None:
        raise ImageError(f"compressed image of {raw.size} bytes in format '{color:.60}' is damaged or of no known kind")
    if pixels.ndim != 2:
        raise ImageError(f"compressed image says it is '{color:.60}' and has {pixels.shape[2]} channels")
    return _to_rgb(_to_8_bit(pixels), layout.color)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """16-bit values scaled so that 65535 becomes 255, rounded; 8-bit ones as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    import cv2

    native = np.ascontiguousarray(pixels, np.uint16)
    return cv2.convertScaleAbs(native, alpha=255 / 65535).reshape(pixels.shape)


def _to_rgb(pixels: np.ndarray, color: str) -> np.ndarray:
    """(H, W, channels) uint8 to (H, W, 3) RGB."""
    if color == "rgb8":
        return np.ascontiguousarray(pixels)
    import cv2

    plain = {"mono8": cv2.COLOR_GRAY2RGB, "bgr8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_RGBA2RGB, "bgra8": cv2.COLOR_BGRA2RGB}
    pixels = np.ascontiguousarray(pixels)
    if color in plain:
        return cv2.cvtColor(pixels, plain[color])
    # For nv12 and nv21 the rows of colour count as rows of the image there, as in OpenCV.
    message = SimpleNamespace(
        encoding=color, height=pixels.shape[0], width=pixels.shape[1], data=pixels, is_bigendian=sys.byteorder == "big"
    )
    return _rosbags_image().image_to_cvimage(message, "rgb8")


@lru_cache(maxsize=1)
def _rosbags_image():
    try:
        from rosbags import image
    except ImportError:
        raise MissingDependencyError("rosbags-image", "images", "reading Bayer and YUV images") from None
    return image
