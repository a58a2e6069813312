"""Composes a street: ground, houses, plants, traffic, people, hazards, light and a camera, all from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from vl4ad_model.scenes import assemblies, classes, people, street, vehicles
from vl4ad_model.scenes import everyday as everyday_things
from vl4ad_model.scenes.classes import HAZARD_CLASS
from vl4ad_model.scenes.hazard_shapes import SHAPES
from vl4ad_model.scenes.hazards import HELD_OUT, SEEN
from vl4ad_model.scenes.primitives import Pen, Scene

WEATHER = ("clear", "cloudy", "overcast", "rain", "fog", "snow", "dusk", "night")


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


@dataclass(frozen=True)
class Actor:
    """Something that moves along the street: drawn anew at every moment, always from the same seed.

    Attributes:
        draw: a function of vehicles.py or people.py; `night` and (for people) `walked` are passed by name where it takes them.
        speed: along y, m/s.
    """

    draw: Callable
    class_id: int
    at: tuple[float, float, float]
    yaw: float
    speed: float
    seed: int
    options: dict
    tilt: tuple[float, float] = (0.0, 0.0)

    def place(self, scene: Scene, seconds: float, near: float, far: float) -> None:
        """Draw it where it is after `seconds`, if that is between two places along the street."""
        x, y, z = self.at
        y += self.speed * seconds
        if not near < y < far:
            return
        r = np.random.default_rng(self.seed)
        options = dict(self.options)
        if self.draw is people.person:
            options["walked"] = abs(self.speed) * seconds
        self.draw(Pen(scene, r, self.class_id, at=(x, y, z), yaw=self.yaw, tilt=self.tilt), r, **options)


@dataclass
class World:
    """A street ready to be drawn.

    Attributes:
        scene: what stands still.
        actors: what moves.
        speed: of the camera along y, m/s.
        cutouts: rows (x, y, z, yaw, width, height, picture, brightness, class, instance).
        hazards: instance -> (name, kind), kind is "procedural", "cutout" or "assembly".
        pictures: names of the cut-outs that `cutouts` refers to by index.
    """

    scene: Scene
    light: Light
    camera: Camera
    bend: tuple[float, float, float]
    cutouts: list[tuple[float, ...]] = field(default_factory=list)
    hazards: dict[int, tuple[str, str]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    speed: float = 0.0

    def at(self, seconds: float) -> World:
        """The world at a moment: everything in one scene, the camera where it has got to."""
        scene = Scene()
        scene.rows = {mesh: list(rows) for mesh, rows in self.scene.rows.items()}
        travelled = self.speed * seconds
        for actor in self.actors:
            actor.place(scene, seconds, travelled - 15, travelled + 130)
        # a car is never quite still: it sways and nods a little
        sway = np.array([0.06 * np.sin(0.9 * seconds), travelled, 0.01 * np.sin(5.1 * seconds)]) * (self.speed > 0)
        nod = np.array([0.004 * np.sin(0.7 * seconds), 0, 0.004 * np.sin(2.3 * seconds)]) * (self.speed > 0)
        camera = replace(self.camera, position=self.camera.position + sway, target=self.camera.target + sway + nod)
        return replace(self, scene=scene, camera=camera)


def make_light(r, kind: str | None = None) -> Light:
    """Clear, cloudy, rain, fog, snow, dusk or night."""
    drawn = str(r.choice(WEATHER, p=[0.3, 0.25, 0.18, 0.07, 0.05, 0.04, 0.07, 0.04]))
    kind = kind or drawn
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
               exactly: tuple[str, ...] | None = None, hazard_y: tuple[float, float] = (5.0, 32.0),
               assembled: float = 0.0, everyday: float = 0.0, two_wheelers: float = 0.0) -> World:  # fmt: skip
    """Compose one street.

    Args:
        split: "train" uses seen hazard types only; "held_out" only types that no training sees; "seen" only seen ones, always.
        quiet: nothing unusual in view; None = one in four.
        cutout_names: cut-outs that may be pasted.
        exactly: these hazard types instead, one of each.
        hazard_y: how far ahead hazards lie on the road, metres.
        assembled: share of the drawn hazards that are assemblies, things without a name.
        everyday: how likely the street has manhole covers, puddles, leafless trees and the like (everyday.py). The rest of it
            is the same with and without them.
        two_wheelers: how likely more bicycles, motorcycles and riders than usual are near; the rest stays the same here, too.
    """
    r = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    scene, light = Scene(), make_light(r)
    bend = (r.normal(0, 0.0012), r.normal(0, 0.0003), r.normal(0, 0.01))
    lanes, lane_width = int(r.integers(1, 5)), r.uniform(2.9, 3.7)
    half = lanes * lane_width / 2 + r.uniform(0, 0.6)
    lane_x = (int(r.integers(0, lanes)) - (lanes - 1) / 2) * lane_width
    world = World(scene, light, make_camera(r, lane_x), bend)
    setting = r.choice(["city", "city", "suburb", "suburb", "country", "highway"])
    walks = {side: r.uniform(1.5, 4.5) if setting in ("city", "suburb") and r.random() < 0.9 else 0.0 for side in (-1, 1)}
    parking = {side: setting in ("city", "suburb") and r.random() < 0.5 for side in (-1, 1)}
    half_all = {side: half + (2.2 if parking[side] else 0.0) for side in (-1, 1)}
    dirt = setting in ("country", "suburb") and not any(walks.values()) and r.random() < 0.4
    surface = "dirt" if dirt else str(r.choice(["asphalt", "tiles"], p=[0.85, 0.15]))
    street.ground(scene, r, half_all, walks, setting, surface)
    if not dirt:
        street.markings(scene, r, lanes, lane_width, half)
    street.horizon(scene, r, setting)
    for side in (-1, 1):
        street.roadside(scene, r, side, half_all[side], walks[side], setting, light.night)
        if parking[side]:
            street.parked(scene, r, side, half_all[side])
    taken = [(lane_x, -10.0, 4.5)]
    hazards = r.random() > 0.25 if quiet is None else not quiet
    if hazards:
        _hazards(world, r, half, split, cutout_names or [], exactly, hazard_y, taken, lane_x, assembled)
    _traffic(world, r, lanes, lane_width, taken)
    _people(world, r, half_all, walks, taken)
    if cutout_names and not (quiet or split == "quiet") and r.random() < 0.35:
        for _ in range(int(r.integers(1, 4))):
            side = int(r.choice([-1, 1]))
            x = side * (half_all[side] + r.uniform(0.8, 6))
            _cutout(world, r, cutout_names, (x, r.uniform(6, 30), 0.1), r.uniform(0.5, 2.0))
    of_its_own = np.random.default_rng(np.random.SeedSequence([seed, 17]))
    if of_its_own.random() < everyday:
        everyday_things.draw(scene, of_its_own, half_all, walks, paved=not dirt, night=light.night)
    of_its_own = np.random.default_rng(np.random.SeedSequence([seed, 19]))
    if of_its_own.random() < two_wheelers:
        _two_wheelers(world, of_its_own, half_all, walks, taken)
    return world


def _free(taken: list, x: float, y: float, space: float) -> bool:
    return all(abs(x - a) > (1.9 + space * 0.3) or abs(y - b) > (c + space) / 2 + 0.8 for a, b, c in taken)


def _traffic(world: World, r, lanes: int, lane_width: float, taken: list) -> None:
    choices = [
        (vehicles.car, classes.CAR, 4.6),
        (vehicles.truck, classes.TRUCK, 9.0),
        (vehicles.bus, classes.BUS, 12.0),
        (vehicles.train, classes.TRAIN, 45.0),
        (people.rider, classes.RIDER, 2.0),
        (vehicles.motorcycle, classes.MOTORCYCLE, 2.2),
    ]
    weights = np.array([0.56, 0.14, 0.09, 0.03, 0.14, 0.04])
    for _ in range(int(r.integers(0, 9))):
        draw, class_id, space = choices[int(r.choice(6, p=weights))]
        lane = int(r.integers(0, lanes))
        x, y = (lane - (lanes - 1) / 2) * lane_width + r.normal(0, 0.15), r.uniform(7, 80) + space / 2
        if class_id == classes.TRAIN:
            y = r.uniform(14, 40)
        if not _free(taken, x, y, space):
            continue
        taken.append((x, y, space))
        oncoming = lanes > 1 and lane < lanes / 2
        yaw = (0.0 if oncoming else np.pi) + r.normal(0, 0.04) + (r.uniform(-1.5, 1.5) if r.random() < 0.06 and space < 10 else 0)
        if class_id == classes.TRAIN:
            yaw = r.normal(0, 0.01)
        options = {"night": world.light.night}
        world.actors.append(Actor(draw, class_id, (x, y, 0.0), yaw, 0.0, int(r.integers(2**31)), options))


def _people(world: World, r, half, walks, taken) -> None:
    crowd = r.random() < 0.12
    for _ in range(int(r.integers(14, 28)) if crowd else int(r.integers(0, 9))):
        side = int(r.choice([-1, 1]))
        if walks[side] and r.random() < 0.85:
            x, y, z = side * (half[side] + r.uniform(0.3, walks[side])), r.uniform(4, 45), 0.15
        else:
            x, y, z = r.uniform(-half[-1], half[1]), r.uniform(7, 40), 0.0
            if not _free(taken, x, y, 1.0):
                continue
        roll = r.random()
        draw, class_id, lean = (
            (people.person, classes.PERSON, 0.0) if roll < 0.8 else (vehicles.bicycle, classes.BICYCLE, 0.1) if roll < 0.93 else
            (vehicles.motorcycle, classes.MOTORCYCLE, 0.12)
        )  # fmt: skip
        world.actors.append(Actor(draw, class_id, (x, y, z), r.uniform(0, 2 * np.pi), 0.0, int(r.integers(2**31)), {}, (0.0, lean)))


def _two_wheelers(world: World, r, half, walks, taken) -> None:
    """Bicycles and motorcycles parked in rows beside the road, and riders on it."""
    for _ in range(int(r.integers(1, 4))):
        side = int(r.choice([-1, 1]))
        x, y, yaw = side * (half[side] + r.uniform(0.3, max(walks[side], 1.2))), r.uniform(4, 22), r.uniform(0, 2 * np.pi)
        z, apart = 0.15 if walks[side] else 0.0, r.uniform(0.45, 1.3)
        for number in range(int(r.integers(1, 6))):
            draw, class_id, lean = (
                (vehicles.bicycle, classes.BICYCLE, 0.1) if r.random() < 0.6 else (vehicles.motorcycle, classes.MOTORCYCLE, 0.12)
            )
            place = (x + r.normal(0, 0.1), y + number * apart, z)
            world.actors.append(Actor(draw, class_id, place, yaw + r.normal(0, 0.15), 0.0, int(r.integers(2**31)), {}, (0.0, lean)))
    for _ in range(int(r.integers(1, 5))):
        x, y = r.uniform(-half[-1] + 0.4, half[1] - 0.4), r.uniform(5, 26)
        if not _free(taken, x, y, 2.0):
            continue
        taken.append((x, y, 2.0))
        draw, class_id = (people.rider, classes.RIDER) if r.random() < 0.75 else (vehicles.motorcycle, classes.MOTORCYCLE)
        yaw = (r.choice([0.0, np.pi]) if r.random() < 0.7 else r.uniform(0, 2 * np.pi)) + r.normal(0, 0.1)
        options = {"night": world.light.night}
        world.actors.append(Actor(draw, class_id, (x, y, 0.0), yaw, 0.0, int(r.integers(2**31)), options))


def _hazards(
    world: World, r, half: float, split: str, cutouts: list[str], exactly, span, taken: list, lane_x: float, assembled: float
) -> None:
    pool = HELD_OUT if split == "held_out" else SEEN
    wanted: list[str | None] = list(exactly) if exactly else [None] * int(r.choice([1, 1, 2, 2, 3]))
    for name in wanted:
        y = r.uniform(*span) if r.random() < 0.5 else r.uniform(span[0], span[0] + (span[1] - span[0]) * 0.35)
        x = r.uniform(-half + 0.6, half - 0.6) if r.random() < 0.5 else np.clip(lane_x + r.normal(0, 1.2), -half + 0.5, half - 0.5)
        if not _free(taken, x, y, 1.5):
            continue
        taken.append((x, y, 1.5))
        if name is None and assembled and r.random() < assembled:
            _assembly(world, r, (x, y, 0.0))
        elif name is None and cutouts and r.random() < 0.4:
            _cutout(world, r, cutouts, (x, y, 0.0), r.uniform(0.35, 1.7))
        else:
            place_hazard(world, r, name or str(r.choice(pool)), (x, y, 0.0))


def place_hazard(world: World, r, name: str, at: tuple[float, float, float], yaw: float | None = None) -> None:
    """Put a procedural hazard down as the next instance, turned any way round where no `yaw` (radians) is given."""
    instance = len(world.hazards) + 1
    world.hazards[instance] = (name, "procedural")
    yaw, scale = r.uniform(0, 2 * np.pi) if yaw is None else yaw, r.uniform(0.8, 1.25)
    SHAPES[name](Pen(world.scene, r, HAZARD_CLASS, at=at, yaw=yaw, scale=scale, instance=instance), r)


def _assembly(world: World, r, at: tuple[float, float, float]) -> None:
    instance = len(world.hazards) + 1
    world.hazards[instance] = (assemblies.NAME, "assembly")
    pen = Pen(world.scene, r, HAZARD_CLASS, at=at, yaw=r.uniform(0, 2 * np.pi), instance=instance)
    assemblies.assembly(pen, r)


def _cutout(world: World, r, names: list[str], at, height: float) -> None:
    name = str(r.choice(names))
    if name not in world.pictures:
        world.pictures.append(name)
    instance = len(world.hazards) + 1
    world.hazards[instance] = (name, "cutout")
    flip = float(r.choice([-1, 1]))
    world.cutouts.append(
        (
            at[0],
            at[1],
            at[2],
            r.normal(0, 0.25),
            flip * height,
            height,
            world.pictures.index(name),
            r.uniform(0.7, 1.1),
            HAZARD_CLASS,
            instance,
        )
    )
