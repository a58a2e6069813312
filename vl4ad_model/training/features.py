"""The frozen backbone while training: as it is, or compiled by OpenVINO, which on a CPU takes a fraction of the time."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from vl4ad_model.network.fcclip import FCCLIP

Pyramid = tuple[Tensor, Tensor, Tensor, Tensor]
Labels = TypeVar("Labels")
Hazards = TypeVar("Hazards")


def frozen_pyramid(
    network: FCCLIP, size: tuple[int, int], batch: int, *, compiled: bool, threads: int = 1, mixed: torch.dtype | None = None
) -> Callable[[Tensor], Pyramid]:
    """A function from float or uint8 RGB images (B, 3, H, W) in 0..255 to CLIP's pyramid, without gradients.

    Args:
        size: (height, width), multiples of 32. batch: of every call, where it is compiled.
        compiled: use OpenVINO (float32) where it is installed and the network is on the CPU.
        threads: of the compiled backbone.
        mixed: half precision for a network on a GPU; None = float32.
    """

    def eager(images: Tensor) -> Pyramid:
        with torch.no_grad(), torch.autocast("cuda", dtype=mixed, enabled=mixed is not None and images.is_cuda):
            return network.clip(network.normalize(images)).pyramid

    if not compiled or network.pixel_mean.device.type != "cpu" or importlib.util.find_spec("openvino") is None:
        return eager
    import openvino

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Pyramid:
            return self.network.clip(self.network.normalize(images)).pyramid

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the size is fixed here
        model = openvino.convert_model(Backbone().eval(), example_input=torch.zeros(batch, 3, *size), input=[batch, 3, *size])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Pyramid:
        if tuple(images.shape) != (batch, 3, *size):
            return eager(images)
        request.infer([images.float().numpy()])
        maps = (torch.from_numpy(request.get_output_tensor(i).data).clone(memory_format=torch.channels_last) for i in range(4))
        return tuple(maps)  # type: ignore[return-value]

    return run


def with_pyramids(
    batches: Iterable[tuple[Tensor, Labels, Hazards]], pyramid: Callable[[Tensor], Pyramid], device: torch.device
) -> Generator[tuple[Pyramid, Tensor, Labels, Hazards], None, None]:
    """Each batch with the maps of its images before them, in order.

    On a CPU the maps of the next batch are made in a thread while the caller learns from the present one.
    """
    if device.type == "cuda":
        for images, labels, hazards in batches:
            images = images.to(device, non_blocking=True)
            yield pyramid(images), images, labels, hazards
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for images, labels, hazards in batches:
            following = pool.submit(pyramid, images), images, labels, hazards
            if waiting is not None:
                yield waiting[0].result(), *waiting[1:]
            waiting = following
        if waiting is not None:
            yield waiting[0].result(), *waiting[1:]
