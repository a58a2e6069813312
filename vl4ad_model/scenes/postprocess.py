"""From linear light to what a camera delivers: exposure, tone, blur, rain, noise and JPEG."""

from __future__ import annotations

import numpy as np

from vl4ad_model.scenes.world import Light


def develop(image: np.ndarray, light: Light, r: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32 linear light to uint8 RGB."""
    import cv2

    level = float(np.median(image)) + 1e-3
    auto = np.clip(0.28 / level, 0.6, 3.0) ** 0.6
    x = image * auto * np.exp(r.normal(0, 0.18))
    if r.random() < 0.25:  # bloom
        x = x + 0.25 * cv2.GaussianBlur(np.clip(x - 0.8, 0, 4), (0, 0), 6)
    if r.random() < 0.5:
        x = x * (1.0 + 0.15 * x) / (1.0 + x * 0.75)  # filmic shoulder
    x = np.clip(x, 0, 1) ** (1 / r.uniform(1.9, 2.5))
    cast = x.mean(axis=(0, 1))
    x = x * (cast.mean() / cast) ** 0.2 * np.exp(r.normal(0, 0.03, 3))  # white balance, as far as cameras get it right
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * r.uniform(0.55, 1.35)
    x = 0.5 + (x - 0.5) * r.uniform(0.85, 1.3)
    height, width = x.shape[:2]
    if light.rain:
        streaks = (r.random((height, width)) > 1 - 0.01 * light.rain).astype(np.float32)
        kernel = np.zeros((15, 15), np.float32)
        cv2.line(kernel, (7 + int(r.integers(-3, 4)), 0), (7, 14), 1.0, 1)
        x = x + 0.35 * cv2.filter2D(streaks, -1, kernel / 5)[..., None]
    if r.random() < 0.25:  # motion or focus blur
        length = int(r.integers(2, 6))
        kernel = np.zeros((2 * length + 1,) * 2, np.float32)
        angle = r.uniform(0, np.pi)
        dx, dy = np.cos(angle) * length, np.sin(angle) * length
        cv2.line(kernel, (round(length - dx / 2), round(length - dy / 2)), (round(length + dx / 2), round(length + dy / 2)), 1.0)
        x = cv2.filter2D(x.astype(np.float32), -1, kernel / kernel.sum())
    vignette = 1 - r.uniform(0, 0.2) * (
        np.linspace(-1, 1, height)[:, None] ** 2 + np.linspace(-1, 1, width)[None] ** 2
    ).astype(np.float32)  # fmt: skip
    x = x * vignette[..., None]
    noise = r.normal(0, 1, x.shape).astype(np.float32)
    if r.random() < 0.5:
        noise = cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.6
    x = x + noise * r.uniform(0.002, 0.03) * r.uniform(0.3, 1) * (1 + light.night)
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
