"""OpenVINO on the CPU: the fastest engine there. Its default precision on some CPUs is bfloat16; here it is always float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    def target(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in sorted(self._options().items()))
        return f"{_core().get_property('CPU', 'FULL_DEVICE_NAME')}, {self.threads or 'all'} threads, {options}"

    def _options(self) -> dict[str, str | int | bool]:
        # bfloat16, the default where the CPU has it, moved cosines by up to 0.10.
        options: dict[str, str | int | bool] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        # A thread that is bound to a core waits for whoever else is on it, and all threads wait for that one: beside a busy process
        # an image took two to three times as long.
        options["ENABLE_CPU_PINNING"] = False
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
        return options

    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        core = _core()
        try:
            compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", self._options())
            return compiled.export_model().getvalue()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile the network: {_first_line(error)}") from None

    def load(self, content: bytes) -> _OpenVINORunner:
        try:
            return _OpenVINORunner(_core().import_model(content, "CPU", self._options()))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load the compiled network: {_first_line(error)}") from None


class _OpenVINORunner:
    def __init__(self, compiled) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = list(compiled.outputs)

    def run(self, images: np.ndarray) -> list[Tensor]:
        import torch

        results = self._request.infer({0: images}, share_inputs=True, share_outputs=True)
        # Copied: the request's own buffers change with the next image.
        return [torch.from_numpy(results[output].copy()) for output in self._outputs]

    def close(self) -> None:
        self._request = None


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
