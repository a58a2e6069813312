"""What stands still along a street: ground, markings, houses, plants, street furniture and parked cars."""

from __future__ import annotations

import numpy as np

from vl4ad_model.scenes import classes, props, vehicles
from vl4ad_model.scenes.primitives import Pen, Scene

LENGTH = 110.0  # metres of street ahead of the camera


def ground(scene: Scene, r, half, walks, setting: str, surface: str, length: float = LENGTH) -> None:
    """Road (asphalt, tiles or dirt), kerbs, pavements and what lies beyond them."""
    asphalt = np.full(3, r.uniform(0.1, 0.36)) * r.uniform(0.94, 1.06, 3)
    paving = np.array((0.5, 0.48, 0.46)) * r.uniform(0.6, 1.4) * r.uniform(0.92, 1.08, 3)
    green = np.array(
        r.choice(
            [(0.2, 0.32, 0.09), (0.24, 0.36, 0.12), (0.17, 0.27, 0.08), (0.33, 0.38, 0.15), (0.4, 0.36, 0.2), (0.48, 0.42, 0.3)]
        )
    ) * r.uniform(0.6, 1.3)
    if surface == "dirt":
        asphalt = np.array((0.42, 0.33, 0.22)) * r.uniform(0.5, 1.3) * r.uniform(0.9, 1.1, 3)
    material = {"asphalt": "asphalt", "tiles": "tiles", "dirt": "grass"}[surface]
    paved = 2.0 if surface == "asphalt" else r.uniform(5, 9)
    kerb = paving * r.uniform(0.8, 1.3)
    terrain_side = {side: setting in ("country", "highway") or r.random() < 0.4 for side in (-1, 1)}
    for y in np.arange(-9, length + 20, 3.0):
        road = Pen(scene, r, classes.ROAD, at=(0, y, 0))
        left, right = -half[-1], half[1]
        road.seed = 1.0
        road.draw(
            "box",
            ((left + right) / 2, 0, -0.05),
            (right - left, 3.02, 0.1),
            asphalt,
            color2=asphalt * 0.8,
            material=material,
            texture=paved,
        )
        for side in (-1, 1):
            edge = half[side]
            if walks[side]:
                walk = Pen(scene, r, classes.SIDEWALK, at=(0, y, 0))
                walk.seed = 2.0 + side
                walk.draw(
                    "box",
                    (side * (edge + walks[side] / 2), 0, 0.02),
                    (walks[side], 3.02, 0.26),
                    paving,
                    color2=paving * 0.85,
                    material="tiles",
                    texture=1.6,
                )
                walk.draw("box", (side * (edge + 0.07), 0, 0.022), (0.16, 3.02, 0.27), kerb, material="asphalt", texture=2)
                edge += walks[side]
            beyond = Pen(scene, r, classes.TERRAIN if terrain_side[side] else classes.SIDEWALK, at=(0, y, 0))
            beyond.seed = 5.0 + side
            beyond.draw(
                "box",
                (side * (edge + 30), 0, -0.02),
                (60, 3.02, 0.2),
                green if terrain_side[side] else paving * 0.9,
                color2=green * 0.5 if terrain_side[side] else paving * 0.8,
                material="grass" if terrain_side[side] else "tiles",
            )


def markings(scene: Scene, r, lanes: int, lane_width: float, half: float, length: float = LENGTH) -> None:
    """Lines, crossings, manholes and patches."""
    if r.random() < 0.12:
        return
    paint = np.full(3, r.uniform(0.6, 0.95)) if r.random() < 0.85 else np.array((0.85, 0.65, 0.1))
    pen = Pen(scene, r, classes.ROAD)
    step, dash = r.uniform(6, 12), r.uniform(2, 4)
    wear = {"material": "asphalt", "texture": 2.0}
    for i in range(1, lanes):
        x = (i - lanes / 2) * lane_width
        solid = r.random() < 0.2
        for y in np.arange(-6, length, 3.0 if solid else step):
            pen.draw("box", (x, y, 0.004), (0.13, 3.05 if solid else dash, 0.01), paint, **wear)
    if r.random() < 0.6:
        for y in np.arange(-6, length, 3.0):
            for side in (-1, 1):
                pen.draw("box", (side * (half - 0.2), y, 0.004), (0.13, 3.05, 0.01), paint, **wear)
    if r.random() < 0.3:
        at = r.uniform(6, 40)
        for x in np.arange(-half + 0.4, half - 0.2, 1.0):
            pen.draw("box", (x, at, 0.005), (0.5, 3.2, 0.012), paint, **wear)
    if r.random() < 0.3:
        for _ in range(int(r.integers(1, 5))):  # manholes and patches belong to the road
            x, y = r.uniform(-half + 0.5, half - 0.5), r.uniform(4, 40)
            if r.random() < 0.5:
                pen.draw("cylinder", (x, y, 0.004), (0.7, 0.7, 0.012), np.full(3, r.uniform(0.12, 0.3)), material="metal")
            else:
                pen.draw(
                    "box",
                    (x, y, 0.003),
                    (r.uniform(0.5, 2.5), r.uniform(1, 5), 0.01),
                    np.full(3, r.uniform(0.08, 0.35)),
                    material="asphalt",
                )


def horizon(scene: Scene, r, setting: str, length: float = LENGTH) -> None:
    """Woods, hills and roofs far away: the world does not end where the road does."""
    x = -150.0
    while x < 150:
        wide, y = r.uniform(12, 40), length + r.uniform(8, 25)
        roll = r.random()
        if roll < (0.25 if setting in ("city", "suburb") else 0.05):
            props.building(Pen(scene, r, classes.BUILDING, at=(x, y, 0), yaw=np.pi / 2), r, wide, 12, r.uniform(8, 35))
        elif roll < 0.85:
            green = np.array((0.16, 0.25, 0.09)) * r.uniform(0.6, 1.3)
            pen, tall = Pen(scene, r, classes.VEGETATION, at=(x, y, 0)), r.uniform(5, 18)
            for _ in range(4):
                s = wide * r.uniform(0.3, 0.6)
                pen.draw(
                    "sphere",
                    (r.uniform(-0.5, 0.5) * wide, 0, 0),
                    (s, 10, tall * r.uniform(1.2, 2)),
                    green,
                    color2=green * 0.5,
                    material="foliage",
                    displacement=0.3,
                    texture=0.15,
                )
        x += wide * 0.8


def roadside(scene: Scene, r, side: int, half: float, walk: float, setting: str, night: float, length: float = LENGTH) -> None:
    """Buildings, trees, fences and street furniture along one side."""
    edge = half + walk
    heading = 0.0 if side > 0 else np.pi
    x0 = edge + (r.uniform(0.3, 2) if setting == "city" else r.uniform(3, 12))
    built = {"city": 0.95, "suburb": 0.75, "country": 0.15, "highway": 0.1}[setting]
    y = r.uniform(-8, 0)
    while y < length + 10:
        width = r.uniform(7, 24)
        if r.random() < built:
            height = r.uniform(8, 28) if setting == "city" else r.uniform(3.5, 9)
            x = x0 + r.uniform(0, 3)
            props.building(
                Pen(scene, r, classes.BUILDING, at=(side * x, y + width / 2, 0), yaw=heading), r, width * 0.96, 12, height, night
            )
        elif r.random() < 0.9:
            for _ in range(int(r.integers(2, 7))):
                props.tree(Pen(scene, r, classes.VEGETATION, at=(side * (x0 + r.uniform(2, 22)), y + r.uniform(0, width), 0)), r)
        y += width
    # a wall, hedge or fence along the edge
    if r.random() < 0.55:
        kind = r.choice(["wall", "fence", "hedge", "fence"])
        for y in np.arange(r.uniform(-4, 20), r.uniform(length * 0.4, length), 4.0):
            if r.random() < 0.9:
                at = (side * (edge + 0.25), y, 0.0)
                if kind == "wall":
                    state = np.random.default_rng(int(abs(edge) * 1e6))
                    props.wall(Pen(scene, r, classes.WALL, at=at), state, 4.05)
                elif kind == "fence":
                    state = np.random.default_rng(int(abs(edge) * 1e6))
                    props.fence(Pen(scene, r, classes.FENCE, at=at, yaw=0 if side > 0 else np.pi), state, 4.05)
                else:
                    state = np.random.default_rng(int(abs(edge) * 1e6))
                    props.hedge(Pen(scene, r, classes.VEGETATION, at=at), state, 4.05)
    trees = r.random() < 0.6
    spacing = r.uniform(7, 16)
    for y in np.arange(r.uniform(4, 12), length - 10, spacing):
        x = side * (half + min(max(walk * 0.3, 0.5), 1.0))
        place = (x, y + r.normal(0, 1.0), 0.1)
        roll = r.random()
        if trees and roll < 0.5:
            props.tree(Pen(scene, r, classes.VEGETATION, at=place, scale=r.uniform(0.6, 1)), r)
        elif roll < 0.68:
            props.street_lamp(Pen(scene, r, classes.POLE, at=place, yaw=heading), r, night)
        elif roll < 0.86:
            props.traffic_sign(Pen(scene, r, classes.SIGN, at=place, yaw=r.normal(0, 0.25)), r)
        elif roll < 0.95:
            props.bollard(Pen(scene, r, classes.POLE, at=place), r)
        if r.random() < 0.25:
            props.bush(Pen(scene, r, classes.VEGETATION, at=(side * (edge + r.uniform(0.6, 4)), y, 0)), r)
    if r.random() < 0.45:
        for _ in range(int(r.integers(1, 3))):
            at = (side * (half + 0.5), r.uniform(9, 35), 0.1)
            props.traffic_light(Pen(scene, r, classes.LIGHT, at=at, yaw=(0.0 if side > 0 else np.pi * 0) + r.normal(0, 0.1)), r)
    if setting in ("city", "country") and r.random() < 0.12:
        at = (side * (edge + r.uniform(2, 4)), r.uniform(10, 30), 0.0)
        vehicles.train(Pen(scene, r, classes.TRAIN, at=at, yaw=r.normal(0, 0.02)), r, night)


def parked(scene: Scene, r, side: int, half: float, length: float = LENGTH) -> None:
    """Cars and a few lorries at the kerb."""
    y = r.uniform(3, 9)
    while y < length * 0.8:
        if r.random() < 0.75:
            draw, class_id = (vehicles.car, classes.CAR) if r.random() < 0.9 else (vehicles.truck, classes.TRUCK)
            heading = r.normal(0, 0.03) + (np.pi if side > 0 else 0)
            draw(Pen(scene, r, class_id, at=(side * (half - 1.05), y, 0), yaw=heading, scale=0.95), r, 0.0)
        y += r.uniform(5.3, 9)
