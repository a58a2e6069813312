"""`vl4ad evaluate` and `vl4ad benchmark metrics`; `calibrate` and `prompts` are in `ordinary_commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.folders import FolderSource
from vl4ad_model.evaluation.frame_counts import METRICS
from vl4ad_model.evaluation.options import (
    Bags,
    IgnoreMaskFile,
    Images,
    ImageTopic,
    JsonFile,
    LabelTopic,
    LabelValues,
    Metrics,
    ModelOptions,
    Report,
    Strict,
    Threshold,
    Tolerance,
    Track,
    Workers,
    bag_sources,
    image_sources,
    label_values_from,
    metrics_from,
    takes_model,
    words,
)  # fmt: skip
from vl4ad_model.evaluation.ordinary_commands import calibrate, prompts_app
from vl4ad_model.evaluation.outputs import (
    check_report,
    check_writable,
    finish,
    version,
    warn,
    warn_if_untrained,
    write_json,
)
from vl4ad_model.evaluation.progress import ConsoleProgress
from vl4ad_model.evaluation.runner import Mapper, ModelSettings, Settings, evaluate, ignore_mask_at, mapper
from vl4ad_model.evaluation.sources import Source

__all__ = ["benchmark_metrics", "calibrate", "evaluate_app", "finish_live", "prompts_app"]

INTERRUPTED = 130

evaluate_app = typer.Typer(no_args_is_help=True)


@evaluate_app.command("scores")
def evaluate_scores(
    scores: Annotated[Path, typer.Option(help="Folder of score maps: .npy, .npz, 16-bit .png, .hdf5.")],
    labels: Annotated[Path, typer.Option(help="Folder of label PNGs, paired with the scores by stem.")],
    images: Annotated[Path | None, typer.Option(help="Folder of images, for the report's pictures.")] = None,
    track: Track = "anomaly",
    metrics: Metrics = "pixel,components,fishyscapes",
    threshold: Threshold = None,
    label_values: LabelValues = "auto",
    ignore_mask: IgnoreMaskFile = None,
    workers: Workers = 1,
    strict: Strict = False,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Evaluate saved score maps."""
    source = FolderSource(images, scores, labels, label_values_from(label_values))
    if source.unlabelled:
        warn(f"{source.unlabelled} score maps have no label and are left out")
    ignored = str(ignore_mask) if ignore_mask else None
    if ignored:
        ignore_mask_at(ignored)  # a mistake shows before anything is read
    settings = Settings(track, metrics_from(metrics), threshold, strict=strict, ignore_mask=ignored)
    _evaluate([source], settings, {"source": "scores", **source.describe()}, workers, json_file, report)


@evaluate_app.command("images")
@takes_model
def evaluate_images(
    images: Images,
    labels: Annotated[Path | None, typer.Option(help="Folder of label PNGs; detected automatically in known layouts.")] = None,
    track: Track = "anomaly",
    metrics: Metrics = ",".join(METRICS),
    threshold: Threshold = None,
    label_values: LabelValues = "auto",
    chosen: ModelOptions = ModelOptions(),
    strict: Strict = False,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Run a model over images with labels and evaluate what it says."""
    settings = _settings(track, metrics, threshold, chosen.settings, strict)
    sources = image_sources(
        images, labels, label_values_from(label_values), len(settings.class_names), hazard_names=settings.judges_names
    )
    for source in sources:
        if source.labels is None:
            raise EvaluationError(f"no labels were found beside {source.images}: pass --labels FOLDER")
        if source.unlabelled:
            warn(f"{source.unlabelled} images in {source.images} have no label and are left out")
    configuration = {"source": "images", "folders": [source.describe() for source in sources]}
    _evaluate(sources, settings, configuration, chosen.workers, json_file, report)


@evaluate_app.command("bag")
@takes_model
def evaluate_bag(
    bags: Bags,
    image_topic: ImageTopic = None,
    label_topic: LabelTopic = None,
    score_topic: Annotated[str | None, typer.Option(help="Evaluate recorded 32FC1 scores instead of running a model.")] = None,
    tolerance: Tolerance = 0.0,
    track: Track = "anomaly",
    metrics: Metrics = ",".join(METRICS),
    threshold: Threshold = None,
    label_values: LabelValues = "auto",
    chosen: ModelOptions = ModelOptions(),
    ray: Annotated[
        str | None, typer.Option("--ray", help="Evaluate on Ray, one task per bag: auto, ray://HOST:PORT, or local.")
    ] = None,
    strict: Strict = False,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Run a model over the images of rosbag2 recordings that carry labels, and evaluate what it says."""
    model = chosen.settings.with_absolute_paths() if ray else chosen.settings
    settings = _settings(track, metrics, threshold, model, strict)
    if score_topic:
        settings = replace(settings, model=None, hazards=())
    sources = bag_sources(
        [bag.resolve() for bag in bags] if ray else bags,
        image_topic=image_topic,
        label_topic=label_topic,
        score_topic=score_topic,
        label_values=label_values_from(label_values),
        class_count=len(settings.class_names),
        tolerance=tolerance,
        hazard_names=settings.judges_names,
    )
    configuration = {"source": "bag", "bags": [source.describe() for source in sources]}
    if ray and not (json_file or report):
        raise EvaluationError("--ray needs --json FILE or --report DIR on storage that all machines share")
    _evaluate(sources, settings, configuration, chosen.workers, json_file, report, ray)


def _settings(track: str, metrics: str, threshold: float | None, model: ModelSettings, strict: bool) -> Settings:
    """Settings of a run with a model and its words."""
    vocabulary = words(model)
    names = vocabulary.names[: vocabulary.known_count]
    return Settings(track, metrics_from(metrics), threshold, model, names, vocabulary.hazards, strict, model.ignore_mask)


def _evaluate(
    sources: Sequence[Source],
    settings: Settings,
    configuration: dict[str, Any],
    workers: int,
    json_file: Path | None,
    report: Path | None,
    ray: str | None = None,
) -> None:
    """Run, write, print; the exit status says whether the result is whole."""
    from vl4ad_model.evaluation.report import RESULTS
    from vl4ad_model.image_files import is_stream

    _check_metrics(sources, settings)
    file = None if json_file and is_stream(json_file) else json_file  # nothing can lie beside a pipe
    result_file = file or (report / RESULTS if report else None)
    if json_file is not None:
        check_writable(json_file, folder=False)
    if report is not None:
        check_report(report)
    if settings.model:
        configuration |= {"model": {key: value for key, value in asdict(settings.model).items() if key != "threads"}}
    configuration = {**configuration, "track": settings.track, "metrics": list(settings.metrics), "version": version()}
    if notice := warn_if_untrained(settings.model):
        configuration["notice"] = notice
    if settings.ignore_mask:
        configuration["ignore_mask"] = settings.ignore_mask
    if settings.threshold is not None:
        configuration["threshold"] = settings.threshold
    with ConsoleProgress() as progress:
        try:
            with ExitStack() as leftovers, _mapper(workers, ray) as map_tasks:
                finished = evaluate(
                    sources,
                    settings,
                    configuration=configuration,
                    result_file=result_file,
                    map_tasks=map_tasks,
                    per_task=None if ray else 1,
                    progress=progress,
                    leftovers=leftovers,
                )
        except KeyboardInterrupt:
            again = "; the same command goes on from there" if result_file else ""
            progress.say(f"vl4ad: interrupted after {progress.done} of {progress.total} frames{again}. No result was written.")
            sys.exit(INTERRUPTED)
    status = finish(finished, json_file, report)
    if status:
        raise typer.Exit(status)


def _check_metrics(sources: Sequence[Source], settings: Settings) -> None:
    """Refuse a run that could measure nothing of what is wanted."""
    possible = ["pixel", "components", "fishyscapes"]
    if settings.model and any(source.describe().get("label_values") == "classes" for source in sources):
        possible.append("miou")
    if settings.model and settings.hazards:
        possible.append("naming")
    if not set(settings.metrics) & set(possible):
        raise EvaluationError(
            f"--metrics {','.join(settings.metrics)} can measure nothing here, but {', '.join(possible)} can: "
            "miou needs a model and class labels, naming a model and --hazard"
        )


def _mapper(workers: int, ray: str | None) -> AbstractContextManager[Mapper]:
    if ray is None:
        return mapper(workers)
    from vl4ad_model.evaluation.ray_runner import ray_mapper

    return ray_mapper(ray)


@evaluate_app.command("compare")
def evaluate_compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of reports, or JSON files of runs.", show_default=False)],
    report: Annotated[Path, typer.Option(help="Folder for the page.")],
    name: Annotated[list[str] | None, typer.Option("--name", help="What to call each run, in order.")] = None,
) -> None:
    """Put finished runs side by side: prompts A against prompts B, model X against model Y."""
    from vl4ad_model.evaluation.report import load_run, write_report

    check_report(report)
    if name and len(name) != len(runs):
        raise EvaluationError(f"{len(name)} names for {len(runs)} runs: give --name once per run, or not at all")
    loaded = [load_run(path, name[index] if name else None) for index, path in enumerate(runs)]
    frames = {tuple(sorted(row["frame"] for row in run.document["per_frame"])) for run in loaded}
    if len(frames) > 1:
        warn("the runs cover different frames: their numbers are not comparable")
    tracks = {str(run.document["configuration"].get("track")) for run in loaded}
    if len(tracks) > 1:
        warn(f"the runs have different tracks ({', '.join(sorted(tracks))}): the numbers of components are not comparable")
    print(f"report: {write_report(report, loaded)}")


def finish_live(
    source: Source,
    settings: Settings,
    configuration: dict[str, Any],
    live: dict[str, Any],
    json_file: Path | None,
    report: Path | None,
) -> int:
    """Evaluate what a running detector answered, with its latency, drops and throughput; the exit status."""
    from vl4ad_model.evaluation.results import plain

    configuration |= {"track": settings.track, "metrics": list(settings.metrics), "version": version()}
    with ConsoleProgress() as progress, ExitStack() as leftovers:
        finished = evaluate([source], settings, configuration=configuration, progress=progress, leftovers=leftovers)
    try:
        status = finish(finished, json_file, report, {"live": plain(live)})
    finally:
        finished.work.remove()
    latency = live["latency_ms"]
    print(
        f"{live['answered']} of {live['sent']} images answered, {live['dropped']} dropped, {live['throughput_hz']:.1f} Hz; "
        f"latency p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms, p99 {latency['p99']:.0f} ms"
    )
    return status


def benchmark_metrics(
    repeat: Annotated[int, typer.Option(min=1, help="Runs; the fastest is shown.")] = 3,
    frames: Annotated[int, typer.Option(min=1, help="Frames of 1024 x 2048.")] = 20,
    json_file: JsonFile = None,
) -> None:
    """Seconds of the anomaly metrics for 20 frames of 1024 x 2048, single process."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model.evaluation.benchmark_metrics import measure

    rows = measure(repeat, frames)
    table = Table(
        "what", "seconds", "CPU seconds", "public code, 20 frames", title=f"{frames} frames of 1024 x 2048, best of {repeat}"
    )
    for row in rows:
        table.add_row(row["what"], f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", row["public"])
    Console().print(table)
    if json_file:
        write_json(json_file, rows)
