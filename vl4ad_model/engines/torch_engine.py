"""The network as it is, in PyTorch, on the CPU or a CUDA device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

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
        pooled: bool = True,
    ) -> None:
        self.device, self.precision, self.network_size = device, precision, network_size
        self.pooled = pooled
        network.place_image_side(device, torch.float16 if precision == "fp16" else torch.float32)
        self._network = network.eval()

    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None) -> MaskProposals:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
            return self._network(batch, pooled=self.pooled, image_size=image_size)
