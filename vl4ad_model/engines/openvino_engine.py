"""OpenVINO on the CPU: the fastest engine there. Its default precision on some CPUs is bfloat16; here it is float32 unless bf16 is
asked for."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from vl4ad_model.engines.compiled import CompiledEngine, Reporter
from vl4ad_model.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor


class OpenVINOEngine(CompiledEngine):
    """A compiled OpenVINO blob (`CompiledModel.export_model`)."""

    name = "openvino"
    suffix = ".blob"

    @staticmethod
    def library() -> str:
        import openvino

        return f"openvino {openvino.__version__}"

    @staticmethod
    def runs_in_parallel(device: str) -> bool:
        return True

    def target(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in sorted(self._options().items()))
        return f"{_core().get_property('CPU', 'FULL_DEVICE_NAME')}, {self.threads or 'all'} threads, {options}"

    def _options(self) -> dict[str, str | int | bool]:
        # bfloat16, the default where the CPU has it, moved cosines by up to 0.10.
        precision = "bf16" if self.precision == "bf16" else "f32"
        options: dict[str, str | int | bool] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        # A thread that is bound to a core waits for whoever else is on it, and all threads wait for that one: beside a busy process
        # an image took two to three times as long.
        options["ENABLE_CPU_PINNING"] = False
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
        return options

    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        from vl4ad_model.engines.strips import in_strips

        core, model = _core(), in_strips(model)
        try:
            compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", self._options())
            return compiled.export_model().getvalue()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile the network: {_first_line(error)}") from None

    def load(self, content: bytes) -> _OpenVINORunner:
        try:
            # One stream of threads for each image that is worked on.
            options = self._options() | ({"NUM_STREAMS": self.parallel} if self.parallel > 1 else {})
            return _OpenVINORunner(_core().import_model(content, "CPU", options), self.parallel)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load the compiled network: {_first_line(error)}") from None


class _OpenVINORunner:
    def __init__(self, compiled, parallel: int) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(parallel):
            self._requests.put(compiled.create_infer_request())
        self._outputs = list(compiled.outputs)

    def run(self, images: np.ndarray) -> list[Tensor]:
        import torch

        request = self._requests.get()
        try:
            results = request.infer({0: images}, share_inputs=True, share_outputs=True)
            # Copied: the request's own buffers change with the next image.
            return [torch.from_numpy(results[output].copy()) for output in self._outputs]
        finally:
            self._requests.put(request)

    def close(self) -> None:
        while not self._requests.empty():
            self._requests.get()
        self._requests.put(None)  # who comes too late fails, and does not wait


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16: AVX-512 BF16 or AMX."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _core():
    import openvino

    global _CORE
    if _CORE is None:
        _CORE = openvino.Core()
    return _CORE


_CORE = None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
