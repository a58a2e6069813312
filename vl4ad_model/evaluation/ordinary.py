"""Look at ordinary driving with a model: calibrate its threshold on it, or see what prompts do there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.errors import EvaluationError, ImageError, Vl4adError
from vl4ad_model.evaluation import calibration, prompt_check
from vl4ad_model.evaluation.calibration import Calibration, FrameTail
from vl4ad_model.evaluation.prompt_check import PromptFrame
from vl4ad_model.evaluation.runner import Mapper, ModelSettings, Progress, ignored_at, segmenter_for
from vl4ad_model.evaluation.sources import Entry, Frame, FrameFailure, Source

MIN_ORDINARY_PIXELS = 1000


class OrdinaryTask(NamedTuple):
    """Some frames to look at.

    Attributes:
        alarm: for calibration (kind, alarm_pixels); None = the prompts are checked.
        prompts: for the check.
        threshold: for the check.
    """

    source: Source
    entries: tuple[Entry, ...]
    model: ModelSettings
    alarm: tuple[str, int] | None
    prompts: tuple[str, ...]
    threshold: float


def look(task: OrdinaryTask) -> list[FrameTail | tuple[PromptFrame, ...] | FrameFailure]:
    """One result per frame; a frame that shows a labelled anomaly is no ordinary driving and fails."""
    segmenter = segmenter_for(task.model)
    vocabularies = [segmenter.vocabulary.with_hazards([])]
    vocabularies += [vocabularies[0].with_hazards([prompt]) for prompt in task.prompts]
    results: list[FrameTail | tuple[PromptFrame, ...] | FrameFailure] = []
    for entry, frame in zip(task.entries, task.source.frames(task.entries), strict=True):
        try:
            rgb, counts = _ordinary(entry, frame, task.model.ignore_mask)
            if task.alarm is not None:
                scores = segmenter.segment(rgb).anomaly
                results.append(calibration.frame_tail(entry.name, scores, *task.alarm, counts))
            else:
                plain, *others = segmenter.segment_with(rgb, vocabularies)
                compared = (prompt_check.compare(entry.name, plain, each, task.threshold, counts) for each in others)
                unknown = (segmenter.words_for(vocabulary).unrelated for vocabulary in vocabularies[1:])
                results.append(tuple(one._replace(unknown=words) for one, words in zip(compared, unknown, strict=True)))
        except Vl4adError as error:
            results.append(FrameFailure(entry.name, str(error)))
    return results


def _ordinary(entry: Entry, frame: Frame | FrameFailure, ignore_mask: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The image, and (H, W) bool: the pixels that count, None = all."""
    if isinstance(frame, FrameFailure):
        raise EvaluationError(frame.reason)
    if frame.rgb is None:
        raise EvaluationError(f"{entry.name} has no image")
    if frame.labels is None and ignore_mask is None:
        return frame.rgb, None
    counts = np.ones(frame.rgb.shape[:2], bool) if frame.labels is None else frame.labels.anomaly != 255
    if ignore_mask is not None:
        counts &= ~ignored_at(ignore_mask, counts.shape)  # type: ignore[arg-type]
    if frame.labels is not None and (frame.labels.anomaly[counts] == 1).any():
        raise EvaluationError(f"{entry.name} shows a labelled anomaly, so it is not ordinary driving: skipped")
    if np.count_nonzero(counts) < MIN_ORDINARY_PIXELS:
        raise EvaluationError(f"{entry.name}: almost everything is ignored")
    return frame.rgb, counts


def look_at_all(
    sources: Sequence[Source],
    model: ModelSettings,
    map_tasks: Mapper,
    progress: Progress,
    *,
    alarm: tuple[str, int] | None = None,
    prompts: tuple[str, ...] = (),
    threshold: float = 0.5,
    enough: Callable[[int], object] = lambda frames: None,
) -> Iterator[Any]:
    """Results of all frames that can be used, in any order; the others are told to `progress`.

    Args:
        enough: told how many frames there are before the first is looked at; raises if they are too few.

    Raises:
        EvaluationError: none can be used.
    """
    tasks = [OrdinaryTask(source, (entry,), model, alarm, prompts, threshold) for source in sources for entry in source.entries()]
    enough(len(tasks))
    progress.start("looking at ordinary driving", len(tasks), 0)
    used, last = 0, ""
    for results in map_tasks(look, tasks):
        progress.advance(len(results))
        for result in results:
            if isinstance(result, FrameFailure):
                last = str(result)
                progress.failed(result)
            else:
                used += 1
                yield result
    if not used:
        raise EvaluationError(f"no frame of ordinary driving could be used: {last or 'there is none'}")


def calibrate_threshold(
    sources: Sequence[Source],
    model: ModelSettings,
    map_tasks: Mapper,
    progress: Progress,
    *,
    rate: float,
    kind: str,
    alarm_pixels: int,
) -> Calibration:
    """Calibrate on every frame of the sources."""
    if kind not in calibration.KINDS:
        raise EvaluationError(f"--per is {' or '.join(calibration.KINDS)}, not '{kind}'")
    # Too few frames are said before an hour of inference, not after it; frames that fail can still make them too few.
    enough = partial(calibration.check_rate, rate, which=" (before any is skipped)")
    tails = list(look_at_all(sources, model, map_tasks, progress, alarm=(kind, alarm_pixels), enough=enough))
    return calibration.calibrate(tails, rate, kind)


def parameters_yaml(result: Calibration, model: ModelSettings, kind: str, alarm_pixels: int, node: str) -> str:
    """A ROS 2 parameters file: the threshold, and what it was calibrated with, since it holds for nothing else."""
    import yaml

    what = (
        "the mean share of pixels above it"
        if kind == "pixel"
        else f"the share of frames with {alarm_pixels} or more pixels above it"
    )
    model = model.with_absolute_paths()  # the node may run in any folder
    parameters: dict[str, Any] = {
        "anomaly_threshold": result.threshold,
        "model": model.model,
        "merge_classes": model.merge_classes,
        # All words, so that none of another file stays under this threshold; "" is how a parameter file says "no hazard".
        "hazard_prompts": list(model.hazards) or "",
        "vocabulary_file": model.vocabulary or "",
        "classifier": model.classifier or "auto",
        "scoring": model.scoring or "auto",
        # Scores change with these, too; [0, 0] is the model's own size.
        "network_size": list(model.network_size or (0, 0)),
        "precision": model.precision,
        "ignore_mask": model.ignore_mask or "",
    }
    head = [
        f"# Calibrated on {result.frames} frames of ordinary driving: {what} is at most {result.rate:g}",
        "# on new frames that are exchangeable with them (the same places, weather, camera and speed of change).",
        f"# On those frames it is {result.measured:.6g}. The threshold holds for this model, size, precision and these words only.",
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump({node: {"ros__parameters": parameters}}, sort_keys=False, allow_unicode=True)


def write_parameters(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    from vl4ad_model.image_files import write_bytes

    try:
        write_bytes(path, text.encode())
    except ImageError as error:
        raise EvaluationError(str(error)) from None


def check_prompts(
    sources: Sequence[Source],
    model: ModelSettings,
    prompts: Sequence[str],
    class_names: Sequence[str],
    map_tasks: Mapper,
    progress: Progress,
    *,
    threshold: float,
    limit: float,
) -> dict[str, Any]:
    """What every prompt does, as a JSON document."""
    frames = list(look_at_all(sources, model, map_tasks, progress, prompts=tuple(prompts), threshold=threshold))
    columns = zip(*frames, strict=True)
    checked = [prompt_check.summarize(prompt, column, class_names, limit) for prompt, column in zip(prompts, columns, strict=True)]
    return {"frames": len(frames), "threshold": threshold, "limit": limit, "prompts": checked, "model": asdict(model)}
