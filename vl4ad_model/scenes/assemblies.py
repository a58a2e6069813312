"""Things that have no name: shapes put together at random, so that training meets more than the named hazard types.

None is drawn after a type, held out or not: what is asked for is a plausible solid thing of 0.25 to 2.4 m in any colours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vl4ad_model.scenes.hazard_shapes import METAL, RUBBER, any_color, legs, upholstery, wood
from vl4ad_model.scenes.primitives import Pen

NAME = "strange object"
SMALLEST, LARGEST = 0.25, 2.4  # metres, of the longest side
_SOLIDS = ("box", "box", "rounded", "rounded", "cylinder", "frustum", "wedge", "prism", "blob", "sphere", "cone", "pail", "torus")
_BODIES = ("box", "box", "rounded", "rounded", "cylinder", "frustum", "wedge", "prism", "blob", "hull")
_SURFACES = ("plain", "paint", "paint", "fabric", "wood", "metal", "tiles", "stripes", "fur", "sign", "glass")


def _color(r) -> np.ndarray:
    kind = r.random()
    if kind < 0.4:
        return any_color(r)
    if kind < 0.55:
        return upholstery(r)
    if kind < 0.7:
        return wood(r)
    if kind < 0.8:
        return np.array(METAL) * r.uniform(0.4, 1.4)
    return np.full(3, r.uniform(0.02, 0.95)) * r.uniform(0.92, 1.08, 3)


def _look(r, palette: list[np.ndarray]) -> dict:
    """Colours and surface of one part."""
    color = np.clip(palette[int(r.integers(len(palette)))] * r.uniform(0.8, 1.2), 0, 1)
    second = palette[int(r.integers(len(palette)))] if r.random() < 0.5 else color * 0.7
    return {
        "color": color, "color2": second, "material": str(r.choice(_SURFACES)), "texture": float(r.uniform(0.7, 6)),
        "gloss": float(r.uniform(0, 0.9)),
    }  # fmt: skip


def _extent(r) -> np.ndarray:
    """Width, depth and height: any proportions, low rather than tall, half of them as large as furniture."""
    longest = r.uniform(0.9, LARGEST) if r.random() < 0.5 else np.exp(r.uniform(np.log(SMALLEST), np.log(LARGEST)))
    size = longest * r.uniform(0.25, 1.0, 3)
    size[int(r.integers(3))] = longest
    size[2] = min(size[2], 1.7)
    return size


def _stack(p: Pen, r, palette) -> None:
    """Two to five solids on top of each other."""
    width, depth, height = _extent(r)
    parts = int(r.integers(2, 6))
    shares = r.dirichlet(np.full(parts, 1.5))
    z = 0.0
    for share in shares:
        h = max(0.04, share * height)
        shrink = r.uniform(0.45, 1.1)
        at = (r.normal(0, 0.06) * width, r.normal(0, 0.06) * depth, z + h / 2)
        p.draw(str(r.choice(_SOLIDS)), at, (width * shrink, depth * shrink, h), yaw=r.normal(0, 0.15), **_look(r, palette))
        z += h * r.uniform(0.85, 1.0)


def _body(p: Pen, r, palette) -> None:
    """One solid with parts on it, mostly alike left and right, on legs, on wheels or on the ground."""
    width, depth, height = _extent(r)
    stand = r.choice(["ground", "ground", "legs", "wheels"])
    foot = 0.0 if stand == "ground" else r.uniform(0.1, 0.45) * height
    tall = height - foot
    middle = foot + tall / 2
    p.draw(
        str(r.choice(_BODIES)), (0, 0, middle), (width, depth, tall), displacement=r.choice([0.0, 0.0, 0.1]), **_look(r, palette)
    )
    if stand == "legs":
        legs(p, width * 0.85, depth * 0.85, foot + 0.02, r.uniform(0.03, 0.12), palette[-1] * 0.7)
    elif stand == "wheels":
        d = max(0.08, min(foot * 1.6, 0.6))
        for x in (-width * 0.45, width * 0.45):
            for y in (-depth * 0.36, depth * 0.36):
                p.draw("cylinder", (x, y, d / 2), (d, d, 0.08), RUBBER, roll=np.pi / 2)
    for _ in range(int(r.integers(1, 7))):
        size = np.array([width, depth, tall]) * r.uniform(0.12, 0.6, 3)
        side = int(r.integers(4))
        at = np.array([r.uniform(-0.4, 0.4) * width, r.uniform(-0.4, 0.4) * depth, middle + r.uniform(-0.4, 0.4) * tall])
        if side == 0:
            at[2] = foot + tall + size[2] * 0.3
        elif side == 1:
            at[1] = -depth / 2
        elif side == 2:
            at[1] = depth / 2
        else:
            at[0] = width / 2
        mesh, look, turn = str(r.choice(_SOLIDS)), _look(r, palette), r.choice([0.0, 0.0, np.pi / 2, r.uniform(-0.6, 0.6)])
        at[2] = max(at[2], size[2] / 2)
        for x in (-at[0], at[0]) if r.random() < 0.7 else (at[0],):
            p.draw(mesh, (x, at[1], at[2]), size, pitch=turn, **look)


def _frame(p: Pen, r, palette) -> None:
    """Rods along the edges of a box, some of its faces closed."""
    width, depth, height = _extent(r)
    color, thick, material = palette[0], r.uniform(0.02, 0.08), str(r.choice(["metal", "wood", "paint"]))
    w, d = width / 2, depth / 2
    for x in (-w, w):
        for y in (-d, d):
            p.rod((x, y, 0), (x * r.uniform(0.7, 1.0), y, height), thick, color, material=material)
    for z in (height, height * r.uniform(0.2, 0.6)):
        for x in (-w, w):
            p.rod((x, -d, z), (x, d, z), thick, color, material=material)
        for y in (-d, d):
            p.rod((-w, y, z), (w, y, z), thick, color, material=material)
    faces = [
        ((0, 0, height), (width, depth, 0.03)),
        ((0, d, height / 2), (width, 0.03, height)),
        ((-w, 0, height / 2), (0.03, depth, height)),
        ((0, 0, height * 0.3), (width, depth, 0.03)),
        ((0, -d, height * 0.3), (width, 0.03, height * 0.6)),
    ]
    for at, size in faces:
        if r.random() < 0.45:
            p.draw("box", at, size, **_look(r, palette))


def _heap(p: Pen, r, palette) -> None:
    """A few small solids side by side."""
    spread = r.uniform(0.2, 0.9)
    for _ in range(int(r.integers(2, 9))):
        size = r.uniform(0.12, 0.5) * r.uniform(0.4, 1.2, 3)
        at = (r.normal(0, spread) * 0.6, r.normal(0, spread) * 0.4, size[2] * 0.5)
        p.draw(str(r.choice(_SOLIDS)), at, size, yaw=r.uniform(0, 6), pitch=r.normal(0, 0.3), **_look(r, palette))


_KINDS: tuple[Callable, ...] = (_stack, _body, _body, _body, _frame, _heap)


def assembly(p: Pen, r) -> None:
    """Draw one at the pen's place."""
    palette = [_color(r) for _ in range(int(r.integers(1, 4)))]
    _KINDS[int(r.integers(len(_KINDS)))](p, r, palette)
