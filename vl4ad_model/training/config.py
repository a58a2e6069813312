"""What a training run is: one YAML file, checked entry by entry before anything starts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl4ad_model.errors import TrainingError, VocabularyError, did_you_mean
from vl4ad_model.image_files import MAX_SIDE
from vl4ad_model.vocabulary import parse_yaml

KINDS = ("rendered", "cityscapes")
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class DataSource:
    """A folder of labelled images.

    Attributes:
        kind: rendered (what `vl4ad scenes render` writes) or cityscapes (leftImg8bit/ and gtFine/ as published).
        folder: where it lies; relative to the YAML file.
        split: of a Cityscapes folder: train, val or test.
        repeat: how often an epoch sees each image.
    """

    kind: str
    folder: Path
    split: str = "train"
    repeat: int = 1


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Attributes:
        model: registry name, or folder (relative to the file, else as typed); its CLIP is kept frozen, its decoder trained.
        start_from_weights: start from the model's present decoder weights (fine-tuning) instead of fresh ones.
        refined: give the decoder residual blocks at strides 8 and 4 if it has none; they start as the identity.
        extra_blocks: how many further such blocks the decoder has at strides 16, 8 and 4; None = as many as the model's.
        decoder_layers: of the mask decoder; 0 = as many as the model has. New ones after the old ones start as the identity, too.
        colour_tolerance: of the masks' edges (`FCCLIPConfig.colour_tolerance`), in training as in use; None = the model's.
        data: images to learn from.
        validation: images that decide about early stopping and the best checkpoint; empty = keep the last.
        vocabulary: YAML file of the known classes; None = Cityscapes.
        cutouts: folder of cut-out pictures that are pasted as further hazards; None = no pasting.
        crop: (height, width) of training crops, multiples of 32.
        scales: smallest and largest factor an image is scaled by before it is cropped.
        anchored_queries: query k always stands for known class k, the others are matched. Converges in a fraction of the
            steps; False is Mask2Former's and FC-CLIP's matching of everything. None = as the weights that are started from.
        steps, warmup_steps, batch_size: of one process; the learning rate rises over the warm-up and falls as a cosine.
        learning_rate, weight_decay, clip_gradient_norm: AdamW; 0 = gradients are not clipped.
        points: sampled points per image for masks, dice and class maps.
        *_weight: of the losses; `no_object_weight` is the class weight of void for queries without an object.
        name_weight: of telling each named thing from all other words of the training, for queries and single pixels; 0 = off.
        iou_weight: of the Lovász-softmax loss of the known classes, which stands for their mIoU; 0 = off.
        paraphrased: share of the words for hazards that are moved, in each step, to where an unknown synonym could lie.
        rare_crops: share of crops taken where most segments are, out of three places.
        most_copied: things of frames read before (hazards, people, two-wheelers, trucks, buses) copied into a crop, at most.
        ema_decay: of the averaged weights that are validated and saved; 0 = none.
        sharpen: save the weights with the logit scale of the class probabilities that validation images like best.
        precision: fp32, fp16 (CUDA) or bf16.
        validate_every, checkpoint_every: in steps.
        patience: validations without improvement before training stops; 0 = never.
        crops_on_device: keep all frames in the device's memory and make crops there; for a GPU, and frames of one size.
        seed, workers: of sampling, and processes that load images.
        threads: CPU threads; 0 = the library's default.
        compiled_backbone: where the device is a CPU and OpenVINO is installed, run the frozen CLIP through it: much faster.
    """

    model: str
    data: tuple[DataSource, ...]
    validation: tuple[DataSource, ...] = ()
    vocabulary: Path | None = None
    cutouts: Path | None = None
    start_from_weights: bool = False
    refined: bool = False
    extra_blocks: tuple[int, int, int] | None = None
    decoder_layers: int = 0
    colour_tolerance: float | None = None
    crop: tuple[int, int] = (512, 1024)
    scales: tuple[float, float] = (0.5, 2.0)
    anchored_queries: bool | None = None
    steps: int = 90000
    warmup_steps: int = 500
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    clip_gradient_norm: float = 1.0
    points: int = 4096
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    map_weight: float = 2.0
    no_object_weight: float = 0.1
    name_weight: float = 0.0
    iou_weight: float = 0.0
    paraphrased: float = 0.0
    rare_crops: float = 0.0
    most_copied: int = 0
    ema_decay: float = 0.0
    sharpen: bool = False
    precision: str = "fp32"
    validate_every: int = 1000
    validation_images: int = 60
    checkpoint_every: int = 250
    patience: int = 0
    crops_on_device: bool = False
    seed: int = 0
    workers: int = 1
    threads: int = 0
    compiled_backbone: bool = True

    @classmethod
    def from_yaml(cls, path: Path) -> TrainingConfig:
        """Read and check a file.

        Raises:
            TrainingError: unreadable, not YAML, an unknown entry or an impossible value; the message names it.
        """
        try:
            values = parse_yaml(Path(path).read_text(encoding="utf-8"), f"training configuration {path}")
        except OSError as error:
            raise TrainingError(f"training configuration {path} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise TrainingError(f"training configuration {path} is not UTF-8 (byte {error.start})") from None
        except VocabularyError as error:
            raise TrainingError(str(error)) from None
        if not isinstance(values, dict):
            raise TrainingError(f"training configuration {path} must be a mapping of names to values")
        return cls.from_dict(values, base=Path(path).resolve().parent, title=f"training configuration {path}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, base: Path, title: str = "training configuration") -> TrainingConfig:
        """From plain values; paths are relative to `base`, and `title` stands before every complaint."""
        try:
            return cls._from_values(values, base)
        except TrainingError as error:
            raise TrainingError(f"{title}: {error}") from None

    @classmethod
    def _from_values(cls, values: dict[str, Any], base: Path) -> TrainingConfig:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise TrainingError(f"no entry '{name}': {did_you_mean(name, known)}")
        for name in ("model", "data"):
            if not values.get(name):
                raise TrainingError(f"'{name}' is missing")
        types = typing.get_type_hints(cls)
        ready: dict[str, Any] = {}
        for name, value in values.items():
            if name in ("data", "validation"):
                ready[name] = tuple(_source(entry, name, base) for entry in _list(value, name))
            elif name == "model":
                ready[name] = _model(value, base)
            elif name in ("vocabulary", "cutouts"):
                ready[name] = None if value is None else _path(value, base)
            elif name in _TUPLES:
                count, kind = _TUPLES[name]
                if not isinstance(value, list) or len(value) != count:
                    raise TrainingError(f"'{name}' needs {('two', 'three')[count - 2]} numbers, not {value!r:.60}")
                ready[name] = tuple(_of_type(name, part, kind) for part in value)
            elif types[name] in (bool | None, float | None):
                kind = bool if types[name] == bool | None else float
                ready[name] = None if value is None else _of_type(name, value, kind)
            else:
                ready[name] = _of_type(name, value, types[name])
        config = cls(**ready)
        config._check()
        return config

    def _check(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise TrainingError(message)

        need(
            all(32 <= side <= MAX_SIDE and side % 32 == 0 for side in self.crop), f"'crop' needs multiples of 32, up to {MAX_SIDE}"
        )
        need(0 < self.scales[0] <= self.scales[1], "'scales' needs 0 < smallest <= largest")
        need(self.precision in PRECISIONS, f"'precision' must be one of {', '.join(PRECISIONS)}")
        positive = ("steps", "batch_size", "points", "validate_every", "validation_images", "checkpoint_every", "learning_rate")
        for name in positive:
            need(getattr(self, name) > 0, f"'{name}' must be positive")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                need(math.isfinite(value), f"'{field.name}' must be a finite number")
            elif isinstance(value, int):
                need(value <= LARGEST, f"'{field.name}' must be at most {LARGEST}")
        for name in ("warmup_steps", "weight_decay", "clip_gradient_norm", "most_copied", "patience", "seed", "workers", *_WEIGHTS):
            need(getattr(self, name) >= 0, f"'{name}' must not be negative")
        need(self.most_copied <= MOST_COPIED, f"'most_copied' must be at most {MOST_COPIED}: labels have eight bits")
        for name, what in (("patience", "stop"), ("sharpen", "choose")):
            need(not getattr(self, name) or bool(self.validation), f"'{name}' needs 'validation' frames to {what} by")
        for name in ("paraphrased", "rare_crops"):
            need(0 <= getattr(self, name) <= 1, f"'{name}' is a share: it must be in [0, 1]")
        need(all(count >= 0 for count in self.extra_blocks or ()), "'extra_blocks' must not be negative")
        need(self.decoder_layers >= 0, "'decoder_layers' must not be negative; 0 = as many as the model has")
        need((self.colour_tolerance or 0) >= 0, "'colour_tolerance' must not be negative; 0 = bilinear masks")
        need(0 <= self.threads <= MOST_THREADS, f"'threads' must be 0 (the library's default) to {MOST_THREADS}")
        need(0 <= self.ema_decay < 1, "'ema_decay' must be in [0, 1)")

    def to_json(self) -> str:
        """Readable JSON; kept in every checkpoint, so that a run says how it was made."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=str)


MOST_COPIED = 75  # ids 180 to 254
LARGEST = 10**15  # whole number: more than any memory holds, and a few of them added still fit in 64 bits
MOST_THREADS = 1024
_WEIGHTS = ("class_weight", "mask_weight", "dice_weight", "map_weight", "no_object_weight", "name_weight", "iou_weight")
_TUPLES: dict[str, tuple[int, type]] = {"crop": (2, int), "scales": (2, float), "extra_blocks": (3, int)}
_KINDS_OF_VALUES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def _of_type(name: str, value: Any, kind: type) -> Any:
    """The value as its entry's type; YAML takes 1e-3 for a string, people mean a number."""
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TrainingError(f"'{name}' must be {_KINDS_OF_VALUES[kind]}, not {value!r:.60}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TrainingError(f"'{name}' must be a list: {name}: [{{kind: rendered, folder: data/train}}]")
    return value


def _path(value: Any, base: Path) -> Path:
    path = Path(os.path.expanduser(str(value)))
    return path if path.is_absolute() else base / path


def _model(value: Any, base: Path) -> str:
    """A folder beside the configuration, like every other path of it; else a registry name, or a folder as it was typed."""
    folder = _path(value, base)
    return str(folder) if len(Path(str(value)).parts) > 1 and folder.is_dir() else str(value)


def _source(entry: Any, name: str, base: Path) -> DataSource:
    if not isinstance(entry, dict) or "folder" not in entry or entry.get("kind") not in KINDS:
        raise TrainingError(f"every entry of '{name}' needs 'folder' and 'kind' ({' or '.join(KINDS)})")
    known = [field.name for field in dataclasses.fields(DataSource)]
    for key in entry:
        if key not in known:
            raise TrainingError(f"'{name}' has no entry '{key}': {did_you_mean(key, known)}")
    repeat = _of_type("repeat", entry.get("repeat", 1), int)
    if repeat < 1:
        raise TrainingError(f"'repeat' of '{name}' must be at least 1, not {repeat}")
    return DataSource(entry["kind"], _path(entry["folder"], base), str(entry.get("split", "train")), repeat)
