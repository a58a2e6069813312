"""What each hazard prompt would do on ordinary driving: a prompt that cries wolf is seen before it drives.

Every frame is scored without hazards and with each prompt alone; the network looks once. Where nothing is that hazard, a good
prompt takes no pixel from the known classes and leaves the anomaly score alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.segmenter import Segmentation


class PromptFrame(NamedTuple):
    """One prompt on one frame.

    Attributes:
        name: the frame.
        taken: (K + 1,) int64, pixels it takes, by the class they had without it; the last is void.
        pixels: (K + 1,) int64, all pixels by the class they had.
        alarms_before, alarms_after: pixels above the threshold without and with the prompt.
        unknown: words of the prompt that the model's training did not use, nor any near them; empty where there are none.
    """

    name: str
    taken: np.ndarray
    pixels: np.ndarray
    alarms_before: int
    alarms_after: int
    unknown: str = ""


def compare(
    name: str, plain: Segmentation, prompted: Segmentation, threshold: float, counts: np.ndarray | None = None
) -> PromptFrame:
    """Compare one frame without and with one prompt.

    Args:
        name: the frame.
        plain, prompted: results without hazards, and with one.
        threshold: of the anomaly mask.
        counts: (H, W) bool, pixels that are ordinary driving; None = all.
    """
    known = plain.vocabulary.known_count
    inside = np.ones(plain.labels.shape, bool) if counts is None else counts
    before = np.minimum(plain.labels[inside], known)
    taken = prompted.labels[inside] == known
    return PromptFrame(
        name,
        np.bincount(before[taken], minlength=known + 1),
        np.bincount(before, minlength=known + 1),
        int(np.count_nonzero(plain.anomaly[inside] > threshold)),
        int(np.count_nonzero(prompted.anomaly[inside] > threshold)),
    )


def summarize(prompt: str, frames: Iterable[PromptFrame], class_names: Sequence[str], limit: float) -> dict[str, Any]:
    """All frames of a prompt: share of pixels taken, from which classes, false alarms before and after, worst frames."""
    frames = list(frames)
    taken = np.sum([frame.taken for frame in frames], axis=0)
    pixels = np.sum([frame.pixels for frame in frames], axis=0)
    total = max(int(pixels.sum()), 1)
    names = [*class_names, "void"]
    order = [int(index) for index in np.argsort(-taken, kind="stable") if taken[index]]
    share = int(taken.sum()) / total
    worst = sorted(frames, key=lambda frame: -int(frame.taken.sum()))[:5]
    return {
        "prompt": prompt,
        "cries_wolf": share > limit,
        "unknown_words": frames[0].unknown,
        "share_taken": share,
        "taken_from": {
            names[index]: {
                "share_of_taken": int(taken[index]) / int(taken.sum()),
                "share_of_class": int(taken[index]) / int(pixels[index]),
            }
            for index in order
        },
        "frames_touched": sum(bool(frame.taken.any()) for frame in frames),
        "false_positive_rate_before": sum(frame.alarms_before for frame in frames) / total,
        "false_positive_rate_after": sum(frame.alarms_after for frame in frames) / total,
        "worst_frames": [
            {"frame": frame.name, "share_taken": int(frame.taken.sum()) / max(int(frame.pixels.sum()), 1)}
            for frame in worst
            if frame.taken.any()
        ],
    }
