"""What running out of memory looks like: every library says it in another way, and all of it can be answered by needing less."""

from __future__ import annotations

_SIGNS = (
    "out of memory",
    "insufficient memory",  # OpenCV
    "out_of_memory",  # CUDA's own name for it
    "can't alloc",
    "outofmemory",
    "bad_alloc",
    "cannot allocate memory",
    "alloc_failed",
    "allocation_failed",  # cuDNN 9
    "smaller than requested bytes",  # ONNX Runtime's arena
    "failed to allocate memory",  # ONNX Runtime
    "failed to serialize proto",  # protobuf
    "resource temporarily unavailable",  # a thread or a mapping that the system does not grant
    "could not be allocated",
    "unable to find an engine to execute this computation",  # what cuDNN's convolutions say when every plan ran out
    "status_not_initialized",  # cuBLAS and cuDNN, which take their first memory then
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that device or host memory ran out (torch, CUDA, TensorRT, ONNX Runtime, OpenVINO, Python)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)
