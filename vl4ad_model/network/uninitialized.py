"""A network whose weights come from elsewhere is built without drawing random ones first, which takes a large one seconds."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class Uninitialized(TorchFunctionMode):
    """While this is entered, nothing is done in place to an `nn.Parameter`.

    Whoever builds a module gives all of them their values afterwards. Buffers, and what is computed on the way, are as ever.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            changed = args[0] if args else (kwargs or {}).get("tensor")  # torch.nn.init passes it by name
            if isinstance(changed, nn.Parameter) and name != "requires_grad_":
                return changed
        return func(*args, **(kwargs or {}))
