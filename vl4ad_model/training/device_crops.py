"""Training crops made on the device: every frame lies in its memory, and a whole batch is cut, pasted and recoloured at once.

`Crops` of the trainer does the same one crop at a time on the CPU, and a GPU waits for that. Here reading happens once, and nothing
waits for the host. Frames must be of one size and fit in memory: 0.98 MB per frame of 640 x 384, 8.4 MB per frame of 2048 x 1024.
Things that are copied are kept at 128 x 128 pixels; larger ones come back blurred.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vl4ad_model.errors import TrainingError
from vl4ad_model.training import data as frames_on_disk
from vl4ad_model.training.augmentation import FIRST_COPIED, FIRST_PASTED, MOST_PASTED, RARE, RARE_SHARE, CutOuts, SeenThings
from vl4ad_model.training.batch_pictures import Draw, camera_faults, retexture, sent, shake_colours
from vl4ad_model.training.data import IGNORED, Frame, FrameFiles

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
SIDE = 128  # pixels of a stored picture
SMALLEST_SIDE = 6  # of what is pasted
PADDING = (124.0, 117.0, 104.0)
EACH_KIND = 200  # things of a kind that are kept for copying, of all frames


@dataclass(frozen=True)
class Pictures:
    """Things to paste, each squeezed into a square.

    Attributes:
        rgba: (n, 4, SIDE, SIDE) uint8, colours multiplied by alpha.
        ids: (n, SIDE, SIDE) uint8 labels of a copied thing; None for cut-outs.
        sizes: (n, 2) float32 height and width in pixels of what was squeezed.
        names: of the hazard each is; "" = known classes.
    """

    rgba: Tensor
    ids: Tensor | None
    sizes: Tensor
    names: tuple[str, ...]

    @classmethod
    def of_cutouts(cls, cutouts: CutOuts, device: torch.device) -> Pictures:
        """Cut-outs without their empty margins."""
        squeezed, sizes = [], []
        for picture in cutouts.pictures:
            rows, columns = (np.flatnonzero(picture[..., 3].max(axis=axis) > 60) for axis in (1, 0))
            inside = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else picture
            squeezed.append(_squeezed(inside[..., :3], inside[..., 3]))
            sizes.append([size * SIDE / max(picture.shape[:2]) for size in inside.shape[:2]])
        rgba = torch.from_numpy(np.stack(squeezed)).permute(0, 3, 1, 2).contiguous().to(device)
        return cls(rgba, None, torch.tensor(sizes).to(device), cutouts.names)

    @classmethod
    def of_things(cls, things: Sequence[tuple[np.ndarray, np.ndarray, str]], device: torch.device) -> Pictures:
        """Things cut out of frames: RGB, labels (255 = not of the thing), name."""
        squeezed = [_squeezed(rgb, np.where(labels == IGNORED, 0, 255).astype(np.uint8)) for rgb, labels, _ in things]
        ids = [cv2.resize(labels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for _, labels, _ in things]
        sizes = torch.tensor([labels.shape for _, labels, _ in things], dtype=torch.float32)
        rgba = torch.from_numpy(np.stack(squeezed)).permute(0, 3, 1, 2).contiguous()
        return cls(rgba.to(device), torch.from_numpy(np.stack(ids)).to(device), sizes.to(device), tuple(t[2] for t in things))


def _squeezed(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 4) uint8, colours multiplied by alpha."""
    inside = alpha[..., None].astype(np.float32) / 255
    picture = np.concatenate((rgb * inside, alpha[..., None]), axis=-1).astype(np.float32)
    shrink = cv2.INTER_AREA if max(alpha.shape) > SIDE else cv2.INTER_LINEAR
    return np.clip(np.rint(cv2.resize(picture, (SIDE, SIDE), interpolation=shrink)), 0, 255).astype(np.uint8)


def _keep(kept: list[Item], thing: Item, met: int, chance: np.random.Generator) -> None:
    """Keep at most `EACH_KIND` things of a kind, each of all that were met as likely as another (reservoir sampling)."""
    if len(kept) < EACH_KIND:
        kept.append(thing)
    elif (place := int(chance.integers(met + 1))) < EACH_KIND:
        kept[place] = thing


def _mapped(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """What a function makes of items, in order, a few ahead of the one that is asked for."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class DeviceCrops:
    """Endless batches of random crops: (B, 3, h, w) uint8 images and (B, h, w) uint8 labels on the device, and each crop's hazards.

    Args:
        files: frames; one that is listed several times is stored once and seen as often.
        known: number of known classes.
        crop: (height, width). scales, rare_crops, most_copied: as `TrainingConfig` says.
        cutouts: pictures to paste; None = none.
        copied: names of the hazards that are copied into other frames.
        workers: threads that read the frames.

    Raises:
        TrainingError: no frame can be read, or they differ in size.
    """

    def __init__(
        self,
        files: Sequence[FrameFiles],
        known: int,
        device: torch.device,
        *,
        crop: tuple[int, int],
        scales: tuple[float, float],
        batch_size: int,
        cutouts: CutOuts | None = None,
        copied: Collection[str] = (),
        rare_crops: float = 0.0,
        most_copied: int = 0,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        self._crop, self._scales, self._batch = crop, scales, batch_size
        self._rare_crops, self._most_copied, self._device = rare_crops, most_copied, device
        self._random = np.random.default_rng(seed)
        self._read(files, known, copied if most_copied else None, workers, pasted=cutouts is not None)
        self._cutouts = Pictures.of_cutouts(cutouts, device) if cutouts is not None and cutouts.names else None
        self._draw = Draw(device, seed)
        height, width = crop
        self._rows = torch.arange(height, device=device, dtype=torch.float32)[None, :, None] + 0.5
        self._columns = torch.arange(width, device=device, dtype=torch.float32)[None, None, :] + 0.5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[dict[int, str]]]]:
        while True:
            yield self.batch()

    def _read(self, files: Sequence[FrameFiles], known: int, copied: Collection[str] | None, workers: int, *, pasted: bool) -> None:
        each = dict.fromkeys(files)
        images, labels = torch.empty(0, 3, 0, 0), torch.empty(0, 0, 0)
        self._hazards: list[dict[int, str]] = []
        kinds: dict[str, list[tuple[np.ndarray, np.ndarray, str]]] = {}
        met: Counter[str] = Counter()
        places: dict[FrameFiles, int] = {}
        last: TrainingError | None = None

        def read(file: FrameFiles) -> tuple[FrameFiles, Frame | TrainingError, SeenThings]:
            things = SeenThings(copied, cutouts=not pasted)
            try:
                frame = frames_on_disk.read_frame(file, known)
            except TrainingError as error:
                return file, error, things
            if copied is not None:
                things.remember(frame)
            return file, frame, things

        for file, frame, things in _mapped(read, each, max(1, workers)):
            if isinstance(frame, TrainingError):
                log.warning("skipped: %s", frame)
                last = frame
                continue
            if not places:
                images, labels = self._room(len(each), frame.labels.shape)
            if frame.labels.shape != labels.shape[1:]:
                sizes = " and ".join(f"{w}x{h}" for h, w in (tuple(labels.shape[1:]), frame.labels.shape))
                raise TrainingError(f"crops_on_device needs frames of one size, but there are {sizes}: {file.image}")
            place = places[file] = len(places)
            images[place] = torch.from_numpy(frame.rgb.transpose(2, 0, 1).copy()).to(self._device)
            labels[place] = torch.from_numpy(frame.labels.copy()).to(self._device)
            self._hazards.append(frame.hazards)
            for kind, found in things.kinds.items():
                for thing in found:
                    _keep(kinds.setdefault(kind, []), thing, met[kind], self._random)
                    met[kind] += 1
        if not places:
            raise TrainingError(f"no training image can be read, the last: {last}")
        self._images, self._labels = images[: len(places)], labels[: len(places)]
        self._order = np.array([places[file] for file in files if file in places])
        self._things: Pictures | None = None
        self._kinds: list[tuple[str, int, int]] = []
        if kinds:
            ordered = sorted(kinds)
            self._things = Pictures.of_things([thing for kind in ordered for thing in kinds[kind]], self._device)
            ends = np.cumsum([len(kinds[kind]) for kind in ordered]).tolist()
            self._kinds = [(kind, end - len(kinds[kind]), end) for kind, end in zip(ordered, ends, strict=True)]

    def _room(self, count: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Where that many frames (H, W) and their labels go: all at once, since joining them later would need twice as much."""
        try:
            images = torch.empty(count, 3, *size, dtype=torch.uint8, device=self._device)
            return images, torch.empty(count, *size, dtype=torch.uint8, device=self._device)
        except RuntimeError as error:  # torch's own for memory, on the CPU and on a GPU
            need = f"{4 * count * math.prod(size) / 1e9:.1f} GB for {count} frames of {size[1]}x{size[0]}"
            raise TrainingError(f"crops_on_device needs {need}, which {self._device} does not have: set it to false") from error

    def batch(self) -> tuple[Tensor, Tensor, list[dict[int, str]]]:
        """One batch."""
        with torch.no_grad():
            frames = self._order[self._random.integers(len(self._order), size=self._batch)]
            hazards = [dict(self._hazards[frame]) for frame in frames]
            rgb, labels = self._cut(sent(frames, self._device))
            if self._things is not None:
                rgb, labels = self._copy(rgb, labels, hazards)
            if self._cutouts is not None:
                rgb, labels = self._paste(rgb, labels, hazards)
            rgb = camera_faults(shake_colours(retexture(rgb, labels, self._draw), self._draw), self._draw)
            return rgb.round().to(torch.uint8), labels, hazards

    # --- crops ----------------------------------------------------------------------------------------------------------

    def _cut(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled, mirrored crops (B, 3, h, w) float and their labels (B, h, w) uint8; small frames are padded with ignored grey."""
        draw, batch = self._draw, len(frames)
        height, width = self._labels.shape[-2:]
        low, high = (float(np.log(scale)) for scale in self._scales)
        down = draw.uniform(low, high, batch).exp()
        across = down * draw.normal(0, 0.06, batch).exp()
        size = torch.stack(((height * down).round().clamp_min(16), (width * across).round().clamp_min(16)), dim=1)
        crop = sent(torch.tensor(self._crop), self._device)
        room = (size - crop).clamp_min(0)[:, None].expand(-1, 3, -1) + 1
        corner = draw.below(room).float()  # (B, 3 places, 2)
        best = self._fullest(frames, size, corner).where(draw.chance(self._rare_crops, batch), 0)
        corner = corner[torch.arange(batch, device=self._device), best]
        y, x = (self._rows + corner[:, 0, None, None]), (self._columns + corner[:, 1, None, None])
        outside = (y > size[:, 0, None, None]) | (x > size[:, 1, None, None])
        y, x = y * (height / size[:, 0, None, None]), x * (width / size[:, 1, None, None])
        mirrored = draw.chance(0.5, batch)[:, None, None]
        x, outside = torch.where(mirrored, x.flip(2), x), torch.where(mirrored, outside.flip(2), outside)
        x, y = torch.broadcast_tensors(x, y)
        images = self._images[frames].float()
        if self._scales[0] < 2**-0.5:
            images = at_level(images, (1 / down).log2())
        grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), dim=-1)
        rgb = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        labels = self._labels[frames[:, None, None], y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)]
        grey = sent(torch.tensor(PADDING), self._device)[None, :, None, None]
        return torch.where(outside[:, None], grey, rgb), labels.masked_fill(outside, IGNORED)

    def _fullest(self, frames: Tensor, size: Tensor, corner: Tensor) -> Tensor:
        """(B,) which of the places (B, 3, 2) shows most segments."""
        height, width = self._labels.shape[-2:]
        y = (self._rows[:, None, ::4] + corner[..., 0, None, None]) * (height / size[:, 0, None, None, None])
        x = (self._columns[:, None, :, ::4] + corner[..., 1, None, None]) * (width / size[:, 1, None, None, None])
        y, x = y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)
        seen = self._labels[frames[:, None, None, None], y, x].flatten(2).long()
        counts = torch.zeros(*seen.shape[:2], 256, device=self._device).scatter_(2, seen, 1.0)
        return counts.sum(dim=2).argmax(dim=1)

    # --- things ---------------------------------------------------------------------------------------------------------

    def _copy(self, rgb: Tensor, labels: Tensor, hazards: list[dict[int, str]]) -> tuple[Tensor, Tensor]:
        """Put up to `most_copied` things of other frames on the ground of each crop."""
        things, draw, batch = self._things, self._draw, len(rgb)
        assert things is not None and things.ids is not None
        rare = [span for span in self._kinds if span[0] in RARE]
        others = [span for span in self._kinds if span[0] not in RARE]
        count = draw.below(torch.full((batch,), self._most_copied + 1, device=self._device))
        for number in range(self._most_copied):
            which = []
            for image in range(batch):
                spans = rare if rare and (not others or self._random.random() < RARE_SHARE) else others
                _, first, end = spans[int(self._random.integers(len(spans)))]
                which.append(int(self._random.integers(first, end)))
                if things.names[which[-1]]:
                    hazards[image][FIRST_COPIED + number] = things.names[which[-1]]
            chosen = sent(torch.tensor(which), self._device)
            named = sent(torch.tensor([bool(things.names[i]) for i in which]), self._device)
            ids = things.ids[chosen]
            ids = torch.where(named[:, None, None] & (ids != IGNORED), FIRST_COPIED + number, ids)
            sizes = things.sizes[chosen]
            smallest, tallest = 10 / sizes.amin(dim=1), (0.6 * rgb.shape[2] / sizes[:, 0]).clamp_max(1.7)
            factor = draw.normal(0.1, 0.45, batch).exp().maximum(smallest).minimum(tallest)
            rgb, labels = self._drawn(
                rgb, labels, things.rgba[chosen].float(), ids, sizes * factor[:, None], count > number,
                turn=torch.zeros(batch, device=self._device), light=draw.uniform(0.65, 1.25, batch), fitted=False, shadow=False,
            )  # fmt: skip
        return rgb, labels

    def _paste(self, rgb: Tensor, labels: Tensor, hazards: list[dict[int, str]]) -> tuple[Tensor, Tensor]:
        """Put up to `MOST_PASTED` cut-outs on the ground of each crop, turned, stretched and recoloured, with shadows."""
        pictures, draw, batch = self._cutouts, self._draw, len(rgb)
        assert pictures is not None
        count = draw.below(torch.full((batch,), MOST_PASTED + 1, device=self._device))
        for number in range(MOST_PASTED):
            which = self._random.integers(len(pictures.names), size=batch)
            for image, picture in enumerate(which):
                hazards[image][FIRST_PASTED + number] = pictures.names[picture]
            chosen = sent(which, self._device)
            rgba = self._recoloured(pictures.rgba[chosen].float())
            sizes = pictures.sizes[chosen] / SIDE
            sizes = sizes * torch.stack((torch.ones(batch, device=self._device), draw.normal(0, 0.15, batch).exp()), dim=1)
            ids = torch.full((batch, 1, 1), FIRST_PASTED + number, dtype=torch.uint8, device=self._device)
            turn = torch.where(draw.chance(0.5, batch), draw.normal(0, 15, batch).deg2rad(), 0.0)
            rgb, labels = self._drawn(
                rgb, labels, rgba, ids, sizes, count > number, turn=turn, light=draw.uniform(0.5, 1.15, batch), fitted=True,
                shadow=True,
            )  # fmt: skip
        return rgb, labels

    def _recoloured(self, rgba: Tensor) -> Tensor:
        """The same things in other colours: permuted, greyed, tinted."""
        draw, batch = self._draw, len(rgba)
        saturation = draw.uniform(0.0, 1.1, batch, 1, 1)
        matrix = saturation * draw.channels(batch, 0.5) + (1 - saturation) / 3
        matrix = draw.normal(0, 0.12, batch, 3, 1).exp() * matrix
        colour = torch.einsum("bij,bjhw->bihw", matrix, rgba[:, :3]).clamp_min(0).minimum(rgba[:, 3:])
        return torch.cat((colour, rgba[:, 3:]), dim=1)

    def _drawn(
        self, rgb: Tensor, labels: Tensor, rgba: Tensor, ids: Tensor, sizes: Tensor, wanted: Tensor, *, turn: Tensor, light: Tensor,
        fitted: bool, shadow: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Draw one thing into each crop, its lowest point on a pixel of the ground.

        Args:
            rgb: (B, 3, h, w) float. labels: (B, h, w) uint8. rgba: (B, 4, SIDE, SIDE) float in 0..255, colours multiplied by alpha.
            ids: (B, SIDE, SIDE) or (B, 1, 1) uint8 labels. sizes: (B, 2) height and width, pixels; `fitted`: times a size that
            suits the row, and light that suits the place. wanted: (B,) bool. turn: (B,) radians. light: (B,) factor.
        """
        draw, (batch, _, height, width) = self._draw, rgb.shape
        ground = ((labels <= 1) | (labels == 9)).flatten(1)
        foot = draw.one_of(ground)
        wanted = wanted & ground.gather(1, foot[:, None])[:, 0]
        row, column = (foot // width).float() + 0.5, (foot % width).float() + 0.5
        if fitted:
            size = (12 + 90 * (row / height) ** 1.5) * draw.normal(0, 0.45, batch).exp()
            sizes = sizes * size.clamp(10, height * 0.6)[:, None]
        h, w = sizes[:, 0].clamp_min(SMALLEST_SIDE), sizes[:, 1].clamp_min(SMALLEST_SIDE)
        cos, sin = turn.cos(), turn.sin()
        tall, broad = h * cos + w * sin.abs(), w * cos + h * sin.abs()
        seen = (row.minimum(tall) >= SMALLEST_SIDE) & (
            (column + broad / 2).clamp(max=width) - (column - broad / 2).clamp(min=0) >= SMALLEST_SIDE
        )
        wanted = (wanted & seen)[:, None, None]
        down, across = self._rows - (row - tall / 2)[:, None, None], self._columns - column[:, None, None]
        cos, sin = cos[:, None, None], sin[:, None, None]
        mirror = torch.where(draw.chance(0.5, batch), -1.0, 1.0)[:, None, None]
        u = (cos * across + sin * down) * (mirror * 2 / w[:, None, None])
        v = (cos * down - sin * across) * (2 / h[:, None, None])
        grid = torch.stack((u, v), dim=-1)
        picture = F.grid_sample(at_level(rgba, (SIDE / torch.sqrt(h * w)).log2()), grid, align_corners=False)
        alpha = torch.where(wanted[:, None], picture[:, 3:] / 255, 0.0)
        if fitted:
            around = (rgb.mean(dim=1, keepdim=True) * alpha).sum((1, 2, 3)) / alpha.sum((1, 2, 3)).clamp_min(1)
            light = light * (around / 110).clamp(0.35, 1.3)
        if shadow:
            strength = torch.where(wanted[:, 0, 0], draw.uniform(0.1, 0.6, batch), 0.0)[:, None, None]
            long = (w * draw.uniform(0.35, 0.6, batch)).clamp_min(2)[:, None, None]
            flat = (w * draw.uniform(0.06, 0.15, batch)).clamp_min(1)[:, None, None]
            away = ((across / long) ** 2 + ((self._rows - row[:, None, None]) / flat) ** 2).sqrt()
            rgb = rgb * (1 - strength * ((1 - away) * 4).sigmoid())[:, None]
        colour = torch.where(wanted[:, None], picture[:, :3] * light[:, None, None, None], 0.0)
        rgb = (rgb * (1 - alpha) + colour).clamp(0, 255)
        if ids.shape[-1] > 1:
            at = F.grid_sample(ids[:, None].float(), grid, mode="nearest", align_corners=False, padding_mode="border")[:, 0]
            ids = at.round().to(torch.uint8)
        inside = (alpha[:, 0] > 0.5) & (ids != IGNORED)
        labels = torch.where(inside, ids, labels)
        return rgb, labels.masked_fill((alpha[:, 0] > 0.15) & ~inside, IGNORED)


def at_level(images: Tensor, level: Tensor) -> Tensor:
    """Images (B, C, H, W) made as smooth as they are after halving their size round(level) (B,) times, at most three times."""
    level = level.round().clamp(0, 3)[:, None, None, None]
    result = images
    for halvings in range(1, 4):
        small = F.avg_pool2d(images, 2**halvings, ceil_mode=True)
        smooth = F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
        result = torch.where(level == halvings, smooth, result)
    return result


def quiet_worker(_: int) -> None:
    """Loading processes use one thread each."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
