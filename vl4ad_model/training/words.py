"""The vocabulary of one training step: known classes in varying words, some hazards named, some not, and names of absent things.

Synonym sampling makes the decoder learn what words mean instead of one row each; hazards that the step leaves unnamed must become
void, which is how the network learns to be surprised by what no word names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vl4ad_model.network_words import GENERIC_NAMES
from vl4ad_model.prompts import TextEncoder
from vl4ad_model.vocabulary import Vocabulary

NO_HAZARDS, GENERIC = 0.15, 0.15
NAMED = 0.85
DISTRACTORS = 24
TOO_SIMILAR = 0.6
LEAST_ALIKE = 0.5  # cosine between a name and its paraphrase


@dataclass(frozen=True)
class Words:
    """One step's words.

    Attributes:
        rows: (L, D) unit text rows of all words of the training, drawn or not.
        index: (C, A) rows of each class, padded by repetition.
        columns: hazard name -> class column.
        owners: (L,) int64: which thing each row is a name of; -1 = of nothing in particular.
        things: hazard name -> owner; known class k has owner k.
    """

    rows: Tensor
    index: Tensor
    columns: dict[str, int]
    owners: Tensor
    things: dict[str, int]

    @property
    def void_column(self) -> int:
        """C: the column of what the step's vocabulary does not name."""
        return int(self.index.shape[0])

    def to(self, device: torch.device) -> Words:
        """The same on another device."""
        return replace(self, rows=self.rows.to(device), index=self.index.to(device), owners=self.owners.to(device))


class WordSampler:
    """Draws the words of each step.

    Args:
        vocabulary: known classes.
        names: hazard name -> all names training may use for it, itself first.
        text: encodes them, once.
        paraphrased: share of the drawn names of hazards, there or not, that are moved to where an unknown synonym could lie.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        names: dict[str, tuple[str, ...]],
        text: TextEncoder,
        seed: int,
        *,
        paraphrased: float = 0.0,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._paraphrased = paraphrased
        self._known = vocabulary.concept_groups[: vocabulary.known_count]
        self._names = names
        concepts = list(dict.fromkeys([c for group in self._known for c in group] + [n for all_ in names.values() for n in all_]))
        concepts += [name for name in GENERIC_NAMES if name not in concepts]
        self._place = {concept: index for index, concept in enumerate(concepts)}
        self._rows = torch.from_numpy(text.encode_concepts(concepts))
        self._pool = list(names)
        self._things = {name: len(self._known) + i for i, name in enumerate(names)}
        self._owners = torch.full((len(concepts),), -1, dtype=torch.int64)
        # Where two things share a word it belongs to the one whose first name it is, or to the known class.
        for name, all_ in names.items():
            self._owners[[self._place[n] for n in all_]] = self._things[name]
        for name in names:
            self._owners[self._place[name]] = self._things[name]
        for k, group in enumerate(self._known):
            self._owners[[self._place[concept] for concept in group]] = k
        self._things = {name: int(self._owners[self._place[name]]) for name in names}
        self._canonical = self._rows[[self._place[name] for name in self._pool]] if names else self._rows[:0]

    def restart(self, seed: int) -> None:
        """Draw from another seed."""
        self._rng = np.random.default_rng(seed)

    def sample(self, present: Sequence[str]) -> Words:
        """Words for a batch in which the hazards `present` can be seen; those without a name get a generic one or none."""
        rng = self._rng
        groups = [self._some(group) for group in self._known]
        columns: dict[str, int] = {}
        kind = rng.random()
        present = sorted(set(present))
        if kind >= NO_HAZARDS:
            if present and kind < NO_HAZARDS + GENERIC:
                columns = dict.fromkeys(present, len(groups))
                groups.append(self._some(GENERIC_NAMES))
            else:
                for name in self._named(present):
                    if rng.random() < NAMED:
                        columns[name] = len(groups)
                        groups.append(self._some(self._names[name]))
            groups += self._distractors(self._named(present))
        widest = max(map(len, groups))
        index = torch.tensor([[self._place[c] for c in (group + [group[0]] * widest)[:widest]] for group in groups])
        return self._paraphrase(Words(self._rows, index, columns, self._owners, self._things))

    def _named(self, present: Sequence[str]) -> list[str]:
        return [name for name in present if name in self._names]

    def _paraphrase(self, words: Words) -> Words:
        """Move some of the hazards' words by a random mixture of all words; what is moved has no owner."""
        of_hazards = np.unique(words.index[len(self._known) :].numpy())
        moved = of_hazards[self._rng.random(len(of_hazards)) < self._paraphrased]
        if not len(moved):
            return words
        rows = words.rows[moved]
        mixture = torch.from_numpy(self._rng.normal(size=(len(moved), len(words.rows))).astype(np.float32)) @ words.rows
        across = mixture - (mixture * rows).sum(-1, keepdim=True) * rows
        across = across / across.norm(dim=-1, keepdim=True)
        cosine = torch.from_numpy(self._rng.uniform(LEAST_ALIKE, 1.0, (len(moved), 1)).astype(np.float32))
        elsewhere = cosine * rows + (1 - cosine.square()).sqrt() * across
        index = words.index.clone()
        for place, row in enumerate(moved):
            index[len(self._known) :][words.index[len(self._known) :] == row] = len(words.rows) + place
        owners = torch.cat((words.owners, torch.full((len(moved),), -1, dtype=torch.int64)))
        return replace(words, rows=torch.cat((words.rows, elsewhere)), index=index, owners=owners)

    def _some(self, concepts: Sequence[str]) -> list[str]:
        if self._rng.random() < 0.4:
            return list(concepts)
        count = int(self._rng.integers(1, len(concepts) + 1))
        return [concepts[i] for i in self._rng.choice(len(concepts), count, replace=False)]

    def _distractors(self, present: Sequence[str]) -> list[list[str]]:
        """Names of things that are not there, and not nearly what is there."""
        if not self._pool:
            return []
        count = int(self._rng.integers(0, DISTRACTORS + 1))
        picked = self._rng.choice(len(self._pool), min(count, len(self._pool)), replace=False)
        if not present or not len(picked):
            return [[self._pool[i]] for i in picked]
        there = self._rows[[self._place[name] for name in present]]
        near = (self._canonical[picked] @ there.T).amax(dim=1)
        return [[self._pool[i]] for i, cosine in zip(picked, near.tolist(), strict=True) if cosine < TOO_SIMILAR]
