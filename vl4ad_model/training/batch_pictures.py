"""`augmentation`'s textures, colours and camera faults for whole batches of tensors, on whatever device they are.

Each image of a batch draws its own strengths. Images are (B, 3, H, W) float32 in 0..255; H and W multiples of 16.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

OCTAVES = (4, 8, 16, 32, 64, 128)  # cells of noise along the height
# Annex K of the JPEG standard (ITU-T T.81), luminance and chrominance.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112,
    100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
)  # fmt: skip
_TO_GREY = (0.299, 0.587, 0.114)


def sent(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """The values on a device. A GPU gets them from pinned memory: from any other, copying waits for everything before it."""
    tensor = torch.as_tensor(values)
    pinned = device.type == "cuda" and tensor.numel() > 0
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)


class Draw:
    """Random numbers on a device, and what a host must know of beforehand: seeded, and never waiting for the device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.on_host = np.random.default_rng(seed)

    def some(self, batch: int, share: float) -> Tensor:
        """int64 indices of about a `share` of a batch."""
        return sent(np.flatnonzero(self.on_host.random(batch) < share), self.device)

    def one_of(self, rows: Tensor) -> Tensor:
        """(B,) int64: a random column of those that are true in each row of a bool (B, n); any where none is."""
        keys = torch.rand(rows.shape, generator=self.generator, device=self.device)
        return keys.masked_fill(~rows, -1).argmax(dim=1)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """float32 in [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, mean: float, deviation: float, *shape: int) -> Tensor:
        """float32."""
        return mean + deviation * torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """bool."""
        return torch.rand(shape, generator=self.generator, device=self.device) < probability

    def below(self, count: Tensor) -> Tensor:
        """int64 in [0, count) for each of the positive counts."""
        drawn = torch.rand(count.shape, generator=self.generator, device=self.device, dtype=torch.float64) * count
        return drawn.long().minimum(count.long() - 1)

    def channels(self, batch: int, share: float) -> Tensor:
        """(B, 3, 3): a permutation of the channels for a `share` of the batch, the identity for the rest."""
        order = torch.rand((batch, 3), generator=self.generator, device=self.device).argsort(dim=1)
        straight = torch.arange(3, device=self.device).expand_as(order)
        return F.one_hot(torch.where(self.chance(share, batch, 1), order, straight), 3).float()


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def retexture(rgb: Tensor, labels: Tensor, draw: Draw, *, share: float = 0.4) -> Tensor:
    """Give up to three segments of a `share` of the images another texture and tint.

    Args:
        labels: (B, H, W) uint8.
    """
    chosen = draw.some(len(rgb), share)
    if not len(chosen):
        return rgb
    images, ids = rgb[chosen], labels[chosen]
    batch, _, height, width = images.shape
    pixels = ids.flatten(1).long()
    for number in range(3):
        # The label of a random pixel would nearly always be road: segments are drawn, not pixels.
        segment = draw.one_of(torch.zeros(batch, 256, dtype=torch.bool, device=rgb.device).scatter_(1, pixels, True))
        inside = (ids == segment[:, None, None].to(ids.dtype))[:, None]
        if number:
            inside = inside & _wide(draw.chance(1 - number / 3, batch))
        field = torch.zeros(batch, 1, height, width, device=rgb.device)
        weights = draw.chance(0.35, batch, len(OCTAVES)).float()
        for octave, cells in enumerate(OCTAVES):
            noise = draw.normal(0, 1, batch, 1, cells, max(2, cells * width // height))
            field += _wide(weights[:, octave]) * F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
        factor = (field * _wide(draw.uniform(0.04, 0.22, batch))).exp()
        factor = factor * draw.normal(0, 0.12, batch, 3, 1, 1).exp() * draw.normal(0, 0.15, batch, 1, 1, 1).exp()
        images = torch.where(inside, (images * factor).clamp(0, 255), images)
    return rgb.index_copy(0, chosen, images)


def shake_colours(rgb: Tensor, draw: Draw) -> Tensor:
    """Brightness, contrast, gamma, saturation, white balance, hue; now and then no colour at all."""
    batch = len(rgb)
    x = (rgb / 255).clamp(0, 1) ** _wide(draw.normal(0, 0.25, batch).exp())
    x = (x - 0.5) * _wide(draw.uniform(0.6, 1.4, batch)) + 0.5 + _wide(draw.normal(0, 0.07, batch))
    saturation = torch.where(draw.chance(0.06, batch), 0.0, draw.uniform(0.3, 1.5, batch))[:, None, None]
    eye, grey = torch.eye(3, device=rgb.device), sent(torch.tensor([_TO_GREY] * 3), rgb.device)
    matrix = draw.normal(0, 0.07, batch, 3, 1).exp() * (saturation * eye + (1 - saturation) * grey)
    matrix = draw.channels(batch, 0.15) @ matrix
    return (torch.einsum("bij,bjhw->bihw", matrix, x)).clamp(0, 1) * 255


def camera_faults(rgb: Tensor, draw: Draw) -> Tensor:
    """Blur or sharpening, low resolution, noise, JPEG."""
    batch, _, height, width = rgb.shape
    blurs = draw.chance(0.25, batch)
    sharpens = draw.chance(0.3, batch) & ~blurs
    soft = blurred(rgb, torch.where(blurs, draw.uniform(0.4, 1.6, batch), 1.2))
    x = torch.where(_wide(blurs), soft, torch.where(_wide(sharpens), 1.7 * rgb - 0.7 * soft, rgb)).clamp(0, 255)
    for image in np.flatnonzero(draw.on_host.random(batch) < 0.15):
        factor = draw.on_host.uniform(0.5, 0.9)
        small = F.interpolate(x[image : image + 1], scale_factor=factor, mode="bilinear", antialias=True)
        x[image : image + 1] = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    noise = _wide(torch.where(draw.chance(0.4, batch), draw.uniform(1, 12, batch), 0.0))
    x = (x + draw.normal(0, 1, *x.shape) * noise).clamp(0, 255)
    stored = draw.some(batch, 0.3)
    if len(stored):
        x[stored] = jpeg(x[stored], draw.uniform(25, 90, len(stored)))
    return x


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image (B, C, H, W) by its own sigma (B,), in pixels, up to 2."""
    batch, channels, height, width = images.shape
    radius = 5
    away = torch.arange(-radius, radius + 1, device=images.device)
    kernel = (-0.5 * (away[None] / sigma[:, None]) ** 2).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, 0)
    x = F.pad(images, (radius,) * 4, mode="replicate").reshape(1, batch * channels, height + 2 * radius, width + 2 * radius)
    x = F.conv2d(x, kernel[:, None, :, None], groups=batch * channels)
    return F.conv2d(x, kernel[:, None, None, :], groups=batch * channels).view(batch, channels, height, width)


def jpeg(rgb: Tensor, quality: Tensor) -> Tensor:
    """What an image looks like after JPEG with chroma at half the resolution.

    Args:
        quality: (B,) 1..100, as libjpeg counts it.

    Returns:
        (B, 3, H, W) float32 in 0..255.
    """
    device = rgb.device
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    tables = sent(torch.tensor([_LUMINANCE, _CHROMINANCE, _CHROMINANCE], dtype=torch.float32), device).view(3, 8, 8)
    tables = (scale[:, None, None, None] * tables).round().clamp(1, 255)
    red, green, blue = rgb.unbind(1)
    luma = _TO_GREY[0] * red + _TO_GREY[1] * green + _TO_GREY[2] * blue
    chroma = F.avg_pool2d(torch.stack(((blue - luma) / 1.772, (red - luma) / 1.402), dim=1), 2)
    luma = _quantised(luma[:, None] - 128, tables[:, :1])[:, 0] + 128
    chroma = _quantised(chroma, tables[:, 1:])
    cb, cr = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).unbind(1)
    red, blue = luma + 1.402 * cr, luma + 1.772 * cb
    green = (luma - _TO_GREY[0] * red - _TO_GREY[2] * blue) / _TO_GREY[1]
    return torch.stack((red, green, blue), dim=1).round().clamp(0, 255)


def _quantised(planes: Tensor, tables: Tensor) -> Tensor:
    """(B, C, H, W) planes after an 8 x 8 DCT is rounded to multiples of tables (B, C, 8, 8)."""
    batch, channels, height, width = planes.shape
    n = torch.arange(8, device=planes.device)
    dct = ((2 * n[None] + 1) * n[:, None] * (math.pi / 16)).cos() * 0.5
    dct[0] *= math.sqrt(0.5)
    blocks = planes.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = tables[:, :, None, None]
    blocks = dct.T @ ((dct @ blocks @ dct.T / steps).round() * steps) @ dct
    return blocks.transpose(3, 4).reshape(planes.shape)
