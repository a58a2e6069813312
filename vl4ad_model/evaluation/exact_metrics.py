"""Fishyscapes' metrics: exact, over all pixels of all frames pooled, ties collapsed.

Recall changes only at scores of anomalous pixels, so those thresholds alone make up AP and FPR95, and the ROC curve is a straight
line between them. Two rounds over the frames therefore need no pool of all pixels: the first collects the distinct anomalous
scores, the second counts the ordinary pixels above and at each of them. Both results are integers and add up in any order.

Memory: 24 bytes for each distinct score of an anomalous pixel. This is the one metric whose memory grows with the number of
pixels; the definition forbids otherwise, since every such score is a threshold.
Equals `bdl-benchmark`'s `get_metrics` (hermannsblum/bdl-benchmark).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.evaluation.scored_pixels import ScoredPixels


class AnomalousScores(NamedTuple):
    """First round: the distinct scores of anomalous pixels, (T,) float32 ascending, and how many pixels have each, (T,) int64."""

    distinct: np.ndarray
    pixels: np.ndarray


class OrdinaryCounts(NamedTuple):
    """Second round: ordinary pixels at or above, and strictly above, each of T thresholds, (T,) int64; and all of them."""

    at_least: np.ndarray
    above: np.ndarray
    total: int


@dataclass(frozen=True)
class ExactMetrics:
    """Average precision, false-positive rate at 95 % recall, area under the ROC curve; all 0..1, NaN where undefined."""

    average_precision: float
    fpr95: float
    auroc: float


def count_anomalous(pixels: ScoredPixels) -> AnomalousScores:
    """First round, one frame."""
    return AnomalousScores(*np.unique(pixels.anomalous.sorted(), return_counts=True))


def merge_anomalous(parts: Iterable[AnomalousScores]) -> AnomalousScores:
    """One partial result from many."""
    parts = list(parts)
    if not parts:
        return AnomalousScores(np.empty(0, np.float32), np.empty(0, np.int64))
    distinct, place = np.unique(np.concatenate([part.distinct for part in parts]), return_inverse=True)
    pixels = np.zeros(distinct.size, np.int64)
    np.add.at(pixels, place, np.concatenate([part.pixels for part in parts]))
    return AnomalousScores(distinct, pixels)


def count_ordinary(pixels: ScoredPixels, thresholds: np.ndarray) -> OrdinaryCounts:
    """Second round, one frame; `thresholds` are the distinct anomalous scores of ALL frames."""
    ordinary = pixels.ordinary
    return OrdinaryCounts(
        ordinary.size - ordinary.count_below(thresholds),
        ordinary.size - ordinary.count_below(thresholds, or_equal=True),
        ordinary.size,
    )


def merge_ordinary(parts: Iterable[OrdinaryCounts]) -> OrdinaryCounts:
    """One partial result from many; only the sum is held."""
    at_least = above = np.zeros(0, np.int64)
    total, first = 0, True
    for part in parts:
        at_least, above = (part.at_least, part.above) if first else (at_least + part.at_least, above + part.above)
        total, first = total + part.total, False
    return OrdinaryCounts(at_least, above, total)


def exact_metrics(anomalous: AnomalousScores, ordinary: OrdinaryCounts) -> ExactMetrics:
    """The benchmark's numbers from the counts of all frames."""
    positives, negatives = int(anomalous.pixels.sum()), ordinary.total
    nan = float("nan")
    if positives == 0:
        return ExactMetrics(nan, nan, nan)
    # From the strictest threshold to the most lenient one.
    gained = anomalous.pixels[::-1]
    true_positives = np.cumsum(gained)
    false_positives, above = ordinary.at_least[::-1], ordinary.above[::-1]
    average_precision = float(np.sum(gained / positives * (true_positives / (true_positives + false_positives))))
    if negatives == 0:
        return ExactMetrics(average_precision, nan, nan)
    at_recall = int(np.searchsorted(true_positives / positives, 0.95))
    # Area: pairs ranked right, a tie counts one half (the trapezoid over a point where both rates rise).
    tied = false_positives - above
    right = gained * (negatives - false_positives + tied * 0.5)
    return ExactMetrics(
        average_precision, float(false_positives[at_recall] / negatives), float(np.sum(right / positives / negatives))
    )


def exact_metrics_of(frames: Iterable[ScoredPixels]) -> ExactMetrics:
    """Both rounds over frames that are all in memory."""
    frames = list(frames)
    anomalous = merge_anomalous(map(count_anomalous, frames))
    return exact_metrics(anomalous, merge_ordinary(count_ordinary(frame, anomalous.distinct) for frame in frames))
