"""`vl4ad calibrate` and `vl4ad prompts check`: what a model and its words do on ordinary driving."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.options import (
    ImageTopic,
    JsonFile,
    LabelTopic,
    LabelValues,
    ModelOptions,
    Tolerance,
    bag_sources,
    class_names,
    image_sources,
    label_values_from,
    takes_model,
)
from vl4ad_model.evaluation.outputs import check_writable, warn, warn_if_untrained, write_json
from vl4ad_model.evaluation.progress import ConsoleProgress
from vl4ad_model.evaluation.runner import mapper
from vl4ad_model.evaluation.sources import Source

prompts_app = typer.Typer(no_args_is_help=True)

OrdinaryBags = Annotated[list[Path] | None, typer.Option("--bag", help="rosbag2 recording of ordinary driving; repeat for more.")]
OrdinaryImages = Annotated[
    list[Path] | None, typer.Option("--images", help="Folder of images of ordinary driving; repeat for more.")
]
Every = Annotated[float, typer.Option(min=0, help="Bags: keep one frame per this many seconds. Folders: keep every n-th image.")]


def ordinary_sources(
    bags: list[Path] | None,
    images: list[Path] | None,
    image_topic: str | None,
    label_topic: str | None,
    tolerance: float,
    every: float,
    label_values: str,
    class_count: int,
) -> list[Source]:
    """Sources of ordinary driving. Labels are used where a folder or bag has them: frames with anomalies are then left out."""
    if not bags and not images:
        raise EvaluationError("pass --bag BAG or --images FOLDER: recordings of ordinary driving, without anomalies")
    kind = label_values_from(label_values)
    sources: list[Source] = []
    if images:
        if not math.isfinite(every) or every != int(every):
            raise EvaluationError(f"--every {every:g}: for folders, every n-th image is kept, so a whole number is needed")
        pictures = image_sources(images, None, kind, class_count, max(1, int(every)))
        for source in pictures:
            if source.unlabelled:
                warn(f"{source.unlabelled} images in {source.images} have no label and are left out")
        sources += pictures
    if bags:
        sources += bag_sources(
            bags,
            image_topic=image_topic,
            label_topic=label_topic,
            need_labels=False,
            use_labels=True,
            label_values=kind,
            class_count=class_count,
            tolerance=tolerance,
            every=every,
        )
    return sources


@takes_model
def calibrate(
    bag: OrdinaryBags = None,
    images: OrdinaryImages = None,
    rate: Annotated[float, typer.Option(help="The false-alarm rate that is wanted, 0 to 1.")] = 0.01,
    per: Annotated[str, typer.Option(help="pixel: share of pixels; frame: share of frames that alarm.")] = "pixel",
    alarm_pixels: Annotated[int, typer.Option(min=1, help="A frame alarms with so many pixels above the threshold.")] = 50,
    out: Annotated[Path, typer.Option(help="ROS 2 parameters file for the node.")] = Path("calibrated.yaml"),
    node: Annotated[str, typer.Option(help="Full name of the node it is for; /** = any.")] = "/**",
    image_topic: ImageTopic = None,
    label_topic: LabelTopic = None,
    tolerance: Tolerance = 0.0,
    every: Every = 0.0,
    label_values: LabelValues = "auto",
    chosen: ModelOptions = ModelOptions(),
    json_file: JsonFile = None,
) -> None:
    """The anomaly threshold for a wanted false-alarm rate, from ordinary driving without anomalies.

    The guarantee holds for any number of frames and any scores, if the frames are exchangeable with those of later driving: take
    them seconds apart (--every), from many drives.
    """
    from vl4ad_model.evaluation.ordinary import calibrate_threshold, parameters_yaml, write_parameters

    settings = chosen.settings
    names = class_names(settings)
    for path in (out, json_file):
        if path is not None:
            check_writable(path, folder=False)
    sources = ordinary_sources(bag, images, image_topic, label_topic, tolerance, every, label_values, len(names))
    warn_if_untrained(settings)
    with ConsoleProgress() as progress, mapper(chosen.workers) as map_tasks:
        result = calibrate_threshold(sources, settings, map_tasks, progress, rate=rate, kind=per, alarm_pixels=alarm_pixels)
    write_parameters(out, parameters_yaml(result, settings, per, alarm_pixels, node))
    what = "the pixels" if per == "pixel" else "the frames"
    print(f"anomaly_threshold {result.threshold:.6g}: at most {rate:.3g} ({100 * rate:.3g} %) of {what} above it; wrote {out}")
    print(f"measured on these {result.frames} frames: {100 * result.measured:.3g} %")
    words_set = ", ".join(f"'{prompt}'" for prompt in settings.hazards) or "none"
    print(f"the file also sets model, size, precision and words, for which alone the threshold holds; hazard_prompts: {words_set}")
    if per == "frame":
        print(f"with 95 % confidence the true rate is below {result.upper_bound:.4g}")
    if json_file:
        from vl4ad_model.evaluation.results import plain

        described = [source.describe() for source in sources]
        document = {**result._asdict(), "per": per, "alarm_pixels": alarm_pixels, "sources": described, "model": asdict(settings)}
        write_json(json_file, plain(document))


@prompts_app.callback()
def _prompts() -> None:
    """Check hazard prompts against ordinary driving."""


@prompts_app.command("check")
@takes_model
def prompts_check(
    chosen: ModelOptions = ModelOptions(),
    bag: OrdinaryBags = None,
    images: OrdinaryImages = None,
    threshold: Annotated[float, typer.Option(help="Score above which a pixel is a false alarm.")] = 0.5,
    limit: Annotated[float, typer.Option(help="Largest share of ordinary pixels a prompt may take.")] = 0.001,
    image_topic: ImageTopic = None,
    label_topic: LabelTopic = None,
    tolerance: Tolerance = 0.0,
    every: Every = 0.0,
    label_values: LabelValues = "auto",
    json_file: JsonFile = None,
) -> None:
    """What each hazard prompt would do where no such hazard is: pixels it takes, from which classes, in which frames."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model.evaluation.ordinary import check_prompts

    if not chosen.hazard:
        raise EvaluationError("pass --hazard WORDS, once for every prompt to check")
    for name, value in (("threshold", threshold), ("limit", limit)):
        if not math.isfinite(value):
            raise EvaluationError(f"{name} {value} is no number")
    # Wrong words are found before a model is loaded; together, so that two prompts for one thing are found too.
    names = class_names(chosen.settings)
    settings = replace(chosen.settings, hazards=())
    if json_file:
        check_writable(json_file, folder=False)
    sources = ordinary_sources(bag, images, image_topic, label_topic, tolerance, every, label_values, len(names))
    warn_if_untrained(settings)
    with ConsoleProgress() as progress, mapper(chosen.workers) as map_tasks:
        document = check_prompts(sources, settings, chosen.hazard, names, map_tasks, progress, threshold=threshold, limit=limit)
    document["sources"] = [source.describe() for source in sources]
    columns = ("prompt", "takes", "from", "false alarms", "worst frame", "verdict")
    table = Table(*columns, title=f"{document['frames']} frames of ordinary driving")
    for row in document["prompts"]:
        shares = [f"{name} {part['share_of_taken']:.0%}" for name, part in list(row["taken_from"].items())[:3]]
        worst = row["worst_frames"][0] if row["worst_frames"] else None
        table.add_row(
            row["prompt"],
            f"{row['share_taken']:.3%}",
            ", ".join(shares) or "-",
            f"{row['false_positive_rate_before']:.3%} -> {row['false_positive_rate_after']:.3%}",
            f"{worst['frame']} ({worst['share_taken']:.1%})" if worst else "-",
            "cries wolf" if row["cries_wolf"] else "not known" if row["unknown_words"] else "quiet",
        )
    Console().print(table)
    if unknown := ", ".join(row["unknown_words"] for row in document["prompts"] if row["unknown_words"]):
        print(
            f"not among the words of {settings.model}'s training, nor near them, so that what gets the name is a guess: {unknown}"
        )
    if json_file:
        from vl4ad_model.evaluation.results import plain

        write_json(json_file, plain(document))
