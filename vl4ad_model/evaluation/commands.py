"""`vl4ad evaluate`, `calibrate`, `prompts` and `benchmark metrics`: options in, files and a short table out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl4ad_model.errors import EvaluationError, ImageError
from vl4ad_model.evaluation.folders import FolderSource
from vl4ad_model.evaluation.frame_counts import METRICS
from vl4ad_model.evaluation.progress import ConsoleProgress
from vl4ad_model.evaluation.runner import Finished, Mapper, ModelSettings, Settings, evaluate, mapper
from vl4ad_model.evaluation.sources import Source

if TYPE_CHECKING:
    from vl4ad_model.evaluation.bags import BagSource

NOT_WHOLE = 3
"""Exit status of a run that ended but skipped frames, or in which nothing counted."""
INTERRUPTED = 130

evaluate_app = typer.Typer(no_args_is_help=True)
prompts_app = typer.Typer(no_args_is_help=True)

Track = Annotated[str, typer.Option(help="anomaly or obstacle: the size limits of components.")]
Metrics = Annotated[str, typer.Option(help=f"Some of {','.join(METRICS)}.")]
Threshold = Annotated[float | None, typer.Option(help="For the components; without it that of the best F1, as the benchmark does.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first frame that fails instead of skipping it.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")]
Report = Annotated[Path | None, typer.Option(help="Folder for report.html, which needs no network.")]
LabelValues = Annotated[str, typer.Option(help="anomaly (0, 1 or 2, 255), classes (0..18, 255, hazards from 100 on) or auto.")]


@evaluate_app.command("scores")
def evaluate_scores(
    scores: Annotated[Path, typer.Option(help="Folder of score maps: .npy, .npz, 16-bit .png, .hdf5.")],
    labels: Annotated[Path, typer.Option(help="Folder of label PNGs, paired with the scores by stem.")],
    images: Annotated[Path | None, typer.Option(help="Folder of images, for the report's pictures.")] = None,
    track: Track = "anomaly",
    metrics: Metrics = "pixel,components,fishyscapes",
    threshold: Threshold = None,
    label_values: LabelValues = "auto",
    workers: Workers = 1,
    strict: Strict = False,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Evaluate saved score maps."""
    source = FolderSource(images, scores, labels, _label_values(label_values))
    if source.unlabelled:
        _warn(f"{source.unlabelled} score maps have no label and are left out")
    settings = Settings(track, _metrics(metrics), threshold, None, (), strict)
    _evaluate([source], settings, {"source": "scores", **source.describe()}, workers, json_file, report)


Model = Annotated[str, typer.Option(help="tiny, fcclip-r50, fcclip-convnext-large, or a folder.")]
Hazards = Annotated[
    list[str] | None, typer.Option("--hazard", help="A hazard in words, alternatives joined by '|'; repeat for more.")
]
VocabularyFile = Annotated[Path | None, typer.Option(help="YAML file with the known classes.")]
Classifier = Annotated[str | None, typer.Option(help="in_vocabulary, out_of_vocabulary or ensemble.")]
Merge = Annotated[bool, typer.Option(help="Score classes of one superclass as one.")]
Engine = Annotated[str, typer.Option(help="auto, torch, onnx, openvino or tensorrt.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="fp32 or fp16.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never download.")]
Images = Annotated[list[Path], typer.Option("--images", help="Folder of images, or a data set's root folder; repeat for more.")]
Bags = Annotated[list[Path], typer.Argument(help="rosbag2 recordings: folders, .mcap or .db3 files.", show_default=False)]
ImageTopic = Annotated[str | None, typer.Option(help="Image or CompressedImage; found by itself where only one can be meant.")]
LabelTopic = Annotated[str | None, typer.Option(help="Image mono8 with label values, or a compressed PNG of it.")]
Tolerance = Annotated[float, typer.Option(min=0, help="Seconds an image's and its label's stamps may differ.")]


@evaluate_app.command("images")
def evaluate_images(
    images: Images,
    labels: Annotated[Path | None, typer.Option(help="Folder of label PNGs; found by itself in known layouts.")] = None,
    track: Track = "anomaly",
    metrics: Metrics = ",".join(METRICS),
    threshold: Threshold = None,
    label_values: LabelValues = "auto",
    hazard: Hazards = None,
    model: Model = "tiny",
    vocabulary: VocabularyFile = None,
    classifier: Classifier = None,
    merge: Merge = True,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "fp32",
    offline: Offline = False,
    workers: Workers = 1,
    strict: Strict = False,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Run a model over images with labels and evaluate what it says."""
    model_settings = _model(model, hazard, vocabulary, classifier, merge, engine, device, precision, offline, workers)
    names = class_names(model_settings)
    sources = image_sources(images, labels, _label_values(label_values), len(names))
    for source in sources:
        if source.labels is None:
            raise EvaluationError(f"no labels were found beside {source.images}: say --labels FOLDER")
        if source.unlabelled:
            _warn(f"{source.unlabelled} images in {source.images} have no label and are left out")
    settings = Settings(track, _metrics(metrics), threshold, model_settings, names, strict)
    configuration = {"source": "images", "folders": [source.describe() for source in sources]}
    _evaluate(sources, settings, configuration, workers, json_file, report)


@evaluate_app.command("bag")
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
    hazard: Hazards = None,
    model: Model = "tiny",
    vocabulary: VocabularyFile = None,
    classifier: Classifier = None,
    merge: Merge = True,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "fp32",
    offline: Offline = False,
    workers: Workers = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Evaluate on Ray, one task per bag: auto, ray://HOST:PORT, or local.")
    ] = None,
    strict: Strict = False,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Run a model over the images of rosbag2 recordings that carry labels, and evaluate what it says."""
    model_settings = _model(model, hazard, vocabulary, classifier, merge, engine, device, precision, offline, workers)
    names = class_names(model_settings)
    sources = bag_sources(
        [bag.resolve() for bag in bags] if ray else bags,
        image_topic=image_topic,
        label_topic=label_topic,
        score_topic=score_topic,
        label_values=_label_values(label_values),
        class_count=len(names),
        tolerance=tolerance,
    )
    settings = Settings(track, _metrics(metrics), threshold, None if score_topic else model_settings, names, strict)
    configuration = {"source": "bag", "bags": [source.describe() for source in sources]}
    if ray and not (json_file or report):
        raise EvaluationError("--ray needs --json FILE or --report DIR on storage that all machines share")
    _evaluate(sources, settings, configuration, workers, json_file, report, ray)


def image_sources(
    images: Sequence[Path], labels: Path | None, label_values: str, class_count: int, every: int = 1
) -> list[FolderSource]:
    """One source per folder; with several, frames carry their folder's name."""
    from vl4ad_model.evaluation.folders import dataset_folders

    if labels is not None and len(images) > 1:
        raise EvaluationError("--labels goes with one --images folder; several folders must hold their labels themselves")
    names = unique_names(images)
    sources = []
    for folder, name in zip(images, names, strict=True):
        pictures, found = dataset_folders(folder)
        prefix = f"{name}/" if len(images) > 1 else ""
        sources.append(FolderSource(pictures, None, labels or found, label_values, class_count, every, prefix))
    return sources


def bag_sources(bags: Sequence[Path], **options: Any) -> list[BagSource]:
    """One source per bag."""
    from vl4ad_model.evaluation.bags import open_bag

    return [open_bag(bag, name=name, **options) for bag, name in zip(bags, unique_names(bags), strict=True)]


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


def _model(
    model: str,
    hazard: list[str] | None,
    vocabulary: Path | None,
    classifier: str | None,
    merge: bool,
    engine: str,
    device: str,
    precision: str,
    offline: bool,
    workers: int = 1,
) -> ModelSettings:
    import os

    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    path = str(vocabulary) if vocabulary else None
    return ModelSettings(model, tuple(hazard or ()), path, classifier, merge, engine, device, precision, offline, threads)


def class_names(settings: ModelSettings) -> tuple[str, ...]:
    """Names of the known classes; a mistake in the words shows here, before anything is read."""
    from vl4ad_model.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_yaml(settings.vocabulary) if settings.vocabulary else Vocabulary.cityscapes()
    if settings.hazards:
        vocabulary = vocabulary.with_hazards(settings.hazards)
    return vocabulary.names[: vocabulary.known_count]


def _metrics(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _label_values(kind: str) -> str:
    if kind not in ("auto", "anomaly", "classes"):
        raise EvaluationError(f"--label-values is auto, anomaly or classes, not '{kind}'")
    return kind


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

    result_file = json_file or (report / RESULTS if report else None)
    for path in (json_file, report):
        if path is not None:
            _check_writable(path, folder=path is report)
    if settings.model:
        configuration |= {"model": {key: value for key, value in asdict(settings.model).items() if key != "threads"}}
    configuration = {**configuration, "track": settings.track, "metrics": list(settings.metrics), "version": _version()}
    if settings.threshold is not None:
        configuration["threshold"] = settings.threshold
    with ConsoleProgress() as progress:
        try:
            with _mapper(workers, ray) as map_tasks:
                finished = evaluate(
                    sources,
                    settings,
                    configuration=configuration,
                    result_file=result_file,
                    map_tasks=map_tasks,
                    per_task=None if ray else 1,
                    progress=progress,
                )
        except KeyboardInterrupt:
            again = "; the same command goes on from there" if result_file else ""
            progress.say(f"vl4ad: interrupted after {progress.done} of {progress.total} frames{again}. No result was written.")
            raise typer.Exit(INTERRUPTED) from None
    status = _finish(finished, json_file, report)
    if status:
        raise typer.Exit(status)


def _mapper(workers: int, ray: str | None) -> AbstractContextManager[Mapper]:
    if ray is None:
        return mapper(workers)
    from vl4ad_model.evaluation.ray_runner import ray_mapper

    return ray_mapper(ray)


def _finish(finished: Finished, json_file: Path | None, report: Path | None, extra: dict[str, Any] | None = None) -> int:
    """Write everything, print the summary, clean up; the exit status."""
    from vl4ad_model.evaluation.report import RESULTS, load_run, write_report
    from vl4ad_model.evaluation.results import to_document

    document = {**to_document(finished.run), **(extra or {})}
    if report:
        document["pictures"] = _write_pictures(report, finished, document)
        _write_json(report / RESULTS, document)
    if json_file:
        _write_json(json_file, document)
    finished.work.remove()
    _print_summary(document)
    if report:
        print(f"report: {write_report(report, [load_run(report)])}")
    if not document["pixels"]["anomaly"] and not document["pixels"]["ordinary"]:
        _warn(f"nothing counts in any of {document['frames']['evaluated']} frames: every pixel is labelled ignore")
    elif not document["pixels"]["anomaly"]:
        _warn("no pixel is labelled an anomaly: AuPRC, AuROC and AP are undefined")
    if not document["complete"]:
        frames = document["frames"]
        _warn(f"{frames['failed']} of {frames['failed'] + frames['evaluated']} frames were skipped: the result is not whole")
    return 0 if document["complete"] and sum(document["pixels"].values()) else NOT_WHOLE


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

    configuration |= {"track": settings.track, "metrics": list(settings.metrics), "version": _version()}
    with ConsoleProgress() as progress:
        finished = evaluate([source], settings, configuration=configuration, progress=progress)
    status = _finish(finished, json_file, report, {"live": plain(live)})
    latency = live["latency_ms"]
    print(
        f"{live['answered']} of {live['sent']} images answered, {live['dropped']} dropped, {live['throughput_hz']:.1f} Hz; "
        f"latency p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms, p99 {latency['p99']:.0f} ms"
    )
    return status


def _write_pictures(report: Path, finished: Finished, document: dict[str, Any]) -> list[dict[str, str]]:
    """Strips of the chosen frames into the report's folder; what they are, for the document."""
    from vl4ad_model.evaluation import pictures
    from vl4ad_model.evaluation.report import PICTURES
    from vl4ad_model.evaluation.sources import FrameFailure
    from vl4ad_model.image_files import write_rgb
    from vl4ad_model.vocabulary import Vocabulary

    settings = finished.run.configuration.get("model") or {}
    path = settings.get("vocabulary")
    palette = (Vocabulary.from_yaml(path) if path else Vocabulary.cityscapes()).color_table()
    score_range = _score_range(document["histogram"])
    threshold = document.get("component_threshold", document.get("best_f1_threshold"))
    written = []
    for name, why in pictures.choose(document["per_frame"]):
        source, entry = finished.places[name]
        frame = next(iter(source.frames([entry])))
        if isinstance(frame, FrameFailure) or frame.labels is None:
            continue
        kept = finished.work.load_maps(entry)
        scores = kept[0] if kept else frame.scores
        if scores is None:
            continue
        strip = pictures.strip(frame.rgb, scores, frame.labels, threshold=threshold, score_range=score_range, palette=palette)
        file = pictures.file_name(name)
        try:
            write_rgb(report / PICTURES / file, strip)
        except ImageError as error:
            raise EvaluationError(str(error)) from None
        written.append({"frame": name, "why": why, "file": f"{PICTURES}/{file}"})
    return written


def _score_range(histogram: dict[str, Any]) -> tuple[float, float]:
    """Scores that pictures show as darkest and brightest: all but the outermost 0.1 % of ordinary pixels, all anomalous ones."""
    import numpy as np

    edges = np.array(histogram["edges"] or [0, 1], float)
    ordinary, anomaly = (np.array(histogram[kind] or [1], float) for kind in ("ordinary", "anomaly"))
    if not histogram["edges"]:
        return 0.0, 1.0
    share = np.cumsum(ordinary) / max(ordinary.sum(), 1)
    low = edges[int(np.searchsorted(share, 0.001))] if ordinary.sum() else edges[0]
    tops = [edges[min(int(np.searchsorted(share, 0.999)) + 1, edges.size - 1)]] if ordinary.sum() else []
    if anomaly.any():
        tops.append(edges[int(np.flatnonzero(anomaly)[-1]) + 1])
    return float(low), float(max(tops, default=edges[-1]))


@evaluate_app.command("compare")
def evaluate_compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of reports, or JSON files of runs.", show_default=False)],
    report: Annotated[Path, typer.Option(help="Folder for the page.")],
    name: Annotated[list[str] | None, typer.Option("--name", help="What to call each run, in order.")] = None,
) -> None:
    """Put finished runs side by side: prompts A against prompts B, model X against model Y."""
    from vl4ad_model.evaluation.report import load_run, write_report

    _check_writable(report, folder=True)
    if name and len(name) != len(runs):
        raise EvaluationError(f"{len(name)} names for {len(runs)} runs: give --name once per run, or not at all")
    loaded = [load_run(path, name[index] if name else None) for index, path in enumerate(runs)]
    frames = {tuple(sorted(row["frame"] for row in run.document["per_frame"])) for run in loaded}
    if len(frames) > 1:
        _warn("the runs are over different frames: their numbers do not compare")
    print(f"report: {write_report(report, loaded)}")


def _warn(text: str) -> None:
    typer.echo(f"vl4ad: {text}", err=True)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("vl4ad_ros")
    except metadata.PackageNotFoundError:
        return "source tree"


def _check_writable(path: Path, *, folder: bool) -> None:
    """Refuse an output that cannot be, before hours of work are spent on it.

    Raises:
        EvaluationError: one line.
    """
    import os

    if folder and path.exists() and not path.is_dir():
        raise EvaluationError(f"cannot write to {path}: it is a file, a folder is needed")
    if not folder and path.is_dir():
        raise EvaluationError(f"cannot write {path}: it is a folder, name a file")
    existing = path if folder else path.parent
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise EvaluationError(f"cannot write {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise EvaluationError(f"cannot write {path}: no permission to write in {existing}")


def _write_json(path: Path, document: Any) -> None:
    from vl4ad_model.image_files import write_bytes

    try:
        write_bytes(path, json.dumps(document, indent=1, allow_nan=False).encode())
    except ImageError as error:
        raise EvaluationError(str(error)) from None


def _print_summary(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", show_header=False)
    names = ["AuPRC", "FPR95", "AuROC", "best_F1", "best_f1_threshold", "sIoU_gt_mean", "PPV_mean", "F1_mean", "mIoU"]
    rows = [(name, document[name]) for name in names if name in document]
    rows += [(f"Fishyscapes {name}", value) for name, value in document.get("fishyscapes", {}).items()]
    for name, value in rows:
        table.add_row(name, "undefined" if value is None else f"{value:.4f}")
    frames, stored = document["frames"], document["stored_scores"]
    table.add_section()
    table.add_row("frames", f"{frames['evaluated']}" + (f", {frames['failed']} skipped" if frames["failed"] else ""))
    if stored["float16"]:
        table.add_row("scores stored as", f"float16 in {stored['float16']} frames, evaluated as stored")
    Console().print(table)


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
        _write_json(json_file, rows)


OrdinaryBags = Annotated[list[Path] | None, typer.Option("--bag", help="rosbag2 recording of ordinary driving; repeat for more.")]
OrdinaryImages = Annotated[
    list[Path] | None, typer.Option("--images", help="Folder of images of ordinary driving; repeat for more.")
]
Every = Annotated[float, typer.Option(min=0, help="Of bags, keep one frame in so many seconds; of folders, each n-th.")]


def _ordinary_sources(
    bags: list[Path] | None, images: list[Path] | None, image_topic: str | None, every: float, class_count: int
) -> list[Source]:
    """Sources of ordinary driving. Labels are used where a folder holds them: frames with anomalies are then left out."""
    if not bags and not images:
        raise EvaluationError("say --bag BAG or --images FOLDER: recordings of ordinary driving, without anomalies")
    sources: list[Source] = []
    if images:
        if every != int(every):
            raise EvaluationError(f"--every {every:g}: of folders each n-th image is kept, a whole number is needed")
        sources += image_sources(images, None, "auto", class_count, max(1, int(every)))
    if bags:
        sources += bag_sources(bags, image_topic=image_topic, need_labels=False, every=every, class_count=class_count)
    return sources


def calibrate(
    bag: OrdinaryBags = None,
    images: OrdinaryImages = None,
    rate: Annotated[float, typer.Option(help="The false-alarm rate that is wanted, 0 to 1.")] = 0.01,
    per: Annotated[str, typer.Option(help="pixel: share of pixels; frame: share of frames that alarm.")] = "pixel",
    alarm_pixels: Annotated[int, typer.Option(min=1, help="A frame alarms with so many pixels above the threshold.")] = 50,
    out: Annotated[Path, typer.Option(help="ROS 2 parameters file for the node.")] = Path("calibrated.yaml"),
    node: Annotated[str, typer.Option(help="The node's full name.")] = "/vl4ad_detector",
    image_topic: ImageTopic = None,
    every: Every = 0.0,
    hazard: Hazards = None,
    model: Model = "tiny",
    vocabulary: VocabularyFile = None,
    classifier: Classifier = None,
    merge: Merge = True,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "fp32",
    offline: Offline = False,
    workers: Workers = 1,
    json_file: JsonFile = None,
) -> None:
    """The anomaly threshold for a wanted false-alarm rate, from ordinary driving without anomalies.

    The guarantee holds for any number of frames and any scores, if the frames are exchangeable with those of later driving: take
    them seconds apart (--every), from many drives.
    """
    from vl4ad_model.evaluation.ordinary_commands import calibrate_threshold, parameters_yaml, write_parameters

    settings = _model(model, hazard, vocabulary, classifier, merge, engine, device, precision, offline, workers)
    names = class_names(settings)
    for path in (out, json_file):
        if path is not None:
            _check_writable(path, folder=False)
    sources = _ordinary_sources(bag, images, image_topic, every, len(names))
    with ConsoleProgress() as progress, mapper(workers) as map_tasks:
        result = calibrate_threshold(sources, settings, map_tasks, progress, rate=rate, kind=per, alarm_pixels=alarm_pixels)
    write_parameters(out, parameters_yaml(result, settings, per, alarm_pixels, node))
    print(f"anomaly_threshold {result.threshold:.6g}: at most {rate:g} per {per}, from {result.frames} frames; wrote {out}")
    if per == "frame":
        print(f"with 95 % confidence the true rate is below {result.upper_bound:.4g}")
    if json_file:
        from vl4ad_model.evaluation.results import plain

        described = [source.describe() for source in sources]
        document = {**result._asdict(), "per": per, "alarm_pixels": alarm_pixels, "sources": described, "model": asdict(settings)}
        _write_json(json_file, plain(document))


@prompts_app.callback()
def _prompts() -> None:
    """Check hazard prompts against ordinary driving."""


@prompts_app.command("check")
def prompts_check(
    hazard: Hazards = None,
    bag: OrdinaryBags = None,
    images: OrdinaryImages = None,
    threshold: Annotated[float, typer.Option(help="Of the anomaly mask, for the false alarms.")] = 0.5,
    limit: Annotated[float, typer.Option(help="A prompt that takes more of ordinary pixels than this cries wolf.")] = 0.001,
    image_topic: ImageTopic = None,
    every: Every = 0.0,
    model: Model = "tiny",
    vocabulary: VocabularyFile = None,
    classifier: Classifier = None,
    merge: Merge = True,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "fp32",
    offline: Offline = False,
    workers: Workers = 1,
    json_file: JsonFile = None,
) -> None:
    """What each hazard prompt would do where no such hazard is: pixels it takes, from which classes, in which frames."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model.evaluation.ordinary_commands import check_prompts

    if not hazard:
        raise EvaluationError("say --hazard WORDS, once for every prompt to check")
    # Wrong words are found before a model is loaded; together, so that two prompts for one thing are found too.
    names = class_names(_model(model, hazard, vocabulary, classifier, merge, engine, device, precision, offline))
    settings = _model(model, None, vocabulary, classifier, merge, engine, device, precision, offline, workers)
    if json_file:
        _check_writable(json_file, folder=False)
    sources = _ordinary_sources(bag, images, image_topic, every, len(names))
    with ConsoleProgress() as progress, mapper(workers) as map_tasks:
        document = check_prompts(sources, settings, hazard, names, map_tasks, progress, threshold=threshold, limit=limit)
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
            "cries wolf" if row["cries_wolf"] else "quiet",
        )
    Console().print(table)
    if json_file:
        from vl4ad_model.evaluation.results import plain

        _write_json(json_file, plain(document))
