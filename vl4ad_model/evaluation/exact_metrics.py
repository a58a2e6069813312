"""Fishyscapes' metrics: exact, over all pixels of all frames pooled, ties collapsed.

Every threshold is a score that occurs, so all scores must be kept until the end: 4 bytes for each pixel that counts (8 MB for
a frame of 1024 x 2048). This is the one metric whose memory grows with the number of pixels; the definition forbids otherwise.
Equals `bdl-benchmark`'s `get_metrics` (hermannsblum/bdl-benchmark).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vl4ad_model.evaluation.scored_pixels import ScoredPixels


@dataclass(frozen=True)
class ExactMetrics:
    """Average precision, false-positive rate at 95 % recall, area under the ROC curve; all 0..1, NaN where undefined."""

    average_precision: float
    fpr95: float
    auroc: float


def pool_pixels(frames: Iterable[ScoredPixels]) -> ScoredPixels:
    """All frames as one, sorted; their order does not matter."""
    frames = list(frames)
    if not frames:
        return ScoredPixels(np.empty(0, np.float32), np.empty(0, np.float32), np.dtype(np.float32))
    anomalous = np.concatenate([frame.anomalous for frame in frames])
    ordinary = np.concatenate([frame.ordinary for frame in frames])
    anomalous.sort()
    ordinary.sort()
    return ScoredPixels(anomalous, ordinary, np.dtype(np.float32))


def exact_metrics(pooled: ScoredPixels) -> ExactMetrics:
    """Exact metrics of sorted pixels.

    Recall changes only at scores of anomalous pixels, so those thresholds alone make up AP and FPR95, and the ROC curve is a
    straight line between them: the ordinary pixels need only be counted between neighbours.
    """
    anomalous, ordinary = pooled.anomalous, pooled.ordinary
    positives, negatives = anomalous.size, ordinary.size
    nan = float("nan")
    if positives == 0:
        return ExactMetrics(nan, nan, nan)
    thresholds, first = np.unique(anomalous, return_index=True)
    # From the strictest threshold to the most lenient one.
    true_positives = (positives - first)[::-1]
    false_positives = (negatives - np.searchsorted(ordinary, thresholds, side="left"))[::-1]
    gained = np.diff(true_positives, prepend=0)
    average_precision = float(np.sum(gained / positives * (true_positives / (true_positives + false_positives))))
    if negatives == 0:
        return ExactMetrics(average_precision, nan, nan)
    at_recall = int(np.searchsorted(true_positives / positives, 0.95))
    # Area: pairs ranked right, a tie counts one half (the trapezoid over a point where both rates rise).
    above = (negatives - np.searchsorted(ordinary, thresholds, side="right"))[::-1]
    tied = false_positives - above
    right = gained * (negatives - false_positives + tied * 0.5)
    return ExactMetrics(
        average_precision, float(false_positives[at_recall] / negatives), float(np.sum(right / positives / negatives))
    )
