"""The network as it is, in PyTorch, on the CPU or a CUDA device."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vl4ad_model.engines.base import Engine

if TYPE_CHECKING:
    from vl4ad_model.network.fcclip import FCCLIP
    from vl4ad_model.network.proposals import MaskProposals


class TorchEngine(Engine):
    """Eager PyTorch; half precision on CUDA only."""

    name = "torch"

    def __init__(
        self,
        network: FCCLIP,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        network_size: tuple[int, int] | None = None,
    ) -> None:
        self.device, self.precision, self.network_size = device, precision, network_size
        if device == "cpu" and precision == "fp32":
            self._network = network.eval()
        else:
            self._network = image_part(network).eval()
            self._network.place_image_side(device, torch.float16 if precision == "fp16" else torch.float32)
        if device != "cpu":
            self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None, *, pooled: bool = True) -> MaskProposals:
        with torch.inference_mode():
            batch = torch.from_numpy(images)
            if self.device != "cpu":
                batch = batch.pin_memory().to(self.device, non_blocking=True)
            batch = batch.permute(0, 3, 1, 2)  # NHWC in memory already: channels last at no cost
            return self._network(batch, pooled=pooled, image_size=image_size)

    def close(self) -> None:
        self._network = None  # type: ignore[assignment]
        if self.device != "cpu":
            torch.cuda.empty_cache()


def image_part(network: FCCLIP) -> FCCLIP:
    """A copy of the network without its text tower, which stays on the CPU in full precision with the original."""
    text = [child for name, child in network.clip.model.named_children() if name != "visual"]
    return copy.deepcopy(network, {id(child): nn.Identity() for child in text})
