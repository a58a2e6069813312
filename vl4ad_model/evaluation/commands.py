"""`vl4ad evaluate`, `calibrate`, `prompts` and `benchmark metrics`: options in, files and a short table out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vl4ad_model.errors import EvaluationError, ImageError
from vl4ad_model.evaluation.frame_counts import METRICS
from vl4ad_model.evaluation.progress import ConsoleProgress
from vl4ad_model.evaluation.runner import Settings, evaluate, mapper
from vl4ad_model.evaluation.sources import Source

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
    from vl4ad_model.evaluation.folders import FolderSource

    source = FolderSource(images, scores, labels, _label_values(label_values))
    if source.unlabelled:
        typer.echo(f"{source.unlabelled} score maps have no label and are left out", err=True)
    settings = Settings(track, _metrics(metrics), threshold, None, (), strict)
    _evaluate([source], settings, {"source": "scores", **source.describe()}, workers, json_file, report)


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
) -> None:
    """Run, write, print; the exit status says whether the result is whole."""
    from vl4ad_model.evaluation.results import to_document

    result_file = json_file or (report / "results.json" if report else None)
    for path in (json_file, report):
        if path is not None:
            _check_writable(path, folder=path is report)
    configuration = {**configuration, "track": settings.track, "metrics": list(settings.metrics), "version": _version()}
    if settings.threshold is not None:
        configuration["threshold"] = settings.threshold
    with ConsoleProgress() as progress:
        try:
            with mapper(workers) as map_tasks:
                run, work = evaluate(
                    sources,
                    settings,
                    configuration=configuration,
                    result_file=result_file,
                    map_tasks=map_tasks,
                    progress=progress,
                )
        except KeyboardInterrupt:
            again = "; the same command goes on from there" if result_file else ""
            progress.say(f"vl4ad: interrupted after {progress.done} of {progress.total} frames{again}. No result was written.")
            raise typer.Exit(INTERRUPTED) from None
    document = to_document(run)
    if json_file:
        _write_json(json_file, document)
    work.remove()
    _print_summary(document)
    if not document["pixels"]["anomaly"] and not document["pixels"]["ordinary"]:
        _warn(f"nothing counts in any of {document['frames']['evaluated']} frames: every pixel is labelled ignore")
    elif not document["pixels"]["anomaly"]:
        _warn("no pixel is labelled an anomaly: AuPRC, AuROC and AP are undefined")
    if not document["complete"]:
        frames = document["frames"]
        _warn(f"{frames['failed']} of {frames['failed'] + frames['evaluated']} frames were skipped: the result is not whole")
    if not document["complete"] or not sum(document["pixels"].values()):
        raise typer.Exit(NOT_WHOLE)


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
