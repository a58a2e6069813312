"""How long every engine takes for one image, stage by stage, in turns so that a busy machine is unfair to all alike."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vl4ad_model.benchmark import resident_mb
from vl4ad_model.errors import Vl4adError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vl4ad_model.engines.base import ProgressCallback
    from vl4ad_model.network.fcclip import FCCLIP


def measure(
    network: FCCLIP,
    model: str,
    size: tuple[int, int],
    only: str,
    device: str,
    precision: str,
    threads: int | None,
    repeat: int,
    hazards: int,
    progress: ProgressCallback | None,
) -> list[dict[str, Any]]:
    """Rows of the table of `vl4ad benchmark engines`.

    Per engine: the frozen CLIP backbone alone, compiled and run by the same engine in the same turn; the network to proposals;
    scoring to label and anomaly map; and network and scoring together. p50 and p99 are of wall-clock time; CPU ms is the smallest
    process time of a run, which a busy machine disturbs least.
    """
    import torch

    from vl4ad_model import engines
    from vl4ad_model.engines.torch_engine import TorchEngine
    from vl4ad_model.network_words import classifier_for, random_rows, street_vocabulary

    if threads:
        torch.set_num_threads(threads)
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    vocabulary = street_vocabulary(hazards)
    rows_of_text = random_rows(vocabulary, network.clip.embed_dim)
    label = f"{size[0]}x{size[1]}"
    names = [name.strip() for name in only.split(",") if name.strip()] or list(engines.ENGINES[1:])
    rows: list[dict[str, Any]] = []
    stages: dict[str, dict[str, Callable[[], Any]]] = {}
    memory: dict[str, float] = {}
    places: dict[str, str] = {}  # the devices they are on
    for name in names:
        try:
            before = _memory_mb(engines.device_for(name, device=device, precision=precision, network_size=size))
            engine = engines.create(
                network, engine=name, device=device, precision=precision, network_size=size, model_name=model, threads=threads,
                progress=progress,
            )  # fmt: skip
            backbone = _backbone(network, name, engine.device, precision, size, threads)
        except Vl4adError as error:
            rows.append({"engine": name, "size": label, "error": str(error)})
            continue
        classifier = classifier_for(network, vocabulary, rows_of_text, device=engine.device)
        stages[name] = _stages(engine, backbone, classifier, image)
        memory[name], places[name] = _memory_mb(engine.device) - before, engine.device
        if name == "torch" and engine.device.startswith("cuda"):
            for how in ("fp32", "fp16"):  # what the same network takes as everybody runs it
                eager = TorchEngine(network, device=engine.device, precision=how, network_size=size, graphs=False)
                tower = _backbone(network, "torch", engine.device, how, size, threads)
                places[f"torch eager {how}"] = engine.device
                stages[f"torch eager {how}"] = _stages(eager, tower, classifier, image, plain=True)
    wall: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeat + 2):
        for name, actions in stages.items():
            for stage, action in actions.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                with torch.inference_mode():
                    action()
                if places[name].startswith("cuda"):
                    torch.cuda.synchronize(places[name])
                if turn >= 2:
                    wall.setdefault((name, stage), []).append(1e3 * (time.perf_counter() - began))
                    cpu.setdefault((name, stage), []).append(1e3 * (time.process_time() - began_cpu))
    for name, actions in stages.items():
        base = float(np.median(wall[name, "backbone alone"]))
        for stage in actions:
            rows.append(_row(name, label, stage, wall[name, stage], min(cpu[name, stage]), base, 0.0))
        both = [a + b for a, b in zip(wall[name, "network"], wall[name, "scoring"], strict=True)]
        both_cpu = min(cpu[name, "network"]) + min(cpu[name, "scoring"])
        rows.append(_row(name, label, "network + scoring", both, both_cpu, base, memory.get(name, 0.0)))
    return rows


def floor_of(network: FCCLIP, size: tuple[int, int], device: str, precision: str, threads: int | None) -> dict[str, Any]:
    """What the machine could do at best, as a row for people and for the JSON file (see `floor`)."""
    import torch

    from vl4ad_model.engines.floor import measure_floor

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    pooled = network.config.classifier != "in_vocabulary"
    floor = measure_floor(network, size, device=device, precision=precision, pooled=pooled)
    return {"size": f"{size[0]}x{size[1]}", **floor._asdict(), "network_ms": floor.network_ms, "scoring_ms": floor.scoring_ms}


def _memory_mb(device: str) -> float:
    """What is in use: of the GPU, by everybody on it (TensorRT does not ask torch for memory); of the CPU, by this process."""
    import torch

    if torch.cuda.is_available() and device != "cpu":
        free, total = torch.cuda.mem_get_info(device if device.startswith("cuda") else None)
        return (total - free) / 2**20
    return resident_mb("VmRSS")


def _row(engine: str, size: str, stage: str, wall: list[float], cpu: float, base: float, memory: float) -> dict[str, Any]:
    return {
        "engine": engine,
        "size": size,
        "stage": stage,
        "p50_ms": float(np.median(wall)),
        "p99_ms": float(np.percentile(wall, 99)),
        "cpu_ms": cpu,
        "times_backbone": float(np.median(wall)) / base,
        "memory_mb": memory,
    }


def _stages(
    engine: Any, backbone: Callable[[np.ndarray], Any], classifier: Any, image: np.ndarray, *, plain: bool = False
) -> dict[str, Callable[[], Any]]:
    """What is timed. `plain`: with PyTorch's own operations alone."""
    from vl4ad_model.scoring import Scorer
    from vl4ad_model.triton_attention import switched_off

    scorer = Scorer(fused=not plain)
    proposals: dict[str, Any] = {}

    def network() -> None:
        with switched_off() if plain else contextlib.nullcontext():
            proposals["last"] = engine.propose(image, pooled=classifier.needs_pooled)

    def scoring() -> None:
        for maps in scorer.score(proposals["last"], classifier):
            maps.on_host()

    network()
    scoring()
    return {"backbone alone": lambda: backbone(image), "network": network, "scoring": scoring}


def _backbone(
    network: FCCLIP, engine: str, device: str, precision: str, size: tuple[int, int], threads: int | None
) -> Callable[[np.ndarray], Any]:
    """The frozen image tower alone, uint8 image to pyramid, run by the same engine; not kept in the cache."""
    import torch

    from vl4ad_model.engines import compiled_class, onnx_export
    from vl4ad_model.engines.compiled import Reporter
    from vl4ad_model.engines.torch_engine import image_part, without_tf32

    if engine == "torch":
        tower = image_part(network)
        tower.place_image_side(device, torch.float16 if precision == "fp16" else torch.float32)
        if device != "cpu":
            tower = tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def eager(image: np.ndarray) -> Any:
            # As the engine computes; but not as a CUDA graph, so on a GPU the ratio flatters the network.
            with without_tf32(device):
                return tower.clip(tower.normalize(torch.from_numpy(image).to(device).permute(0, 3, 1, 2)))

        return eager
    model = onnx_export.export_backbone(network, height=size[0], width=size[1], precision=precision)
    compiled = compiled_class(engine)(network, network_size=size, device=device, precision=precision, threads=threads)
    return compiled.load(compiled.compile(model, Reporter(engine, None, compiled.export_share))).run
