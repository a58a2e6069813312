"""`vl4ad benchmark agreement`: frames in, how far every engine is from PyTorch in float32 out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl4ad_model.engines.commands import JsonFile, Model, ProgressLine, Untrained, _network, _size
from vl4ad_model.errors import EngineError

if TYPE_CHECKING:
    from vl4ad_model.engines.agreement import Agreement, Picture
    from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
    from vl4ad_model.scoring import TextClassifier


def benchmark_agreement(
    images: Annotated[list[Path] | None, typer.Option(help="Folder of images or a data set's root; repeat for more.")] = None,
    bag: Annotated[list[Path] | None, typer.Option(help="rosbag2 recording; repeat for more.")] = None,
    model: Model = "tiny",
    only: Annotated[
        str,
        typer.Option("--engines", help="On the CPU of onnx,openvino (default both), on a GPU of torch,onnx,tensorrt (torch)."),
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N, of the engines; PyTorch float32 runs on the CPU.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32; fp16, emulated on the CPU; or bf16 (openvino).")] = "fp32",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the network; default: the model's own.")] = "",
    every: Annotated[int, typer.Option(min=1, help="Folders: every n-th image. Bags: one frame every n seconds; 1 = all.")] = 1,
    hazard: Annotated[list[str] | None, typer.Option("--hazard", help="A hazard in words; repeat for more.")] = None,
    float64: Annotated[bool, typer.Option(help="Also PyTorch in float64: what rounding alone changes.")] = True,
    untrained: Untrained = False,
    json_file: JsonFile = None,
) -> None:
    """How far every engine is from PyTorch in float32, over real frames; exit status 1 where it is too far."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model import engines
    from vl4ad_model.engines.agreement import compare
    from vl4ad_model.evaluation.outputs import check_writable, write_json
    from vl4ad_model.evaluation.results import plain

    if json_file:
        check_writable(json_file, folder=False)

    if precision not in engines.PRECISIONS:
        raise EngineError(f"precision '{precision}' is unknown: use {', '.join(engines.PRECISIONS)}")
    device = engines.device_for("torch", device=device)
    only = only or ("openvino" if precision == "bf16" else "onnx,openvino" if device == "cpu" else "torch")
    name, network, config = _network(model, untrained, offline=True)
    shape = _size(size) if size else config.network_size or (512, 1024)
    classifier = _words(network, config, hazard or [], random=untrained)
    pictures = list(_pictures(images or [], bag or [], every, shape, config))
    with ProgressLine() as line:
        rows = compare(
            network, pictures, classifier, [part.strip() for part in only.split(",") if part.strip()],
            network_size=shape, device=device, precision=precision, float64=float64, model_name=name, progress=line,
        )  # fmt: skip
    columns = ("engine", "masks", "labels %", "worst frame", "anomaly", "99.9 %", "AP", "verdict")
    title = f"{name}, {precision} on {device} against PyTorch float32, {shape[0]}x{shape[1]}, {len(pictures)} frames"
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*_cells(row))
    console = Console()
    console.print(table)
    if any(row.reference_precision == row.reference_precision for row in rows):
        console.print(f"AP of PyTorch float32: {rows[0].reference_precision:.4f}", highlight=False)
    failed = [row for row in rows if row.outside and row.engine in engines.ENGINES]
    for row in failed:
        console.print(f"{row.engine}: {'; '.join(row.outside)} ({row.worst})", highlight=False, soft_wrap=True)
    if json_file:
        write_json(json_file, plain([asdict(row) for row in rows]))
    if failed:
        raise typer.Exit(1)


def _cells(row: Agreement) -> tuple[str, ...]:
    ap = f"{row.average_precision:.4f}" if row.average_precision == row.average_precision else ""
    return (
        row.engine,
        f"{row.mask_logits:.1e}",
        f"{100 * row.labels:.3f}",
        f"{100 * row.labels_worst:.3f}",
        f"{row.anomaly:.1e}",
        f"{row.anomaly_p999:.1e}",
        ap,
        "outside" if row.outside else "agrees",
    )


def _words(network: FCCLIP, config: FCCLIPConfig, hazards: Sequence[str], *, random: bool) -> TextClassifier:
    """The Cityscapes classes and some hazards; of a network without training, random directions in their place."""
    from vl4ad_model import prompts
    from vl4ad_model.network.clip import tokenizer
    from vl4ad_model.network_words import classifier_for, random_rows
    from vl4ad_model.vocabulary import Vocabulary

    vocabulary = Vocabulary.cityscapes().with_hazards(list(hazards))
    if random:
        return classifier_for(network, vocabulary, random_rows(vocabulary, network.clip.embed_dim))
    tokenize, end = tokenizer(config.clip_model, config.clip_config)
    key = network.clip.text_weights_key()
    text = prompts.TextEncoder(
        network.clip.encode_text, tokenize, weights_key=key, end_token=end, cache_folder=prompts.default_cache_folder()
    )
    rows = text.encode_concepts([concept for group in vocabulary.concept_groups for concept in group])
    return classifier_for(network, vocabulary, rows)


def _pictures(
    images: Sequence[Path], bags: Sequence[Path], every: int, shape: tuple[int, int], config: FCCLIPConfig
) -> Iterator[Picture]:
    import numpy as np

    from vl4ad_model.engines.agreement import Picture
    from vl4ad_model.evaluation.options import bag_sources, image_sources
    from vl4ad_model.evaluation.sources import FrameFailure
    from vl4ad_model.segmenter import fit_image, fit_inside

    sources: list[Any] = [*image_sources(images, None, "auto", 19, every)] if images else []
    if bags:
        sources += bag_sources(bags, need_labels=False, every=float(every) if every > 1 else 0.0, class_count=19)
    if not sources:
        raise EngineError("pass --images FOLDER or --bag BAG: what to compare on")
    red, green, blue = (round(value) for value in config.pixel_mean)
    grey = (red, green, blue)
    for source in sources:
        for frame in source.frames(source.entries()):
            if isinstance(frame, FrameFailure):
                raise EngineError(f"{frame.name} cannot be read: {frame.reason}")
            fitted = fit_inside(frame.rgb.shape[:2], shape)
            image = np.array(fit_image(frame.rgb, fitted, shape, grey))  # torch wants it writable
            truth = frame.labels.anomaly if frame.labels is not None else None
            yield Picture(frame.name, image, fitted, truth)
