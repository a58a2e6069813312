"""The options that evaluation commands share, and the sources and settings they stand for."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.folders import FolderSource, dataset_folders, expand
from vl4ad_model.evaluation.frame_counts import METRICS
from vl4ad_model.evaluation.runner import ModelSettings
from vl4ad_model.sizes import parse_size

if TYPE_CHECKING:
    from vl4ad_model.evaluation.bags import BagSource
    from vl4ad_model.vocabulary import Vocabulary

Track = Annotated[str, typer.Option(help="anomaly or obstacle: the size limits of components.")]
Metrics = Annotated[str, typer.Option(help=f"Some of {','.join(METRICS)}.")]
Threshold = Annotated[
    float | None, typer.Option(help="Score threshold for the components; default: the one with the best F1, as in the benchmark.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first frame that fails instead of skipping it.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")]
Report = Annotated[Path | None, typer.Option(help="Folder for report.html, which needs no network.")]
LabelValues = Annotated[str, typer.Option(help="anomaly (0, 1 or 2, 255), classes (0..18, 255, hazards from 100 on) or auto.")]
Model = Annotated[str, typer.Option(help="tiny, fcclip-r50, fcclip-convnext-large, or a folder.")]
Hazards = Annotated[
    list[str] | None, typer.Option("--hazard", help="A hazard in words, alternatives joined by '|'; repeat for more.")
]
VocabularyFile = Annotated[Path | None, typer.Option(help="YAML file with the known classes.")]
Classifier = Annotated[str | None, typer.Option(help="in_vocabulary, out_of_vocabulary or ensemble.")]
Scoring = Annotated[str | None, typer.Option(help="Anomaly score: max or normalized; default: what suits the model.")]
Merge = Annotated[bool, typer.Option(help="Score classes of one superclass as one.")]
Engine = Annotated[str, typer.Option(help="auto, torch, onnx, openvino or tensorrt.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16 (GPU) or bf16 (OpenVINO on a CPU that has it).")]
NetworkSize = Annotated[
    str | None, typer.Option(metavar="HxW", help="Fit images into this size, multiples of 32; default: the model's own.")
]
IgnoreMaskFile = Annotated[
    Path | None, typer.Option("--ignore-mask", help="Image that is white where nothing counts, such as the own bonnet.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download.")]
Images = Annotated[list[Path], typer.Option("--images", help="Folder of images, or a data set's root folder; repeat for more.")]
Bags = Annotated[list[Path], typer.Argument(help="rosbag2 recordings: folders, .mcap or .db3 files.", show_default=False)]
ImageTopic = Annotated[
    str | None, typer.Option(help="Image or CompressedImage; detected automatically if there is only one candidate.")
]
LabelTopic = Annotated[str | None, typer.Option(help="Image mono8 with label values, or a compressed PNG of it.")]
Tolerance = Annotated[float, typer.Option(min=0, help="Seconds the stamps of an image and its label may differ.")]


def image_sources(
    images: Sequence[Path],
    labels: Path | None,
    label_values: str,
    class_count: int,
    every: int = 1,
    *,
    hazard_names: bool = False,
) -> list[FolderSource]:
    """One source per folder; with several, frames carry their folder's name."""
    if labels is not None and len(images) > 1:
        raise EvaluationError("--labels goes with one --images folder; several folders must hold their labels themselves")
    images = [folder for given in images for folder in expand(given)]
    names = unique_names(images)
    sources = []
    for folder, name in zip(images, names, strict=True):
        pictures, found = dataset_folders(folder)
        prefix = f"{name}/" if len(images) > 1 else ""
        sources.append(FolderSource(pictures, None, labels or found, label_values, class_count, every, prefix, hazard_names))
    return sources


def bag_sources(bags: Sequence[Path], **options: Any) -> list[BagSource]:
    """One source per bag; what of it is not used is said."""
    from rich.console import Console
    from rich.text import Text

    from vl4ad_model.evaluation.bags import open_bag
    from vl4ad_model.evaluation.outputs import warn

    sources = [open_bag(bag, name=name, **options) for bag, name in zip(bags, unique_names(bags), strict=True)]
    lines = []
    with Console(stderr=True).status("") as status:
        for source in sources:
            status.update(Text(f"reading the stamps of {source.name}"))
            lines += source.left_out()  # a large bag takes minutes
    for line in lines:
        warn(line)
    return sources


def unique_names(paths: Sequence[Path]) -> list[str]:
    """What to call folders or bags: the last part of the path, or as many parts as tell them apart."""
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) != len(resolved):
        raise EvaluationError("a folder or bag is given twice")
    for depth in range(1, max((len(path.parts) for path in resolved), default=0) + 1):
        names = ["/".join([*path.parts[-depth:-1], path.stem if path.is_file() else path.name]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


@dataclass(frozen=True)
class ModelOptions:
    """The options of a command that runs a model, as one argument; `takes_model` puts them on the command line."""

    hazard: Hazards = None
    model: Model = "tiny"
    vocabulary: VocabularyFile = None
    classifier: Classifier = None
    merge: Merge = True
    scoring: Scoring = None
    engine: Engine = "auto"
    device: Device = "auto"
    precision: Precision = "fp32"
    network_size: NetworkSize = None
    offline: Offline = False
    ignore_mask: IgnoreMaskFile = None
    workers: Workers = 1

    @property
    def settings(self) -> ModelSettings:
        """What a worker loads the model with; several share the CPU's threads."""
        return ModelSettings(
            model=self.model,
            hazards=tuple(self.hazard or ()),
            vocabulary=str(self.vocabulary) if self.vocabulary else None,
            classifier=self.classifier,
            merge_classes=self.merge,
            scoring=self.scoring,
            engine=self.engine,
            device=self.device,
            precision=self.precision,
            network_size=parse_size(self.network_size) if self.network_size is not None else None,
            offline=self.offline,
            ignore_mask=str(self.ignore_mask) if self.ignore_mask else None,
            threads=max(1, (os.cpu_count() or 1) // self.workers) if self.workers > 1 else None,
        )


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Put the options of `ModelOptions` where a command has its argument `chosen`, which gets them as one."""
    ours = inspect.signature(ModelOptions, eval_str=True).parameters
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += ours.values() if name == "chosen" else [parameter]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = ModelOptions(**{name: given.pop(name) for name in ours if name in given})
        command(chosen=chosen, **given)

    # What typer makes the command line of.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def words(settings: ModelSettings) -> Vocabulary:
    """The known classes and hazards; a mistake in them, or in the ignore mask, shows here, before anything is read."""
    from vl4ad_model.evaluation.runner import ignore_mask_at
    from vl4ad_model.vocabulary import Vocabulary

    if settings.ignore_mask:
        ignore_mask_at(settings.ignore_mask)
    vocabulary = Vocabulary.from_yaml(settings.vocabulary) if settings.vocabulary else Vocabulary.cityscapes()
    return vocabulary.adding_hazards(settings.hazards)


def class_names(settings: ModelSettings) -> tuple[str, ...]:
    """Names of the known classes."""
    vocabulary = words(settings)
    return vocabulary.names[: vocabulary.known_count]


def metrics_from(text: str) -> tuple[str, ...]:
    """A list of metrics as written on the command line."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def label_values_from(kind: str) -> str:
    """Checked --label-values."""
    if kind not in ("auto", "anomaly", "classes"):
        raise EvaluationError(f"--label-values is auto, anomaly or classes, not '{kind}'")
    return kind
