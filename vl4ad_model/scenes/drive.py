"""A drive down one street: the same world seen from a moving camera, with traffic, walkers and hazards on the closed lane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes import classes, people, street, vehicles
from vl4ad_model.scenes.dataset import label, renderer_for
from vl4ad_model.scenes.hazards import BY_NAME
from vl4ad_model.scenes.postprocess import Style, develop, meter
from vl4ad_model.scenes.primitives import Scene
from vl4ad_model.scenes.world import WEATHER, Actor, Camera, World, make_light, place_hazard

MAX_HAZARDS = 100  # labels 100..199


@dataclass(frozen=True)
class DrivePlan:
    """What a drive shows: the same plan gives the same frames on one machine.

    Attributes:
        hazards: names of hazard types; they come again in this order along the way.
        weather: one of WEATHER, or None for the seed's own.
        spacing: metres between hazards.
    """

    seed: int = 0
    seconds: float = 12.0
    rate: float = 10.0
    hazards: tuple[str, ...] = ("tyre", "sofa", "cardboard box", "ladder")
    height: int = 384
    width: int = 640
    speed: float = 5.0
    weather: str | None = "cloudy"
    spacing: float = 7.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.hazards if name not in BY_NAME]
        if unknown:
            raise SceneError(f"hazard type '{unknown[0]}' is unknown: use {', '.join(BY_NAME)}")
        if self.weather not in (None, *WEATHER):
            raise SceneError(f"weather '{self.weather}' is unknown: use {', '.join(WEATHER)}")
        if not (0 < self.seconds <= 300 and 0 < self.rate <= 100 and 0 < self.speed <= 40 and self.spacing > 0):
            raise SceneError("a drive can be at most 300 s long, at up to 100 Hz and 40 m/s, with hazard spacing above 0")
        if self.height < 64 or self.width < 64:
            raise SceneError("the picture must be at least 64x64")
        if self.hazards and (self.seconds * self.speed + 40) / self.spacing > MAX_HAZARDS:
            raise SceneError(f"more than {MAX_HAZARDS} hazards on the way: drive less far or place them further apart")

    @property
    def frames(self) -> int:
        return max(1, round(self.seconds * self.rate))


class DriveFrame(NamedTuple):
    """seconds since the start; rgb: (H, W, 3) uint8; labels: (H, W) uint8, hazard i of the drive is 100 + i."""

    seconds: float
    rgb: np.ndarray
    labels: np.ndarray


def make_drive(plan: DrivePlan) -> World:
    """Three lanes: oncoming traffic, the camera behind a car, and a closed lane where the hazards lie."""
    r = np.random.default_rng(np.random.SeedSequence([plan.seed, 13]))
    light = make_light(r, plan.weather)
    length = plan.speed * plan.seconds + street.LENGTH
    lane = r.uniform(3.1, 3.5)
    half = 1.5 * lane + 0.3
    position = np.array([r.normal(0, 0.1) - 0.1, 0.0, r.uniform(1.3, 1.6)])
    camera = Camera(position, position + np.array([0.06, 1.0, -0.05]), 0.0, np.deg2rad(70.0))
    world = World(Scene(), light, camera, (0.0, 0.0, 0.0), speed=plan.speed)
    walks, halves = {-1: 2.5, 1: 3.0}, {-1: half + 2.2, 1: half}
    street.ground(world.scene, r, halves, walks, "city", "asphalt", length)
    street.markings(world.scene, r, 3, lane, half, length)
    street.horizon(world.scene, r, "city", length)
    for side in (-1, 1):
        street.roadside(world.scene, r, side, halves[side], walks[side], "city", light.night, length)
    street.parked(world.scene, r, -1, halves[-1], length)
    y, index = 9.0, 0
    while plan.hazards and y < plan.speed * plan.seconds + 35:
        at = (lane + r.uniform(-0.7, 0.5), y, 0.0)
        place_hazard(world, r, plan.hazards[index % len(plan.hazards)], at, yaw=r.normal(0, 0.6))
        y, index = y + plan.spacing * r.uniform(0.85, 1.15), index + 1
    _traffic(world, r, plan, lane)
    _walkers(world, r, plan, half)
    return world


def _traffic(world: World, r, plan: DrivePlan, lane: float) -> None:
    options = {"night": world.light.night}
    kinds = [
        (vehicles.car, classes.CAR),
        (vehicles.truck, classes.TRUCK),
        (vehicles.bus, classes.BUS),
        (people.rider, classes.RIDER),
    ]
    y, toward = 18.0, 7.0
    while y < street.LENGTH + plan.seconds * (plan.speed + toward):
        draw, class_id = kinds[int(r.choice(4, p=[0.6, 0.12, 0.12, 0.16]))]
        world.actors.append(
            Actor(draw, class_id, (-lane + r.normal(0, 0.12), y, 0.0), 0.0, -toward, int(r.integers(2**31)), options)
        )
        y += r.uniform(17, 34)
    world.actors.append(
        Actor(vehicles.car, classes.CAR, (r.normal(0, 0.1), 24.0, 0.0), np.pi, plan.speed * 1.04, int(r.integers(2**31)), options)
    )


def _walkers(world: World, r, plan: DrivePlan, half: float) -> None:
    for _ in range(int(6 + plan.seconds * plan.speed / 7)):
        side, onward = int(r.choice([-1, 1])), r.random() < 0.5
        x = side * (half + (2.2 if side < 0 else 0.0) + r.uniform(0.5, 2.2))
        at = (x, r.uniform(4, plan.speed * plan.seconds + 50), 0.15)
        pace = r.uniform(0.9, 1.6) if r.random() < 0.8 else 0.0
        yaw = np.pi if onward else 0.0
        world.actors.append(Actor(people.person, classes.PERSON, at, yaw, pace if onward else -pace, int(r.integers(2**31)), {}))


def frames_of(plan: DrivePlan, world: World) -> Iterator[DriveFrame]:
    """Render a drive frame by frame: one exposure and one style throughout, fresh noise in every frame."""
    renderer, style, metering = renderer_for(plan.height, plan.width), Style.good(), None
    numbers = {instance: classes.FIRST_HAZARD + instance - 1 for instance in world.hazards}
    for index in range(plan.frames):
        moment = world.at(index / plan.rate)
        drawn = renderer.render(moment)
        metering = meter(drawn.image) if metering is None else metering
        r = np.random.default_rng(np.random.SeedSequence([plan.seed, 17, index]))
        labels, _ = label(drawn, world, numbers)
        yield DriveFrame(index / plan.rate, develop(drawn.image, world.light, style, r, metering), labels)
