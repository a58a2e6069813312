"""Procedural hazards: one small function per type, drawn with a Pen at real-world size in metres."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from vl4ad_model.scenes.primitives import Pen

WOOD = (0.55, 0.38, 0.2)
METAL = (0.6, 0.62, 0.65)
RUBBER = (0.06, 0.06, 0.07)


def any_color(rng, low=0.1, high=0.95) -> np.ndarray:
    """A random colour, saturated half of the time; squared, since evenly spread linear light would be pastel."""
    color = rng.uniform(low, high, 3)
    return (color if rng.random() < 0.5 else np.clip(color.mean() + (color - color.mean()) * 2, 0.02, 0.98)) ** 1.8


def wood(rng) -> np.ndarray:
    return np.array(WOOD) * rng.uniform(0.5, 1.5)


def legs(pen: Pen, width: float, depth: float, height: float, thick: float, color) -> None:
    for x in (-width / 2, width / 2):
        for y in (-depth / 2, depth / 2):
            pen.rod((x, y, 0), (x, y, height), thick, color)


def tyre(p: Pen, r) -> None:
    rubber = np.array(RUBBER) * r.uniform(0.7, 2.5)
    size = r.uniform(0.55, 0.8)
    if r.random() < 0.5:
        for i in range(int(r.integers(1, 4))):
            p.draw("torus", (0, 0, 0.1 + 0.2 * i), (size, size, 0.8), rubber, material="fabric")
    else:
        p.draw("torus", (0, 0, size / 2), (size, size, 0.8), rubber, pitch=np.pi / 2, roll=r.uniform(-0.3, 0.3))


def cardboard_box(p: Pen, r) -> None:
    tan = np.array((0.68, 0.5, 0.32)) * r.uniform(0.75, 1.2)
    for _ in range(int(r.integers(1, 4))):
        s = r.uniform(0.3, 0.8, 3)
        at = (r.uniform(-0.5, 0.5), r.uniform(-0.3, 0.3), s[2] / 2)
        p.draw("box", at, s, tan, yaw=r.uniform(0, 3), texture=2)
        p.draw("box", (at[0], at[1], s[2] + 0.003), (s[0] * 0.12, s[1] * 0.7, 0.006), tan * 1.3)


def traffic_cone(p: Pen, r) -> None:
    orange = np.array((0.95, 0.35, 0.08)) * r.uniform(0.8, 1.05)
    h = r.uniform(0.45, 0.9)
    lying = r.random() < 0.25
    p.draw("box", (0, 0, 0.03), (h * 0.6, h * 0.6, 0.05), orange * 0.6)
    p.draw("cone", (0, 0, h / 2), (h * 0.42, h * 0.42, h), orange, color2=(0.95, 0.95, 0.95), material="stripes",
           texture=3.2 / h, pitch=1.2 if lying else 0)  # fmt: skip


def barrel(p: Pen, r) -> None:
    color, h = any_color(r), r.uniform(0.75, 1.0)
    lying = r.random() < 0.4
    at, tilt = ((0, 0, 0.3), np.pi / 2) if lying else ((0, 0, h / 2), 0)
    p.draw("cylinder", at, (0.6, 0.6, h), color, material="paint", pitch=tilt, gloss=0.4)
    if not lying:
        for z in (0.05, h * 0.35, h * 0.68, h - 0.03):
            p.draw("cylinder", (0, 0, z), (0.63, 0.63, 0.04), color * 0.8, material="metal")


def wooden_pallet(p: Pen, r) -> None:
    c = wood(r)
    for layer in range(int(r.integers(1, 5))):
        z = layer * 0.15
        for x in (-0.55, 0, 0.55):
            p.draw("box", (x, 0, z + 0.06), (0.1, 1.0, 0.1), c * 0.8, material="wood")
        for y in np.linspace(-0.45, 0.45, 6):
            p.draw("box", (0, y, z + 0.125), (1.2, 0.11, 0.025), c, material="wood")


def suitcase(p: Pen, r) -> None:
    c, h = any_color(r), r.uniform(0.5, 0.8)
    p.draw("box", (0, 0, h / 2 + 0.05), (h * 0.65, 0.28, h), c, material="fabric", texture=3)
    for x in (-0.15, 0.15):
        p.rod((x, 0.1, h), (x, 0.1, h + 0.3), 0.02, METAL)
        p.draw("sphere", (x, 0, 0.04), (0.08, 0.08, 0.08), RUBBER)
    p.rod((-0.15, 0.1, h + 0.3), (0.15, 0.1, h + 0.3), 0.03, RUBBER)


def ball(p: Pen, r) -> None:
    d = r.uniform(0.22, 0.6)
    p.draw("blob", (0, 0, d / 2), (d, d, d), any_color(r), color2=any_color(r), material=r.choice(["stripes", "tiles", "plain"]),
           texture=2.5 / d)  # fmt: skip


def rock(p: Pen, r) -> None:
    grey = np.array((0.45, 0.43, 0.4)) * r.uniform(0.6, 1.4) * r.uniform(0.9, 1.1, 3)
    for _ in range(int(r.integers(1, 6))):
        s = r.uniform(0.25, 0.9) * np.array((1, r.uniform(0.7, 1.2), r.uniform(0.5, 0.9)))
        p.draw("blob", (r.uniform(-0.7, 0.7), r.uniform(-0.4, 0.4), s[2] * 0.4), s, grey, displacement=0.35, texture=3,
               yaw=r.uniform(0, 6))  # fmt: skip


def tree_trunk(p: Pen, r) -> None:
    bark, length, d = np.array((0.36, 0.27, 0.18)) * r.uniform(0.6, 1.4), r.uniform(1.5, 5), r.uniform(0.25, 0.6)
    p.rod((-length / 2, 0, d / 2), (length / 2, 0, d / 2), d, bark, material="wood", texture=4)
    for _ in range(int(r.integers(0, 5))):
        x = r.uniform(-length / 2, length / 2)
        p.rod(
            (x, 0, d / 2), (x + r.uniform(-0.5, 0.5), r.uniform(-0.8, 0.8), d + r.uniform(0.2, 0.9)), d * 0.3, bark, material="wood"
        )


def chair(p: Pen, r) -> None:
    c, h = (wood(r) if r.random() < 0.5 else any_color(r)), r.uniform(0.42, 0.5)
    legs(p, 0.4, 0.4, h, 0.045, c * 0.7)
    p.draw("box", (0, 0, h), (0.48, 0.46, 0.06), c, material="wood")
    p.draw("box", (0, 0.21, h + 0.3), (0.46, 0.05, r.uniform(0.35, 0.6)), c, material="wood")


def table(p: Pen, r) -> None:
    c, w, d, h = wood(r) if r.random() < 0.7 else any_color(r), r.uniform(0.9, 1.8), r.uniform(0.6, 0.9), r.uniform(0.65, 0.8)
    legs(p, w * 0.88, d * 0.85, h, 0.07, c * 0.8)
    p.draw("box", (0, 0, h), (w, d, 0.05), c, material="wood", texture=2)


def refrigerator(p: Pen, r) -> None:
    c, h = np.full(3, r.uniform(0.75, 0.98)) * r.uniform(0.94, 1.05, 3), r.uniform(1.2, 1.9)
    split = h * r.uniform(0.6, 0.75)
    p.draw("box", (0, 0, h / 2), (0.65, 0.65, h), c, material="paint", gloss=0.4)
    p.draw("box", (0, -0.327, split), (0.64, 0.012, 0.025), c * 0.4)
    for z in (split - 0.2, split + 0.15):
        p.draw("box", (0.24, -0.36, z), (0.03, 0.04, 0.22), c * 0.45, material="metal")


def washing_machine(p: Pen, r) -> None:
    c = np.full(3, r.uniform(0.8, 0.98))
    p.draw("box", (0, 0, 0.43), (0.6, 0.6, 0.85), c, material="paint", gloss=0.3)
    p.draw("torus", (0, -0.3, 0.42), (0.48, 0.48, 0.2), c * 0.6, pitch=np.pi / 2, material="metal")
    p.draw("cylinder", (0, -0.3, 0.42), (0.34, 0.34, 0.04), (0.08, 0.09, 0.12), pitch=np.pi / 2, material="glass")
    p.draw("box", (0, -0.302, 0.79), (0.58, 0.01, 0.1), c * 0.75)


def garbage_bag(p: Pen, r) -> None:
    c = np.array((0.05, 0.05, 0.06)) if r.random() < 0.6 else any_color(r) * 0.8
    for _ in range(int(r.integers(1, 4))):
        s, x, y = r.uniform(0.45, 0.8), r.uniform(-0.5, 0.5), r.uniform(-0.3, 0.3)
        p.draw("blob", (x, y, s * 0.38), (s, s, s * 0.85), c, displacement=0.25, material="paint", gloss=0.5)
        p.draw("cone", (x, y, s * 0.85), (0.12, 0.12, 0.2), c, displacement=0.1)


def trash_can(p: Pen, r) -> None:
    c, h = any_color(r) * 0.8, r.uniform(0.8, 1.15)
    p.draw("frustum", (0, 0, h / 2), (0.62, 0.62, -h), c, gloss=0.2)
    p.draw("box", (0, 0, h + 0.03), (0.66, 0.7, 0.07), c * 0.75)
    for x in (-0.25, 0.25):
        p.draw("cylinder", (x, 0.28, 0.1), (0.2, 0.2, 0.06), RUBBER, roll=np.pi / 2)


def shopping_cart(p: Pen, r) -> None:
    c = np.array(METAL) * r.uniform(0.8, 1.3)
    for y in np.linspace(-0.42, 0.42, 6):
        for side in (-0.27, 0.27):
            p.rod((side, y, 0.5), (side * 1.1, y * 1.1, 0.95), 0.018, c, material="metal")
        p.rod((-0.27, y, 0.5), (0.27, y, 0.5), 0.018, c, material="metal")
    for z, k in ((0.5, 1.0), (0.72, 1.05), (0.95, 1.1)):
        for side in (-0.27 * k, 0.27 * k):
            p.rod((side, -0.42 * k, z), (side, 0.42 * k, z), 0.025, c, material="metal")
        for y in (-0.42 * k, 0.42 * k):
            p.rod((-0.27 * k, y, z), (0.27 * k, y, z), 0.025, c, material="metal")
    p.rod((-0.3, -0.6, 1.02), (0.3, -0.6, 1.02), 0.05, any_color(r))
    for x in (-0.25, 0.25):
        p.rod((x, -0.6, 1.02), (x, -0.42, 0.5), 0.03, c)
        for y in (-0.4, 0.4):
            p.rod((x, y, 0.1), (x, y, 0.5), 0.025, c)
            p.draw("cylinder", (x, y, 0.07), (0.14, 0.14, 0.04), RUBBER, roll=np.pi / 2)


def stroller(p: Pen, r) -> None:
    c = any_color(r) * 0.8
    p.draw("box", (0, 0, 0.55), (0.45, 0.7, 0.25), c, material="fabric", pitch=0.2)
    p.draw("blob", (0, 0.15, 0.8), (0.48, 0.55, 0.5), c * 0.85, material="fabric")
    for x in (-0.24, 0.24):
        p.rod((x, -0.45, 1.0), (x, 0.35, 0.15), 0.03, METAL)
        p.rod((x, -0.3, 0.12), (x, 0.1, 0.5), 0.03, METAL)
        for y in (-0.3, 0.35):
            p.draw("torus", (x, y, 0.13), (0.27, 0.27, 0.3), RUBBER, roll=np.pi / 2)
    p.rod((-0.24, -0.45, 1.0), (0.24, -0.45, 1.0), 0.04, RUBBER)


def _animal(
    p: Pen, r, *, length, height, girth, neck, head, color, color2, tail=0.3, horns=0.0, ears=0.1, wool=0.0, material="fur"
):
    """A four-legged animal along y, head at -y."""
    body = height * 0.68
    p.draw(
        "blob", (0, 0, body), (girth, length, girth * 1.05), color, color2=color2, material=material, displacement=wool, texture=2
    )
    p.draw("blob", (0, -length * 0.3, body), (girth * 0.98, length * 0.4, girth * 1.15), color, color2=color2, material=material,
           displacement=wool)  # fmt: skip
    for x in (-girth * 0.3, girth * 0.3):
        for y in (-length * 0.34, length * 0.34):
            swing = r.uniform(-0.12, 0.12) * height
            p.rod((x, y, body), (x, y + swing, 0), girth * 0.22, np.asarray(color) * 0.85, material=material)
    tip = np.array((0, -length * 0.5 - neck * 0.55, body + neck * r.uniform(0.5, 0.95)))
    p.rod((0, -length * 0.38, body + girth * 0.15), tip, girth * 0.45, color, material=material)
    p.draw(
        "blob",
        tip + np.array((0, -head * 0.3, 0)),
        (head * 0.55, head * 1.1, head * 0.6),
        color,
        color2=color2,
        material=material,
        pitch=-0.3,
    )
    for x in (-1, 1):
        p.draw(
            "cone",
            tip + np.array((x * head * 0.25, 0.02, head * 0.35)),
            (ears, ears * 0.6, ears * 2.2),
            np.asarray(color) * 0.8,
            roll=x * 0.5,
        )
        if horns:
            p.rod(
                tip + np.array((x * head * 0.15, 0, head * 0.25)),
                tip + np.array((x * horns * 0.6, 0.05, head * 0.2 + horns)),
                0.035,
                (0.75, 0.7, 0.6),
            )
    p.rod(
        (0, length * 0.48, body + girth * 0.2),
        (0, length * 0.55 + tail * 0.4, body - tail * 0.5),
        girth * 0.12,
        np.asarray(color) * 0.7,
    )


def _coat(r) -> np.ndarray:
    return np.array(
        r.choice([(0.28, 0.17, 0.08), (0.06, 0.045, 0.035), (0.5, 0.42, 0.3), (0.3, 0.29, 0.28), (0.6, 0.58, 0.55)])
    ) * r.uniform(0.7, 1.15)


def dog(p: Pen, r) -> None:
    h = r.uniform(0.4, 0.75)
    _animal(
        p, r, length=h * 1.1, height=h, girth=h * 0.38, neck=h * 0.4, head=h * 0.4, color=_coat(r), color2=_coat(r), tail=h * 0.7
    )


def cow(p: Pen, r) -> None:
    h = r.uniform(1.25, 1.5)
    spots = r.choice([0, 1])
    _animal(p, r, length=h * 1.45, height=h, girth=h * 0.5, neck=h * 0.32, head=h * 0.36, color=_coat(r),
            color2=np.full(3, 0.9) if spots else _coat(r), tail=0.8, horns=0.22, material="tiles" if spots else "fur")  # fmt: skip


def deer(p: Pen, r) -> None:
    h = r.uniform(0.9, 1.3)
    _animal(
        p,
        r,
        length=h * 1.05,
        height=h,
        girth=h * 0.33,
        neck=h * 0.5,
        head=h * 0.27,
        color=np.array((0.5, 0.33, 0.2)) * r.uniform(0.7, 1.2),
        color2=(0.75, 0.65, 0.5),
        tail=0.12,
        horns=r.choice([0.0, 0.45]),
    )


def sheep(p: Pen, r) -> None:
    h = r.uniform(0.65, 0.85)
    _animal(
        p,
        r,
        length=h * 1.35,
        height=h,
        girth=h * 0.62,
        neck=h * 0.28,
        head=h * 0.36,
        color=np.array((1.0, 0.96, 0.88)) * r.uniform(0.35, 0.7),
        color2=np.full(3, 0.85),
        tail=0.15,
        wool=0.2,
    )


def horse(p: Pen, r) -> None:
    h, coat = r.uniform(1.4, 1.7), _coat(r)
    _animal(p, r, length=h * 1.15, height=h, girth=h * 0.36, neck=h * 0.55, head=h * 0.36, color=coat, color2=_coat(r), tail=1.2)
    mane = np.array((0.02, 0.018, 0.015)) if r.random() < 0.7 else coat * 0.6
    for t in np.linspace(0, 1, 6):
        at = (0, -h * (0.36 + 0.4 * t), h * (0.84 + 0.28 * t))
        p.draw("blob", at, (0.09, 0.3, 0.34), mane, material="fur")
    p.draw("blob", (0, h * 0.68, h * 0.52), (0.14, 0.2, h * 0.5), mane, material="fur")
    for x in (-h * 0.11, h * 0.11):
        for y in (-h * 0.39, h * 0.39):
            p.draw("cylinder", (x, y, 0.06), (0.13, 0.15, 0.12), (0.03, 0.03, 0.03))


def bucket(p: Pen, r) -> None:
    c, h = any_color(r) if r.random() < 0.7 else np.array(METAL), r.uniform(0.3, 0.5)
    p.draw("pail", (0, 0, h / 2), (h, h, h), c, gloss=0.3, material="paint")
    p.draw("ring", (0, 0, h), (h * 1.04, h * 1.04, 0.3), c * 0.8)
    p.draw("ring", (0, 0, h), (h, h, 0.3), METAL, pitch=r.choice([1.2, 0.1]))


def crate(p: Pen, r) -> None:
    c = wood(r) if r.random() < 0.6 else any_color(r)
    w, h = r.uniform(0.45, 0.9), r.uniform(0.3, 0.7)
    for z in np.linspace(0.05, h - 0.05, 4):
        for a in range(4):
            p.draw(
                "box",
                (np.cos(a * np.pi / 2) * w / 2, np.sin(a * np.pi / 2) * w / 2, z),
                (0.03, w, h / 5.5),
                c,
                yaw=a * np.pi / 2,
                material="wood",
            )
    legs(p, w, w, h, 0.07, c * 0.75)


def umbrella(p: Pen, r) -> None:
    c = any_color(r)
    p.draw(
        "cone",
        (0, 0, 0.75),
        (1.1, 1.1, 0.35),
        c,
        color2=any_color(r),
        material=r.choice(["stripes", "fabric"]),
        pitch=r.uniform(-0.9, 0.9),
    )
    p.rod((0, 0, 0.05), (0, 0, 0.85), 0.025, METAL)


def broken_glass(p: Pen, r) -> None:
    for _ in range(45):
        s = r.uniform(0.05, 0.22)
        p.draw(
            "wedge",
            (r.normal(0, 0.7), r.normal(0, 0.35), 0.02),
            (s, s * r.uniform(0.3, 1), 0.03),
            np.array((0.6, 0.78, 0.76)) * r.uniform(0.5, 1.3),
            material="glass",
            yaw=r.uniform(0, 6),
            pitch=r.uniform(-0.4, 0.4),
            gloss=1.0,
        )


def mattress(p: Pen, r) -> None:
    c = np.full(3, r.uniform(0.6, 0.95)) * r.uniform(0.9, 1.1, 3)
    tilt = r.choice([0.0, 0.0, 1.2])
    p.draw(
        "box",
        (0, 0, 0.12 if tilt == 0 else 0.75),
        (r.uniform(0.9, 1.6), 2.0, 0.22),
        c,
        color2=c * 0.8,
        material="tiles",
        texture=5,
        pitch=tilt,
    )


def pipe(p: Pen, r) -> None:
    c = any_color(r) if r.random() < 0.4 else np.array(METAL) * r.uniform(0.5, 1.3)
    for _ in range(int(r.integers(1, 6))):
        a, length, d, y = r.normal(0, 0.2), r.uniform(1.2, 3.5), r.uniform(0.07, 0.25), r.uniform(-0.6, 0.6)
        dx, dy = np.cos(a) * length / 2, np.sin(a) * length / 2
        p.rod((-dx, y - dy, d / 2), (dx, y + dy, d / 2), d, c, material="metal", gloss=0.5)


def concrete_block(p: Pen, r) -> None:
    c = np.full(3, r.uniform(0.5, 0.75))
    for i in range(int(r.integers(1, 3))):
        p.draw("frustum", (i * 2.1 - 0.6, 0, 0.4), (2.0, 0.6, 0.8), c, material="asphalt", texture=2)
        p.draw("box", (i * 2.1 - 0.6, 0, 0.1), (2.0, 0.66, 0.2), c * 0.9, material="asphalt")


def road_barrier(p: Pen, r) -> None:
    c = (0.85, 0.1, 0.08) if r.random() < 0.6 else (0.95, 0.55, 0.05)
    w = r.uniform(1.2, 2.4)
    for z in (0.55, 0.95):
        p.draw("box", (0, 0, z), (w, 0.05, 0.22), c, color2=(0.95, 0.95, 0.95), material="stripes", texture=2.5)
    for x in (-w * 0.4, w * 0.4):
        p.rod((x, -0.25, 0), (x, 0, 1.1), 0.06, METAL)
        p.rod((x, 0.25, 0), (x, 0, 1.1), 0.06, METAL)


def kick_scooter(p: Pen, r) -> None:
    c = any_color(r) * 0.7
    p.draw("box", (0, 0, 0.12), (0.14, 0.9, 0.04), c)
    p.rod((0, -0.5, 0.1), (0, -0.42, 1.05), 0.05, c, material="metal")
    p.rod((-0.25, -0.42, 1.05), (0.25, -0.42, 1.05), 0.04, RUBBER)
    for y in (-0.52, 0.45):
        p.draw("torus", (0, y, 0.11), (0.24, 0.24, 0.35), RUBBER, roll=np.pi / 2)


def skateboard(p: Pen, r) -> None:
    p.draw("box", (0, 0, 0.12), (0.22, 0.8, 0.025), any_color(r), material="wood")
    for x in (-0.08, 0.08):
        for y in (-0.27, 0.27):
            p.draw("sphere", (x, y, 0.05), (0.07, 0.07, 0.07), any_color(r))


def sandbag(p: Pen, r) -> None:
    c = np.array((0.62, 0.53, 0.38)) * r.uniform(0.7, 1.2)
    for i in range(int(r.integers(1, 7))):
        p.draw(
            "blob",
            ((i % 3) * 0.5 - 0.5, r.uniform(-0.1, 0.1), 0.13 + 0.2 * (i // 3)),
            (0.62, 0.42, 0.26),
            c,
            material="fabric",
            displacement=0.1,
        )


def upholstery(rng) -> np.ndarray:
    """Greys, browns, beiges, dark reds and blues; a bright colour now and then."""
    if rng.random() < 0.2:
        return any_color(rng) * 0.8
    choices = [
        (0.3, 0.3, 0.31),
        (0.12, 0.12, 0.13),
        (0.4, 0.32, 0.22),
        (0.2, 0.11, 0.06),
        (0.35, 0.06, 0.05),
        (0.08, 0.14, 0.25),
        (0.1, 0.22, 0.18),
    ]
    return np.array(rng.choice(choices)) * rng.uniform(0.7, 1.5)


def sofa(p: Pen, r) -> None:
    c, w = upholstery(r), r.uniform(1.4, 2.2)
    cloth = {"material": "fabric"}
    p.draw("box", (0, 0.02, 0.24), (w * 0.97, 0.78, 0.3), c * 0.8, **cloth)
    p.draw("rounded", (0, 0.36, 0.5), (w, 0.24, 0.8), c, **cloth)
    for x in (-w / 2 + 0.1, w / 2 - 0.1):
        p.draw("rounded", (x, 0, 0.36), (0.24, 0.9, 0.58), c * 0.95, **cloth)
        for y in (-0.35, 0.35):
            p.rod((x, y, 0), (x, y, 0.12), 0.06, wood(r) * 0.5)
    seats = int(r.integers(2, 4))
    s = (w - 0.4) / seats
    for i in range(seats):
        x = -w / 2 + 0.2 + s * (i + 0.5)
        p.draw("rounded", (x, -0.06, 0.46), (s * 0.98, 0.76, 0.2), c * 1.12, **cloth)
        p.draw("rounded", (x, 0.24, 0.68), (s * 0.96, 0.22, 0.44), c * 1.08, pitch=0.15, **cloth)


def _leaning(slope: float, length: float, x: float, t: float) -> tuple[float, float, float]:
    return x, (length / 2 - t) * slope, (t + length / 2) * 0.85


def ladder(p: Pen, r) -> None:
    """Flat on the road, or a step ladder that stands."""
    c = np.array(METAL) * r.uniform(0.7, 1.3) if r.random() < 0.6 else wood(r)
    length, flat = r.uniform(1.8, 3.5), r.random() < 0.6
    sides = [lambda x, t: (x, t, 0.06)] if flat else [partial(_leaning, k, length) for k in (-0.3, 0.3)]
    for up in sides:
        for x in (-0.23, 0.23):
            p.rod(up(x, -length / 2), up(x, length / 2), 0.06, c, material="metal")
        for t in np.linspace(-length / 2 + 0.15, length / 2 - 0.15, int(length / 0.28)):
            p.rod(up(-0.23, t), up(0.23, t), 0.04, c, material="metal")


def wheelbarrow(p: Pen, r) -> None:
    c = any_color(r) * 0.8
    p.draw("frustum", (0, 0, 0.5), (0.65, 0.9, -0.35), c)
    p.draw("torus", (0, -0.6, 0.2), (0.4, 0.4, 0.5), RUBBER, roll=np.pi / 2)
    for x in (-0.22, 0.22):
        p.rod((x, -0.6, 0.2), (x * 1.2, 0.95, 0.6), 0.045, METAL)
        p.rod((x, 0.3, 0.42), (x, 0.35, 0), 0.04, METAL)


def toilet(p: Pen, r) -> None:
    c = np.full(3, r.uniform(0.85, 0.98))
    p.draw("cylinder", (0, 0, 0.2), (0.26, 0.35, 0.4), c, gloss=0.6, material="paint")
    p.draw("blob", (0, -0.08, 0.4), (0.4, 0.55, 0.2), c, gloss=0.6, material="paint")
    p.draw("torus", (0, -0.1, 0.46), (0.42, 0.55, 0.25), c * 0.9, gloss=0.6)
    p.draw("box", (0, 0.26, 0.62), (0.4, 0.2, 0.4), c, gloss=0.6, material="paint")


def boat(p: Pen, r) -> None:
    c, length = any_color(r) if r.random() < 0.6 else wood(r) * 0.7, r.uniform(2.2, 4)
    wide, tall = 1.3, 0.62
    p.draw("hull", (0, 0, tall / 2), (wide, length, tall), c, material="paint", gloss=0.3)
    p.draw("hull", (0, length * 0.01, tall * 0.62), (wide * 0.86, length * 0.9, tall * 0.6), wood(r) * 0.45, material="wood")
    for y in (-length * 0.18, length * 0.08, length * 0.32):
        p.draw("box", (0, y, tall * 0.86), (wide * (0.75 if y > 0 else 0.55), 0.22, 0.05), wood(r), material="wood")
    if r.random() < 0.5:
        for x in (-0.35, 0.35):
            p.rod((x, -length * 0.35, tall), (x * 1.6, length * 0.4, tall + 0.06), 0.05, wood(r), material="wood")


def piano(p: Pen, r) -> None:
    c = np.array((0.04, 0.035, 0.03)) if r.random() < 0.6 else wood(r) * 0.6
    p.draw("box", (0, 0.1, 0.6), (1.45, 0.4, 1.2), c, material="paint", gloss=0.7)
    p.draw("box", (0, -0.2, 0.66), (1.45, 0.35, 0.12), c, material="paint", gloss=0.7)
    p.draw("box", (0, -0.22, 0.73), (1.3, 0.2, 0.02), (0.95, 0.95, 0.92), color2=(0.05, 0.05, 0.05), material="stripes", texture=12)
    for x in (-0.65, 0.65):
        p.rod((x, -0.32, 0), (x, -0.32, 0.62), 0.07, c)


def bathtub(p: Pen, r) -> None:
    c = np.full(3, r.uniform(0.85, 0.98))
    p.draw("frustum", (0, 0, 0.32), (0.8, 1.7, -0.5), c, gloss=0.6, material="paint")
    p.draw("torus", (0, 0, 0.56), (0.95, 1.95, 0.4), c, gloss=0.6, material="paint")
    p.draw("cylinder", (0, 0, 0.57), (0.62, 1.3, 0.02), c * 0.55)


def television(p: Pen, r) -> None:
    w = r.uniform(0.7, 1.3)
    p.draw("box", (0, 0, w * 0.34), (w, 0.09, w * 0.58), (0.05, 0.05, 0.06), pitch=r.uniform(-0.3, 0.1))
    p.draw("box", (0, -0.05, w * 0.34), (w * 0.93, 0.01, w * 0.52), (0.1, 0.13, 0.17), material="glass", gloss=1.0)
    p.draw("box", (0, 0, 0.02), (w * 0.4, 0.25, 0.04), (0.08, 0.08, 0.09))


def teddy_bear(p: Pen, r) -> None:
    c, s = np.array((0.6, 0.4, 0.22)) * r.uniform(0.7, 1.4), r.uniform(0.6, 1.1)
    light = np.clip(c * 1.5, 0, 1)
    p.draw("blob", (0, 0, s * 0.32), (s * 0.45, s * 0.4, s * 0.5), c, material="fur")
    p.draw("blob", (0, -s * 0.05, s * 0.72), (s * 0.4, s * 0.36, s * 0.38), c, material="fur")
    p.draw("sphere", (0, -s * 0.22, s * 0.68), (s * 0.16, s * 0.14, s * 0.12), light)
    for x in (-1, 1):
        p.draw("sphere", (x * s * 0.17, 0, s * 0.9), (s * 0.14, s * 0.08, s * 0.14), c)
        p.draw("sphere", (x * s * 0.08, -s * 0.21, s * 0.77), (s * 0.04,) * 3, RUBBER)
        p.draw("blob", (x * s * 0.26, -s * 0.06, s * 0.42), (s * 0.14, s * 0.16, s * 0.36), c, roll=x * 0.5, material="fur")
        p.draw("blob", (x * s * 0.17, -s * 0.22, s * 0.1), (s * 0.18, s * 0.42, s * 0.18), c, material="fur")


def gas_cylinder(p: Pen, r) -> None:
    c, h = any_color(r), r.uniform(0.5, 1.3)
    lying = r.random() < 0.4
    d = r.uniform(0.25, 0.35)
    if lying:
        p.rod((-h / 2, 0, d / 2), (h / 2, 0, d / 2), d, c, material="paint", gloss=0.4)
        p.draw("sphere", (h / 2, 0, d / 2), (d, d, d), c * 0.9)
        p.draw("cylinder", (h / 2 + d * 0.6, 0, d / 2), (0.1, 0.1, 0.1), METAL)
    else:
        p.draw("cylinder", (0, 0, h / 2), (d, d, h), c, material="paint", gloss=0.4)
        p.draw("sphere", (0, 0, h), (d, d, d), c * 0.9)
        p.draw("cylinder", (0, 0, h + d * 0.6), (0.1, 0.1, 0.14), METAL)


def pumpkin(p: Pen, r) -> None:
    s, c = r.uniform(0.35, 0.8), np.array((0.9, 0.45, 0.08)) * r.uniform(0.8, 1.1)
    for i in range(6):
        p.draw("blob", (0, 0, s * 0.4), (s * 0.62, s, s * 0.8), c, yaw=i * np.pi / 6)
    p.rod((0, 0, s * 0.75), (s * 0.1, 0, s * 0.98), s * 0.1, (0.3, 0.4, 0.15))


SHAPES: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        tyre, cardboard_box, traffic_cone, barrel, wooden_pallet, suitcase, ball, rock, tree_trunk, chair, table, refrigerator,
        washing_machine, garbage_bag, trash_can, shopping_cart, stroller, dog, cow, deer, sheep, bucket, crate, umbrella,
        broken_glass, mattress, pipe, concrete_block, road_barrier, kick_scooter, skateboard, sandbag, sofa, ladder,
        wheelbarrow, toilet, horse, boat, piano, bathtub, television, teddy_bear, gas_cylinder, pumpkin,
    )
}  # fmt: skip
