"""TensorRT, or TensorRT for RTX, whichever is installed. Buffers are torch tensors; images and proposals stay on the GPU.

TensorRT for RTX (`pip install tensorrt-rtx-cu13`) builds for a GPU that is not there, when told which (`target_capability`);
TensorRT itself builds for the GPU it runs on. Either needs a GPU to load and run what was built.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import re
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vl4ad_model.engines.compiled import CompiledEngine, Reporter
from vl4ad_model.errors import EngineError, MissingDependencyError
from vl4ad_model.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

_MODULES = ("tensorrt", "tensorrt_rtx")
_MOST_ERRORS = 10_000  # kept; whoever has seen so many has seen enough


def library() -> Any:
    """The TensorRT module that is installed.

    Raises:
        MissingDependencyError: none is.
        EngineError: it cannot be imported.
    """
    problem = ""
    for name in _MODULES:
        if importlib.util.find_spec(name):
            try:
                return importlib.import_module(name)
            except (ImportError, OSError) as error:  # installed, but not whole: the other one may be
                problem = f"{name} is installed but cannot be imported: {str(error).partition(chr(10))[0]}"
    if problem:
        raise EngineError(problem)
    raise MissingDependencyError("tensorrt or tensorrt_rtx", "tensorrt", "engine tensorrt")


class TensorRTEngine(CompiledEngine):
    """A serialized TensorRT plan.

    Attributes:
        target_capability: compute capability to build for, as "sm_86"; empty = the GPU of `device`.
    """

    name = "tensorrt"
    suffix = ".plan"
    target_capability = ""
    export_share = 0.05

    @staticmethod
    def library() -> str:
        trt = library()
        return f"{trt.__name__} {trt.__version__}"

    def target(self) -> str:
        if self.target_capability:
            return self.target_capability
        import torch

        properties = torch.cuda.get_device_properties(self.device)
        if library().__name__ == "tensorrt_rtx":  # its engines run on every GPU of one capability, wherever they were built
            capability = f"sm_{properties.major}{properties.minor}"
            check_target(capability)  # before the export, which may take a minute
            return capability
        return f"{properties.name}, sm_{properties.major}{properties.minor}, CUDA {torch.version.cuda}"

    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        if self.target_capability:
            return self._compile(model, report)
        import torch

        with torch.cuda.device(self.device):  # the one that kernels are tried on
            torch.cuda.empty_cache()  # TensorRT cannot use what PyTorch keeps for itself
            return self._compile(model, report)

    def _compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        trt = library()
        logger = _logger(trt)
        said = len(logger.errors)
        builder = trt.Builder(logger)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(model.SerializeToString()):
            raise EngineError(f"{trt.__name__} cannot read the network: {parser.get_error(0).desc().splitlines()[0]}")
        config = builder.create_builder_config()
        # TensorRT for RTX builds for a choice of GPUs of its own where it is not told, and that choice leaves some out.
        capability = self.target_capability or (self.target() if trt.__name__ == "tensorrt_rtx" else "")
        if capability:
            check_target(capability)
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.__members__["SM" + capability.removeprefix("sm_")], 0)
        if not self.target_capability:
            import torch

            # PyTorch serves meanwhile and needs memory of its own; the default is all there is.
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, torch.cuda.mem_get_info(self.device)[0] // 2)
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is to be float32: TF32 keeps ten bits of it
        monitor = _monitor(trt, report)
        config.progress_monitor = monitor
        with _interrupts_of(monitor):
            plan = builder.build_serialized_network(network, config)
        if monitor.interrupted:
            raise KeyboardInterrupt
        if plan is None and report.cancelled.is_set():
            raise EngineError("the build was cancelled")
        if plan is None:
            raise EngineError(f"{trt.__name__} cannot build the network: {logger.since(said)}")
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
    network = trt.Builder(_logger(trt)).create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, _logger(trt))
    if not parser.parse(model.SerializeToString()):
        raise EngineError(f"{trt.__name__} cannot read the network: {parser.get_error(0).desc().splitlines()[0]}")
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: (tuple(tensor.shape), tensor.dtype.name.lower()) for tensor in tensors}


class _TensorRTRunner:
    def __init__(self, content: bytes, device: str) -> None:
        import torch

        trt = library()
        self._logger = logger = _logger(trt)
        said = len(logger.errors)
        self._device = torch.device(device)
        types = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bool: torch.bool, trt.uint8: torch.uint8}
        self._context: Any
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()
            self._runtime = trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            self._context = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise EngineError(f"{trt.__name__} cannot load the engine on {device}: {logger.since(said)}")
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in self._names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in self._names if n not in self._inputs]
        self._specs = {n: (tuple(self._engine.get_tensor_shape(n)), types[self._engine.get_tensor_dtype(n)]) for n in self._names}
        shape, dtype = self._specs[self._inputs[0]]
        # Whoever loads this in the middle of an image is in inference mode; what is made there cannot be filled outside of it.
        with torch.inference_mode(False):
            self._pinned = torch.empty(shape, dtype=dtype, pin_memory=True)
            self._image = torch.empty(shape, dtype=dtype, device=self._device)
        # TensorRT synchronises the whole device on the default stream.
        self._stream = torch.cuda.Stream(self._device)
        self._taken = torch.cuda.Event()

    def run(self, images: np.ndarray) -> list[Tensor]:
        import numpy as np
        import torch

        from vl4ad_model.engines.onnx_export import OUTPUTS

        with torch.cuda.device(self._device):
            callers, said = torch.cuda.current_stream(), len(self._logger.errors)
            self._taken.synchronize()  # the pinned buffer must have been read before it is filled again
            np.copyto(self._pinned.numpy(), images)  # torch would wake all of its threads for that
            # Made on the caller's stream, whose they are: its earlier work on the same memory comes first.
            outputs = {}
            for name in self._outputs:
                shape, dtype = self._specs[name]
                outputs[name] = torch.empty(shape, dtype=dtype, device=self._device)
            self._stream.wait_stream(callers)
            with torch.cuda.stream(self._stream):
                self._image.copy_(self._pinned, non_blocking=True)
                self._taken.record(self._stream)
                for name, tensor in outputs.items():
                    tensor.record_stream(self._stream)
                    self._context.set_tensor_address(name, tensor.data_ptr())
                self._context.set_tensor_address(self._inputs[0], self._image.data_ptr())
                done = self._context.execute_async_v3(self._stream.cuda_stream)
            callers.wait_stream(self._stream)
            if not done:
                raise RuntimeError(f"TensorRT did not run the network: {self._logger.since(said)}")
        return [outputs[name] for name in OUTPUTS if name in outputs]

    def close(self) -> None:
        import torch

        with contextlib.suppress(RuntimeError):  # of a device that is gone
            self._stream.synchronize()  # nothing is taken from under a run
            with torch.cuda.device(self._device):
                self._context = self._engine = self._runtime = None
        self._context = self._engine = self._runtime = None


def _strongly_typed(trt: Any) -> int:
    """The flag of a network whose types are those of the ONNX file. From TensorRT 11 on all are, and the flag may go."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is not None:
        return 1 << int(flag)
    if trt.__name__ == "tensorrt" and int(trt.__version__.partition(".")[0]) < 10:
        raise EngineError(f"TensorRT {trt.__version__} is too old: 10 or newer is needed (JetPack 6.1)")
    return 0


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


@functools.cache
def _logger(trt: Any) -> Any:
    """The logger of this process, which keeps errors instead of printing them.

    There is one, for ever: TensorRT ignores a second one while anything made with the first is alive, and must outlive neither.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR) and len(self.errors) < _MOST_ERRORS:
                self.errors.append(message.partition("\n")[0])

        def since(self, count: int) -> str:
            """Of the errors that came after the first `count` the one that says that memory ran out, else the last."""
            new = self.errors[count:]
            return next((error for error in new if is_out_of_memory(RuntimeError(error))), new[-1] if new else "no reason given")

    return Logger()


@contextlib.contextmanager
def _interrupts_of(monitor: Any) -> Iterator[None]:
    """Ctrl-C stops the build at TensorRT's next step; as an exception it would come up in any of the callbacks and be lost."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a shell's background job, which the terminal must not end
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        monitor.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def _monitor(trt: Any, report: Reporter) -> Any:
    """TensorRT's nested phases as one growing fraction."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int, int]] = {}  # name -> (parent, steps, steps done)
            self.highest = report.export_share
            self.interrupted = False  # by Ctrl-C

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = (parent, max(1, steps), 0)
            self.say(name)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                parent, steps, _ = self.phases[name]
                self.phases[name] = (parent, steps, min(step + 1, steps))
                self.say(name)
            return not (self.interrupted or report.cancelled.is_set())

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
