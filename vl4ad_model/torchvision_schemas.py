"""Defines the two operator schemas that torchvision lacks next to a CPU-only torch.

torchvision's wheels from PyPI carry a compiled library built against the CUDA torch. Beside a CPU-only torch (and on many
Jetson images) that library does not load, and `import torchvision` dies with "operator torchvision::nms does not exist",
because its Python code registers fake kernels for `nms` and `qnms`. open_clip and timm import torchvision but call neither
operator, so declaring the schemas is enough. Call `define()` before the first import of torchvision, open_clip or timm.
"""

import torch

_library = None


def define() -> None:
    """Declare torchvision::nms and torchvision::qnms unless torchvision's own library already did. Idempotent."""
    global _library
    if _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
