"""SegmentMeIfYouCan's component metrics: are whole obstacles found, and are whole detections true?

Everything follows from one table per frame: how many pixels each ground-truth component shares with each predicted one.
Equals the benchmark's `SegEval` (SegmentMeIfYouCan/road-anomaly-benchmark), which visits the image once per component instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.evaluation.scored_pixels import ANOMALY, IGNORE, as_stored, check_frame

OVERLAPS = np.linspace(0.25, 0.75, 11)
"""The thresholds tau on sIoU and PPV."""


@dataclass(frozen=True)
class Track:
    """Components of fewer pixels than these are no components."""

    name: str
    minimum_predicted: int
    minimum_truth: int


TRACKS = {"anomaly": Track("anomaly", 500, 100), "obstacle": Track("obstacle", 50, 10)}


class Components(NamedTuple):
    """What the components of any number of frames scored, a partial result.

    Attributes:
        siou: (G,) float64, one per ground-truth component, 0..1.
        ppv: (D,) float64, one per predicted component, 0..1: its share on any ground truth.
    """

    siou: np.ndarray
    ppv: np.ndarray


@dataclass(frozen=True)
class ComponentMetrics:
    """The benchmark's component numbers. NaN where undefined.

    Attributes:
        siou_gt_mean: over all ground-truth components of all frames.
        ppv_mean: over all predicted components of all frames.
        f1_mean: mean of the 11 F1.
        overlaps, true_positives, false_negatives, false_positives, f1: (11,), per tau = 0.25, 0.30, ..., 0.75.
    """

    siou_gt_mean: float
    ppv_mean: float
    f1_mean: float
    ground_truth: int
    predicted: int
    overlaps: np.ndarray
    true_positives: np.ndarray
    false_negatives: np.ndarray
    false_positives: np.ndarray
    f1: np.ndarray


def match_components(scores: np.ndarray, labels: np.ndarray, threshold: float, track: Track, frame: str = "frame") -> Components:
    """Compare the components of one frame.

    Args:
        scores: (H, W) float; a pixel is predicted anomalous if its score > threshold, both in the scores' own type (the
            benchmark's rule: a float64 threshold is rounded to float32, or float16, before it is compared).
        labels: (H, W) uint8: 0 ordinary, 1 anomaly, 255 ignore.
        threshold: one for the whole data set.
        track: the limits.
        frame: name for error messages.

    Raises:
        EvaluationError: the arrays do not fit.
    """
    check_frame(scores, labels, frame)
    if scores.dtype == np.float64:
        scores = scores.astype(np.float32)
    with np.errstate(invalid="ignore"):
        called = scores > as_stored(threshold, scores.dtype)
    truth = labels == ANOMALY
    # Ignored pixels leave the prediction before it is split into components ...
    called &= labels != IGNORE
    predicted, predicted_sizes = _label(called)
    truths, truth_sizes = _label(truth)
    # ... and predictions are filtered before small ground truth is taken out of them, and not again afterwards.
    keep_predicted = predicted_sizes >= track.minimum_predicted
    keep_predicted[0] = False
    keep_truth = truth_sizes >= track.minimum_truth
    sizes = truth_sizes[1:][keep_truth[1:]]
    # Rows: 0 = no ground truth, then the components that are kept, last those that count as ignore. The benchmark treats
    # "no ground truth" like a component: it counts as ignore where it has too few pixels.
    row = np.full(truth_sizes.size, sizes.size + 1)
    row[keep_truth] = np.arange(1, sizes.size + 1) if not keep_truth[0] else np.arange(sizes.size + 1)
    column = np.cumsum(keep_predicted) - 1
    pixels = np.flatnonzero(keep_predicted[predicted])
    columns = int(keep_predicted.sum())
    pairs = row[truths.ravel()[pixels]] * columns + column[predicted.ravel()[pixels]]
    shared = np.bincount(pairs, minlength=(sizes.size + 2) * columns).reshape(sizes.size + 2, columns)[:-1]
    shared = shared[:, shared.any(axis=0)]
    on_truth, area = shared[1:].sum(axis=0), shared.sum(axis=0)
    return Components(_siou(shared[1:], sizes, area, on_truth), on_truth / area)


def _siou(shared: np.ndarray, sizes: np.ndarray, area: np.ndarray, on_truth: np.ndarray) -> np.ndarray:
    """|k and P| / (|k| + |P| - |k and P| - A): P is the union of what touches k, A what of P lies on other ground truth."""
    touches = (shared > 0).astype(np.int64)
    inside = shared.sum(axis=1)
    union_area, union_on_truth = touches @ area, touches @ on_truth
    elsewhere = union_on_truth - inside
    return inside / (sizes + union_area - inside - elsewhere)


def _label(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) int32 ids of the 8-connected components, 0 = none, and the pixels of each id."""
    import cv2

    count, ids = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return ids, np.bincount(ids.ravel(), minlength=count)


def merge_components(parts: Iterable[Components]) -> Components:
    """One partial result from many."""
    parts = list(parts)
    if not parts:
        return Components(np.empty(0), np.empty(0))
    return Components(np.concatenate([part.siou for part in parts]), np.concatenate([part.ppv for part in parts]))


def component_metrics(components: Components) -> ComponentMetrics:
    """The benchmark's numbers from the components of all frames; the order of the frames does not matter, to the last bit."""
    siou, ppv = components.siou, components.ppv
    true_positives = np.array([np.count_nonzero(siou >= overlap) for overlap in OVERLAPS])
    false_negatives = siou.size - true_positives
    false_positives = np.array([np.count_nonzero(ppv < overlap) for overlap in OVERLAPS])
    with np.errstate(invalid="ignore"):
        f1 = 2 * true_positives / (2 * true_positives + false_negatives + false_positives).astype(np.float64)
    return ComponentMetrics(
        siou_gt_mean=_mean(siou),
        ppv_mean=_mean(ppv),
        f1_mean=float(np.mean(f1)),
        ground_truth=int(siou.size),
        predicted=int(ppv.size),
        overlaps=OVERLAPS,
        true_positives=true_positives,
        false_negatives=false_negatives,
        false_positives=false_positives,
        f1=f1,
    )


def _mean(values: np.ndarray) -> float:
    # fsum is exact, so the sum does not depend on the order.
    return math.fsum(values.tolist()) / values.size if values.size else float("nan")
