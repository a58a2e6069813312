"""Imports torchvision where it would not go by itself, and without what it does not need.

Defines the two operator schemas that torchvision lacks next to a CPU-only torch.

torchvision's wheels from PyPI carry a compiled library built against the CUDA torch. Beside a CPU-only torch (and on many
Jetson images) that library does not load, and `import torchvision` dies with "operator torchvision::nms does not exist",
because its Python code registers fake kernels for `nms` and `qnms`. open_clip and timm import torchvision but call neither
operator, so declaring the schemas is enough. Call `define()` before the first import of torchvision, open_clip or timm.

One of torchvision's operators (RoIAlign) asks torch's compiler whether it supports a device, and one of timm's networks (NaFlexViT)
tells it to leave a function alone. Both import all of it for that: 1.8 of the 5.5 s from the start to the first image of `tiny`.
Nobody here calls either, so the compiler is imported when it is really asked.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_library = None
_COMPILER = "torch._dynamo"


def define() -> None:
    """Import torchvision and timm, with torchvision::nms and qnms declared where its own library does not load. Idempotent.

    Where that does load it must come first: C++ that declares an operator a second time ends the process.
    """
    _declare()
    with _compiler_when_asked():
        for name in ("torchvision", "timm"):
            if name not in sys.modules and importlib.util.find_spec(name):
                importlib.import_module(name)


def _declare() -> None:
    global _library
    if _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    _load_compiled()
    if hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _load_compiled() -> None:
    """Load torchvision's compiled operators, as its own import will."""
    spec = importlib.util.find_spec("torchvision")  # finds it without importing it
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            with contextlib.suppress(OSError, RuntimeError):  # built for another torch
                torch.ops.load_library(str(path))


class _Compiler(ModuleType):
    """Stands for a module of torch's compiler while others are imported; whatever it does not do itself is the real one's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _take_away()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device_type)


def _disable(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """A function that the compiler shall leave alone: where there is no compiler, it does."""

    @functools.wraps(function)
    def left_alone(*values: Any, **named: Any) -> Any:
        compiler = sys.modules.get(_COMPILER)
        called = function if compiler is None else compiler.disable(function, *arguments, **options)
        return called(*values, **named)

    return left_alone


@contextlib.contextmanager
def _compiler_when_asked() -> Iterator[None]:
    if _COMPILER in sys.modules:
        yield
        return
    package, utils = _Compiler(_COMPILER), _Compiler(f"{_COMPILER}.utils")
    spec = importlib.util.find_spec(_COMPILER)
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []  # its other parts are the real ones
    vars(package).update(disable=_disable, utils=utils)
    vars(utils).update(is_compile_supported=_is_compile_supported)
    sys.modules |= {package.__name__: package, utils.__name__: utils}
    try:
        yield
    finally:
        _take_away()


def _take_away() -> None:
    for name in (_COMPILER, f"{_COMPILER}.utils"):
        if isinstance(sys.modules.get(name), _Compiler):
            del sys.modules[name]
