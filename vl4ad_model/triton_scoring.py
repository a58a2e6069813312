"""Label and anomaly map on an NVIDIA GPU in one kernel: upsample, sigmoid, combine and choose, nothing in between in memory.

The tiles of torch operations in `scoring.py` compute the same and serve wherever this cannot. They write every upsampled mask to
memory several times (N x H x W, gigabytes at 1024 x 2048); this kernel reads the masks and writes the two finished maps.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from vl4ad_model.native_scoring import OFF

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_ROWS = (32, 64, 128)
"""Rows of words a kernel is compiled for: a change of words almost never needs another one, and never waits for it."""
_CELLS, _QUERIES, _WARPS, _STAGES = 64, 16, 4, 2

_lock = threading.Lock()
_ready: dict[tuple[Any, ...], bool] = {}
"""Device, type of the masks and rows -> whether that kernel works; absent = not compiled yet."""


@functools.lru_cache(maxsize=1)
def kernel() -> Any:
    """The kernel, not compiled yet; None, with the reason in the log, where Triton is missing."""
    if os.environ.get(OFF) == "0":
        return None
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        log.info("scoring runs in PyTorch: Triton cannot be imported (%s)", error)
        return None

    # Where the words end changes with every prompt: a kernel specialised on it would be compiled again.
    changing = ("count", "height", "width", "classes", "first_known", "last_known")

    @triton.jit(do_not_specialize=changing)
    def score_maps(
        masks, matrix, labels, anomaly, count, h, w, height, width, classes, first_known, last_known,
        ROWS: tl.constexpr, CELLS: tl.constexpr, QUERIES: tl.constexpr,
    ):  # fmt: skip
        """One row of output, 4 pixels for each of CELLS columns of the masks; a mask is four times as small as the map.

        masks (count, h, w); matrix (ROWS, queries) float32, zero where there is no query or no row.
        """
        across = tl.cdiv(width, 4 * CELLS)
        y = tl.program_id(0) // across
        start = (tl.program_id(0) % across) * CELLS
        # Bilinear, align_corners=False: the centre of row y lies at (y + 1/2) / 4 - 1/2.
        position = tl.maximum((y + 0.5) * 0.25 - 0.5, 0.0)
        above = position.to(tl.int32)
        below = tl.minimum(above + 1, h - 1)
        down = position - above
        middle = start + tl.arange(0, CELLS)
        inside = middle < w
        left = tl.maximum(middle - 1, 0)
        right = tl.minimum(middle + 1, w - 1)
        queries = tl.arange(0, QUERIES)
        rows = tl.arange(0, ROWS)
        padded = tl.cdiv(count, QUERIES) * QUERIES
        first = tl.zeros((CELLS, ROWS), tl.float32)
        second = tl.zeros((CELLS, ROWS), tl.float32)
        third = tl.zeros((CELLS, ROWS), tl.float32)
        fourth = tl.zeros((CELLS, ROWS), tl.float32)
        for query in range(0, count, QUERIES):
            which = query + queries
            there = inside[:, None] & (which < count)[None, :]
            upper = masks + (which.to(tl.int64) * h + above)[None, :] * w
            lower = masks + (which.to(tl.int64) * h + below)[None, :] * w
            a = tl.load(upper + left[:, None], mask=there, other=0.0).to(tl.float32)
            a += down * (tl.load(lower + left[:, None], mask=there, other=0.0).to(tl.float32) - a)
            b = tl.load(upper + middle[:, None], mask=there, other=0.0).to(tl.float32)
            b += down * (tl.load(lower + middle[:, None], mask=there, other=0.0).to(tl.float32) - b)
            c = tl.load(upper + right[:, None], mask=there, other=0.0).to(tl.float32)
            c += down * (tl.load(lower + right[:, None], mask=there, other=0.0).to(tl.float32) - c)
            of_classes = tl.load(matrix + rows[None, :] * padded + which[:, None])
            first = tl.dot(tl.sigmoid(a + 0.625 * (b - a)), of_classes, first, input_precision="tf32x3")
            second = tl.dot(tl.sigmoid(a + 0.875 * (b - a)), of_classes, second, input_precision="tf32x3")
            third = tl.dot(tl.sigmoid(b + 0.125 * (c - b)), of_classes, third, input_precision="tf32x3")
            fourth = tl.dot(tl.sigmoid(b + 0.375 * (c - b)), of_classes, fourth, input_precision="tf32x3")
        labelled = (rows < classes)[None, :]
        known = ((rows >= first_known) & (rows < last_known))[None, :]
        lowest = float("-inf")
        even = tl.interleave(
            tl.argmax(tl.where(labelled, first, lowest), axis=1), tl.argmax(tl.where(labelled, third, lowest), axis=1)
        )
        odd = tl.interleave(
            tl.argmax(tl.where(labelled, second, lowest), axis=1), tl.argmax(tl.where(labelled, fourth, lowest), axis=1)
        )
        best_even = tl.interleave(tl.max(tl.where(known, first, lowest), axis=1), tl.max(tl.where(known, third, lowest), axis=1))
        best_odd = tl.interleave(tl.max(tl.where(known, second, lowest), axis=1), tl.max(tl.where(known, fourth, lowest), axis=1))
        x = 4 * start + tl.arange(0, 4 * CELLS)
        place = y.to(tl.int64) * width + x
        tl.store(labels + place, tl.interleave(even, odd).to(tl.uint8), mask=x < width)
        tl.store(anomaly + place, 1.0 - tl.interleave(best_even, best_odd), mask=x < width)

    return score_maps


def score(
    masks: Tensor, labels_rows: Tensor, anomaly_rows: Tensor | None, known_count: int, output_size: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """Label and anomaly map, or None where the kernel does not apply or is not compiled yet.

    Args:
        masks: (N, h, w) mask logits at a quarter of the padded size, float32 or float16.
        labels_rows: (C, N) class probabilities of the queries for the labels.
        anomaly_rows: (G, N) of the known classes for the anomaly score; None = the first `known_count` of `labels_rows`.
        output_size: (height, width), at most (4 h, 4 w).

    Returns:
        labels (height, width) uint8 and anomaly (height, width) float32, on the masks' device.
    """
    import torch

    if not masks.is_cuda or masks.dtype not in (torch.float32, torch.float16):
        return None
    used = labels_rows.shape[0] + (0 if anomaly_rows is None else anomaly_rows.shape[0])
    rows = next((rows for rows in _ROWS if rows >= used), None)
    if rows is None or not usable(masks.device, masks.dtype, rows):
        return None
    return launch(masks, labels_rows, anomaly_rows, known_count, output_size, rows)


def launch(
    masks: Tensor,
    labels_rows: Tensor,
    anomaly_rows: Tensor | None,
    known_count: int,
    output_size: tuple[int, int],
    rows: int,
    *,
    cells: int = _CELLS,
    queries: int = _QUERIES,
    **how: int,
) -> tuple[Tensor, Tensor]:
    """`score` without asking whether it can be done.

    Args:
        rows: at least C + G, a power of two from 16 on.
        cells, queries: of one step of a program. how: Triton's `num_warps` and `num_stages`.
    """
    import torch

    count, h, w = masks.shape
    height, width = output_size
    classes = labels_rows.shape[0]
    matrix = torch.zeros((rows, -(-count // queries) * queries), device=masks.device)
    matrix[:classes, :count] = labels_rows
    first, last = 0, known_count
    if anomaly_rows is not None:
        first, last = classes, classes + anomaly_rows.shape[0]
        matrix[first:last, :count] = anomaly_rows
    labels = torch.empty((height, width), dtype=torch.uint8, device=masks.device)
    anomaly = torch.empty((height, width), dtype=torch.float32, device=masks.device)
    grid = (height * -(-width // (4 * cells)),)
    kernel()[grid](
        masks.contiguous(), matrix, labels, anomaly, count, h, w, height, width, classes, first, last,
        ROWS=rows, CELLS=cells, QUERIES=queries, **({"num_warps": _WARPS, "num_stages": _STAGES} | how),
    )  # fmt: skip
    return labels, anomaly


def usable(device: Any, dtype: Any, rows: int) -> bool:
    """Whether the kernel can be launched now. The first question on a device waits for its compiler; later ones never do."""
    if kernel() is None:
        return False
    key = (device, dtype, rows)
    if key in _ready:
        return _ready[key]
    with _lock:
        if not any(known[:2] == key[:2] for known in _ready):
            _compile(device, dtype, rows)
            others = [other for other in _ROWS if other != rows]
            if _ready[key]:
                work = functools.partial(_compile_all, device, dtype, others)
                threading.Thread(target=work, name="scoring kernels", daemon=True).start()
    return _ready.get(key, False)


def _compile_all(device: Any, dtype: Any, sizes: list[int]) -> None:
    for rows in sizes:
        _compile(device, dtype, rows)


def _compile(device: Any, dtype: Any, rows: int) -> None:
    """Compile by running it once on a small map."""
    import torch

    try:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)), torch.inference_mode():
            masks = torch.zeros((_QUERIES, 16, 32), dtype=dtype, device=device)
            launch(masks, torch.zeros((2, _QUERIES), device=device), None, 2, (64, 128), rows)
            torch.cuda.current_stream(device).synchronize()
        _ready[device, dtype, rows] = True
    except Exception as error:  # Triton needs a C compiler and Python's headers, and fails in many ways
        _ready[device, dtype, rows] = False
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("scoring runs in PyTorch: the Triton kernel could not be compiled (%s)", reason)
