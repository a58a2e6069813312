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

    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None, *, pooled: bool = True) -> MaskProposals:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
            return self._network(batch, pooled=pooled, image_size=image_size)


def image_part(network: FCCLIP) -> FCCLIP:
    """A copy of the network without its text tower, which stays on the CPU in full precision with the original."""
    text = [child for name, child in network.clip.model.named_children() if name != "visual"]
    return copy.deepcopy(network, {id(child): nn.Identity() for child in text})
