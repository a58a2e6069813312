"""The committed evaluation set: few frames, chosen so that every hazard type and every known class can be seen in some of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes.classes import KNOWN_CLASSES
from vl4ad_model.scenes.dataset import Recipe, frame_name, make_frame, write_frame
from vl4ad_model.scenes.hazards import HELD_OUT, SEEN

FIRST_SEED = 900_000  # far from training's and validation's
CLEAR, VISIBLE = 500, 160  # pixels of a frame's largest hazard, and of each one that was asked for
TRIES = 60
QUIET_FRAMES, CUTOUT_FRAMES = 14, 4
WANTED_PIXELS, WANTED_FRAMES = 400, 4  # a quiet frame is taken for known classes that few frames show so far


class Wanted(NamedTuple):
    """One frame to find: its split, its hazards (empty: cut-outs, or nothing in a quiet frame) and the seeds to try."""

    split: str
    hazards: tuple[str, ...]
    seed: int


def wanted_frames() -> list[Wanted]:
    """Each seen type once and each held-out type twice, two in a frame; some cut-outs; quiet frames."""
    pairs: list[tuple[str, tuple[str, ...]]] = [("seen", pair) for pair in zip(SEEN[::2], SEEN[1::2], strict=False)]
    pairs += [("held_out", pair) for pair in zip(HELD_OUT[::2], HELD_OUT[1::2], strict=False)]
    pairs += [("held_out", pair) for pair in zip(HELD_OUT[:6], HELD_OUT[6:], strict=False)]
    pairs += [(split, ()) for split in ("seen", "held_out") for _ in range(CUTOUT_FRAMES)]
    pairs += [("quiet", ())] * QUIET_FRAMES
    return [Wanted(split, tuple(hazards), FIRST_SEED + 100 * index) for index, (split, hazards) in enumerate(pairs)]


def write_set(folder: Path, cutouts: Path, height: int = 384, width: int = 640, quality: int = 88) -> Iterator[str]:
    """Find and write the frames into `folder`/{seen,held_out,quiet}; yields the name of each.

    Raises:
        SceneError: no seed gives a frame that shows what is wanted.
    """
    shown = np.zeros(KNOWN_CLASSES, int)
    for wanted in wanted_frames():
        for seed in range(wanted.seed, wanted.seed + TRIES):
            recipe = Recipe(height, width, wanted.split, str(cutouts), wanted.hazards or None, (5.0, 17.0))
            rgb, labels, info = make_frame(recipe, seed)
            classes = np.bincount(labels.ravel(), minlength=256)[:KNOWN_CLASSES] >= WANTED_PIXELS
            if _suits(wanted, rgb, info, classes, shown):
                break
        else:
            raise SceneError(f"no seed from {wanted.seed} on shows {', '.join(wanted.hazards) or wanted.split} clearly")
        shown += classes
        name = frame_name(seed)
        write_frame(folder / wanted.split, name, rgb, labels, info, quality)
        yield f"{wanted.split}/{name}"


def _suits(wanted: Wanted, rgb: np.ndarray, info: dict, classes: np.ndarray, shown: np.ndarray) -> bool:
    if rgb.mean() < 35 or rgb.std() < 28:  # night and thick fog: nobody could tell either
        return False
    hazards = list(info["hazards"].values())
    if wanted.split == "quiet":
        return bool((classes & (shown < WANTED_FRAMES)).any()) or shown.min() >= WANTED_FRAMES
    if not hazards or max(hazard["pixels"] for hazard in hazards) < CLEAR:
        return False
    if not wanted.hazards:
        return any(hazard["kind"] == "cutout" and hazard["pixels"] >= CLEAR for hazard in hazards)
    visible = {hazard["name"] for hazard in hazards if hazard["pixels"] >= VISIBLE}
    return visible >= set(wanted.hazards)
