"""A vocabulary made ready for one network: its scales, its void embedding and the words it was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.scoring import RelatedWord, Rivals, TextClassifier, prepare_classifier
from vl4ad_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vl4ad_model.network.fcclip import FCCLIP

GENERIC_NAMES = (
    "obstacle", "road obstacle", "debris", "road debris", "lost cargo", "fallen cargo", "object", "unknown object",
    "strange object", "hazard", "item", "thing",
)  # fmt: skip
"""Words that can mean any hazard; training uses them for all."""
SAME_MEANING = 0.7
"""Cosine from which two names mean about the same and do not compete; the same in training."""


def classifier_for(
    network: FCCLIP,
    vocabulary: Vocabulary,
    rows: np.ndarray,
    *,
    classifier: str | None = None,
    merge_classes: bool = True,
    scoring: str | None = None,
    device: str = "cpu",
) -> TextClassifier:
    """Make a vocabulary ready for scoring what this network proposes.

    Args:
        rows: (L, D) unit text embeddings of the concepts of `vocabulary.concept_groups`, one group after another.
        classifier: in_vocabulary, out_of_vocabulary or ensemble; None = what the checkpoint was made for.
        merge_classes: score classes of one superclass as one.
        scoring: the anomaly score, max or normalized; None = what suits the checkpoint.
    """
    config = network.config
    related = related_words(network, vocabulary, rows)
    return prepare_classifier(
        vocabulary,
        rows,
        classifier=classifier or config.classifier,
        merge_classes=merge_classes,
        void=network.void_embedding.weight[0],
        in_logit_scale=network.mask_decoder.logit_scale.item(),
        out_logit_scale=network.clip.logit_scale.item(),
        alpha=config.alpha,
        beta=config.beta,
        training_concepts=config.training_concepts,
        scoring=scoring or config.scoring,
        related=related,
        rivals=rivals(network, vocabulary, rows, related),
        colour_tolerance=config.colour_tolerance,
        device=device,
    )


def related_words(network: FCCLIP, vocabulary: Vocabulary, rows: np.ndarray) -> list[RelatedWord]:
    """Words without training and what they are also read as, where the checkpoint asks for it (`FCCLIPConfig.related_words`).

    A class or hazard that has a trained word is left as it is. One that has none gets, for each of its words, the trained word
    nearest to it in meaning, if the two are near enough and no other hazard has that one. Words of the known classes are left out:
    "road closure" is nearest to "road", and is meant to be none.

    Args:
        rows: (L, D) unit text embeddings of the concepts of `vocabulary.concept_groups`, one group after another.
    """
    config = network.config
    if not config.related_words:
        return []
    trained = [concept.casefold() for concept in config.training_concepts]
    groups = vocabulary.concept_groups
    taken = {concept.casefold(): owner for owner, group in enumerate(groups) for concept in group}
    known = {concept.casefold() for group in groups[: vocabulary.known_count] for concept in group}
    left_out = np.array([concept in known for concept in trained])
    words_of_training = set(trained)
    of_trained = network.training_rows.float().cpu().numpy()
    found: list[RelatedWord] = []
    place = 0
    for owner, group in enumerate(groups):
        of_group = rows[place : place + len(group)]
        place += len(group)
        if any(concept.casefold() in words_of_training for concept in group):
            continue
        for concept, row in zip(group, of_group, strict=True):
            likeness = np.where(left_out, -1.0, of_trained @ row)
            nearest = int(likeness.argmax())
            is_near = likeness[nearest] > config.related_words
            if is_near and taken.get(trained[nearest]) == owner:
                continue  # another of the group's words has it
            if is_near and trained[nearest] not in taken:
                taken[trained[nearest]] = owner
                found.append(RelatedWord(owner, concept, config.training_concepts[nearest], of_trained[nearest]))
            else:
                found.append(RelatedWord(owner, concept, "", None))
    return found


def rivals(network: FCCLIP, vocabulary: Vocabulary, rows: np.ndarray, related: Sequence[RelatedWord]) -> Rivals | None:
    """Words of the training that keep hazards from being named where they fit better (`FCCLIPConfig.rival_margin`).

    A network that knows suitcases should not call one a refrigerator because only refrigerators were asked for. Words of the known
    classes are no rivals, they compete anyway; nor are those that can mean any hazard; nor, for a hazard, words that mean about
    the same as its own. A hazard that means any, or has nothing of the training in it, has no rivals.

    Args:
        rows: (L, D) unit text embeddings of the concepts of `vocabulary.concept_groups`, one group after another.
        related: see `related_words`.
    """
    config, known = network.config, vocabulary.known_count
    if not config.related_words or not config.rival_margin or not vocabulary.hazards:
        return None
    trained = [concept.casefold() for concept in config.training_concepts]
    groups = [[concept.casefold() for concept in group] for group in vocabulary.concept_groups]
    no_rivals = {concept for group in groups[:known] for concept in group} | set(GENERIC_NAMES)
    kept = [index for index, word in enumerate(trained) if word not in no_rivals]
    of_rivals = network.training_rows.float().cpu().numpy()[kept]
    margins = np.full((len(groups) - known, len(kept)), np.inf, np.float32)
    place = sum(map(len, groups[:known]))
    for hazard, group in enumerate(groups[known:]):
        own = rows[place : place + len(group)]
        place += len(group)
        read_as = [word for word in related if word.owner == known + hazard and word.row is not None]
        words = {*group, *(word.trained.casefold() for word in read_as)}
        is_trained = not words.isdisjoint(trained)
        if is_trained and words.isdisjoint(GENERIC_NAMES):
            margin = config.related_rival_margin if read_as else config.rival_margin
            own = np.concatenate([own, *(word.row[None] for word in read_as if word.row is not None)])
            if margin:
                margins[hazard, (of_rivals @ own.T).max(axis=1) <= SAME_MEANING] = margin
    return Rivals(of_rivals, margins) if np.isfinite(margins).any() else None


def street_vocabulary(hazards: int) -> Vocabulary:
    """The Cityscapes classes and so many hazards without a meaning, for measuring time."""
    return Vocabulary.cityscapes().with_hazards([f"hazard {i}|danger {i}" for i in range(hazards)])


def random_rows(vocabulary: Vocabulary, dimension: int, seed: int = 1) -> np.ndarray:
    """(L, dimension) random directions in place of text embeddings, for networks without training and for measuring time."""
    rows = np.random.default_rng(seed).standard_normal((sum(map(len, vocabulary.concept_groups)), dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
