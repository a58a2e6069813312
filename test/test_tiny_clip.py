"""The shipped tiny CLIP takes any prompt, knows what words mean, and needs no network, no transformers and little disk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vl4ad_model import registry
from vl4ad_model.errors import VocabularyError
from vl4ad_model.network.clip import tokenizer
from vl4ad_model.prompts import PROMPT_TEMPLATES, TextEncoder
from vl4ad_model.scenes.hazards import HAZARD_TYPES
from vl4ad_model.vocabulary import Vocabulary

FOLDER = registry.MODELS["tiny"].folder


@pytest.fixture(scope="module")
def clip():
    return registry.build_network(registry.locate("tiny", offline=True))[0].clip


@pytest.fixture(scope="module")
def text(clip):
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    tokenize, end = tokenizer(config["clip_model"], config["clip_config"])
    return TextEncoder(clip.encode_text, tokenize, weights_key="none", end_token=end)


def nearest(text, words, names):
    return text.encode_concepts(words) @ text.encode_concepts(names).T


def test_it_loads_and_understands_a_prompt_without_network_and_without_transformers():
    script = """
import socket, sys
def refuse(*_, **__): raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = refuse
for name in ("transformers", "sentence_transformers", "tokenizers"): sys.modules[name] = None
from vl4ad_model.segmenter import Segmenter
segmenter = Segmenter.load("tiny", engine="torch", offline=True)
segmenter.vocabulary = segmenter.vocabulary.with_hazards(["a sofa somebody lost"])
print(segmenter.encoded_concepts > 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize(
    "prompt", ["sofa", "🛞", "👨‍👩‍👧", "Straßenbahn", "自転車", "дорожный конус", "x", "?!", "a\tb\nc", "\u202e", "50% off"]
)
def test_any_prompt_has_a_meaning_of_unit_length(text, prompt):
    row = text.encode_concepts([prompt])
    assert row.shape[0] == 1 and np.isfinite(row).all()
    assert np.isclose(np.linalg.norm(row), 1, atol=1e-5)


def test_a_prompt_of_ten_thousand_characters_is_refused_in_one_line(text):
    with pytest.raises(VocabularyError, match="too long") as refused:
        text.encode_concepts(["sofa " * 2000])
    assert len(str(refused.value)) < 200 and "\n" not in str(refused.value)


def test_every_template_says_the_same(clip):
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    tokenize, _ = tokenizer(config["clip_model"], config["clip_config"])
    with torch.inference_mode():
        for word in ("sofa", "traffic cone", "washing machine"):
            rows = clip.encode_text(tokenize([template.format(word) for template in (*PROMPT_TEMPLATES, "{}")]))
            unit = torch.nn.functional.normalize(rows, dim=1)
            assert float((unit @ unit.T).min()) > 0.9


@pytest.mark.parametrize(("which", "floor"), [("synonyms", 0.83), ("unheard", 0.8)])
def test_other_words_for_a_hazard_lie_nearest_to_its_name(text, which, floor):
    pairs = [(word, index) for index, kind in enumerate(HAZARD_TYPES) for word in getattr(kind, which)]
    cosines = nearest(text, [word for word, _ in pairs], [kind.name for kind in HAZARD_TYPES])
    right = np.mean(cosines.argmax(axis=1) == [index for _, index in pairs])
    assert right >= floor


def test_a_kind_of_thing_lies_nearest_to_that_thing(text):
    kinds = {"keg": "barrel", "fawn": "deer", "doberman": "dog", "heifer": "cow", "canoe": "boat", "stallion": "horse"}
    names = [kind.name for kind in HAZARD_TYPES]
    cosines = nearest(text, list(kinds), names)
    assert [names[best] for best in cosines.argmax(axis=1)] == list(kinds.values())
    assert cosines.max(axis=1).min() > 0.5  # from which a word is also read as the nearest of the training


def test_different_things_are_far_apart_and_like_things_near(text):
    names = [entry.name for entry in Vocabulary.cityscapes().classes]
    cosines = nearest(text, names, names)[np.triu_indices(len(names), 1)]
    assert cosines.mean() < 0.25 and cosines.max() < 0.85
    assert nearest(text, ["sofa"], ["couch"])[0, 0] > 0.6 > 0.3 > nearest(text, ["sofa"], ["sky"])[0, 0]


def test_the_image_head_speaks_the_language_of_the_text_tower(clip, text):
    """Flat grey is no picture of anything, but whatever it is called, it is called by unit vectors of the joint space."""
    dense = clip(torch.zeros(1, 3, 64, 96)).dense
    embeddings, valid = clip.pool(dense, torch.ones(1, 2, 16, 24))
    assert embeddings.shape == (1, 2, text.encode_concepts(["sofa"]).shape[1]) and bool(valid.all())
    assert torch.isfinite(embeddings).all() and float(embeddings.norm(dim=-1).min()) > 0


def test_everything_the_model_needs_fits_in_thirty_megabytes():
    assert sum(path.stat().st_size for path in Path(FOLDER).iterdir()) <= 30e6
    assert (FOLDER / "clip.safetensors").stat().st_size <= 24e6
