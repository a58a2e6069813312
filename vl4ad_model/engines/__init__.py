"""The same network compiled: one small interface, several libraries behind it, and the choice between them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from vl4ad_model.errors import EngineError, MissingDependencyError, Vl4adError, one_line
from vl4ad_model.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from vl4ad_model.engines.base import Engine, ProgressCallback
    from vl4ad_model.engines.cache import EngineCache
    from vl4ad_model.engines.compiled import CompiledEngine
    from vl4ad_model.network.fcclip import FCCLIP

log = logging.getLogger(__name__)

ENGINES = ("auto", "torch", "onnx", "openvino", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16")
# Fastest first, as measured by `vl4ad benchmark engines`.
PREFERENCE = {"cpu": ("openvino", "onnx", "torch"), "cuda": ("tensorrt", "torch")}
# engine -> (modules, any one of which is enough; module that is needed besides; pip extra)
_NEEDS = {
    "onnx": (("onnxruntime",), "onnx", "onnx"),
    "openvino": (("openvino",), "onnx", "openvino"),
    "tensorrt": (("tensorrt", "tensorrt_rtx"), "onnx", "tensorrt"),
}


def missing(engine: str) -> str:
    """The package that an engine lacks on this machine; empty where nothing is missing."""
    if engine == "torch":
        return ""
    libraries, besides, _ = _NEEDS[engine]
    if not any(importlib.util.find_spec(name) for name in libraries):
        return libraries[-1]
    return "" if importlib.util.find_spec(besides) else besides


def pip_extra(engine: str) -> str:
    """The extra of this package that brings what `engine` needs: pip install 'vl4ad_ros[extra]'."""
    return _NEEDS[engine][2]


def require(engine: str) -> None:
    """Make sure that the engine's library is here.

    Raises:
        MissingDependencyError: it is not; the message has the command that brings it.
        EngineError: it is, and cannot be imported.
    """
    if lacking := missing(engine):
        raise MissingDependencyError(lacking, pip_extra(engine), f"engine {engine}")
    if engine == "tensorrt":
        from vl4ad_model.engines.tensorrt_engine import library

        library()  # of two that may be installed, one that works
    elif engine != "torch":
        libraries, besides, _ = _NEEDS[engine]
        for name in (*libraries, besides):
            try:
                importlib.import_module(name)
            except (ImportError, OSError) as error:
                raise EngineError(f"{name} is installed but cannot be imported: {one_line(error)}") from None


def device_for(engine: str, *, device: str = "auto", precision: str = "fp32", network_size: tuple[int, int] | None = None) -> str:
    """What auto means here, and whether all these go together; needs no network, so a mistake costs no loading.

    Returns:
        cpu, cuda or cuda:N.

    Raises:
        EngineError: one is unknown or not here.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine '{engine}' is unknown: use {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise EngineError(f"precision '{precision}' is unknown: use {', '.join(PRECISIONS)}")
    if network_size is not None:
        if not isinstance(network_size, (tuple, list)) or [type(side) for side in network_size] != [int, int]:
            raise EngineError(f"network size {network_size!r:.60} must be two whole numbers, (height, width)")
        if min(network_size) < 32 or any(side % 32 for side in network_size):
            raise EngineError(f"network size {network_size[0]}x{network_size[1]} must be multiples of 32")
    kind = device.split(":")[0]
    if device not in ("auto", "cpu") and kind != "cuda":
        raise EngineError(f"device '{device}' is unknown: use auto, cpu, cuda or cuda:N")
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = kind = "cuda" if has_cuda and engine != "openvino" else "cpu"
    if kind == "cuda" and not has_cuda:
        raise EngineError("device cuda was asked for but torch sees no GPU: check nvidia-smi and that torch is a CUDA build")
    if kind == "cuda" and ":" in device:
        index, count = device.partition(":")[2], torch.cuda.device_count()
        if not index.isdecimal() or int(index) >= count:
            raise EngineError(f"device '{device}' is not here: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}")
    if precision == "fp16" and kind == "cpu":
        raise EngineError("precision fp16 needs a GPU: on the CPU use fp32, or bf16 where the CPU has it")
    if precision == "bf16":
        check_bfloat16(engine, kind)
    return device


def check_bfloat16(engine: str, kind: str = "cpu") -> None:
    """Make sure that bf16 can be had: OpenVINO's alone, since a CPU without it, and every other library, would gain nothing.

    Args:
        kind: of device, cpu or cuda.

    Raises:
        EngineError: it cannot.
        MissingDependencyError: OpenVINO is not installed.
    """
    if kind != "cpu":
        raise EngineError("precision bf16 is for the CPU: use fp16 on the GPU, or device cpu")
    if engine not in ("auto", "openvino"):
        raise EngineError(f"precision bf16 needs engine openvino, not {engine}")
    require("openvino")
    from vl4ad_model.engines.openvino_engine import has_bfloat16

    if not has_bfloat16():
        raise EngineError("precision bf16 needs a CPU with AVX-512 BF16 or AMX, which this one lacks: use fp32")


def create(
    network: FCCLIP,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    network_size: tuple[int, int] | None = None,
    model_name: str = "model",
    threads: int | None = None,
    pooled: bool | None = None,
    background: bool = False,
    parallel: int = 1,
    progress: ProgressCallback | None = None,
    cache: EngineCache | None = None,
) -> Engine:
    """Make an engine.

    Args:
        engine: one of `ENGINES`; auto = the fastest that works for this device and size, PyTorch where none does.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, fp16 (CUDA only) or bf16 (OpenVINO only, on CPUs that have it).
        network_size: (height, width) of every image; None = any, which only PyTorch can do.
        model_name: for the names of cached files.
        threads: CPU threads; None = the library's default.
        pooled: build the variant with CLIP's own features per mask first; None = as the model's own classifier needs.
        background: return at once; PyTorch serves until the engine is built.
        parallel: calls of `propose` that an engine which can do so shall answer at once.
        progress: called with `BuildProgress`, from the building thread.
        cache: where compiled files lie; None = the user's.

    Raises:
        EngineError: the engine, device, precision or size is unknown or not here.
        MissingDependencyError: the asked-for engine's library is not installed.
    """
    import torch

    from vl4ad_model.engines.serving import ServingEngine
    from vl4ad_model.engines.torch_engine import TorchEngine

    device = device_for(engine, device=device, precision=precision, network_size=network_size)
    kind = device.split(":")[0]
    if precision == "bf16":
        engine = "openvino"

    def torch_on(where: str, how: str):
        return lambda: TorchEngine(network, device=where, precision=how, network_size=network_size)

    fallbacks = [torch_on(device, precision if kind == "cuda" else "fp32")]
    if kind == "cuda":
        fallbacks.append(torch_on("cpu", "fp32"))
    pytorch = f"PyTorch {torch.__version__.split('+')[0]} on {device}"
    if engine == "torch":
        return ServingEngine(None, fallbacks, reason=f"{pytorch}, as asked for")
    if network_size is None:
        if engine != "auto":
            raise EngineError(f"engine {engine} needs one fixed size: set network_size (height width), multiples of 32")
        return ServingEngine(
            None, fallbacks, reason=f"{pytorch}: images keep their own size, and compiled engines need a fixed one"
        )

    options: dict[str, Any] = {
        "network_size": network_size,
        "device": device,
        "precision": precision,
        "model_name": model_name,
        "threads": threads,
        "parallel": parallel,
        "cache": cache,
        "progress": progress,
    }
    needs_pooled = network.config.classifier != "in_vocabulary" if pooled is None else pooled
    passed_over: list[str] = []
    for name in PREFERENCE[kind] if engine == "auto" else (engine,):
        if name == "torch":
            break
        if name == "openvino" and kind != "cpu":
            raise EngineError("engine openvino runs on the CPU here: use device cpu, or tensorrt on the GPU")
        lacking = missing(name)
        if name == "tensorrt" and kind != "cuda":
            raise EngineError("engine tensorrt runs on a GPU: use device cuda, or openvino on the CPU")
        if lacking:
            if engine != "auto":
                require(name)
            passed_over.append(f"{name} needs '{lacking}', which is not installed")
            continue
        try:
            compiled = compiled_class(name)(network, **options)
            compiled.target()  # a GPU that the library does not build for is known now, not when the build has begun
            why = "as asked for" if engine != "auto" else "; ".join(["the fastest here", *passed_over])
            serving = ServingEngine(
                compiled, fallbacks, reason=f"{compiled.library()} on {device}, {why}", background=background, progress=progress
            )
            if background:
                serving.prepare(needs_pooled)
            else:
                compiled.prepare(needs_pooled)
            return serving
        except Vl4adError as error:
            if engine != "auto" and not is_out_of_memory(error):
                raise
            passed_over.append(str(error))
        except Exception as error:
            if engine != "auto" and not is_out_of_memory(error):
                raise EngineError(f"engine {name} does not work here: {one_line(error)}") from None
            passed_over.append(f"{name} failed: {one_line(error)}")
        log.warning("skipping engine %s: %s", name, passed_over[-1])
    return ServingEngine(None, fallbacks, reason="; ".join([pytorch, *passed_over]))


def compiled_class(name: str) -> type[CompiledEngine]:
    """The class behind a compiled engine's name: onnx, openvino or tensorrt. Its library must be here (see `require`)."""
    if name == "openvino":
        from vl4ad_model.engines.openvino_engine import OpenVINOEngine

        return OpenVINOEngine
    if name == "onnx":
        from vl4ad_model.engines.onnx_engine import ONNXRuntimeEngine

        return ONNXRuntimeEngine
    from vl4ad_model.engines.tensorrt_engine import TensorRTEngine

    return TensorRTEngine
