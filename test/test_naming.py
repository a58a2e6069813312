"""The branch for names that training did not use: what it learns, where it is asked, and what fitting it leaves alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vl4ad_model import cli, prompts, registry
from vl4ad_model.errors import TrainingError
from vl4ad_model.network.checkpoint import read_tensors, write_safetensors
from vl4ad_model.network.clip import tokenizer
from vl4ad_model.network.fcclip import FCCLIPConfig
from vl4ad_model.network.proposals import MaskProposals
from vl4ad_model.network_words import classifier_for, random_rows
from vl4ad_model.scoring import RelatedWord, Rivals, Scorer, prepare_classifier, query_class_probabilities
from vl4ad_model.segmenter import Segmenter
from vl4ad_model.training import naming
from vl4ad_model.training.config import DataSource, TrainingConfig
from vl4ad_model.training.data import find_frames, hazard_names, read_frame
from vl4ad_model.training.words import Words
from vl4ad_model.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
FRAMES = ROOT / "test/data/evaluation/seen"


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_a_thing_is_named_that_was_never_named_before(seed):
    """Things whose features follow from their meaning: 60 are taught, and 20 others get their own name out of 20."""
    generator = torch.Generator().manual_seed(seed)
    meanings = unit(torch.randn(80, 16, generator=generator))
    things = torch.arange(80).repeat(30)
    shown = meanings @ torch.randn(16, 24, generator=generator)
    pooled = 5 + 3 * shown[things] + torch.randn(len(things), 24, generator=generator)
    taught = things < 60
    words = Words(meanings[:60], torch.zeros(1, 1, dtype=torch.int64), {}, torch.arange(60), {})
    weight, bias = naming.fit(
        naming.Answers(pooled[taught], things[taught], torch.ones(int(taught.sum()))), words, seed=seed, steps=200
    )
    embeddings = unit(pooled[~taught] @ weight.T + bias)
    right = (embeddings @ meanings[60:].T).argmax(dim=-1) + 60 == things[~taught]
    assert right.float().mean() > 0.6  # chance is 0.05


def test_too_few_things_are_said_to_be_too_few():
    few = naming.Answers(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3))
    words = Words(torch.eye(4), torch.zeros(1, 1, dtype=torch.int64), {}, torch.arange(4), {})
    with pytest.raises(TrainingError, match=r"only 3 things .* more crops"):
        naming.fit(few, words)


def test_words_of_the_training_are_judged_by_the_class_embedding_alone(network):
    """So without prompts, and with trained ones, the other branch has no say; one trained word is enough for a hazard."""
    vocabulary = Vocabulary.cityscapes().with_hazards(["tyre|spare wheel", "sofa", "obstacle"])
    words = classifier_for(network, vocabulary, random_rows(vocabulary, network.clip.embed_dim))
    assert words.class_weight[: vocabulary.known_count].tolist() == [0.0] * 19
    assert words.class_weight[19:].tolist() == [0.0, pytest.approx(network.config.beta), 0.0]
    plain = Vocabulary.cityscapes()
    assert not classifier_for(network, plain, random_rows(plain, network.clip.embed_dim)).needs_pooled


def related(network, *hazards: str) -> dict[str, str]:
    """What `tiny` also reads hazards as, with its own text tower."""
    tokenize, end = tokenizer(network.config.clip_model, network.config.clip_config)
    text = prompts.TextEncoder(network.clip.encode_text, tokenize, weights_key=network.clip.text_weights_key(), end_token=end)
    vocabulary = Vocabulary.cityscapes().with_hazards(list(hazards))
    words = classifier_for(network, vocabulary, text.encode_concepts([c for group in vocabulary.concept_groups for c in group]))
    assert len(words.rows) == sum(map(len, vocabulary.concept_groups)) + sum(1 for _, trained in words.related if trained)
    return dict(words.related)


def test_a_word_that_training_did_not_use_is_also_read_as_the_nearest_trained_one(network):
    assert related(network, "storage crate", "tyre|spare wheel", "xylophone") == {"storage crate": "crate", "xylophone": ""}


def test_a_hazard_is_read_as_no_known_class_and_as_no_other_hazard(network):
    assert related(network, "road closure") == {"road closure": "road obstacle"}
    assert related(network, "crate", "storage crate") == {"storage crate": ""}
    shared = related(network, "storage crate", "crate for storage")
    assert sorted(shared.values()) == ["", "crate"]


def test_two_words_of_a_hazard_may_be_near_the_same_trained_one(network):
    assert list(related(network, "storage crate|crate for storage").values()) == ["crate"], "none of them is a guess"


def test_a_related_word_finds_what_the_word_itself_misses(network):
    """A query that says "crate", and a prompt that is only near to it."""
    vocabulary = Vocabulary.cityscapes().with_hazards(["storage box"])
    rows = random_rows(vocabulary, network.clip.embed_dim)
    crate = unit(torch.from_numpy(random_rows(vocabulary, network.clip.embed_dim, seed=2)[:1]))
    words = {"classifier": "in_vocabulary", "merge_classes": False, "void": None, "in_logit_scale": 4.0, "out_logit_scale": 0.0}
    owner = vocabulary.known_count

    def probability(*also: RelatedWord) -> float:
        classifier = prepare_classifier(vocabulary, rows, related=also, **words)
        return float(query_class_probabilities(classifier, crate, None, None)[0, owner])

    assert probability() < 0.5 < 0.9 < probability(RelatedWord(owner, "storage box", "crate", crate[0].numpy()))


# --- words of the training that nobody asked for ----------------------------------------------------------------------------


def proposals_of(*embeddings: torch.Tensor) -> MaskProposals:
    """One query per embedding, each with a quarter of a 32x32 image of its own."""
    masks = torch.full((1, len(embeddings), 8, 8), -20.0)
    for query in range(len(embeddings)):
        masks[0, query, query // 2 * 4 : query // 2 * 4 + 4, query % 2 * 4 : query % 2 * 4 + 4] = 20.0
    return MaskProposals(masks, torch.stack(embeddings)[None], None, None, (32, 32), (32, 32))


def quarters(maps) -> list[float]:
    return [float(maps[y, x]) for y, x in ((8, 8), (8, 24), (24, 8), (24, 24))]


@pytest.mark.parametrize("scoring", ["max", "normalized"])
@pytest.mark.parametrize("fused", [True, False])
def test_what_another_word_fits_better_is_not_named_and_as_anomalous_as_before(scoring, fused):
    vocabulary = Vocabulary.cityscapes().with_hazards(["refrigerator", "sofa"])
    count = sum(map(len, vocabulary.concept_groups))
    generator = torch.Generator().manual_seed(0)
    rows = unit(torch.randn(count, 256, generator=generator)).numpy()
    suitcase, fridge = unit(torch.randn(1, 256, generator=generator))[0], torch.from_numpy(rows[-2])
    between = unit(suitcase + fridge)  # as near to the one as to the other
    seen = proposals_of(suitcase + 0.5 * fridge, fridge, between, 0.2 * suitcase + fridge)
    words = {"classifier": "in_vocabulary", "merge_classes": True, "void": None, "in_logit_scale": 4.0, "out_logit_scale": 0.0}
    never = [float("inf")]

    def score(margins):
        rivals = None if margins is None else Rivals(suitcase[None].numpy(), np.array(margins, np.float32))
        classifier = prepare_classifier(vocabulary, rows, rivals=rivals, scoring=scoring, **words)
        return Scorer(fused=fused).score(seen, classifier)[0], classifier

    (plain, _), (strict, classifier), (lenient, _) = score(None), score([[0.05], never]), score([[0.6], never])
    refrigerator = vocabulary.known_count
    assert quarters(plain.labels) == [refrigerator] * 4
    named = [label == refrigerator for label in quarters(strict.labels)]
    assert named == [False, True, True, True], "a rival must fit better by more than the margin"
    assert torch.equal(lenient.labels, plain.labels)
    assert torch.equal(strict.anomaly, plain.anomaly) and torch.equal(lenient.anomaly, plain.anomaly)
    unheeded = Scorer(fused=fused).class_map(seen, classifier)
    assert torch.equal(unheeded, Scorer(fused=fused).class_map(seen, prepare_classifier(vocabulary, rows, **words)))


def rivals_of(network, *hazards: str) -> list[set[str]]:
    """Per hazard, the words of `tiny`'s training that can keep it from its name."""
    tokenize, end = tokenizer(network.config.clip_model, network.config.clip_config)
    text = prompts.TextEncoder(network.clip.encode_text, tokenize, weights_key=network.clip.text_weights_key(), end_token=end)
    vocabulary = Vocabulary.cityscapes().with_hazards(list(hazards))
    rows = text.encode_concepts([c for group in vocabulary.concept_groups for c in group])
    words = classifier_for(network, vocabulary, rows)
    if words.rival_rows is None:
        return [set() for _ in hazards]
    place = {row.numpy().tobytes(): word for row, word in zip(network.training_rows, network.config.training_concepts, strict=True)}
    names = [place[row.numpy().tobytes()] for row in words.rival_rows.to(network.training_rows.dtype)]
    return [{name for name, margin in zip(names, row.tolist(), strict=True) if margin < 1} for row in words.rival_margins]


def test_rivals_are_the_other_things_of_the_training_but_neither_classes_nor_synonyms_nor_words_for_anything(network):
    (of_tyre, of_crate, of_obstacle, of_sofa) = rivals_of(network, "tyre|tire", "storage crate", "obstacle", "sofa")
    assert {"suitcase", "refrigerator", "crate"} <= of_tyre and not {
        "tyre",
        "car tyre",
        "road",
        "car",
        "object",
        "debris",
    } & of_tyre
    assert "suitcase" in of_crate and not {"crate", "wooden crate"} & of_crate, "read as crate"
    assert of_obstacle == set() and of_sofa == set(), "means anything, or nothing that training knew"
    assert rivals_of(network, "sofa", "obstacle") == [set(), set()]


def test_the_public_weights_have_no_rivals():
    assert all(FCCLIPConfig.from_dict(info.config).rival_margin == 0 for info in registry.MODELS.values() if info.folder is None)


@pytest.mark.slow
def test_the_embedded_model_calls_fewer_other_things_by_a_name_that_was_asked_for(network):
    """On its own frames: pixels that are named, and how many of them rightly, with and without rivals."""
    segmenter = Segmenter.load("tiny", offline=True)
    segmenter.vocabulary = segmenter.vocabulary.with_hazards(["refrigerator", "cardboard box"])
    words = segmenter.words
    free = dataclasses.replace(words, classifier=dataclasses.replace(words.classifier, rival_rows=None, rival_margins=None))
    right, named = np.zeros((2, 2)), np.zeros((2, 2))
    for frame in (read_frame(each) for each in find_frames(DataSource("rendered", FRAMES))):
        for kind, used in enumerate((free, words)):
            labels = segmenter.segment(frame.rgb, words=used).labels
            for hazard, name in enumerate(("refrigerator", "cardboard box")):
                truth = np.isin(frame.labels, [number for number, each in frame.hazards.items() if each == name])
                called = (labels == 19 + hazard) & (frame.labels != 255)
                right[kind, hazard] += (called & truth).sum()
                named[kind, hazard] += called.sum()
    assert (right[1] >= 0.98 * right[0]).all(), "what was named rightly stays named"
    precision = right / named
    assert (precision[1] > precision[0] + 0.1).all() and (precision[1] > 0.6).all(), precision


@pytest.fixture
def copied(tmp_path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(registry.MODELS["tiny"].folder, folder)
    return folder


def settings_file(tmp_path: Path, **changes) -> Path:
    values = {
        "model": "tiny", "data": [{"kind": "rendered", "folder": str(FRAMES)}], "crop": [384, 640], "scales": [0.8, 1.2],
        "batch_size": 4, "workers": 0, "threads": 1, "seed": 5, "compiled_backbone": False, **changes,
    }  # fmt: skip
    file = tmp_path / "training.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_names_are_fitted_to_what_half_precision_leaves(network):
    """On a GPU, where a run in half precision takes CLIP's maps in half."""
    frame = read_frame(find_frames(DataSource("rendered", FRAMES))[0])
    with torch.inference_mode():
        maps = network.clip(network.normalize(torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)[None])).pyramid
    labels = torch.from_numpy(frame.labels.astype("int64"))[None]
    things, emphasis = torch.arange(256)[None], torch.ones(1, 256)
    found = [
        naming.answers_of(network, tuple(each.to(kind) for each in maps), labels, things, emphasis, anchored=19)
        for kind in (torch.float32, torch.bfloat16)
    ]
    assert len(found[0].things) > 4 and found[1].pooled.dtype == torch.float32
    assert abs(len(found[1].things) - len(found[0].things)) <= 2


def test_fitting_names_changes_nothing_else_of_the_decoder(copied, tmp_path):
    before = read_tensors(copied / "decoder.safetensors")
    registry.write_checksums(copied)
    result = CliRunner().invoke(
        cli.build_app(["train-names"]),
        ["train-names", "--config", str(settings_file(tmp_path)), "--model", str(copied), "--crops", "16"],
    )
    assert result.exit_code == 0, result.output
    assert f"{copied} can judge names" in result.stdout.replace("\n", "")
    after = read_tensors(copied / "decoder.safetensors")
    # The words' embeddings are computed anew; another processor may round the last of their eleven bits the other way.
    assert torch.allclose(before["training_rows"], after["training_rows"], atol=1e-3, rtol=0)
    assert {key for key in after if not torch.equal(before[key], after[key])} - {"training_rows"} == {
        "mask_decoder.naming.weight", "mask_decoder.naming.bias"
    }  # fmt: skip
    network, config = registry.build_network(registry.locate(copied))
    assert (config.classifier, config.alpha, config.beta, config.linear_naming) == ("ensemble", 0.0, 0.8, True)
    assert config.related_words == 0.5 and len(network.training_rows) == len(config.training_concepts)
    shown = hazard_names(find_frames(DataSource("rendered", FRAMES)))
    assert {"road", "obstacle", *shown} <= set(config.training_concepts) and "sofa" not in config.training_concepts


def test_without_a_trained_model_one_line_says_so(copied, tmp_path):
    file = settings_file(tmp_path)
    (copied / "clip.safetensors").unlink()
    for folder, message in ((tmp_path / "nowhere", "nowhere is no folder of a trained model"), (copied, "has no clip.safetensors")):
        with pytest.raises(TrainingError, match=message):
            CliRunner().invoke(
                cli.build_app(["train-names"]), ["train-names", "--config", str(file), "--model", str(folder)],
                catch_exceptions=False, standalone_mode=False,
            )  # fmt: skip


def test_a_decoder_trained_from_nothing_has_no_such_branch(tmp_path):
    from vl4ad_model.training.trainer import Trainer

    trainer = Trainer(TrainingConfig.from_yaml(settings_file(tmp_path)), tmp_path / "run")
    trainer.save_model(tmp_path / "run/model")
    network, config = registry.build_network(registry.locate(tmp_path / "run/model"))
    assert not config.linear_naming and config.classifier == "in_vocabulary" and network.mask_decoder.naming is None
    assert not config.related_words and not config.rival_margin and "training_rows" not in network.state_dict()
    assert rivals_of(network, "tyre") == [set()]
    odd = dataclasses.replace(config, rival_margin=0.1)  # written by hand, without the words it needs
    network.config = odd
    assert rivals_of(network, "tyre") == [set()]


def test_fine_tuning_forgets_no_word_that_was_trained_before(copied, tmp_path):
    from vl4ad_model.training.trainer import Trainer

    before = registry.build_network(registry.locate(copied))[1].training_concepts
    settings = TrainingConfig.from_yaml(settings_file(tmp_path, model=str(copied), start_from_weights=True))
    values = Trainer(settings, tmp_path / "run").config_values()
    assert set(before) <= set(values["training_concepts"]) and values["linear_naming"]


def test_fine_tuning_with_new_things_keeps_a_row_for_every_word(copied, tmp_path):
    """The saved model has the rows of the words it had and of those that came, in the order of its config.json."""
    from vl4ad_model.training.trainer import Trainer

    config_file = copied / "config.json"
    values = json.loads(config_file.read_text())
    fewer = [word for word in values["training_concepts"] if word != "cardboard box"]
    assert len(fewer) == len(values["training_concepts"]) - 1
    config_file.write_text(json.dumps({**values, "training_concepts": fewer}))
    tensors = read_tensors(copied / "decoder.safetensors")
    place = values["training_concepts"].index("cardboard box")
    rows = tensors["training_rows"]
    tensors["training_rows"] = torch.cat((rows[:place], rows[place + 1 :]))
    write_safetensors(tensors, copied / "decoder.safetensors", half=True)
    trainer = Trainer(
        TrainingConfig.from_yaml(settings_file(tmp_path, model=str(copied), start_from_weights=True)), tmp_path / "run"
    )
    trainer.save_model(tmp_path / "run/model")
    network, config = registry.build_network(registry.locate(tmp_path / "run/model"))
    now = config.training_concepts.index("cardboard box")
    assert now >= len(fewer) and torch.allclose(network.training_rows[now], rows[place].float(), atol=2e-3)
    assert torch.allclose(network.training_rows[:10], rows[:10].float(), atol=2e-3)
