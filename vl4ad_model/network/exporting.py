"""Whether this thread is exporting a network: some modules then take a form that compiled engines run faster.

Torch's own `torch.onnx.is_in_onnx_export` is true in every thread of the process while one of them exports, so that a network that
answers images meanwhile would take those forms too, and a CUDA graph recorded then would keep them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_thread = threading.local()


def is_exporting() -> bool:
    """Whether this thread is inside `exporting`."""
    return getattr(_thread, "exporting", False)


def is_exporting_half() -> bool:
    """Whether what this thread exports becomes half precision, where a sum of squares may end at infinity."""
    return is_exporting() and _thread.half


@contextlib.contextmanager
def exporting(*, half: bool = False) -> Iterator[None]:
    """Modules that this thread runs inside take their exported form.

    Args:
        half: the graph becomes half precision.
    """
    before = is_exporting(), getattr(_thread, "half", False)
    _thread.exporting, _thread.half = True, half
    try:
        yield
    finally:
        _thread.exporting, _thread.half = before
