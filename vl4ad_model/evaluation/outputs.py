"""What a finished evaluation writes and prints: JSON, pictures, the report, a short table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import typer

from vl4ad_model.errors import EvaluationError, ImageError, MissingDependencyError
from vl4ad_model.evaluation.runner import Finished, ModelSettings, labels_that_count

SHOWN_HAZARDS = 8
NOT_WHOLE = 3
"""Exit status of a run that ended but skipped frames, or in which nothing counted."""


def finish(finished: Finished, json_file: Path | None, report: Path | None, extra: dict[str, Any] | None = None) -> int:
    """Write everything, print the summary, clean up; the exit status."""
    from vl4ad_model.evaluation.report import RESULTS, load_run, write_report
    from vl4ad_model.evaluation.results import to_document

    document = {**to_document(finished.run), **(extra or {})}
    if report:
        document["pictures"] = _write_pictures(report, finished, document)
        write_json(report / RESULTS, document)
    if json_file:
        write_json(json_file, document)
    finished.work.remove()
    _print_summary(document)
    if report:
        print(f"report: {write_report(report, [load_run(report)])}")
    if not document["pixels"]["anomaly"] and not document["pixels"]["ordinary"]:
        warn(f"no pixel counts in any of {document['frames']['evaluated']} frames: all are labelled ignore")
    elif not document["pixels"]["anomaly"]:
        warn("no pixel is labelled an anomaly: AuPRC, AuROC, AP and best F1 are undefined")
    if not document["complete"]:
        frames = document["frames"]
        warn(f"{frames['failed']} of {frames['failed'] + frames['evaluated']} frames were skipped: the result is incomplete")
    return 0 if document["complete"] and sum(document["pixels"].values()) else NOT_WHOLE


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
        labels = labels_that_count(frame.labels, finished.run.configuration.get("ignore_mask"))
        strip = pictures.strip(frame.rgb, scores, labels, threshold=threshold, score_range=score_range, palette=palette)
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


def warn_if_untrained(settings: ModelSettings | None) -> str:
    """Say that a model has no weights; what was said, for the result."""
    from vl4ad_model.registry import untrained_notice

    notice = untrained_notice(settings.model) if settings else ""
    if notice:
        warn(f"{settings.model}: {notice}" if settings else notice)
    return notice


def warn(text: str) -> None:
    """One line on standard error."""
    typer.echo(f"vl4ad: {text}", err=True)


def version() -> str:
    """Of this package."""
    from importlib import metadata

    try:
        return metadata.version("vl4ad_ros")
    except metadata.PackageNotFoundError:
        return "source tree"


def check_writable(path: Path, *, folder: bool) -> None:
    """Refuse an output that cannot be, before hours of work are spent on it.

    Raises:
        EvaluationError: one line.
    """
    import os

    from vl4ad_model.image_files import is_stream

    if not folder and is_stream(path) and not path.is_dir():
        if not os.access(path, os.W_OK):
            raise EvaluationError(f"cannot write {path}: no permission")
        return
    if folder and path.exists() and not path.is_dir():
        raise EvaluationError(f"cannot write to {path}: it is a file, a folder is needed")
    if not folder and path.is_dir():
        raise EvaluationError(f"cannot write {path}: it is a folder, name a file")
    existing = path if folder else Path(os.path.realpath(path)).parent
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise EvaluationError(f"cannot write {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise EvaluationError(f"cannot write {path}: no permission to write in {existing}")


def check_report(folder: Path) -> None:
    """Make sure, before anything is measured, that a report can be made and written there.

    Raises:
        EvaluationError: the folder cannot be written.
        MissingDependencyError: plotly is not installed.
    """
    check_writable(folder, folder=True)
    if importlib.util.find_spec("plotly") is None:
        raise MissingDependencyError("plotly", "evaluation", "a report")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file whole or not at all."""
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
    hazards = document.get("naming", {}).get("hazards", {})
    table.add_section()
    for name in list(hazards)[:SHOWN_HAZARDS]:
        table.add_row(f"'{name}'", _said_of(hazards[name]))
    if len(hazards) > SHOWN_HAZARDS:
        table.add_row(f"... and {len(hazards) - SHOWN_HAZARDS} more", "all are in --json and --report")
    frames, stored = document["frames"], document["stored_scores"]
    table.add_section()
    table.add_row("frames", f"{frames['evaluated']}" + (f", {frames['failed']} skipped" if frames["failed"] else ""))
    if stored["float16"]:
        table.add_row("scores stored as", f"float16 in {stored['float16']} frames, evaluated as stored")
    Console().print(table)


def _said_of(hazard: dict[str, Any]) -> str:
    """How well one hazard is named, in a few words."""
    iou = "" if hazard["IoU"] is None else f"IoU {hazard['IoU']:.4f}, "
    return iou + (f"{hazard['on_ordinary']:.1%} on ordinary ground" if hazard["pixels_predicted"] else "never given to a pixel")
