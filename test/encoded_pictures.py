"""A picture in every raw encoding, as a camera would send it."""

import cv2
import numpy as np

from vl4ad_model.image_encoding import LAYOUTS

HEIGHT, WIDTH = 48, 64


def smooth_picture():
    """Smooth colours: Bayer and 4:2:0 lose detail, not these."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack((60 + x * 2, 200 - y * 2, 40 + x + y), axis=-1).astype(np.uint8)


def grey_of(rgb):
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _bayer(rgb, pattern):
    mosaic = np.empty(rgb.shape[:2], np.uint8)
    for index, letter in enumerate(pattern):
        mosaic[index // 2 :: 2, index % 2 :: 2] = rgb[index // 2 :: 2, index % 2 :: 2, "rgb".index(letter)]
    return mosaic


def _yuv(rgb):
    """Video-range BT.601, which is what cameras and OpenCV mean by YUV."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    return (
        16 + 0.257 * r + 0.504 * g + 0.098 * b,
        128 - 0.148 * r - 0.291 * g + 0.439 * b,
        128 + 0.439 * r - 0.368 * g - 0.071 * b,
    )


def pack(rgb, encoding):
    """The picture as a camera would send it: (rows, values per row), 8 or 16 bit."""
    layout = LAYOUTS[encoding]
    color = layout.color
    if color == "mono8":
        values = grey_of(rgb)
    elif color.startswith("bayer"):
        values = _bayer(rgb, color[6:10])
    elif color in ("yuv422", "yuyv"):
        y, u, v = _yuv(rgb)
        values = np.empty((*y.shape, 2))
        luma, chroma = (1, 0) if color == "yuv422" else (0, 1)
        values[..., luma] = y
        values[:, ::2, chroma], values[:, 1::2, chroma] = u[:, ::2], v[:, ::2]
        values = values.round().astype(np.uint8)
    elif color in ("nv12", "nv21"):
        y, u, v = (plane.round().astype(np.uint8) for plane in _yuv(rgb))
        first, second = (u, v) if color == "nv12" else (v, u)
        chroma = np.stack((first[::2, ::2], second[::2, ::2]), axis=-1).reshape(HEIGHT // 2, WIDTH)
        values = np.concatenate((y, chroma))
    else:
        alpha = np.full((*rgb.shape[:2], 1), 7, np.uint8)
        values = np.concatenate((rgb, alpha), axis=2)[..., ["rgba".index(letter) for letter in color[:-1]]]
    values = values.reshape(values.shape[0], -1)
    return values if layout.bits == 8 else values.astype(np.uint16) * 257


def send(values, padding=0, big=False):
    """Bytes and step."""
    if values.dtype == np.uint16:
        values = values.astype(">u2" if big else "<u2")
    rows = np.frombuffer(values.tobytes(), np.uint8).reshape(values.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return rows.tobytes(), rows.shape[1]
