"""Training: what is matched to what, what the losses reward, which words are drawn, and runs that go on, end and refuse."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl4ad_model import cli, registry
from vl4ad_model.errors import CheckpointError, TrainingError
from vl4ad_model.network.checkpoint import read_tensors, write_safetensors
from vl4ad_model.network.mask_decoder import QueryMasks
from vl4ad_model.training import losses
from vl4ad_model.training.augmentation import CutOuts, SeenThings, augment
from vl4ad_model.training.config import DataSource, TrainingConfig
from vl4ad_model.training.data import Frame, find_frames, hazard_names, read_frame
from vl4ad_model.training.features import with_pyramids
from vl4ad_model.training.matching import assign, match_cost
from vl4ad_model.training.trainer import without_specks
from vl4ad_model.training.words import Words, WordSampler
from vl4ad_model.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_assignment_is_the_cheapest_of_all(seed, queries, segments):
    cost = torch.rand(queries, segments, generator=torch.Generator().manual_seed(seed))
    rows, columns = assign(cost)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == min(queries, segments)
    smaller, larger = sorted((queries, segments))
    matrix = cost.numpy() if queries >= segments else cost.numpy().T
    cheapest = min(sum(matrix[row, column] for column, row in enumerate(p)) for p in itertools.permutations(range(larger), smaller))
    assert float(cost[rows, columns].sum()) == pytest.approx(float(cheapest), abs=1e-5)


def test_a_query_that_draws_and_names_a_segment_is_the_cheapest_for_it():
    masks = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    logits = torch.stack([masks[1] * 10 - 5, torch.zeros(5), masks[0] * 10 - 5])
    named = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    cost = match_cost(named, logits, torch.tensor([0, 1]), masks, torch.ones(5), class_weight=2, mask_weight=5, dice_weight=5)
    assert cost.argmin(dim=0).tolist() == [2, 0]
    unlabelled = match_cost(
        named, logits, torch.tensor([0, 1]), masks, torch.tensor([1.0, 1, 1, 1, 0]), class_weight=0, mask_weight=1, dice_weight=1
    )
    changed = logits.clone()
    changed[:, 4] = 100.0
    again = match_cost(
        named, changed, torch.tensor([0, 1]), masks, torch.tensor([1.0, 1, 1, 1, 0]), class_weight=0, mask_weight=1, dice_weight=1
    )
    assert torch.allclose(unlabelled, again), "an ignored point has no say"


def _perfect(labels: torch.Tensor, columns: dict[int, int], words: Words, void: torch.Tensor, queries: int):
    """Heads that draw each segment exactly and name it exactly."""
    masks = torch.full((1, queries, *labels.shape[-2:]), -12.0)
    embeddings = void.expand(1, queries, -1).clone()
    for query, (segment, column) in enumerate(columns.items()):
        masks[0, query][labels[0] == segment] = 12.0
        embeddings[0, query] = void if column == words.void_column else words.rows[words.index[column, 0]]
    return [QueryMasks(masks, embeddings)]


@pytest.fixture(scope="module")
def small_words():
    rows = torch.eye(6)
    return Words(rows[:5], torch.tensor([[0, 1], [2, 2], [3, 4]]), {"sofa": 2}, torch.tensor([0, 0, 1, 2, 2]), {"sofa": 2})


def _things(owners: dict[int, int]) -> torch.Tensor:
    things = torch.full((1, 256), -1)
    for segment, owner in owners.items():
        things[0, segment] = owner
    return things


def test_the_name_loss_wants_one_of_the_things_names_and_no_other_word(small_words):
    scale = torch.tensor(20.0).log().requires_grad_()

    def loss(embeddings, things, words=small_words):
        return losses.name_loss(embeddings, torch.as_tensor(things), torch.ones(len(embeddings)), words, scale)

    rows, owners = torch.eye(6)[:5], torch.tensor([0, 0, 1, 2, 2])
    assert float(loss(3 * rows[2:3], [1])) < 1e-3, "length does not matter"
    assert float(loss(torch.nn.functional.normalize(rows[:1] + rows[1:2], dim=-1), [0])) < 1e-3, "its other names are not wrong"
    assert float(loss(rows[3:4], [1])) > 10
    assert float(loss(rows, torch.where(owners == 1, 1, -1))) < 1e-3, "what has no name is left out"
    nothing = loss(rows.clone().requires_grad_(), torch.full((5,), -1))
    nothing.backward()
    assert float(nothing.detach()) == 0 and scale.grad is None
    alike = Words(torch.stack((rows[0], 0.9 * rows[0] + 0.43 * rows[1])), small_words.index, {}, torch.tensor([0, 1]), {})
    assert float(loss(alike.rows[1:], [0], alike)) < 1, "names of one meaning do not compete"
    wrong_and_right = torch.stack((rows[3], rows[2]))
    weighted = losses.name_loss(wrong_and_right, torch.tensor([1, 1]), torch.tensor([1.0, 3.0]), small_words, scale)
    assert float(weighted) == pytest.approx(float(loss(rows[3:4], [1])) / 4, rel=1e-3)


def test_losses_vanish_for_perfect_proposals_and_grow_with_every_mistake(small_words):
    torch.manual_seed(0)
    labels = torch.zeros(1, 32, 48, dtype=torch.int64)
    labels[:, 16:], labels[:, 20:28, 10:20], labels[:, :4, :4] = 1, 100, 255
    columns = {0: 0, 1: 1, 100: 2}
    void, scale = torch.eye(6)[5], torch.tensor(20.0).log()

    def total(heads, columns=columns, anchored=2):
        torch.manual_seed(1)
        points = losses.sample_points(labels, 1500, beside=True)
        return losses.proposal_losses(
            [QueryMasks(losses.at_points(head.mask_logits, points, (32, 48)), head.query_embeddings) for head in heads],
            points,
            losses.Targets(labels, (columns,), _things({0: 0, 1: 1, 100: 2}), torch.ones(1, 256)),
            small_words,
            void,
            scale,
            weights=losses.LossWeights(iou_weight=1.0),
            anchored=anchored,
            known=2,
        )

    perfect = _perfect(labels, columns, small_words, void, 5)
    best = total(perfect)
    assert float(best["total"]) < 0.01
    assert float(total(perfect, anchored=0)["total"]) < 0.01, "matching finds the same queries without anchors"
    wrong_name = [QueryMasks(perfect[0].mask_logits, perfect[0].query_embeddings.roll(1, dims=1))]
    assert float(total(wrong_name)["class"]) > 1 and float(total(wrong_name)["map"]) > 0.5
    shifted = [QueryMasks(perfect[0].mask_logits.roll(8, dims=-1), perfect[0].query_embeddings)]
    assert float(total(wrong_name)["iou"]) > 0.5 and float(total(shifted)["iou"]) < 0.1 < float(total(shifted)["total"])
    assert float(total(shifted)["mask"]) > 0.1 and float(total(shifted)["dice"]) > 0.02
    unnamed = total(perfect, columns={0: 0, 1: 1, 100: small_words.void_column})
    assert float(unnamed["map"]) > 0.05, "a hazard that no word names must belong to no class"
    for anchored in (0, 2):  # each head is matched by itself, the last one alone is asked for the map
        first, second = total(wrong_name, anchored=anchored), total(shifted, anchored=anchored)
        both = total([*wrong_name, *shifted], anchored=anchored)
        for part in ("mask", "dice", "class"):
            assert float(both[part]) == pytest.approx(float(first[part] + second[part]), rel=1e-4)
        assert float(both["map"]) == pytest.approx(float(second["map"]), rel=1e-4)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_map_loss_is_about_the_map_that_scoring_publishes(seed):
    """Cross-entropy of p = sum_i s_i c_ik, computed from the reference equations pixel by pixel."""
    generator = torch.Generator().manual_seed(seed)
    queries, classes, points = 4, 3, 7
    logits = torch.randn(1, queries, points, generator=generator)
    probabilities = torch.rand(1, queries, classes, generator=generator) * 0.2
    columns = torch.randint(0, classes + 1, (1, points), generator=generator)
    expected = 0.0
    for point in range(points):
        p = [float((logits[0, :, point].sigmoid() * probabilities[0, :, k]).sum()) for k in range(classes)]
        for k in range(classes):
            expected -= np.log(p[k]) if int(columns[0, point]) == k else np.log(1 - p[k])
    p_of_all = torch.einsum("bnc,bnp->bpc", probabilities, logits.sigmoid())
    measured = losses.map_loss(p_of_all, columns, torch.ones(1, points))
    assert float(measured) == pytest.approx(expected / points, rel=1e-4)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 60))
@settings(max_examples=40, deadline=None)
def test_the_iou_loss_of_a_decided_map_is_what_its_classes_lack_of_full_iou(seed, known, points):
    """Of any labels, ignored points and hazards that the words name among them; against the metric that evaluation reports."""
    from vl4ad_model.evaluation.label_metrics import confusion_matrix, label_metrics

    r = np.random.default_rng(seed)
    truth, said = r.integers(0, known + 1, (2, points)), r.integers(0, known + 1, (2, points))
    inside = (truth < known) & (r.random((2, points)) < 0.8)
    p = torch.nn.functional.one_hot(torch.from_numpy(said), known + 1).float()
    measured = losses.iou_loss(p * float(r.uniform(0.3, 2)), torch.from_numpy(truth), torch.from_numpy(inside), known)
    matrix = confusion_matrix(
        np.where(said < known, said, 255).astype(np.uint8), np.where(inside, truth, 255).astype(np.uint8), known
    )
    there = matrix.sum(axis=1) > 0
    lacks = 1 - np.nan_to_num(label_metrics(matrix).iou)[there].mean() if there.any() else 0.0
    assert float(measured) == pytest.approx(lacks, abs=1e-5)


def test_the_iou_loss_pulls_a_rare_class_as_hard_as_a_common_one(small_words):
    """Half of what is there is missed, of ten pixels and of a thousand; and following the loss mends both."""
    columns = torch.zeros(1, 1010, dtype=torch.int64)
    columns[:, 1000:] = 1
    inside = torch.ones(1, 1010, dtype=torch.bool)
    logits = torch.zeros(1, 1010, 3)
    logits.scatter_(2, columns[..., None], 2.0)
    logits[:, :500], logits[:, 1005:] = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 2.0])
    pulls, values = [], []
    for _ in range(100):
        logits.requires_grad_()
        loss = losses.iou_loss(logits.softmax(-1), columns, inside, 2)
        (pull,) = torch.autograd.grad(loss, logits)
        pulls.append([float(pull[0, part, k].sum()) for part, k in ((slice(0, 500), 0), (slice(1005, 1010), 1))])
        values.append(float(loss.detach()))
        logits = logits.detach() - 200 * pull
    assert pulls[0][0] < 0 and pulls[0][1] / pulls[0][0] == pytest.approx(1, abs=0.35)
    assert values[0] > 0.5 and values[-1] < 0.2


@pytest.fixture(scope="module")
def sampler(segmenter):
    names = {"tyre": ("tyre", "tire"), "sofa": ("sofa",), "couch": ("couch",), "cow": ("cow", "bull"), "ladder": ("ladder",)}
    return WordSampler(Vocabulary.cityscapes(), names, segmenter._text, 3), names


def test_words_vary_but_stay_true(sampler):
    """Every class keeps its own words; hazards get theirs or none; absent things come along as distractors."""
    words_of, names = sampler
    vocabulary = Vocabulary.cityscapes()
    place = {row: concept for concept, row in words_of._place.items()}
    counts, named = set(), 0
    for _ in range(60):
        words = words_of.sample(["tyre", "cow"])
        for index in range(19):
            used = {place[int(row)] for row in words.index[index]}
            assert used <= set(vocabulary.classes[index].alternative_concepts)
            counts.add((index, len(used)))
        for name, column in words.columns.items():
            used = {place[int(row)] for row in words.index[column]}
            assert used <= set(names[name]) or used <= set(losses_generic())
            named += 1
        assert words.void_column == len(words.index)
    assert len({n for index, n in counts if index == 0}) > 3, "how many synonyms are drawn varies"
    assert 20 < named < 110, "some hazards are named, some are not"
    owned = {name: {place[i] for i in torch.where(words.owners == owner)[0].tolist()} for name, owner in words.things.items()}
    assert owned == {name: set(all_) for name, all_ in names.items()}
    assert {place[i] for i in torch.where(words.owners == 0)[0].tolist()} == set(vocabulary.classes[0].alternative_concepts)


def test_things_without_a_name_get_a_generic_one_or_none(sampler):
    words_of, _ = sampler
    place = {row: concept for concept, row in words_of._place.items()}
    generic = 0
    for _ in range(80):
        words = words_of.sample(["strange object", "tyre"])
        assert "strange object" not in words.things
        if "strange object" in words.columns:
            used = {place[int(row)] for row in words.index[words.columns["strange object"]]}
            assert used <= set(losses_generic())
            generic += 1
    assert 2 < generic < 40
    assert words_of.sample(["strange object"]).void_column >= 19


def test_points_lie_beside_thin_things_as_often_as_on_them():
    torch.manual_seed(0)
    labels = torch.zeros(1, 90, 120, dtype=torch.int64)
    labels[:, :, 60:62], labels[:, :30, :40] = 1, 255
    beside = torch.zeros_like(labels, dtype=torch.bool)
    beside[:, :, 57:60], beside[:, :, 62:65] = True, True

    def shares(points):
        return [float(where.flatten()[points[0]].float().mean()) for where in (labels == 1, beside, labels == 255)]

    on, near, ignored = shares(losses.sample_points(labels, 20_000))
    assert on > near, "without it each pixel on the thin thing is asked for three times as often as one beside it"
    on_too, near_too, ignored_too = shares(losses.sample_points(labels, 20_000, beside=True))
    assert near_too / 3 == pytest.approx(on_too, rel=0.25)
    assert max(ignored, ignored_too) < 0.09, "the uniform half meets what is ignored, the other half never"


def test_specks_are_ignored_not_taught_to_be_nothing():
    labels = torch.zeros(2, 32, 48, dtype=torch.int64)
    labels[0, 4:7, 4:7], labels[0, 10:14, 10:14], labels[1, 10:14, 10:14] = 12, 11, 100
    without = without_specks(labels)
    assert (without[0, 4:7, 4:7] == 255).all() and int((without == 255).sum()) == 9
    assert torch.equal(torch.where(without == 255, labels, without), labels)
    assert int((labels == 12).sum()) == 9, "the labels themselves stay"


def test_paraphrases_lie_near_their_names_and_move_only_hazards(segmenter):
    names = {"tyre": ("tyre", "tire"), "cow": ("cow", "bull"), "ladder": ("ladder",)}
    base = Vocabulary.cityscapes()
    as_they_are = WordSampler(base, names, segmenter._text, 3)
    own = set(range(len(as_they_are._rows)))
    moved = 0
    for seed in range(20):
        words = WordSampler(base, names, segmenter._text, seed, paraphrased=1.0).sample(["tyre", "cow"])
        assert set(words.index[:19].flatten().tolist()) <= own, "known classes keep their words"
        assert torch.equal(words.rows[: len(own)], as_they_are._rows) and (words.owners[len(own) :] == -1).all()
        for name, column in words.columns.items():
            rows = words.rows[words.index[column]]
            assert torch.allclose(rows.norm(dim=-1), torch.ones(len(rows)), atol=1e-4)
            nearest = (rows @ as_they_are._rows[[as_they_are._place[n] for n in (*names[name], *losses_generic())]].T).amax(dim=-1)
            assert (nearest >= 0.5 - 1e-4).all() and not own & set(words.index[column].tolist())
            moved += 1
    assert moved > 10


def losses_generic():
    from vl4ad_model.training.words import GENERIC_NAMES

    return GENERIC_NAMES


# --- data -----------------------------------------------------------------------------------------------------------------


def _write_frame(folder: Path, name: str, hazard: str = "sofa", size=(96, 160)) -> None:
    height, width = size
    rng = np.random.default_rng(abs(hash(name)) % 1000)
    labels = np.full(size, 10, np.uint8)
    labels[height // 2 :] = 0
    labels[height // 2 - 20 : height // 2, : width // 3] = 2
    labels[height - 30 : height - 12, width // 2 : width // 2 + 24] = 100
    palette = np.zeros((256, 3), np.uint8)
    palette[[0, 2, 10, 100]] = (90, 90, 90), (150, 80, 60), (120, 170, 230), (220, 200, 40)
    rgb = np.clip(palette[labels] + rng.normal(0, 6, (*size, 3)), 0, 255).astype(np.uint8)
    for part in ("images", "labels", "frames"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / "images" / f"{name}.jpg", quality=92)
    Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    (folder / "frames" / f"{name}.json").write_text(json.dumps({"hazards": {"100": {"name": hazard, "split": "seen"}}}))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    for index in range(4):
        _write_frame(folder, f"{index:06d}", hazard=("sofa", "tyre")[index % 2])
    return folder


def test_cityscapes_is_read_as_published(tmp_path):
    for part, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        folder = tmp_path / part / "train" / "aachen"
        folder.mkdir(parents=True)
        picture = np.full((64, 128, 3), 80, np.uint8) if part == "leftImg8bit" else np.zeros((64, 128), np.uint8)
        if part == "gtFine":
            picture[:, :40], picture[:, 40:80], picture[:, 80:100], picture[:, 100:] = 7, 23, 33, 9
        Image.fromarray(picture).save(folder / f"aachen_000000_000019_{suffix}.png")
    source = DataSource("cityscapes", tmp_path)
    frame = read_frame(find_frames(source)[0])
    assert frame.labels[0, [0, 50, 90, 127]].tolist() == [0, 10, 18, 255], "road, sky, bicycle; parking is ignored"
    assert not frame.hazards
    (tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(TrainingError, match="has no labels at"):
        find_frames(source)
    with pytest.raises(TrainingError, match="leftImg8bit/val"):
        find_frames(DataSource("cityscapes", tmp_path, "val"))


def test_augmentation_keeps_labels_and_pixels_together(rendered):
    """Geometry moves both alike: where the label says sky, the picture stays bluer than where it says building."""
    frame = read_frame(find_frames(DataSource("rendered", rendered))[0])
    picture = np.zeros((160, 160, 4), np.uint8)
    picture[40:140, 40:120] = (200, 30, 30, 255)
    cutouts = CutOuts(("chess pawn",), (picture,))
    names = set()
    for seed in range(30):
        out = augment(frame, (64, 96), (0.7, 1.4), cutouts, np.random.default_rng(seed))
        assert out.rgb.shape == (64, 96, 3) and out.rgb.dtype == np.uint8 and out.labels.shape == (64, 96)
        assert set(np.unique(out.labels)) <= {0, 2, 10, 100, 255, *out.hazards}
        names |= {out.hazards[i] for i in np.unique(out.labels) if i in out.hazards}
        again = augment(frame, (64, 96), (0.7, 1.4), cutouts, np.random.default_rng(seed))
        assert np.array_equal(out.rgb, again.rgb) and np.array_equal(out.labels, again.labels)
    assert names == {"sofa", "chess pawn"}


def test_rare_crops_show_more_segments():
    labels = np.zeros((96, 320), np.uint8)
    labels[:, 300:310], labels[:, 310:] = 11, 12
    frame = Frame(np.zeros((96, 320, 3), np.uint8), labels, {})

    def rich(share: float) -> int:
        views = (augment(frame, (96, 96), (1.0, 1.0), None, np.random.default_rng(s), rare_crops=share) for s in range(60))
        return sum(len(np.unique(view.labels)) > 1 for view in views)

    assert rich(1.0) > 1.4 * rich(0.0) > 0


def _picture(width: int, **boxes: tuple[int, int, tuple[int, int, int]]) -> Frame:
    """A grey road with boxes (left column, label, colour) of 24 x 24 pixels."""
    rgb, labels = np.full((96, width, 3), 90, np.uint8), np.zeros((96, width), np.uint8)
    for left, label, colour in boxes.values():
        rgb[40:64, left : left + 24], labels[40:64, left : left + 24] = colour, label
    return Frame(rgb, labels, {100: "sofa", 101: "chess pawn"})


def test_things_of_earlier_frames_are_copied_with_their_pixels_labels_and_names():
    red, green, blue, white = (220, 0, 0), (0, 220, 0), (0, 0, 220), (220, 220, 220)
    seen, empty = SeenThings(("sofa",)), _picture(200)
    assert not np.any(seen.copy_into(empty, 4, np.random.default_rng(0)).labels), "nothing seen, nothing copied"
    seen.remember(_picture(200, a=(10, 100, red), b=(60, 18, green), c=(100, 101, blue), d=(150, 13, white)))
    shown: set[int | str] = set()
    for seed in range(40):
        out = seen.copy_into(empty, 4, np.random.default_rng(seed))
        for label in np.unique(out.labels[(out.labels != 0) & (out.labels != 255)]).tolist():
            inside = out.rgb[out.labels == label].astype(int)
            shown.add(out.hazards.get(label, label))
            colour = {"sofa": 0, 18: 1}[out.hazards.get(label, label)]
            others = [c for c in range(3) if c != colour]
            assert np.median(inside[:, colour]) > 120 > 60 > np.median(inside[:, others]), "pixels and labels stay together"
    assert shown == {"sofa", 18}, "the hazards asked for and rare classes, not cars nor other hazards"
    assert np.all(empty.labels == 0) and np.all(empty.rgb == 90), "the frame itself is left alone"


def test_a_rendered_thing_is_copied_though_a_cut_out_has_its_name(tmp_path):
    """Cut-outs that were rendered into a frame are left out where cut-outs are pasted anyway."""
    for folder in ("images", "labels", "frames"):
        (tmp_path / folder).mkdir()
    frame = _picture(200, a=(10, 100, (220, 0, 0)), b=(60, 101, (0, 220, 0)))
    Image.fromarray(frame.rgb).save(tmp_path / "images/0.jpg", quality=95)
    Image.fromarray(frame.labels).save(tmp_path / "labels/0.png")
    things = {"100": {"name": "barrel", "kind": "procedural"}, "101": {"name": "barrel", "kind": "cutout"}}
    (tmp_path / "frames/0.json").write_text(json.dumps({"hazards": things}))
    read = read_frame(find_frames(DataSource("rendered", tmp_path))[0])
    for cutouts, kept in ((True, 2), (False, 1)):
        seen = SeenThings(("barrel",), cutouts=cutouts)
        seen.remember(read)
        assert [len(things) for things in seen.kinds.values()] == [kept]
        assert np.median(seen.kinds["barrel"][0][0][..., 0]) > 200, "the red one, which was rendered"


def test_what_the_image_cuts_off_is_not_copied_as_a_whole_bicycle():
    seen = SeenThings()
    seen.remember(_picture(200, a=(0, 18, (0, 220, 0))))
    assert not np.any(seen.copy_into(_picture(200), 4, np.random.default_rng(3)).labels)


@given(st.integers(0, 5))
def test_every_batch_keeps_its_own_images_and_their_maps(count):
    batches = [(torch.full((1, 3, 4, 4), float(i)), f"labels {i}", f"hazards {i}") for i in range(count)]
    got = list(with_pyramids(batches, lambda images: (images, images, images, images), torch.device("cpu")))
    assert [(float(maps[3].mean()), float(images.mean()), labels, hazards) for maps, images, labels, hazards in got] == [
        (float(i), float(i), f"labels {i}", f"hazards {i}") for i in range(count)
    ]


def test_a_crop_of_an_image_that_is_too_small_is_padded_and_ignored():
    frame = Frame(np.full((32, 32, 3), 200, np.uint8), np.zeros((32, 32), np.uint8), {})
    out = augment(frame, (64, 64), (1.0, 1.0), None, np.random.default_rng(0))
    assert 0.6 < (out.labels == 255).mean() < 0.9


# --- configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "tiny"}, "no entry 'modle': did you mean 'model'"),
        ({"model": None}, "'model' is missing"),
        ({"data": []}, "'data' is missing"),
        ({"data": [{"kind": "coco", "folder": "x"}]}, "rendered or cityscapes"),
        ({"crop": [100, 64]}, "multiples of 32"),
        ({"steps": "many"}, "'steps' must be a whole number"),
        ({"scales": ["small", 2]}, "'scales' must be a number"),
        ({"colour_tolerance": -1.0}, "'colour_tolerance' must not be negative"),
        ({"colour_tolerance": "grey"}, "'colour_tolerance' must be a number"),
        ({"extra_blocks": [1, 2]}, "'extra_blocks' needs three numbers"),
        ({"extra_blocks": [1, 2, -1]}, "'extra_blocks' must not be negative"),
        ({"decoder_layers": -1}, "'decoder_layers' must not be negative"),
        ({"decoder_layers": 1, "start_from_weights": True}, "the model has 3 decoder layers.*as many or more"),
        ({"data": {"kind": "rendered", "folder": "x"}}, "'data' must be a list"),
        ({"data": [{"kind": "rendered", "folder": "x", "repeats": 2}]}, "did you mean 'repeat'"),
        ({"data": [{"kind": "rendered", "folder": "x", "repeat": "twice"}]}, "'repeat' must be a whole number"),
        ({"steps": 0}, "'steps' must be positive"),
        ({"workers": -2}, "'workers' must not be negative"),
        ({"seed": -1}, "'seed' must not be negative"),
        ({"seed": 10**19}, "'seed' must be at most"),
        ({"threads": 10**9}, "'threads' must be 0 .* to 1024"),
        ({"points": 10**20}, "'points' must be at most"),
        ({"crop": [64, 32 * 10**12]}, "'crop' needs multiples of 32, up to 16384"),
        ({"learning_rate": 10**400}, "'learning_rate' must be a number"),
        ({"class_weight": -3}, "'class_weight' must not be negative"),
        ({"rare_crops": 7}, r"'rare_crops' is a share: it must be in \[0, 1\]"),
        ({"learning_rate": "inf"}, "'learning_rate' must be a finite number"),
        ({"anchored_queries": "yes"}, "'anchored_queries' must be true or false"),
        ({"precision": "fp8"}, "'precision' must be one of"),
        ({"data": [{"kind": "rendered", "folder": "nowhere"}]}, "does not exist"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, rendered, change, message):
    from vl4ad_model.training.trainer import Trainer

    values = {"model": "tiny", "data": [{"kind": "rendered", "folder": str(rendered)}], **change}
    with pytest.raises(TrainingError, match=message):
        Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")


def test_a_mistake_in_a_file_names_the_file_and_a_number_may_be_written_as_people_do(tmp_path, rendered):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: tiny\ndata: [{{kind: rendered, folder: {rendered}}}]\nlearning_rate: 1e-3\n")
    assert TrainingConfig.from_yaml(file).learning_rate == 1e-3
    file.write_text(file.read_text() + "batch: 4\n")
    with pytest.raises(TrainingError, match=r"run\.yaml: no entry 'batch'"):
        TrainingConfig.from_yaml(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 2001-99-99", "is not usable YAML"),
        ("crop: " + 5000 * "[" + 5000 * "]", "is not usable YAML"),
        ("steps: 10\nsteps: 20", "has 'steps' twice in one mapping"),
        ("data: [{kind: rendered, kind: cityscapes, folder: x}]", "has 'kind' twice in one mapping"),
    ],
)
def test_what_yaml_itself_stumbles_over_or_lets_pass_is_named(tmp_path, line, message):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: tiny\n{line}\n")
    with pytest.raises(TrainingError, match=rf"run\.yaml {message}"):
        TrainingConfig.from_yaml(file)


def test_the_shipped_configurations_are_valid():
    paths = sorted((ROOT / "config/training").glob("*.yaml"))
    assert paths
    for path in paths:
        TrainingConfig.from_yaml(path)


def test_a_run_can_start_from_the_model_that_an_earlier_run_left_beside_its_configuration(tmp_path, rendered, monkeypatch):
    (tmp_path / "runs/first/model").mkdir(parents=True)
    data = [{"kind": "rendered", "folder": str(rendered)}]
    (tmp_path / "second.yaml").write_text(json.dumps({"model": "runs/first/model", "data": data}))
    monkeypatch.chdir(rendered)
    assert Path(TrainingConfig.from_yaml(tmp_path / "second.yaml").model) == tmp_path / "runs/first/model"
    assert TrainingConfig.from_dict({"model": "tiny", "data": data}, base=tmp_path).model == "tiny"


# --- runs -----------------------------------------------------------------------------------------------------------------


def _settings(rendered: Path, **changes) -> dict:
    source = {"kind": "rendered", "folder": str(rendered)}
    return {
        "model": "tiny", "data": [source], "validation": [source], "crop": [64, 96], "scales": [0.8, 1.2], "anchored_queries": True,
        "steps": 24, "warmup_steps": 4, "batch_size": 2, "learning_rate": 0.002, "points": 512, "ema_decay": 0.5,
        "validate_every": 24, "validation_images": 2, "checkpoint_every": 12, "workers": 0, "threads": 1, "name_weight": 0.5,
        "rare_crops": 0.5, "most_copied": 2, "compiled_backbone": False, **changes,  # compiling takes longer than these short runs
    }  # fmt: skip


def test_a_run_learns_keeps_clip_frozen_and_its_model_loads_everywhere(tmp_path, rendered):
    from vl4ad_model.segmenter import Segmenter
    from vl4ad_model.training.trainer import Trainer

    config = TrainingConfig.from_dict(_settings(rendered, steps=50, validate_every=50, compiled_backbone=True), base=tmp_path)
    trainer = Trainer(config, tmp_path / "run")
    before = {key: value.clone() for key, value in trainer.network.clip.state_dict().items()}
    trainer.run()
    after = trainer.network.clip.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses_logged = [line["total"] for line in lines if "total" in line]
    assert losses_logged[-1] < 0.8 * losses_logged[0]
    assert any("validation" in line for line in lines)
    _, config_of_model = registry.build_network(registry.locate(tmp_path / "run/model"))
    assert "road" in config_of_model.training_concepts
    assert "UNTRAINED" not in registry.locate(tmp_path / "run/model").notice
    frame = read_frame(find_frames(DataSource("rendered", rendered))[0])
    result = Segmenter.load(tmp_path / "run/model", engine="torch", offline=True).segment(frame.rgb)
    assert result.labels.shape == frame.labels.shape and np.isfinite(result.anomaly).all()


@pytest.mark.parametrize(
    "grown",
    [{"refined": True, "colour_tolerance": 0}, {"refined": True, "extra_blocks": [2, 1, 1], "decoder_layers": 4}],
    ids=["refined", "deeper"],
)
def test_what_a_decoder_is_given_starts_as_the_identity_and_is_kept(tmp_path, rendered, grown):
    from vl4ad_model.training.trainer import Trainer

    plain = registry.locate("tiny", offline=True)
    values = {key: value for key, value in plain.config.items() if key not in ("refined", "extra_blocks")}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/config.json").write_text(json.dumps(values))
    weights = {key: value for key, value in read_tensors(plain.decoder).items() if ".refine_" not in key and ".extra_" not in key}
    write_safetensors(weights, tmp_path / "plain/decoder.safetensors", half=True)
    shutil.copy(plain.clip, tmp_path / "plain/clip.safetensors")
    changes = {"model": str(tmp_path / "plain"), "start_from_weights": True, **grown}
    config = TrainingConfig.from_dict(_settings(rendered, **changes, steps=2, validate_every=2), base=tmp_path)
    trainer = Trainer(config, tmp_path / "run")
    before, _ = registry.build_network(registry.locate(tmp_path / "plain"))
    image = torch.from_numpy(read_frame(find_frames(DataSource("rendered", rendered))[0]).rgb).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected, started = before(image), trainer.network.eval()(image)
    assert torch.allclose(expected.mask_logits, started.mask_logits, atol=1e-3)
    assert torch.allclose(expected.query_embeddings, started.query_embeddings, atol=1e-3)
    trainer.run()
    _, kept = registry.build_network(registry.locate(tmp_path / "run/model"))
    assert kept.refined and kept.extra_blocks == tuple(grown.get("extra_blocks", (0, 0, 0)))
    assert kept.decoder_layers == grown.get("decoder_layers", 3)
    assert kept.colour_tolerance == grown.get("colour_tolerance", plain.config["colour_tolerance"])
    moved = read_tensors(tmp_path / "run/model/decoder.safetensors")["pixel_decoder.refine_1.back.weight"]
    assert float(moved.abs().max()) > 0


def test_masks_are_learned_along_the_images_edges_where_the_model_has_them(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    def losses_of(name, tolerance):
        values = _settings(rendered, validation=[], steps=1, colour_tolerance=tolerance)
        Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / name).run()
        return json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])

    along, again, bilinear = losses_of("along", 13.0), losses_of("again", 13.0), losses_of("bilinear", 0.0)
    assert along["mask"] == again["mask"], "nothing else makes the difference"
    assert along["mask"] != bilinear["mask"]


def test_a_broken_off_run_goes_on_where_it_was(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    first = TrainingConfig.from_dict(_settings(rendered, steps=12, validation=[]), base=tmp_path)
    Trainer(first, tmp_path / "run").run()
    values = _settings(rendered, validation=[], weight_decay=0.5)
    trainer = Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")
    assert trainer.step == 12
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    for part, now in (("decoder", trainer._decoder), ("averaged", trainer._averaged)):
        assert all(torch.equal(saved[part][key], value) for key, value in now.state_dict().items())
    momenta = trainer._optimizer.state_dict()["state"]
    assert momenta and all(torch.equal(saved["optimizer"]["state"][i]["exp_avg"], each["exp_avg"]) for i, each in momenta.items())
    assert [group["weight_decay"] for group in trainer._optimizer.param_groups] == [0.5, 0.0], "a changed setting is used"
    trainer.run()
    assert trainer.step == 24
    (tmp_path / "run/checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(TrainingError, match="cannot resume from"):
        Trainer(first, tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    values = _settings(rendered, learning_rate=1e30, warmup_steps=0, steps=8, validate_every=8, checkpoint_every=1)
    trainer = Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"the loss is not finite by step \d: lower the learning rate"):
        trainer.run()
    kept = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["decoder"]
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_resuming_with_other_settings_is_said_and_with_another_vocabulary_refused(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    def trainer(**changes):
        lines = []
        config = TrainingConfig.from_dict(_settings(rendered, **{"steps": 4, "checkpoint_every": 4, **changes}), base=tmp_path)
        return Trainer(config, tmp_path / "run", lines.append), lines

    trainer()[0].run()
    again, lines = trainer(learning_rate=0.5, validation_images=1)
    assert lines[0]["changed"] == {"learning_rate": 0.5, "validation_images": 1} and "ask for more" in lines[1]["stopped"]
    assert again.step == 4 and again.best == -np.inf, "a score on other images is no score to beat"
    (tmp_path / "words.yaml").write_text("classes: [road, car]")
    with pytest.raises(TrainingError, match=r"made with vocabulary None, not .*words\.yaml"):
        trainer(vocabulary="words.yaml")
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    torch.save({**saved, "clip": "of another model, whose folder is called the same"}, tmp_path / "run/checkpoint.pt")
    with pytest.raises(TrainingError, match="made with another CLIP: use another folder"):
        trainer()


def test_a_frame_that_does_not_say_its_hazards_is_named(tmp_path):
    for text in ("{", "7", '{"hazards": {"100": {}}}', '{"hazards": {"x": {"name": "sofa"}}}'):
        _write_frame(tmp_path / "frames_", "a")
        (tmp_path / "frames_/frames/a.json").write_text(text)
        files = find_frames(DataSource("rendered", tmp_path / "frames_"))
        for read in (lambda files: read_frame(files[0]), hazard_names):
            with pytest.raises(TrainingError, match=r"frames/a\.json does not say what the hazards are"):
                read(files)


@pytest.mark.parametrize("number", ["300", "255", "-5", "3"])
def test_a_hazard_with_the_label_of_something_else_is_named(tmp_path, rendered, number):
    from vl4ad_model.training.trainer import Trainer

    shutil.copytree(rendered, tmp_path / "frames")
    hazards = {"100": {"name": "sofa"}, number: {"name": "tyre"}}
    (tmp_path / "frames/frames/000002.json").write_text(json.dumps({"hazards": hazards}))
    config = TrainingConfig.from_dict(_settings(tmp_path / "frames"), base=tmp_path)
    with pytest.raises(TrainingError, match=rf"000002\.json: hazard 'tyre' has label {number}: .* it is 19 to 254"):
        Trainer(config, tmp_path / "run")


def test_a_hazards_label_is_no_known_class_of_a_long_vocabulary(tmp_path, rendered):
    """Label 100 of a rendered frame is its first hazard, and class 100 of 120."""
    from vl4ad_model.training.trainer import Trainer

    def trainer(classes, **changes):
        known = [known.name for known in Vocabulary.cityscapes().classes]
        known += [f"class {index}" for index in range(len(known), classes)]
        (tmp_path / "long.yaml").write_text(json.dumps({"classes": known}))
        values = _settings(rendered, vocabulary="long.yaml", anchored_queries=False, most_copied=0, **changes)
        return Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")

    assert trainer(100).vocabulary.known_count == 100
    with pytest.raises(TrainingError, match=r"json: hazard '.*' has label 100: beside 120 known classes it is 120 to 254"):
        trainer(120)
    with pytest.raises(TrainingError, match="'cutouts' and 'most_copied' take labels from 160 on"):
        trainer(170, cutouts="pictures")


def test_a_label_that_stands_for_nothing_is_named(rendered, tmp_path):
    from vl4ad_model.training.trainer import Trainer

    folder = tmp_path / "frames"
    shutil.copytree(rendered, folder)
    for path in (folder / "labels").iterdir():
        labels = np.array(Image.open(path))
        labels[:4] = 60
        Image.fromarray(labels).save(path)
    config = TrainingConfig.from_dict(_settings(folder), base=tmp_path)
    with pytest.raises(TrainingError, match=r"labels/.*png: label 60 is none of the 19 known classes, no hazard that .*json lists"):
        Trainer(config, tmp_path / "run")


def test_fine_tuning_keeps_the_kind_of_queries_that_the_weights_have(rendered, tmp_path):
    """`tiny` has a query for each known class: matching them anew would undo its training."""
    from vl4ad_model.training.trainer import Trainer

    values = {name: value for name, value in _settings(rendered).items() if name != "anchored_queries"}
    for asked, expected in (({"start_from_weights": True}, True), ({}, False), ({"anchored_queries": True}, True),
                            ({"start_from_weights": True, "anchored_queries": False}, False)):  # fmt: skip
        trainer = Trainer(TrainingConfig.from_dict({**values, **asked}, base=tmp_path), tmp_path / "run")
        assert trainer.config.anchored_queries is trainer.model_config.anchored_queries is expected
        trainer.save_model(tmp_path / "model")
        assert json.loads((tmp_path / "model/config.json").read_text())["anchored_queries"] is expected


def test_images_that_cannot_be_read_end_a_run_instead_of_keeping_it_busy(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    folder = tmp_path / "broken"
    shutil.copytree(rendered, folder)
    for image in (folder / "images").iterdir():
        image.write_bytes(b"no image")
    for workers in (0, 1):
        changes = {"data": [{"kind": "rendered", "folder": str(folder)}], "workers": workers}
        values = {**_settings(rendered, validation=[]), **changes}
        with pytest.raises(TrainingError, match=r"^no training image can be read[^\n]*$"):
            Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / f"run{workers}").run()
    next((folder / "images").iterdir()).unlink()
    with pytest.raises(TrainingError, match="is missing, though"):
        find_frames(DataSource("rendered", folder))


def test_saved_weights_are_as_sharp_as_validation_likes_best(tmp_path, rendered):
    from safetensors.torch import load_file

    from vl4ad_model.training import trainer as module
    from vl4ad_model.training.trainer import Trainer
    from vl4ad_model.training.validation import validate

    trainer = Trainer(TrainingConfig.from_dict(_settings(rendered, sharpen=True), base=tmp_path), tmp_path / "run")
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "validation" in line)
    averaged = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["averaged"]
    saved = load_file(tmp_path / "run/model/decoder.safetensors")["mask_decoder.logit_scale"]
    assert float(saved.exp() / averaged["mask_decoder.logit_scale"].exp()) == pytest.approx(logged["sharpened"], rel=0.01)

    # A factor says what a network with that logit scale would have got, and the one that is taken is about the best.
    trainer._decoder.load_state_dict(averaged)
    of_factors = validate(trainer.network, trainer._validation, trainer.vocabulary, trainer.text, factors=module.SHARPER)
    scores = [result.score for result in of_factors]
    assert scores[module.SHARPER.index(logged["sharpened"])] >= max(scores) - 0.0011
    with torch.no_grad():
        trainer.network.mask_decoder.logit_scale += np.log(2.0)
    (twice,) = validate(trainer.network, trainer._validation, trainer.vocabulary, trainer.text)
    assert twice.score == pytest.approx(scores[module.SHARPER.index(2.0)], abs=1e-6)


def test_training_stops_when_it_no_longer_gets_better(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    values = _settings(rendered, steps=200, validate_every=2, patience=3, learning_rate=1e-9, warmup_steps=1)
    trainer = Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")
    trainer.run()
    assert trainer.step < 30
    again = Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")
    assert again.step == trainer.step, "it knows where it stopped"
    again.run()
    assert again.step == trainer.step, "the same command does not train on"
    more = Trainer(TrainingConfig.from_dict({**values, "patience": 4}, base=tmp_path), tmp_path / "run")
    more.run()
    assert more.step > trainer.step


def test_processes_and_parts_of_a_run_draw_their_own_points_and_words(tmp_path, rendered, monkeypatch):
    from vl4ad_model.training.trainer import Trainer

    def drawn(rank, folder):
        monkeypatch.setenv("RANK", rank)
        values = _settings(rendered, steps=2, validation=[], checkpoint_every=2)
        trainer = Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / folder)
        labels = torch.zeros(1, 64, 96, dtype=torch.int64)
        got = losses.sample_points(labels, 40)[0].tolist(), [trainer._words.sample([]).index.tolist() for _ in range(3)]
        return trainer, got

    first, of_first = drawn("0", "a")
    again, of_second, of_other = drawn("0", "b")[1], drawn("1", "c")[1], None
    assert again == of_first, "a seed gives the same run"
    first.run()
    monkeypatch.setenv("RANK", "0")
    of_other = drawn("0", "a")[1]
    for points, words in (of_second, of_other):
        assert points != of_first[0] and words != of_first[1]


def test_gradients_are_not_clipped_to_nothing(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    values = _settings(rendered, steps=1, validation=[], clip_gradient_norm=0, weight_decay=0, warmup_steps=0)
    trainer = Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")
    before = {key: value.clone() for key, value in trainer._decoder.state_dict().items()}
    trainer.run()
    assert any(not torch.equal(before[key], value) for key, value in trainer._decoder.state_dict().items())


@pytest.mark.parametrize("kind", ["cityscapes", "rendered"])
def test_a_vocabulary_whose_classes_are_not_those_of_the_labels_is_refused(kind, tmp_path, rendered):
    """Otherwise a car is taught as road."""
    from vl4ad_model.training.data import require_same_classes

    (tmp_path / "two.yaml").write_text("name: two\nclasses: [{name: road}, {name: car}]\n")
    vocabulary = Vocabulary.from_yaml(tmp_path / "two.yaml")
    own = tmp_path / "own"
    own.mkdir()
    require_same_classes([DataSource("rendered", own)], vocabulary)  # somebody's own labels may mean anything
    (own / "recipe.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"1 = sidewalk, but class 1 of the vocabulary is car"):
        require_same_classes([DataSource(kind, own)], vocabulary)
    require_same_classes([DataSource(kind, own)], Vocabulary.cityscapes().adding_hazards(["tyre"]))


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path, rendered):
    """torchrun with two processes on the CPU: gradients are shared, so both end with the same weights."""
    config = tmp_path / "run.yaml"
    program = tmp_path / "train.py"
    program.write_text(
        "import hashlib, os, sys\n"
        "from pathlib import Path\n"
        "from vl4ad_model.training.config import TrainingConfig\n"
        "from vl4ad_model.training.trainer import Trainer\n"
        "trainer = Trainer(TrainingConfig.from_yaml(Path(sys.argv[1])), Path(sys.argv[2]))\n"
        "trainer.run()\n"
        "weights = b''.join(value.numpy().tobytes() for value in trainer._decoder.state_dict().values())\n"
        "(Path(sys.argv[2]) / ('rank' + os.environ['RANK'])).write_text(hashlib.sha256(weights).hexdigest())\n"
    )
    config.write_text(json.dumps(_settings(rendered, steps=4, validate_every=4, validation=[], checkpoint_every=4)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29617",
    ]
    done = subprocess.run(
        [*command, str(program), str(config), str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["step"] == 4
    assert (tmp_path / "run/rank0").read_text() == (tmp_path / "run/rank1").read_text()
    assert (tmp_path / "run/model/decoder.safetensors").is_file()


def _train(tmp_path: Path, values: dict) -> int:
    """`vl4ad train`, in this process: its exit status."""
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    return cli.run(["train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")])


@contextmanager
def _files_of_at_most(size: int):
    """A disk that has no room for more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_without_its_weights_is_not_trained(tmp_path, rendered, capsys):
    """The deterministic weights that stand in for missing ones would be saved as if they were a model."""
    from vl4ad_model.training.trainer import Trainer

    folder = tmp_path / "mine"
    shutil.copytree(registry.MODELS["tiny"].folder, folder)
    (folder / "decoder.safetensors").unlink()
    values = _settings(rendered, model=str(folder))
    Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "from_nothing")
    assert _train(tmp_path, {**values, "start_from_weights": True}) == 2
    assert "mine has no decoder's weights to start from" in capsys.readouterr().err.replace("\n", "")
    (folder / "clip.safetensors").unlink()
    assert _train(tmp_path, values) == 2
    assert "mine has no clip.safetensors" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "run/model").exists()


def test_a_model_that_the_disk_has_no_room_for_is_none(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    trainer = Trainer(TrainingConfig.from_dict(_settings(rendered), base=tmp_path), tmp_path / "run")
    model = tmp_path / "run/model"
    with _files_of_at_most(100_000), pytest.raises(TrainingError, match=r"cannot write .*run/model/clip\.safetensors"):
        trainer.save_model(model)
    assert not list(model.iterdir())
    shutil.copy(registry.MODELS["tiny"].folder / "clip.safetensors", model)
    with _files_of_at_most(100_000), pytest.raises(CheckpointError, match=r"cannot write .*run/model/decoder\.safetensors"):
        trainer.save_model(model)
    assert [path.name for path in model.iterdir()] == ["clip.safetensors"], "without a config.json nothing loads it"
    trainer.save_model(model)
    registry.write_checksums(model)
    trainer.save_model(model, sharpened=0.5)
    registry.build_network(registry.locate(model))


def test_a_log_that_the_disk_has_no_room_for_is_one_line_that_names_it(tmp_path, rendered, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").symlink_to("/dev/full")
    assert _train(tmp_path, _settings(rendered)) == 2
    assert "run/log.jsonl cannot be written: No space left on device" in capsys.readouterr().err.replace("\n", "")


def test_validation_images_that_say_nothing_are_refused(tmp_path, rendered):
    from vl4ad_model.training.trainer import Trainer

    shutil.copytree(rendered, tmp_path / "ignored")
    for path in (tmp_path / "ignored/labels").iterdir():
        Image.fromarray(np.full((96, 160), 255, np.uint8)).save(path)
    values = _settings(rendered, validation=[{"kind": "rendered", "folder": "ignored"}])
    with pytest.raises(TrainingError, match="the validation images have no pixel of a known class"):
        Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run")


def test_a_run_that_has_its_steps_but_no_model_writes_one(tmp_path, rendered, capsys):
    values = _settings(rendered, steps=2, validate_every=2)
    assert _train(tmp_path, values) == 0
    shutil.rmtree(tmp_path / "run/model")
    assert _train(tmp_path, values) == 0
    assert "holds the weights" in capsys.readouterr().err
    registry.build_network(registry.locate(tmp_path / "run/model"))
    averaged = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["averaged"]
    saved = read_tensors(tmp_path / "run/model/decoder.safetensors")
    assert all(torch.equal(saved[key], value.half()) for key, value in averaged.items() if value.is_floating_point())


def test_too_little_memory_is_said_in_one_line(tmp_path, rendered, capsys):
    assert _train(tmp_path, _settings(rendered, points=10**15)) == 2
    assert "vl4ad: not enough memory: use a smaller batch_size, crop or points" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: tiny\ndata: [")
    command = [
        sys.executable,
        "-m",
        "vl4ad_model.cli",
        "train",
        "--config",
        str(tmp_path / "bad.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "is not YAML" in done.stderr and "Traceback" not in done.stderr


def test_a_loading_process_that_is_killed_ends_the_run_in_one_line(tmp_path, rendered, capsys):
    """As the kernel does where memory runs out."""

    def kill_one():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for task in Path("/proc/self/task").iterdir():
                for child in (task / "children").read_text().split():
                    if Path(f"/proc/{child}/comm").read_text().strip() == "pt_data_worker":
                        os.kill(int(child), signal.SIGKILL)
                        return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    status = _train(tmp_path, _settings(rendered, steps=10_000, validation=[], workers=1))
    killer.join()
    said = capsys.readouterr().err
    assert status == 2 and "a process that loads images was killed" in said and "Traceback" not in said
