"""The same network compiled: one small interface, several libraries behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl4ad_model.errors import EngineError

if TYPE_CHECKING:
    from vl4ad_model.engines.base import Engine
    from vl4ad_model.network.fcclip import FCCLIP

ENGINES = ("auto", "torch")
PRECISIONS = ("fp32", "fp16")


def create(
    network: FCCLIP,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    network_size: tuple[int, int] | None = None,
) -> Engine:
    """Make an engine.

    Args:
        engine: one of `ENGINES`.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or fp16 (CUDA only).
        network_size: (height, width) of every image; None = any.

    Raises:
        EngineError: the engine, device or precision is unknown or not here.
    """
    import torch

    from vl4ad_model.engines.torch_engine import TorchEngine

    if engine not in ENGINES:
        raise EngineError(f"engine '{engine}' is unknown: use {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise EngineError(f"precision '{precision}' is unknown: use {', '.join(PRECISIONS)}")
    if network_size is not None and (min(network_size) < 32 or any(side % 32 for side in network_size)):
        raise EngineError(f"network size {network_size[0]}x{network_size[1]} must be multiples of 32")
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise EngineError(f"device '{device}' is unknown: use auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not has_cuda:
        raise EngineError("device cuda was asked for but torch sees no GPU: check nvidia-smi and that torch is a CUDA build")
    if precision == "fp16" and device == "cpu":
        raise EngineError("precision fp16 needs a GPU: on the CPU use fp32")
    running = TorchEngine(network, device=device, precision=precision, network_size=network_size)
    running.reason = f"PyTorch {torch.__version__.split('+')[0]} on {device}, the only engine so far"
    return running
