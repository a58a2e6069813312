"""The production scoring equals the equations, and VL4AD's promises hold."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vl4ad_model import scoring, scoring_reference
from vl4ad_model.network.mask_decoder import pool_over_masks
from vl4ad_model.network.proposals import MaskProposals
from vl4ad_model.scoring import Scorer, prepare_classifier, query_class_probabilities
from vl4ad_model.vocabulary import Hazard, Vocabulary, VocabularyClass

DIMENSION = 24


def make_vocabulary(group_sizes, superclass_of, hazard_sizes):
    classes = tuple(
        VocabularyClass(f"c{k}", tuple(f"c{k}/{j}" for j in range(size)), f"s{superclass_of[k]}", (k, 0, 0))
        for k, size in enumerate(group_sizes)
    )
    hazards = tuple(Hazard(tuple(f"h{q}/{j}" for j in range(size)), (0, q, 0)) for q, size in enumerate(hazard_sizes))
    return Vocabulary("random", classes, hazards)


def unit_rows(vocabulary, seed):
    count = sum(map(len, vocabulary.concept_groups))
    return F.normalize(torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(seed)), dim=-1)


@st.composite
def cases(draw):
    known = draw(st.integers(1, 6))
    vocabulary = make_vocabulary(
        [draw(st.integers(1, 4)) for _ in range(known)],
        [draw(st.integers(0, known - 1)) for _ in range(known)],
        [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 4)))],
    )
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    image = (draw(st.integers(max(1, 4 * h - 31), 4 * h)), draw(st.integers(max(1, 4 * w - 31), 4 * w)))
    output = image if draw(st.booleans()) else (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    return {
        "vocabulary": vocabulary,
        "queries": draw(st.integers(1, 70)),
        "size": (h, w),
        "image": image,
        "output": output,
        "spread": draw(st.sampled_from([0.0, 1.0, 20.0])),
        "extreme": draw(st.booleans()),
        "classifier": draw(st.sampled_from(scoring.CLASSIFIERS)),
        "merge": draw(st.booleans()),
        "scoring": draw(st.sampled_from(scoring.SCORINGS)),
        "void": draw(st.booleans()),
        "some_empty": draw(st.booleans()),
        "tolerance": draw(st.sampled_from([0.0, 0.0, 3.0, 40.0])),
        "seed": draw(st.integers(0, 2**31)),
    }


def build(case):
    g = torch.Generator().manual_seed(case["seed"])
    n, (h, w) = case["queries"], case["size"]
    masks = torch.randn(1, n, h, w, generator=g) * case["spread"]
    if case["extreme"]:  # whole masks far outside what a sigmoid resolves
        masks += torch.randint(-1, 2, (1, n, 1, 1), generator=g) * 1e4
        masks[:, :, 1:] = masks[:, :, :1]  # constant over rows, so that interpolation itself stays exact in float32
        masks[:, :, :, 1:] = masks[:, :, :, :1]
    valid = torch.rand(1, n, generator=g) > 0.3 if case["some_empty"] else None
    # The network's input, of which what is asked for may be a part.
    size = [int(torch.randint(low, 4 * high + 1, (), generator=g)) for low, high in zip(case["image"], (h, w), strict=True)]
    image = torch.randint(0, 256, (1, *size, 3), generator=g, dtype=torch.uint8).permute(0, 3, 1, 2)
    proposals = MaskProposals(
        masks,
        torch.randn(1, n, DIMENSION, generator=g),
        torch.randn(1, n, DIMENSION, generator=g),
        valid,
        case["image"],
        (4 * h, 4 * w),
        image if case["tolerance"] else None,
    )
    rows = unit_rows(case["vocabulary"], case["seed"] + 1)
    void = torch.randn(DIMENSION, generator=g) if case["void"] else None
    return proposals, rows, void


def reference(case, proposals, rows, void, in_logit_scale, out_logit_scale, trained):
    """The equations in float64, straight from scoring_reference."""
    vocabulary = case["vocabulary"]
    scales = [min(float(np.exp(value)), 100.0) for value in (in_logit_scale, out_logit_scale)]
    parts = list(rows.double().split([len(group) for group in vocabulary.concept_groups]))
    names = [set(group) for group in vocabulary.concept_groups]
    known = vocabulary.known_count
    void_row = None if void is None else F.normalize(void.double(), dim=-1)

    def probabilities(groups, group_names):
        with_void = scoring_reference.class_probabilities(proposals.query_embeddings[0].double(), groups, void_row, scales[0])
        p_in = scoring_reference.class_probabilities(proposals.query_embeddings[0].double(), groups, None, scales[0])
        p_out = scoring_reference.class_probabilities(proposals.pooled_embeddings[0].double(), groups, None, scales[1])
        if case["classifier"] == "ensemble":
            weight = torch.tensor([0.4 if group & trained else 0.8 for group in group_names], dtype=torch.float64)
        else:
            weight = torch.full((len(groups),), float(case["classifier"] == "out_of_vocabulary"), dtype=torch.float64)
        weight = weight.expand_as(p_in)
        if proposals.pooled_valid is not None:
            weight = weight * proposals.pooled_valid[0][:, None]
        p_void = None if void is None else with_void[:, -1]
        return scoring_reference.ensemble_probabilities(p_in, p_out, weight, p_void)

    masks, padded_size = proposals.mask_logits[0].double(), proposals.padded_size
    if case["tolerance"]:
        masks = scoring_reference.guided_logits(masks, proposals.images[0], proposals.image_size, case["tolerance"])
        padded_size = proposals.image_size
    scores = scoring_reference.mask_scores(masks, padded_size, proposals.image_size, case["output"])
    labels = probabilities(parts, names)
    class_map = torch.einsum("nk,nhw->khw", labels, scores)
    if case["merge"]:
        groups = [torch.cat([parts[i] for i in ids]) for _, ids in vocabulary.superclasses] + parts[known:]
        group_names = [set().union(*(names[i] for i in ids)) for _, ids in vocabulary.superclasses] + names[known:]
        known_probabilities = probabilities(groups, group_names)[:, : len(vocabulary.superclasses)]
    else:
        known_probabilities = labels[:, :known]
    anomaly = scoring_reference.normalized_anomaly_map if case["scoring"] == "normalized" else scoring_reference.anomaly_map
    return class_map, anomaly(scores, known_probabilities)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_fast_path_equals_the_equations(case):
    proposals, rows, void = build(case)
    trained = {"c0/0", "h0/0"}
    prepared = prepare_classifier(
        case["vocabulary"],
        rows.numpy(),
        classifier=case["classifier"],
        merge_classes=case["merge"],
        void=void,
        in_logit_scale=2.0,
        out_logit_scale=2.5,
        training_concepts=sorted(trained),
        scoring=case["scoring"],
        colour_tolerance=case["tolerance"],
    )
    class_map, anomaly = reference(case, proposals, rows, void, 2.0, 2.5, trained)
    maps = Scorer().score(proposals, prepared, case["output"])[0]
    tolerance = 1e-5 * max(1.0, float(class_map.abs().max()))
    assert maps.anomaly.shape == case["output"] and maps.anomaly.dtype == torch.float32
    assert torch.allclose(maps.anomaly.double(), anomaly, atol=tolerance, rtol=0)
    # The label is a best class: equal to the equations' up to what float32 cannot tell apart.
    chosen = class_map.gather(0, maps.labels.long()[None])[0]
    assert (class_map.amax(dim=0) - chosen).max() <= 2 * tolerance
    assert torch.allclose(Scorer().class_map(proposals, prepared, case["output"]).double(), class_map, atol=tolerance, rtol=0)


def simple(hazard_rows=None, *, merge=False, scoring="max"):
    """Two queries that fill the left and right half, two known classes, one orthogonal direction each."""
    basis = torch.eye(DIMENSION)
    hazards = [] if hazard_rows is None else [1] * len(hazard_rows)
    vocabulary = make_vocabulary([1, 1], [0, 0], hazards)
    rows = torch.stack([basis[0], basis[1], *(hazard_rows or [])])
    masks = torch.full((1, 2, 8, 16), -8.0)
    masks[0, 0, :, :8] = 8.0
    masks[0, 1, :, 8:] = 8.0
    embeddings = torch.stack([basis[0], 0.8 * basis[1] + 0.6 * basis[5]])[None]
    proposals = MaskProposals(masks, embeddings, None, None, (32, 64), (32, 64))
    prepared = prepare_classifier(
        vocabulary,
        rows.numpy(),
        classifier="in_vocabulary",
        merge_classes=merge,
        void=None,
        in_logit_scale=float(np.log(30)),
        out_logit_scale=0.0,
        scoring=scoring,
    )
    return Scorer().score(proposals, prepared)[0]


@pytest.mark.parametrize("kind", scoring.SCORINGS)
def test_a_hazard_far_from_every_query_changes_next_to_nothing(kind):
    far = torch.eye(DIMENSION)[9]
    hazard = -0.5 * torch.eye(DIMENSION)[0] - 0.5 * torch.eye(DIMENSION)[1] + 0.7 * far
    plain, with_hazard = simple(scoring=kind), simple([hazard], scoring=kind)
    assert (plain.anomaly - with_hazard.anomaly).abs().max() < 1e-3
    assert torch.equal(plain.labels, with_hazard.labels)


@pytest.mark.parametrize("kind", scoring.SCORINGS)
def test_a_hazard_that_is_what_a_query_sees_takes_its_pixels_and_raises_their_score(kind):
    plain = simple(scoring=kind)
    named = simple([0.8 * torch.eye(DIMENSION)[1] + 0.6 * torch.eye(DIMENSION)[5]], scoring=kind)
    assert (plain.labels[:, 34:] == 1).all() and (named.labels[:, 34:] == 2).all()
    # What no mask claims is a tenth of a mask's worth in the normalized score.
    least = 0.1 if kind == "max" else 0.1 + scoring.UNCLAIMED / (1 + scoring.UNCLAIMED)
    assert (named.anomaly[:, 34:] > 0.9).all() and (plain.anomaly[:, 34:] < least).all()
    assert torch.allclose(named.anomaly[:, :30], plain.anomaly[:, :30], atol=1e-3)


def test_the_normalized_score_is_dark_at_the_border_between_any_two_known_classes_and_bright_where_no_mask_is():
    basis = torch.eye(DIMENSION)
    # One mask fades where the other begins; the last columns belong to neither.
    masks = torch.linspace(-6, 6, 32).expand(1, 1, 8, 32)
    masks = torch.cat((torch.cat((-masks, masks), dim=1), torch.full((1, 2, 8, 8), -30.0)), dim=-1)
    proposals = MaskProposals(masks, basis[None, :2], None, None, (32, 160), (32, 160))

    def maps(kind):
        prepared = prepare_classifier(
            make_vocabulary([1, 1], [0, 1], []), basis[:2].numpy(), classifier="in_vocabulary", merge_classes=True, void=None,
            in_logit_scale=float(np.log(30)), out_logit_scale=0.0, scoring=kind,
        )  # fmt: skip
        return Scorer().score(proposals, prepared)[0]

    plain, normalized = maps("max"), maps("normalized")
    border, nothing = slice(60, 68), slice(140, 160)
    assert plain.anomaly[:, border].max() > 0.4 and normalized.anomaly[:, border].max() < 0.15
    assert torch.allclose(normalized.anomaly[:, nothing], torch.tensor(1.0), atol=1e-6)
    assert torch.equal(plain.labels, normalized.labels)


def seen_along(image, tolerance):
    """Maps of a picture of 32 x 64 and of two masks that meet between its columns 27 and 28, as near as cells can tell."""
    basis = torch.eye(DIMENSION)
    masks = torch.cat((torch.full((1, 1, 8, 7), 6.0), torch.full((1, 1, 8, 9), -6.0)), dim=-1)
    proposals = MaskProposals(torch.cat((masks, -masks), dim=1), basis[None, :2], None, None, (32, 64), (32, 64), image)
    prepared = prepare_classifier(
        make_vocabulary([1, 1], [0, 1], []), basis[:2].numpy(), classifier="in_vocabulary", merge_classes=True, void=None,
        in_logit_scale=float(np.log(30)), out_logit_scale=0.0, colour_tolerance=tolerance,
    )  # fmt: skip
    return Scorer().score(proposals, prepared)[0]


@pytest.mark.parametrize("edge", [26, 27, 28, 29, 30])
def test_along_the_image_a_mask_ends_where_the_colour_does_and_not_where_its_cells_do(edge):
    picture = torch.full((1, 3, 32, 64), 40, dtype=torch.uint8)
    picture[..., edge:] = 200
    assert (seen_along(picture, 13.0).labels == (torch.arange(64) >= edge)).all()
    assert (seen_along(None, 0.0).labels == (torch.arange(64) >= 28)).all(), "without the image: half way between two cells"


def test_along_an_image_of_one_colour_masks_are_bilinear():
    flat = seen_along(torch.full((1, 3, 32, 64), 90, dtype=torch.uint8), 13.0)
    assert torch.allclose(flat.anomaly, seen_along(None, 0.0).anomaly, atol=1e-6)


def test_masks_along_an_image_need_the_image():
    with pytest.raises(ValueError, match="come without their images"):
        seen_along(None, 13.0)


def test_merging_removes_the_ridge_of_uncertainty_between_two_classes():
    basis = torch.eye(DIMENSION)
    vocabulary = make_vocabulary([1, 1], [0, 0], [])
    masks = torch.linspace(-6, 6, 32)[None, None, None].expand(1, 1, 8, 32)
    # One query ends where the other begins, and a third covers both without knowing which it is.
    masks = torch.cat((-masks, masks), dim=1)
    both = F.normalize(basis[0] + basis[1], dim=-1)
    embeddings = torch.stack((F.normalize(basis[0] + 0.8 * both, dim=-1), F.normalize(basis[1] + 0.8 * both, dim=-1)))[None]
    proposals = MaskProposals(masks, embeddings, None, None, (32, 128), (32, 128))

    def border(merge):
        prepared = prepare_classifier(
            vocabulary,
            basis[:2].numpy(),
            classifier="in_vocabulary",
            merge_classes=merge,
            void=None,
            in_logit_scale=float(np.log(10)),
            out_logit_scale=0.0,
        )
        maps = Scorer().score(proposals, prepared)[0]
        return maps.anomaly[:, 60:68].max() - maps.anomaly[:, 4:12].max(), maps.labels

    ridge, labels = border(merge=False)
    merged_ridge, merged_labels = border(merge=True)
    assert ridge > 0.3 and merged_ridge < 0.01
    assert torch.equal(labels, merged_labels)


def test_one_classifier_never_becomes_nan_in_half_precision():
    vocabulary = make_vocabulary([1] * 5, range(5), [1])
    embeddings = (torch.randn(40, DIMENSION) * 50).half()
    prepared = prepare_classifier(
        vocabulary,
        unit_rows(vocabulary, 3).numpy(),
        classifier="ensemble",
        merge_classes=False,
        void=torch.randn(DIMENSION),
        in_logit_scale=9.0,
        out_logit_scale=9.0,
    )
    valid = torch.arange(40) % 2 == 0
    probabilities = query_class_probabilities(prepared, embeddings, embeddings * torch.nan, valid * False)
    assert probabilities.isfinite().all()
    assert query_class_probabilities(prepared, embeddings, -embeddings, valid).isfinite().all()


def test_pooling_over_masks_holds_in_half_precision():
    """Half precision counts no further than 65504 and knows no 1e-8: big masks and empty ones must still have a mean."""
    features = torch.full((1, 2, 300, 300), 3.0, dtype=torch.half)
    masks = torch.stack((torch.ones(300, 300), -torch.ones(300, 300)))[None].half()
    assert torch.equal(pool_over_masks(features, masks), torch.tensor([[[3.0, 3.0], [0.0, 0.0]]]).half())


def test_the_score_is_not_clipped():
    masks = torch.full((1, 3, 4, 4), 20.0)
    vocabulary = make_vocabulary([1], [0], [])
    proposals = MaskProposals(masks, torch.ones(1, 3, DIMENSION), None, None, (16, 16), (16, 16))
    prepared = prepare_classifier(
        vocabulary, unit_rows(vocabulary, 0).numpy(), classifier="in_vocabulary", merge_classes=True, void=None,
        in_logit_scale=1.0, out_logit_scale=1.0,
    )  # fmt: skip
    assert torch.allclose(Scorer().score(proposals, prepared)[0].anomaly, torch.tensor(-2.0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"classifier": "best"}, "in_vocabulary, out_of_vocabulary, ensemble"), ({"scoring": "best"}, "max, normalized")],
)
def test_an_unknown_classifier_or_score_is_a_mistake_of_the_caller(wrong, said):
    right = {"classifier": "in_vocabulary", "merge_classes": True, "void": None, "in_logit_scale": 1.0, "out_logit_scale": 1.0}
    with pytest.raises(ValueError, match=said):
        prepare_classifier(make_vocabulary([1], [0], []), np.eye(1, DIMENSION, dtype=np.float32), **(right | wrong))


@pytest.mark.gpu
def test_maps_are_made_on_the_gpu_and_equal_the_cpus():
    case = {
        "vocabulary": make_vocabulary([2, 3], [0, 0], [1]), "queries": 50, "size": (16, 32), "image": (60, 120),
        "output": (60, 120), "spread": 5.0, "extreme": False, "classifier": "ensemble", "merge": True, "void": True,
        "some_empty": True, "seed": 1, "tolerance": 0,
    }  # fmt: skip
    proposals, rows, void = build(case)
    settings_ = dict(classifier="ensemble", merge_classes=True, void=void, in_logit_scale=2.0, out_logit_scale=2.5)
    cpu = Scorer().score(proposals, prepare_classifier(case["vocabulary"], rows.numpy(), **settings_))[0]
    moved = MaskProposals(
        proposals.mask_logits.cuda(), proposals.query_embeddings.cuda(), proposals.pooled_embeddings.cuda(),
        proposals.pooled_valid.cuda(), proposals.image_size, proposals.padded_size,
    )  # fmt: skip
    gpu = Scorer().score(moved, prepare_classifier(case["vocabulary"], rows.numpy(), device="cuda", **settings_))[0]
    assert gpu.labels.is_cuda
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(gpu.anomaly.cpu(), cpu.anomaly, atol=1e-4)
