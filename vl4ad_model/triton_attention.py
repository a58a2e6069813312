"""Multi-scale deformable attention on an NVIDIA GPU in one kernel, where images are answered and nothing is learned.

`grid_sample` writes every sample to memory before it is weighted, added up and read back, in half precision places and all; this
kernel reads each sample once and adds in float32. What it computes is `MultiScaleDeformableAttention.forward`'s sum.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vl4ad_model.errors import one_line
from vl4ad_model.out_of_memory import is_out_of_memory
from vl4ad_model.triton_scoring import kernels

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_MOST_LEVELS = 4
_TOKENS, _WARPS = 8, 1  # the fastest of 10 on an H200

_thread = threading.local()

_works: dict[tuple[Any, ...], bool] = {}
"""Device, type, heads, levels, points and depth -> whether that kernel works; absent = not tried yet."""


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """PyTorch's own operations in this thread, to compare with."""
    _thread.off = True
    try:
        yield
    finally:
        _thread.off = False


def deformable_sum(values: Tensor, offsets: Tensor, logits: Tensor, centres: Tensor, sizes: list[tuple[int, int]]) -> Tensor | None:
    """Softmax over all places of a head, and the weighted sum of the values there; None where the kernel does not apply.

    Args:
        values: (B, L, heads, depth), the levels one after another, float32, float16 or bfloat16.
        offsets: (B, L, heads, levels, points, 2) in cells, x before y.
        logits: (B, L, heads, levels * points).
        centres: (L, 2) float32 in [0, 1], x before y.
        sizes: (height, width) of each level.

    Returns:
        (B, L, heads * depth), of the values' type.
    """
    _, _, heads, depth = values.shape
    levels, points = len(sizes), offsets.shape[4]
    if not values.is_cuda or values.element_size() > 4 or levels > _MOST_LEVELS or depth < 16 or depth & (depth - 1):
        return None
    key = (values.device, values.dtype, heads, levels, points, depth)
    if not _works.get(key, True) or getattr(_thread, "off", False) or kernels() is None:
        return None
    if key in _works:
        return launch(values, offsets, logits, centres, sizes)
    try:
        result = launch(values, offsets, logits, centres, sizes)
        _works[key] = True
        return result
    except Exception as error:  # Triton needs a C compiler and Python's headers, and fails in many ways
        if isinstance(error, (RuntimeError, MemoryError)) and is_out_of_memory(error):
            raise
        _works[key] = False
        log.warning("deformable attention runs in PyTorch: the Triton kernel could not be compiled (%s)", one_line(error))
        return None


def launch(
    values: Tensor,
    offsets: Tensor,
    logits: Tensor,
    centres: Tensor,
    sizes: list[tuple[int, int]],
    *,
    tokens: int = _TOKENS,
) -> Tensor:
    """`deformable_sum` without asking whether it can be done."""
    import torch

    batch, length, heads, depth = values.shape
    output = torch.empty((batch, length, heads * depth), dtype=values.dtype, device=values.device)
    padded = [*sizes, *[(0, 0)] * (_MOST_LEVELS - len(sizes))]
    grid = (batch * heads * -(-length // tokens),)
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(values.device) if values.is_cuda else contextlib.nullcontext():
        kernels().deformable_sum[grid](
            values.contiguous(), offsets.contiguous(), logits.contiguous(), centres, output, length,
            *[side for size in padded for side in size],
            HEADS=heads, LEVELS=len(sizes), POINTS=offsets.shape[4], DEPTH=depth, TOKENS=tokens, num_warps=_WARPS,
        )  # fmt: skip
    return output
