"""Evaluate frames from any source, in one process or several: two rounds of tasks, each a list of frames.

A task is a plain picklable value and a task function keeps no state but the loaded model, so that the same functions run in this
process, in a pool of processes, or on a cluster (`ray_runner`); the results add up to the same numbers in any order.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from vl4ad_model.errors import EvaluationError, MissingDependencyError, Vl4adError
from vl4ad_model.evaluation import frame_counts, label_files
from vl4ad_model.evaluation.component_metrics import TRACKS
from vl4ad_model.evaluation.frame_counts import METRICS, SecondCounts
from vl4ad_model.evaluation.label_files import LabelMap
from vl4ad_model.evaluation.results import Run
from vl4ad_model.evaluation.sources import Entry, Frame, FrameFailure, Source
from vl4ad_model.evaluation.work_folder import RESUMING, WorkFolder, WorkFolderError, fingerprint, open_work_folder
from vl4ad_model.ignore_mask import IgnoreMask
from vl4ad_model.vocabulary import Hazard
from vl4ad_model.worker_processes import WorkerKilledError, end_with_parent, worker_processes

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSettings:
    """Everything `Segmenter.load` needs, as plain values, and what of the images is ignored."""

    model: str = "tiny"
    hazards: tuple[str, ...] = ()
    vocabulary: str | None = None
    classifier: str | None = None
    merge_classes: bool = True
    scoring: str | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: str = "fp32"
    network_size: tuple[int, int] | None = None
    offline: bool = False
    threads: int | None = None
    ignore_mask: str | None = None

    def load(self) -> Any:
        """A Segmenter with its hazards set."""
        from vl4ad_model.segmenter import Segmenter

        settings = {name: value for name, value in asdict(self).items() if name not in ("hazards", "model", "ignore_mask")}
        segmenter = Segmenter.load(self.model, **settings)
        if self.hazards:
            segmenter.vocabulary = segmenter.vocabulary.adding_hazards(self.hazards)
        return segmenter

    def with_absolute_paths(self) -> ModelSettings:
        """The same for somebody who runs in another folder, such as the node or a machine of a cluster."""

        def absolute(path: str) -> str:
            return str(Path(os.path.expanduser(path)).resolve())

        return replace(
            self,
            model=absolute(self.model) if os.path.isdir(os.path.expanduser(self.model)) else self.model,
            vocabulary=absolute(self.vocabulary) if self.vocabulary else None,
            ignore_mask=absolute(self.ignore_mask) if self.ignore_mask else None,
        )


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
        track: "anomaly" or "obstacle", the limits of components.
        metrics: some of `METRICS`.
        threshold: for the components; None = that of F1*.
        model: None = the source has scores.
        class_names: of the known classes, for mIoU.
        hazards: what the model was asked for in words, in the order of their labels.
        strict: stop at the first frame that fails.
        ignore_mask: image file that is white where nothing counts.
    """

    track: str = "anomaly"
    metrics: tuple[str, ...] = METRICS
    threshold: float | None = None
    model: ModelSettings | None = None
    class_names: tuple[str, ...] = field(default=(), repr=False)
    hazards: tuple[Hazard, ...] = field(default=(), repr=False)
    strict: bool = False
    ignore_mask: str | None = None

    def __post_init__(self) -> None:
        if self.track not in TRACKS:
            raise EvaluationError(f"track '{self.track}' is unknown: use {' or '.join(TRACKS)}")
        odd = [name for name in self.metrics if name not in METRICS]
        if odd or not self.metrics:
            raise EvaluationError(f"metric '{', '.join(odd)}' is unknown: use some of {', '.join(METRICS)}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise EvaluationError(f"threshold {self.threshold} is no number")

    @property
    def judges_names(self) -> bool:
        """Whether it matters what the labels call a hazard."""
        return "naming" in self.metrics and bool(self.hazards)


class Task(NamedTuple):
    """Some frames of a source, to be evaluated together."""

    source: Source
    entries: tuple[Entry, ...]
    settings: Settings
    work: str


class TaskResult(NamedTuple):
    """How many frames of a task were done, and which failed."""

    done: int
    failures: tuple[FrameFailure, ...]


class Finished(NamedTuple):
    """An evaluated set: the run, its work folder (the caller removes it), and where each frame is."""

    run: Run
    work: WorkFolder
    places: dict[str, tuple[Source, Entry]]


class Mapper(Protocol):
    """Runs a function over tasks, anywhere, and gives the results in any order."""

    def __call__(self, function: Callable[[Any], T], tasks: Sequence[Any]) -> Iterator[T]: ...


_models: dict[ModelSettings, Any] = {}


def segmenter_for(settings: ModelSettings) -> Any:
    """The model of this process, loaded once."""
    if settings not in _models:
        _models.clear()
        _models[settings] = settings.load()
    return _models[settings]


@lru_cache(maxsize=1)
def ignore_mask_at(path: str) -> IgnoreMask:
    """The mask of this process, read once."""
    return IgnoreMask.read(path)


def ignored_at(path: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the mask at the size of a frame; that it is stretched is said once."""
    mask = ignore_mask_at(path)
    if complaint := mask.complaint(size):
        _say_once(complaint)
    return mask.at(size)


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    log.warning("%s", text)


def first_round(task: Task) -> TaskResult:
    """Count the frames of a task that are not counted yet."""
    work = WorkFolder(Path(task.work))
    todo = [entry for entry in task.entries if not work.has(entry)]
    if todo and task.settings.model:
        segmenter_for(task.settings.model)  # a model that cannot be loaded is no frame's fault
    failures = []
    for entry, frame in zip(todo, task.source.frames(todo), strict=True):
        try:
            if isinstance(frame, FrameFailure):
                raise EvaluationError(frame.reason)
            _count(entry, frame, task.settings, work)
        except (WorkFolderError, MissingDependencyError):
            raise
        except Vl4adError as error:
            failures.append(FrameFailure(entry.name, str(error)))
        except Exception as error:  # one frame that trips over a bug must not cost the night's run; it is named and counted
            failures.append(FrameFailure(entry.name, f"{type(error).__name__}: {error}"))
    return TaskResult(len(task.entries) - len(failures), tuple(failures))


def _count(entry: Entry, frame: Frame, settings: Settings, work: WorkFolder) -> None:
    if frame.labels is None:
        raise EvaluationError(f"{entry.name} has no labels")
    scores, predicted = frame.scores, frame.predicted
    if scores is None:
        if settings.model is None or frame.rgb is None:
            raise EvaluationError(f"{entry.name} has neither scores nor an image")
        result = segmenter_for(settings.model).segment(frame.rgb)
        scores, predicted = result.anomaly, result.labels
    labels = labels_that_count(frame.labels, settings.ignore_mask)
    count_frame(entry, scores, labels, predicted, settings, work, keep_maps=frame.scores is None)


def labels_that_count(labels: LabelMap, ignore_mask: str | None) -> LabelMap:
    """Ground truth that is ignored where the mask is white."""
    if not ignore_mask:
        return labels
    return label_files.ignoring(labels, ignored_at(ignore_mask, labels.anomaly.shape))  # type: ignore[arg-type]


def count_frame(
    entry: Entry,
    scores: np.ndarray,
    labels: LabelMap,
    predicted: np.ndarray | None,
    settings: Settings,
    work: WorkFolder,
    *,
    keep_maps: bool,
) -> None:
    """First round of one frame into the work folder; maps are kept where the second round could not read them again."""
    class_count, hazard_count = len(settings.class_names), len(settings.hazards)
    counts = frame_counts.count_first(entry.name, scores, labels, predicted, settings.metrics, class_count, hazard_count)
    if keep_maps:
        work.save_maps(entry, scores, labels)
    work.save(entry, counts)


def second_round(task: Task) -> SecondCounts:
    """Count what needs the first round's result, which lies in the work folder."""
    work, track = WorkFolder(Path(task.work)), TRACKS[task.settings.track]
    shared = work.load_shared()
    parts = []
    for entry, scores, anomaly in _maps(task, work):
        labels = LabelMap(anomaly, None)
        parts.append(frame_counts.count_second(entry.name, scores, labels, shared, track, task.settings.metrics))
    return frame_counts.merge_second(parts)


def _maps(task: Task, work: WorkFolder) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
    from_source = []
    for entry in task.entries:
        kept = work.load_maps(entry)
        if kept is None:
            from_source.append(entry)
        else:
            yield entry, *kept
    for entry, frame in zip(from_source, task.source.frames(from_source, pictures=False), strict=True):
        if isinstance(frame, FrameFailure) or frame.scores is None or frame.labels is None:
            raise EvaluationError(f"{entry.name} could be read before and cannot be read now: was it changed?")
        yield entry, frame.scores, labels_that_count(frame.labels, task.settings.ignore_mask).anomaly


def in_this_process(function: Callable[[Any], T], tasks: Sequence[Any]) -> Iterator[T]:
    """The plainest mapper."""
    return map(function, tasks)


@contextmanager
def mapper(workers: int) -> Iterator[Mapper]:
    """A mapper over `workers` processes; with one, this process does the work."""
    if workers <= 1:
        yield in_this_process
        return
    with worker_processes(workers, _start_worker, workers) as in_workers:

        def run(function: Callable[[Any], T], tasks: Sequence[Any]) -> Iterator[T]:
            try:
                yield from in_workers(function, tasks)
            except WorkerKilledError as error:
                raise EvaluationError(f"{error}; frames that are counted stay so") from None

        yield run


def _start_worker(workers: int) -> None:
    end_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


class Progress(Protocol):
    """Told of a run's progress."""

    def start(self, what: str, total: int, done: int) -> None: ...
    def advance(self, frames: int) -> None: ...
    def failed(self, failure: FrameFailure) -> None: ...
    def say(self, text: str) -> None: ...


def make_tasks(source: Source, entries: Sequence[Entry], settings: Settings, work: WorkFolder, per_task: int | None) -> list[Task]:
    """Split frames into tasks, keeping their order; None = one task for the whole source."""
    per_task = per_task or max(1, len(entries))
    starts = range(0, len(entries), per_task)
    return [Task(source, tuple(entries[start : start + per_task]), settings, str(work.path.resolve())) for start in starts]


def evaluate(
    sources: Sequence[Source],
    settings: Settings,
    *,
    configuration: dict[str, Any],
    result_file: Path | None = None,
    map_tasks: Mapper = in_this_process,
    per_task: int | None = 1,
    progress: Progress,
    leftovers: ExitStack,
) -> Finished:
    """Evaluate every frame of the sources.

    Args:
        sources: frames' names must differ between them.
        settings: how.
        configuration: plain values, for the report and the fingerprint.
        result_file: where the result will be written; an interrupted run leaves its work beside it. None = cannot be resumed.
        map_tasks: who does the work.
        per_task: frames per task; None = all of a source.
        progress: is told.
        leftovers: to be closed once no worker writes any more; then what nobody can go on from is removed.

    Returns:
        the run, and the work folder, which the caller removes once the result is written.

    Raises:
        EvaluationError: a source is not usable, no frame could be evaluated, or (strict) a frame failed.
    """
    listed = [(source, source.entries()) for source in sources]
    entries = [entry for _, of_source in listed for entry in of_source]
    if not entries:
        raise EvaluationError("there is no frame to evaluate")
    twice = {entry.name for entry in entries}
    if len(twice) != len(entries):
        raise EvaluationError("two frames have the same name: give each bag or folder once")
    work, word = open_work_folder(result_file, fingerprint({**configuration, "settings": _deciding(settings)}, entries))
    finished = False

    def remove() -> None:
        if not finished and (result_file is None or not any(map(work.has, entries))):
            work.remove()

    leftovers.callback(remove)
    tasks = [task for source, some in listed for task in make_tasks(source, some, settings, work, per_task)]
    if word == RESUMING:
        work.forget_damaged(entries, maps=settings.model is not None)
    if word:
        progress.say(f"{word} ({sum(map(work.has, entries))} of {len(entries)} frames are counted)")
    failures = _first(tasks, work, settings, map_tasks, progress)
    failed = {failure.name for failure in failures}
    good = [entry for entry in entries if entry.name not in failed]
    if not good:
        raise EvaluationError(f"no frame could be evaluated ({len(failures)} failed): {failures[0]}")
    counts, anomalous = frame_counts.gather((entry.name, work.load(entry)) for entry in good)
    shared = frame_counts.share(counts.values(), anomalous, settings.threshold)
    kept = [task._replace(entries=tuple(e for e in task.entries if e.name not in failed)) for task in tasks]
    work.save_shared(shared)
    second = _second([task for task in kept if task.entries], map_tasks, progress)
    finished = True
    run = Run(counts, anomalous, second, shared, failures, settings.metrics, settings.class_names, settings.hazards, configuration)
    places = {entry.name: (source, entry) for source, some in listed for entry in some if entry.name not in failed}
    return Finished(run, work, places)


def _deciding(settings: Settings) -> dict[str, Any]:
    """What of the settings decides numbers, with the contents of the files that they name."""
    decides = asdict(settings)
    del decides["strict"]
    if settings.ignore_mask:
        decides["ignored"] = hashlib.sha256(Path(os.path.expanduser(settings.ignore_mask)).read_bytes()).hexdigest()
    if settings.model is not None:
        del decides["model"]["threads"]
        if settings.model.vocabulary:
            decides["words"] = Path(os.path.expanduser(settings.model.vocabulary)).read_text("utf-8", "replace")
        folder = _weights_folder(settings.model.model)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        decides["weights"] = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return decides


def _weights_folder(model: str) -> Path:
    """Where the weights of a model lie, by its name or its folder."""
    from vl4ad_model.registry import MODELS, cache_folder

    info = MODELS.get(model)
    return Path(os.path.expanduser(model)) if info is None else info.folder or cache_folder() / info.name


def _first(
    tasks: Sequence[Task], work: WorkFolder, settings: Settings, map_tasks: Mapper, progress: Progress
) -> list[FrameFailure]:
    todo = [task for task in tasks if not all(map(work.has, task.entries))]
    total = sum(len(task.entries) for task in tasks)
    progress.start("scoring frames" if settings.model else "reading frames", total, total - sum(len(t.entries) for t in todo))
    failures: list[FrameFailure] = []
    for result in map_tasks(first_round, todo):
        progress.advance(result.done + len(result.failures))
        for failure in result.failures:
            if settings.strict:
                raise EvaluationError(str(failure))
            progress.failed(failure)
        failures += result.failures
    return sorted(failures)


def _second(tasks: Sequence[Task], map_tasks: Mapper, progress: Progress) -> SecondCounts:
    progress.start("matching components", sum(len(task.entries) for task in tasks), 0)
    return frame_counts.merge_second(_watched(map_tasks(second_round, tasks), progress))


def _watched(parts: Iterable[SecondCounts], progress: Progress) -> Iterator[SecondCounts]:
    for part in parts:
        progress.advance(len(part.frames))
        yield part
