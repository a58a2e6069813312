"""The equations, fast: class probabilities of the queries, then label and anomaly maps without ever holding N x H x W.

The plain version of every equation stands in `scoring_reference.py`; this one equals it (tested to 1e-5) but works tile by tile:
upsample a few rows of a few masks, sigmoid in place, and one matrix product for label and anomaly rows together, all in buffers
that fit the cache and are kept between images. Combining at stride 4 and upsampling afterwards would be cheaper still and is
NOT the same (scores off by up to 0.21).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vl4ad_model import native_scoring, triton_scoring
from vl4ad_model.choices import CLASSIFIERS, SCORINGS
from vl4ad_model.network.proposals import MaskProposals
from vl4ad_model.network.upsampling import STRIDE, Guide, blend_cells, cell_colours, nearest_cells, weights_by_colour
from vl4ad_model.out_of_memory import is_out_of_memory
from vl4ad_model.vocabulary import Vocabulary

log = logging.getLogger(__name__)

UNCLAIMED = 0.1
"""What a pixel that no mask claims weighs in the normalized score: there it is 1, and 0 / 0 nowhere."""
MAX_LOGIT_SCALE = 100.0
# Cache-sized work: of 16, 32, 64 queries and 1 to 8 MB the fastest on an EPYC with 1 MB of L2 per core; the slowest took 1.5 times.
_QUERIES_PER_TILE = 32
_BYTES_PER_TILE = 4 << 20
_CUDA_BYTES_PER_TILE = 256 << 20
_MOST_HALVINGS = 6


class ScoreMaps(NamedTuple):
    """labels: uint8 (H, W), ids of known classes and hazards; anomaly: float32 (H, W), never clipped."""

    labels: Tensor
    anomaly: Tensor

    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """Both maps as arrays, for a short time; from a GPU side by side through pinned memory, waiting once for the two of them.

        Who keeps arrays from a GPU copies them: they hold the system's page-locked memory, and giving that back after the GPU has
        failed ends the process.
        """
        if not self.labels.is_cuda:
            return self.labels.numpy(), self.anomaly.numpy()
        pinned = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(each, non_blocking=True) for each in self]
        torch.cuda.current_stream(self.labels.device).synchronize()
        return pinned[0].numpy(), pinned[1].numpy()


class RelatedWord(NamedTuple):
    """A word that training did not use, and the trained one that stands in for it.

    owner: index of the word's group in `Vocabulary.concept_groups`. row: (D,) unit text embedding of `trained`; where no trained
    word is near, None, and `trained` is empty.
    """

    owner: int
    word: str
    trained: str
    row: np.ndarray | None


class Rivals(NamedTuple):
    """Words of the training that nobody asked for: where one of them fits a query better, a hazard is not named.

    rows: (R, D) unit text embeddings. margins: (Q, R), the cosine by which a word must fit better than all of a hazard's own;
    infinite where it never counts, because it means about the same.
    """

    rows: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class TextClassifier:
    """A vocabulary ready for scoring: unit rows of all concepts and who owns them.

    Attributes:
        rows: (L, D) float32 unit text embeddings of all concepts, known classes first.
        class_rows: (K + Q, A) int64, rows of each class, padded by repetition.
        merged_rows: (G + Q, A') int64, rows of each superclass and hazard; None = merging is off.
        known_count, merged_known_count: K and G.
        class_weight, merged_weight: (K + Q,) and (G + Q,) weight of the out-of-vocabulary branch per class.
        void: (D,) unit row, or None.
        in_scale, out_scale: 1 / T of the two branches.
        normalized: the anomaly score is what is not known of all that the masks claim; otherwise 1 - max p of the known.
        colour_tolerance: in grey levels; above 0 masks are upsampled along the image's edges, which needs proposals with images.
        related: (word that training did not use, trained word that it is also read as); the latter is empty where none is near.
        rival_rows, rival_margins: see `Rivals`; None = every hazard is named where it beats the other classes.
    """

    rows: Tensor
    class_rows: Tensor
    merged_rows: Tensor | None
    known_count: int
    merged_known_count: int
    class_weight: Tensor
    merged_weight: Tensor | None
    void: Tensor | None
    in_scale: float
    out_scale: float
    normalized: bool = False
    colour_tolerance: float = 0.0
    related: tuple[tuple[str, str], ...] = ()
    rival_rows: Tensor | None = None
    rival_margins: Tensor | None = None

    @cached_property
    def needs_pooled(self) -> bool:
        """Whether the out-of-vocabulary branch has any weight."""
        return bool((self.class_weight > 0).any())

    def on(self, device: torch.device) -> TextClassifier:
        """The same on a device: scoring is done where the proposals are, which may change when an engine is replaced."""
        if self.rows.device == device:
            return self
        if device not in self._elsewhere:
            values = {field.name: getattr(self, field.name) for field in fields(self)}
            moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
            self._elsewhere[device] = replace(self, **moved)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, TextClassifier]:
        return {}


def prepare_classifier(
    vocabulary: Vocabulary,
    rows: np.ndarray,
    *,
    classifier: str,
    merge_classes: bool,
    void: Tensor | None,
    in_logit_scale: float,
    out_logit_scale: float,
    alpha: float = 0.4,
    beta: float = 0.8,
    training_concepts: Sequence[str] = (),
    scoring: str = "max",
    related: Sequence[RelatedWord] = (),
    rivals: Rivals | None = None,
    colour_tolerance: float = 0.0,
    device: str | torch.device = "cpu",
) -> TextClassifier:
    """Make a vocabulary ready for scoring.

    Args:
        rows: (L, D) unit text embeddings of the concepts of `vocabulary.concept_groups`, one group after another.
        classifier: one of `CLASSIFIERS`.
        merge_classes: score classes of one superclass as one.
        void: (D,) the checkpoint's void embedding, any length; None where it has none.
        in_logit_scale, out_logit_scale: logarithms; T = 1 / min(exp(logit_scale), 100).
        alpha, beta: weight of the out-of-vocabulary branch in the ensemble for classes with and without a concept in
            `training_concepts` (FC-CLIP, section 3.4).
        scoring: one of `SCORINGS`, the anomaly score: "max" is VL4AD's, 1 - max over the known classes of p_k; "normalized" is the
            share of what the masks claim that belongs to no known class, sum_i s_i (1 - a_i) / sum_i s_i with a_i = sum of the
            known c_ik.
        related: further concepts of the groups; they have no say in which weight a class gets.
        rivals: words of the training that keep hazards from being named where they fit better; labels alone heed them.
        colour_tolerance: in grey levels; above 0 masks are upsampled along the image's edges (`network.upsampling`).
    """
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier must be one of {', '.join(CLASSIFIERS)}, not '{classifier}'")
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, not '{scoring}'")
    spans, start = [], 0
    for concepts in vocabulary.concept_groups:
        spans.append(list(range(start, start + len(concepts))))
        start += len(concepts)
    added = [(word.owner, word.row) for word in related if word.row is not None]
    for place, (owner, _) in enumerate(added):
        spans[owner].append(start + place)
    rows = np.concatenate([rows, *(row[None] for _, row in added)])
    known, hazards = spans[: vocabulary.known_count], spans[vocabulary.known_count :]
    trained = {concept.casefold() for concept in training_concepts}
    flat = [concept.casefold() for concepts in vocabulary.concept_groups for concept in concepts]

    def weights(groups: list[list[int]]) -> Tensor:
        if classifier != "ensemble":
            return torch.full((len(groups),), float(classifier == "out_of_vocabulary"), device=device)
        seen = [any(flat[row] in trained for row in group if row < len(flat)) for group in groups]
        return torch.tensor([alpha if s else beta for s in seen], device=device)

    merged = [sum((known[i] for i in ids), []) for _, ids in vocabulary.superclasses] if merge_classes else []
    merge_changes = merge_classes and len(merged) < len(known)
    return TextClassifier(
        rows=torch.as_tensor(rows, dtype=torch.float32, device=device),
        class_rows=_padded(known + hazards, device),
        merged_rows=_padded(merged + hazards, device) if merge_changes else None,
        known_count=len(known),
        merged_known_count=len(merged) if merge_changes else len(known),
        class_weight=weights(known + hazards),
        merged_weight=weights(merged + hazards) if merge_changes else None,
        void=None if void is None else F.normalize(void.detach().float().to(device), dim=-1),
        in_scale=min(float(np.exp(in_logit_scale)), MAX_LOGIT_SCALE),
        out_scale=min(float(np.exp(out_logit_scale)), MAX_LOGIT_SCALE),
        normalized=scoring == "normalized",
        colour_tolerance=colour_tolerance,
        related=tuple((word.word, word.trained) for word in related),
        rival_rows=None if rivals is None else torch.as_tensor(rivals.rows, dtype=torch.float32, device=device),
        rival_margins=None if rivals is None else torch.as_tensor(rivals.margins, dtype=torch.float32, device=device),
    )


def _padded(groups: list[list[int]], device: str | torch.device) -> Tensor:
    widest = max(len(group) for group in groups)
    return torch.tensor([(group + [group[0]] * widest)[:widest] for group in groups], device=device)


class _Similarities(NamedTuple):
    """Cosines of queries and concepts; classes and merged classes are both made of these.

    named: (L, N), the in-vocabulary branch. seen: (L, N), the out-of-vocabulary branch, or None where it has no weight.
    void: (N,), or None where the checkpoint has no void embedding. rivals: (R, N) in the in-vocabulary branch, or None.
    """

    named: Tensor
    seen: Tensor | None
    void: Tensor | None
    rivals: Tensor | None


def query_class_probabilities(
    classifier: TextClassifier,
    query_embeddings: Tensor,
    pooled_embeddings: Tensor | None,
    pooled_valid: Tensor | None,
    *,
    merged: bool = False,
) -> Tensor:
    """c_ik of all queries, without void: (N, K + Q), or (N, G + Q) merged.

    Works in logarithms and float32 whatever the embeddings' precision: p^w underflows in half precision.

    Args:
        query_embeddings: (N, D).
        pooled_embeddings: (N, D), needed where the classifier has out-of-vocabulary weight.
        pooled_valid: (N,) bool; queries with an empty mask use the in-vocabulary branch alone.
    """
    similarities = _similarities(classifier, query_embeddings, pooled_embeddings)
    return _class_probabilities(classifier, similarities, pooled_valid, merged=merged).T


def _similarities(classifier: TextClassifier, query_embeddings: Tensor, pooled_embeddings: Tensor | None) -> _Similarities:
    unit = F.normalize(query_embeddings.float(), dim=-1).T
    seen = None
    if classifier.needs_pooled:
        if pooled_embeddings is None:
            raise ValueError("this classifier needs the out-of-vocabulary branch, which this engine was built without")
        seen = classifier.rows @ F.normalize(pooled_embeddings.float(), dim=-1).T
    return _Similarities(
        classifier.rows @ unit,
        seen,
        None if classifier.void is None else classifier.void @ unit,
        None if classifier.rival_rows is None else classifier.rival_rows @ unit,
    )


def _beaten(classifier: TextClassifier, similarities: _Similarities) -> Tensor | None:
    """(Q, N) bool: where a word of the training fits a query better than all words of the hazard; None where there are none."""
    if similarities.rivals is None or classifier.rival_margins is None:
        return None
    index = classifier.class_rows[classifier.known_count :]
    own = similarities.named.index_select(0, index.flatten()).view(*index.shape, -1).amax(dim=1)
    return (similarities.rivals - classifier.rival_margins[:, :, None]).amax(dim=1) > own


def _class_probabilities(
    classifier: TextClassifier, similarities: _Similarities, pooled_valid: Tensor | None, *, merged: bool
) -> Tensor:
    """(K + Q, N), or (G + Q, N) merged; see `query_class_probabilities`."""
    index = classifier.merged_rows if merged and classifier.merged_rows is not None else classifier.class_rows
    weight = classifier.merged_weight if index is classifier.merged_rows else classifier.class_weight
    assert weight is not None

    def logits(of_concepts: Tensor, scale: float) -> Tensor:
        # Whole rows at a time: a quarter of the time of picking elements.
        return of_concepts.index_select(0, index.flatten()).view(*index.shape, -1).amax(dim=1) * scale

    in_logits = logits(similarities.named, classifier.in_scale)
    log_in = in_logits.log_softmax(dim=0)
    if similarities.seen is not None:
        log_out = logits(similarities.seen, classifier.out_scale).log_softmax(dim=0)
        share = weight[:, None].expand_as(log_in)
        if pooled_valid is not None:
            share = torch.where(pooled_valid, share, torch.zeros_like(share))
            log_out = torch.where(pooled_valid, log_out, torch.zeros_like(log_out))
        log_in = ((1 - share) * log_in + share * log_out).log_softmax(dim=0)
    if similarities.void is not None:
        void_logit = similarities.void * classifier.in_scale
        # log(1 - p_void) = logsumexp(classes) - logsumexp(classes and void)
        classes = in_logits.logsumexp(dim=0)
        log_in = log_in + classes - torch.logaddexp(classes, void_logit)
    return log_in.exp()


_THREAD_COUNT = threading.Lock()
"""Held while torch's number of threads, which a thread takes from the process at its first work, is not what it should be."""


def know_thread_count() -> None:
    """To be called first by a thread that scores beside others: one of them may just be computing alone."""
    with _THREAD_COUNT:
        torch.get_num_threads()


@contextlib.contextmanager
def _this_thread_alone() -> Iterator[None]:
    """Torch computes in this thread only.

    For work of a fraction of a millisecond: torch would share it with its other threads, and those go on spinning after it. On two
    cores they kept the second one from the masks that follow, and beside a busy neighbour scoring took ten times as long.
    """
    with _THREAD_COUNT:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class Scorer:
    """Turns proposals into maps; keeps its buffers, so use one per thread.

    Where memory runs out it works in smaller tiles from then on, and at last on the CPU.

    Args:
        fused: use the compiled kernels where they apply; without, torch's own operations alone.

    Attributes:
        notice: what it had to do for want of memory, in words; empty while there is enough.
    """

    def __init__(self, *, fused: bool = True) -> None:
        self._fused = fused
        self._buffers: dict[str, Tensor] = {}
        self._halved = 0
        self.notice = ""

    def score(
        self, proposals: MaskProposals, classifier: TextClassifier, output_size: tuple[int, int] | None = None
    ) -> list[ScoreMaps]:
        """Label and anomaly maps of every image of the batch.

        Args:
            proposals: from any engine, on any device; the maps are made where the proposals are.
            output_size: (height, width) of the maps; None = the proposals' image size.
        """
        count = proposals.mask_logits.shape[0]
        return [self._score_one(proposals.image(index), classifier, output_size) for index in range(count)]

    def _score_one(self, proposals: MaskProposals, classifier: TextClassifier, output_size: tuple[int, int] | None) -> ScoreMaps:
        while True:
            device = proposals.mask_logits.device
            try:
                there = classifier.on(device)
                labels_rows, anomaly_rows = self._matrices(proposals, there)
                return self._maps(proposals, labels_rows, anomaly_rows, there, output_size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).partition("\n")[0]
            # Out here the exception no longer keeps the failed tile's tensors alive.
            self._buffers.clear()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if self._halved < _MOST_HALVINGS:
                self._halved += 1
                self.notice = f"scoring works in tiles 1/{2**self._halved} as large: memory ran out on {device}"
            elif device.type != "cpu":
                proposals = proposals.on("cpu")
                self.notice = f"scoring works on the CPU: memory ran out on {device}"
            else:
                raise MemoryError(f"out of memory while scoring: {problem}")
            log.warning("%s (%s)", self.notice, problem)

    def class_map(self, proposals: MaskProposals, classifier: TextClassifier, output_size: tuple[int, int] | None = None) -> Tensor:
        """p of every class, (K + Q, H, W) float32, of a batch of one: FC-CLIP's `sem_seg`, whatever rivals there are."""
        there = replace(classifier, rival_rows=None, rival_margins=None).on(proposals.mask_logits.device)
        matrix, _ = self._matrices(proposals, there)
        height, width = output_size or proposals.image_size
        result = torch.empty((matrix.shape[0], height, width), device=matrix.device)
        for top, rows in self._tiles(proposals, matrix, (height, width), _guide(proposals, classifier)):
            result[:, top : top + rows.shape[1]] = rows
        return result

    def _matrices(self, proposals: MaskProposals, classifier: TextClassifier) -> tuple[Tensor, Tensor | None]:
        """(K + Q, N) for the labels and, where they differ, the rows for the anomaly score: (G, N) of the merged classes, or
        (2, N) of known and not known for the normalized one."""
        with _this_thread_alone():
            return self._both_matrices(proposals, classifier)

    def _both_matrices(self, proposals: MaskProposals, classifier: TextClassifier) -> tuple[Tensor, Tensor | None]:
        queries = proposals.query_embeddings[0]
        pooled = None if proposals.pooled_embeddings is None else proposals.pooled_embeddings[0]
        valid = None if proposals.pooled_valid is None else proposals.pooled_valid[0]
        similarities = _similarities(classifier, queries, pooled)
        labels = _class_probabilities(classifier, similarities, valid, merged=False)
        merges = classifier.merged_rows is not None
        merged = _class_probabilities(classifier, similarities, valid, merged=True) if merges else labels
        of_known = merged[: classifier.merged_known_count]
        beaten = _beaten(classifier, similarities)
        if beaten is not None:  # only the label heeds it: what is not named is as anomalous as before
            labels = torch.cat((labels[: classifier.known_count], labels[classifier.known_count :].masked_fill(beaten, 0)))
        if not classifier.normalized:
            return labels, of_known if merges else None
        known = of_known.sum(dim=0)
        # The rest is hazards and void; where the sum rounds to more than 1, nothing is left.
        return labels, torch.stack((known, (1 - known).clamp_(min=0)))

    def _maps(
        self,
        proposals: MaskProposals,
        labels_rows: Tensor,
        anomaly_rows: Tensor | None,
        classifier: TextClassifier,
        output_size: tuple[int, int] | None,
    ) -> ScoreMaps:
        height, width = output_size or proposals.image_size
        classes = labels_rows.shape[0]
        masks = proposals.mask_logits[0]
        guide = _guide(proposals, classifier)
        if self._fused and _at_stride_4(proposals) and (height, width) == proposals.image_size:
            fused = triton_scoring.score if masks.is_cuda else native_scoring.score
            unclaimed, known_count = UNCLAIMED if classifier.normalized else None, classifier.known_count
            done = fused(masks, labels_rows, anomaly_rows, known_count, (height, width), unclaimed=unclaimed, guide=guide)
            if done is not None:
                return ScoreMaps(*done)
        matrix = labels_rows if anomaly_rows is None else torch.cat((labels_rows, anomaly_rows))
        labels = torch.empty((height, width), dtype=torch.uint8, device=matrix.device)
        anomaly = torch.empty((height, width), dtype=torch.float32, device=matrix.device)
        for top, rows in self._tiles(proposals, matrix, (height, width), guide):
            bottom = top + rows.shape[1]
            labels[top:bottom] = _argmax(rows[:classes])
            known = rows[: classifier.known_count] if anomaly_rows is None else rows[classes:]
            if classifier.normalized:
                rest = known[1] + UNCLAIMED
                torch.div(rest, known[0] + rest, out=anomaly[top:bottom])
            else:
                torch.sub(1.0, known.amax(dim=0), out=anomaly[top:bottom])
        return ScoreMaps(labels, anomaly)

    def _tiles(self, proposals: MaskProposals, matrix: Tensor, output_size: tuple[int, int], guide: Guide | None):
        """Yield (top row, (C, rows, W) class map) from top to bottom. The map is a buffer: use it before the next one."""
        masks = proposals.mask_logits[0]
        # Half precision masks are added up in full: float16 near 1 knows steps of 5e-4, and scores that tie cannot be ranked.
        masks, matrix = masks.float(), matrix.float().contiguous()
        count = masks.shape[0]
        budget = (_CUDA_BYTES_PER_TILE if masks.is_cuda else _BYTES_PER_TILE) >> self._halved
        step = count if masks.is_cuda else min(count, _QUERIES_PER_TILE)
        height, width = output_size
        cells = (int(masks.shape[-2]), int(masks.shape[-1]))
        stages: list[_Stage | _GuidedStage] = [_Stage(cells, proposals.padded_size, proposals.image_size)]
        if guide is not None:
            stages = [_GuidedStage(guide, cell_colours(guide.image[None], cells), proposals.image_size)]
        if output_size != proposals.image_size:
            stages.append(_Stage(proposals.image_size, output_size, output_size))
        held = 1 if guide is None else 4  # a tile, and what blending cells makes on the way to it
        per_tile = max(4, budget // (held * step * width * 4) // 4 * 4)
        for top in range(0, height, per_tile):
            bottom = min(top + per_tile, height)
            pixels = (bottom - top) * width
            combined = self._buffer("combined", (matrix.shape[0], pixels), masks)
            for first in range(0, count, step):
                scores = self._upsample(masks[first : first + step], stages, top, bottom).sigmoid_()
                flat = scores.reshape(scores.shape[0], pixels)
                part = matrix[:, first : first + step]
                if first == 0:
                    torch.mm(part, flat, out=combined)
                else:
                    torch.addmm(combined, part, flat, out=combined)
            yield top, combined.view(-1, bottom - top, width)

    def _upsample(self, masks: Tensor, stages: list[_Stage | _GuidedStage], top: int, bottom: int) -> Tensor:
        """Rows top..bottom of the upsampled logits (n, rows, W): across first, where it is cheap, then down.

        Bilinear interpolation is separable, so each stage widens only the source rows that the tile needs and blends them.
        """
        if len(stages) == 2:
            first, second = stages
            assert isinstance(second, _Stage)
            low, high, above, below, blend = second.rows(top, bottom, masks)
            source = self._upsample(masks, [first], low, high)
            return self._stretch(source, second, above, below, blend, "second")
        (stage,) = stages
        if isinstance(stage, _GuidedStage):
            return stage.rows(masks, top, bottom)
        low, high, above, below, blend = stage.rows(top, bottom, masks)
        return self._stretch(masks[:, low:high], stage, above, below, blend, "first")

    def _stretch(self, rows: Tensor, stage: _Stage, above: Tensor, below: Tensor, blend: Tensor, name: str) -> Tensor:
        width = stage.cropped[1]
        if stage.full[1] == stage.source[1]:
            wide = rows[..., :width]
        else:
            wide = F.interpolate(rows[None], size=(rows.shape[1], stage.full[1]), mode="bilinear", align_corners=False)[0]
            wide = wide[..., :width]
        upper = self._buffer(name + "_above", (rows.shape[0], len(above), width), rows)
        lower = self._buffer(name + "_below", (rows.shape[0], len(above), width), rows)
        torch.index_select(wide, 1, above, out=upper)
        torch.index_select(wide, 1, below, out=lower)
        return upper.lerp_(lower, blend)

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of `shape` that is reused from tile to tile and image to image; fresh memory costs page faults."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)


def _at_stride_4(proposals: MaskProposals) -> bool:
    height, width = proposals.mask_logits.shape[-2:]
    return (STRIDE * height, STRIDE * width) == proposals.padded_size


def _guide(proposals: MaskProposals, classifier: TextClassifier) -> Guide | None:
    """What the masks of a batch of one are upsampled along, on their device; None = bilinear."""
    if not classifier.colour_tolerance:
        return None
    if proposals.images is None:
        raise ValueError("this classifier upsamples masks along the image's edges, and these proposals come without their images")
    if not _at_stride_4(proposals):
        raise ValueError("masks are upsampled along the image's edges from a quarter of the padded size only")
    masks = proposals.mask_logits
    return Guide(proposals.images[0].to(masks.device, non_blocking=masks.is_cuda), classifier.colour_tolerance)


def _argmax(rows: Tensor) -> Tensor:
    """Index of the largest of C <= 255 rows, uint8, the first one on ties: torch's own argmax over the first axis is scalar code,
    and took 40 % of all scoring."""
    count = rows.shape[0]
    rank = torch.arange(count, 0, -1, dtype=torch.uint8, device=rows.device).view(-1, *[1] * (rows.dim() - 1))
    return count - ((rows == rows.amax(dim=0)) * rank).amax(dim=0)


class _Stage(NamedTuple):
    """One bilinear resize: (h, w) to `full`, of which `cropped` from the top left is wanted."""

    source: tuple[int, int]
    full: tuple[int, int]
    cropped: tuple[int, int]

    def rows(self, top: int, bottom: int, like: Tensor) -> tuple[int, int, Tensor, Tensor, Tensor]:
        """Source rows low..high that output rows top..bottom blend, and how: above, below (int64, from low on), blend (rows, 1)."""
        return _blended_rows(self.source[0], self.full[0], top, bottom, like.device, like.dtype)


class _GuidedStage(NamedTuple):
    """Masks to `size`, the image's, along its edges; colours: (1, 3, h, w) of the masks' cells."""

    guide: Guide
    colours: Tensor
    size: tuple[int, int]

    def rows(self, masks: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top..bottom (n, rows, W) of masks (n, h, w)."""
        images, width = self.guide.image[None], self.size[1]
        cells = (int(self.colours.shape[-2]), int(self.colours.shape[-1]))
        across, down = torch.arange(width, device=masks.device), torch.arange(top, bottom, device=masks.device)
        index, bilinear = nearest_cells((down[:, None] * width + across).view(1, -1), width, cells)
        # The image may be larger than what is scored.
        points = (down[:, None] * images.shape[-1] + across).view(1, -1)
        weights = weights_by_colour(images, self.colours, points, index, bilinear, self.guide.tolerance)
        return blend_cells(masks[None], index, weights)[0].view(-1, bottom - top, width)


@functools.lru_cache(maxsize=256)
def _blended_rows(
    source: int, full: int, top: int, bottom: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, int, Tensor, Tensor, Tensor]:
    """See `_Stage.rows`. Kept: the same tiles come with every image, and a copy to a GPU would wait for the network."""
    position = (torch.arange(top, bottom, dtype=torch.float32) + 0.5).mul_(source / full).sub_(0.5).clamp_(min=0)
    above = position.floor().long().clamp_(max=source - 1)
    below = (above + 1).clamp_(max=source - 1)
    blend = (position - above)[:, None]
    low, high = int(above[0]), int(below[-1]) + 1
    return low, high, (above - low).to(device), (below - low).to(device), blend.to(device, dtype)
