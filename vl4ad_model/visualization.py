"""Pictures for people: labels in colour, anomaly as heat, and both over the camera image."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vl4ad_model.segmenter import Segmentation
    from vl4ad_model.vocabulary import Vocabulary


def colorize_labels(labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """(H, W) uint8 ids to (H, W, 3) uint8 RGB in the vocabulary's colours; void is black."""
    return vocabulary.color_table()[labels]


@lru_cache(maxsize=1)
def _heat_table() -> np.ndarray:
    import cv2

    ramp = np.arange(256, dtype=np.uint8)[None]
    return cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[0, :, ::-1].copy()


def _levels(anomaly: np.ndarray) -> np.ndarray:
    """Scores 0..1 to 0..255; published scores are never clipped, pictures are."""
    return (np.clip(anomaly, 0.0, 1.0) * 255).astype(np.uint8)


def anomaly_heatmap(anomaly: np.ndarray) -> np.ndarray:
    """(H, W) float32 scores to (H, W, 3) uint8 RGB, perceptually uniform (inferno), always 0 = black to 1 = bright yellow."""
    return _heat_table()[_levels(anomaly)]


def overlay(rgb: np.ndarray, result: Segmentation, *, label_opacity: float = 0.45) -> np.ndarray:
    """Labels tinted over the image, fading into the anomaly's heat where the score is high; hazards keep an outline.

    Args:
        rgb: (H, W, 3) uint8; resized to the maps where they differ.
        result: the maps.
        label_opacity: 0..1, how much of the class colour is mixed in.

    Returns:
        (H, W, 3) uint8 RGB of the maps' size.
    """
    import cv2

    height, width = result.labels.shape
    if rgb.shape[:2] != (height, width):
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    tinted = cv2.addWeighted(rgb, 1 - label_opacity, colorize_labels(result.labels, result.vocabulary), label_opacity, 0)
    # Heat comes in from a score of 0.3 and covers from 0.8 on; below, the classes stay readable.
    weight = (np.clip((result.anomaly - 0.3) / 0.5, 0, 1) * 0.85 * 255).astype(np.uint8)
    heat = anomaly_heatmap(result.anomaly)
    alpha = cv2.merge((weight, weight, weight))
    mixed = cv2.add(cv2.multiply(tinted, 255 - alpha, scale=1 / 255), cv2.multiply(heat, alpha, scale=1 / 255))
    for index in range(result.vocabulary.known_count, result.vocabulary.known_count + result.vocabulary.hazard_count):
        inside = (result.labels == index).astype(np.uint8)
        if not inside.any():
            continue
        contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        color = result.vocabulary.hazards[index - result.vocabulary.known_count].color
        cv2.drawContours(mixed, contours, -1, color, max(1, round(height / 300)), cv2.LINE_AA)
    return mixed
