"""A vocabulary says what can be named, and every mistake in it is named back."""

import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vl4ad_model.errors import VocabularyError
from vl4ad_model.vocabulary import VOID_ID, Vocabulary


def test_cityscapes_has_its_classes_categories_and_colours():
    vocabulary = Vocabulary.cityscapes()
    assert vocabulary.known_count == 19
    assert vocabulary.names[:3] == ("road", "sidewalk", "building") and vocabulary.names[13] == "car"
    assert [name for name, _ in vocabulary.superclasses] == [
        "flat", "construction", "object", "nature", "sky", "human", "vehicle",
    ]  # fmt: skip
    assert dict(vocabulary.superclasses)["vehicle"] == (13, 14, 15, 16, 17, 18)
    assert "palm tree" in vocabulary.classes[8].alternative_concepts
    table = vocabulary.color_table()
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert tuple(table[0]) == (128, 64, 128) and tuple(table[VOID_ID]) == (0, 0, 0)


def test_hazards_follow_the_known_classes_and_replace_each_other():
    vocabulary = Vocabulary.cityscapes().with_hazards(["caravan|camper van", " tyre "])
    assert vocabulary.names[19:] == ("caravan", "tyre")
    assert vocabulary.hazards[0].alternative_concepts == ("caravan", "camper van")
    assert vocabulary.with_hazards(["sofa"]).names[19:] == ("sofa",)
    assert vocabulary.with_hazards([]) == Vocabulary.cityscapes()


def test_hazards_can_be_added_to_those_of_a_file():
    file = Vocabulary.cityscapes().with_hazards(["sofa"])
    assert [hazard.name for hazard in file.adding_hazards(["tyre|tire"]).hazards] == ["sofa", "tyre"]
    assert file.adding_hazards([]) == file
    assert file.adding_hazards([file.hazards[0].prompt]) == file, "what the file names already may be named again"


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Vocabulary.cityscapes().name = "x"


def test_label_info_lists_every_id():
    info = Vocabulary.cityscapes().with_hazards(["tyre|tire"]).to_json_dict()
    assert [entry["id"] for entry in info["classes"]] == list(range(20))
    assert info["classes"][19] | {"color": 0} == {
        "id": 19,
        "name": "tyre",
        "color": 0,
        "kind": "hazard",
        "prompt": "tyre|tire",
    }
    assert info["void"] == 255


def test_colours_of_hazards_differ_from_each_other_and_from_the_classes():
    vocabulary = Vocabulary.cityscapes().with_hazards([f"thing {i}" for i in range(60)])
    table = vocabulary.color_table()[: 19 + 60]
    assert len({tuple(color) for color in table}) == 79


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ([""], "hazard prompt 1 is empty"),
        (["tyre, sofa"], "one prompt per hazard"),
        (["tyre\nsofa"], "one prompt per hazard"),
        (["sofa", "   "], "hazard prompt 2 is empty"),
        (["sofa||couch"], "hazard prompt 1 ('sofa||couch') has an empty alternative"),
        (["tyre|"], "hazard prompt 1 ('tyre|') has an empty alternative"),
        (["['tyre|tire', 'sofa']"], "is not a name: give one prompt per hazard"),
        (["???"], "is not a name"),
        (["tyre", "sofa", "tyre"], "hazard 'tyre': 'tyre' already belongs to hazard 'tyre'"),
        ([7], "hazard prompt 1 is int, not a string"),
        (["a" * 10_000], "10000 characters"),
        (["Car"], "'Car' already belongs to class 'car'"),
        (["sofa", "couch|SOFA"], "already belongs to hazard 'sofa'"),
        (["sofa|Sofa"], "listed twice"),
        ([f"thing {i}" for i in range(300)], "at most 236 fit"),
        (["tyre\x00"], "cannot be printed"),
    ],
)
def test_a_bad_hazard_prompt_is_refused_with_the_reason(prompts, reason):
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.cityscapes().with_hazards(prompts)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_hazard_never_has_the_name_of_a_class_even_where_that_stands_for_other_concepts(tmp_path):
    (tmp_path / "words.yaml").write_text(
        "classes: [road, {name: Barrier, concepts: [guard rail, fence]}, {name: wall, concepts: [barrier]}]"
    )
    with pytest.raises(VocabularyError, match="hazard 'tyre': 'Wall' is the name of a known class"):
        Vocabulary.from_yaml(tmp_path / "words.yaml").with_hazards(["tyre|Wall"])


def test_words_of_any_language_are_welcome():
    assert Vocabulary.cityscapes().with_hazards(["Kühlschrank|冷蔵庫"]).names[19] == "Kühlschrank"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "needs a list 'classes'"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"classes: [", "not YAML"),
        (b"classes: []", "has no classes"),
        (b"classes: [{name: road}, {name: Road}]", "'Road' is listed twice"),
        (b"classes: ['tyre|tire']", "class 'tyre|tire': 'tyre|tire' has a '|': list the alternatives"),
        (b"classes: [{name: road}]\nhazards: false", "'hazards' must be a list of strings"),
        (b"classes: [{name: road, concepts: []}]", "class 'road': 'concepts' must be a list"),
        (b"classes: [{name: no}]", "bool, not a string"),
        (b"classes: [{name: road, color: [1, 2, 300]}]", "class 'road': color must be three numbers"),
        (b"classes: [{name: road, concept: [street]}]", "class 1 'road' has no entry 'concept': did you mean 'concepts'?"),
        (b"clases: [road]", "has no entry 'clases': did you mean 'classes'?"),
        (
            b"classes: [{name: a, concepts: [x]}, {name: b, concepts: [X]}]",
            "class 'b': 'X' already belongs to class 'a'",
        ),
        (b"classes: [{concepts: [x]}]", "class 1: name is NoneType"),
        (b"classes: [road]\nclasses: [car]", "has 'classes' twice in one mapping, line 1"),
        (b"classes: [{name: road, concepts: [road], concepts: [street]}]", "has 'concepts' twice"),
        (b"classes: [{name: 2001-99-99}]", "not usable YAML: month must be in 1..12"),
        (b"[" * 5000, "not usable YAML: maximum recursion"),
        (b"classes: [!!bool maybe]", "not usable YAML"),
        (b"classes: !!map [a, b]", "not usable YAML"),
        (b"classes: [!!timestamp abc]", "not usable YAML"),
        (b'classes: [!!int ""]', "not usable YAML"),
        (b'classes: ["a\x00b"]', "not YAML: unacceptable character #x0000"),
        (b"name: [a]\nclasses: [road]", "name is list, not a string"),
    ],
)
def test_a_bad_file_is_refused_and_the_entry_named(tmp_path, content, reason):
    path = tmp_path / "words.yaml"
    path.write_bytes(content)
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.from_yaml(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value) and "words.yaml" in str(caught.value)


def test_three_hundred_classes_do_not_fit_into_eight_bits(tmp_path):
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump({"classes": [{"name": f"class {i}"} for i in range(300)]}))
    with pytest.raises(VocabularyError, match="at most 255"):
        Vocabulary.from_yaml(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(VocabularyError, match="cannot be read"):
        Vocabulary.from_yaml(tmp_path / "none.yaml")


word = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=12)


@given(st.lists(st.lists(word, min_size=1, max_size=4, unique_by=str.casefold), min_size=0, max_size=8))
def test_whatever_is_accepted_keeps_its_order_and_ids(groups):
    base = Vocabulary.cityscapes()
    try:
        vocabulary = base.with_hazards(["|".join(group) for group in groups])
    except VocabularyError:
        return
    assert vocabulary.concept_groups[:19] == base.concept_groups
    assert [list(group) for group in vocabulary.concept_groups[19:]] == groups


def test_hazards_have_colours_of_their_own_that_stay_when_others_join():
    words = Vocabulary.cityscapes()
    many = words.with_hazards([f"thing number {number}" for number in range(40)])
    colors = [hazard.color for hazard in many.hazards]
    assert [hazard.color for hazard in words.with_hazards(["tyre", "sofa"]).hazards] == colors[:2]
    assert len({*colors, *(entry.color for entry in words.classes)}) == 40 + words.known_count
    # Those that are mostly used are far from every class, and from one another.
    for index, color in enumerate(colors[:4]):
        others = [*colors[:index], *(entry.color for entry in words.classes)]
        assert min(np.abs(np.subtract(color, other)).sum() for other in others) >= 100
