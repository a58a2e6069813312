"""Label and anomaly map on an NVIDIA GPU in one kernel: upsample, sigmoid, combine and choose, nothing in between in memory.

The tiles of torch operations in `scoring.py` compute the same and serve wherever this cannot. They write every upsampled mask to
memory several times (N x H x W, gigabytes at 1024 x 2048); this kernel reads the masks and writes the two finished maps.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from vl4ad_model.cache_folder import cache_root
from vl4ad_model.errors import one_line
from vl4ad_model.native_scoring import OFF
from vl4ad_model.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from vl4ad_model.network.upsampling import Guide

log = logging.getLogger(__name__)

_ROWS = (32, 64, 128)
"""Rows of words a kernel is compiled for: a change of words almost never needs another one, and never waits for it."""
_PAIRS, _QUERIES, _WARPS, _STAGES = 64, 16, 4, 1  # the fastest of 12 on an H200, with 250 queries and with 40
_GUIDED_PAIRS = 32
"""Along an image a program keeps more of each pixel: with 64 pairs it fills all 255 registers and spills (ptxas, compute
capabilities 8.0 to 12.0), with 32 it takes some 150. On an H200 32 are faster at 384x640 with 40 queries (0.25 ms for 0.28), and 64
at 1024x2048 with 250 (1.63 ms for 2.51)."""

_lock = threading.Lock()
_ready: dict[tuple[Any, ...], bool] = {}
"""Device, type of the masks, whether along an image, and rows -> whether that kernel works; absent = not compiled yet."""


@functools.lru_cache(maxsize=1)
def kernels() -> Any:
    """The module of kernels; None, with the reason in the log, where Triton is missing or `VL4AD_NATIVE` is 0."""
    if os.environ.get(OFF) == "0":
        return None
    if os.environ.get("VL4AD_CACHE"):
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache_root() / "triton"))
    try:
        from vl4ad_model import triton_kernels

        return triton_kernels
    except Exception as error:  # an installation that is broken is as good as none
        log.info("scoring and attention run in PyTorch: Triton cannot be imported (%s)", one_line(error))
        return None


def score(
    masks: Tensor,
    labels_rows: Tensor,
    anomaly_rows: Tensor | None,
    known_count: int,
    output_size: tuple[int, int],
    *,
    unclaimed: float | None = None,
    guide: Guide | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Label and anomaly map, or None where the kernel does not apply or is not compiled yet.

    Args:
        masks: (N, h, w) mask logits at a quarter of the padded size, float32 or float16.
        labels_rows: (C, N) class probabilities of the queries for the labels.
        anomaly_rows: (G, N) of the known classes for the anomaly score; None = the first `known_count` of `labels_rows`.
        output_size: (height, width), at most (4 h, 4 w).
        unclaimed: None = 1 - max; else `anomaly_rows` are (2, N), known and not known, for the normalized score with this much that
            no mask claims.
        guide: what masks are upsampled along (`network.upsampling`); None = bilinear.

    Returns:
        labels (height, width) uint8 and anomaly (height, width) float32, on the masks' device.
    """
    import torch

    if not masks.is_cuda or masks.dtype not in (torch.float32, torch.float16):
        return None
    used = labels_rows.shape[0] + (0 if anomaly_rows is None else anomaly_rows.shape[0])
    rows = next((rows for rows in _ROWS if rows >= used), None)
    if guide is not None and guide.image.dtype != torch.uint8:
        return None
    if rows is None or not usable(masks.device, masks.dtype, rows, guided=guide is not None):
        return None
    return launch(masks, labels_rows, anomaly_rows, known_count, output_size, rows, unclaimed=unclaimed, guide=guide)


def launch(
    masks: Tensor,
    labels_rows: Tensor,
    anomaly_rows: Tensor | None,
    known_count: int,
    output_size: tuple[int, int],
    rows: int,
    *,
    unclaimed: float | None = None,
    guide: Guide | None = None,
    pairs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`score` without asking whether it can be done.

    Args:
        rows: at least C + G, a power of two from 16 on.
        pairs: of pixels, that a program computes; a power of two from 16 on; None = what suits the kernel.
    """
    import torch

    pairs = pairs or (_PAIRS if guide is None else _GUIDED_PAIRS)
    count, h, w = masks.shape
    height, width = output_size
    classes = labels_rows.shape[0]
    matrix = torch.zeros((-(-count // _QUERIES) * _QUERIES, rows), device=masks.device)
    matrix[:count, :classes] = labels_rows.T
    first, last = 0, known_count
    if anomaly_rows is not None:
        first, last = classes, classes + anomaly_rows.shape[0]
        matrix[:count, first:last] = anomaly_rows.T
    weight = -1.0 if unclaimed is None else unclaimed
    image, colours, image_width, tolerance = masks, masks, 0, 0.0  # never read
    if guide is not None:
        from vl4ad_model.network.upsampling import cell_colours

        image, tolerance = guide.image.permute(1, 2, 0).contiguous(), float(guide.tolerance) ** 2
        colours, image_width = cell_colours(guide.image[None], (h, w))[0].contiguous(), int(image.shape[1])
    labels = torch.empty((height, width), dtype=torch.uint8, device=masks.device)
    anomaly = torch.empty((height, width), dtype=torch.float32, device=masks.device)
    grid = (height * -(-width // (2 * pairs)),)
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(masks.device) if masks.is_cuda else contextlib.nullcontext():
        kernels().score_maps[grid](
            masks.contiguous(), matrix, labels, anomaly, count, h, w, height, width, classes, first, last, weight,
            image, colours, image_width, tolerance,
            GUIDED=guide is not None, ROWS=rows, PAIRS=pairs, QUERIES=_QUERIES, num_warps=_WARPS, num_stages=_STAGES,
        )  # fmt: skip
    return labels, anomaly


def usable(device: Any, dtype: Any, rows: int, *, guided: bool = False) -> bool:
    """Whether the kernel can be launched now. The first question on a device waits for its compiler; later ones never do."""
    if kernels() is None:
        return False
    key = (device, dtype, guided, rows)
    if key in _ready:
        return _ready[key]
    with _lock:
        if not any(known[:3] == key[:3] for known in list(_ready)):  # others may be added meanwhile
            _compile(device, dtype, rows, guided)
            others = [other for other in _ROWS if other != rows]
            if _ready.get(key):
                work = functools.partial(_compile_all, device, dtype, others, guided)
                # Not a daemon: the end of the process would stop it inside the compiler, and that aborts.
                threading.Thread(target=work, name="scoring kernels").start()
    return _ready.get(key, False)


def _compile_all(device: Any, dtype: Any, sizes: list[int], guided: bool) -> None:
    for rows in sizes:
        if not threading.main_thread().is_alive():
            return
        try:
            _compile(device, dtype, rows, guided)
        except (RuntimeError, MemoryError) as error:
            log.warning("scoring of more than %d rows of words runs in PyTorch: %s", rows // 2, one_line(error))


def _compile(device: Any, dtype: Any, rows: int, guided: bool) -> None:
    """Compile by running it once on a small map."""
    import torch

    from vl4ad_model.network.upsampling import Guide

    try:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)), torch.inference_mode():
            masks = torch.zeros((_QUERIES, 16, 32), dtype=dtype, device=device)
            guide = Guide(torch.zeros((3, 64, 128), dtype=torch.uint8, device=device), 1.0) if guided else None
            launch(masks, torch.zeros((2, _QUERIES), device=device), None, 2, (64, 128), rows, guide=guide)
            torch.cuda.current_stream(device).synchronize()
        _ready[device, dtype, guided, rows] = True
    except Exception as error:  # Triton needs a C compiler and Python's headers, and fails in many ways
        if isinstance(error, (RuntimeError, MemoryError)) and is_out_of_memory(error):
            raise
        _ready[device, dtype, guided, rows] = False
        log.warning("scoring runs in PyTorch: the Triton kernel could not be compiled (%s)", one_line(error))
