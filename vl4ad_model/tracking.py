"""Things over time: areas of successive images of one camera that are the same thing get the same number and one name."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vl4ad_model.detections import Detection

MIN_OVERLAP = 0.1
"""Intersection over union of boxes that may be one thing's: areas fray, and break apart, from image to image."""
MAX_GAP_S = 0.5
"""So long a thing that is not found keeps its number, and always for one image."""
MAX_PAUSE_S = 2.0
"""After a longer time without an image nothing is taken for what was there before."""
MEMORY = 0.8
"""What the pixels that gave a thing a name count one image later. With more, names last longer, wrong ones and right ones."""
_LEAST_SHARE = 0.001


@dataclass
class _Thing:
    number: int
    box: np.ndarray  # left, top, width, height
    time_s: float
    speed: np.ndarray = field(default_factory=lambda: np.zeros(4))  # of the box's four numbers, pixels per second
    images: int = 0
    missed: int = 0  # images since it was last found
    pixels_by_name: Counter[str] = field(default_factory=Counter)

    def expected(self, time_s: float) -> np.ndarray:
        return self.box + self.speed * (time_s - self.time_s)

    def take(self, area: Detection, time_s: float) -> Detection:
        """Go on with this area, which gets the number, and the names of those before."""
        box = np.array(area.box, np.float64)
        if time_s > self.time_s:
            speed = (box - self.box) / (time_s - self.time_s)
            self.speed = speed if self.images == 1 else (speed + self.speed) / 2
        self.box, self.time_s, self.missed = box, time_s, 0
        self.images += 1
        pixels = Counter({name: MEMORY * before for name, before in self.pixels_by_name.items()})
        pixels.update({name: share * area.pixels for name, share in area.shares})
        least = _LEAST_SHARE * pixels.total()
        self.pixels_by_name = Counter({name: count for name, count in pixels.items() if count >= least})
        total = self.pixels_by_name.total()
        shares = tuple((name, count / total) for name, count in self.pixels_by_name.most_common())
        return replace(area, number=self.number, images=self.images, shares=shares)


class Tracker:
    """Follows the things of one camera.

    An area goes on with the thing whose box it overlaps most, where that one is expected or where it was. What a thing is called is
    counted by pixels over the last images, so that a name of one image does not come and go.
    """

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        self._things: list[_Thing] = []
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._time_s = 0.0
        self._version = 0

    def update(self, found: list[Detection], time_s: float, version: int = 0) -> list[Detection]:
        """The areas of the next image, in the same order, each with its thing's number, in how many images it was seen, and the
        shares of its names in these, the latest counting most.

        Args:
            time_s: when the image was taken, seconds of any clock; if it goes back, everything is new.
            version: of the words; what others named is forgotten, numbers stay.
        """
        if not 0 <= time_s - self._time_s <= MAX_PAUSE_S:
            self._things = []
        if version != self._version:
            for thing in self._things:
                thing.pixels_by_name.clear()
        stands_still = time_s == self._time_s
        self._time_s, self._version = time_s, version
        for thing in self._things:
            thing.missed += 1
        thing_of = self._pairs(found, time_s)
        for index, area in enumerate(found):
            if index not in thing_of:
                thing_of[index] = _Thing(next(self._numbers), np.array(area.box, np.float64), time_s)
                self._things.append(thing_of[index])
        tracked = [thing_of[index].take(area, time_s) for index, area in enumerate(found)]
        # By a clock that stands still nothing would ever be gone for long.
        longest = -1.0 if stands_still else MAX_GAP_S
        self._things = [thing for thing in self._things if thing.missed <= 1 or time_s - thing.time_s <= longest]
        return tracked

    def _pairs(self, found: list[Detection], time_s: float) -> dict[int, _Thing]:
        """Area -> thing, those that overlap most first."""
        if not self._things or not found:
            return {}
        areas = np.array([area.box for area in found], np.float64)
        overlap = np.maximum(
            _overlap(np.array([thing.expected(time_s) for thing in self._things]), areas),
            _overlap(np.array([thing.box for thing in self._things]), areas),
        )
        candidates = np.argwhere(overlap >= MIN_OVERLAP)
        pairs: dict[int, _Thing] = {}
        gone = set()
        for row, column in candidates[np.argsort(-overlap[tuple(candidates.T)], kind="stable")].tolist():
            if row not in gone and column not in pairs:
                gone.add(row)
                pairs[column] = self._things[row]
        return pairs


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4): float64 (N, M)."""
    sides = np.maximum(first[:, 2:], 0.0)  # one that was expected to shrink to nothing has
    starts = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum((first[:, :2] + sides)[:, None], (second[:, :2] + second[:, 2:])[None])
    common = np.maximum(ends - starts, 0.0).prod(axis=2)
    return common / (sides.prod(axis=1)[:, None] + second[:, 2:].prod(axis=1)[None] - common)
