"""Concepts become unit rows: averaged over the templates, encoded once, and cached in files that are never just trusted."""

import numpy as np
import pytest
import torch

from vl4ad_model.errors import VocabularyError
from vl4ad_model.network.clip import FrozenClip, build_open_clip, tokenizer
from vl4ad_model.network.deterministic import fill_deterministically
from vl4ad_model.prompts import PROMPT_TEMPLATES, TextEncoder, average_templates


def make(folder=None, key="weights", dimension=16, **arguments):
    table = torch.randn(49408, dimension, generator=torch.Generator().manual_seed(0))
    tokenize, end = tokenizer("any", {"text_cfg": {"context_length": 24}})
    return TextEncoder(
        lambda tokens: table[tokens].mean(dim=1) + 1.0, tokenize, weights_key=key, end_token=end, cache_folder=folder, **arguments
    )


def test_fourteen_templates_each_with_one_place_for_the_concept():
    assert len(set(PROMPT_TEMPLATES)) == 14
    assert all(template.count("{}") == 1 for template in PROMPT_TEMPLATES)


def test_every_prompt_is_normalised_before_the_mean_and_the_mean_after():
    embeddings = np.array([[[3.0, 0.0], [0.0, 0.5]]])
    assert np.allclose(average_templates(embeddings), [[2**-0.5, 2**-0.5]])


def test_rows_are_unit_in_order_and_do_not_depend_on_company():
    rows = make().encode_concepts(["sofa", "tyre", "sofa"])
    assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.array_equal(rows[0], rows[2])
    assert np.allclose(make().encode_concepts(["tyre"])[0], rows[1], atol=1e-6)


def test_a_new_concept_is_the_only_one_encoded(tmp_path):
    encoder = make(tmp_path)
    encoder.encode_concepts(["sofa", "tyre"])
    assert encoder.encoded_concepts == 2
    encoder.encode_concepts(["tyre", "sofa", "dog"])
    assert encoder.encoded_concepts == 3
    again = make(tmp_path)
    again.encode_concepts(["dog", "sofa", "tyre"])
    assert again.encoded_concepts == 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "nan", "empty"])
def test_a_cache_file_that_does_not_check_out_is_ignored_and_rewritten(tmp_path, damage):
    expected = make(tmp_path).encode_concepts(["sofa"])
    (path,) = tmp_path.rglob("*.bin")
    content = bytearray(path.read_bytes())
    other = make(tmp_path)
    other.encode_concepts(["tyre"])
    foreign = next(p for p in tmp_path.rglob("*.bin") if p != path).read_bytes()
    nan = content[:41] + np.full(16, np.nan, np.float32).tobytes()
    content[-1] ^= 1
    path.write_bytes(
        {"truncate": bytes(content[:-4]), "flip": bytes(content), "foreign": foreign, "nan": bytes(nan), "empty": b""}[damage]
    )
    encoder = make(tmp_path)
    assert np.array_equal(encoder.encode_concepts(["sofa"]), expected) and encoder.encoded_concepts == 1
    healed = make(tmp_path)
    healed.encode_concepts(["sofa"])
    assert healed.encoded_concepts == 0


def test_other_weights_never_share_a_cache(tmp_path):
    make(tmp_path).encode_concepts(["sofa"])
    other = make(tmp_path, key="other weights")
    other.encode_concepts(["sofa"])
    assert other.encoded_concepts == 1


def test_the_same_weights_under_another_activation_are_another_text_tower():
    small = {"embed_dim": 8, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}
    text = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}

    def key(**changes):
        tower = FrozenClip(build_open_clip("small", {**small, "text_cfg": {**text, **changes.pop("text", {})}, **changes}))
        fill_deterministically(tower)
        return tower.text_weights_key()

    keys = [key(), key(quick_gelu=True), key(text={"heads": 4})]
    assert len(set(keys)) == 3 and key() == keys[0]


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    encoder = make(blocked)
    assert encoder.encode_concepts(["sofa", "tyre"]).shape == (2, 16)
    assert sum("not cached" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_left_out_where_it_changes_nothing(causal):
    """Texts of any length, alone and with others: what open_clip itself computes over the whole context."""
    text = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3, "no_causal_mask": not causal}
    config = {"embed_dim": 16, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, "text_cfg": text}
    clip, tokenize = FrozenClip(build_open_clip("small", config)), tokenizer("small", config)[0]
    fill_deterministically(clip)
    words = ["", "sofa", "There is a large traffic cone in the scene.", "very " * 60]
    with torch.inference_mode():
        for texts in (words, *([word] for word in words)):
            tokens = tokenize(texts)
            assert torch.allclose(clip.encode_text(tokens), clip.model.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_progress_is_told_in_concepts_and_cached_ones_are_none(tmp_path):
    told = []
    encoder = make(tmp_path, progress=lambda *counts: told.append(counts))
    encoder.encode_concepts([f"thing {'very ' * (i % 5)}{i}" for i in range(20)])
    assert told[0] == (0, 20) and told[-1] == (20, 20) and told == sorted(set(told)) and len(told) > 2
    encoder.encode_concepts(["thing 0"])
    assert told[-1] == (20, 20)


def test_a_text_that_the_encoder_would_cut_off_is_refused():
    with pytest.raises(VocabularyError, match="too long for the text encoder"):
        make().encode_concepts(["a very long list of words " * 5])
