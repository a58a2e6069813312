"""Mean intersection over union of class labels, from one confusion matrix that adds up over frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vl4ad_model.errors import EvaluationError


@dataclass(frozen=True)
class LabelMetrics:
    """How well known classes are named.

    Attributes:
        iou: (K,) float64, TP / (TP + FP + FN) per class; NaN where a class is neither there nor predicted.
        miou: mean over the classes that are there or predicted, NaN where none is (Cityscapes' rule); one that is only predicted
            counts 0.
        accuracy: share of counted pixels with the right class, NaN where none counts.
        pixels: (K,) int64, ground-truth pixels per class.
    """

    iou: np.ndarray
    miou: float
    accuracy: float
    pixels: np.ndarray


def confusion_matrix(predicted: np.ndarray, truth: np.ndarray, class_count: int, frame: str = "frame") -> np.ndarray:
    """Count the pixels of one frame.

    Args:
        predicted: (H, W) uint8, known classes 0..K-1; anything else (hazards, void) is no known class.
        truth: (H, W) uint8, 0..K-1; 255 is not counted.
        class_count: K.
        frame: name for error messages.

    Returns:
        (K, K + 1) int64, [truth, predicted]; the last column is "no known class". Matrices of frames add up.

    Raises:
        EvaluationError: the maps differ in size, or a truth value is neither a class nor 255.
    """
    if predicted.shape != truth.shape:
        raise EvaluationError(f"{frame}: predicted labels have shape {predicted.shape}, the ground truth {truth.shape}")
    counted = truth != 255
    wrong = counted & (truth >= class_count)
    if wrong.any():
        raise EvaluationError(f"{frame}: class {int(truth[wrong][0])} in the labels, the vocabulary has {class_count} classes")
    columns = class_count + 1
    pairs = truth[counted].astype(np.int64) * columns + np.minimum(predicted[counted], class_count)
    return np.bincount(pairs, minlength=class_count * columns).reshape(class_count, columns)


def label_metrics(confusion: np.ndarray) -> LabelMetrics:
    """IoU per class from the summed confusion matrix."""
    class_count = confusion.shape[0]
    right = np.diagonal(confusion).astype(np.float64)
    pixels = confusion.sum(axis=1)
    union = pixels + confusion[:, :class_count].sum(axis=0) - right
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = right / union
        accuracy = float(right.sum() / np.float64(pixels.sum()))
    counts = union > 0
    return LabelMetrics(iou, float(iou[counts].mean()) if counts.any() else float("nan"), accuracy, pixels)
