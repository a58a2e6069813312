"""The least time an image could take: the network's arithmetic at the device's best matrix product, every mask byte read once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from vl4ad_model.network.fcclip import FCCLIP


class Floor(NamedTuple):
    """flops: of the network for one image; mask_bytes: of its mask logits; the device's measured rates; and the two least times."""

    flops: float
    mask_bytes: float
    flops_per_second: float
    bytes_per_second: float

    @property
    def network_ms(self) -> float:
        return 1e3 * self.flops / self.flops_per_second

    @property
    def scoring_ms(self) -> float:
        return 1e3 * self.mask_bytes / self.bytes_per_second


def measure_floor(network: FCCLIP, size: tuple[int, int], *, device: str, precision: str, pooled: bool) -> Floor:
    """Count the work and measure the device.

    Args:
        size: (height, width) of the image, multiples of 32.
        pooled: with the out-of-vocabulary branch.
    """
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    values = network.config.queries * (size[0] // 4) * (size[1] // 4)
    side, read = (8192, 1 << 30) if device.startswith("cuda") else (1024, 1 << 26)
    a = torch.randn(side, side, device=device, dtype=dtype)
    product = torch.empty_like(a)
    flat = torch.zeros(read // 4, device=device)
    return Floor(
        flops=count_flops(network, size, pooled=pooled),
        mask_bytes=float(values * dtype.itemsize),
        flops_per_second=2 * side**3 / _best_seconds(lambda: torch.mm(a, a, out=product), device),
        bytes_per_second=read / _best_seconds(lambda: flat.sum(), device),
    )


def count_flops(network: FCCLIP, size: tuple[int, int], *, pooled: bool) -> float:
    """Floating-point operations of matrix products and convolutions for one image (a multiply-add is two)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vl4ad_model.engines.torch_engine import image_part

    shapes_only = image_part(network).eval()
    shapes_only.place_image_side("meta")
    # With gradients on, deformable attention takes the way that a GPU takes.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        shapes_only(torch.empty((1, 3, *size), dtype=torch.uint8, device="meta"), pooled=pooled)
    return float(counter.get_total_flops())


def _best_seconds(action: Callable[[], object], device: str, repeat: int = 10) -> float:
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    best = float("inf")
    for _ in range(repeat):
        wait()
        began = time.perf_counter()
        action()
        wait()
        best = min(best, time.perf_counter() - began)
    return best
