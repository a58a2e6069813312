"""From maps to things: the connected areas of an image that are named hazards or anomalous, each with its box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vl4ad_model.segmenter import Segmentation

UNNAMED = "unknown"
"""What the part of an area that no hazard names is called."""
MIN_AREA = 0.0005
"""Default of the smallest area, as a share of the image: 11 x 11 pixels at 640 x 360."""
_BELOW = 0.01
"""So much of the image's height below an area is its ground."""
MAX_AREAS = 200
"""So many of an image are listed, the largest: noise has a hundred thousand, which nobody can use and a message hardly carry."""


@dataclass(frozen=True)
class Detection:
    """One connected area of pixels that a hazard names or that score above the threshold.

    Attributes:
        box: left, top, width and height, pixels.
        pixels: how many it has.
        score: mean anomaly score of its pixels.
        shares: (name, share of its pixels), the largest first; `UNNAMED` for those that no hazard names. Shares add up to 1.
            Of a tracked one, of its pixels in the last images.
        number: the same for the same thing in other images of this camera (`tracking.Tracker`); 0 = not tracked.
        images: in how many it was seen, this one included.
        ground: name of the known class that most of what lies right below it has; "" where nothing known is, or the image ends.
    """

    box: tuple[float, float, float, float]
    pixels: int
    score: float
    shares: tuple[tuple[str, float], ...]
    number: int = 0
    images: int = 1
    ground: str = ""

    @property
    def name(self) -> str:
        """What most of it is called."""
        return self.shares[0][0]

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values; numbers are rounded to what they can mean."""
        tracked = {"id": self.number, "images": self.images} if self.number else {}
        return {
            **tracked,
            "name": self.name,
            "score": round(self.score, 4),
            "box": [round(side, 2) for side in self.box],
            "pixels": self.pixels,
            "ground": self.ground,
            "named": {name: round(share, 4) for name, share in self.shares},
        }


def find(
    result: Segmentation, *, threshold: float, min_area: float = MIN_AREA, size: tuple[int, int] | None = None
) -> list[Detection]:
    """The areas of one image, the largest first, at most `MAX_AREAS`.

    Pixels that touch, also at a corner, are one area, whatever they are called: half of a thing is often named, half only glows.

    Args:
        result: the maps.
        threshold: a pixel without a hazard's name belongs to an area where its score is above this.
        min_area: areas of a smaller share of the image are left out; 0..1.
        size: (height, width) of the image that boxes and pixels are given in; None = that of the maps.
    """
    import cv2
    import numpy as np

    height, width = result.labels.shape
    known, hazards = result.vocabulary.known_count, result.vocabulary.hazards
    inside = (result.anomaly > threshold).view(np.uint8)
    if hazards:
        inside |= (result.labels - np.uint8(known) < len(hazards)).view(np.uint8)  # ids below wrap round to large ones
    # Without OpenCV's own statistics, which take most of the time, and without its contours: those of noise take a minute.
    count, area_map = cv2.connectedComponentsWithAlgorithm(inside, 8, cv2.CV_32S, cv2.CCL_BOLELLI)
    where = np.flatnonzero(inside.view(bool))
    area_of = area_map.ravel()[where]
    sizes = np.bincount(area_of, minlength=count)
    kept = np.flatnonzero(sizes >= max(1.0, min_area * inside.size))
    kept = kept[np.argsort(-sizes[kept], kind="stable")][:MAX_AREAS]
    if not kept.size:
        return []
    # From here on areas are numbered as they are listed, and pixels of the others are left out.
    place = np.full(count, -1, np.int64)
    place[kept] = np.arange(kept.size)
    area_of = place[area_of]
    where, area_of = where[area_of >= 0], area_of[area_of >= 0]
    sums = np.bincount(area_of, result.anomaly.ravel()[where])
    columns = len(hazards) + 1
    label_of = np.minimum(result.labels.ravel()[where] - np.uint8(known), len(hazards))
    named = np.bincount(area_of * columns + label_of, minlength=kept.size * columns).reshape(kept.size, columns)
    starts, ends = np.full((2, kept.size), max(height, width)), np.zeros((2, kept.size), np.int64)
    for axis, places in enumerate(np.divmod(where, width)):
        np.minimum.at(starts[axis], area_of, places)
        np.maximum.at(ends[axis], area_of, places + 1)
    names = [*(hazard.name for hazard in hazards), UNNAMED]
    for alike in [index for index, name in enumerate(names[:-1]) if name == UNNAMED]:  # who asks for "unknown" gets one share of it
        named[:, -1] += named[:, alike]
        named[:, alike] = 0
    down, right = (1.0, 1.0) if size is None else (size[0] / height, size[1] / width)
    found = []
    band = max(2, round(height * _BELOW))
    for area, pixels in enumerate(sizes[kept].tolist()):
        (top, left), (bottom, end) = starts[:, area].tolist(), ends[:, area].tolist()
        below = result.labels[bottom : bottom + band, left:end]
        below = below[(inside[bottom : bottom + band, left:end] == 0) & (below < known)]
        order = np.argsort(-named[area], kind="stable")
        found.append(
            Detection(
                (left * right, top * down, (end - left) * right, (bottom - top) * down),
                max(1, round(pixels * right * down)),
                float(sums[area] / pixels),
                tuple((names[index], int(named[area, index]) / pixels) for index in order if named[area, index]),
                ground=result.vocabulary.names[int(np.bincount(below).argmax())] if below.size else "",
            )
        )
    return found
