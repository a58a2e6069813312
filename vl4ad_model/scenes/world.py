"""Composes a street: ground, houses, plants, traffic, people, hazards, light and a camera, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vl4ad_model.scenes import props
from vl4ad_model.scenes.hazard_shapes import SHAPES
from vl4ad_model.scenes.hazards import HELD_OUT, SEEN
from vl4ad_model.scenes.primitives import Pen, Scene

HAZARD_CLASS = 100  # hazards carry this class; the instance says which one
LENGTH = 110.0


@dataclass
class Light:
    """Sun, sky and air. Colours are linear light; `sun_direction` points towards the sun."""

    sun_direction: np.ndarray
    sun_color: np.ndarray
    sky_light: np.ndarray
    ground_light: np.ndarray
    sky_top: np.ndarray
    sky_low: np.ndarray
    cloud_color: np.ndarray
    clouds: float
    fog_color: np.ndarray
    fog_density: float
    wetness: float
    snow: float
    night: float
    rain: float
    seed: float


@dataclass
class Camera:
    """Position and target in metres, roll and horizontal field of view in radians."""

    position: np.ndarray
    target: np.ndarray
    roll: float
    horizontal_fov: float


@dataclass
class World:
    """A street ready to be drawn.

    Attributes:
        cutouts: rows (x, y, z, yaw, width, height, picture, brightness, class, instance).
        hazards: instance -> (name, kind), kind is "procedural" or "cutout".
        pictures: names of the cut-outs that `cutouts` refers to by index.
    """

    scene: Scene
    light: Light
    camera: Camera
    bend: tuple[float, float, float]
    cutouts: list[tuple[float, ...]] = field(default_factory=list)
    hazards: dict[int, tuple[str, str]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)


def make_light(r) -> Light:
    """Clear, cloudy, rain, fog, snow, dusk or night."""
    kinds = ["clear", "cloudy", "overcast", "rain", "fog", "snow", "dusk", "night"]
    kind = r.choice(kinds, p=[0.3, 0.25, 0.18, 0.07, 0.05, 0.04, 0.07, 0.04])
    elevation, azimuth = r.uniform(0.25, 1.3), r.uniform(0, 2 * np.pi)
    if kind == "dusk":
        elevation = r.uniform(0.08, 0.25)
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    warm = np.array([1.0, 0.93, 0.82]) if kind != "dusk" else np.array([1.0, 0.6, 0.35])
    power = {"clear": 1.5, "cloudy": 1.1, "overcast": 0.15, "rain": 0.1, "fog": 0.12, "snow": 0.3, "dusk": 0.7, "night": 0.04}[kind]
    fill = {"clear": 0.5, "cloudy": 0.6, "overcast": 0.85, "rain": 0.7, "fog": 0.85, "snow": 0.8, "dusk": 0.35, "night": 0.1}[kind]
    blue = np.array([0.7, 0.83, 1.0])
    grey = np.array([0.86, 0.89, 0.93])
    tint = blue if kind in ("clear", "cloudy", "night") else grey
    if kind == "dusk":
        tint = np.array([0.85, 0.7, 0.75])
    level = {"dusk": 0.5, "night": 0.06}.get(kind, r.uniform(0.9, 1.7))
    top = np.array([0.22, 0.42, 0.82]) if kind in ("clear", "cloudy", "dusk", "night") else grey * r.uniform(0.7, 0.95)
    low = np.array([0.75, 0.84, 0.95]) if kind in ("clear", "cloudy") else (np.array([1.0, 0.72, 0.45]) if kind == "dusk" else grey)
    return Light(
        direction,
        warm * power * r.uniform(0.8, 1.2),
        tint * fill * r.uniform(0.85, 1.15),
        np.array([0.42, 0.4, 0.38]) * fill * r.uniform(0.5, 0.9),
        top * level,
        low * level,
        np.full(3, r.uniform(0.8, 1.0)) * level,
        {"clear": r.uniform(0.1, 0.35), "cloudy": r.uniform(0.4, 0.7)}.get(kind, r.uniform(0.3, 0.9)),
        (low * 0.9 + top * 0.1) * level,
        {"fog": r.uniform(0.015, 0.05), "rain": r.uniform(0.004, 0.012), "snow": r.uniform(0.004, 0.02)}.get(
            kind, r.uniform(0.0003, 0.003)
        ),
        r.uniform(0.5, 1.0) if kind == "rain" else (r.uniform(0, 0.6) if r.random() < 0.15 else 0.0),
        r.uniform(0.5, 1.0) if kind == "snow" else 0.0,
        {"night": 1.0, "dusk": 0.5, "rain": 0.4, "fog": 0.4}.get(kind, 0.0),
        r.uniform(0.3, 1.0) if kind == "rain" else 0.0,
        r.uniform(0, 50),
    )


def make_camera(r, lane_x: float) -> Camera:
    """Mounted between a low car's mirror and a truck's roof."""
    height = r.choice([r.uniform(1.1, 1.7), r.uniform(1.1, 1.7), r.uniform(1.7, 2.8)])
    pitch, yaw = r.normal(-0.03, 0.04), r.normal(0, 0.08)
    position = np.array([lane_x + r.normal(0, 0.3), 0.0, height])
    ahead = np.array([np.sin(yaw), np.cos(yaw), np.tan(pitch)])
    return Camera(position, position + ahead, r.normal(0, 0.012), np.deg2rad(r.uniform(48, 88)))


def make_world(seed: int, *, split: str = "train", quiet: bool | None = None, cutout_names: list[str] | None = None,
               only: tuple[str, ...] | None = None, hazard_y: tuple[float, float] = (5.0, 32.0), straight: bool = False) -> World:  # fmt: skip
    """Compose one street.

    Args:
        split: "train" uses seen hazard types only; "held_out" only types that no training sees; "seen" only seen ones, always.
        quiet: nothing unusual in view; None = one in four.
        cutout_names: cut-outs that may be pasted.
        only: hazard types to choose from instead.
        hazard_y: how far ahead hazards lie on the road, metres.
        straight: a straight, flat road (for sequences).
    """
    r = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    scene, light = Scene(), make_light(r)
    bend = (0.0, 0.0, 0.0) if straight else (r.normal(0, 0.0012), r.normal(0, 0.0003), r.normal(0, 0.01))
    lanes, lane_width = int(r.integers(1, 5)), r.uniform(2.9, 3.7)
    half = lanes * lane_width / 2 + r.uniform(0, 0.6)
    lane_x = (int(r.integers(0, lanes)) - (lanes - 1) / 2) * lane_width
    world = World(scene, light, make_camera(r, lane_x), bend)
    setting = r.choice(["city", "city", "suburb", "suburb", "country", "highway"])
    walks = {side: r.uniform(1.5, 4.5) if setting in ("city", "suburb") and r.random() < 0.9 else 0.0 for side in (-1, 1)}
    parking = {side: setting in ("city", "suburb") and r.random() < 0.5 for side in (-1, 1)}
    half_all = {side: half + (2.2 if parking[side] else 0.0) for side in (-1, 1)}
    _ground(scene, r, half_all, walks, setting)
    _markings(scene, r, lanes, lane_width, half)
    _horizon(scene, r, setting)
    for side in (-1, 1):
        _roadside(scene, r, side, half_all[side], walks[side], setting, light.night)
        if parking[side]:
            y = r.uniform(3, 9)
            while y < LENGTH * 0.8:
                if r.random() < 0.75:
                    kind = props.car if r.random() < 0.9 else props.truck
                    class_id = props.CAR if kind is props.car else props.TRUCK
                    at = (side * (half_all[side] - 1.05), y, 0)
                    kind(Pen(scene, r, class_id, at=at, yaw=r.normal(0, 0.03) + (np.pi if side > 0 else 0), scale=0.95), r, 0.0)
                y += r.uniform(5.3, 9)
    taken = [(lane_x, -10.0, 4.5)]
    hazards = r.random() > 0.25 if quiet is None else not quiet
    if hazards:
        _hazards(world, r, half, split, cutout_names or [], only, hazard_y, taken, lane_x)
    _traffic(scene, r, lanes, lane_width, light.night, taken, setting)
    _people(scene, r, half_all, walks, taken, light.night)
    if cutout_names and not (quiet or split == "quiet") and r.random() < 0.35:
        for _ in range(int(r.integers(1, 4))):
            side = int(r.choice([-1, 1]))
            x = side * (half_all[side] + r.uniform(0.8, 6))
            _cutout(world, r, cutout_names, (x, r.uniform(6, 30), 0.1), r.uniform(0.5, 2.0))
    return world


def _ground(scene: Scene, r, half, walks, setting: str) -> None:
    asphalt = np.full(3, r.uniform(0.1, 0.36)) * r.uniform(0.94, 1.06, 3)
    paving = np.array((0.5, 0.48, 0.46)) * r.uniform(0.6, 1.4) * r.uniform(0.92, 1.08, 3)
    green = np.array(
        r.choice(
            [(0.2, 0.32, 0.09), (0.24, 0.36, 0.12), (0.17, 0.27, 0.08), (0.33, 0.38, 0.15), (0.4, 0.36, 0.2), (0.48, 0.42, 0.3)]
        )
    ) * r.uniform(0.6, 1.3)
    material = r.choice(["asphalt", "asphalt", "asphalt", "asphalt", "tiles"])
    paved = 2.0 if material == "asphalt" else r.uniform(5, 9)
    kerb = paving * r.uniform(0.8, 1.3)
    terrain_side = {side: setting in ("country", "highway") or r.random() < 0.4 for side in (-1, 1)}
    for y in np.arange(-9, 130, 3.0):
        road = Pen(scene, r, props.ROAD, at=(0, y, 0))
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
                walk = Pen(scene, r, props.SIDEWALK, at=(0, y, 0))
                walk.seed = 2.0 + side
                walk.draw("box", (side * (edge + walks[side] / 2), 0, 0.02), (walks[side], 3.02, 0.26), paving, color2=paving * 0.85,
                          material="tiles", texture=1.6)  # fmt: skip
                walk.draw("box", (side * (edge + 0.07), 0, 0.022), (0.16, 3.02, 0.27), kerb, material="asphalt", texture=2)
                edge += walks[side]
            beyond = Pen(scene, r, props.TERRAIN if terrain_side[side] else props.SIDEWALK, at=(0, y, 0))
            beyond.seed = 5.0 + side
            beyond.draw("box", (side * (edge + 30), 0, -0.02), (60, 3.02, 0.2), green if terrain_side[side] else paving * 0.9,
                        color2=green * 0.5 if terrain_side[side] else paving * 0.8, material="grass" if terrain_side[side] else "tiles")  # fmt: skip


def _markings(scene: Scene, r, lanes: int, lane_width: float, half: float) -> None:
    if r.random() < 0.12:
        return
    paint = np.full(3, r.uniform(0.6, 0.95)) if r.random() < 0.85 else np.array((0.85, 0.65, 0.1))
    pen = Pen(scene, r, props.ROAD)
    step, dash = r.uniform(6, 12), r.uniform(2, 4)
    wear = {"material": "asphalt", "texture": 2.0}
    for i in range(1, lanes):
        x = (i - lanes / 2) * lane_width
        solid = r.random() < 0.2
        for y in np.arange(-6, 110, 3.0 if solid else step):
            pen.draw("box", (x, y, 0.004), (0.13, 3.05 if solid else dash, 0.01), paint, **wear)
    if r.random() < 0.6:
        for y in np.arange(-6, 110, 3.0):
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


def _horizon(scene: Scene, r, setting: str) -> None:
    """Woods, hills and roofs far away: the world does not end where the road does."""
    x = -150.0
    while x < 150:
        wide, y = r.uniform(12, 40), r.uniform(118, 135)
        roll = r.random()
        if roll < (0.25 if setting in ("city", "suburb") else 0.05):
            props.building(Pen(scene, r, props.BUILDING, at=(x, y, 0), yaw=-np.pi / 2 + np.pi), r, wide, 12, r.uniform(8, 35))
        elif roll < 0.85:
            green = np.array((0.16, 0.25, 0.09)) * r.uniform(0.6, 1.3)
            pen, tall = Pen(scene, r, props.VEGETATION, at=(x, y, 0)), r.uniform(5, 18)
            for _ in range(4):
                s = wide * r.uniform(0.3, 0.6)
                pen.draw("sphere", (r.uniform(-0.5, 0.5) * wide, 0, 0), (s, 10, tall * r.uniform(1.2, 2)), green, color2=green * 0.5,
                         material="foliage", displacement=0.3, texture=0.15)  # fmt: skip
        x += wide * 0.8


def _roadside(scene: Scene, r, side: int, half: float, walk: float, setting: str, night: float) -> None:
    edge = half + walk
    heading = 0.0 if side > 0 else np.pi
    x0 = edge + (r.uniform(0.3, 2) if setting == "city" else r.uniform(3, 12))
    built = {"city": 0.95, "suburb": 0.75, "country": 0.15, "highway": 0.1}[setting]
    y = r.uniform(-8, 0)
    while y < 120:
        width = r.uniform(7, 24)
        if r.random() < built:
            height = r.uniform(8, 28) if setting == "city" else r.uniform(3.5, 9)
            x = x0 + r.uniform(0, 3)
            props.building(
                Pen(scene, r, props.BUILDING, at=(side * x, y + width / 2, 0), yaw=heading), r, width * 0.96, 12, height, night
            )
        elif r.random() < 0.9:
            for _ in range(int(r.integers(2, 7))):
                props.tree(Pen(scene, r, props.VEGETATION, at=(side * (x0 + r.uniform(2, 22)), y + r.uniform(0, width), 0)), r)
        y += width
    # a wall, hedge or fence along the edge
    if r.random() < 0.55:
        kind = r.choice(["wall", "fence", "hedge", "fence"])
        for y in np.arange(r.uniform(-4, 20), r.uniform(40, 110), 4.0):
            if r.random() < 0.9:
                at = (side * (edge + 0.25), y, 0.0)
                if kind == "wall":
                    state = np.random.default_rng(int(abs(edge) * 1e6))
                    props.wall(Pen(scene, r, props.WALL, at=at), state, 4.05)
                elif kind == "fence":
                    state = np.random.default_rng(int(abs(edge) * 1e6))
                    props.fence(Pen(scene, r, props.FENCE, at=at, yaw=0 if side > 0 else np.pi), state, 4.05)
                else:
                    state = np.random.default_rng(int(abs(edge) * 1e6))
                    props.hedge(Pen(scene, r, props.VEGETATION, at=at), state, 4.05)
    trees = r.random() < 0.6
    spacing = r.uniform(7, 16)
    for y in np.arange(r.uniform(4, 12), 100, spacing):
        x = side * (half + min(max(walk * 0.3, 0.5), 1.0))
        place = (x, y + r.normal(0, 1.0), 0.1)
        roll = r.random()
        if trees and roll < 0.5:
            props.tree(Pen(scene, r, props.VEGETATION, at=place, scale=r.uniform(0.6, 1)), r)
        elif roll < 0.68:
            props.street_lamp(Pen(scene, r, props.POLE, at=place, yaw=heading), r, night)
        elif roll < 0.86:
            props.traffic_sign(Pen(scene, r, props.SIGN, at=place, yaw=r.normal(0, 0.25)), r)
        elif roll < 0.95:
            props.bollard(Pen(scene, r, props.POLE, at=place), r)
        if r.random() < 0.25:
            props.bush(Pen(scene, r, props.VEGETATION, at=(side * (edge + r.uniform(0.6, 4)), y, 0)), r)
    if r.random() < 0.45:
        for _ in range(int(r.integers(1, 3))):
            at = (side * (half + 0.5), r.uniform(9, 35), 0.1)
            props.traffic_light(Pen(scene, r, props.LIGHT, at=at, yaw=(0.0 if side > 0 else np.pi * 0) + r.normal(0, 0.1)), r)
    if setting in ("city", "country") and r.random() < 0.12:
        at = (side * (edge + r.uniform(2, 4)), r.uniform(10, 30), 0.0)
        props.train(Pen(scene, r, props.TRAIN, at=at, yaw=r.normal(0, 0.02)), r, night)


def _free(taken: list, x: float, y: float, space: float) -> bool:
    return all(abs(x - a) > (1.9 + space * 0.3) or abs(y - b) > (c + space) / 2 + 0.8 for a, b, c in taken)


def _traffic(scene: Scene, r, lanes: int, lane_width: float, night: float, taken: list, setting: str) -> None:
    choices = [(props.car, props.CAR, 4.6), (props.truck, props.TRUCK, 9.0), (props.bus, props.BUS, 12.0), (props.train, props.TRAIN, 45.0),
               (props.rider, props.RIDER, 2.0), (props.motorcycle, props.MOTORCYCLE, 2.2)]  # fmt: skip
    weights = np.array([0.56, 0.14, 0.09, 0.03, 0.14, 0.04])
    for _ in range(int(r.integers(0, 9))):
        draw, class_id, space = choices[int(r.choice(6, p=weights))]
        lane = int(r.integers(0, lanes))
        x, y = (lane - (lanes - 1) / 2) * lane_width + r.normal(0, 0.15), r.uniform(7, 80) + space / 2
        if class_id == props.TRAIN:
            y = r.uniform(14, 40)
        if not _free(taken, x, y, space):
            continue
        taken.append((x, y, space))
        oncoming = lanes > 1 and lane < lanes / 2
        yaw = (0.0 if oncoming else np.pi) + r.normal(0, 0.04) + (r.uniform(-1.5, 1.5) if r.random() < 0.06 and space < 10 else 0)
        if class_id == props.TRAIN:
            yaw = r.normal(0, 0.01)
        draw(Pen(scene, r, class_id, at=(x, y, 0), yaw=yaw), r, night)


def _people(scene: Scene, r, half, walks, taken, night: float) -> None:
    for _ in range(int(r.integers(0, 9))):
        side = int(r.choice([-1, 1]))
        if walks[side] and r.random() < 0.85:
            x, y, z = side * (half[side] + r.uniform(0.3, walks[side])), r.uniform(4, 45), 0.15
        else:
            x, y, z = r.uniform(-half[-1], half[1]), r.uniform(7, 40), 0.0
            if not _free(taken, x, y, 1.0):
                continue
        at, yaw = (x, y, z), r.uniform(0, 2 * np.pi)
        roll = r.random()
        if roll < 0.8:
            props.person(Pen(scene, r, props.PERSON, at=at, yaw=yaw), r)
        elif roll < 0.93:
            props.bicycle(Pen(scene, r, props.BICYCLE, at=at, yaw=yaw, tilt=(0.0, 0.1)), r)
        else:
            props.motorcycle(Pen(scene, r, props.MOTORCYCLE, at=at, yaw=yaw, tilt=(0.0, 0.12)), r, 0.0)


def _hazards(world: World, r, half: float, split: str, cutouts: list[str], only, span, taken: list, lane_x: float) -> None:
    pool = list(only) if only else list(HELD_OUT if split == "held_out" else SEEN)
    for _ in range(int(r.choice([1, 1, 2, 2, 3]))):
        y = r.uniform(*span) if r.random() < 0.5 else r.uniform(span[0], span[0] + (span[1] - span[0]) * 0.35)
        x = r.uniform(-half + 0.6, half - 0.6) if r.random() < 0.5 else np.clip(lane_x + r.normal(0, 1.2), -half + 0.5, half - 0.5)
        if not _free(taken, x, y, 1.5):
            continue
        taken.append((x, y, 1.5))
        if cutouts and not only and r.random() < 0.4:
            _cutout(world, r, cutouts, (x, y, 0.0), r.uniform(0.35, 1.7))
            continue
        name = str(r.choice(pool))
        instance = len(world.hazards) + 1
        world.hazards[instance] = (name, "procedural")
        pen = Pen(
            world.scene, r, HAZARD_CLASS, at=(x, y, 0.0), yaw=r.uniform(0, 2 * np.pi), scale=r.uniform(0.8, 1.25), instance=instance
        )
        SHAPES[name](pen, r)


def _cutout(world: World, r, names: list[str], at, height: float) -> None:
    name = str(r.choice(names))
    if name not in world.pictures:
        world.pictures.append(name)
    instance = len(world.hazards) + 1
    world.hazards[instance] = (name, "cutout")
    flip = float(r.choice([-1, 1]))
    world.cutouts.append((at[0], at[1], at[2], r.normal(0, 0.25), flip * height, height, world.pictures.index(name), r.uniform(0.7, 1.1),
                          HAZARD_CLASS, instance))  # fmt: skip
