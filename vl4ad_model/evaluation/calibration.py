"""The `anomaly_threshold` for a wanted false-alarm rate, from ordinary driving, with a guarantee for a finite number of frames.

Split conformal prediction (Vovk et al., 2005), in the form of conformal risk control (Angelopoulos et al., 2024): with n frames
and L_i(t) the false alarm of frame i at threshold t, between 0 and 1 and falling in t, take the lowest t with

    (L_1(t) + ... + L_n(t) + 1) / (n + 1) <= rate.

Then the expected false alarm of the next frame is at most `rate`, whatever the scores are distributed like. It needs ONE
assumption: the frames used here and the frame it is used on are exchangeable, that is, their order carries no information. Frames
of one video in a row look alike and are not; take one every few seconds, from many drives, of the weather and the places where
it will drive. It needs no assumption about the pixels of a frame. No rate below 1 / (n + 1) can be guaranteed with n frames.

- per "pixel": L is the share of a frame's pixels above the threshold; the guarantee is about the share in a new frame.
- per "frame": L is 1 if at least `alarm_pixels` pixels are above the threshold, else 0; it is about how often a frame alarms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.ordered_scores import OrderedScores

KINDS = ("pixel", "frame")
_STEP = 1.005


class FrameTail(NamedTuple):
    """What calibration needs of one frame, 2,000 numbers at most.

    Attributes:
        name: the frame.
        scores: (M,) float32, descending, some of the frame's scores.
        increments: (M,) float64; the frame's false alarm at threshold t is at most the sum of those whose score is > t. Between
            kept scores it is rounded up, by 0.5 % at most.
    """

    name: str
    scores: np.ndarray
    increments: np.ndarray


class Calibration(NamedTuple):
    """A calibrated threshold.

    Attributes:
        threshold: called anomalous is what scores above it.
        rate: what was wanted.
        frames: how many it stands on.
        measured: mean false alarm on those frames, at this threshold.
        upper_bound: per frame only: with 95 % confidence over the choice of the frames, the true rate is below this; else NaN.
    """

    threshold: float
    rate: float
    frames: int
    measured: float
    upper_bound: float


def frame_tail(name: str, scores: np.ndarray, kind: str, alarm_pixels: int, counts: np.ndarray | None = None) -> FrameTail:
    """What one frame says.

    Args:
        name: for error messages.
        scores: (H, W) float32.
        kind: one of `KINDS`.
        alarm_pixels: how many pixels above the threshold make a frame's alarm.
        counts: (H, W) bool, pixels that count; None = all.

    Raises:
        EvaluationError: too few pixels, or a score is NaN or infinite.
    """
    values = OrderedScores((scores if counts is None else scores[counts]).astype(np.float32, copy=False).ravel())
    if not values.finite:
        raise EvaluationError(f"{name}: {values.count_not_finite()} scores are NaN or infinite")
    if values.size < max(1, alarm_pixels):
        raise EvaluationError(f"{name}: only {values.size} pixels count")
    if kind == "frame":
        return FrameTail(name, values.at(np.array([values.size - alarm_pixels])), np.ones(1))
    steps = math.ceil(math.log(values.size) / math.log(_STEP)) + 1
    ranks = np.unique(np.concatenate([[0], np.floor(_STEP ** np.arange(steps))]).astype(np.int64))
    ranks = ranks[ranks < values.size]
    shares = np.concatenate([ranks[1:], [values.size]]) / values.size
    return FrameTail(name, values.at(values.size - 1 - ranks), np.diff(shares, prepend=0.0))


def check_rate(rate: float, frames: int, which: str = "") -> float:
    """How much false alarm so many frames may show together for this rate.

    Args:
        which: what to say of these frames.

    Raises:
        EvaluationError: the rate is not between 0 and 1, or so low that it needs more frames.
    """
    if not 0 < rate < 1:
        raise EvaluationError(f"a rate of {rate:g} is not between 0 and 1")
    budget = rate * (frames + 1) - 1
    if budget < -1e-12:
        raise EvaluationError(
            f"{frames} frames{which} cannot guarantee a rate of {rate:g}: at least {math.ceil(1 / rate - 1e-9) - 1} are needed, "
            f"or a rate of at least {math.ceil(1e4 / (frames + 1)) / 1e4:g}"
        )
    return budget


def calibrate(tails: Sequence[FrameTail], rate: float, kind: str) -> Calibration:
    """The lowest threshold with the guarantee.

    Raises:
        EvaluationError: as `check_rate` does.
    """
    count = len(tails)
    budget = check_rate(rate, count)
    scores = np.concatenate([tail.scores for tail in tails])
    increments = np.concatenate([tail.increments for tail in tails])
    order = np.argsort(-scores, kind="stable")
    scores, total = scores[order], np.cumsum(increments[order])
    # False alarms at the k-th distinct score: everything strictly above it.
    first = np.flatnonzero(np.concatenate([[True], scores[1:] < scores[:-1]]))
    above = np.concatenate([[0.0], total[first[1:] - 1]])
    chosen = int(np.flatnonzero(above <= budget + 1e-12)[-1])
    threshold = float(scores[first[chosen]])
    bound = _rate_bound(count, round(above[chosen])) if kind == "frame" else float("nan")
    return Calibration(threshold, rate, count, float(above[chosen] / count), bound)


def _rate_bound(frames: int, alarms: int, confidence: float = 0.95) -> float:
    """Upper bound of a rate of which `alarms` in `frames` were seen (Clopper and Pearson, one-sided)."""

    def at_most(rate: float) -> float:
        """Probability of so few alarms at this rate."""
        logs = [
            math.lgamma(frames + 1) - math.lgamma(k + 1) - math.lgamma(frames - k + 1)
            + k * math.log(rate) + (frames - k) * math.log1p(-rate)
            for k in range(alarms + 1)
        ]  # fmt: skip
        return math.fsum(math.exp(value) for value in logs)

    if alarms >= frames:
        return 1.0
    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - confidence else (low, middle)
    return high
