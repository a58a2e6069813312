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


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Modules that this thread runs inside take their exported form."""
    before = is_exporting()
    _thread.exporting = True
    try:
        yield
    finally:
        _thread.exporting = before
