"""The network as it is, in PyTorch, on the CPU or a CUDA device."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vl4ad_model.engines.base import Engine, pinned
from vl4ad_model.network.position import used_constants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from vl4ad_model.network.fcclip import FCCLIP
    from vl4ad_model.network.proposals import MaskProposals

log = logging.getLogger(__name__)

_MOST_GRAPHS = 4
_WARM_UPS = 3


class TorchEngine(Engine):
    """PyTorch; on CUDA channels-last, in half precision where asked for, and as CUDA graphs where images have one size.

    A CUDA graph is all kernels of the network recorded once and started as one: launched one by one they take longer to start than
    a small network takes to run. Where recording fails the network runs eagerly.

    Args:
        network_size: (height, width) of every image; None = any.
        graphs: record CUDA graphs; off for what eager PyTorch takes.
    """

    name = "torch"

    def __init__(
        self,
        network: FCCLIP,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        network_size: tuple[int, int] | None = None,
        graphs: bool = True,
    ) -> None:
        self.device, self.precision, self.network_size = device, precision, network_size
        if device == "cpu" and precision == "fp32":
            self._network = network.eval()
        else:
            self._network = image_part(network).eval()
            self._network.place_image_side(device, torch.float16 if precision == "fp16" else torch.float32)
        if device != "cpu":
            self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._record = graphs and device.startswith("cuda") and network_size is not None
        self._lock = threading.Lock()  # a graph must not be started while its weights are given back
        self._graphs: dict[tuple[tuple[int, ...], bool], _Recorded | None] = {}  # None = could not be recorded

    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None, *, pooled: bool = True) -> MaskProposals:
        with self._lock, torch.inference_mode():
            if self.device == "cpu":
                return self._run(torch.from_numpy(images), image_size, pooled)
            with torch.cuda.device(self.device):
                batch = pinned(images)
                recorded = self._recorded(batch, pooled)
                if recorded is not None:
                    return replace(recorded.run(batch), image_size=image_size or (int(batch.shape[1]), int(batch.shape[2])))
                return self._run(batch.to(self.device, non_blocking=True), image_size, pooled)

    def _run(self, batch: Tensor, image_size: tuple[int, int] | None, pooled: bool) -> MaskProposals:
        # NHWC in memory already: channels last at no cost.
        with without_tf32(self.device):
            return self._network(batch.permute(0, 3, 1, 2), pooled=pooled, image_size=image_size)

    def _recorded(self, batch: Tensor, pooled: bool) -> _Recorded | None:
        key = (tuple(batch.shape), pooled)
        if self._record and key not in self._graphs and self.recording and len(self._graphs) < _MOST_GRAPHS:
            callers, failure = torch.cuda.current_stream(), ""
            try:
                self._graphs[key] = _Recorded(self, batch, pooled)
            except RuntimeError as error:  # also when memory runs out: eager needs less
                torch.cuda.set_stream(callers)  # a recording that fails at its end leaves its own stream in place
                self._graphs[key], failure = None, str(error).partition("\n")[0]
            if failure:  # out here the exception no longer holds the tensors of the failed run
                log.warning("%d image(s) of %dx%d run without a CUDA graph: %s", *batch.shape[:3], failure)
                torch.cuda.empty_cache()
        return self._graphs.get(key)

    def close(self) -> None:
        with self._lock:
            self._network = None  # type: ignore[assignment]
            self._graphs.clear()
        if self.device != "cpu":
            torch.cuda.empty_cache()


class _Recorded:
    """The network recorded for one batch size: fixed places in device memory for the images and for what comes out."""

    def __init__(self, engine: TorchEngine, batch: Tensor, pooled: bool) -> None:
        self._images = batch.to(engine.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):  # libraries choose their kernels and take their memory before anything is recorded
                engine._run(self._images, None, pooled)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may bring new words to the device meanwhile.
        with used_constants() as self._constants, torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
            self._proposals = engine._run(self._images, None, pooled)

    def run(self, batch: Tensor) -> MaskProposals:
        """(B, H, W, 3) uint8 in pinned memory to proposals of their own: those of the graph change with the next images."""
        self._images.copy_(batch, non_blocking=True)
        self._graph.replay()
        return self._proposals.clone()


@contextlib.contextmanager
def without_tf32(device: str) -> Iterator[None]:
    """On a GPU convolutions in float32 are float32 inside: TF32 keeps ten bits of it.

    The setting is the process's: whoever comes first changes it, and the last one out brings it back.
    """
    if device == "cpu":
        yield
        return
    with _tf32_lock:
        if not _tf32_users:
            try:
                _tf32_setting.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            except RuntimeError:  # the process has used torch's newer settings, which do not go together with these
                convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
                _tf32_setting.callback(setattr, convolutions, "fp32_precision", convolutions.fp32_precision)
                convolutions.fp32_precision = "ieee"
        _tf32_users.append(device)
    try:
        yield
    finally:
        with _tf32_lock:
            _tf32_users.remove(device)
            if not _tf32_users:
                _tf32_setting.close()


_tf32_lock = threading.Lock()
_tf32_users: list[str] = []
_tf32_setting = contextlib.ExitStack()


def image_part(network: FCCLIP) -> FCCLIP:
    """A copy of the network without its text tower, which stays on the CPU in full precision with the original."""
    text = [child for name, child in network.clip.model.named_children() if name != "visual"]
    return copy.deepcopy(network, {id(child): nn.Identity() for child in text})
