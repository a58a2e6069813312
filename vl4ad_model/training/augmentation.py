"""What happens to a frame before the network sees it: crops, pasted things, textures, light, and a camera's faults.

Rendered frames are clean and alike; photographs are neither. Colours, textures and sharpness are therefore shaken hard, so that
the decoder leans on what the frozen backbone knows about shapes and context instead of on the renderer's palette.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vl4ad_model.training.data import IGNORED, Frame

FIRST_PASTED = 160
FIRST_COPIED = 180
MOST_PASTED = 4
# What a street shows seldom and small, by Cityscapes train ids: a rider belongs to what is ridden.
RARE = {"two-wheeler": (12, 17, 18), "person": (11,), "truck": (14,), "bus": (15,)}
RARE_SHARE = 0.4


@dataclass(frozen=True)
class CutOuts:
    """Pictures to paste: names, and (H, W, 4) uint8 RGBA, not premultiplied."""

    names: tuple[str, ...]
    pictures: tuple[np.ndarray, ...]

    @classmethod
    def load(cls, folder: Path, *, size: int = 160) -> CutOuts:
        """Every cut-out of a folder that training may see (see `vl4ad_model.scenes.cutouts`)."""
        from PIL import Image

        from vl4ad_model.scenes.cutouts import is_held_out, names_of

        names, pictures = [], []
        for name, path in names_of(folder).items():
            if is_held_out(name):
                continue
            with Image.open(path) as image:
                rgba = np.asarray(image.convert("RGBA").resize((size, size)))
            names.append(name)
            pictures.append(rgba)
        return cls(tuple(names), tuple(pictures))


class SeenThings:
    """Things cut out of frames that were read before, to be copied into others (Ghiasi et al., "Simple Copy-Paste", CVPR 2021).

    A frame shows one hazard or two and hardly ever a bicycle that covers more than a few cells; copies make both common.

    Args:
        hazards: names of the hazards that are remembered; None = all.
        cutouts: remember those, too, that are pasted pictures.
        each: how many of a kind are remembered; older ones are forgotten.
    """

    def __init__(self, hazards: Collection[str] | None = None, each: int = 64, *, cutouts: bool = True) -> None:
        self._hazards, self._each, self._cutouts = hazards, each, cutouts
        self._kinds: dict[str, deque[tuple[np.ndarray, np.ndarray, str]]] = {}

    @property
    def kinds(self) -> dict[str, deque[tuple[np.ndarray, np.ndarray, str]]]:
        """What is remembered, by kind: RGB, labels (255 = not of the thing), and the hazard's name or ""."""
        return self._kinds

    def remember(self, frame: Frame) -> None:
        """Keep the hazards of a frame, and its rare known things that are whole."""
        present = set(np.unique(frame.labels).tolist())
        for number in sorted(present & set(frame.hazards) - (set() if self._cutouts else frame.cutouts)):
            name = frame.hazards[number]
            if self._hazards is None or name in self._hazards:
                self._keep(frame, frame.labels == number, name, name)
        for kind, classes in RARE.items():
            if present.intersection(classes):
                self._keep(frame, np.isin(frame.labels, classes), kind, "")

    def _keep(self, frame: Frame, mask: np.ndarray, kind: str, name: str) -> None:
        count, parts, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        height, width = mask.shape
        for part in range(1, count):
            left, top, w, h, pixels = (int(value) for value in boxes[part])
            whole = left > 0 and top > 0 and left + w < width and top + h < height
            if pixels < 50 or min(w, h) < 6 or (not whole and not name):
                continue
            box = np.s_[top : top + h, left : left + w]
            labels = np.where(parts[box] == part, frame.labels[box], IGNORED).astype(np.uint8)
            self._kinds.setdefault(kind, deque(maxlen=self._each)).append((frame.rgb[box].copy(), labels, name))

    def copy_into(self, frame: Frame, most: int, r: np.random.Generator) -> Frame:
        """Put up to `most` remembered things on the ground of a frame."""
        rare, hazards_seen = [k for k in self._kinds if k in RARE], [k for k in self._kinds if k not in RARE]
        ground = np.argwhere((frame.labels <= 1) | (frame.labels == 9))
        if not self._kinds or not len(ground):
            return frame
        rgb, labels, hazards = frame.rgb.copy(), frame.labels.copy(), dict(frame.hazards)
        for number in range(int(r.integers(0, most + 1))):
            kinds = rare if rare and (not hazards_seen or r.random() < RARE_SHARE) else hazards_seen
            things = self._kinds[kinds[int(r.integers(len(kinds)))]]
            thing, of_thing, name = things[int(r.integers(len(things)))]
            foot = ground[int(r.integers(len(ground)))]
            if (
                _copy(rgb, labels, thing, of_thing, (int(foot[0]), int(foot[1])), FIRST_COPIED + number if name else None, r)
                and name
            ):
                hazards[FIRST_COPIED + number] = name
        return Frame(rgb, labels, hazards)


def _copy(
    rgb: np.ndarray, labels: np.ndarray, thing: np.ndarray, of_thing: np.ndarray, foot: tuple[int, int], number: int | None,
    r: np.random.Generator,
) -> bool:  # fmt: skip
    """Draw a thing with its lowest row at `foot`; its labels become `number`, or stay where that is None. False: no room."""
    most = min(1.7, 0.6 * rgb.shape[0] / thing.shape[0])
    factor = float(np.clip(np.exp(r.normal(0.1, 0.45)), 10 / min(thing.shape[:2]), most))
    size = (max(6, round(thing.shape[1] * factor)), max(6, round(thing.shape[0] * factor)))
    shrink = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    inside = (of_thing != IGNORED).astype(np.float32)
    alpha = cv2.resize(inside, size, interpolation=shrink)[..., None]
    picture: np.ndarray = cv2.resize(thing.astype(np.float32), size, interpolation=shrink)
    ids = cv2.resize(of_thing, size, interpolation=cv2.INTER_NEAREST)
    if r.random() < 0.5:
        picture, alpha, ids = picture[:, ::-1], alpha[:, ::-1], ids[:, ::-1]
    top, left = foot[0] - size[1], foot[1] - size[0] // 2
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + size[1], rgb.shape[0]), min(left + size[0], rgb.shape[1])
    if y1 - y0 < 6 or x1 - x0 < 6:
        return False
    part, place = np.s_[y0 - top : y1 - top, x0 - left : x1 - left], np.s_[y0:y1, x0:x1]
    picture, alpha, ids = picture[part] * r.uniform(0.65, 1.25), alpha[part], ids[part]
    rgb[place] = np.clip(rgb[place] * (1 - alpha) + picture * alpha, 0, 255).astype(np.uint8)
    drawn = (alpha[..., 0] > 0.5) & (ids != IGNORED)
    labels[place][(alpha[..., 0] > 0.15) & ~drawn] = IGNORED
    labels[place][drawn] = ids[drawn] if number is None else number
    return True


def augment(
    frame: Frame,
    crop: tuple[int, int],
    scales: tuple[float, float],
    cutouts: CutOuts | None,
    r: np.random.Generator,
    *,
    rare_crops: float = 0.0,
    seen: SeenThings | None = None,
    most_copied: int = 0,
) -> Frame:
    """A random view of a frame, of size `crop`; `rare_crops` and `most_copied` as `TrainingConfig` says."""
    frame = random_crop(frame, crop, scales, r, places=3 if r.random() < rare_crops else 1)
    if r.random() < 0.5:
        frame = Frame(frame.rgb[:, ::-1].copy(), frame.labels[:, ::-1].copy(), frame.hazards)
    if seen is not None and most_copied:
        frame = seen.copy_into(frame, most_copied, r)
    if cutouts is not None and cutouts.names:
        frame = paste(frame, cutouts, r)
    rgb = frame.rgb
    if r.random() < 0.4:
        rgb = retexture(rgb, frame.labels, r)
    return Frame(camera_faults(shake_colours(rgb, r), r), frame.labels, frame.hazards)


def random_crop(
    frame: Frame, crop: tuple[int, int], scales: tuple[float, float], r: np.random.Generator, *, places: int = 1
) -> Frame:
    """Scale by a random factor and cut where, of so many random places, most segments are.

    Where the image is too small it is padded with grey that is ignored.
    """
    height, width = frame.labels.shape
    factor = float(np.exp(r.uniform(np.log(scales[0]), np.log(scales[1]))))
    stretch = float(np.exp(r.normal(0, 0.06)))
    size = (max(16, round(width * factor * stretch)), max(16, round(height * factor)))
    rgb = cv2.resize(frame.rgb, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    labels = cv2.resize(frame.labels, size, interpolation=cv2.INTER_NEAREST)
    missing = max(0, crop[0] - size[1]), max(0, crop[1] - size[0])
    if any(missing):
        rgb = cv2.copyMakeBorder(rgb, 0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT, value=(124, 117, 104))
        labels = cv2.copyMakeBorder(labels, 0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT, value=IGNORED)
    parts = []
    for _ in range(places):
        top, left = (int(r.integers(0, have - want + 1)) for have, want in zip(labels.shape, crop, strict=True))
        parts.append(np.s_[top : top + crop[0], left : left + crop[1]])
    part = parts[0] if places == 1 else max(parts, key=lambda p: len(np.unique(labels[p][::3, ::3])))
    return Frame(rgb[part].copy(), labels[part].copy(), frame.hazards)


def paste(frame: Frame, cutouts: CutOuts, r: np.random.Generator) -> Frame:
    """Put cut-out pictures on the ground, with a shadow; they are hazards of their names."""
    labels, hazards = frame.labels.copy(), dict(frame.hazards)
    rgb: np.ndarray = frame.rgb.astype(np.float32)
    ground = np.argwhere((labels <= 1) | (labels == 9))
    if not len(ground):
        return frame
    height, width = labels.shape
    for number in range(int(r.integers(0, MOST_PASTED + 1))):
        which = int(r.integers(len(cutouts.names)))
        row, column = ground[int(r.integers(len(ground)))]
        near = (row / height) ** 1.5
        size = int(np.clip(np.exp(r.normal(np.log(12 + 90 * near), 0.45)), 10, height * 0.6))
        picture = _vary(cutouts.pictures[which], size, r)
        top, left = int(row) - picture.shape[0], int(column) - picture.shape[1] // 2
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + picture.shape[0], height), min(left + picture.shape[1], width)
        if y1 - y0 < 6 or x1 - x0 < 6:
            continue
        part = picture[y0 - top : y1 - top, x0 - left : x1 - left]
        alpha = part[..., 3:]
        _shadow(rgb, (int(row), int(column)), picture.shape[1], r)
        light = r.uniform(0.5, 1.15) * np.clip(rgb[y0:y1, x0:x1].mean() / 110.0, 0.35, 1.3)
        rgb[y0:y1, x0:x1] = rgb[y0:y1, x0:x1] * (1 - alpha) + part[..., :3] * light * alpha
        inside = alpha[..., 0] > 0.5
        labels[y0:y1, x0:x1][inside] = FIRST_PASTED + number
        labels[y0:y1, x0:x1][(alpha[..., 0] > 0.15) & ~inside] = IGNORED
        hazards[FIRST_PASTED + number] = cutouts.names[which]
    return Frame(np.clip(rgb, 0, 255).astype(np.uint8), labels, hazards)


def _vary(rgba: np.ndarray, size: int, r: np.random.Generator) -> np.ndarray:
    """A cut-out at `size` pixels, turned, stretched, mirrored and recoloured: float32 RGB 0..255 and alpha 0..1."""
    stretch = np.exp(r.normal(0, 0.15))
    width, height = max(6, round(size * stretch)), max(6, size)
    picture: np.ndarray = cv2.resize(rgba, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    if r.random() < 0.5:
        picture = picture[:, ::-1].copy()
    if r.random() < 0.5:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), r.normal(0, 15), 0.95)
        picture = cv2.warpAffine(picture, turn, (width, height))
    rows = np.flatnonzero(picture[..., 3].max(axis=1) > 60)  # stand on the ground, not on the picture's empty margin
    if len(rows):
        picture = picture[: rows[-1] + 1]
    colour: np.ndarray = picture[..., :3]
    if r.random() < 0.5:  # the same thing in other colours: permuted, greyed, tinted
        colour = colour[..., r.permutation(3)]
    grey = colour.mean(axis=-1, keepdims=True)
    colour = grey + (colour - grey) * r.uniform(0.0, 1.1)
    picture[..., :3] = np.clip(colour * np.exp(r.normal(0, 0.12, 3)), 0, 255)
    picture[..., 3] /= 255.0
    return picture


def _shadow(rgb: np.ndarray, foot: tuple[int, int], width: int, r: np.random.Generator) -> None:
    mask = np.zeros(rgb.shape[:2], np.float32)
    axes = (max(2, int(width * r.uniform(0.35, 0.6))), max(1, int(width * r.uniform(0.06, 0.15))))
    cv2.ellipse(mask, (foot[1], foot[0]), axes, 0, 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), max(1.0, width * 0.05)) * r.uniform(0.1, 0.6)
    rgb *= 1 - mask[..., None]


def retexture(rgb: np.ndarray, labels: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """Give a few segments another texture and tint: cloudy or grainy noise, multiplied in."""
    result = rgb.astype(np.float32)
    height, width = labels.shape
    present = np.unique(labels)
    for label in r.choice(present, min(len(present), int(r.integers(1, 4))), replace=False):
        inside = labels == label
        field = np.zeros((height, width), np.float32)
        for _ in range(int(r.integers(1, 4))):
            cells = int(2 ** r.uniform(2, 7.5))
            noise = r.standard_normal((cells, max(2, int(cells * width / height)))).astype(np.float32)
            field += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        factor = np.exp(field * r.uniform(0.04, 0.22))[..., None] * np.exp(r.normal(0, 0.12, 3)) * np.exp(r.normal(0, 0.15))
        result[inside] *= factor[inside]
    return np.clip(result, 0, 255).astype(np.uint8)


def shake_colours(rgb: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, gamma, saturation, white balance, hue; now and then no colour at all."""
    curve = (np.arange(256, dtype=np.float32) / 255) ** float(np.exp(r.normal(0, 0.25)))
    curve = (curve - 0.5) * r.uniform(0.6, 1.4) + 0.5 + r.normal(0, 0.07)
    x: np.ndarray = cv2.LUT(rgb, curve.astype(np.float32))
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = 0.0 if r.random() < 0.06 else r.uniform(0.3, 1.5)
    x = grey[..., None] + (x - grey[..., None]) * saturation
    x = x * np.exp(r.normal(0, 0.07, 3)).astype(np.float32)
    if r.random() < 0.15:
        x = x[..., r.permutation(3)]
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def camera_faults(rgb: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """Blur, sharpening, noise, low resolution, JPEG."""
    x: np.ndarray = rgb
    if r.random() < 0.25:
        x = cv2.GaussianBlur(x, (0, 0), r.uniform(0.4, 1.6))
    elif r.random() < 0.3:
        x = cv2.addWeighted(x, 1.7, cv2.GaussianBlur(x, (0, 0), 1.2), -0.7, 0)
    if r.random() < 0.15:
        factor = r.uniform(0.5, 0.9)
        small = cv2.resize(x, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        x = cv2.resize(small, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR)
    if r.random() < 0.4:
        noise = r.standard_normal(x.shape).astype(np.float32) * r.uniform(1, 12)
        x = np.clip(x + noise, 0, 255).astype(np.uint8)
    if r.random() < 0.3:
        stored = cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, int(r.integers(25, 90))])[1]
        x = np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR))
    return x
