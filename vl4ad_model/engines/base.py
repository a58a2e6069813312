"""What every engine does: uint8 RGB images in, mask proposals out. The vocabulary never reaches it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vl4ad_model.network.proposals import MaskProposals


class BuildProgress(NamedTuple):
    """How far a build is.

    engine: its name; stage: what happens now, in words; fraction: 0..1 of the whole; elapsed_s: seconds since the start;
    eta_s: seconds that are left, None while nobody can tell.
    """

    engine: str
    stage: str
    fraction: float
    elapsed_s: float
    eta_s: float | None

    def __str__(self) -> str:
        left = "" if self.eta_s is None else f", about {self.eta_s:.0f} s left"
        return f"building {self.engine}: {self.stage}, {self.fraction:.0%} after {self.elapsed_s:.0f} s{left}"


ProgressCallback = Callable[[BuildProgress], None]


def pinned(images: np.ndarray) -> Tensor:
    """A copy of images (uint8, any shape) in page-locked memory, from where a GPU takes them without anybody waiting.

    NumPy copies them: torch would wake all of its threads for that, which then spin.
    """
    import numpy as np
    import torch

    copied = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True)
    np.copyto(copied.numpy(), images)
    return copied


class Engine(ABC):
    """The network, ready to run on one device.

    Attributes:
        name: torch, onnx, openvino or tensorrt.
        device: cpu or cuda[:N]; the proposals stay there.
        precision: fp32, fp16 or bf16.
        network_size: (height, width) that every image must have; None = any size.
        reason: why this engine was chosen, one line for logs and diagnostics.
        progress: how far a build in the background is; None where none runs.
        recording: whether CUDA graphs may be recorded now; not while another library builds or loads on the same device.
    """

    name: str
    device: str
    precision: str
    network_size: tuple[int, int] | None
    reason: str = ""
    progress: BuildProgress | None = None
    recording: bool = True

    @abstractmethod
    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None, *, pooled: bool = True) -> MaskProposals:
        """Propose masks.

        Args:
            images: (B, H, W, 3) uint8 RGB, C-contiguous; H x W is `network_size` where the engine has one.
            image_size: (height, width) of the part, from the top left, that is image and not padding.
            pooled: also give the out-of-vocabulary branch; leave it out where the classifier does not need it.
        """

    def close(self) -> None:  # noqa: B027
        """Give memory back. The engine is not used afterwards."""
