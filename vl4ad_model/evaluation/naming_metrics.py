"""How well hazards are named: what lies below each hazard's name, and which names the pixels of each type of hazard were given.

A type is what the ground truth calls a hazard. A prompt names a type where one of its alternatives is the type's name, but for case
and surplus blanks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.label_files import LabelMap
from vl4ad_model.evaluation.scored_pixels import ANOMALY, IGNORE
from vl4ad_model.vocabulary import Hazard

UNTYPED = "anomaly"
"""The type of all anomalous pixels where labels do not say what they are."""


class NamingCounts(NamedTuple):
    """Pixels by the hazard they were named, in vectors over hazard 0..H-1 and, last, no hazard (a known class or void).

    Attributes:
        ordinary: (H + 1,) int64, ordinary pixels.
        types: the same for each type of the ground truth that has pixels.
    """

    ordinary: np.ndarray
    types: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class NamingMetrics:
    """T types and H hazards. What no pixel tells is NaN.

    Attributes:
        types: first those that a prompt names, in the prompts' order, then the others, those with most pixels first.
        pixels: (T,) int64, ground-truth pixels of each type.
        shares: (T, H + 1) float64, the share of them that each hazard's name took; the last: that got no hazard's name.
        own_types: per hazard, the types that its prompt names.
        iou: (H,) float64, TP / (TP + FP + FN) of the hazard and its types together; NaN where it has none.
        predicted: (H,) int64, pixels that got the hazard's name.
        on_anomaly, on_ordinary: (H,) float64, the share of them on anomalies of any type, and on ordinary ground.
        on_own_types: (H,) float64, the share of them on types that the prompt names; NaN where it has none.
    """

    types: tuple[str, ...]
    pixels: np.ndarray
    shares: np.ndarray
    own_types: tuple[tuple[str, ...], ...]
    iou: np.ndarray
    predicted: np.ndarray
    on_anomaly: np.ndarray
    on_ordinary: np.ndarray
    on_own_types: np.ndarray


def count_names(predicted: np.ndarray, truth: LabelMap, known_count: int, hazard_count: int, frame: str = "frame") -> NamingCounts:
    """Count the pixels of one frame; those that are ignored count nowhere.

    Args:
        predicted: (H, W) uint8: known classes, then from `known_count` on the hazards; anything else is no hazard.
        truth: ground truth; hazards without a name are called after their label, "hazard 103".
        known_count: K.
        hazard_count: how many hazards have a prompt.
        frame: name for error messages.

    Raises:
        EvaluationError: the maps differ in size.
    """
    if predicted.shape != truth.anomaly.shape:
        raise EvaluationError(f"{frame}: predicted labels have shape {predicted.shape}, the ground truth {truth.anomaly.shape}")
    columns = hazard_count + 1
    column = np.full(256, hazard_count, np.uint8)
    column[known_count : known_count + hazard_count] = np.arange(hazard_count)
    # Row 0 is ordinary ground: no hazard has label 0.
    rows = np.where(truth.anomaly == ANOMALY, np.uint8(1) if truth.hazards is None else truth.hazards, np.uint8(0))
    counted = truth.anomaly != IGNORE
    pairs = rows[counted].astype(np.int64) * columns + column[predicted[counted]]
    table = np.bincount(pairs, minlength=256 * columns).reshape(256, columns)
    types: dict[str, np.ndarray] = {}
    for label in (np.flatnonzero(table[1:].any(axis=1)) + 1).tolist():
        name = UNTYPED if truth.hazards is None else truth.hazard_names.get(label, f"hazard {label}")
        types[name] = types.get(name, 0) + table[label]
    return NamingCounts(table[0], types)


def merge_names(parts: Iterable[NamingCounts]) -> NamingCounts:
    """One partial result from one or more, in any order."""
    parts = list(parts)
    types: dict[str, np.ndarray] = {}
    for part in parts:
        for name, pixels in part.types.items():
            types[name] = types.get(name, 0) + pixels
    return NamingCounts(np.sum([part.ordinary for part in parts], axis=0), types)


def naming_metrics(counts: NamingCounts, hazards: Sequence[Hazard]) -> NamingMetrics:
    """The numbers of the summed counts.

    What lies on anomalies of which the labels do not say the type is neither right nor wrong for the IoU.

    Args:
        counts: of all frames.
        hazards: in the order of their labels.
    """
    own_types = tuple(tuple(name for name in sorted(counts.types) if _names(hazard, name)) for hazard in hazards)
    asked = [name for own in own_types for name in own]
    others = sorted(set(counts.types) - set(asked), key=lambda name: (name == UNTYPED, -counts.types[name].sum(), name))
    types = (*asked, *others)
    table = np.array([counts.types[name] for name in types], np.int64).reshape(len(types), len(hazards) + 1)
    pixels = table.sum(axis=1)
    on_anomaly, on_ordinary = table[:, :-1].sum(axis=0), counts.ordinary[:-1]
    predicted = on_anomaly + on_ordinary
    own = np.array([[name in names for names in own_types] for name in types], bool).reshape(len(types), len(hazards))
    typed = np.array([name != UNTYPED for name in types], bool)
    right = (table[:, :-1] * own).sum(axis=0)
    union = pixels @ own + table[typed, :-1].sum(axis=0) + on_ordinary - right
    with np.errstate(invalid="ignore", divide="ignore"):
        shares, iou, precision = table / pixels[:, None], right / union, right / predicted
        on_anomaly, on_ordinary = on_anomaly / predicted, on_ordinary / predicted
    iou, precision = (np.where(own.any(axis=0), values, np.nan) for values in (iou, precision))
    return NamingMetrics(types, pixels, shares, own_types, iou, predicted, on_anomaly, on_ordinary, precision)


def _names(hazard: Hazard, name: str) -> bool:
    """Whether a prompt asks for this type."""
    spelled = " ".join(name.split()).casefold()
    return name != UNTYPED and any(concept.casefold() == spelled for concept in hazard.alternative_concepts)
