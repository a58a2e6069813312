"""Segmenter, the one object that users hold: an image and a vocabulary in, a class map and an anomaly map out."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.choices import CLASSIFIERS, SCORINGS
from vl4ad_model.errors import EngineError, Vl4adError, VocabularyError
from vl4ad_model.image_files import MAX_SIDE, check_rgb
from vl4ad_model.out_of_memory import is_out_of_memory
from vl4ad_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vl4ad_model.engines.base import BuildProgress, Engine, ProgressCallback
    from vl4ad_model.network.fcclip import FCCLIP
    from vl4ad_model.prompts import TextEncoder
    from vl4ad_model.scoring import Scorer, TextClassifier


@dataclass(frozen=True)
class Segmentation:
    """What was seen in one image.

    Attributes:
        labels: (H, W) uint8, ids of the vocabulary: known classes 0..K-1, hazards K..K+Q-1, 255 = void.
        anomaly: (H, W) float32, higher = more surprising; about 0..1 but never clipped (the normalized score is inside).
        vocabulary: the words it was scored with.
        vocabulary_version: counts changes of vocabulary, classifier, merging and score.
        seconds: wall time of fitting the image, the network, scoring, and resizing the maps (on a GPU the network's time
            shows in scoring, which waits for it); of a batch, the whole batch's.
    """

    labels: np.ndarray
    anomaly: np.ndarray
    vocabulary: Vocabulary
    vocabulary_version: int
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """Everything about scoring that a person can change, swapped as one: no image ever sees half a change."""

    vocabulary: Vocabulary
    classifier_name: str
    merge_classes: bool
    scoring: str
    version: int
    classifier: TextClassifier

    @property
    def related(self) -> str:
        """Words that training did not use and what they are also read as; empty where there are none."""
        return ", ".join(f"'{word}' (read as '{trained}', too)" for word, trained in self.classifier.related if trained)

    @property
    def unrelated(self) -> str:
        """Words that training did not use, nor any near them; empty where there are none."""
        return ", ".join(f"'{word}'" for word, trained in self.classifier.related if not trained)


class Segmenter:
    """A model, an engine and a vocabulary. Make one with `Segmenter.load`.

    Any thread may call anything: images go through one after another, or as many at once as `parallel` says, and a change of
    vocabulary in the middle of one is atomic and takes effect from the next.
    """

    def __init__(
        self,
        network: FCCLIP,
        engine: Engine,
        text_encoder: TextEncoder,
        vocabulary: Vocabulary,
        *,
        model_name: str = "custom",
        notice: str = "",
        classifier: str | None = None,
        merge_classes: bool = True,
        scoring: str | None = None,
        parallel: int = 1,
        first_version: int = 1,
    ) -> None:
        from vl4ad_model.scoring import Scorer

        _check_parallel(parallel)
        self._network, self._engine, self._text = network, engine, text_encoder
        self.model_name, self.notice = model_name, notice
        self._change = threading.Lock()
        self._scorers = [Scorer() for _ in range(parallel)]  # each keeps buffers
        self._idle = queue.LifoQueue[Scorer]()
        for scorer in self._scorers:
            self._idle.put(scorer)
        config = network.config
        self._words = self._prepare(
            vocabulary, classifier or config.classifier, merge_classes, scoring or config.scoring, version=first_version
        )

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path = "tiny",
        *,
        device: str = "auto",
        engine: str = "auto",
        precision: str = "fp32",
        network_size: tuple[int, int] | None = None,
        vocabulary: Vocabulary | str | Path | None = None,
        classifier: str | None = None,
        merge_classes: bool = True,
        scoring: str | None = None,
        offline: bool = False,
        threads: int | None = None,
        background: bool = False,
        parallel: int = 1,
        first_version: int = 1,
        progress: ProgressCallback | None = None,
        words_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Segmenter:
        """Load a model.

        Args:
            name_or_folder: tiny, fcclip-r50, fcclip-convnext-large, or a folder with a config.json.
            device: auto, cpu, cuda or cuda:N.
            engine: auto or one of `vl4ad_model.engines.ENGINES`.
            precision: fp32, fp16 (CUDA) or bf16 (OpenVINO, on CPUs that have it).
            network_size: (height, width) the network works at; images are scaled to fit, keeping their shape, and padded.
                None = the model's own; where that is None too, every image at its own size.
            vocabulary: or a path to its YAML; None = Cityscapes.
            classifier: in_vocabulary, out_of_vocabulary or ensemble; None = what the checkpoint was made for.
            merge_classes: score classes of one superclass as one.
            scoring: the anomaly score, max (VL4AD's) or normalized; None = what suits the checkpoint.
            offline: never download.
            threads: CPU threads of the network; None = the library's default.
            background: do not wait for an engine that must be compiled first; PyTorch serves meanwhile.
            parallel: images that threads may segment at once. OpenVINO and ONNX Runtime share the CPU among them; other engines
                take one after another, and only what is done before and after overlaps.
            first_version: the vocabulary version to begin with.
            progress: called with `BuildProgress` while an engine is compiled.
            words_progress: told how many of how many new concepts are encoded, now and whenever words change.

        Raises:
            Vl4adError: with one line that says what to do.
        """
        from vl4ad_model import engines

        # Words and choices first: a mistake in them should not cost the time that a network takes to load.
        _check_choices(classifier, scoring)
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary.cityscapes() if vocabulary is None else Vocabulary.from_yaml(vocabulary)
        _check_parallel(parallel)
        if threads is not None and (type(threads) is not int or threads < 1):
            raise EngineError(f"threads must be a whole number from 1 on, or None, not {threads!r:.60}")
        engines.device_for(engine, device=device, precision=precision, network_size=network_size)
        import torch

        from vl4ad_model import prompts, registry
        from vl4ad_model.network.clip import tokenizer

        files = registry.locate(name_or_folder, offline=offline)
        if threads:
            torch.set_num_threads(threads)
        network, config = registry.build_network(files)
        # The text tower stays where it is small work and always available.
        tokenize, end_token = tokenizer(config.clip_model, config.clip_config)
        text = prompts.TextEncoder(
            network.clip.encode_text,
            tokenize,
            weights_key=network.clip.text_weights_key(),
            end_token=end_token,
            cache_folder=prompts.default_cache_folder(),
            progress=words_progress,
        )
        text.check([concept for group in vocabulary.concept_groups for concept in group])
        running = engines.create(
            network,
            engine=engine,
            device=device,
            precision=precision,
            network_size=network_size or config.network_size,
            model_name=files.name,
            threads=threads,
            pooled=(classifier or config.classifier) != "in_vocabulary",
            background=background,
            parallel=parallel,
            progress=progress,
        )
        try:
            return cls(
                network, running, text, vocabulary, model_name=files.name, notice=files.notice,
                classifier=classifier, merge_classes=merge_classes, scoring=scoring, parallel=parallel, first_version=first_version,
            )  # fmt: skip
        except BaseException:
            running.close()
            raise

    # --- what it is -----------------------------------------------------------------------------------------------------

    @property
    def engine_name(self) -> str:
        return self._engine.name

    @property
    def engine_reason(self) -> str:
        """Why this engine runs, one line, and what had to be done for want of memory."""
        return "; ".join(filter(None, (self._engine.reason, self._scoring_notice)))

    @property
    def engine_error(self) -> str:
        """Why an engine was given up since loading, one line; empty where none was."""
        return getattr(self._engine, "last_error", "")

    @property
    def engine_trouble(self) -> str:
        """`engine_error`, and what scoring had to do without for want of memory; empty where all is well."""
        return "; ".join(filter(None, (self.engine_error, self._scoring_notice)))

    @property
    def _scoring_notice(self) -> str:
        return next((scorer.notice for scorer in self._scorers if scorer.notice), "")

    @property
    def engine_progress(self) -> BuildProgress | None:
        """How far a build in the background is; None where none runs."""
        return self._engine.progress

    @property
    def device(self) -> str:
        return self._engine.device

    @property
    def precision(self) -> str:
        return self._engine.precision

    @property
    def network_size(self) -> tuple[int, int] | None:
        """(height, width) every image is fitted into; None = its own size."""
        return self._engine.network_size

    @property
    def encoded_concepts(self) -> int:
        """How many concepts the text tower has encoded since loading; cached ones do not count."""
        return self._text.encoded_concepts

    # --- words ----------------------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """The words in use. Assign another to change them: atomic, from the next image on."""
        return self._words.vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: Vocabulary) -> None:
        self.reconfigure(vocabulary=vocabulary)

    @property
    def vocabulary_version(self) -> int:
        """Grows by one with every change of vocabulary, classifier, merging or score."""
        return self._words.version

    @property
    def unknown_words(self) -> str:
        """One line about words that training did not use: what they are also read as, and which have nothing near; or nothing."""
        related, unrelated = self._words.related, self._words.unrelated
        if unrelated:
            unrelated = f"with nothing near that no other hazard has, so that what gets the name is a guess: {unrelated}"
        found = "; ".join(part for part in (related, unrelated) if part)
        return f"not among the words of {self.model_name}'s training: {found}" if found else ""

    @property
    def words(self) -> Words:
        """Vocabulary, version, classifier, merging and score as they are together at this moment."""
        return self._words

    def words_for(self, vocabulary: Vocabulary) -> Words:
        """What another vocabulary would be with the present classifier, merging and score; the segmenter's own words stay.

        Raises:
            VocabularyError: words that cannot be used.
        """
        now = self._words
        return self._prepare(vocabulary, now.classifier_name, now.merge_classes, now.scoring, version=now.version)

    def check_words(self, vocabulary: Vocabulary, classifier: str | None = None) -> None:
        """Say what `reconfigure` would refuse, without the time of encoding.

        Raises:
            VocabularyError: the words cannot be used.
        """
        _check_choices(classifier, None)
        self._text.check([concept for group in vocabulary.concept_groups for concept in group])

    @property
    def default_classifier(self) -> str:
        """What the checkpoint was made for."""
        return self._network.config.classifier

    @property
    def classifier(self) -> str:
        return self._words.classifier_name

    @property
    def default_scoring(self) -> str:
        """The anomaly score that suits the checkpoint."""
        return self._network.config.scoring

    @property
    def scoring(self) -> str:
        return self._words.scoring

    @property
    def merge_classes(self) -> bool:
        return self._words.merge_classes

    def reconfigure(
        self,
        *,
        vocabulary: Vocabulary | None = None,
        classifier: str | None = None,
        merge_classes: bool | None = None,
        scoring: str | None = None,
    ) -> int:
        """Change several things as one; what is None stays.

        Returns:
            the new vocabulary version.

        Raises:
            VocabularyError: the words cannot be used; the old ones stay.
        """
        with self._change:
            old = self._words
            self._words = self._prepare(
                old.vocabulary if vocabulary is None else vocabulary,
                old.classifier_name if classifier is None else classifier,
                old.merge_classes if merge_classes is None else merge_classes,
                old.scoring if scoring is None else scoring,
                version=old.version + 1,
            )
            return self._words.version

    def _prepare(self, vocabulary: Vocabulary, classifier: str, merge_classes: bool, scoring: str, *, version: int) -> Words:
        from vl4ad_model.network_words import classifier_for

        _check_choices(classifier, scoring)
        rows = self._text.encode_concepts([concept for group in vocabulary.concept_groups for concept in group])
        prepared = classifier_for(
            self._network, vocabulary, rows, classifier=classifier, merge_classes=merge_classes, scoring=scoring, device="cpu"
        )
        return Words(vocabulary, classifier, merge_classes, scoring, version, prepared)

    # --- images ---------------------------------------------------------------------------------------------------------

    def segment(self, rgb: np.ndarray, *, output_size: str | tuple[int, int] = "input", words: Words | None = None) -> Segmentation:
        """Segment one image.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            output_size: "input" (the image's size), "network" (the size it was fitted to), or (height, width).
            words: what `words` was when it was asked; None = what it is now.

        Raises:
            ImageError: not an image of that kind.
        """
        return self.segment_batch([rgb], output_size=output_size, words=words)[0]

    def segment_batch(
        self, images: list[np.ndarray], *, output_size: str | tuple[int, int] = "input", words: Words | None = None
    ) -> list[Segmentation]:
        """Segment several images; those of one size share a run of the network. For the arguments see `segment`.

        Raises:
            ImageError: one of them is no usable image; none is processed then.
            EngineError: the engine gave NaN or infinity, as half precision may.
        """
        checked = [check_rgb(rgb, f"image {index + 1}") for index, rgb in enumerate(images)]
        if output_size not in ("input", "network"):
            output_size = _checked_size(output_size)
        words = words or self._words
        results: list[Segmentation | None] = [None] * len(checked)
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, rgb in enumerate(checked):
            by_size.setdefault(rgb.shape[:2], []).append(index)
        for size, members in by_size.items():
            with self._turn() as scorer:
                (alike,) = self._segment_alike(scorer, [checked[i] for i in members], size, [words], output_size)
            for index, result in zip(members, alike, strict=True):
                results[index] = result
        return results  # type: ignore[return-value]

    def segment_with(self, rgb: np.ndarray, vocabularies: list[Vocabulary]) -> list[Segmentation]:
        """Segment one image under several vocabularies: the network looks once, only the scoring is done for each.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            vocabularies: each is used with the present classifier, merging and score; the segmenter's own words stay as they are.

        Raises:
            ImageError: not an image of that kind.
            VocabularyError: words that cannot be used.
        """
        rgb, words = check_rgb(rgb), [self.words_for(each) for each in vocabularies]
        with self._turn() as scorer:
            return [alike[0] for alike in self._segment_alike(scorer, [rgb], rgb.shape[:2], words, "input")]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Scorer]:
        """One of the images that may be worked on at once, with a scorer of its own."""
        from vl4ad_model.scoring import know_thread_count

        know_thread_count()
        scorer = self._idle.get()
        try:
            yield scorer
        finally:
            self._idle.put(scorer)

    def _segment_alike(
        self,
        scorer: Scorer,
        images: list[np.ndarray],
        size: tuple[int, int],
        all_words: list[Words],
        output_size: str | tuple[int, int],
    ) -> list[list[Segmentation]]:
        """For each of the words, the images' results."""
        import torch

        started = time.perf_counter()
        fitted_size = fit_inside(size, self._engine.network_size)
        batch = np.stack([fit_image(rgb, fitted_size, self._engine.network_size, self._pad_value) for rgb in images])
        wanted = {"input": size, "network": fitted_size}[output_size] if isinstance(output_size, str) else output_size
        fitted = time.perf_counter()
        # Masks are resized before they are combined, as FC-CLIP does, where the model asks for it; otherwise the finished
        # maps are, at a fraction of the cost.
        scored_size = wanted if self._network.config.resize_masks else fitted_size
        results = []
        with torch.inference_mode(), self._memory_is_enough(len(batch), fitted_size):
            # Whatever the words weigh: the same engine before and after a change of words.
            pooled = any(words.classifier_name != "in_vocabulary" for words in all_words)
            proposals = self._engine.propose(batch, fitted_size, pooled=pooled)
            proposed = time.perf_counter()
            for words in all_words:
                began = time.perf_counter()
                maps = scorer.score(proposals, words.classifier, scored_size)
                arrays = [each.on_host() for each in maps]
                scored = time.perf_counter()
                resized = [self._finished(*pair, wanted, copy=each.labels.is_cuda) for pair, each in zip(arrays, maps, strict=True)]
                del arrays
                seconds = {
                    "resize": fitted - started + time.perf_counter() - scored,
                    "network": proposed - fitted,
                    "scoring": scored - began,
                }
                results.append([Segmentation(*maps, words.vocabulary, words.version, seconds) for maps in resized])
        return results

    def _finished(
        self, labels: np.ndarray, anomaly: np.ndarray, wanted: tuple[int, int], *, copy: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The maps at the wanted (height, width); `copy` where they are not to be kept as they are."""
        if not np.isfinite(anomaly).all():
            advice = "use precision fp32" if self.precision != "fp32" else "the model's weights are not usable"
            raise EngineError(f"{self.model_name} on engine {self.engine_name} produced non-finite scores: {advice}")
        if labels.shape != wanted:
            import cv2

            width_height = (wanted[1], wanted[0])
            labels = cv2.resize(labels, width_height, interpolation=cv2.INTER_NEAREST)
            anomaly = cv2.resize(anomaly, width_height, interpolation=cv2.INTER_LINEAR)
        elif copy:
            labels, anomaly = labels.copy(), anomaly.copy()
        return labels, anomaly

    @contextlib.contextmanager
    def _memory_is_enough(self, count: int, size: tuple[int, int]) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:  # torch: a RuntimeError that says so
            if not is_out_of_memory(error):
                raise
            raise EngineError(
                f"not enough memory for {count} image(s) of {size[1]}x{size[0]} pixels in {self.model_name}: "
                "set a smaller network size"
            ) from None

    @property
    def _pad_value(self) -> tuple[int, int, int]:
        """Grey that is nothing after normalisation."""
        red, green, blue = self._network.config.pixel_mean
        return round(red), round(green), round(blue)

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine.close()


def _check_choices(classifier: str | None, scoring: str | None) -> None:
    """Names as a person gave them; None is always right."""
    for what, name, known in (("classifier", classifier, CLASSIFIERS), ("scoring", scoring, SCORINGS)):
        if name is not None and name not in known:
            raise VocabularyError(f"{what} '{name}' is unknown: use {', '.join(known)}")


def _check_parallel(parallel: int) -> None:
    if parallel < 1:
        raise Vl4adError(f"parallel must be at least 1, not {parallel}")


def _checked_size(size: object) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise Vl4adError(f"output_size is input, network or (height, width), not {size!r:.60}") from None
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise Vl4adError(f"output_size {height}x{width} has a side outside 1 to {MAX_SIDE} pixels")
    return height, width


def fit_inside(size: tuple[int, int], box: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of an image scaled to fit a box, keeping its shape; the image's own where there is no box."""
    if box is None:
        return size
    scale = min(box[0] / size[0], box[1] / size[1])
    return min(box[0], max(1, round(size[0] * scale))), min(box[1], max(1, round(size[1] * scale)))


def fit_image(rgb: np.ndarray, size: tuple[int, int], box: tuple[int, int] | None, pad_value: tuple[int, int, int]) -> np.ndarray:
    """Resize an image and pad it at bottom and right to the box: the one resize rule of all engines."""
    import cv2

    if rgb.shape[:2] != size:
        shrinks = size[0] < rgb.shape[0]
        rgb = cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if box is not None and size != box:
        rgb = cv2.copyMakeBorder(rgb, 0, box[0] - size[0], 0, box[1] - size[1], cv2.BORDER_CONSTANT, value=pad_value)
    return rgb
