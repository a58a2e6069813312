"""What ordinary streets are full of, and a network takes for hazards until it has seen it.

On the road manhole covers, gratings, patches, sealed cracks, puddles, leaves, arrows and rails; beside it leafless trees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vl4ad_model.scenes import classes
from vl4ad_model.scenes.primitives import Pen, Scene

TOP = 0.006  # metres: above the paint of markings


@dataclass(frozen=True)
class _Road:
    left: float
    right: float

    def somewhere(self, r, margin: float, far: float = 40.0) -> tuple[float, float]:
        """A place on the road, as often near as far away in the picture."""
        near = 3.0
        return r.uniform(self.left + margin, self.right - margin), near * (far / near) ** r.random()


def draw(scene: Scene, r, half: dict[int, float], walks: dict[int, float], *, paved: bool, night: float) -> None:
    """Add a few kinds of it to a street.

    Args:
        r: a generator of its own, so that the rest of the street does not depend on this.
        half: the road's half widths, metres, by side (-1 left, 1 right).
        walks: width of the pavements by side, metres.
        paved: False = a dirt road, which has only puddles and leaves.
        night: 0 at day to 1 at night; leafless trees are left out in the dark.
    """
    road, pen = _Road(-half[-1], half[1]), Pen(scene, r, classes.ROAD)
    chances: list[tuple[Callable[[Pen, np.random.Generator, _Road], None], float]] = [
        (_covers, 0.6), (_gratings, 0.3), (_patches, 0.35), (_seals, 0.35), (_puddles, 0.2), (_leaves, 0.35), (_arrows, 0.3),
        (_rails, 0.08),
    ]  # fmt: skip
    for add, chance in chances:
        if r.random() < chance and (paved or add in (_puddles, _leaves)):
            add(pen, r, road)
    if r.random() < 0.4 and night < 0.9:
        for side in (-1, 1):
            if r.random() < 0.8:
                _leafless_row(scene, r, side, half[side], walks[side])


def _grey(r, low: float, high: float) -> np.ndarray:
    return np.full(3, r.uniform(low, high)) * r.uniform(0.95, 1.05, 3)


def _covers(pen: Pen, r, road: _Road) -> None:
    """Manhole covers: a frame, and a lid of iron or of concrete, which may be much darker or lighter than the road."""
    for _ in range(int(r.integers(1, 6))):
        x, y = road.somewhere(r, 0.6)
        wide = r.uniform(0.55, 0.95)
        if r.random() < 0.3:
            pen.draw("box", (x, y, TOP), (wide * 1.5, wide * 1.5, 0.008), _grey(r, 0.1, 0.45), material="asphalt")
        rim, lid = _grey(r, 0.05, 0.3), _grey(r, 0.08, 0.3) if r.random() < 0.5 else _grey(r, 0.3, 0.8)
        pen.draw("cylinder", (x, y, TOP + 0.002), (wide, wide, 0.01), rim, material="metal", gloss=0.4)
        filled = {"material": str(r.choice(["metal", "asphalt", "plain"])), "gloss": r.uniform(0.1, 0.6)}
        pen.draw("cylinder", (x, y, TOP + 0.005), (wide * r.uniform(0.7, 0.9),) * 2 + (0.01,), lid, **filled)
        if r.random() < 0.4:
            for place in np.linspace(-0.25, 0.25, int(r.integers(2, 5))):
                pen.draw("box", (x + place * wide, y, TOP + 0.008), (0.05 * wide, 0.5 * wide, 0.008), lid * 0.4)


def _gratings(pen: Pen, r, road: _Road) -> None:
    """Gullies at the kerb, or a drain across the road."""
    iron = _grey(r, 0.04, 0.2)
    if r.random() < 0.2:
        y = r.uniform(5, 25)
        wide = road.right - road.left
        pen.draw("box", ((road.left + road.right) / 2, y, TOP), (wide, 0.3, 0.01), iron, color2=iron * 3, material="stripes",
                 texture=r.uniform(4, 12) * wide)  # fmt: skip
        return
    for y in np.arange(r.uniform(4, 12), 45, r.uniform(12, 25)):
        for edge, inward in ((road.left, 1), (road.right, -1)):
            pen.draw("box", (edge + inward * 0.3, y, TOP), (0.45, 0.5, 0.01), iron * 2, material="metal")
            for slot in np.linspace(-0.18, 0.18, 5):
                pen.draw("box", (edge + inward * 0.3, y + slot, TOP + 0.003), (0.36, 0.045, 0.01), iron * 0.3)


def _patches(pen: Pen, r, road: _Road) -> None:
    """Where the road was opened and closed again."""
    for _ in range(int(r.integers(1, 5))):
        x, y = road.somewhere(r, 0.5)
        size = (r.uniform(0.4, 2.5), r.uniform(0.6, 8), 0.01)
        pen.draw("box", (x, y, TOP - 0.002), size, _grey(r, 0.05, 0.42), material="asphalt", yaw=r.normal(0, 0.05))


def _seals(pen: Pen, r, road: _Road) -> None:
    """Cracks filled with tar, which wander along or across the road."""
    tar = _grey(r, 0.02, 0.1)
    for _ in range(int(r.integers(1, 6))):
        at, heading = np.array(road.somewhere(r, 0.3, 30.0)), r.choice([np.pi / 2, 0.0]) + r.normal(0, 0.3)
        wide, gloss = r.uniform(0.04, 0.12), r.uniform(0.1, 0.7)
        for _ in range(int(r.integers(4, 22))):
            heading += r.normal(0, 0.25)
            step = r.uniform(0.3, 0.7) * np.array([np.cos(heading), np.sin(heading)])
            at = at + step
            if not road.left + 0.1 < at[0] < road.right - 0.1:
                break
            middle = at - step / 2
            length = float(np.linalg.norm(step)) * 1.15
            pen.draw("box", (*middle, TOP), (length, wide, 0.008), tar, yaw=heading, gloss=gloss)


def _puddles(pen: Pen, r, road: _Road) -> None:
    """Water that mirrors the sky: round shapes that overlap."""
    for _ in range(int(r.integers(1, 4))):
        x, y = road.somewhere(r, 0.8, 30.0)
        water = _grey(r, 0.03, 0.2)
        for _ in range(int(r.integers(2, 6))):
            size = r.uniform(0.4, 1.6, 2)
            place = (x + r.normal(0, 0.5), y + r.normal(0, 0.9))
            if road.left < place[0] - size[0] / 2 and place[0] + size[0] / 2 < road.right:
                pen.draw("cylinder", (*place, TOP - 0.001), (size[0], size[1], 0.008), water, gloss=1.0)


def _leaves(pen: Pen, r, road: _Road) -> None:
    """Fallen leaves, petals or bits of paper, each the size of a hand at most; mostly along one edge."""
    colours = np.array([(0.45, 0.28, 0.08), (0.5, 0.4, 0.12), (0.3, 0.18, 0.08), (0.35, 0.35, 0.15), (0.6, 0.58, 0.55)])
    tint, along = r.choice(colours), r.random() < 0.6
    edge = road.left if r.random() < 0.5 else road.right
    for _ in range(int(r.integers(20, 220))):
        x, y = road.somewhere(r, 0.1, 25.0)
        if along:
            x = edge + np.sign((road.left + road.right) / 2 - edge) * min(0.15 + r.exponential(0.6), 3.0)
        size = r.uniform(0.04, 0.13, 2)
        pen.draw(
            "box", (x, y, TOP + 0.004), (*size, 0.006), tint * r.uniform(0.5, 1.4), yaw=r.uniform(0, 3.1), pitch=r.normal(0, 0.15)
        )


def _arrows(pen: Pen, r, road: _Road) -> None:
    """Arrows, numbers and hatched areas, painted on the road."""
    paint = _grey(r, 0.6, 0.95)
    for _ in range(int(r.integers(1, 4))):
        x, y = road.somewhere(r, 1.0, 30.0)
        roll = r.random()
        if roll < 0.5:
            pen.draw("box", (x, y, TOP - 0.002), (0.15, 2.2, 0.01), paint, material="asphalt")
            for side in (-1, 1):
                pen.draw(
                    "box", (x + side * 0.2, y + 1.0, TOP - 0.002), (0.15, 0.7, 0.01), paint, material="asphalt", yaw=side * 0.6
                )
        elif roll < 0.8:
            for i in range(int(r.integers(3, 8))):
                pen.draw("box", (x, y + i * 0.7, TOP - 0.002), (1.6, 0.16, 0.01), paint, material="asphalt", yaw=0.6)
        else:
            for i in range(2):
                pen.draw(
                    "box", (x + i * 0.7, y, TOP - 0.002), (0.45, 1.8, 0.01), paint, material="sign", color2=_grey(r, 0.15, 0.3)
                )


def _rails(pen: Pen, r, road: _Road) -> None:
    """A tram's rails along the road."""
    middle, steel = r.uniform(road.left + 1.2, road.right - 1.2), _grey(r, 0.2, 0.5)
    for y in np.arange(-6, 100, 3.0):
        for side in (-0.72, 0.72):
            pen.draw("box", (middle + side, y, TOP), (0.1, 3.05, 0.01), steel, material="metal", gloss=0.8)
            pen.draw("box", (middle + side + 0.07, y, TOP), (0.05, 3.05, 0.01), steel * 0.2)


def _leafless_row(scene: Scene, r, side: int, edge: float, walk: float) -> None:
    """Leafless trees along one side; at a low sun their shadows lie across the road."""
    y = r.uniform(2, 8)
    while y < 75:
        aside = r.uniform(0.5, max(walk - 0.8, 0.6)) if walk else r.uniform(0.6, 2.5)  # in front of the houses
        pen = Pen(scene, r, classes.VEGETATION, at=(side * (edge + aside), y, 0.05))
        _leafless(pen, r, forks=4 if y < 25 else 3 if y < 50 else 2)
        y += r.uniform(3, 12)


def _leafless(pen: Pen, r, *, forks: int) -> None:
    """A trunk that forks so many times; with fewer than three, the twigs are a lace of clumps instead."""
    bark, height = np.array((0.26, 0.21, 0.17)) * r.uniform(0.5, 1.5), r.uniform(4, 13)
    ends = [(np.array([0.0, 0.0, height * 0.3]), np.array([0.0, 0.0, 1.0]), height * r.uniform(0.02, 0.035))]
    pen.rod((0, 0, 0), ends[0][0], ends[0][2] * 1.3, bark, material="wood")
    for level in range(forks):
        grown = []
        for start, along, wide in ends:
            for _ in range(int(r.integers(2, 5)) if level else 5):
                heading = along + r.normal(0, 0.5, 3) + (0, 0, 0.12)
                heading /= np.linalg.norm(heading)
                end = start + heading * height * r.uniform(0.1, 0.24) * (0.85**level)
                thinner = max(wide * r.uniform(0.45, 0.7), 0.018)
                pen.rod(start, end, thinner, bark, material="wood")
                grown.append((end, heading, thinner))
        ends = grown
    if forks < 3:
        for end, _, _ in ends:
            size = height * r.uniform(0.12, 0.2)
            pen.draw("sphere", end, (size, size, size), bark * 1.2, color2=bark * 0.7, material="foliage", displacement=0.3,
                     texture=r.uniform(1.2, 2.0), emission=-0.3)  # fmt: skip
