"""ONNX Runtime: runs anywhere, on CUDA where its GPU build is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl4ad_model.engines.compiled import CompiledEngine, Reporter
from vl4ad_model.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ONNXRuntimeEngine(CompiledEngine):
    """The exported ONNX file itself; ONNX Runtime optimises it when it loads."""

    name = "onnx"
    suffix = ".onnx"

    def library(self) -> str:
        import onnx
        import onnxruntime

        return f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"

    def target(self) -> str:
        return "any"

    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        return model.SerializeToString()

    def load(self, content: bytes) -> _ONNXRunner:
        import onnxruntime

        kind, _, index = self.device.partition(":")
        provider = _PROVIDERS[kind]
        if provider not in onnxruntime.get_available_providers():
            raise EngineError(f"onnxruntime has no {provider}: install onnxruntime-gpu, or use device cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads:
            options.intra_op_num_threads = self.threads
        # Idle threads that spin take the core from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chosen = (provider, {"device_id": int(index or 0)}) if kind == "cuda" else provider
        try:
            return _ONNXRunner(onnxruntime.InferenceSession(content, options, providers=[chosen]))
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise EngineError(f"ONNX Runtime cannot load the network: {str(error).splitlines()[0]}") from None


class _ONNXRunner:
    def __init__(self, session) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> list[Tensor]:
        import torch

        return [torch.from_numpy(array) for array in self._session.run(None, {self._input: images})]

    def close(self) -> None:
        self._session = None
