"""Label maps as files and messages hold them, turned into what the metrics read. Values that mean nothing are an error.

Two kinds exist. "anomaly": 0 ordinary, 1 anomaly, 255 ignore (SegmentMeIfYouCan, Fishyscapes), or 0 and 2 (RoadAnomaly).
"classes": 0..K-1 known classes, 255 ignore, 100 and above a hazard (`vl4ad scenes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.scored_pixels import ANOMALY, IGNORE, ORDINARY

KINDS = ("anomaly", "classes")
FIRST_HAZARD = 100


class LabelMap(NamedTuple):
    """Ground truth of a frame.

    Attributes:
        anomaly: (H, W) uint8: 0 ordinary, 1 anomaly, 255 ignore.
        classes: (H, W) uint8: known classes, 255 = not counted (ignored, or a hazard); None where only anomalies are labelled.
    """

    anomaly: np.ndarray
    classes: np.ndarray | None


def interpret(values: np.ndarray, kind: str, class_count: int, what: str) -> LabelMap:
    """Turn raw label values into a `LabelMap`.

    Args:
        values: (H, W) uint8.
        kind: "anomaly" or "classes".
        class_count: K, for "classes".
        what: the file or frame, for error messages.

    Raises:
        EvaluationError: another shape, type or value.
    """
    if values.ndim != 2 or values.dtype != np.uint8:
        raise EvaluationError(f"{what}: labels must be one 8-bit channel, not {values.dtype} of shape {values.shape}")
    counts = np.bincount(values.ravel(), minlength=256)
    present = set(np.flatnonzero(counts).tolist())
    if kind == "classes":
        odd = sorted(value for value in present if class_count <= value < FIRST_HAZARD)
        if odd:
            raise EvaluationError(
                f"{what}: label values {odd[:8]} are neither a class (0..{class_count - 1}), a hazard ({FIRST_HAZARD}..254) nor 255"
            )
        table = np.full(256, ANOMALY, np.uint8)
        table[:class_count], table[255] = ORDINARY, IGNORE
        known = np.full(256, 255, np.uint8)
        known[:class_count] = np.arange(class_count)
        return LabelMap(table[values], known[values])
    if present <= {0, 1, 255}:
        return LabelMap(values, None)
    if present <= {0, 2, 255}:
        return LabelMap(np.where(values == 2, np.uint8(ANOMALY), values), None)
    odd = sorted(present - {0, 1, 255}) if present & {1} else sorted(present - {0, 2, 255})
    hint = "; if they are classes and hazards, pass --label-values classes" if len(present) > 3 else ""
    raise EvaluationError(f"{what}: label values {odd[:8]} are none of 0, 1, 255 (or 0, 2, 255 as in RoadAnomaly){hint}")


def looks_like_classes(values: np.ndarray) -> bool:
    """Whether a raw label map can only be of the "classes" kind."""
    return bool(np.isin(values, (0, 1, 2, 255), invert=True).any())


def read_label_values(path: Path) -> np.ndarray:
    """(H, W) uint8 of a label image, exactly as stored: grey or palette, never rescaled.

    Raises:
        EvaluationError: no such file, damaged, or not one 8-bit channel.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise EvaluationError(f"{path}: labels must be one 8-bit channel, this image has mode {image.mode}")
            return np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.uint8)
    except FileNotFoundError:
        raise EvaluationError(f"no labels at {path}") from None
    except UnidentifiedImageError:
        raise EvaluationError(f"{path} is not an image that can be read") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise EvaluationError(f"{path} is damaged or cannot be read ({error})") from None
