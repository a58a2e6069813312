"""Sine position embeddings and reference points: functions of the feature map's size alone."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

_TEMPERATURE = 10000.0
_EPSILON = 1e-6


_thread = threading.local()


@contextlib.contextmanager
def used_constants() -> Iterator[list[Tensor]]:
    """Collects the constants that this thread asks for: a CUDA graph reads them by address, so who records one must hold them."""
    _thread.kept = []
    try:
        yield _thread.kept
    finally:
        _thread.kept = None


def _constant(function):
    """Keep the last few results: the same for every image of a size, and plain constants in an exported graph.

    They are made outside inference mode, so that training may use what inference made.
    """

    @functools.lru_cache(maxsize=8)
    def make(*args, **kwargs):
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = make(*(tuple(value) if isinstance(value, list) else value for value in args), **kwargs)
        if (kept := getattr(_thread, "kept", None)) is not None:
            kept.append(result)
        return result

    return call


@_constant
def sine_position_embedding(height: int, width: int, channels: int, *, device: torch.device | None = None) -> Tensor:
    """Normalised 2-D sine embedding of Mask2Former (after "Attention is all you need").

    Returns:
        (channels, height, width) float32: channels / 2 for y, then channels / 2 for x, sine and cosine interleaved.
    """
    half = channels // 2
    scale = 2 * math.pi
    y = torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + _EPSILON) * scale
    x = torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + _EPSILON) * scale
    index = torch.arange(half, dtype=torch.float32, device=device)
    frequency = _TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def waves(position: Tensor) -> Tensor:
        angle = position[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)  # (length, half)

    rows = waves(y)[:, None, :].expand(height, width, half)
    columns = waves(x)[None, :, :].expand(height, width, half)
    return torch.cat((rows, columns), dim=2).permute(2, 0, 1).contiguous()


@_constant
def reference_points(sizes: list[tuple[int, int]], *, device: torch.device | None = None) -> Tensor:
    """Centres of all cells of all levels, in [0, 1].

    Args:
        sizes: (height, width) of each level.

    Returns:
        (sum of height * width, 2) float32, x before y.
    """
    points = []
    for height, width in sizes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))
    return torch.cat(points)


@_constant
def cell_counts(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """(width, height) of a map as (2,) float32, x before y. Made once: a copy from the host cannot be part of a CUDA graph."""
    return torch.tensor((width, height), dtype=torch.float32, device=device)
