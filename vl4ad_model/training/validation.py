"""How good a network is while it trains: mIoU of the known classes, and ranking of hazards that no prompt names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vl4ad_model.evaluation.exact_metrics import exact_metrics_of
from vl4ad_model.evaluation.label_metrics import confusion_matrix, label_metrics
from vl4ad_model.evaluation.scored_pixels import ScoredPixels, split_pixels
from vl4ad_model.network.fcclip import FCCLIP
from vl4ad_model.network_words import classifier_for
from vl4ad_model.prompts import TextEncoder
from vl4ad_model.scoring import MAX_LOGIT_SCALE, Scorer
from vl4ad_model.training.data import IGNORED, Frame
from vl4ad_model.vocabulary import Vocabulary


@dataclass(frozen=True)
class ValidationResult:
    """mean_iou: of the classes that occur, 0..1. average_precision, fpr95: of unnamed hazards, NaN where none is in view."""

    mean_iou: float
    average_precision: float
    fpr95: float

    @property
    def score(self) -> float:
        """What early stopping compares: the mean of mIoU and AP, or mIoU alone."""
        return self.mean_iou if np.isnan(self.average_precision) else (self.mean_iou + self.average_precision) / 2


def validate(
    network: FCCLIP,
    frames: Sequence[Frame],
    vocabulary: Vocabulary,
    text: TextEncoder,
    propose: Callable | None = None,
    *,
    factors: Sequence[float] = (1.0,),
) -> list[ValidationResult]:
    """Run the network as users do: no hazard prompts, merging on, every frame at its own size.

    Args:
        propose: images (1, 3, H, W) to `MaskProposals`; None = the network itself.
        factors: on the logit scale of the class probabilities; the network runs once for all of them.

    Returns:
        A result per factor.
    """
    rows = text.encode_concepts([concept for group in vocabulary.concept_groups for concept in group])
    device = next(network.mask_decoder.parameters()).device
    classifier = classifier_for(network, vocabulary, rows, classifier="in_vocabulary", device=str(device))
    classifiers = [replace(classifier, in_scale=min(classifier.in_scale * factor, MAX_LOGIT_SCALE)) for factor in factors]
    scorer = Scorer()
    classes = vocabulary.known_count
    counts = [np.zeros((classes, classes + 1), np.int64) for _ in factors]
    ranked: list[list[ScoredPixels]] = [[] for _ in factors]
    with torch.inference_mode():
        for index, frame in enumerate(frames):
            image = torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)[None].to(device)
            proposals = network(image, pooled=False) if propose is None else propose(image)
            known = np.where(frame.labels < classes, frame.labels, IGNORED).astype(np.uint8)
            truth = np.where(frame.labels == IGNORED, 255, (frame.labels >= classes).astype(np.uint8)).astype(np.uint8)
            for each, words in enumerate(classifiers):
                maps = scorer.score(proposals, words)[0]
                counts[each] += confusion_matrix(maps.labels.cpu().numpy(), known, classes)
                ranked[each].append(split_pixels(maps.anomaly.cpu().numpy(), truth, f"validation frame {index}"))
    results = []
    for matrix, pixels in zip(counts, ranked, strict=True):
        exact = exact_metrics_of(pixels)
        results.append(ValidationResult(label_metrics(matrix).miou, exact.average_precision, exact.fpr95))
    return results
