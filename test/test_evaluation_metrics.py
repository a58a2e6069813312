"""The metrics equal the public benchmarks', every classic mistake is caught, and any split of the frames gives the same numbers."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation import component_metrics as components
from vl4ad_model.evaluation import exact_metrics as exact
from vl4ad_model.evaluation import naming_metrics as naming
from vl4ad_model.evaluation import pixel_metrics as pixel
from vl4ad_model.evaluation import scored_pixels
from vl4ad_model.evaluation.frame_counts import FirstCounts, count_first
from vl4ad_model.evaluation.label_files import LabelMap, interpret
from vl4ad_model.evaluation.label_metrics import confusion_matrix, label_metrics
from vl4ad_model.evaluation.ordered_scores import OrderedScores
from vl4ad_model.evaluation.scored_pixels import split_pixels
from vl4ad_model.vocabulary import Vocabulary

DATA = Path(__file__).parent / "data" / "metrics"
PUBLISHED = json.loads((DATA / "cases.json").read_text())
EDGES = PUBLISHED["edge_behaviour"]
TRACKS = {"anomaly": "AnomalyTrack", "obstacle": "ObstacleTrack"}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cases", DATA / "generate_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = _generator().generate()


def smiyc_pixels(frames, *, split=split_pixels, module=pixel):
    return module.pixel_metrics(module.merge_pixel_counts(module.count_pixels(split(s, y)) for s, y in frames))


def smiyc_components(frames, threshold, track, module=components):
    parts = [module.match_components(s, y, threshold, module.TRACKS[track]) for s, y in frames]
    return module.component_metrics(module.merge_components(parts))


def fishyscapes(frames, *, split=split_pixels, module=exact):
    return module.exact_metrics_of([split(s, y) for s, y in frames])


def pixel_errors(metrics, case) -> list[float]:
    expected = case["tie_study"]["all_ties_collapsed"]
    got = (metrics.auprc, metrics.fpr95, metrics.auroc, metrics.best_f1, metrics.best_f1_threshold)
    names = ("AuPRC", "FPR95", "AuROC", "best_F1", "best_f1_threshold")
    return [abs(value - expected[name]) for value, name in zip(got, names, strict=True)]


def exact_errors(metrics, case) -> list[float]:
    expected = case["fishyscapes_exact"]
    got = (metrics.average_precision, metrics.fpr95, metrics.auroc)
    return [abs(value - expected[name]) for value, name in zip(got, ("AP", "FPR95", "AuROC"), strict=True)]


def component_errors(metrics, expected) -> list[float]:
    errors = [
        abs(metrics.siou_gt_mean - expected["sIoU_gt_mean"]),
        abs(metrics.ppv_mean - expected["PPV_mean"]),
        abs(metrics.f1_mean - expected["F1_mean"]),
        abs(metrics.ground_truth - expected["n_gt"]),
        abs(metrics.predicted - expected["n_pred"]),
    ]
    for index, overlap in enumerate(metrics.overlaps):
        row = expected["per_threshold"][f"{overlap:.2f}"]
        counts = (metrics.true_positives[index], metrics.false_negatives[index], metrics.false_positives[index])
        errors += [abs(int(count) - row[name]) for count, name in zip(counts, ("TP", "FN", "FP"), strict=True)]
    return errors


# --- the published numbers --------------------------------------------------------------------------------------------------


def test_the_cases_are_the_published_ones():
    module = _generator()
    for name, frames in CASES.items():
        for (scores, labels), frame in zip(frames, PUBLISHED["cases"][name]["frames"], strict=True):
            assert module.digest(scores) == frame["score_sha256"] and module.digest(labels) == frame["label_sha256"]


@pytest.mark.parametrize("name", CASES)
def test_pixel_metrics_equal_the_benchmarks(name):
    assert max(pixel_errors(smiyc_pixels(CASES[name]), PUBLISHED["cases"][name]["float32"])) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_fishyscapes_metrics_equal_the_benchmarks(name):
    assert max(exact_errors(fishyscapes(CASES[name]), PUBLISHED["cases"][name]["float32"])) < 1e-12


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("name", CASES)
def test_component_metrics_equal_the_benchmarks(name, track):
    published = PUBLISHED["cases"][name]["float32"]
    threshold = smiyc_pixels(CASES[name]).best_f1_threshold
    expected = published[f"components_{TRACKS[track]}"]
    assert threshold == pytest.approx(expected["threshold"], abs=1e-12)
    assert max(component_errors(smiyc_components(CASES[name], threshold, track), expected)) < 1e-12
    fixed = published[f"components_{TRACKS[track]}_fixed_threshold"]
    assert max(component_errors(smiyc_components(CASES[name], fixed["threshold"], track), fixed)) < 1e-12


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("name", CASES)
def test_every_single_component_has_the_benchmarks_siou_and_ppv(name, track):
    expected = PUBLISHED["cases"][name]["float32"][f"components_{TRACKS[track]}"]
    for (scores, labels), frame in zip(CASES[name], expected["frames"], strict=True):
        got = components.match_components(scores, labels, expected["threshold"], components.TRACKS[track])
        np.testing.assert_allclose(sorted(got.siou), sorted(frame["sIoU_gt"]), atol=1e-12)
        np.testing.assert_allclose(sorted(got.ppv), sorted(frame["PPV"]), atol=1e-12)


# --- the classic mistakes ---------------------------------------------------------------------------------------------------

MISTAKES = {
    "predictions of exactly the minimum size are dropped": (components, "predicted_sizes >= track", "predicted_sizes > track"),
    "ground truth of exactly the minimum size is dropped": (components, "truth_sizes >= track", "truth_sizes > track"),
    "components are 4-connected": (components, "connectivity=8", "connectivity=4"),
    "a score equal to the threshold is called anomalous": (components, "called = scores > ", "called = scores >= "),
    "ignored pixels stay in the prediction": (components, "    called &= labels != IGNORE\n", ""),
    "ignored pixels count as ground truth": (components, "truth = labels == ANOMALY", "truth = labels >= ANOMALY"),
    "predictions are filtered after small ground truth was taken out": (
        components,
        "    keep_predicted = predicted_sizes >= track.minimum_predicted\n",
        "    small = truth_sizes < track.minimum_truth\n    small[0] = False\n"
        "    keep_predicted = np.bincount(predicted[~small[truths]].ravel(), minlength=predicted_sizes.size) "
        ">= track.minimum_predicted\n",
    ),
    "small ground truth stays an error of the prediction": (
        components,
        "row = np.full(truth_sizes.size, sizes.size + 1)",
        "row = np.full(truth_sizes.size, 0)",
    ),
    "plain IoU: other ground truth counts against a component": (components, "- inside - elsewhere)", "- inside)"),
    "a match needs more than the overlap": (components, "siou >= overlap", "siou > overlap"),
    "a detection of exactly the overlap is false": (components, "ppv < overlap", "ppv <= overlap"),
    "ignored pixels are ordinary": (
        scored_pixels,
        "OrderedScores(values[labels == ORDINARY])",
        "OrderedScores(values[labels != ANOMALY]); labels = np.where(labels == IGNORE, np.uint8(0), labels)",
    ),
    "equal thresholds of different frames stay apart": (
        pixel,
        "thresholds, place = np.unique(np.concatenate([part.thresholds for part in parts]), return_inverse=True)",
        "thresholds = np.sort(np.concatenate([part.thresholds for part in parts]));"
        " place = np.argsort(np.argsort(np.concatenate([part.thresholds for part in parts]), kind='stable'), kind='stable')",
    ),
    "a bin's counts stand at its upper edge": (pixel, "edges[:-1], _per_bin", "edges[1:], _per_bin"),
    "fewer quantiles": (pixel, "QUANTILES = 384", "QUANTILES = 383"),
    "the trapezoid under the PR curve": (
        pixel,
        "np.sum(np.diff(recall) * precision[1:])",
        "np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2)",
    ),
    "FPR after 95 % recall is passed": (pixel, "np.searchsorted(recall, 0.95)", "np.searchsorted(recall, 0.95) + 1"),
    "Fishyscapes: ties with ordinary pixels count in favour": (
        exact,
        "below = ordinary.count_below(thresholds)",
        "below = ordinary.count_below(thresholds, or_equal=True)",
    ),
    "Fishyscapes: a tie counts nothing in the area": (exact, "tied * 0.5", "tied * 0.0"),
}


def _changed(module: ModuleType, old: str, new: str) -> ModuleType:
    source = Path(module.__file__).read_text()
    assert source.count(old) >= 1, f"the test's picture of {module.__name__} is out of date: {old!r}"
    other = ModuleType("mistaken_" + module.__name__.rpartition(".")[2])
    other.__file__ = module.__file__
    sys.modules[other.__name__] = other  # dataclasses look their module up
    exec(compile(source.replace(old, new), module.__file__, "exec"), other.__dict__)
    return other


def _worst(pixel_module=pixel, exact_module=exact, component_module=components, split=split_pixels) -> float:
    """The largest difference from any published number, as far as it is clear which module is to blame."""
    errors = []
    for name, frames in CASES.items():
        published = PUBLISHED["cases"][name]["float32"]
        errors += pixel_errors(smiyc_pixels(frames, split=split, module=pixel_module), published)
        errors += exact_errors(fishyscapes(frames, split=split, module=exact_module), published)
        for track, title in TRACKS.items():
            for kind in (f"components_{title}", f"components_{title}_fixed_threshold"):
                got = smiyc_components(frames, published[kind]["threshold"], track, component_module)
                errors += component_errors(got, published[kind])
    return max(error if math.isfinite(error) else math.inf for error in errors)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_classic_mistake_changes_a_published_number(mistake):
    module, old, new = MISTAKES[mistake]
    changed = _changed(module, old, new)
    name = {pixel: "pixel_module", exact: "exact_module", components: "component_module"}.get(module)
    worst = _worst(**{name: changed}) if name else _worst(split=changed.split_pixels)
    assert worst > 1e-9, f"nothing notices that {mistake}"


# --- edges ------------------------------------------------------------------------------------------------------------------


def _box(h=240, w=320, top=100, left=100, size=(30, 40)):
    labels = np.zeros((h, w), np.uint8)
    labels[top : top + size[0], left : left + size[1]] = 1
    return labels


def test_without_anomalies_the_curves_are_undefined_and_not_zero():
    frames = [(scores, np.where(labels == 1, np.uint8(0), labels)) for scores, labels in CASES["easy"]]
    metrics = smiyc_pixels(frames)
    assert all(math.isnan(value) for value in (metrics.auprc, metrics.auroc, metrics.fpr95))
    assert metrics.best_f1 == EDGES["dataset_without_any_anomaly"]["pixel"]["best_F1"] == 0
    assert all(math.isnan(value) for value in vars(fishyscapes(frames)).values())
    found = smiyc_components(frames, 0.5, "anomaly")
    expected = EDGES["dataset_without_any_anomaly"]["components_thr0.5"]
    assert (found.ground_truth, found.predicted) == (expected["n_gt"], expected["n_pred"])
    assert math.isnan(found.siou_gt_mean) and found.f1_mean == expected["F1_mean"]


def test_with_anomalies_only_precision_is_one_and_the_rest_undefined():
    frames = [(scores, np.ones_like(labels)) for scores, labels in CASES["easy"]]
    metrics, expected = smiyc_pixels(frames), EDGES["dataset_all_anomaly"]["pixel"]
    assert metrics.auprc == pytest.approx(expected["AuPRC"]) and metrics.best_f1 == pytest.approx(expected["best_F1"])
    assert math.isnan(metrics.auroc) and math.isnan(metrics.fpr95)
    assert fishyscapes(frames).average_precision == pytest.approx(1) and math.isnan(fishyscapes(frames).auroc)


def test_nothing_there_and_nothing_found_is_undefined_and_no_crash():
    found = smiyc_components([(np.zeros((40, 40), np.float32), np.zeros((40, 40), np.uint8))], 2.0, "anomaly")
    assert (found.ground_truth, found.predicted) == (0, 0) and math.isnan(found.f1_mean) and math.isnan(found.ppv_mean)


def test_a_background_smaller_than_the_limit_counts_as_ignore():
    labels = np.ones((40, 40), np.uint8)
    labels[0, :20] = 0
    for limit, expected in ((100, "background_smaller_than_thresh_instsize(20px of 0, limit 100)"), (10, "same_with_limit_10")):
        track = components.Track("edge", 50, limit)
        part = components.match_components(np.ones((40, 40), np.float32), labels, 0.5, track)
        metrics = components.component_metrics(part)
        assert metrics.siou_gt_mean == pytest.approx(EDGES[expected]["sIoU_gt_mean"], abs=1e-12)
        assert metrics.ppv_mean == pytest.approx(EDGES[expected]["PPV_mean"], abs=1e-12)


def test_a_frame_in_which_nothing_counts_adds_nothing():
    nothing = (np.full((24, 32), np.nan, np.float32), np.full((24, 32), 255, np.uint8))
    with_it, without = smiyc_pixels([*CASES["easy"], nothing]), smiyc_pixels(CASES["easy"])
    assert (with_it.auprc, with_it.auroc, with_it.best_f1_threshold) == (without.auprc, without.auroc, without.best_f1_threshold)
    assert fishyscapes([*CASES["easy"], nothing]) == fishyscapes(CASES["easy"])
    alone = smiyc_pixels([nothing])
    assert math.isnan(alone.auprc) and math.isnan(alone.best_f1_threshold) and alone.positives == 0


def test_nan_in_ignored_pixels_is_harmless_and_elsewhere_names_the_frame():
    scores, labels = (array.copy() for array in CASES["easy"][0])
    scores[0, 0] = np.nan  # the top rows are ignored
    assert labels[0, 0] == 255
    got = smiyc_pixels([(scores, labels), *CASES["easy"][1:]])
    expected = EDGES["one_nan_score_in_ignore"]["same_as_without"]
    assert got.auprc == pytest.approx(expected["AuPRC"], abs=1e-12)
    assert not math.isnan(components.match_components(scores, labels, 0.5, components.TRACKS["anomaly"]).siou.sum())
    for bad in (np.nan, np.inf, -np.inf):
        scores[200, 200] = bad
        with pytest.raises(EvaluationError, match=r"lane_7: 1 scores are NaN or infinite"):
            split_pixels(scores, labels, "lane_7")


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((4, 5), np.float32), np.zeros((5, 4), np.uint8), "scores are 5x4 but labels are 4x5"),
        (np.zeros((4, 5), np.int32), np.zeros((4, 5), np.uint8), "scores are int32"),
        (np.zeros((4, 5), np.float32), np.zeros((4, 5), np.int64), "labels are int64"),
        (np.zeros((4, 5), np.float32), np.full((4, 5), 7, np.uint8), r"label values \[7\]"),
        (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8), "a map"),
        (np.zeros((0, 5), np.float32), np.zeros((0, 5), np.uint8), "a map"),
    ],
)
def test_arrays_that_are_no_frame_are_refused_by_name(scores, labels, message):
    with pytest.raises(EvaluationError, match=f"frame_3: .*{message}"):
        split_pixels(scores, labels, "frame_3")


def test_scores_of_any_range_are_fine_and_only_their_order_matters_to_the_exact_metrics():
    frames = CASES["easy"]
    moved = [(scores * np.float32(1024) - np.float32(512), labels) for scores, labels in frames]
    assert fishyscapes(moved) == fishyscapes(frames)
    assert smiyc_pixels(moved).auroc == pytest.approx(smiyc_pixels(frames).auroc, abs=1e-4)


def test_half_precision_scores_are_evaluated_as_stored():
    frames = [(scores.astype(np.float16), labels) for scores, labels in CASES["easy"]]
    exactly = fishyscapes([(scores.astype(np.float32), labels) for scores, labels in frames])
    assert fishyscapes(frames) == exactly
    # A threshold between two float16 values is compared as the float16 it rounds to.
    scores = np.full((40, 40), 0.5, np.float16)
    found = components.match_components(scores, _box(40, 40, 5, 5), 0.5 - 1e-6, components.Track("edge", 1, 1))
    assert found.ppv.size == 0


# --- merging ----------------------------------------------------------------------------------------------------------------


@st.composite
def frames_and_a_partition(draw):
    """A few small frames with many ties, and a way to cut and shuffle them."""
    count = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    levels = draw(st.sampled_from([2, 5, 1000, 2**24]))
    frames = []
    for _ in range(count):
        shape = (int(rng.integers(4, 20)), int(rng.integers(4, 20)))
        scores = (rng.integers(0, levels, shape) / levels).astype(np.float32)
        labels = rng.choice(np.array([0, 0, 0, 1, 255], np.uint8), shape)
        frames.append((scores, labels))
    order = draw(st.permutations(range(count)))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    return frames, groups


def _same(one, other):
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= 1e-12


@settings(max_examples=60, deadline=None)
@given(frames_and_a_partition())
def test_any_partition_and_order_of_frames_gives_the_same_numbers(case):
    frames, groups = case
    pixels = [split_pixels(scores, labels) for scores, labels in frames]
    whole = smiyc_pixels(frames)
    counts = [pixel.merge_pixel_counts(pixel.count_pixels(pixels[i]) for i in group) for group in groups]
    merged = pixel.pixel_metrics(pixel.merge_pixel_counts(counts))
    for name in ("auprc", "fpr95", "auroc", "best_f1", "best_f1_threshold", "tpr95_threshold"):
        assert _same(getattr(whole, name), getattr(merged, name)), name

    anomalous = exact.merge_anomalous(exact.merge_anomalous(exact.count_anomalous(pixels[i]) for i in group) for group in groups)
    ordinary = exact.merge_ordinary(
        exact.merge_ordinary(exact.count_ordinary(pixels[i], anomalous.distinct) for i in group) for group in groups if group
    )
    for one, other in zip(vars(exact.exact_metrics(anomalous, ordinary)).values(), vars(fishyscapes(frames)).values(), strict=True):
        assert _same(one, other)

    track = components.Track("small", 2, 2)
    parts = [[components.match_components(*frames[i], 0.5, track) for i in group] for group in groups]
    merged = components.component_metrics(components.merge_components(components.merge_components(part) for part in parts))
    straight = components.component_metrics(
        components.merge_components(components.match_components(scores, labels, 0.5, track) for scores, labels in frames)
    )
    for name in ("siou_gt_mean", "ppv_mean", "f1_mean"):
        assert _same(getattr(merged, name), getattr(straight, name)), name
    assert (merged.true_positives == straight.true_positives).all()


@settings(max_examples=60, deadline=None)
@given(frames_and_a_partition())
def test_exact_metrics_equal_a_plain_count_over_every_threshold(case):
    frames, _ = case
    scores = np.concatenate([s[y != 255] for s, y in frames])
    truth = np.concatenate([y[y != 255] for s, y in frames]) == 1
    got = fishyscapes(frames)
    if not truth.any():
        assert math.isnan(got.average_precision)
        return
    points = [(0, 0)] + [((scores >= t)[truth].sum(), (scores >= t)[~truth].sum()) for t in np.unique(scores)[::-1]]
    tp, fp = (np.array(column, float) for column in zip(*points, strict=True))
    precision = tp[1:] / (tp[1:] + fp[1:])
    assert got.average_precision == pytest.approx(np.sum(np.diff(tp) / truth.sum() * precision), abs=1e-12)
    if not truth.all():
        fpr = fp / (~truth).sum()
        assert got.auroc == pytest.approx(np.trapezoid(tp / truth.sum(), fpr), abs=1e-12)
        assert got.fpr95 == pytest.approx(fpr[np.argmax(tp / truth.sum() >= 0.95)], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(frames_and_a_partition(), st.integers(1, 3000))
def test_few_and_many_thresholds_give_the_same_integers(case, more):
    """A frame with fewer ordinary pixels than there are thresholds is counted the other way round."""
    frames, groups = case
    pixels = [split_pixels(scores, labels) for scores, labels in frames]
    scores = np.random.default_rng(more).random(more, dtype=np.float32) * 1.2 - np.float32(0.1)
    for thresholds in (np.unique(scores), np.unique(np.concatenate([scores, *[s[y == 0] for s, y in frames]]))):
        merged = exact.merge_ordinary(
            exact.merge_ordinary(exact.count_ordinary(pixels[i], thresholds) for i in group) for group in groups if group
        )
        ordinary = np.concatenate([scores[labels == 0] for scores, labels in frames])
        assert merged.total == ordinary.size and merged.thresholds == thresholds.size
        reached, tied = np.zeros((2, thresholds.size + 1), int)
        np.add.at(reached, (ordinary[:, None] >= thresholds).sum(axis=1), 1)
        tied[1:] = (ordinary[:, None] == thresholds).sum(axis=0)
        for ranks, counts, expected in ((merged.ranks, merged.pixels, reached), (merged.tied_ranks, merged.tied, tied)):
            got = np.zeros_like(expected)
            got[ranks] = counts
            assert (got == expected).all()


@settings(max_examples=60, deadline=None)
@given(frames_and_a_partition(), st.integers(1, 50))
def test_scores_put_among_others_bit_by_bit_are_those_of_all(case, chunk):
    frames, _ = case
    parts = [exact.count_anomalous(split_pixels(scores, labels)) for scores, labels in frames]
    exact_, before = _changed(exact, "_CHUNK = 1 << 20", f"_CHUNK = {chunk}"), [part.pixels.copy() for part in parts]
    got = exact_.merge_anomalous(parts)
    distinct, pixels = np.unique(np.concatenate([s[y == 1] for s, y in frames]), return_counts=True)
    assert (got.distinct == distinct).all() and (got.pixels == pixels).all()
    assert all((part.pixels == pixels).all() for part, pixels in zip(parts, before, strict=True))
    for one, other in zip(vars(fishyscapes(frames, module=exact_)).values(), vars(fishyscapes(frames)).values(), strict=True):
        assert _same(one, other)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["uniform", "ties", "spike", "far outlier", "two values", "negative"]),
    size=st.integers(65_536, 90_000),
)
def test_scores_can_be_asked_as_if_they_were_sorted(seed, kind, size):
    rng = np.random.default_rng(seed)
    scores = rng.random(size, dtype=np.float32)
    if kind == "ties":
        scores = np.round(scores, 2)
    elif kind == "spike":
        scores[: size * 9 // 10] *= np.float32(1e-6)
    elif kind == "far outlier":
        scores[0] = 1e30
    elif kind == "two values":
        scores = np.where(scores > 0.3, np.float32(1), np.nextafter(np.float32(1), np.float32(0)))
    elif kind == "negative":
        scores = -np.exp(scores * 20)
    plain = np.sort(scores)
    ranks = rng.integers(0, size, 300)
    thresholds = np.concatenate([rng.choice(scores, 200), np.float32([-np.inf, np.inf, scores.min(), scores.max(), 0, 0.5])])
    asked = OrderedScores(scores)
    assert (asked.at(ranks) == plain[ranks]).all()
    assert (asked.count_below(thresholds) == np.searchsorted(plain, thresholds, side="left")).all()
    assert (asked.count_below(thresholds, or_equal=True) == np.searchsorted(plain, thresholds, side="right")).all()
    assert (asked.count_below(np.resize(thresholds, 5000)) == np.searchsorted(plain, np.resize(thresholds, 5000))).all()


# --- class labels -----------------------------------------------------------------------------------------------------------


def test_mean_iou_counts_classes_that_are_there_or_predicted_and_leaves_ignored_pixels_out():
    truth = np.array([[0, 0, 1, 1, 255, 255]], np.uint8)
    predicted = np.array([[0, 1, 1, 1, 2, 0]], np.uint8)
    metrics = label_metrics(confusion_matrix(predicted, truth, 4))
    assert metrics.iou[0] == pytest.approx(1 / 2) and metrics.iou[1] == pytest.approx(2 / 3)
    assert math.isnan(metrics.iou[2]) and metrics.miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.accuracy == pytest.approx(3 / 4)
    only_predicted = label_metrics(confusion_matrix(np.where(predicted == 0, np.uint8(3), predicted), truth, 5))
    assert only_predicted.iou[[0, 3]].tolist() == [0, 0] and math.isnan(only_predicted.iou[2])
    assert only_predicted.miou == pytest.approx((0 + 2 / 3 + 0) / 3)  # as Cityscapes' getScoreAverage


def test_a_hazard_or_void_in_place_of_a_class_is_a_miss_and_no_other_class_s_error():
    truth = np.zeros((2, 4), np.uint8)
    predicted = np.array([[0, 0, 19, 255], [0, 0, 20, 254]], np.uint8)
    metrics = label_metrics(confusion_matrix(predicted, truth, 19))
    assert metrics.iou[0] == pytest.approx(0.5) and metrics.miou == pytest.approx(0.5)


def test_confusion_matrices_add_up_and_wrong_maps_are_refused():
    rng = np.random.default_rng(3)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), (6, 30))
    predicted = rng.integers(0, 4, (6, 30)).astype(np.uint8)
    whole = confusion_matrix(predicted, truth, 3)
    assert (whole == sum(confusion_matrix(predicted[i : i + 2], truth[i : i + 2], 3) for i in (0, 2, 4))).all()
    with pytest.raises(EvaluationError, match="seven: class 9"):
        confusion_matrix(np.zeros((1, 2), np.uint8), np.array([[9, 0]], np.uint8), 3, "seven")
    with pytest.raises(EvaluationError, match="seven: predicted"):
        confusion_matrix(np.zeros((1, 3), np.uint8), np.zeros((1, 2), np.uint8), 3, "seven")
    assert math.isnan(label_metrics(np.zeros((3, 4), np.int64)).miou)


# --- names of hazards -------------------------------------------------------------------------------------------------------

KNOWN = 19
HAZARDS = Vocabulary.cityscapes().with_hazards(["tyre|tire", "cardboard box", "ladder"]).hazards
PREDICTED = np.array([0, 13, 19, 20, 21, 22, 254, 255], np.uint8)


@st.composite
def named_frames(draw):
    """Frames (predicted, raw labels, names by label) in which one label means many things, and a way to cut and shuffle them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 6))
    frames = []
    for _ in range(count):
        shape = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
        names = {100: str(rng.choice(["Tyre", "tire", "sofa"])), 101: str(rng.choice(["cardboard  BOX", "sofa"])), 253: "sofa"}
        labels = rng.choice(np.array([0, 13, 100, 101, 103, 253, 255], np.uint8), shape)
        frames.append((rng.choice(PREDICTED, shape), labels, names))
    order = draw(st.permutations(range(count)))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    return frames, [group for group in groups if group]


def counted(predicted, labels, names):
    return naming.count_names(predicted, interpret(labels, "classes", KNOWN, "frame", names), KNOWN, len(HAZARDS))


def same_names(one, other):
    return (
        (one.ordinary == other.ordinary).all()
        and one.types.keys() == other.types.keys()
        and all((one.types[name] == other.types[name]).all() for name in one.types)
    )


@settings(max_examples=60, deadline=None)
@given(named_frames())
def test_names_counted_in_any_partition_and_order_equal_a_plain_count_over_all_pixels(case):
    frames, groups = case
    parts = [naming.merge_names(counted(*frames[i]) for i in group) for group in groups]
    assert same_names(naming.merge_names(parts), naming.merge_names(counted(*frame) for frame in frames))
    got = naming.naming_metrics(naming.merge_names(parts), HAZARDS)

    predicted = np.concatenate([frame[0].ravel() for frame in frames])
    labels = np.concatenate([frame[1].ravel() for frame in frames])
    truth = np.concatenate([np.array([frame[2].get(v, f"hazard {v}") for v in frame[1].ravel()], object) for frame in frames])
    counts, hazard = labels != 255, labels >= 100
    assert set(got.types) == set(truth[counts & hazard])
    for index, spellings in enumerate([("Tyre", "tire"), ("cardboard  BOX",), ()]):
        said, meant = counts & (predicted == KNOWN + index), counts & hazard & np.isin(truth, spellings)
        assert got.predicted[index] == said.sum()
        assert _same(got.iou[index], (said & meant).sum() / (said | meant).sum() if meant.any() else math.nan)
        assert _same(got.on_own_types[index], (said & meant).sum() / said.sum() if said.any() and meant.any() else math.nan)
        assert _same(got.on_anomaly[index], (said & hazard).sum() / said.sum() if said.any() else math.nan)
        assert _same(got.on_ordinary[index], (said & ~hazard).sum() / said.sum() if said.any() else math.nan)
        for row, name in enumerate(got.types):
            of_type = counts & hazard & (truth == name)
            assert got.pixels[row] == of_type.sum() and _same(got.shares[row, index], (of_type & said).sum() / of_type.sum())
    assert np.allclose(got.shares.sum(axis=1), 1)


@settings(max_examples=30, deadline=None)
@given(named_frames(), st.integers(0, 2**32 - 1))
def test_what_is_predicted_at_ignored_pixels_never_matters_to_names(case, seed):
    rng = np.random.default_rng(seed)
    for predicted, labels, names in case[0]:
        other = np.where(labels == 255, rng.choice(PREDICTED, labels.shape), predicted)
        assert same_names(counted(predicted, labels, names), counted(other, labels, names))


def test_anomalies_of_no_type_are_one_row_and_neither_right_nor_wrong():
    anomaly = np.array([[0, 0, 1, 1, 1, 1, 255]], np.uint8)
    predicted = np.array([[19, 0, 19, 19, 20, 0, 19]], np.uint8)
    alone = naming.count_names(predicted, LabelMap(anomaly, None), KNOWN, 3)
    got = naming.naming_metrics(alone, HAZARDS)
    assert got.types == ("anomaly",) and got.shares[0].tolist() == [0.5, 0.25, 0, 0.25]
    assert np.isnan(got.iou).all() and got.on_ordinary[:2].tolist() == [1 / 3, 0] and math.isnan(got.on_ordinary[2])
    typed = counted(np.array([[19, 0]], np.uint8), np.array([[100, 100]], np.uint8), {100: "tyre"})
    both = naming.naming_metrics(naming.merge_names([alone, typed]), HAZARDS)
    assert both.types == ("tyre", "anomaly") and both.iou[0] == pytest.approx(1 / 3)  # one right, one missed, one on the road


def test_names_survive_an_interruption_and_maps_of_different_sizes_are_refused():
    labels = interpret(np.array([[0, 100, 101, 255]], np.uint8), "classes", KNOWN, "frame", {100: "tyre", 101: "Möbel 家具"})
    predicted, scores = np.array([[19, 19, 0, 0]], np.uint8), np.zeros((1, 4), np.float32)
    for hazards, metrics, there in ((3, ("pixel", "naming"), True), (0, ("pixel", "naming"), False), (3, ("pixel",), False)):
        counts = count_first("frame", scores, labels, predicted, metrics, KNOWN, hazards)
        kept = FirstCounts.from_bytes(counts.to_bytes()).naming
        assert (kept is not None) == there and (not there or same_names(kept, counts.naming))
    with pytest.raises(EvaluationError, match="seven: predicted"):
        naming.count_names(predicted[:, :3], labels, KNOWN, 3, "seven")
