"""From linear light to what a camera delivers: exposure, tone, blur, rain, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.scenes.world import Light


@dataclass(frozen=True)
class Style:
    """One camera's habits, drawn once per still and once per sequence.

    Attributes:
        exposure: factor on the automatic exposure.
        white_balance: (3,) factors.
        blur: length in pixels of motion or focus blur, 0 = none; along `blur_angle`, radians.
        noise: standard deviation, in units of full scale.
    """

    exposure: float
    bloom: bool
    filmic: bool
    gamma: float
    white_balance: np.ndarray
    saturation: float
    contrast: float
    blur: int
    blur_angle: float
    vignette: float
    noise: float
    coarse_noise: bool
    rain_slant: int

    @classmethod
    def draw(cls, r: np.random.Generator) -> Style:
        """Any camera."""
        return cls(
            exposure=float(np.exp(r.normal(0, 0.18))),
            bloom=bool(r.random() < 0.25),
            filmic=bool(r.random() < 0.5),
            gamma=float(r.uniform(1.9, 2.5)),
            white_balance=np.exp(r.normal(0, 0.022, 3)),
            saturation=float(r.uniform(0.55, 1.35)),
            contrast=float(r.uniform(0.85, 1.3)),
            blur=int(r.integers(2, 6)) if r.random() < 0.25 else 0,
            blur_angle=float(r.uniform(0, np.pi)),
            vignette=float(r.uniform(0, 0.2)),
            noise=float(r.uniform(0.002, 0.03) * r.uniform(0.3, 1)),
            coarse_noise=bool(r.random() < 0.5),
            rain_slant=int(r.integers(-3, 4)),
        )

    @classmethod
    def good(cls) -> Style:
        """A good camera on a car."""
        return cls(1.05, False, True, 2.2, np.ones(3), 1.05, 1.1, 0, 0.0, 0.06, 0.005, True, 1)


class Metering(NamedTuple):
    """What a camera sets by itself: exposure, and (3,) white balance as far as cameras get it right; factors on linear light."""

    exposure: float
    balance: np.ndarray


def meter(image: np.ndarray) -> Metering:
    """Measure (H, W, 3) linear light: the median comes near middle grey, a colour cast is taken back by a third."""
    cast = image.mean(axis=(0, 1)) + 1e-3
    return Metering(float(np.clip(0.28 / (float(np.median(image)) + 1e-3), 0.6, 3.0) ** 0.6), (cast.mean() / cast) ** 0.3)


def develop(image: np.ndarray, light: Light, style: Style, r: np.random.Generator, metering: Metering | None = None) -> np.ndarray:
    """(H, W, 3) float32 linear light to uint8 RGB.

    Args:
        r: for what differs between the frames of one sequence: noise and rain.
        metering: measured on the image itself where it is not given.
    """
    import cv2

    metering = meter(image) if metering is None else metering
    x = image * (metering.exposure * style.exposure * metering.balance)
    if style.bloom:
        x = x + 0.25 * cv2.GaussianBlur(np.clip(x - 0.8, 0, 4), (0, 0), 6)
    if style.filmic:
        x = x * (1.0 + 0.15 * x) / (1.0 + x * 0.75)
    x = np.clip(x, 0, 1) ** (1 / style.gamma)
    x = x * style.white_balance
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * style.saturation
    x = 0.5 + (x - 0.5) * style.contrast
    height, width = x.shape[:2]
    if light.rain:
        streaks = (r.random((height, width)) > 1 - 0.01 * light.rain).astype(np.float32)
        kernel = np.zeros((15, 15), np.float32)
        cv2.line(kernel, (7 + style.rain_slant, 0), (7, 14), 1.0, 1)
        x = x + 0.35 * cv2.filter2D(streaks, -1, kernel / 5)[..., None]
    if style.blur:
        length = style.blur
        kernel = np.zeros((2 * length + 1,) * 2, np.float32)
        dx, dy = np.cos(style.blur_angle) * length, np.sin(style.blur_angle) * length
        cv2.line(kernel, (round(length - dx / 2), round(length - dy / 2)), (round(length + dx / 2), round(length + dy / 2)), 1.0)
        x = cv2.filter2D(x.astype(np.float32), -1, kernel / kernel.sum())
    corners = np.linspace(-1, 1, height)[:, None] ** 2 + np.linspace(-1, 1, width)[None] ** 2
    x = x * (1 - style.vignette * corners)[..., None]
    noise = r.normal(0, 1, x.shape).astype(np.float32)
    if style.coarse_noise:
        noise = cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.6
    x = x + noise * style.noise * (1 + light.night)
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
