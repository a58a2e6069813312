"""The bridge from pictures to words: one linear map from the frozen backbone's pooled features to the text space.

It is a ridge regression on three kinds of pairs (features, meaning of the name):

- ImageNet's 1,000 classes without a picture: a classifier row w says which features mean its class; for features of covariance
  S the class' mean is about `mean + g S w` (linear discriminant analysis read backwards);
- cut-out pictures pasted on rendered streets, pooled over their own outline as `FrozenClip.pool` does;
- hazards and known classes in rendered frames, pooled over their true masks.

Every name weighs the same however many pictures it has. Held-out hazard types and cut-outs are never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vl4ad_model.errors import SceneError
from vl4ad_model.network.clip import FrozenClip
from vl4ad_model.scenes import cutouts
from vl4ad_model.scenes.dataset import FIRST_HAZARD, frame_paths

_MASK_STRIDE = 4
_SLOTS = 8  # cut-outs per frame


class Samples(NamedTuple):
    """features (n, C) float32 pooled over a mask each; names: what each mask shows; sources: cutout, hazard, class or imagenet."""

    features: np.ndarray
    names: tuple[str, ...]
    sources: tuple[str, ...]

    def only(self, keep: np.ndarray) -> Samples:
        """The samples where `keep` (n,) is true."""
        index = np.flatnonzero(keep)
        return Samples(self.features[index], tuple(self.names[i] for i in index), tuple(self.sources[i] for i in index))


def join(parts: Sequence[Samples]) -> Samples:
    """One set of samples."""
    return Samples(
        np.concatenate([part.features for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(source for part in parts for source in part.sources),
    )


class Head(NamedTuple):
    """weight (D, C), bias (D,): features to the text space."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        rows = features @ self.weight.T + self.bias
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@torch.inference_mode()
def pool_masks(
    clip: FrozenClip, rgb: np.ndarray, masks: np.ndarray, *, mean: float = 127.0, std: float = 128.0
) -> tuple[Tensor, Tensor]:
    """The backbone's features under each mask, exactly as the network pools them, before the head.

    Args:
        clip: with a timm tower.
        rgb: (H, W, 3) uint8, sides multiples of 32.
        masks: (n, H, W) bool.

    Returns:
        features (n, C) and valid (n,): False where a mask covers no cell of the stride-32 map.
    """
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
    dense = clip((image - mean) / std).dense
    logits = F.avg_pool2d(torch.from_numpy(masks)[None].float(), _MASK_STRIDE) - 0.5
    cells = F.interpolate(logits, size=dense.shape[-2:], mode="bilinear", align_corners=False)[0] > 0
    inside = cells.flatten(1).float()
    area = inside.sum(1, keepdim=True)
    return inside @ dense[0].flatten(1).T / area.clamp_min(1), area[:, 0] > 0


def read_frame(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, dict[int, dict[str, str]]]:
    """RGB (H, W, 3), labels (H, W) and by label what the frame's JSON says of each hazard."""
    from PIL import Image

    image_path, label_path, info_path = frame_paths(folder, name)
    with Image.open(image_path) as image:
        rgb = np.array(image.convert("RGB"))
    with Image.open(label_path) as image:
        labels = np.asarray(image)
    hazards = json.loads(info_path.read_text(encoding="utf-8"))["hazards"]
    return rgb, labels, {int(number): entry for number, entry in hazards.items()}


def frame_names(folder: Path) -> list[str]:
    """Whole frames of a folder, in order.

    Raises:
        SceneError: there are none.
    """
    names = sorted(path.stem for path in (Path(folder) / "frames").glob("*.json"))
    if not names:
        raise SceneError(f"{folder} has no frames: render some with `vl4ad scenes render`")
    return names


def frame_samples(
    clip: FrozenClip, folder: Path, names: Iterable[str], class_concepts: Sequence[Sequence[str]], *, training: bool = True
) -> Iterator[Samples]:
    """Pooled features of the hazards (and, for training, of the known classes) of rendered frames, one frame at a time.

    Args:
        class_concepts: words for each of the known classes; one is drawn per sample, so that all are learned.
        training: leave out everything that is held out.
    """
    for name in names:
        rgb, labels, hazards = read_frame(folder, name)
        rng = np.random.default_rng(int(name) if name.isdigit() else 0)
        masks, words, sources = [], [], []
        for number in np.unique(labels):
            if number >= FIRST_HAZARD and int(number) in hazards:
                word, source = hazards[int(number)]["name"], "hazard"
                if training and (hazards[int(number)]["split"] == "held_out" or hazards[int(number)].get("kind") == "assembly"):
                    continue
            elif training and number < len(class_concepts):
                word, source = str(rng.choice(list(class_concepts[number]))), "class"
            else:
                continue
            masks.append(labels == number)
            words.append(word)
            sources.append(source)
        if masks:
            features, valid = pool_masks(clip, rgb, np.stack(masks))
            yield Samples(features.numpy(), tuple(words), tuple(sources)).only(valid.numpy())


def pasted_samples(
    clip: FrozenClip, folder: Path, names: Sequence[str], pictures: Path, *, count: int, seed: int
) -> Iterator[Samples]:
    """Pooled features of cut-outs pasted on rendered frames, eight to a frame; every cut-out about equally often.

    Args:
        pictures: the cut-outs' folder; held-out ones are not used.
        count: frames to make.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    usable = {name: path for name, path in cutouts.names_of(pictures).items() if not cutouts.is_held_out(name)}
    order: list[str] = []
    for _ in range(count):
        rgb = read_frame(folder, names[int(rng.integers(len(names)))])[0]
        height, width = rgb.shape[:2]
        masks, words = [], []
        for slot in range(_SLOTS):
            if not order:
                order = list(rng.permutation(sorted(usable)))
            word = str(order.pop())
            cell_height, cell_width = height // 2, width // (_SLOTS // 2)
            side = int(rng.uniform(0.45, 1.0) * min(cell_height, cell_width))
            with Image.open(usable[word]) as image:
                rgba = image.convert("RGBA").rotate(rng.uniform(-15, 15)).resize((side, side))
            pixels = np.asarray(rgba if rng.random() < 0.5 else rgba.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).astype(np.float32)
            top = slot // (_SLOTS // 2) * cell_height + int(rng.integers(0, cell_height - side + 1))
            left = slot % (_SLOTS // 2) * cell_width + int(rng.integers(0, cell_width - side + 1))
            alpha = pixels[..., 3:] / 255
            colour = np.clip(pixels[..., :3] * rng.uniform(0.6, 1.1) * rng.uniform(0.85, 1.15, 3), 0, 255)
            if rng.random() < 0.25:  # faded
                colour = 0.6 * colour.mean(axis=-1, keepdims=True) + 0.4 * colour
            window = rgb[top : top + side, left : left + side]
            window[:] = (window * (1 - alpha) + colour * alpha).astype(np.uint8)
            mask = np.zeros((height, width), bool)
            mask[top : top + side, left : left + side] = alpha[..., 0] > 0.5
            masks.append(mask)
            words.append(word)
        features, valid = pool_masks(clip, rgb, np.stack(masks))
        yield Samples(features.numpy(), tuple(words), ("cutout",) * len(words)).only(valid.numpy())


def imagenet_samples(rows: np.ndarray, names: Sequence[str], features: np.ndarray, *, gain: float) -> Samples:
    """Each ImageNet class' mean features from its classifier row (1000, C); `features` (n, C) give mean and covariance.

    Args:
        gain: how far from the mean, in standard deviations of the class' own logit.
    """
    mean = features.mean(axis=0)
    centred = features - mean
    covariance = centred.T @ centred / len(features)
    centred_rows = rows - rows.mean(axis=0)
    away = centred_rows @ covariance
    deviation = np.sqrt(np.maximum((away * centred_rows).sum(axis=1, keepdims=True), 1e-9))
    return Samples((mean + gain * away / deviation).astype(np.float32), tuple(names), ("imagenet",) * len(names))


def head_from_rows(rows: np.ndarray, targets: np.ndarray) -> Head:
    """A head for which no picture was looked at: features that raise a class' logit move towards its name.

    Args:
        rows: (1000, C) ImageNet's classifier.
        targets: (1000, D) what the classes' names mean.
    """
    away = rows - rows.mean(axis=0)
    weight = (targets.T @ (away / np.linalg.norm(away, axis=1, keepdims=True))).astype(np.float32)
    return Head(weight, np.zeros(len(weight), np.float32))


def fit(samples: Samples, targets: np.ndarray, source_weights: dict[str, float], *, ridge: float) -> Head:
    """Weighted ridge regression.

    Args:
        targets: (n, D) unit rows, the meaning of each sample's name.
        source_weights: total weight of each source; within a source every name weighs the same.
        ridge: relative to the features' mean variance.
    """
    keys = list(zip(samples.sources, samples.names, strict=True))
    counts: dict[tuple[str, str], int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    kinds = {source: sum(key[0] == source for key in counts) for source in set(samples.sources)}
    weights = np.array([source_weights.get(source, 0.0) / kinds[source] / counts[source, name] for source, name in keys])
    weights /= weights.sum()
    x, y = samples.features.astype(np.float64), targets.astype(np.float64)
    mean_x, mean_y = weights @ x, weights @ y
    x, y = x - mean_x, y - mean_y
    covariance = (x * weights[:, None]).T @ x
    covariance[np.diag_indices_from(covariance)] += ridge * np.trace(covariance) / len(covariance)
    weight = np.linalg.solve(covariance, (x * weights[:, None]).T @ y).T
    return Head(weight.astype(np.float32), (mean_y - weight @ mean_x).astype(np.float32))


class Unseen(NamedTuple):
    """How a head names things it never saw: top-1 and top-5 rates over `choices` unseen names, and samples measured."""

    top1: float
    top5: float
    samples: int


def measure_unseen(
    samples: Samples,
    meaning: dict[str, np.ndarray],
    source_weights: dict[str, float],
    *,
    ridge: float,
    choices: int = 30,
    folds: int = 5,
) -> Unseen:
    """Leave names out, fit without them, choose among `choices` of them; pictures of cut-outs and hazards are asked about.

    Args:
        meaning: name -> (D,) unit row.
    """
    pictured = sorted({n for n, source in zip(samples.names, samples.sources, strict=True) if source in ("cutout", "hazard")})
    rng = np.random.default_rng(0)
    pictured = [str(name) for name in rng.permutation(pictured)]
    names = np.array(samples.names)
    targets = np.stack([meaning[name] for name in samples.names])
    first = fifth = count = 0
    for fold in range(folds):
        left_out = pictured[fold * choices : (fold + 1) * choices]
        if len(left_out) < choices:
            break
        unseen = np.isin(names, left_out)
        head = fit(samples.only(~unseen), targets[~unseen], source_weights, ridge=ridge)
        asked = np.flatnonzero(unseen & (np.array(samples.sources) != "imagenet"))
        order = np.argsort(-head(samples.features[asked]) @ np.stack([meaning[name] for name in left_out]).T, axis=1)
        right = np.array([left_out.index(names[index]) for index in asked])
        first += int((order[:, 0] == right).sum())
        fifth += int((order[:, :5] == right[:, None]).sum())
        count += len(asked)
    return Unseen(first / max(count, 1), fifth / max(count, 1), count)


def forced_choice(
    embeddings: np.ndarray, names: Sequence[str], meaning: dict[str, np.ndarray], *, others: int = 7, seed: int = 0
) -> float:
    """How often the right name beats `others` names drawn from those that occur, over all samples (20 draws each).

    Args:
        embeddings: (n, D) unit rows.
        names: what each one shows.
    """
    rng = np.random.default_rng(seed)
    known = sorted(set(names))
    wins = []
    for row, name in zip(embeddings, names, strict=True):
        rest = [other for other in known if other != name]
        for _ in range(20):
            drawn = rng.choice(rest, size=min(others, len(rest)), replace=False)
            wins.append(row @ meaning[name] > max(row @ meaning[str(other)] for other in drawn))
    return float(np.mean(wins))


def best_logit_scale(embeddings: np.ndarray, names: Sequence[str], meaning: dict[str, np.ndarray]) -> float:
    """The logarithm of the scale at which softmax over the names that occur is most likely right (at most log 100)."""
    known = sorted(set(names))
    cosines = embeddings @ np.stack([meaning[name] for name in known]).T
    right = cosines[np.arange(len(names)), [known.index(name) for name in names]]
    scales = np.exp(np.linspace(np.log(3), np.log(100), 40))
    losses = [float(np.mean(np.log(np.exp(scale * (cosines - right[:, None])).sum(axis=1)))) for scale in scales]
    return float(np.log(scales[int(np.argmin(losses))]))
