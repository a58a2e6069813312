"""Cars, lorries, buses, trams and two-wheelers, drawn with a Pen in metres; fronts at -y."""

from __future__ import annotations

import numpy as np

from vl4ad_model.scenes.hazard_shapes import METAL, RUBBER, any_color, wood
from vl4ad_model.scenes.primitives import CAR_PROFILES, Pen

GLASS = (0.07, 0.09, 0.12)
_CAR_COLORS = ((0.32, 0.02, 0.02), (0.02, 0.06, 0.25), (0.03, 0.14, 0.4), (0.02, 0.1, 0.06), (0.42, 0.35, 0.25), (0.2, 0.1, 0.05),
               (0.6, 0.2, 0.02), (0.7, 0.5, 0.05), (0.25, 0.45, 0.6), (0.12, 0.02, 0.04), (0.25, 0.3, 0.2))  # fmt: skip
_FLEET_COLORS = (
    (0.55, 0.03, 0.03),
    (0.75, 0.5, 0.03),
    (0.04, 0.15, 0.45),
    (0.03, 0.25, 0.1),
    (0.85, 0.85, 0.83),
    (0.65, 0.25, 0.03),
    (0.6, 0.6, 0.55),
    (0.25, 0.45, 0.6),
    (0.3, 0.05, 0.1),
)


def vehicle_paint(r) -> np.ndarray:
    """Two thirds of the cars in the world are black, white, grey or silver."""
    if r.random() < 0.66:
        return np.full(3, r.choice([0.012, 0.03, 0.08, 0.18, 0.32, 0.45, 0.7, 0.85])) * r.uniform(0.93, 1.06, 3)
    return np.array(r.choice(_CAR_COLORS)) * r.uniform(0.7, 1.4) * r.uniform(0.85, 1.15, 3)


def fleet_paint(r) -> np.ndarray:
    """Buses, trams and lorries."""
    return np.clip(np.array(r.choice(_FLEET_COLORS)) * r.uniform(0.7, 1.2) * r.uniform(0.85, 1.15, 3), 0, 0.95)


def wheels(p: Pen, width: float, axles, d: float) -> None:
    for y in axles:
        for x in (-width / 2 + 0.1, width / 2 - 0.1):
            p.draw("cylinder", (x, y, d / 2), (d, d, 0.22), RUBBER, roll=np.pi / 2)
            p.draw("cylinder", (x, y, d / 2), (d * 0.62, d * 0.62, 0.235), np.array(METAL) * 0.7, roll=np.pi / 2, material="metal")


def lamps(p: Pen, width: float, front: float, rear: float, z: float, on: float) -> None:
    for x in (-width * 0.38, width * 0.38):
        p.draw("box", (x, front, z), (0.3, 0.04, 0.15), (0.95, 0.95, 0.85), emission=on, gloss=1.0)
        p.draw("box", (x, rear, z + 0.1), (0.28, 0.04, 0.17), (0.75, 0.05, 0.04), emission=on * 0.6, gloss=0.8)


def car(p: Pen, r, night: float = 0.0) -> None:
    """Saloon, hatchback, estate, SUV, van, pickup or coupe; front at -y."""
    c = vehicle_paint(r)
    kind = str(r.choice(["sedan", "hatch", "hatch", "estate", "suv", "suv", "van", "pickup", "coupe"]))
    bonnet, boot, sill, screen, front, rear, back = CAR_PROFILES[kind]
    w = r.uniform(1.68, 1.92)
    length = {"hatch": 4.0, "van": 4.9, "pickup": 5.1, "coupe": 4.3}.get(kind, 4.55) * r.uniform(0.92, 1.06)
    h = {"suv": 1.7, "van": 1.95, "pickup": 1.75, "coupe": 1.33}.get(kind, 1.46) * r.uniform(0.95, 1.06)
    paint = {"material": "paint", "gloss": 0.8}
    whole = ((0, 0, h / 2), (w, length, h))
    panel = kind == "van" and r.random() < 0.5  # a delivery van has no windows behind its doors
    p.draw(f"{kind} body", *whole, c, **paint)
    p.draw(f"{kind} glass", *whole, np.array(GLASS) * r.uniform(0.5, 1.3), material="glass", gloss=1.0)
    p.draw(f"{kind} roof", *whole, c if r.random() < 0.85 else np.array((0.02, 0.02, 0.02)), **paint)
    low, thick = (bonnet + 0.02) * h, 0.07
    for side in (-1, 1):
        foot, top = side * 0.452 * w, side * 0.365 * w
        for y0, y1 in ((screen + 0.03, front + 0.015), (back - 0.02, rear - 0.015)):
            p.rod((foot, y0 * length, low), (top, y1 * length, 0.955 * h), thick, c, **paint)
        spots = [0.42] if rear - front < 0.25 else [0.35, 0.78]
        for t in spots:
            y = (front + (rear - front) * t) * length
            p.rod(
                (side * 0.463 * w, y + 0.05, low),
                (side * 0.372 * w, y, 0.955 * h),
                thick,
                (0.02, 0.02, 0.02) if r.random() < 0.4 else c,
                **paint,
            )
        p.draw("rounded", (side * (w / 2 + 0.06), (screen + 0.07) * length, (bonnet + 0.1) * h), (0.2, 0.12, 0.14), c, **paint)
    if panel:
        middle = (0.1 + rear) / 2
        p.draw("box", (0, middle * length, 0.75 * h), (w * 0.9, (rear - 0.1) * length, 0.42 * h), c, **paint)
    for y in (screen + 0.1, 0.12) if kind != "coupe" else (screen + 0.14,):  # gaps of the doors
        p.draw("box", (0, y * length, (sill + bonnet) / 2 * h), (w * 1.001, 0.015, (bonnet - sill) * 0.8 * h), c * 0.3)
    d = {"suv": 0.74, "pickup": 0.76}.get(kind, 0.64) * r.uniform(0.95, 1.05)
    axles = (-length * 0.315, length * (0.29 if kind != "van" else 0.31))
    for y in axles:
        for x in (-w / 2 + 0.14, w / 2 - 0.14):  # arches
            p.draw("cylinder", (x, y, d * 0.5), (d * 1.13, d * 1.13, 0.284), (0.012, 0.012, 0.012), roll=np.pi / 2)
    p.draw("box", (0, 0, sill * h * 0.75), (w * 0.9, length * 0.86, sill * h * 0.7), (0.015, 0.015, 0.015))
    wheels(p, w * 1.01, axles, d)
    nose, tail = bonnet * h, boot * h
    for side in (-1, 1):
        p.draw(
            "rounded",
            (side * 0.34 * w, -0.472 * length, nose - 0.15 * h),
            (0.36, 0.16, 0.15),
            (0.8, 0.82, 0.85),
            emission=night,
            gloss=1.0,
        )
        p.draw(
            "rounded",
            (side * 0.385 * w, 0.476 * length, tail - 0.1 * h),
            (0.26, 0.12, 0.2 if kind != "van" else 0.45),
            (0.45, 0.01, 0.01),
            emission=night * 0.7,
            gloss=0.8,
        )
    p.draw("rounded", (0, -0.486 * length, nose - 0.2 * h), (w * 0.5, 0.1, 0.16), (0.02, 0.02, 0.02), material="metal")
    p.draw("box", (0, -0.493 * length, sill * h + 0.13), (w * 0.75, 0.06, 0.12), (0.02, 0.02, 0.02))
    p.draw("box", (0, 0.492 * length, sill * h + 0.1), (w * 0.8, 0.06, 0.14), (0.03, 0.03, 0.03))
    for y, z, color in ((-0.503 * length, sill * h + 0.2, (0.8, 0.8, 0.8)), (0.5 * length, tail - 0.26 * h, (0.8, 0.8, 0.7))):
        p.draw("box", (0, y, z), (0.5, 0.03, 0.11), color)


def truck(p: Pen, r, night: float = 0.0) -> None:
    c, w, length, h = fleet_paint(r), r.uniform(2.2, 2.55), r.uniform(5.5, 11), r.uniform(2.7, 3.8)
    cargo = np.full(3, r.uniform(0.4, 0.85)) if r.random() < 0.5 else fleet_paint(r)
    front = -length / 2
    p.draw("box", (0, 0, 0.6), (w * 0.8, length, 0.25), (0.1, 0.1, 0.1))
    p.draw("rounded", (0, front + 0.9, 1.5), (w * 0.98, 1.85, 2.1), c, material="paint", gloss=0.6)
    p.draw("rounded", (0, front + 0.05, 1.9), (w * 0.88, 0.16, 0.8), GLASS, material="glass", gloss=1.0)
    p.draw("box", (0, front - 0.02, 1.1), (w * 0.6, 0.06, 0.4), (0.03, 0.03, 0.03), material="metal")
    p.draw("rounded", (0, front - 0.02, 0.6), (w * 0.96, 0.3, 0.4), c * 0.5 if r.random() < 0.5 else (0.05, 0.05, 0.05))
    if r.random() < 0.4:
        p.draw("wedge", (0, front + 1.0, 2.8), (w * 0.85, 1.4, 0.6), c, material="paint", gloss=0.6)
    for x in (-w * 0.5, w * 0.5):
        p.draw("box", (x * 1.1, front + 0.15, 1.9), (0.12, 0.1, 0.45), (0.03, 0.03, 0.03))
    for x in (-w * 0.485, w * 0.485):
        p.draw("box", (x, front + 0.8, 1.8), (0.03, 0.9, 0.7), GLASS, material="glass", gloss=1.0)
    kind = r.choice(["box", "tipper", "tank", "flat"])
    body = length - 2.1
    y = front + 2.1 + body / 2
    if kind == "box":
        p.draw(
            "box", (0, y, (h + 0.8) / 2), (w, body, h - 0.8), cargo, material=str(r.choice(["plain", "paint", "fabric"])), gloss=0.2
        )
        if r.random() < 0.4:
            p.draw("box", (0, y, h * r.uniform(0.4, 0.7)), (w * 1.004, body * 1.001, r.uniform(0.2, 0.7)), fleet_paint(r))
        if r.random() < 0.5:
            p.draw("box", (0, y, h * 0.62), (w * 1.01, body * 0.6, h * 0.3), cargo, color2=fleet_paint(r), material="sign")
        p.draw("box", (0, length / 2, (h + 0.8) / 2), (0.04, 0.04, (h - 0.9)), cargo * 0.4)
        for x in (-w / 2, w / 2):
            p.draw("box", (x * 0.98, y, 0.85), (0.06, body, 0.12), np.array(METAL) * 0.7, material="metal")
    elif kind == "tipper":
        p.draw("frustum", (0, y, 1.5), (w * 1.02, body, -1.3), cargo)
    elif kind == "tank":
        p.draw("cylinder", (0, y, 1.8), (2.0, 2.0, body), np.array(METAL) * 1.2, pitch=np.pi / 2, material="metal", gloss=0.9)
    else:
        p.draw("box", (0, y, 0.85), (w, body, 0.15), wood(r), material="wood")
        p.draw("box", (0, y, 1.3), (w * 0.8, body * 0.8, 0.8), wood(r), material="wood")
    wheels(p, w, (front + 1.0, length / 2 - 1.0, length / 2 - 2.2), 0.95)
    lamps(p, w, front - 0.03, length / 2 + 0.03, 0.85, night)


def bus(p: Pen, r, night: float = 0.0) -> None:
    c, w, length, h = fleet_paint(r), 2.5, r.uniform(8.5, 13), r.choice([2.9, 3.1, 4.2])
    p.draw("box", (0, 0, h / 2 + 0.2), (w * 0.995, length * 0.985, h - 0.45), c, material="paint", gloss=0.6)
    p.draw("rounded", (0, 0, h / 2 + 0.2), (w * 1.005, length, h - 0.25), c, material="paint", gloss=0.6)
    if r.random() < 0.6:  # a stripe in a second colour
        p.draw("box", (0, 0, 0.75), (w * 1.006, length * 0.97, r.uniform(0.2, 0.7)), fleet_paint(r), material="paint", gloss=0.6)
    for z in (1.75,) if h < 4 else (1.6, 3.2):
        p.draw("box", (0, 0, z), (w * 1.008, length * 0.94, 0.85), GLASS, material="glass", gloss=1.0)
        for y in np.linspace(-length * 0.45, length * 0.45, int(length / 1.3)):
            p.draw("box", (0, y, z), (w * 1.014, 0.1, 0.9), c * 0.8)
        p.draw("box", (0, 0, z + 0.1), (w * 0.9, length * 1.006, 1.1), GLASS, material="glass", gloss=1.0)
    p.draw(
        "box",
        (0, -length / 2 - 0.02, h - 0.35),
        (w * 0.7, 0.06, 0.3),
        (0.05, 0.05, 0.05),
        color2=(0.95, 0.6, 0.1),
        material="sign",
        texture=3,
    )
    wheels(p, w, (-length * 0.32, length * 0.3), 0.95)
    lamps(p, w, -length / 2 - 0.03, length / 2 + 0.03, 0.7, night)


def train(p: Pen, r, night: float = 0.0) -> None:
    c, second = fleet_paint(r), fleet_paint(r)
    for i in range(int(r.integers(2, 5))):
        y = i * 14.5
        p.draw("rounded", (0, y, 2.0), (2.68, 14.1, 3.05), c, material="paint", gloss=0.5)
        p.draw("box", (0, y, 2.0), (2.64, 13.6, 2.8), c, material="paint", gloss=0.5)
        p.draw("cylinder", (0, y, 3.45), (2.5, 0.9, 13.8), c * 0.8, pitch=np.pi / 2)
        p.draw("box", (0, y, 2.35), (2.67, 12.8, 1.0), GLASS, material="glass", gloss=1.0)
        for k in np.linspace(-6, 6, 9):
            p.draw("box", (0, y + k, 2.3), (2.69, 0.35, 1.3), second)
        p.draw("box", (0, y, 0.95), (2.67, 14, 0.35), second)
        p.draw("box", (0, y, 0.4), (2.2, 12.5, 0.7), (0.08, 0.08, 0.08))
    p.draw("box", (0, -7.02, 2.5), (2.1, 0.1, 1.1), GLASS, material="glass", gloss=1.0)
    lamps(p, 2.6, -7.05, 100, 1.2, max(night, 0.5))


def bicycle(p: Pen, r) -> None:
    c, d = any_color(r) * 0.8, 0.68
    for y in (-0.52, 0.52):
        p.draw("ring", (0, y, d / 2), (d, d, 0.4), RUBBER, roll=np.pi / 2)
        for k in range(4):
            o = np.array((0, np.cos(k * np.pi / 4), np.sin(k * np.pi / 4))) * d * 0.48
            p.rod(np.array((0, y, d / 2)) - o, np.array((0, y, d / 2)) + o, 0.008, METAL)
    a, b, e, f = (0.0, 0.52, d / 2), (0.0, 0.05, 0.3), (0.0, 0.2, 0.85), (0.0, -0.38, 0.88)
    for start, end in ((a, b), (a, e), (b, e), (b, f), (e, f), (f, (0, -0.52, d / 2))):
        p.rod(start, end, 0.04, c, material="metal")
    p.rod((-0.26, -0.4, 1.0), (0.26, -0.4, 1.0), 0.03, RUBBER)
    p.rod(f, (0, -0.4, 1.0), 0.03, c)
    p.draw("box", (0, 0.22, 0.92), (0.14, 0.26, 0.06), RUBBER)


def motorcycle(p: Pen, r, night: float = 0.0) -> None:
    c = any_color(r) * 0.85
    for y in (-0.68, 0.68):
        p.draw("torus", (0, y, 0.31), (0.62, 0.62, 0.75), RUBBER, roll=np.pi / 2)
        p.draw("cylinder", (0, y, 0.31), (0.35, 0.35, 0.1), METAL, roll=np.pi / 2, material="metal")
    p.draw("blob", (0, 0.0, 0.5), (0.36, 0.85, 0.45), (0.15, 0.15, 0.16), material="metal")
    p.draw("blob", (0, -0.18, 0.82), (0.34, 0.6, 0.3), c, material="paint", gloss=0.9)
    p.draw("blob", (0, 0.42, 0.82), (0.28, 0.75, 0.16), (0.05, 0.05, 0.05))
    p.draw("blob", (0, -0.62, 0.85), (0.36, 0.35, 0.45), c, material="paint", gloss=0.9)
    p.draw("sphere", (0, -0.8, 0.88), (0.2, 0.1, 0.18), (0.95, 0.95, 0.9), emission=max(night, 0.4))
    for x in (-0.12, 0.12):
        p.rod((x, -0.45, 0.95), (x, -0.7, 0.3), 0.05, METAL, material="metal")
    p.rod((-0.36, -0.42, 1.02), (0.36, -0.42, 1.02), 0.04, RUBBER)
    p.rod((0.18, 0, 0.32), (0.2, 0.7, 0.4), 0.09, METAL, material="metal")
