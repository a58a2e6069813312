"""What can be named: known classes with alternative concepts and superclasses, and hazards in words. Immutable."""

from __future__ import annotations

import colorsys
import dataclasses
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl4ad_model.errors import VocabularyError, did_you_mean
from vl4ad_model.hazard_colors import hazard_colors
from vl4ad_model.shared_files import shared_file

if TYPE_CHECKING:
    import numpy as np

VOID_ID = 255
MAX_IDS = 255  # 0..254; 255 is void
MAX_CONCEPT_CHARACTERS = 200
MAX_CONCEPTS = 64


@dataclass(frozen=True)
class VocabularyClass:
    """A known class: its name, the concepts that stand for it in text, its superclass and its RGB colour (0..255)."""

    name: str
    alternative_concepts: tuple[str, ...]
    superclass: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Hazard:
    """Something the known classes do not cover, in words. Named by its first alternative."""

    alternative_concepts: tuple[str, ...]
    color: tuple[int, int, int]

    @property
    def name(self) -> str:
        return self.alternative_concepts[0]

    @property
    def prompt(self) -> str:
        """The hazard as a person writes it: alternatives joined by `|`."""
        return "|".join(self.alternative_concepts)


@dataclass(frozen=True)
class Vocabulary:
    """Known classes with ids 0..K-1 in order, then hazards with ids K..K+Q-1. 255 is void.

    Concepts are kept as written but for white space, which is trimmed and collapsed; two that differ only in case are one.
    """

    name: str
    classes: tuple[VocabularyClass, ...]
    hazards: tuple[Hazard, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            raise VocabularyError(f"vocabulary '{self.name}' has no classes: list at least one under 'classes'")
        if len(self.classes) + len(self.hazards) > MAX_IDS:
            raise VocabularyError(
                f"{len(self.classes)} classes and {len(self.hazards)} hazards: labels are 8 bit, at most {MAX_IDS} together"
            )
        owner: dict[str, tuple[int, str]] = {}
        names: set[str] = set()
        for entry in self.classes:
            if entry.name.casefold() in names:
                raise VocabularyError(f"class '{entry.name}' is listed twice")
            names.add(entry.name.casefold())
        entries = [(f"class '{entry.name}'", entry.alternative_concepts) for entry in self.classes]
        entries += [(f"hazard '{hazard.name}'", hazard.alternative_concepts) for hazard in self.hazards]
        for index, (title, concepts) in enumerate(entries):
            for concept in concepts:
                first, other = owner.setdefault(concept.casefold(), (index, title))
                if first != index:
                    raise VocabularyError(f"{title}: '{concept}' already belongs to {other}")
                if index >= len(self.classes) and concept.casefold() in names:
                    raise VocabularyError(f"{title}: '{concept}' is the name of a known class")

    # --- making one -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_yaml(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary file (see config/vocabularies/cityscapes.yaml for the format).

        Raises:
            VocabularyError: the file cannot be read, or an entry is wrong; the message names it.
        """
        path = Path(os.path.expanduser(path))  # a parameter of a node comes without a shell that does it
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise VocabularyError(f"vocabulary file {path} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise VocabularyError(f"vocabulary file {path} is not UTF-8 (byte {error.start})") from None
        content = parse_yaml(text, f"vocabulary file {path}")
        try:
            return cls._from_content(content, path.stem)
        except VocabularyError as error:
            raise VocabularyError(f"vocabulary file {path}: {error}") from None

    @classmethod
    def _from_content(cls, content: Any, name: str) -> Vocabulary:
        if isinstance(content, Mapping):
            _check_entries(content, ("name", "classes", "hazards"), "the file")
        if not isinstance(content, Mapping) or not isinstance(content.get("classes"), list):
            raise VocabularyError("it needs a list 'classes'")
        classes = tuple(_class_from(entry, index) for index, entry in enumerate(content["classes"]))
        vocabulary = cls(_text(content.get("name", name), "name"), classes)
        hazards = content.get("hazards")
        if hazards is None:  # a key with nothing after it
            hazards = []
        if not isinstance(hazards, list):
            raise VocabularyError("'hazards' must be a list of strings")
        return vocabulary.with_hazards(hazards) if hazards else vocabulary

    @classmethod
    def cityscapes(cls) -> Vocabulary:
        """The shipped vocabulary: 19 classes, 7 superclasses."""
        return cls.from_yaml(shipped_vocabulary())

    def with_hazards(self, prompts: Sequence[str]) -> Vocabulary:
        """The same classes with these hazards INSTEAD of the present ones.

        Args:
            prompts: one string per hazard, its alternatives separated by `|`: ["caravan|camper van", "tyre"].

        Raises:
            VocabularyError: a prompt is not a string, empty, too long, or names something that is known already.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        room = MAX_IDS - len(self.classes)
        if len(prompts) > room:
            raise VocabularyError(f"{len(prompts)} hazard prompts: with {len(self.classes)} known classes at most {room} fit")
        colors = hazard_colors(tuple(entry.color for entry in self.classes), len(prompts))
        hazards = []
        for index, prompt in enumerate(prompts):
            title = f"hazard prompt {index + 1}"
            if not isinstance(prompt, str):
                raise VocabularyError(f"{title} is {type(prompt).__name__}, not a string: {prompt!r:.60}")
            alternatives = prompt.split("|")
            if len(alternatives) > 1 and not all(part.strip() for part in alternatives):
                raise VocabularyError(f"{title} ('{prompt:.40}') has an empty alternative")
            if any(sign in prompt.strip() for sign in '[]{}",;\n') or (prompt.strip() and not any(map(_says_something, prompt))):
                raise VocabularyError(
                    f"{title} ({prompt!r:.60}) is not a name: give one prompt per hazard, alternatives joined by '|'"
                )
            concepts = _concepts(alternatives, title)
            hazards.append(Hazard(concepts, colors[index]))
        return dataclasses.replace(self, hazards=tuple(hazards))

    def adding_hazards(self, prompts: Sequence[str]) -> Vocabulary:
        """The same classes and hazards, and these hazards besides, unless they are among them already; as `with_hazards`."""
        mine = [hazard.prompt for hazard in self.hazards]
        new = [prompt for prompt in prompts if prompt not in mine]
        return self.with_hazards([*mine, *new]) if new else self

    # --- reading it -----------------------------------------------------------------------------------------------------

    @property
    def _entries(self) -> tuple[VocabularyClass | Hazard, ...]:
        return (*self.classes, *self.hazards)

    @property
    def known_count(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def hazard_count(self) -> int:
        """Q."""
        return len(self.hazards)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every id, known classes first."""
        return tuple(entry.name for entry in self._entries)

    @cached_property
    def concept_groups(self) -> tuple[tuple[str, ...], ...]:
        """The alternative concepts of every id, known classes first."""
        return tuple(entry.alternative_concepts for entry in self._entries)

    @cached_property
    def superclasses(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, ids of its known classes) in order of first appearance."""
        groups: dict[str, list[int]] = {}
        for index, entry in enumerate(self.classes):
            groups.setdefault(entry.superclass, []).append(index)
        return tuple((name, tuple(ids)) for name, ids in groups.items())

    def color_table(self) -> np.ndarray:
        """(256, 3) uint8 RGB: the colour of every id; black for void and unused ids."""
        import numpy as np

        table = np.zeros((256, 3), np.uint8)
        for index, entry in enumerate(self._entries):
            table[index] = entry.color
        return table

    def to_json_dict(self) -> dict[str, Any]:
        """What a subscriber needs to read label images."""
        known = [
            {"id": i, "name": c.name, "color": list(c.color), "kind": "known", "superclass": c.superclass}
            for i, c in enumerate(self.classes)
        ]
        hazards = [
            {"id": self.known_count + i, "name": h.name, "color": list(h.color), "kind": "hazard", "prompt": h.prompt}
            for i, h in enumerate(self.hazards)
        ]
        return {"vocabulary": self.name, "void": VOID_ID, "classes": known + hazards}


def shipped_vocabulary(name: str = "cityscapes") -> Path:
    """Where a vocabulary of config/vocabularies lies."""
    path = shared_file(f"config/vocabularies/{name}.yaml")
    if path is None:
        raise VocabularyError(f"the shipped vocabulary '{name}' is missing: reinstall vl4ad_ros, or give a vocabulary file")
    return path


def parse_yaml(text: str, title: str) -> Any:
    """YAML to plain values; a key that stands twice in one mapping is a mistake, not a silent choice of the last.

    Raises:
        VocabularyError: whatever is wrong, in one line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
            if twice is not None:
                raise VocabularyError(f"{title} has '{twice}' twice in one mapping, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise VocabularyError(f"{title} is not YAML{where}: {problem}") from None
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        # A date such as 2001-99-99, brackets nested a thousand deep, `!!bool maybe`: the parser's own exceptions.
        raise VocabularyError(f"{title} is not usable YAML: {error}") from None


def _check_entries(content: Mapping[Any, Any], known: tuple[str, ...], title: str) -> None:
    for key in content:
        if key not in known:
            raise VocabularyError(f"{title} has no entry '{key}': {did_you_mean(key, known)}")


def _class_from(entry: Any, index: int) -> VocabularyClass:
    title = f"class {index + 1}"
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping):
        hint = "; YAML reads a bare yes, no, on or off as true or false: put quotes around it" if isinstance(entry, bool) else ""
        raise VocabularyError(
            f"{title} is {entry!r:.40}: give a name, or a mapping with 'name', 'concepts', 'superclass' and 'color'{hint}"
        )
    if isinstance(entry.get("name"), str):
        title += f" '{entry['name']:.40}'"
    _check_entries(entry, ("name", "concepts", "superclass", "color"), title)
    name = _text(entry.get("name"), f"{title}: name")
    title = f"class '{name}'"
    concepts = entry.get("concepts", [name])
    if not isinstance(concepts, list) or not concepts:
        raise VocabularyError(f"{title}: 'concepts' must be a list with at least one entry")
    superclass = _text(entry.get("superclass", name), f"{title}: superclass")
    return VocabularyClass(name, _concepts(concepts, title), superclass, _color(entry.get("color"), title, index))


def _concepts(values: Sequence[Any], title: str) -> tuple[str, ...]:
    if len(values) > MAX_CONCEPTS:
        raise VocabularyError(f"{title} has {len(values)} alternatives, at most {MAX_CONCEPTS} are allowed")
    concepts: list[str] = []
    for value in values:
        concept = _text(value, title)
        if "|" in concept:
            raise VocabularyError(f"{title}: '{concept:.60}' has a '|': list the alternatives of a class under 'concepts'")
        if concept.casefold() in (known.casefold() for known in concepts):
            raise VocabularyError(f"{title}: '{concept}' is listed twice")
        concepts.append(concept)
    return tuple(concepts)


def _says_something(character: str) -> bool:
    """Letters, digits and symbols such as emoji; not spaces and punctuation."""
    return unicodedata.category(character)[0] not in "PZC"


def _text(value: Any, title: str) -> str:
    if not isinstance(value, str):
        raise VocabularyError(f"{title} is {type(value).__name__}, not a string: {value!r:.60} (quote it in YAML)")
    text = " ".join(value.split())
    if not text:
        raise VocabularyError(f"{title} is empty")
    if len(text) > MAX_CONCEPT_CHARACTERS:
        raise VocabularyError(f"{title}: '{text[:30]}...' has {len(text)} characters, at most {MAX_CONCEPT_CHARACTERS} are allowed")
    if not text.isprintable():
        raise VocabularyError(f"{title} has characters that cannot be printed: {text!r:.60}")
    return text


def _color(value: Any, title: str, index: int) -> tuple[int, int, int]:
    if value is None:
        return _wheel_color(index + 7)
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or len(value) != 3
        or not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in value)
    ):
        raise VocabularyError(f"{title}: color must be three numbers 0..255, not {value!r:.60}")
    return (value[0], value[1], value[2])


def _wheel_color(index: int) -> tuple[int, int, int]:
    """Bright colours around the hue circle in golden-ratio steps: far apart, and the same every time."""
    red, green, blue = colorsys.hsv_to_rgb((0.08 + index * 0.618034) % 1.0, 1.0 if index % 2 == 0 else 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
