"""Labelled images to train on: folders of rendered frames, and Cityscapes as published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl4ad_model.errors import TrainingError
from vl4ad_model.image_files import read_rgb
from vl4ad_model.training.config import DataSource
from vl4ad_model.vocabulary import Vocabulary

IGNORED = 255
# Cityscapes' label ids to its 19 train ids (cityscapesScripts, labels.py); everything else is ignored.
_CITYSCAPES_TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16,
    32: 17, 33: 18,
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One labelled image.

    Attributes:
        rgb: (H, W, 3) uint8. labels: (H, W) uint8: ids of known classes, ids of hazards, 255 = ignored.
        hazards: id in `labels` -> name.
        cutouts: ids of the hazards that are pasted pictures.
    """

    rgb: np.ndarray
    labels: np.ndarray
    hazards: dict[int, str]
    cutouts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class FrameFiles:
    """Where a frame lies. `info` is the JSON of a rendered frame, None for Cityscapes."""

    image: Path
    labels: Path
    info: Path | None


def find_frames(source: DataSource) -> list[FrameFiles]:
    """The frames of a data source, sorted by name.

    Raises:
        TrainingError: the folder is missing or holds none.
    """
    if not source.folder.is_dir():
        raise TrainingError(f"data folder {source.folder} does not exist")
    frames = _rendered(source.folder) if source.kind == "rendered" else _cityscapes(source.folder, source.split)
    if not frames:
        layout = "images/, labels/ and frames/" if source.kind == "rendered" else f"leftImg8bit/{source.split} and gtFine"
        raise TrainingError(f"data folder {source.folder} has no {source.kind} frames: {layout} are expected")
    for frame in frames:
        if not frame.image.is_file():
            raise TrainingError(f"{frame.image} is missing, though {frame.info} is there")
        if not frame.labels.is_file():
            raise TrainingError(f"{frame.image} has no labels at {frame.labels}")
    return frames


def _rendered(folder: Path) -> list[FrameFiles]:
    return [
        FrameFiles(folder / "images" / f"{info.stem}.jpg", folder / "labels" / f"{info.stem}.png", info)
        for info in sorted((folder / "frames").glob("*.json"))
    ]


def _cityscapes(folder: Path, split: str) -> list[FrameFiles]:
    frames = []
    for image in sorted((folder / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        stem = image.name.removesuffix("_leftImg8bit.png")
        labels = folder / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelIds.png"
        frames.append(FrameFiles(image, labels, None))
    return frames


def require_same_classes(sources: Sequence[DataSource], vocabulary: Vocabulary) -> None:
    """Label k of a frame is class k of the vocabulary: where labels are Cityscapes' train ids, so must be the classes.

    Raises:
        TrainingError: they are not.
    """
    expected = [known.name for known in Vocabulary.cityscapes().classes]
    found = [known.name for known in vocabulary.classes[: len(expected)]]
    for source in sources:
        if found != expected and (source.kind == "cityscapes" or (source.folder / "recipe.json").is_file()):
            k = next(k for k, name in enumerate(expected) if found[k : k + 1] != [name])
            raise TrainingError(
                f"the labels in {source.folder} are Cityscapes' train ids, {k} = {expected[k]}, but class {k} of the vocabulary "
                f"is {found[k] if k < len(found) else 'missing'}: begin it as config/vocabularies/cityscapes.yaml does"
            )


def read_frame(files: FrameFiles, known: int | None = None) -> Frame:
    """Read a frame.

    Args:
        known: number of known classes; with it, labels of a rendered frame that stand for nothing are refused, and hazards that
            have a known class's label. The 19 of Cityscapes always stand for something.

    Raises:
        TrainingError: a file is damaged, image and labels differ in size, or a label stands for nothing or for two things; names
            the file.
    """
    from PIL import Image

    from vl4ad_model.errors import ImageError

    try:
        rgb = read_rgb(files.image, upright=False)
        with Image.open(files.labels) as picture:
            labels = np.asarray(picture)
    except (OSError, ValueError, ImageError) as error:
        raise TrainingError(f"{files.image}: {error}") from None
    if labels.dtype != np.uint8 or labels.shape != rgb.shape[:2]:
        raise TrainingError(f"{files.labels}: labels are {labels.dtype} {labels.shape}, 8 bit of the image's size are needed")
    if files.info is None:
        return Frame(rgb, cityscapes_train_ids(labels), {})
    listed = _hazards(files.info, known or 0)
    hazards = {number: name for number, (name, _) in listed.items()}
    if known is not None:
        known = max(known, len(_CITYSCAPES_TRAIN_IDS))
        nobody = [int(i) for i in np.unique(labels) if i >= known and i != IGNORED and int(i) not in hazards]
        if nobody:
            raise TrainingError(
                f"{files.labels}: label {nobody[0]} is none of the {known} known classes, no hazard that {files.info.name} lists, "
                f"and not {IGNORED} (ignored)"
            )
    return Frame(rgb, labels, hazards, frozenset(number for number, (_, kind) in listed.items() if kind == "cutout"))


def cityscapes_train_ids(labels: np.ndarray) -> np.ndarray:
    """Cityscapes label ids (as in *_gtFine_labelIds.png) to train ids 0..18 and 255."""
    table = np.full(256, IGNORED, np.uint8)
    for label, train in _CITYSCAPES_TRAIN_IDS.items():
        table[label] = train
    return table[labels]


def hazard_names(frames: Sequence[FrameFiles], known: int = 0) -> set[str]:
    """The names of all hazards that a list of rendered frames shows, beside so many known classes; assemblies have none."""
    names: set[str] = set()
    for files in frames:
        if files.info is not None:
            names.update(name for name, kind in _hazards(files.info, known).values() if kind != "assembly")
    return names


def _hazards(info: Path, known: int) -> dict[int, tuple[str, str]]:
    """Label -> name and kind, from a frame's JSON.

    Raises:
        TrainingError: damaged, or a label that no hazard can have beside `known` classes; names the file.
    """
    try:
        hazards = json.loads(info.read_text(encoding="utf-8")).get("hazards", {})
        listed = {int(number): (str(hazard["name"]), str(hazard.get("kind", ""))) for number, hazard in hazards.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(f"{info} does not say what the hazards are ({type(error).__name__}: {error})") from None
    for number, (name, _) in listed.items():
        if not known <= number < IGNORED:
            raise TrainingError(
                f"{info}: hazard '{name}' has label {number}: beside {known} known classes it is {known} to {IGNORED - 1}"
            )
    return listed
