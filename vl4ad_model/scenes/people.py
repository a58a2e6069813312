"""People on foot and on two wheels, drawn with a Pen in metres; facing -y."""

from __future__ import annotations

import numpy as np

from vl4ad_model.scenes.classes import BICYCLE, MOTORCYCLE
from vl4ad_model.scenes.hazard_shapes import any_color
from vl4ad_model.scenes.primitives import Pen
from vl4ad_model.scenes.vehicles import bicycle, motorcycle

_CLOTHES = (
    (0.02, 0.02, 0.025),
    (0.05, 0.055, 0.07),
    (0.03, 0.05, 0.14),
    (0.1, 0.15, 0.28),
    (0.2, 0.2, 0.2),
    (0.45, 0.43, 0.4),
    (0.75, 0.73, 0.7),
    (0.3, 0.22, 0.13),
    (0.12, 0.13, 0.06),
    (0.35, 0.04, 0.04),
    (0.55, 0.45, 0.3),
    (0.1, 0.25, 0.2),
)


def clothes(r) -> np.ndarray:
    if r.random() < 0.18:
        return any_color(r) * 0.8
    return np.array(r.choice(_CLOTHES)) * r.uniform(0.6, 1.4) * r.uniform(0.88, 1.12, 3)


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


def rider(p: Pen, r, night: float = 0.0) -> None:
    if r.random() < 0.6:
        bicycle(p.with_class(BICYCLE), r)
    else:
        motorcycle(p.with_class(MOTORCYCLE), r, night)
    person(p, r, seated=True)
