"""`vl4ad benchmark words`: what a change of words costs, and a vocabulary that was never encoded before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vl4ad_model.engines.commands import JsonFile, Model, Untrained, _network

SAMPLE = 8
"""Concepts that open_clip encodes over the whole context, for comparison: with the large model every one takes seconds."""


def benchmark_words(
    model: Model = "tiny",
    untrained: Untrained = False,
    hazard: Annotated[str, typer.Option("--hazard", help="The new hazard, alternatives joined by '|'.")] = "lost cargo|fallen load",
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs; the fastest is shown.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Seconds of encoding words that were never encoded before, without any cache."""
    from rich.console import Console
    from rich.table import Table

    name, network, config = _network(model, untrained, offline=False)
    result = measure_words(network, config, hazard, repeat)
    table = Table("what", "seconds", title=f"{name}, {result['threads']} threads, fastest of {repeat}")
    table.add_row(f"a new hazard, '{hazard}'", f"{result['hazard_s']:.3f}")
    table.add_row(f"the Cityscapes classes, {result['concepts']} concepts", f"{result['vocabulary_s']:.2f}")
    table.add_section()
    table.add_row(f"{SAMPLE} concepts, as above", f"{result['sample_s']:.3f}")
    table.add_row("the same by open_clip, padding and all", f"{result['open_clip_s']:.3f}")
    table.add_row("ratio", f"{result['open_clip_s'] / result['sample_s']:.1f}")
    table.add_row("largest difference of a unit embedding", f"{result['difference']:.1e}")
    Console().print(table)
    if json_file:
        from vl4ad_model.evaluation.outputs import write_json

        write_json(json_file, {"model": name, "hazard": hazard, **result})


def measure_words(network: Any, config: Any, hazard: str, repeat: int) -> dict[str, float]:
    """The numbers behind the table.

    Raises:
        VocabularyError: the hazard's words cannot be used.
    """
    import numpy as np
    import torch

    from vl4ad_model.network.clip import tokenizer
    from vl4ad_model.prompts import TextEncoder
    from vl4ad_model.vocabulary import Vocabulary

    tokenize, end = tokenizer(config.clip_model, config.clip_config)

    def encode(tower: Callable[..., Any], concepts: list[str]) -> tuple[float, np.ndarray]:
        text = TextEncoder(tower, tokenize, weights_key="benchmark", end_token=end)
        began = time.perf_counter()
        rows = text.encode_concepts(concepts)
        return time.perf_counter() - began, rows

    clip = network.clip
    known = Vocabulary.cityscapes()
    concepts = [concept for group in known.concept_groups for concept in group]
    new = list(known.with_hazards([hazard]).hazards[0].alternative_concepts)
    encode(clip.encode_text, new)  # the first run warms up
    times: dict[str, list[float]] = {"hazard_s": [], "sample_s": [], "open_clip_s": []}
    difference = 0.0
    for _ in range(repeat):
        times["hazard_s"].append(encode(clip.encode_text, new)[0])
        seconds, rows = encode(clip.encode_text, concepts[:SAMPLE])
        times["sample_s"].append(seconds)
        seconds, expected = encode(clip.model.encode_text, concepts[:SAMPLE])
        times["open_clip_s"].append(seconds)
        difference = max(difference, float(np.abs(rows - expected).max()))
    return {
        **{name: min(values) for name, values in times.items()},
        "vocabulary_s": encode(clip.encode_text, concepts)[0],
        "concepts": len(dict.fromkeys(concepts)),
        "difference": difference,
        "threads": torch.get_num_threads(),
    }
