"""TensorRT, or TensorRT for RTX, whichever is installed. Buffers are torch tensors; images and proposals stay on the GPU.

TensorRT for RTX (`pip install tensorrt-rtx-cu13`) builds for a GPU that is not there, when told which (`target_capability`);
TensorRT itself builds for the GPU it runs on. Either needs a GPU to load and run what was built.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import TYPE_CHECKING, Any

from vl4ad_model.engines.compiled import CompiledEngine, Reporter
from vl4ad_model.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

_MODULES = ("tensorrt", "tensorrt_rtx")


def library() -> Any:
    """The TensorRT module that is installed.

    Raises:
        MissingDependencyError: none is.
    """
    for name in _MODULES:
        if importlib.util.find_spec(name):
            return importlib.import_module(name)
    raise MissingDependencyError("tensorrt or tensorrt_rtx", "tensorrt", "engine tensorrt")


class TensorRTEngine(CompiledEngine):
    """A serialized TensorRT plan.

    Attributes:
        target_capability: compute capability to build for, as "sm_86"; empty = the GPU of `device`.
    """

    name = "tensorrt"
    suffix = ".plan"
    target_capability = ""

    def library(self) -> str:
        trt = library()
        return f"{trt.__name__} {trt.__version__}"

    def target(self) -> str:
        if self.target_capability:
            return self.target_capability
        import torch

        properties = torch.cuda.get_device_properties(self.device)
        if library().__name__ == "tensorrt_rtx":  # its engines run on every GPU of one capability, wherever they were built
            return f"sm_{properties.major}{properties.minor}"
        return f"{properties.name}, sm_{properties.major}{properties.minor}, CUDA {torch.version.cuda}"

    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        trt = library()
        logger, messages = _logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(model.SerializeToString()):
            raise EngineError(f"{trt.__name__} cannot read the network: {parser.get_error(0).desc().splitlines()[0]}")
        config = builder.create_builder_config()
        if self.target_capability:
            check_target(self.target_capability)
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.__members__["SM" + self.target_capability.removeprefix("sm_")], 0)
        monitor = _monitor(trt, report)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            text = messages[-1] if messages else "no reason given"
            raise EngineError(f"{trt.__name__} cannot build the network: {text}")
        return bytes(plan)

    def load(self, content: bytes) -> _TensorRTRunner:
        return _TensorRTRunner(content, self.device)


def parse_target(text: str) -> str:
    """ "sm_86", "SM86", "8.6" or "86" as "sm_86".

    Raises:
        EngineError: it is no compute capability.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if not match:
        raise EngineError(f"target '{text}' is no compute capability: write it as sm_86 (see `nvidia-smi --query-gpu=compute_cap`)")
    return f"sm_{match[1]}{match[2]}"


def describe(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], str]]:
    """Inputs and outputs as TensorRT itself understands a model: name -> (shape, type). Needs no GPU."""
    trt = library()
    logger, _ = _logger(trt)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise EngineError(f"{trt.__name__} cannot read the network: {parser.get_error(0).desc().splitlines()[0]}")
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: (tuple(tensor.shape), tensor.dtype.name.lower()) for tensor in tensors}


class _TensorRTRunner:
    def __init__(self, content: bytes, device: str) -> None:
        import torch

        trt = library()
        logger, messages = _logger(trt)
        self._messages = messages
        self._device = torch.device(device)
        types = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bool: torch.bool, trt.uint8: torch.uint8}
        self._context: Any
        with torch.cuda.device(self._device):
            self._runtime = trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            self._context = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            text = messages[-1] if messages else "no reason given"
            raise EngineError(f"{trt.__name__} cannot load the engine on {device}: {text}")
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in self._names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in self._names if n not in self._inputs]
        self._specs = {n: (tuple(self._engine.get_tensor_shape(n)), types[self._engine.get_tensor_dtype(n)]) for n in self._names}
        shape, dtype = self._specs[self._inputs[0]]
        self._pinned = torch.empty(shape, dtype=dtype, pin_memory=True)
        self._image = torch.empty(shape, dtype=dtype, device=self._device)

    def run(self, images: np.ndarray) -> list[Tensor]:
        import torch

        from vl4ad_model.engines.onnx_export import OUTPUTS

        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            self._pinned.copy_(torch.from_numpy(images))
            self._image.copy_(self._pinned, non_blocking=True)
            outputs = {}
            for name in self._outputs:
                shape, dtype = self._specs[name]
                outputs[name] = torch.empty(shape, dtype=dtype, device=self._device)
                self._context.set_tensor_address(name, outputs[name].data_ptr())
            self._context.set_tensor_address(self._inputs[0], self._image.data_ptr())
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError(
                    f"TensorRT did not run the network: {self._messages[-1] if self._messages else 'no reason given'}"
                )
            # The pinned buffer is filled again with the next image: it must have been read by then.
            stream.synchronize()
        return [outputs[name] for name in OUTPUTS if name in outputs]

    def close(self) -> None:
        self._context = self._engine = self._runtime = None


def check_target(target: str) -> None:
    """Make sure that the installed library can build for a target.

    Raises:
        EngineError: it cannot; the message lists what it can.
    """
    trt = library()
    if not hasattr(trt, "ComputeCapability"):
        raise EngineError(
            "TensorRT builds only for the GPU it runs on: leave --target out, or install tensorrt-rtx-cu13 instead of tensorrt"
        )
    name = "SM" + target.removeprefix("sm_")
    if name not in trt.ComputeCapability.__members__:
        known = ", ".join("sm_" + n[2:] for n in trt.ComputeCapability.__members__ if n.startswith("SM"))
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot build for {target}: it knows {known}")


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger for TensorRT that keeps errors instead of printing them."""
    messages: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message.splitlines()[0])

    return Logger(), messages


def _monitor(trt: Any, report: Reporter) -> Any:
    """TensorRT's nested phases as one growing fraction."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int, int]] = {}  # name -> (parent, steps, steps done)
            self.highest = report.export_share

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = (parent, max(1, steps), 0)
            self.say(name)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                parent, steps, _ = self.phases[name]
                self.phases[name] = (parent, steps, min(step + 1, steps))
                self.say(name)
            return True

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def say(self, name: str) -> None:
            part, current = 0.0, name
            while current in self.phases:
                parent, steps, done = self.phases[current]
                part = min(1.0, (done + part) / steps)
                current = parent or ""
            self.highest = max(self.highest, report.export_share + (1 - report.export_share) * 0.99 * part)
            report(f"compiling: {name}", self.highest)

    return Monitor()
