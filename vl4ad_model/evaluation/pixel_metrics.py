"""SegmentMeIfYouCan's pixel metrics: each frame becomes at most 770 counted bins, which add up in any order.

The numbers equal those of the benchmark's `PixBinaryClass` (SegmentMeIfYouCan/road-anomaly-benchmark) except where several
frames share a threshold: its way of collapsing equal thresholds then depends on the order of the frames, ours does not.

Memory: about 18 KB per frame, since the definition places the bins of each frame by that frame's own quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.evaluation.ordered_scores import OrderedScores
from vl4ad_model.evaluation.scored_pixels import ScoredPixels

QUANTILES = 384
"""Bin edges per frame from the anomalous scores, and as many from the ordinary ones."""


class PixelCounts(NamedTuple):
    """Counted bins of any number of frames, a partial result.

    Attributes:
        thresholds: (M,) float64, ascending, unique. A pixel is called anomalous if its score >= the threshold.
        true_positives, false_positives: (M,) int64, gained by lowering the threshold to this one.
        positives, negatives: anomalous and ordinary pixels.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: int
    negatives: int


NO_COUNTS = PixelCounts(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), 0, 0)


@dataclass(frozen=True)
class Curve:
    """Operating points from the strictest threshold to the most lenient.

    Attributes:
        thresholds: (M,) float64, descending; the first point calls nothing anomalous.
        recall: (M,) true-positive rate, 0..1; NaN without anomalous pixels.
        precision: (M,) 0..1; 1 where nothing is called anomalous.
        false_positive_rate: (M,) 0..1; NaN without ordinary pixels.
        f1: (M,) 0..1; NaN where undefined.
    """

    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    false_positive_rate: np.ndarray
    f1: np.ndarray


@dataclass(frozen=True)
class PixelMetrics:
    """The benchmark's pixel numbers. NaN where undefined (no anomalous or no ordinary pixel in the whole set).

    `best_f1_threshold` is the one the component metrics are computed at; ties go to the strictest threshold.
    """

    auprc: float
    fpr95: float
    auroc: float
    best_f1: float
    best_f1_threshold: float
    tpr95_threshold: float
    positives: int
    negatives: int
    curve: Curve


def count_pixels(pixels: ScoredPixels) -> PixelCounts:
    """The bins of one frame; a frame without any pixel that counts adds nothing."""
    anomalous, ordinary = pixels.anomalous, pixels.ordinary
    parts = [part for part in (anomalous, ordinary) if part.size]
    if not parts:
        return NO_COUNTS
    low = min(part.low for part in parts)
    high = max(part.high for part in parts)
    # The spread is rounded as the stored type rounds, like the benchmark's own.
    with np.errstate(over="ignore"):
        spread = float(pixels.stored_dtype.type(high) - pixels.stored_dtype.type(low))
    margin = max(spread * 1e-2, 1e-2)
    quantiles = [_quantiles(part, pixels.stored_dtype) for part in parts]
    edges = np.unique(np.concatenate([[low - margin, high + margin], *quantiles]))
    # The last edge lies above every score and opens no bin.
    return PixelCounts(edges[:-1], _per_bin(anomalous, edges), _per_bin(ordinary, edges), anomalous.size, ordinary.size)


def _quantiles(scores: OrderedScores, stored_dtype: np.dtype) -> np.ndarray:
    """`numpy.quantile(..., method="linear")`, rounding included."""
    position = (scores.size - 1) * np.linspace(0, 1, min(QUANTILES, scores.size))
    below = np.floor(position).astype(np.int64)
    low, high = scores.at(np.concatenate([below, np.minimum(below + 1, scores.size - 1)])).reshape(2, -1)
    weight = position - below
    with np.errstate(over="ignore"):
        step = (high - low).astype(stored_dtype).astype(np.float64)
    return np.where(weight < 0.5, low + step * weight, high - step * (1 - weight))


def _per_bin(scores: OrderedScores, edges: np.ndarray) -> np.ndarray:
    # float32 scores compare alike with a float64 edge and with that edge rounded up.
    return np.diff(scores.count_below(_round_up(edges)))


def _round_up(edges: np.ndarray) -> np.ndarray:
    """The smallest float32 >= each edge: score >= edge holds for exactly the float32 scores >= it."""
    rounded = edges.astype(np.float32)
    return np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)


def merge_pixel_counts(parts: Iterable[PixelCounts]) -> PixelCounts:
    """One partial result from many; their order does not matter, to the last bit."""
    parts = list(parts)
    if not parts:
        return NO_COUNTS
    thresholds, place = np.unique(np.concatenate([part.thresholds for part in parts]), return_inverse=True)
    true_positives, false_positives = np.zeros(thresholds.size, np.int64), np.zeros(thresholds.size, np.int64)
    np.add.at(true_positives, place, np.concatenate([part.true_positives for part in parts]))
    np.add.at(false_positives, place, np.concatenate([part.false_positives for part in parts]))
    return PixelCounts(
        thresholds,
        true_positives,
        false_positives,
        sum(part.positives for part in parts),
        sum(part.negatives for part in parts),
    )


def pixel_metrics(counts: PixelCounts) -> PixelMetrics:
    """The benchmark's numbers from the counts of all frames."""
    positives, negatives = counts.positives, counts.negatives
    if counts.thresholds.size == 0:
        empty = np.empty(0)
        nan = float("nan")
        return PixelMetrics(nan, nan, nan, nan, nan, nan, 0, 0, Curve(empty, empty, empty, empty, empty))
    # (0, 0) is a point of its own. (P, N) needs none: every score lies above its frame's lowest edge.
    thresholds = np.concatenate([[counts.thresholds[-1] + 1], counts.thresholds[::-1]])
    true_positives = np.concatenate([[0], np.cumsum(counts.true_positives[::-1])])
    false_positives = np.concatenate([[0], np.cumsum(counts.false_positives[::-1])])
    called = true_positives + false_positives
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.divide(true_positives, np.float64(positives))
        false_positive_rate = np.divide(false_positives, np.float64(negatives))
        precision = np.where(called > 0, true_positives / called, 1.0)
        f1 = 2 * true_positives / (called + positives).astype(np.float64)
    curve = Curve(thresholds, recall, precision, false_positive_rate, f1)
    best = int(np.nanargmax(f1))
    at_tpr95 = int(np.searchsorted(recall, 0.95)) if positives else None
    return PixelMetrics(
        auprc=float(np.sum(np.diff(recall) * precision[1:])),
        fpr95=float("nan") if at_tpr95 is None else float(false_positive_rate[at_tpr95]),
        auroc=float(np.trapezoid(recall, false_positive_rate)),
        best_f1=float(f1[best]),
        best_f1_threshold=float(thresholds[best]),
        tpr95_threshold=float("nan") if at_tpr95 is None else float(thresholds[at_tpr95]),
        positives=positives,
        negatives=negatives,
        curve=curve,
    )
