"""Folders of rendered frames: `images/NAME.jpg`, `labels/NAME.png`, and `frames/NAME.json` with what each hazard is.

Labels are 8 bit: 0..18 are the Cityscapes train ids, 255 is ignored, and 100 + i is hazard i of that frame, whose name, kind
(procedural, cutout or assembly) and split (seen or held_out) stand in the frame's JSON under "hazards".
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vl4ad_model.errors import SceneError, Vl4adError
from vl4ad_model.image_files import write_bytes
from vl4ad_model.scenes import cutouts as cutout_files
from vl4ad_model.scenes.classes import FIRST_HAZARD, HAZARD_CLASS
from vl4ad_model.scenes.hazards import BY_NAME
from vl4ad_model.scenes.postprocess import Style, develop
from vl4ad_model.scenes.world import World, make_world
from vl4ad_model.worker_processes import end_with_parent

if TYPE_CHECKING:
    from vl4ad_model.scenes.renderer import Rendered, Renderer

SPLITS = ("train", "seen", "held_out", "quiet")


@dataclass(frozen=True)
class Recipe:
    """How frames are made: the same recipe and seed give the same frame on one machine.

    Attributes:
        cutouts: folder of cut-outs, None = only procedural hazards.
        exactly: these hazard types, one of each, instead of a draw from the split's.
        hazard_y: how far ahead hazards lie, metres.
        assembled: share of the drawn hazards that are put together at random and have no name (scenes/assemblies.py).
        everyday: share of the streets with manhole covers, puddles, leafless trees and the like (scenes/everyday.py).
        two_wheelers: share of the streets with more bicycles, motorcycles and riders near the camera than usual.
    """

    height: int = 384
    width: int = 640
    split: str = "train"
    cutouts: str | None = None
    exactly: tuple[str, ...] | None = None
    hazard_y: tuple[float, float] = (5.0, 32.0)
    assembled: float = 0.0
    everyday: float = 0.0
    two_wheelers: float = 0.0


_renderers: dict[tuple[int, int], Renderer] = {}


@lru_cache(maxsize=4)
def _cutouts(folder: str) -> dict[str, Path]:
    return cutout_files.names_of(Path(folder))


def renderer_for(height: int, width: int) -> Renderer:
    """This process's renderer of a size; contexts are dear and are kept."""
    from vl4ad_model.scenes.renderer import Renderer

    if (height, width) not in _renderers:
        _renderers[height, width] = Renderer(height, width)
    return _renderers[height, width]


def make_frame(recipe: Recipe, seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """One frame: RGB (H, W, 3) uint8, labels (H, W) uint8, and its JSON."""
    names = _cutouts(recipe.cutouts) if recipe.cutouts else {}
    wanted = [n for n in names if cutout_files.is_held_out(n) == (recipe.split == "held_out")]
    quiet = {"train": None, "quiet": True}.get(recipe.split, False)
    world = make_world(
        seed, split=recipe.split, quiet=quiet, cutout_names=wanted, exactly=recipe.exactly, hazard_y=recipe.hazard_y,
        assembled=recipe.assembled, everyday=recipe.everyday, two_wheelers=recipe.two_wheelers,
    )  # fmt: skip
    pictures = cutout_files.load([names[name] for name in world.pictures]) if world.pictures else None
    drawn = renderer_for(recipe.height, recipe.width).render(world.at(0.0), pictures)
    r = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    visible = np.unique(drawn.instances[drawn.class_ids == HAZARD_CLASS])
    numbers = {int(instance): FIRST_HAZARD + index for index, instance in enumerate(visible)}
    labels, hazards = label(drawn, world, numbers)
    rgb = develop(drawn.image, world.light, Style.draw(r), r)
    return rgb, labels, {"seed": seed, "split": recipe.split, "hazards": hazards}


def label(drawn: Rendered, world: World, numbers: dict[int, int]) -> tuple[np.ndarray, dict[str, dict]]:
    """Labels (H, W) uint8 with each hazard's number, and what the numbers in view stand for."""
    labels, hazards = drawn.class_ids.copy(), {}
    inside = drawn.class_ids == HAZARD_CLASS
    for instance, number in numbers.items():
        pixels = inside & (drawn.instances == instance)
        if not pixels.any():
            continue
        name, kind = world.hazards[instance]
        held_out = BY_NAME[name].held_out if kind == "procedural" else kind == "cutout" and cutout_files.is_held_out(name)
        labels[pixels] = number
        hazards[str(number)] = {
            "name": name, "kind": kind, "split": "held_out" if held_out else "seen", "pixels": int(pixels.sum()),
        }  # fmt: skip
    return labels, hazards


def frame_name(seed: int) -> str:
    return f"{seed:06d}"


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


class Failure(NamedTuple):
    """Why a frame could not be made; `fatal` when no other frame will fare better."""

    text: str
    fatal: bool


def start_worker(threads: int) -> None:
    """In every process of a pool: share the cores (Mesa would start a thread for each)."""
    end_with_parent()
    os.environ.setdefault("LP_NUM_THREADS", str(threads))


def render_one(task: tuple[Recipe, int, str]) -> Failure | None:
    """Worker: make and write one frame."""
    recipe, seed, folder = task
    try:
        rgb, labels, info = make_frame(recipe, seed)
        quality = int(np.random.default_rng(seed).integers(55, 95))
        write_frame(Path(folder), frame_name(seed), rgb, labels, info, quality)
    except Vl4adError as error:
        return Failure(str(error), True)
    except Exception as error:
        return Failure(f"frame {frame_name(seed)}: {type(error).__name__}: {error}", False)
    return None


def missing(recipe: Recipe, seeds: range, folder: Path) -> list[int]:
    """The seeds that a folder has no whole frame of; notes the recipe in the folder so that another is never mixed in.

    Raises:
        SceneError: the folder holds frames of another recipe.
    """
    note, mine = folder / "recipe.json", {**json.loads(json.dumps(asdict(recipe))), "cutouts": recipe.cutouts is not None}
    is_noted = False
    if note.is_file():
        try:
            theirs = json.loads(note.read_text())
        except (ValueError, RecursionError):
            theirs = None
        if not isinstance(theirs, dict):
            raise SceneError(f"{note} is damaged: remove it, or name another folder")
        usual = asdict(Recipe())  # what a folder means that was begun before a key came in
        differing = [key for key in mine if mine[key] != theirs.get(key, usual[key])]
        if differing and any((folder / "frames").glob("*.json")):
            key = differing[0]
            raise SceneError(
                f"{folder} holds frames with {key} {theirs.get(key, usual[key])}, not {mine[key]}: name another folder"
            )
        is_noted = not differing
    if not is_noted:
        write_bytes(note, json.dumps(mine).encode())
    return [seed for seed in seeds if not frame_paths(folder, frame_name(seed))[2].is_file()]
