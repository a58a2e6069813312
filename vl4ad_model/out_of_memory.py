"""What running out of memory looks like: every library says it in another way, and all of it can be answered by needing less."""

from __future__ import annotations

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "outofmemory",
    "bad_alloc",
    "cannot allocate memory",
    "alloc_failed",
    "failed to allocate memory",  # ONNX Runtime
    "could not be allocated",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that device or host memory ran out (torch, CUDA, TensorRT, ONNX Runtime, OpenVINO, Python)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)
