"""What stands along a street: houses, plants, walls and street furniture, drawn with a Pen in metres."""

from __future__ import annotations

import numpy as np

from vl4ad_model.scenes.classes import POLE
from vl4ad_model.scenes.hazard_shapes import METAL, any_color, wood
from vl4ad_model.scenes.primitives import Pen
from vl4ad_model.scenes.vehicles import GLASS, fleet_paint


def building(p: Pen, r, width: float, depth: float, height: float, night: float = 0.0) -> None:
    """A facade along y of the street; the pen's x points away from the street."""
    kind = r.choice(["walls", "glass"], p=[0.88, 0.12])
    walls = [
        (0.62, 0.55, 0.44),
        (0.5, 0.5, 0.49),
        (0.42, 0.2, 0.13),
        (0.7, 0.66, 0.6),
        (0.55, 0.42, 0.25),
        (0.35, 0.3, 0.27),
        (0.6, 0.45, 0.38),
        (0.45, 0.5, 0.52),
    ]
    c = np.clip(np.array(r.choice(walls)) * r.uniform(0.6, 1.3) * r.uniform(0.92, 1.08, 3), 0.05, 0.9)
    pane = np.array(r.choice([(0.1, 0.13, 0.17), (0.25, 0.32, 0.4), (0.06, 0.06, 0.07)]))
    lit = night * r.uniform(0, 1)
    p.draw(
        "box",
        (depth / 2, 0, height / 2),
        (depth, width, height),
        c,
        color2=pane if kind != "glass" else pane * 1.8,
        material="windows",
        texture=r.uniform(0.7, 1.5),
        gloss=0.9 if kind == "glass" else 0.2,
        emission=lit,
    )
    p.draw("box", (depth / 2 - 0.1, 0, height), (depth + 0.4, width + 0.3, r.uniform(0.2, 0.7)), c * r.uniform(0.6, 1.1))
    if r.random() < 0.6:  # ground floor: shop windows and awnings
        p.draw(
            "box",
            (-0.06, 0, 1.6),
            (0.2, width * 0.96, 3.0),
            fleet_paint(r) * 0.8,
            color2=GLASS,
            material="windows",
            texture=r.uniform(0.3, 0.6),
            gloss=0.8,
            emission=lit,
        )
        if r.random() < 0.5:
            p.draw(
                "wedge",
                (-0.7, 0, 3.2),
                (1.4, width * r.uniform(0.3, 0.8), 0.5),
                fleet_paint(r),
                color2=(0.85, 0.83, 0.8),
                material=r.choice(["stripes", "fabric"]),
                texture=2,
            )
        if r.random() < 0.6:
            p.draw(
                "box",
                (-0.15, r.uniform(-0.3, 0.3) * width, 3.7),
                (0.15, width * 0.35, 0.7),
                fleet_paint(r),
                color2=fleet_paint(r),
                material="sign",
            )
    if r.random() < 0.35:
        for z in np.arange(4.2, height - 1.5, 3.1):
            for y in np.linspace(-width * 0.35, width * 0.35, max(2, int(width / 4))):
                p.draw("box", (-0.5, y, z), (1.0, 2.0, 0.15), c * 0.9)
                p.draw("box", (-0.97, y, z + 0.5), (0.06, 2.0, 0.9), c * 0.7, material="stripes", texture=8)
    if height < 11 and r.random() < 0.6:
        roof = np.array(r.choice([(0.5, 0.2, 0.14), (0.25, 0.24, 0.24), (0.35, 0.28, 0.22)])) * r.uniform(0.7, 1.3)
        p.draw("prism", (depth / 2, 0, height + 1.6), (depth + 0.8, width + 0.6, 3.0), roof, material="tiles", texture=4)
        if r.random() < 0.5:
            p.draw("box", (depth * 0.3, width * 0.2, height + 2.8), (0.7, 0.7, 1.6), (0.45, 0.25, 0.2), material="brick")


def tree(p: Pen, r) -> None:
    green = np.array(
        r.choice(
            [
                (0.2, 0.36, 0.1),
                (0.3, 0.42, 0.14),
                (0.13, 0.28, 0.1),
                (0.2, 0.34, 0.09),
                (0.26, 0.36, 0.13),
                (0.4, 0.38, 0.12),
                (0.45, 0.27, 0.09),
            ]
        )
    ) * r.uniform(0.6, 1.3)
    bark, h = np.array((0.3, 0.23, 0.17)) * r.uniform(0.6, 1.4), r.uniform(3.5, 10)
    leaf = {"material": "foliage", "displacement": 0.35, "color2": green * 0.45}
    kind = r.choice(["round", "conifer", "palm", "bare"], p=[0.68, 0.15, 0.07, 0.1])
    if kind == "conifer":
        p.rod((0, 0, 0), (0, 0, h * 0.3), 0.25, bark, material="wood")
        for i in range(6):
            z = h * (0.2 + 0.13 * i)
            p.draw("cone", (0, 0, z + h * 0.1), (h * 0.45 * (1 - i / 7),) * 2 + (h * 0.28,), green * 0.7, **leaf)
    elif kind == "palm":
        p.rod((0, 0, 0), (h * 0.05, 0, h), 0.28, bark * 1.3, material="wood")
        for a in np.linspace(0, 2 * np.pi, 11)[:-1]:
            p.draw(
                "blob", (h * 0.05 + np.cos(a) * 1.1, np.sin(a) * 1.1, h - 0.1), (2.4, 0.4, 0.16), green, yaw=a, roll=0.45, **leaf
            )
    else:
        top = h * r.uniform(0.3, 0.45)
        p.rod((0, 0, 0), (0, 0, top * 1.4), h * r.uniform(0.035, 0.06), bark, material="wood")
        # a crown is many clumps on an ellipsoid, fewer where nobody sees them one by one
        clumps = int(r.integers(16, 24)) if p.origin[1] < 30 else 9
        wide, tall = h * r.uniform(0.2, 0.32), (h - top) * r.uniform(0.42, 0.55)
        size = h * (0.17 if clumps > 9 else 0.26)
        for _ in range(clumps if kind == "round" else 0):
            toward = r.normal(0, 1, 3)
            toward *= r.uniform(0.55, 1) / np.linalg.norm(toward)
            s = size * r.uniform(0.8, 1.6)
            at = (toward[0] * wide, toward[1] * wide, top + tall + toward[2] * tall)
            p.draw("sphere", at, (s, s, s * r.uniform(0.65, 1)), green * r.uniform(0.75, 1.2), texture=r.uniform(0.7, 1.3), **leaf)
        for _ in range(14 if kind == "bare" else 3):
            a, z = r.uniform(0, 6.3), top * r.uniform(0.8, 1.4)
            end = (np.cos(a) * h * 0.25, np.sin(a) * h * 0.25, z + h * r.uniform(0.15, 0.5))
            p.rod((0, 0, z), end, r.uniform(0.05, 0.12), bark, material="wood")
            if kind == "bare":
                for _ in range(3):
                    tip = np.array(end) + r.normal(0, h * 0.07, 3) + (0, 0, h * 0.06)
                    p.rod(end, tip, 0.035, bark, material="wood")


def bush(p: Pen, r) -> None:
    green = np.array((0.22, 0.35, 0.12)) * r.uniform(0.6, 1.5)
    for _ in range(int(r.integers(2, 6))):
        s = r.uniform(0.6, 1.6)
        p.draw(
            "blob",
            (r.normal(0, 0.6), r.normal(0, 0.8), s * 0.35),
            (s, s, s * 0.8),
            green,
            color2=green * 0.5,
            material="foliage",
            displacement=0.3,
            texture=r.uniform(1, 2),
        )


def hedge(p: Pen, r, length: float) -> None:
    green, h = np.array((0.17, 0.3, 0.1)) * r.uniform(0.6, 1.5), r.uniform(0.7, 2.0)
    wide, leaf = r.uniform(0.6, 1.1), {"color2": green * 0.45, "material": "foliage"}
    p.draw("box", (0, 0, h / 2), (wide, length, h), green, texture=1.5, emission=1.0, **leaf)
    for y in np.linspace(-length / 2, length / 2, 6)[:-1]:
        p.draw(
            "sphere", (0, y + 0.3, h * 0.97), (wide * 1.1, length / 3.5, h * 0.28), green, texture=1.5, displacement=0.25, **leaf
        )


def wall(p: Pen, r, length: float) -> None:
    h, c = r.uniform(0.9, 2.8), np.array((0.62, 0.58, 0.53)) * r.uniform(0.5, 1.3)
    p.draw("box", (0, 0, h / 2), (0.3, length, h), c, color2=c * 0.6, material=r.choice(["brick", "asphalt", "tiles"]), texture=2)
    p.draw("box", (0, 0, h), (0.42, length, 0.1), c * 0.85)


def fence(p: Pen, r, length: float) -> None:
    h, c = r.uniform(0.8, 1.8), (wood(r) if r.random() < 0.5 else np.full(3, r.uniform(0.1, 0.8)))
    kind = r.choice(["bars", "boards", "guard"])
    for y in np.arange(-length / 2, length / 2 + 0.01, 2.0):
        p.rod((0, y, 0), (0, y, h if kind != "guard" else 0.75), 0.09, c)
    if kind == "guard":
        p.draw("box", (-0.06, 0, 0.62), (0.08, length, 0.32), np.array(METAL), material="metal", gloss=0.6)
        return
    step, thick = (0.18, 0.03) if kind == "bars" else (0.16, 0.13)
    for z in (h * 0.2, h * 0.9):
        p.draw("box", (0, 0, z), (0.05, length, 0.07), c)
    for y in np.arange(-length / 2, length / 2, step):
        p.draw("box", (0, y, h / 2), (0.03, thick, h * 0.95), c * 0.95)


def street_lamp(p: Pen, r, night: float = 0.0) -> None:
    c, h = np.full(3, r.uniform(0.1, 0.6)), r.uniform(4, 8)
    p.rod((0, 0, 0), (0, 0, h), 0.14, c, material="metal")
    if r.random() < 0.7:
        p.rod((0, 0, h), (-1.4, 0, h + 0.25), 0.09, c)
        p.draw("box", (-1.6, 0, h + 0.22), (0.6, 0.22, 0.12), c * 1.2, emission=night)
    else:
        p.draw("sphere", (0, 0, h + 0.15), (0.4, 0.4, 0.4), (0.9, 0.9, 0.85), emission=night)


def bollard(p: Pen, r) -> None:
    p.rod(
        (0, 0, 0),
        (0, 0, r.uniform(0.7, 1.1)),
        r.uniform(0.09, 0.16),
        any_color(r) if r.random() < 0.3 else np.full(3, r.uniform(0.1, 0.7)),
    )


def traffic_light(p: Pen, r) -> None:
    c, h = np.full(3, r.uniform(0.1, 0.5)), r.uniform(2.4, 3.2)
    heads = [(0.0, -0.12, h - 0.1)]
    pole = p.with_class(POLE)
    if r.random() < 0.5:
        h = 5.6
        pole.rod((0, 0, h), (-3.6, 0, h + 0.1), 0.12, c)
        heads = [(-3.4, -0.12, h - 0.3), (0.0, -0.12, 2.6)]
    pole.rod((0, 0, 0), (0, 0, h), 0.16, c)
    lit = int(r.integers(0, 3))
    for x, y, z in heads:
        box = np.array((0.06, 0.06, 0.06)) if r.random() < 0.8 else np.array((0.75, 0.6, 0.05))
        p.draw("box", (x, y, z), (0.34, 0.22, 0.98), box)
        for i, on in enumerate(((1, 0.08, 0.05), (1, 0.7, 0.05), (0.1, 1, 0.4))):
            color = np.array(on) * (1.0 if i == lit else 0.18)
            p.draw("sphere", (x, y - 0.12, z + 0.3 - 0.3 * i), (0.22, 0.1, 0.22), color, emission=1.0 if i == lit else 0.0)


def traffic_sign(p: Pen, r) -> None:
    h = r.uniform(1.9, 3.0)
    p.with_class(POLE).rod((0, 0.04, 0), (0, 0.04, h + 0.3), 0.07, METAL, material="metal")
    kind, s = r.choice(["disc", "triangle", "square", "board", "octagon"]), r.uniform(0.5, 0.85)
    red, blue, white = (0.8, 0.06, 0.06), (0.05, 0.2, 0.65), (0.95, 0.95, 0.95)
    if kind in ("disc", "octagon"):
        outer, inner = [(red, white), (blue, blue), (white, white), (red, red)][int(r.integers(0, 4))]
        p.draw("cylinder", (0, 0, h), (s, s, 0.03), outer, pitch=np.pi / 2)
        p.draw(
            "cylinder",
            (0, -0.012, h),
            (s * 0.76, s * 0.76, 0.03),
            inner,
            color2=(0.05, 0.05, 0.05) if inner == white else white,
            pitch=np.pi / 2,
            material="sign",
            texture=r.uniform(2, 5),
        )
    elif kind == "triangle":
        p.draw("prism", (0, 0, h), (s * 1.1, 0.03, s * r.choice([-1, 1])), red)
        p.draw(
            "prism", (0, -0.012, h - 0.02), (s * 0.75, 0.03, s * 0.66), white, color2=(0.05, 0.05, 0.05), material="sign", texture=3
        )
    else:
        w, tall = (s, s) if kind == "square" else (s * r.uniform(1.5, 3.5), s)
        p.draw(
            "box",
            (0, 0, h),
            (w, 0.03, tall),
            r.choice([blue, white, (0.05, 0.4, 0.2), (0.95, 0.8, 0.1)]),
            color2=white,
            material="sign",
            texture=r.uniform(1.5, 4),
        )
