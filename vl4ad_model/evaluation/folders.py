"""Folders of images, score maps and label PNGs, paired by stem, in the layouts the public data sets come in.

| data set | images | labels |
|---|---|---|
| SegmentMeIfYouCan | images/NAME.jpg | labels_masks/NAME_labels_semantic.png |
| Fishyscapes | NAME_leftImg8bit.png | 0001_NAME_labels.png (the number is the data set's own) |
| RoadAnomaly | frames/NAME.jpg | frames/NAME.labels/labels_semantic.png |
| `vl4ad scenes` | images/NAME.jpg | labels/NAME.png, with frames/NAME.json beside them |
| anything else | NAME.* | NAME.png or NAME_labels.png |

What the hazards in labels are called says frames/NAME.json for its frame, and hazards.json, among the labels or in the folder
above them, for the whole set.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vl4ad_model.errors import EvaluationError, Vl4adError
from vl4ad_model.evaluation import label_files, score_files
from vl4ad_model.evaluation.sources import Entry, Frame, FrameFailure

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_LABELS = ("_labels_semantic", "_labels", "_label")
_OVERLAY = "_overlay"
_COLOURED = ("_color", "_colored")
_ENDINGS = (*_LABELS, *_COLOURED, "_leftImg8bit", "_anomaly", "_scores", "_score")
_NUMBER = re.compile(r"^\d{4}_")


@dataclass(frozen=True)
class FolderSource:
    """Frames in folders: images, or saved scores, or both, with or without labels.

    Attributes:
        images, scores, labels: folders; None = none.
        label_values: "anomaly", "classes", or "auto": classes where frames/*.json or hazards.json lie beside the labels, else
            anomaly.
        class_count: K of the vocabulary, for class labels.
        every: keep each n-th frame only.
        prefix: put before every frame's name, where several folders are evaluated together.
        hazard_names: whether to read what the hazards in class labels are called.
    """

    images: Path | None = None
    scores: Path | None = None
    labels: Path | None = None
    label_values: str = "auto"
    class_count: int = 19
    every: int = 1
    prefix: str = ""
    hazard_names: bool = False

    def entries(self) -> list[Entry]:
        names_file, own_names = self._names_file(), self._own_names()
        if names_file:
            label_files.read_hazard_names(names_file)
        images = _files(self.images, "images") if self.images else {}
        scores = _files(self.scores, "score maps") if self.scores else {}
        labels = find_labels(self.labels) if self.labels else {}
        wanted, what = (scores, "scores") if self.scores else (images, "image")
        names = sorted(labels or wanted)
        if not any(_match(name, wanted) for name in names):
            raise EvaluationError(
                f"no label in {self.labels} belongs to a file in {self.scores or self.images}: "
                f"they are paired by stem, and '{names[0]}' is not '{min(wanted)}'"
            )
        entries = []
        for name in names[:: self.every]:
            found = _match(name, wanted)
            picture = _match(name, images)
            paths = (
                images.get(picture or ""),
                scores.get(found or "") if self.scores else None,
                labels.get(name),
                own_names.get(name),
            )
            failure = "" if found else f"no {what} for {labels[name]}"
            version = _version([*paths, names_file])
            entries.append(Entry(self.prefix + name, tuple(str(p) if p else None for p in paths), version, failure))
        return entries

    @property
    def unlabelled(self) -> int:
        """How many images or score maps have no label and are left out."""
        if not self.labels:
            return 0
        wanted = _files(self.scores, "score maps") if self.scores else _files(self.images, "images")  # type: ignore[arg-type]
        used = {_match(name, wanted) for name in find_labels(self.labels)}
        return len(set(wanted) - used)

    def frames(self, entries: Sequence[Entry], *, pictures: bool = True) -> Iterator[Frame | FrameFailure]:
        from vl4ad_model import image_files

        kind, names_file = self.label_kind(), self._names_file()
        names_of_set = label_files.read_hazard_names(names_file) if names_file else {}
        for entry in entries:
            if entry.failure:
                yield FrameFailure(entry.name, entry.failure)
                continue
            image, scores, labels, own_names = (Path(path) if path else None for path in entry.key)
            try:
                rgb = image_files.read_rgb(image, upright=not labels) if image and (pictures or not scores) else None
                values = score_files.read_scores(scores) if scores else None
                truth = None
                if labels:
                    raw = label_files.read_label_values(labels)
                    names = label_files.read_hazard_names(own_names, whole_set=False) if own_names else {}
                    truth = label_files.interpret(raw, kind, self.class_count, str(labels), {**names_of_set, **names})
                    seen = values if values is not None else rgb
                    if seen is not None and seen.shape[:2] != raw.shape:
                        raise EvaluationError(
                            f"{labels} is {raw.shape[1]}x{raw.shape[0]} but {scores or image} is {seen.shape[1]}x{seen.shape[0]}"
                        )
            except Vl4adError as error:
                yield FrameFailure(entry.name, str(error))
                continue
            yield Frame(entry.name, rgb, values, truth)

    def label_kind(self) -> str:
        """ "anomaly" or "classes"."""
        if self.label_values != "auto" or self.labels is None:
            return "classes" if self.label_values == "classes" else "anomaly"
        return "classes" if _is_rendered(self.labels) or self._hazards_file() else "anomaly"

    def _hazards_file(self) -> Path | None:
        """hazards.json of the whole set, if there is one: among the labels, or above a folder that holds labels only."""
        if self.labels is None:
            return None
        folders = [self.labels] if self.labels == self.images else [self.labels, self.labels.parent]
        files = [folder / label_files.HAZARDS_FILE for folder in folders]
        return next((file for file in files if file.is_file()), None)

    def _names_file(self) -> Path | None:
        """The file with names for the whole set that is to be read."""
        return self._hazards_file() if self.hazard_names and self.label_kind() == "classes" else None

    def _own_names(self) -> dict[str, Path]:
        """The files with names for one frame each that are to be read, by frame name."""
        if self.labels is None or not self.hazard_names or self.label_kind() != "classes":
            return {}
        return {file.stem: file for file in (self.labels.parent / "frames").glob("*.json")}

    def describe(self) -> dict[str, Any]:
        names = {"images": self.images, "scores": self.scores, "labels": self.labels}
        described: dict[str, Any] = {key: str(value) for key, value in names.items() if value}
        if self.labels:
            described["label_values"] = self.label_kind()
        names_file = self._names_file()
        if names_file:
            described["hazard_names"] = str(names_file)
        if self.every != 1:
            described["every"] = self.every
        return described


def dataset_folders(root: Path) -> tuple[Path, Path | None]:
    """(images, labels) of a data set's root folder; the folder itself, and None, where it has no known layout."""
    root = Path(root)
    if not root.is_dir():
        raise EvaluationError(f"no folder {root}")
    if any(root.glob("frames/*.labels")):
        return root / "frames", root / "frames"
    if any(root.glob("*.labels")):
        return root, root
    for images in ("images", "original", "leftImg8bit"):
        if (root / images).is_dir():
            labels = [root / name for name in ("labels_masks", "labels", "gt") if (root / name).is_dir()]
            return root / images, labels[0] if labels else None
    if root.name in ("images", "original"):
        labels = [root.parent / name for name in ("labels_masks", "labels") if (root.parent / name).is_dir()]
        return root, labels[0] if labels else None
    return root, None


def expand(folder: Path) -> list[Path]:
    """The folder, or its sub-folders where those are data sets and it is none."""
    folder = Path(folder)
    if not folder.is_dir() or (folder / "images").is_dir() or any(folder.glob("*.labels")):
        return [folder]
    return [inner for inner in sorted(folder.iterdir()) if (inner / "images").is_dir()] or [folder]


def find_images(folder: Path) -> list[Path]:
    """The images below a folder, or of the data set that lies there; labels and the results of `vl4ad segment` are none.

    Raises:
        EvaluationError: there is none, or two are the same frame.
    """
    return list(_files(dataset_folders(folder)[0], "images").values())


def find_labels(folder: Path) -> dict[str, Path]:
    """Label PNGs below a folder by frame name; coloured previews and the images of RoadAnomaly are no labels."""
    inside = sorted(Path(folder).glob("*.labels/labels_semantic.png"))
    if inside:
        return {path.parent.name.removesuffix(".labels"): path for path in inside}
    return _files(folder, "label PNGs")


def _is_rendered(labels: Path) -> bool:
    frames = labels.parent / "frames"
    return labels.name == "labels" and frames.is_dir() and _holds_json(frames, frames.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _holds_json(folder: Path, modified: int) -> bool:
    """Asked for every frame, of a folder that holds a file for each."""
    return any(folder.glob("*.json"))


_SUFFIXES = {"images": IMAGE_SUFFIXES, "score maps": score_files.SUFFIXES, "label PNGs": (".png",)}


def _files(folder: Path, what: str) -> dict[str, Path]:
    """The files of one kind below a folder by frame name. Where labels lie among images, their endings tell them apart."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder" if folder.exists() else f"no folder {folder}")
    suffixes = _SUFFIXES[what]
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and not path.stem.endswith(_OVERLAY)
        and not path.parent.name.endswith(".labels")
        and path.is_file()
    ]
    others = {(path.parent, path.stem) for path in paths}
    paths = [path for path in paths if not _is_preview(path, others, labels=what == "label PNGs")]
    if what != "label PNGs":
        paths = [path for path in paths if not path.stem.endswith(_LABELS)]
    elif marked := [path for path in paths if path.stem.endswith(_LABELS)]:
        paths = marked
    found: dict[str, Path] = {}
    for path in paths:
        name = _plain(path.stem)
        if name in found:
            raise EvaluationError(f"{found[name]} and {path} are both frame '{name}': keep one of them")
        found[name] = path
    if not found:
        raise EvaluationError(f"no {what} in {folder} ({', '.join(suffixes)})")
    return found


def _is_preview(path: Path, others: Collection[tuple[Path, str]], *, labels: bool) -> bool:
    """Whether it shows labels in colours. A camera's images may be called `_color` too, beside `_depth`."""
    for ending in _COLOURED:
        if path.stem.endswith(ending):
            of = path.stem.removesuffix(ending)
            return labels or of.endswith(_LABELS) or (path.parent, of) in others
    return False


def _plain(stem: str) -> str:
    """Without its endings: masks may be called after the whole name of their image, NAME_leftImg8bit_labels_semantic."""
    for ending in _ENDINGS:
        if stem.endswith(ending) and len(stem) > len(ending):
            return _plain(stem.removesuffix(ending))
    return stem


def _match(name: str, files: dict[str, Path]) -> str | None:
    """The key of `files` that is this frame: the same name, or the name without Fishyscapes' number."""
    if name in files:
        return name
    short = _NUMBER.sub("", name)
    return short if short in files else None


def _version(paths: Sequence[Path | None]) -> str:
    parts = []
    for path in paths:
        if path:
            stat = path.stat()
            parts.append(f"{stat.st_size}:{stat.st_mtime_ns}")
    return " ".join(parts)
