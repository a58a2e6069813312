"""Label maps as files and messages hold them, turned into what the metrics read. Values that mean nothing are an error.

Two kinds exist. "anomaly": 0 ordinary, 1 anomaly, 255 ignore (SegmentMeIfYouCan, Fishyscapes), or 0 and 2 (RoadAnomaly).
"classes": 0..K-1 known classes, 255 ignore, 100 and above a hazard (`vl4ad scenes`). What those hazards are says a JSON file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.scored_pixels import ANOMALY, IGNORE, ORDINARY

KINDS = ("anomaly", "classes")
FIRST_HAZARD = 100
HAZARDS_FILE = "hazards.json"
_LONGEST_NAME = 200
_HAZARDS = frozenset(map(str, range(FIRST_HAZARD, IGNORE)))


class LabelMap(NamedTuple):
    """Ground truth of a frame.

    Attributes:
        anomaly: (H, W) uint8: 0 ordinary, 1 anomaly, 255 ignore.
        classes: (H, W) uint8: known classes, 255 = not counted (ignored, or a hazard); None where only anomalies are labelled.
        hazards: (H, W) uint8: at anomalies the hazard's label, from 100 on; None where only anomalies are labelled.
        hazard_names: names by label; a hazard may have none.
    """

    anomaly: np.ndarray
    classes: np.ndarray | None
    hazards: np.ndarray | None = None
    hazard_names: Mapping[int, str] = {}


def interpret(
    values: np.ndarray, kind: str, class_count: int, what: str, hazard_names: Mapping[int, str] | None = None
) -> LabelMap:
    """Turn raw label values into a `LabelMap`.

    Args:
        values: (H, W) uint8.
        kind: "anomaly" or "classes".
        class_count: K, for "classes".
        what: the file or frame, for error messages.
        hazard_names: names by label, for "classes".

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
        return LabelMap(table[values], known[values], values, hazard_names or {})
    if present <= {0, 1, 255}:
        return LabelMap(values, None)
    if present <= {0, 2, 255}:
        return LabelMap(np.where(values == 2, np.uint8(ANOMALY), values), None)
    odd = sorted(present - {0, 1, 255}) if present & {1} else sorted(present - {0, 2, 255})
    hint = "; if they are classes and hazards, pass --label-values classes" if len(present) > 3 else ""
    raise EvaluationError(f"{what}: label values {odd[:8]} are none of 0, 1, 255 (or 0, 2, 255 as in RoadAnomaly){hint}")


def ignoring(labels: LabelMap, ignored: np.ndarray) -> LabelMap:
    """Ground truth that does not count where `ignored`, (H, W) bool."""

    def without(values: np.ndarray) -> np.ndarray:
        return np.where(ignored, np.uint8(IGNORE), values)

    classes, hazards = (None if values is None else without(values) for values in (labels.classes, labels.hazards))
    return labels._replace(anomaly=without(labels.anomaly), classes=classes, hazards=hazards)


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
            return np.asarray(image).astype(np.uint8)
    except FileNotFoundError:
        raise EvaluationError(f"no labels at {path}") from None
    except UnidentifiedImageError:
        raise EvaluationError(f"{path} is not an image that can be read") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise EvaluationError(f"{path} is damaged or cannot be read ({error})") from None


def read_hazard_names(path: Path, *, whole_set: bool = True) -> dict[int, str]:
    """What the labels from 100 on are, as `vl4ad scenes` writes it: {"hazards": {"100": {"name": "tyre"}, "101": "sofa"}}.

    Args:
        path: `hazards.json` of a whole set, or the JSON file of one frame.
        whole_set: False = a frame's file, which may be about other things and say nothing of hazards.

    Returns:
        names by label, blanks collapsed.

    Raises:
        EvaluationError: it cannot be read, or an entry means nothing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_doubles)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not JSON ({str(error).splitlines()[0]})") from None
    hazards = content.get("hazards", None if whole_set else {}) if isinstance(content, dict) else None
    if not isinstance(hazards, dict):
        raise EvaluationError(
            f'{path} does not say what the hazards are: it needs {{"hazards": {{"{FIRST_HAZARD}": "tyre", ...}}}}'
        )
    names = {}
    for label, entry in hazards.items():
        if label not in _HAZARDS:
            raise EvaluationError(f"{path}: '{label:.20}' is no hazard's label: they are {FIRST_HAZARD}..{IGNORE - 1}")
        name = entry.get("name") if isinstance(entry, dict) else entry
        name = " ".join(name.split()) if isinstance(name, str) else ""
        if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise EvaluationError(f"{path}: hazard {label} has no usable name: {entry!r:.60}")
        names[int(label)] = name
    return names


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands twice JSON would silently take the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"'{Counter(key for key, _ in pairs).most_common(1)[0][0]:.20}' stands twice in one object")
    return content
