"""Defines the two operator schemas that torchvision lacks next to a CPU-only torch.

torchvision's wheels from PyPI carry a compiled library built against the CUDA torch. Beside a CPU-only torch (and on many
Jetson images) that library does not load, and `import torchvision` dies with "operator torchvision::nms does not exist",
because its Python code registers fake kernels for `nms` and `qnms`. open_clip and timm import torchvision but call neither
operator, so declaring the schemas is enough. Call `define()` before the first import of torchvision, open_clip or timm.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch

_library = None


def define() -> None:
    """Declare torchvision::nms and torchvision::qnms where torchvision's own library does not load. Idempotent.

    Where it does load it must come first: C++ that declares an operator a second time ends the process.
    """
    global _library
    if _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    _load_compiled()
    if hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _load_compiled() -> None:
    """Load torchvision's compiled operators, as its own import will."""
    spec = importlib.util.find_spec("torchvision")  # finds it without importing it
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            with contextlib.suppress(OSError, RuntimeError):  # built for another torch
                torch.ops.load_library(str(path))
