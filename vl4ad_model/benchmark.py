"""`vl4ad benchmark network`: time and memory of every stage of a model, as a share of the whole."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vl4ad_model.engines.commands import _network


def benchmark_network(
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "tiny",
    height: Annotated[int, typer.Option(min=0, help="Image height in pixels; 0 = the model's own.")] = 0,
    width: Annotated[int, typer.Option(min=0, help="Image width in pixels; 0 = the model's own.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs; the median is shown.")] = 3,
    hazards: Annotated[int, typer.Option(min=0, help="Number of hazard prompts.")] = 8,
    untrained: Annotated[bool, typer.Option(help="Deterministic weights: needs no download, takes the same time.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """CPU seconds and peak memory of every stage, on this machine."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model.evaluation.outputs import check_writable, write_json

    if json_file:
        check_writable(json_file, folder=False)
    result = measure_network(model, height, width, threads, repeat, hazards, untrained)
    table = Table("stage", "CPU s", "share", "peak memory above start, MB", title=result["title"])
    for row in result["stages"]:
        table.add_row(row["stage"], f"{row['cpu_s']:.3f}", f"{row['share']:.1%}", f"{row['peak_mb']:.0f}")
    table.add_section()
    table.add_row("outside the image backbone", f"{result['outside_backbone_s']:.3f}", "", "")
    table.add_row("whole image", f"{result['total_s']:.3f}", "100.0%", "")
    table.add_row("scoring's peak above the network's", "", "", f"{result['scoring_above_network_mb']:.0f}")
    Console().print(table)
    if json_file:
        write_json(json_file, result)


def measure_network(
    model: str, height: int, width: int, threads: int, repeat: int, hazards: int, untrained: bool
) -> dict[str, Any]:
    """The numbers behind the table: per stage CPU seconds (median) and peak resident memory above the loaded model, MB."""
    import numpy as np
    import torch

    from vl4ad_model.network_words import classifier_for, random_rows, street_vocabulary
    from vl4ad_model.scoring import Scorer

    torch.set_num_threads(threads)
    _, network, config = _network(model, untrained, offline=False)
    default = config.network_size or (512, 1024)
    height, width = height or default[0], width or default[1]
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    image = torch.from_numpy(noise).permute(0, 3, 1, 2)  # in memory as cameras have it
    vocabulary = street_vocabulary(hazards)
    classifier = classifier_for(network, vocabulary, random_rows(vocabulary, network.clip.embed_dim))
    pooled = classifier.needs_pooled
    scorer = Scorer()
    state: dict[str, Any] = {}

    def proposals():
        from vl4ad_model.network.proposals import MaskProposals

        heads = state["masks"]
        embeddings, valid = state["pooled"] if pooled and heads.named is None else (heads.named, None)
        return MaskProposals(
            heads.mask_logits,
            heads.query_embeddings,
            embeddings,
            valid if network.clip.is_resnet else None,
            (height, width),
            (int(state["input"].shape[-2]), int(state["input"].shape[-1])),
            image,
        )

    stages: list[tuple[str, Callable[[], Any], str]] = [
        ("normalise and pad", lambda: network.normalize(image), "input"),
        ("image backbone (CLIP)", lambda: network.clip(state["input"]), "features"),
        ("pixel decoder", lambda: network.pixel_decoder(state["features"].pyramid), "pixels"),
        ("mask decoder", lambda: network.mask_decoder(state["pixels"])[-1], "masks"),
    ]
    if pooled and not config.linear_naming:
        stages.append(
            (
                "mask-pooled CLIP branch",
                lambda: network.clip.pool(state["features"].dense, state["masks"].mask_logits),
                "pooled",
            )
        )
    stages.append(("scoring to label and anomaly map", lambda: scorer.score(proposals(), classifier), "maps"))
    times: dict[str, list[float]] = {name: [] for name, _, _ in stages}
    peaks: dict[str, float] = {name: 0.0 for name, _, _ in stages}
    start = resident_mb("VmRSS")
    with torch.inference_mode():
        for index in range(repeat + 1):
            for name, action, key in stages:
                reset_peak()
                began = time.process_time()
                state[key] = action()
                spent = time.process_time() - began
                peaks[name] = max(peaks[name], resident_mb("VmHWM") - start)
                if index:  # the first run warms up
                    times[name].append(spent)
            del state["features"], state["pixels"]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    total = sum(medians.values())
    scoring_name = stages[-1][0]
    network_peak = max(peak for name, peak in peaks.items() if name != scoring_name)
    return {
        "title": f"{model}, {height}x{width}, {threads} thread(s), median of {repeat}"
        + (", deterministic weights" if untrained else ""),
        "stages": [
            {"stage": name, "cpu_s": medians[name], "share": medians[name] / total, "peak_mb": peaks[name]} for name, _, _ in stages
        ],
        "total_s": total,
        "outside_backbone_s": total - medians["image backbone (CLIP)"],
        "scoring_above_network_mb": max(0.0, peaks[scoring_name] - network_peak),
    }


def reset_peak() -> None:
    """Forget the process's peak memory so far (Linux; elsewhere peaks are of the whole run)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MB; 0 where /proc does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
