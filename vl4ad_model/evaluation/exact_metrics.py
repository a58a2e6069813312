"""Fishyscapes' metrics: exact, over all pixels of all frames pooled, ties collapsed.

Recall changes only at scores of anomalous pixels, so those thresholds alone make up AP and FPR95, and the ROC curve is a straight
line between them. Two rounds over the frames therefore need no pool of all pixels: the first collects the distinct anomalous
scores, the second counts where among them the ordinary pixels lie. Both results are integers and add up in any order.

Memory: 28 bytes for each distinct score of an anomalous pixel, 35 while they are merged, and 4 in each process that counts. This
is the one metric whose memory grows with the pixels; the definition forbids otherwise, since every such score is a threshold.
Equals `bdl-benchmark`'s `get_metrics` (hermannsblum/bdl-benchmark).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.evaluation.scored_pixels import ScoredPixels

EVERY = slice(None)
_CHUNK = 1 << 20


class AnomalousScores(NamedTuple):
    """First round: the distinct scores of anomalous pixels, (T,) float32 ascending, and how many pixels have each, (T,) int64."""

    distinct: np.ndarray
    pixels: np.ndarray


class OrdinaryCounts(NamedTuple):
    """Second round: where ordinary pixels lie among T thresholds. A pixel's rank is how many thresholds it reaches, 0..T.

    Attributes:
        thresholds: T.
        ranks, pixels: ranks that occur, and how many pixels have each, (R,) int64; `EVERY` = pixels of every rank, (T + 1,).
        tied_ranks, tied: likewise of those pixels whose score is that of the last threshold they reach.
        total: all of them.
    """

    thresholds: int
    ranks: np.ndarray | slice
    pixels: np.ndarray
    tied_ranks: np.ndarray | slice
    tied: np.ndarray
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
    """One partial result from many, of which only some are held at a time."""
    merged, waiting, size = AnomalousScores(np.empty(0, np.float32), np.empty(0, np.int64)), [], 0
    for part in parts:
        waiting.append(part)
        size += part.distinct.size
        if size > max(_CHUNK, merged.distinct.size // 8):
            merged, waiting, size = _with(merged, waiting), [], 0
    return _with(merged, waiting)


def _with(merged: AnomalousScores, parts: list[AnomalousScores]) -> AnomalousScores:
    """More scores put among those that there are, without sorting these again."""
    if not parts:
        return merged
    distinct, place = np.unique(np.concatenate([part.distinct for part in parts]), return_inverse=True)
    pixels = np.zeros(distinct.size, np.int64)
    np.add.at(pixels, place, np.concatenate([part.pixels for part in parts]))
    if not merged.distinct.size:
        return AnomalousScores(distinct, pixels)
    places = np.searchsorted(merged.distinct, distinct)
    known = merged.distinct[np.minimum(places, merged.distinct.size - 1)] == distinct
    merged.pixels[places[known]] += pixels[known]
    new = places[~known]
    all_scores = np.insert(merged.distinct, new, distinct[~known])
    return AnomalousScores(all_scores, np.insert(merged.pixels, new, pixels[~known]))


def count_ordinary(pixels: ScoredPixels, thresholds: np.ndarray) -> OrdinaryCounts:
    """Second round, one frame; `thresholds` are the distinct anomalous scores of ALL frames."""
    ordinary, count = pixels.ordinary, thresholds.size
    if count > ordinary.size:
        # More thresholds than pixels, as in large sets: each pixel is looked for, not each threshold.
        scores = ordinary.sorted()
        ranks = np.searchsorted(thresholds, scores, side="right")
        tied = thresholds[ranks - 1] == scores  # at rank 0 this compares with the highest, which is higher
        return OrdinaryCounts(count, *_runs(ranks), *_runs(ranks[tied]), ordinary.size)
    below = ordinary.count_below(thresholds)
    at_most = ordinary.count_below(thresholds, or_equal=True)
    per_rank = np.diff(below, prepend=0, append=ordinary.size)
    return OrdinaryCounts(count, EVERY, per_rank, EVERY, np.concatenate([[0], at_most - below]), ordinary.size)


def _runs(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each value once, and how often it occurs."""
    first = np.flatnonzero(np.diff(ascending, prepend=-1))
    return ascending[first], np.diff(first, append=ascending.size)


def merge_ordinary(parts: Iterable[OrdinaryCounts]) -> OrdinaryCounts:
    """One partial result from many; only the sum is held."""
    parts = iter(parts)
    first, second = next(parts, None), next(parts, None)
    if first is None:
        return OrdinaryCounts(0, EVERY, np.zeros(1, np.int64), EVERY, np.zeros(1, np.int64), 0)
    if second is None:
        return first
    total, pixels, tied = 0, np.zeros(first.thresholds + 1, np.int64), np.zeros(first.thresholds + 1, np.int64)
    for part in itertools.chain((first, second), parts):
        pixels[part.ranks] += part.pixels
        tied[part.tied_ranks] += part.tied
        total += part.total
    return OrdinaryCounts(first.thresholds, EVERY, pixels, EVERY, tied, total)


def exact_metrics(anomalous: AnomalousScores, ordinary: OrdinaryCounts) -> ExactMetrics:
    """The benchmark's numbers from the counts of all frames."""
    positives, negatives = int(anomalous.pixels.sum()), ordinary.total
    nan = float("nan")
    if positives == 0:
        return ExactMetrics(nan, nan, nan)
    per_rank, tied_per_rank = (
        _dense(ordinary.ranks, ordinary.pixels, ordinary),
        _dense(ordinary.tied_ranks, ordinary.tied, ordinary),
    )
    found = false = 0
    average_precision = area = 0.0
    fpr95 = nan
    # From the strictest threshold to the most lenient one, some at a time.
    for stop in range(anomalous.pixels.size, 0, -_CHUNK):
        some = slice(max(0, stop - _CHUNK), stop)
        gained = anomalous.pixels[some][::-1]
        true_positives = found + np.cumsum(gained)
        false_positives = false + np.cumsum(per_rank[1:][some][::-1])
        found, false = int(true_positives[-1]), int(false_positives[-1])
        average_precision += float(np.sum(gained / positives * (true_positives / (true_positives + false_positives))))
        if negatives == 0:
            continue
        at_recall = int(np.searchsorted(true_positives / positives, 0.95))
        if math.isnan(fpr95) and at_recall < gained.size:
            fpr95 = float(false_positives[at_recall] / negatives)
        # Area: pairs ranked right, a tie counts one half (the trapezoid over a point where both rates rise).
        tied = tied_per_rank[1:][some][::-1]
        right = gained * (negatives - false_positives + tied * 0.5)
        area += float(np.sum(right / positives / negatives))
    return ExactMetrics(average_precision, fpr95, area if negatives else nan)


def _dense(ranks: np.ndarray | slice, pixels: np.ndarray, of: OrdinaryCounts) -> np.ndarray:
    """Pixels of every rank, (T + 1,) int64."""
    if isinstance(ranks, slice):
        return pixels
    found = np.zeros(of.thresholds + 1, np.int64)
    found[ranks] = pixels
    return found


def exact_metrics_of(frames: Iterable[ScoredPixels]) -> ExactMetrics:
    """Both rounds over frames that are all in memory."""
    frames = list(frames)
    anomalous = merge_anomalous(map(count_anomalous, frames))
    return exact_metrics(anomalous, merge_ordinary(count_ordinary(frame, anomalous.distinct) for frame in frames))
