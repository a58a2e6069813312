"""The pixels of one frame that count: checked, and split into anomalous and ordinary once for every metric."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.ordered_scores import OrderedScores

ORDINARY, ANOMALY, IGNORE = 0, 1, 255


class ScoredPixels(NamedTuple):
    """Scores inside the region of interest (label != 255).

    Attributes:
        anomalous: P float32 scores of the pixels labelled 1.
        ordinary: N float32 scores of the pixels labelled 0.
        stored_dtype: the type the scores were saved in. The benchmark computes with float16 scores as stored, so
            interpolation between two of them and the comparison with a threshold round the way that type does.
    """

    anomalous: OrderedScores
    ordinary: OrderedScores
    stored_dtype: np.dtype


def check_frame(scores: np.ndarray, labels: np.ndarray, frame: str) -> None:
    """Refuse arrays that are no pair of score map and label map.

    Raises:
        EvaluationError: wrong shape, type or label value; names the frame.
    """
    if scores.ndim != 2 or scores.size == 0:
        raise EvaluationError(f"{frame}: scores have shape {scores.shape}, a map (height, width) is needed")
    if scores.dtype.kind not in "f":
        raise EvaluationError(f"{frame}: scores are {scores.dtype}, floating-point numbers are needed")
    if labels.shape != scores.shape:
        raise EvaluationError(
            f"{frame}: scores are {_size(scores)} but labels are {_size(labels)}: both must be of the image's size"
        )
    if labels.dtype != np.uint8:
        raise EvaluationError(f"{frame}: labels are {labels.dtype}, 8-bit values 0, 1 and 255 are needed")


def split_pixels(scores: np.ndarray, labels: np.ndarray, frame: str = "frame") -> ScoredPixels:
    """Split the pixels of a frame.

    Args:
        scores: (H, W) float16, float32 or float64 (rounded to float32), higher = more anomalous, any range.
        labels: (H, W) uint8: 0 ordinary, 1 anomaly, 255 ignore.
        frame: name for error messages.

    Raises:
        EvaluationError: the arrays do not fit, a label is none of 0, 1, 255, or a score that counts is NaN or infinite.
    """
    check_frame(scores, labels, frame)
    stored_dtype = np.dtype(np.float16 if scores.dtype == np.float16 else np.float32)
    with np.errstate(over="ignore"):
        values = scores.astype(np.float32, copy=False)
    anomalous, ordinary = OrderedScores(values[labels == ANOMALY]), OrderedScores(values[labels == ORDINARY])
    if anomalous.size + ordinary.size + np.count_nonzero(labels == IGNORE) != labels.size:
        odd = sorted(set(np.unique(labels).tolist()) - {ORDINARY, ANOMALY, IGNORE})
        raise EvaluationError(f"{frame}: label values {odd[:8]} are none of 0 (ordinary), 1 (anomaly), 255 (ignore)")
    for part in (anomalous, ordinary):
        if not part.finite:
            bad = part.count_not_finite()
            raise EvaluationError(f"{frame}: {bad} scores are NaN or infinite where the label is not ignore: they cannot be ranked")
    return ScoredPixels(anomalous, ordinary, stored_dtype)


def as_stored(threshold: float, dtype: np.dtype) -> np.ndarray:
    """A threshold as scores of this type are compared with it, without dimensions; beyond its range it is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(threshold).astype(dtype)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}" if array.ndim == 2 else f"of shape {array.shape}"
