"""`score_maps.c`, compiled by this machine's C compiler when first needed, or nothing where there is none.

Several times as fast as the tiles of torch operations in `scoring.py`, which compute the same and serve wherever this cannot.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl4ad_model.errors import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from vl4ad_model.network.upsampling import Guide

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("score_maps.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_LIBRARIES = ("-lm",)
_BAND_ROWS = 16
"""Output rows that a thread takes at a time: multiples of 4 share what is found out about their masks."""
OFF = "VL4AD_NATIVE"
"""Set to 0 in the environment, it keeps this module from compiling or running anything."""


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library; None, with the reason in the log, where it cannot be had."""
    if os.environ.get(OFF) == "0":
        return None
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.info("scoring runs in PyTorch: no C compiler here (apt install gcc makes it about five times as fast)")
        return None
    from vl4ad_model.engines.cache import EngineCache, EngineKey, code_digest

    what = "could not compile it"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30).stdout.splitlines()[0]
        key = EngineKey(
            weights=hashlib.sha256(_SOURCE.read_bytes()).hexdigest(),
            code=code_digest(),
            engine="scoring",
            library=f"{version} {' '.join(_FLAGS)}",
            target=_processor(),
            height=0,
            width=0,
            batch=0,
            precision="fp32",
            pooled=False,
        )
        build = functools.partial(EngineCache().get_or_build, key, "native", ".so", lambda: _compile(compiler))
        content, origin = build()
        what = "made what cannot be loaded"
        try:
            return _loaded(content)
        except OSError as error:
            if not origin.startswith("from cache"):
                raise
            log.warning("the compiled scoring is built again: it cannot be loaded (%s)", one_line(error))
        return _loaded(build(rebuild=True)[0])
    except Exception as error:  # whatever it is: scoring goes on, and must not try again with every image
        log.warning("scoring runs in PyTorch: %s %s (%s)", compiler, what, one_line(error))
        return None


def _loaded(content: bytes) -> ctypes.CDLL:
    """Loaded from a file of its own: what was checked is what runs, and the cache may be cleaned meanwhile."""
    loaded = _from_memory(content)
    if loaded is None:
        with tempfile.TemporaryDirectory(prefix="vl4ad-") as folder:
            path = Path(folder) / "score_maps.so"
            path.write_bytes(content)
            loaded = ctypes.CDLL(str(path))
    loaded.vl4ad_score.restype = ctypes.c_int
    loaded.vl4ad_block.restype = ctypes.c_int
    pointer, number = ctypes.c_void_p, ctypes.c_int
    sizes, outputs = [number] * 6, [pointer] * 2
    guide: list[Any] = [pointer, number, number, ctypes.c_float]
    arguments = [pointer, *[number] * 3, pointer, *sizes, ctypes.c_float, *guide, *outputs, number, pointer]
    loaded.vl4ad_score.argtypes = arguments
    return loaded


def _from_memory(content: bytes) -> ctypes.CDLL | None:
    """From a file that is in no folder: /tmp may be mounted noexec. None where the system has or runs no such files."""
    try:
        handle = os.memfd_create("score_maps.so")
    except (AttributeError, OSError):
        return None
    try:
        with open(handle, "wb", closefd=False) as stream:
            stream.write(content)
        # Never closed: whoever got its number would be taken for it, since the loader knows a library by its name.
        return ctypes.CDLL(f"/proc/self/fd/{handle}")
    except OSError:
        os.close(handle)
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
    """Label and anomaly map, or None where this library does not apply.

    Args:
        masks: (N, h, w) mask logits at a quarter of the padded size.
        labels_rows: (C, N) class probabilities of the queries for the labels, C <= 255.
        anomaly_rows: (G, N) of the known classes for the anomaly score; None = the first `known_count` of `labels_rows`.
        output_size: (height, width), at most (4 h, 4 w).
        unclaimed: None = 1 - max; else `anomaly_rows` are (2, N), known and not known, for the normalized score with this much that
            no mask claims.
        guide: what masks are upsampled along (`network.upsampling`); None = bilinear.

    Returns:
        labels (height, width) uint8 and anomaly (height, width) float32.
    """
    import torch

    if masks.device.type != "cpu" or masks.dtype != torch.float32:
        return None
    if guide is not None and (guide.image.device.type != "cpu" or guide.image.dtype != torch.uint8):
        return None
    loaded = library()
    if loaded is None:
        return None
    count, h, w = masks.shape
    height, width = output_size
    classes = labels_rows.shape[0]
    combined = labels_rows if anomaly_rows is None else torch.cat((labels_rows, anomaly_rows))
    block = loaded.vl4ad_block()
    rows = -(-combined.shape[0] // block) * block
    matrix = torch.zeros((count, rows), dtype=torch.float32)
    matrix[:, : combined.shape[0]] = combined.T
    first, last = (0, known_count) if anomaly_rows is None else (classes, combined.shape[0])
    masks = masks.contiguous()
    weight = -1.0 if unclaimed is None else unclaimed
    labels = torch.empty((height, width), dtype=torch.uint8)
    anomaly = torch.empty((height, width), dtype=torch.float32)

    image, image_size, tolerance = None, (0, 0), 0.0
    if guide is not None:
        image, tolerance = guide.image.permute(1, 2, 0).contiguous(), guide.tolerance  # cameras' own order: no copy
        image_size = (int(image.shape[0]), int(image.shape[1]))
    pixels = None if image is None else image.data_ptr()
    next_band = ctypes.c_int(0)

    def work() -> int:
        return loaded.vl4ad_score(
            masks.data_ptr(), count, h, w, matrix.data_ptr(), rows, classes, first, last, height, width, weight,
            pixels, *image_size, tolerance, labels.data_ptr(), anomaly.data_ptr(), _BAND_ROWS, ctypes.byref(next_band),
        )  # fmt: skip

    helpers = max(0, min(torch.get_num_threads() - 1, height // _BAND_ROWS))
    helping = [_pool(helpers).submit(work) for _ in range(helpers)]
    failed = work()
    # Who has not begun by now is not waited for: an engine's threads may still be spinning on the other cores.
    failed |= any(future.result() for future in helping if not future.cancel())
    return None if failed else (labels, anomaly)


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="scoring")


def _compile(compiler: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vl4ad-") as folder:
        target = Path(folder) / "score_maps.so"
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", str(target), str(_SOURCE), *_LIBRARIES], capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise OSError(next(iter(done.stderr.splitlines()), "no message"))
        return target.read_bytes()


def _processor() -> str:
    """Model and instruction sets of this CPU: a library compiled for it may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    text = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
