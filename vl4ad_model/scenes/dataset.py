"""Folders of rendered frames: `images/NAME.jpg`, `labels/NAME.png`, and `frames/NAME.json` with what each hazard is.

Labels are 8 bit: 0..18 are the Cityscapes train ids, 255 is ignored, and 100 + i is hazard i of that frame, whose name, kind
(procedural or cutout) and split (seen or held_out) stand in the frame's JSON under "hazards".
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vl4ad_model.image_files import write_bytes
from vl4ad_model.scenes import cutouts as cutout_files
from vl4ad_model.scenes.hazards import BY_NAME
from vl4ad_model.scenes.postprocess import develop
from vl4ad_model.scenes.world import HAZARD_CLASS, make_world

FIRST_HAZARD = 100
SPLITS = ("train", "seen", "held_out", "quiet")


@dataclass(frozen=True)
class Recipe:
    """How frames are made: the same recipe and seed give the same frame on one machine."""

    height: int = 384
    width: int = 640
    split: str = "train"
    cutouts: str | None = None


_renderers: dict[tuple[int, int], object] = {}


@lru_cache(maxsize=4)
def _cutouts(folder: str) -> dict[str, Path]:
    return cutout_files.names_of(Path(folder))


def make_frame(recipe: Recipe, seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """One frame: RGB (H, W, 3) uint8, labels (H, W) uint8, and its JSON."""
    from vl4ad_model.scenes.renderer import Renderer

    size = (recipe.height, recipe.width)
    if size not in _renderers:
        _renderers[size] = Renderer(*size)
    renderer: Renderer = _renderers[size]  # type: ignore[assignment]
    names = _cutouts(recipe.cutouts) if recipe.cutouts else {}
    wanted = [n for n in names if cutout_files.is_held_out(n) == (recipe.split == "held_out")]
    quiet = {"train": None, "quiet": True}.get(recipe.split, False)
    world = make_world(seed, split=recipe.split, quiet=quiet, cutout_names=wanted)
    pictures = cutout_files.load([names[name] for name in world.pictures]) if world.pictures else None
    drawn = renderer.render(world, pictures)
    return finish(drawn, world, seed, recipe.split)


def finish(drawn, world, seed: int, split: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Develop the image and number the hazards that can be seen."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    labels = drawn.class_ids.copy()
    hazards = {}
    inside = drawn.class_ids == HAZARD_CLASS
    for instance in np.unique(drawn.instances[inside]):
        name, kind = world.hazards[int(instance)]
        number = FIRST_HAZARD + len(hazards)
        held_out = BY_NAME[name].held_out if kind == "procedural" else cutout_files.is_held_out(name)
        pixels = inside & (drawn.instances == instance)
        labels[pixels] = number
        hazards[str(number)] = {
            "name": name, "kind": kind, "split": "held_out" if held_out else "seen", "pixels": int(pixels.sum()),
        }  # fmt: skip
    return develop(drawn.image, world.light, rng), labels, {"seed": seed, "split": split, "hazards": hazards}


def frame_paths(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / "images" / f"{name}.jpg", folder / "labels" / f"{name}.png", folder / "frames" / f"{name}.json"


def write_frame(folder: Path, name: str, rgb: np.ndarray, labels: np.ndarray, info: dict, quality: int) -> None:
    """Write a frame; its JSON comes last, so that a frame with a JSON is whole."""
    from PIL import Image

    image_path, label_path, info_path = frame_paths(folder, name)
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(rgb).save(jpeg, "JPEG", quality=quality)
    Image.fromarray(labels).save(png, "PNG", optimize=True)
    write_bytes(image_path, jpeg.getvalue())
    write_bytes(label_path, png.getvalue())
    write_bytes(info_path, json.dumps(info).encode())


def render_one(task: tuple[Recipe, int, str]) -> str | None:
    """Worker: make and write one frame unless it is there already. Returns an error text or None."""
    recipe, seed, folder = task
    name = f"{seed:06d}"
    if frame_paths(Path(folder), name)[2].is_file():
        return None
    try:
        rgb, labels, info = make_frame(recipe, seed)
        quality = int(np.random.default_rng(seed).integers(55, 95))
        write_frame(Path(folder), name, rgb, labels, info, quality)
    except Exception as error:
        return f"frame {name}: {type(error).__name__}: {error}"
    return None
