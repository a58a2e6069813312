"""What every source of frames gives: a list of frames that is cheap to make, and the frames themselves, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from vl4ad_model.evaluation.label_files import LabelMap


class Frame(NamedTuple):
    """One frame as read.

    Attributes:
        name: unique in its source.
        rgb: (H, W, 3) uint8, or None where the source has no pictures.
        scores: (H, W) floating point, saved earlier, or None where a model is to compute them.
        labels: ground truth, or None where the source has none.
        predicted: (H, W) uint8 ids of classes and hazards that came with the scores, or None.
    """

    name: str
    rgb: np.ndarray | None
    scores: np.ndarray | None
    labels: LabelMap | None
    predicted: np.ndarray | None = None


class FrameFailure(NamedTuple):
    """A frame that cannot be used, and why, in one line."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Entry:
    """Where one frame is: enough to read it in another process.

    Attributes:
        name: unique in the run; what reports and errors call the frame.
        key: what the source needs to find it: paths, or times in a bag.
        version: changes when the frame's files change, so that an interrupted run never mixes old and new.
        failure: why the frame cannot be read at all, "" where it can.
    """

    name: str
    key: tuple[Any, ...]
    version: str = ""
    failure: str = ""


class Source(Protocol):
    """A picklable description of where frames come from."""

    def entries(self) -> list[Entry]:
        """All frames, in a fixed order.

        Raises:
            EvaluationError: the source as a whole cannot be used.
        """
        ...

    def frames(self, entries: Sequence[Entry], *, pictures: bool = True) -> Iterator[Frame | FrameFailure]:
        """Read these frames, in this order; `pictures` = False leaves `rgb` out where that saves time."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the configuration in reports: plain values."""
        ...
