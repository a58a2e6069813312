"""From mask cells to pixels: between the four nearest cells, by distance as in bilinear interpolation and, where a model wants it,
by colour, too.

A cell of a mask covers 4 x 4 pixels, and what bilinear interpolation makes of it is as wide as a pole. Joint bilateral upsampling
(Kopf et al., SIGGRAPH 2007) lets a pixel listen to those of its four cells that have its colour: cell c has the weight

    w_c ~ b_c / (t^2 + |I - m_c|^2),  summing to 1,

with b_c its bilinear weight, I the pixel's RGB, m_c the mean RGB of the cell's pixels, all in grey levels, and t the tolerance:
colours that differ by less count as much the same. An infinite t is bilinear interpolation; a configuration says 0 for that.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE = 4
"""Pixels per cell of a mask, across and down."""


class Guide(NamedTuple):
    """What masks are upsampled along.

    Attributes:
        image: (3, H, W) RGB in grey levels, uint8 or float, at least as large as the maps that are wanted.
        tolerance: t, grey levels, > 0.
    """

    image: Tensor
    tolerance: float


def cell_colours(images: Tensor, cells: tuple[int, int]) -> Tensor:
    """Mean RGB of every cell: (B, 3, H, W) in grey levels, uint8 or float, to (B, 3, rows, columns) float32.

    Args:
        cells: (rows, columns) of a mask that covers the image and may go beyond it, right and below: what is there has the colours
            of the nearest pixels.
    """
    height, width = images.shape[-2:]
    values = images.float()
    below, right = STRIDE * cells[0] - height, STRIDE * cells[1] - width
    return F.avg_pool2d(F.pad(values, (0, right, 0, below), mode="replicate") if below or right else values, STRIDE)


def nearest_cells(points: Tensor, width: int, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around pixels.

    Args:
        points: (B, P) int64, flat indices of pixels of an image so many pixels wide.
        cells: (rows, columns) of a mask that covers it, with the image at the top left.

    Returns:
        (B, 4, P) int64 flat indices of cells, upper ones first, and (B, 4, P) float32, their bilinear weights.
    """

    def along(position: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        centre = ((position.float() + 0.5) / STRIDE - 0.5).clamp(min=0)
        low = centre.long().clamp(max=count - 1)
        return low, (low + 1).clamp(max=count - 1), centre - low

    above, below, down = along(points // width, cells[0])
    left, right, across = along(points % width, cells[1])
    index = torch.stack([row * cells[1] + column for row in (above, below) for column in (left, right)], dim=1)
    weights = torch.stack([y * x for y in (1 - down, down) for x in (1 - across, across)], dim=1)
    return index, weights


def weights_by_colour(images: Tensor, colours: Tensor, points: Tensor, index: Tensor, weights: Tensor, tolerance: float) -> Tensor:
    """The bilinear weights (B, 4, P) of `nearest_cells` made those of joint bilateral upsampling.

    Args:
        images: (B, 3, H, W) RGB in grey levels. colours: (B, 3, rows, columns) of the cells. points: (B, P), flat in the images.
        tolerance: t, grey levels, > 0.
    """
    of_pixels = images.flatten(2).gather(2, points[:, None].expand(-1, 3, -1)).float()
    batch, _, count = index.shape
    near = colours.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, 3, -1)).view(batch, 3, 4, count)
    apart = (near - of_pixels[:, :, None]).square().sum(dim=1)
    weights = weights / (apart + tolerance**2)
    return weights / weights.sum(dim=1, keepdim=True)


def blend_cells(maps: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """(B, N, h, w) maps at pixels: (B, N, P) float32, each the sum of its four cells times their weights."""
    flat = maps.float().flatten(2)
    # Cell by cell: all four at once would be four times the memory.
    parts = (flat.gather(2, index[:, k, None].expand(-1, flat.shape[1], -1)) * weights[:, k, None] for k in range(4))
    return functools.reduce(torch.add, parts)
