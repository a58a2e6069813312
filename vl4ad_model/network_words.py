"""A vocabulary made ready for one network: its scales, its void embedding and the words it was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.scoring import RelatedWord, TextClassifier, prepare_classifier
from vl4ad_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vl4ad_model.network.fcclip import FCCLIP


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
        related=related_words(network, vocabulary, rows),
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
    taken = {concept.casefold() for group in groups for concept in group}
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
            if likeness[nearest] > config.related_words and trained[nearest] not in taken:
                taken.add(trained[nearest])
                found.append(RelatedWord(owner, concept, config.training_concepts[nearest], of_trained[nearest]))
            else:
                found.append(RelatedWord(owner, concept, "", None))
    return found


def street_vocabulary(hazards: int) -> Vocabulary:
    """The Cityscapes classes and so many hazards without a meaning, for measuring time."""
    return Vocabulary.cityscapes().with_hazards([f"hazard {i}|danger {i}" for i in range(hazards)])


def random_rows(vocabulary: Vocabulary, dimension: int, seed: int = 1) -> np.ndarray:
    """(L, dimension) random directions in place of text embeddings, for networks without training and for measuring time."""
    rows = np.random.default_rng(seed).standard_normal((sum(map(len, vocabulary.concept_groups)), dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
