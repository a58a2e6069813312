"""Colours of hazards in pictures: each as far as can be from those of the classes, of the score's heat and of one another."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

HEAT: tuple[Color, ...] = ((87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""What pictures draw the anomaly score in (inferno)."""
_GREENS = (70 / 360, 165 / 360)
_GREENS_COUNT = 0.6
"""Less far for green: what is beside a road is green in every shade, in the picture and in its classes' colours."""


@lru_cache(maxsize=64)
def hazard_colors(classes: tuple[Color, ...], count: int) -> tuple[Color, ...]:
    """The first `count` colours, RGB 0..255; more of them begin with the same.

    Distances are Euclidean in CIELAB (CIE 1976).
    """
    hsv = [(hue / 60, saturation, value) for value in (1.0, 0.85, 0.7) for saturation in (1.0, 0.7, 0.45) for hue in range(60)]
    candidates = np.round(255 * np.array([colorsys.hsv_to_rgb(*each) for each in hsv]))
    weight = np.where([_GREENS[0] <= hue <= _GREENS[1] for hue, _, _ in hsv], _GREENS_COUNT, 1.0)
    places = _lab(candidates)

    def distance(color: Sequence[float]) -> np.ndarray:
        return weight * ((places - _lab(np.asarray(color, np.float64))) ** 2).sum(axis=-1)

    nearest = np.min([distance(color) for color in (*classes, *HEAT)], axis=0)
    colors: list[Color] = []
    for _ in range(count):
        red, green, blue = candidates[int(np.argmax(nearest))].astype(int).tolist()
        colors.append((red, green, blue))
        nearest = np.minimum(nearest, distance(colors[-1]))
    return tuple(colors)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) sRGB 0..255 to CIELAB, white D65."""
    linear = np.where(rgb > 10.31475, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    x, y, z = np.moveaxis(np.where((t := xyz / (0.9505, 1.0, 1.089)) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116), -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)
