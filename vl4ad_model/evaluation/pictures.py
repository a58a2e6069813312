"""Pictures of single frames for reports: image | label | anomaly | overlay, side by side in one strip."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.evaluation.label_files import LabelMap
from vl4ad_model.evaluation.scored_pixels import as_stored
from vl4ad_model.visualization import anomaly_heatmap

PANEL_WIDTH, GAP = 480, 8
# Told apart with every kind of colour vision.
FOUND, FALSE_ALARM, MISSED = (0, 170, 255), (255, 140, 0), (255, 47, 179)
_ORDINARY, _ANOMALY, _IGNORED = (62, 68, 81), (255, 140, 0), (20, 22, 26)
WORST, BEST, ALARMS, SPREAD = 6, 6, 4, 8


class Chosen(NamedTuple):
    """A frame to show, and why: "worst", "best", "false alarms" or "sample"."""

    frame: str
    why: str


def choose(per_frame: Sequence[Mapping[str, Any]]) -> list[Chosen]:
    """The frames a report shows: worst and best by AuPRC, ordinary ones with most false alarms, and some spread evenly.

    The evenly spread ones are the same in every run over the same frames, so that runs can be compared.
    """
    scored = sorted((row for row in per_frame if row["AuPRC"] is not None), key=lambda row: row["AuPRC"])
    quiet = sorted(
        (row for row in per_frame if row["AuPRC"] is None and row["false_positive_rate"]),
        key=lambda row: -row["false_positive_rate"],
    )
    worst = scored[: min(WORST, (len(scored) + 1) // 2)]
    best = scored[len(worst) :][-BEST:][::-1]
    chosen = [Chosen(row["frame"], "worst") for row in worst] + [Chosen(row["frame"], "best") for row in best]
    chosen += [Chosen(row["frame"], "false alarms") for row in quiet[:ALARMS]]
    taken = {frame for frame, _ in chosen}
    step = max(1, len(per_frame) // SPREAD)
    chosen += [Chosen(row["frame"], "sample") for row in per_frame[::step][:SPREAD] if row["frame"] not in taken]
    return chosen


def strip(
    rgb: np.ndarray | None,
    scores: np.ndarray,
    labels: LabelMap,
    *,
    threshold: float | None,
    score_range: tuple[float, float],
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """One frame in four panels.

    Args:
        rgb: (H, W, 3) uint8; None = no picture was kept, and the panels stand on grey.
        scores: (H, W) floating point.
        labels: ground truth.
        threshold: where the overlay cuts; None = it shows the ground truth only.
        score_range: the scores shown as black and as bright yellow.
        palette: (256, 3) uint8 colours of classes, for labels that have them.

    Returns:
        (h, w, 3) uint8 RGB, panels `PANEL_WIDTH` wide.
    """
    import cv2

    height, width = scores.shape
    size = (PANEL_WIDTH, max(1, round(height * PANEL_WIDTH / width)))
    base = np.full((height, width, 3), 150, np.uint8) if rgb is None else rgb
    if base.shape[:2] != scores.shape:
        base = cv2.resize(base, (width, height), interpolation=cv2.INTER_AREA)
    low, high = score_range
    # In double precision, since the range of float32 is exceeded by the difference of two scores.
    shown = np.nan_to_num((scores.astype(np.float64) - low) / max(high - low, 1e-12), nan=0, posinf=1, neginf=0).clip(0, 1)
    panels = [base, _labels(base, labels, palette), anomaly_heatmap(shown), _overlay(base, scores, labels, threshold)]
    small = [cv2.resize(np.ascontiguousarray(panel), size, interpolation=cv2.INTER_AREA) for panel in panels]
    gap = np.full((size[1], GAP, 3), 255, np.uint8)
    parts = [part for panel in small for part in (panel, gap)][:-1]
    return np.concatenate(parts, axis=1)


def _labels(base: np.ndarray, labels: LabelMap, palette: np.ndarray | None) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[0], table[1], table[255] = _ORDINARY, _ANOMALY, _IGNORED
    colors = table[labels.anomaly]
    if labels.classes is not None and palette is not None:
        known = labels.classes != 255
        colors[known] = palette[labels.classes[known]]
        return _outlined(colors, labels.anomaly == 1)
    grey = base.mean(axis=2, keepdims=True) / 255
    return (colors * (0.45 + 0.55 * grey)).astype(np.uint8)


def _outlined(colors: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """White with a dark line around: among the classes' colours, which may be anything."""
    import cv2

    contours, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    colors = cv2.drawContours(colors, contours, -1, _IGNORED, 1 + colors.shape[0] // 150, cv2.LINE_AA)
    colors[inside] = 255
    return colors


def _overlay(base: np.ndarray, scores: np.ndarray, labels: LabelMap, threshold: float | None) -> np.ndarray:
    """The image, darkened, with what was found, raised falsely and missed in colour."""
    picture = (base * 0.55).astype(np.uint8)
    truth, counts = labels.anomaly == 1, labels.anomaly != 255
    with np.errstate(invalid="ignore"):
        called = np.zeros_like(truth) if threshold is None else scores > as_stored(threshold, scores.dtype)
    for inside, color in ((called & truth, FOUND), (called & ~truth & counts, FALSE_ALARM), (truth & ~called, MISSED)):
        picture[inside] = (picture[inside] * 0.25 + np.array(color) * 0.75).astype(np.uint8)
    picture[~counts] = (picture[~counts] * 0.45).astype(np.uint8)
    return picture


def file_name(frame: str) -> str:
    """A file name for a frame's picture: readable, safe, and different for different frames."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", frame)[-60:].strip("._") or "frame"
    return f"{plain}_{hashlib.sha256(frame.encode()).hexdigest()[:6]}.jpg"
