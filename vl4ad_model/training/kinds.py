"""What things are kinds of: a dictionary's knowledge for the text tower.

A sentence encoder puts words together that are used alike or look alike: "keg" near canned food, "fawn" near nothing. Who names a
hazard means the thing. WordNet says that a keg is a barrel and a fawn a deer, so the text tower is taught to put them there. Words
that a decoder was trained with stay where they are, so it need not be trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.training import distillation, text_corpus

THING_FILES = frozenset(("05", "06", "17", "20", "27"))  # WordNet's animals, artefacts, natural objects, plants, substances
FARTHEST = 5  # levels up from a word: "doberman" is four below "dog"
MOST_KINDS = 400  # a concept with more kinds than that ("container", "device") says little
SHARE = 0.75  # of the kind in a word's meaning, beside 1 of the word itself
_DRAWS = {"trained": 10.0, "moved": 8.0}  # how often a word is drawn, others once
RATE = 1.5e-3  # of learning


class _Concept(NamedTuple):
    names: tuple[str, ...]
    above: tuple[str, ...]
    is_thing: bool


class Kinds:
    """WordNet's nouns.

    Args:
        folder: WordNet's `dict` folder.

    Raises:
        SceneError: the folder has no `data.noun` or no `index.noun`.
    """

    def __init__(self, folder: Path) -> None:
        self._concepts: dict[str, _Concept] = {}
        self._senses: dict[str, list[str]] = {}
        for fields in text_corpus.wordnet_lines(folder, "data.noun"):
            count = int(fields[3], 16)
            names = tuple(fields[4 + 2 * index].replace("_", " ") for index in range(count))
            pointers = fields[5 + 2 * count :]
            fours = (pointers[4 * index : 4 * index + 3] for index in range(int(fields[4 + 2 * count])))
            above = tuple(place for symbol, place, speech in fours if symbol == "@" and speech == "n")
            self._concepts[fields[0]] = _Concept(names, above, fields[1] in THING_FILES)
        for fields in text_corpus.wordnet_lines(folder, "index.noun"):
            self._senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        self._below = dict.fromkeys(self._concepts, 0)
        for concept in self._concepts.values():
            for place in self._all_above(concept):
                self._below[place] += 1

    def _all_above(self, concept: _Concept) -> set[str]:
        seen: set[str] = set()
        waiting = list(concept.above)
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                waiting += self._concepts[place].above
        return seen

    def of(self, word: str, told: Collection[str]) -> list[tuple[str, ...]]:
        """The nearest words of `told` that `word` means or is a kind of, one tuple per sense that has any, most usual sense first.

        Senses that are no thing are left out. Of a concept's names those in `told` are given.
        """
        found = []
        for sense in self._senses.get(word, ()):
            level = [sense] if self._concepts[sense].is_thing else []
            for _ in range(1 + FARTHEST):
                near = [self._concepts[place] for place in level if self._below[place] <= MOST_KINDS]
                hits = tuple(dict.fromkeys(name for concept in near for name in concept.names if name in told and name != word))
                if hits:
                    found.append(hits)
                    break
                level = list(dict.fromkeys(place for concept in near for place in concept.above))
        return found


def blend(
    words: Sequence[str], rows: np.ndarray, kinds: Mapping[str, Sequence[Sequence[str]]], *, share: float = SHARE
) -> np.ndarray:
    """Move words towards what they are kinds of; the second sense counts half as much as the first, and so on.

    Args:
        words: L different words. rows: (L, D) float, their unit rows.
        kinds: word -> for each sense the words it is a kind of, all in `words` and none of them moved.

    Returns:
        (L, D) float32 unit rows.
    """
    index = {word: position for position, word in enumerate(words)}
    blended = rows.astype(np.float32)
    for word, senses in kinds.items():
        kind = sum(_unit(rows[[index[name] for name in names]].mean(axis=0)) / rank for rank, names in enumerate(senses, 1))
        blended[index[word]] = _unit(rows[index[word]] + share * _unit(kind))
    return blended


def _unit(row: Any) -> np.ndarray:
    return row / np.linalg.norm(row)


class Plan(NamedTuple):
    """lesson: what the tower is taught. moved: words that it moves, and their kinds. left_out: the same of words never taught."""

    lesson: distillation.Lesson
    moved: dict[str, list[tuple[str, ...]]]
    left_out: dict[str, list[tuple[str, ...]]]


def prepare(
    model: Any,
    tokenizer: Any,
    wordnet: Path,
    concepts: Iterable[str],
    trained: Iterable[str],
    *,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Collect what the tower says now, and what it shall say.

    Args:
        model: open_clip model with a text tower that `distillation` taught.
        wordnet: WordNet's `dict` folder.
        concepts: of the known classes, as for `distillation.prepare`: the words that it never taught are not taught here.
        trained: the words that must stay, those of `concepts` among them.
        on_progress: called with (done, total) words.

    Raises:
        SceneError: the folder is not WordNet's.
    """
    dictionary = Kinds(wordnet)
    stay = {word.casefold() for word in trained}
    corpus = text_corpus.build(wordnet, concepts, text_corpus.whole_words(tokenizer), seed=seed)
    never = set(corpus.held_out) - stay
    taught = list(dict.fromkeys([*corpus.names, *sorted(stay)]))
    words = [*taught, *sorted(never)]
    rows = distillation.embed_quickly(model, tokenizer, words, on_progress=on_progress)
    staying = [position for position, word in enumerate(words) if word in stay]
    rows[staying] = distillation.embed(model, tokenizer, [words[position] for position in staying])
    kinds = {word: found for word in words if word not in stay and (found := dictionary.of(word, stay))}
    goal = blend(words, rows, kinds)
    draws = np.array([_DRAWS["trained"] if word in stay else _DRAWS["moved"] if word in kinds else 1.0 for word in taught])
    count = len(taught)
    nothing = np.zeros((0, goal.shape[1]), np.float32)
    lesson = distillation.Lesson(tuple(taught), goal[:count], draws, tuple(words[count:]), goal[count:], nothing, {}, tokenizer)
    left_out = {word: found for word, found in kinds.items() if word in never}
    return Plan(lesson, {word: found for word, found in kinds.items() if word not in never}, left_out)


def nearest_are_right(
    embed: Callable[[Sequence[str]], np.ndarray], kinds: Mapping[str, Sequence[Sequence[str]]], trained: Sequence[str]
) -> tuple[int, int]:
    """How many words lie nearest, of all `trained`, to one that they are a kind of in their most usual sense: (right, of)."""
    words = list(kinds)
    if not words:
        return 0, 0
    nearest = (embed(words) @ embed(trained).T).argmax(axis=1)
    return sum(trained[best] in kinds[word][0] for word, best in zip(words, nearest.tolist(), strict=True)), len(words)
