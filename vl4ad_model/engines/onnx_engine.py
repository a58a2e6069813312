"""ONNX Runtime: runs anywhere, on CUDA where its GPU build is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl4ad_model.engines.base import pinned
from vl4ad_model.engines.compiled import CompiledEngine, Reporter
from vl4ad_model.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

_TYPES = {  # of ONNX Runtime: torch's name and NumPy's
    "tensor(float)": ("float32", "float32"), "tensor(float16)": ("float16", "float16"), "tensor(bool)": ("bool", "bool_"),
}  # fmt: skip
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ONNXRuntimeEngine(CompiledEngine):
    """The exported ONNX file itself; ONNX Runtime optimises it when it loads."""

    name = "onnx"
    suffix = ".onnx"

    @staticmethod
    def library() -> str:
        import onnx
        import onnxruntime

        return f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"

    @staticmethod
    def runs_in_parallel(device: str) -> bool:
        return device == "cpu"  # on CUDA two runs would share one GPU, and need memory for two

    def target(self) -> str:
        self._provider()  # before the export, which may take a minute
        return "any"

    def _provider(self) -> str:
        import onnxruntime

        provider = _PROVIDERS[self.device.partition(":")[0]]
        if provider not in onnxruntime.get_available_providers():
            raise EngineError(f"onnxruntime has no {provider}: install onnxruntime-gpu, or use device cpu")
        return provider

    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        return model.SerializeToString()

    def load(self, content: bytes) -> _ONNXRunner | BoundRunner:
        import onnxruntime

        provider = self._provider()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads:
            options.intra_op_num_threads = self.threads
        # Idle threads that spin take the core from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        on_gpu = self.device != "cpu"
        chosen = (provider, {"device_id": _index(self.device), "use_tf32": 0}) if on_gpu else provider
        try:
            # Its own fallback would go on with the CPU, and with pointers into a GPU's memory.
            session = onnxruntime.InferenceSession(content, options, providers=[chosen], enable_fallback=False)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise EngineError(f"ONNX Runtime cannot load the network: {str(error).splitlines()[0]}") from None
        if provider not in session.get_providers():  # it falls back to the CPU without a word
            raise EngineError(f"ONNX Runtime cannot use {provider}: its CUDA or cuDNN does not fit this machine")
        return BoundRunner(session, self.device) if on_gpu else _ONNXRunner(session)


def _index(device: str) -> int:
    """The number of a GPU: plain "cuda" is torch's current one, which need not be ONNX Runtime's default."""
    import torch

    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


class _ONNXRunner:
    def __init__(self, session) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> list[Tensor]:
        import torch

        return [torch.from_numpy(array) for array in self._session.run(None, {self._input: images})]

    def close(self) -> None:
        self._session = None


class BoundRunner:
    """Images and outputs stay in tensors on the device.

    Args:
        session: of ONNX Runtime, on the same device.
        device: cuda[:N], or cpu.
    """

    def __init__(self, session, device: str) -> None:
        import torch

        self._session, self._device = session, torch.device(device)
        self._index = _index(device) if self._device.type == "cuda" else 0
        self._input = session.get_inputs()[0]
        self._outputs = [(value.name, tuple(value.shape), value.type) for value in session.get_outputs()]

    def run(self, images: np.ndarray) -> list[Tensor]:
        import numpy as np
        import torch

        batch = (pinned(images) if self._device.type == "cuda" else torch.from_numpy(images)).to(self._device)
        binding = self._session.io_binding()
        kind, index = self._device.type, self._index
        binding.bind_input(self._input.name, kind, index, np.uint8, tuple(batch.shape), batch.data_ptr())
        results = []
        for name, shape, type_name in self._outputs:
            dtype, element = _TYPES[type_name]
            results.append(torch.empty(shape, dtype=getattr(torch, dtype), device=self._device))
            binding.bind_output(name, kind, index, getattr(np, element), shape, results[-1].data_ptr())
        if kind == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return results

    def close(self) -> None:
        self._session = None
