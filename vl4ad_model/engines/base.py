"""What every engine does: uint8 RGB images in, mask proposals out. The vocabulary never reaches it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from vl4ad_model.network.proposals import MaskProposals


class Engine(ABC):
    """The network, ready to run on one device.

    Attributes:
        name: torch, onnx, openvino or tensorrt.
        device: cpu or cuda[:N]; the proposals stay there.
        precision: fp32 or fp16.
        network_size: (height, width) that every image must have; None = any size.
        reason: why this engine was chosen, one line for logs and diagnostics.
    """

    name: str
    device: str
    precision: str
    network_size: tuple[int, int] | None
    reason: str = ""

    @abstractmethod
    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None) -> MaskProposals:
        """Propose masks.

        Args:
            images: (B, H, W, 3) uint8 RGB, C-contiguous; H x W is `network_size` where the engine has one.
            image_size: (height, width) of the part, from the top left, that is image and not padding.
        """

    def close(self) -> None:  # noqa: B027
        """Give memory back. The engine is not used afterwards."""
