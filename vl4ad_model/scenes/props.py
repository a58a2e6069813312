"""The known world: vehicles, people, buildings, plants and street furniture, each drawn with a Pen in metres."""

from __future__ import annotations

import numpy as np

from vl4ad_model.scenes.hazard_shapes import METAL, RUBBER, any_color, wood
from vl4ad_model.scenes.primitives import CAR_PROFILES, Pen

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN,
 MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
GLASS = (0.07, 0.09, 0.12)


_CAR_COLORS = ((0.32, 0.02, 0.02), (0.02, 0.06, 0.25), (0.03, 0.14, 0.4), (0.02, 0.1, 0.06), (0.42, 0.35, 0.25), (0.2, 0.1, 0.05),
               (0.6, 0.2, 0.02), (0.7, 0.5, 0.05), (0.25, 0.45, 0.6), (0.12, 0.02, 0.04), (0.25, 0.3, 0.2))  # fmt: skip
_FLEET_COLORS = ((0.55, 0.03, 0.03), (0.75, 0.5, 0.03), (0.04, 0.15, 0.45), (0.03, 0.25, 0.1), (0.85, 0.85, 0.83), (0.65, 0.25, 0.03),
                 (0.6, 0.6, 0.55), (0.25, 0.45, 0.6), (0.3, 0.05, 0.1))  # fmt: skip
_CLOTHES = ((0.02, 0.02, 0.025), (0.05, 0.055, 0.07), (0.03, 0.05, 0.14), (0.1, 0.15, 0.28), (0.2, 0.2, 0.2), (0.45, 0.43, 0.4), (0.75, 0.73, 0.7),
            (0.3, 0.22, 0.13), (0.12, 0.13, 0.06), (0.35, 0.04, 0.04), (0.55, 0.45, 0.3), (0.1, 0.25, 0.2))  # fmt: skip


def vehicle_paint(r) -> np.ndarray:
    """Two thirds of the cars in the world are black, white, grey or silver."""
    if r.random() < 0.66:
        return np.full(3, r.choice([0.012, 0.03, 0.08, 0.18, 0.32, 0.45, 0.7, 0.85])) * r.uniform(0.93, 1.06, 3)
    return np.array(r.choice(_CAR_COLORS)) * r.uniform(0.7, 1.4) * r.uniform(0.85, 1.15, 3)


def fleet_paint(r) -> np.ndarray:
    """Buses, trams and lorries."""
    return np.clip(np.array(r.choice(_FLEET_COLORS)) * r.uniform(0.7, 1.2) * r.uniform(0.85, 1.15, 3), 0, 0.95)


def clothes(r) -> np.ndarray:
    if r.random() < 0.18:
        return any_color(r) * 0.8
    return np.array(r.choice(_CLOTHES)) * r.uniform(0.6, 1.4) * r.uniform(0.88, 1.12, 3)


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
        p.draw("rounded", (side * 0.385 * w, 0.476 * length, tail - 0.1 * h), (0.26, 0.12, 0.2 if kind != "van" else 0.45), (0.45, 0.01, 0.01),
               emission=night * 0.7, gloss=0.8)  # fmt: skip
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


def _limb_colors(r):
    skin = np.array(r.choice([(0.9, 0.72, 0.6), (0.75, 0.55, 0.42), (0.5, 0.34, 0.24), (0.3, 0.2, 0.14)]))
    return skin * 0.8, clothes(r), clothes(r)


def person(p: Pen, r, seated: bool = False, walked: float = 0.0) -> None:
    """A person that has walked so many metres, or one that sits on something with two wheels; facing -y."""
    skin, top, bottom = _limb_colors(r)
    h = r.uniform(1.1, 1.9) if not seated else 1.7
    hip, shoulder = h * 0.5, h * 0.82
    wide = h * r.uniform(0.22, 0.28)
    stride = 0.2 * h * np.sin(r.uniform(0, 2 * np.pi) + walked * 4.5) if not seated else 0.0
    fabric = {"material": "fabric", "texture": 2.0}
    if seated:
        hip = 0.85
        shoulder = hip + h * 0.33
        for x in (-1, 1):
            p.rod((x * wide * 0.35, 0.15, hip), (x * wide * 0.55, -0.3, hip - 0.25), h * 0.09, bottom, **fabric)
            p.rod((x * wide * 0.55, -0.3, hip - 0.25), (x * wide * 0.5, -0.05, 0.3), h * 0.075, bottom, **fabric)
        lean = -0.22
    else:
        for x in (-1, 1):
            knee = (x * wide * 0.3, x * stride * 0.55, hip * 0.5)
            p.rod((x * wide * 0.28, 0, hip), knee, h * 0.095, bottom, **fabric)
            p.rod(knee, (x * wide * 0.3, x * stride, 0.04), h * 0.075, bottom if r.random() < 0.8 else skin, **fabric)
            p.draw("box", (x * wide * 0.3, x * stride - 0.05, 0.04), (h * 0.06, h * 0.15, 0.08), clothes(r) * 0.6)
        lean = r.uniform(-0.08, 0.03)
    p.draw(
        "rounded",
        (0, lean / 2, (hip + shoulder) / 2 - h * 0.01),
        (wide * 1.0, wide * 0.6, (shoulder - hip) * 1.16),
        top,
        pitch=-lean,
        **fabric,
    )
    p.draw("blob", (0, lean / 2, shoulder), (wide * 1.15, wide * 0.55, h * 0.1), top, pitch=-lean, **fabric)
    if not seated and r.random() < 0.25:  # skirt or coat
        p.draw("cone", (0, 0, hip * 0.85), (wide * 1.4, wide * 1.2, hip), bottom, **fabric)
    for x in (-1, 1):
        elbow = (x * wide * 0.72, lean - x * stride * 0.4 - (0.2 if seated else 0), (hip + shoulder) / 2)
        hand = (x * wide * 0.75, lean - x * stride - (0.5 if seated else 0.08), hip + (0.2 if seated else 0.0))
        p.rod((x * wide * 0.55, lean, shoulder), elbow, h * 0.06, top, **fabric)
        p.rod(elbow, hand, h * 0.05, top if r.random() < 0.7 else skin)
        p.draw("sphere", hand, (h * 0.05,) * 3, skin)
    p.draw("sphere", (0, lean * 1.3, shoulder + h * 0.1), (h * 0.11, h * 0.13, h * 0.15), skin)
    p.draw(
        "sphere",
        (0, lean * 1.3 + 0.02, shoulder + h * 0.13),
        (h * 0.12, h * 0.14, h * 0.12),
        np.array(r.choice([(0.02, 0.015, 0.01), (0.08, 0.05, 0.02), (0.25, 0.16, 0.07), (0.4, 0.38, 0.36)])),
    )
    if not seated and r.random() < 0.3:
        p.draw("box", (0, h * 0.13, shoulder - h * 0.12), (wide * 0.8, h * 0.1, h * 0.2), clothes(r), **fabric)


def bicycle(p: Pen, r) -> None:
    c, d = any_color(r) * 0.8, 0.68
    for y in (-0.52, 0.52):
        p.draw("ring", (0, y, d / 2), (d, d, 0.4), RUBBER, roll=np.pi / 2)
        for a in range(4):
            o = np.array((0, np.cos(a * np.pi / 4), np.sin(a * np.pi / 4))) * d * 0.48
            p.rod(np.array((0, y, d / 2)) - o, np.array((0, y, d / 2)) + o, 0.008, METAL)
    a, b, e, f = (0, 0.52, d / 2), (0, 0.05, 0.3), (0, 0.2, 0.85), (0, -0.38, 0.88)
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


def rider(p: Pen, r, night: float = 0.0) -> None:
    if r.random() < 0.6:
        bicycle(p.with_class(BICYCLE), r)
    else:
        motorcycle(p.with_class(MOTORCYCLE), r, night)
    person(p, r, seated=True)


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
    p.draw("box", (depth / 2, 0, height / 2), (depth, width, height), c, color2=pane if kind != "glass" else pane * 1.8, material="windows",
           texture=r.uniform(0.7, 1.5), gloss=0.9 if kind == "glass" else 0.2, emission=lit)  # fmt: skip
    p.draw("box", (depth / 2 - 0.1, 0, height), (depth + 0.4, width + 0.3, r.uniform(0.2, 0.7)), c * r.uniform(0.6, 1.1))
    if r.random() < 0.6:  # ground floor: shop windows and awnings
        p.draw("box", (-0.06, 0, 1.6), (0.2, width * 0.96, 3.0), fleet_paint(r) * 0.8, color2=GLASS, material="windows", texture=r.uniform(0.3, 0.6),
               gloss=0.8, emission=lit)  # fmt: skip
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
        p.draw("blob", (r.normal(0, 0.6), r.normal(0, 0.8), s * 0.35), (s, s, s * 0.8), green, color2=green * 0.5, material="foliage", displacement=0.3,
               texture=r.uniform(1, 2))  # fmt: skip


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
    heads = [(0, -0.12, h - 0.1)]
    pole = p.with_class(POLE)
    if r.random() < 0.5:
        h = 5.6
        pole.rod((0, 0, h), (-3.6, 0, h + 0.1), 0.12, c)
        heads = [(-3.4, -0.12, h - 0.3), (0, -0.12, 2.6)]
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
        p.draw("cylinder", (0, -0.012, h), (s * 0.76, s * 0.76, 0.03), inner, color2=(0.05, 0.05, 0.05) if inner == white else white, pitch=np.pi / 2,
               material="sign", texture=r.uniform(2, 5))  # fmt: skip
    elif kind == "triangle":
        p.draw("prism", (0, 0, h), (s * 1.1, 0.03, s * r.choice([-1, 1])), red)
        p.draw(
            "prism", (0, -0.012, h - 0.02), (s * 0.75, 0.03, s * 0.66), white, color2=(0.05, 0.05, 0.05), material="sign", texture=3
        )
    else:
        w, tall = (s, s) if kind == "square" else (s * r.uniform(1.5, 3.5), s)
        p.draw("box", (0, 0, h), (w, 0.03, tall), r.choice([blue, white, (0.05, 0.4, 0.2), (0.95, 0.8, 0.1)]), color2=white, material="sign",
               texture=r.uniform(1.5, 4))  # fmt: skip
