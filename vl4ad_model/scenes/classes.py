"""Label values: the 19 Cityscapes train ids, and where hazards begin."""

from __future__ import annotations

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN,
 MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
KNOWN_CLASSES = 19
HAZARD_CLASS = 100  # in the renderer every hazard carries this class; the instance says which one
FIRST_HAZARD = 100  # in labels hazard i of a frame or drive is FIRST_HAZARD + i
IGNORED = 255
