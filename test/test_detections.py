"""From maps to things with boxes: what is one, where it is, what it is called."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vl4ad_model import detections
from vl4ad_model.segmenter import Segmentation
from vl4ad_model.vocabulary import Vocabulary

WORDS = Vocabulary.cityscapes().with_hazards(["tyre|tire", "cardboard box"])
TYRE, BOX = 19, 20


def maps(height=40, width=60):
    """A plain road."""
    return np.zeros((height, width), np.uint8), np.full((height, width), 0.1, np.float32)


def find(labels, anomaly, **arguments):
    return detections.find(Segmentation(labels, anomaly, WORDS, 1), **{"threshold": 0.5, "min_area": 0.0, **arguments})


def test_nothing_unusual_is_nothing():
    assert find(*maps()) == []


def test_a_thing_that_is_half_named_is_one_thing_and_largest_come_first():
    labels, anomaly = maps()
    anomaly[10:20, 5:15] = 0.8
    labels[10:20, 5:12] = TYRE
    anomaly[30:33, 40:60] = 0.9
    tyre, other = find(labels, anomaly)
    assert (tyre.name, tyre.box, tyre.pixels) == ("tyre", (5, 10, 10, 10), 100)
    assert tyre.shares == (("tyre", 0.7), (detections.UNNAMED, 0.3)) and tyre.score == pytest.approx(0.8)
    assert (other.name, other.box, other.pixels) == (detections.UNNAMED, (40, 30, 20, 3), 60)


def test_what_is_named_counts_at_any_score_and_what_touches_at_a_corner_is_one():
    labels, anomaly = maps()
    labels[0, 0], labels[1, 1], labels[2, 2] = BOX, BOX, TYRE
    (found,) = find(labels, anomaly)
    assert found.name == "cardboard box" and found.box == (0, 0, 3, 3) and found.score == pytest.approx(0.1)


def test_void_is_no_name_and_the_threshold_itself_is_not_above_it():
    labels, anomaly = maps()
    labels[:], anomaly[:5] = 255, 0.75
    (found,) = find(labels, anomaly)
    assert found.shares == ((detections.UNNAMED, 1.0),)
    assert find(labels, anomaly, threshold=0.75) == []


def test_the_ground_is_what_is_known_right_below():
    labels, anomaly = maps()
    labels[20:], labels[:, 25:] = 1, 13  # sidewalk, with a car on the right
    anomaly[10:20, 5:15] = 0.9
    anomaly[10:20, 21:33] = 0.8  # most of it above the car
    anomaly[38:, :4] = 0.7  # at the image's edge
    assert [(found.score, found.ground) for found in find(labels, anomaly)] == [
        (pytest.approx(0.8), "car"), (pytest.approx(0.9), "sidewalk"), (pytest.approx(0.7), ""),
    ]  # fmt: skip
    anomaly[20:30, :] = 0.6  # what lies below is unknown itself
    (top, *_) = find(labels, anomaly)
    assert top.ground == "car" and top.to_json_dict()["ground"] == "car"
    labels[30:] = 255
    assert find(labels, anomaly)[0].ground == ""


def test_boxes_are_given_in_pixels_of_the_camera_image():
    labels, anomaly = maps()
    anomaly[10:20, 30:60] = 0.9
    (found,) = find(labels, anomaly, size=(80, 180))
    assert found.box == (90, 20, 90, 20) and found.pixels == 300 * 2 * 3


def test_a_hazard_that_is_called_unknown_shares_its_name():
    labels, anomaly = maps()
    anomaly[10:20, 5:15] = 0.8
    labels[10:20, 5:8], labels[10:20, 8:9] = TYRE, BOX
    words = Vocabulary.cityscapes().with_hazards([detections.UNNAMED, "cardboard box"])
    (found,) = detections.find(Segmentation(labels, anomaly, words, 1), threshold=0.5, min_area=0.0)
    assert found.shares == ((detections.UNNAMED, 0.9), ("cardboard box", 0.1))
    assert found.to_json_dict()["named"] == {detections.UNNAMED: 0.9, "cardboard box": 0.1}


def test_noise_takes_no_longer_than_its_pixels_and_only_the_largest_areas_are_listed():
    noise = np.random.default_rng(0).random((2400, 2400), np.float32)
    labels = np.zeros(noise.shape, np.uint8)
    began = time.process_time()
    (found,) = find(labels, noise, min_area=0.1)  # half of the pixels, as one area with a hundred thousand holes
    assert found.box == (0, 0, 2400, 2400) and found.pixels > 0.98 * (noise > 0.5).sum()
    many = find(labels[:400, :400], noise[:400, :400], threshold=0.9)
    assert time.process_time() - began < 5.0
    sizes = np.bincount(cv2.connectedComponents((noise[:400, :400] > 0.9).astype(np.uint8), connectivity=8)[1].ravel())[1:]
    assert len(sizes) > len(many) == detections.MAX_AREAS
    assert [each.pixels for each in many] == sorted(sizes.tolist(), reverse=True)[: detections.MAX_AREAS]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.uint8, (14, 17), elements=st.sampled_from((0, 3, 18, TYRE, BOX, 21, 255))),
    arrays.arrays(np.float32, (14, 17), elements=st.floats(0, 1, width=16)),
    st.floats(0, 1, width=16),
    st.sampled_from((0.0, 0.02, 0.3)),
)
def test_areas_are_exactly_the_pixels_that_are_named_or_above_the_threshold(labels, anomaly, threshold, min_area):
    inside = np.isin(labels, (TYRE, BOX)) | (anomaly > threshold)
    found = find(labels, anomaly, threshold=threshold, min_area=min_area)
    sizes = [each.pixels for each in found]
    assert sizes == sorted(sizes, reverse=True) and all(size >= min_area * labels.size for size in sizes)
    everything = find(labels, anomaly, threshold=threshold)
    assert sum(each.pixels for each in everything) == inside.sum()
    assert [each.pixels for each in everything][: len(found)] == sizes
    assert all(each.pixels < min_area * labels.size for each in everything[len(found) :])
    named = {name: 0.0 for name in (*(hazard.name for hazard in WORDS.hazards), detections.UNNAMED)}
    for each in everything:
        assert sum(share for _, share in each.shares) == pytest.approx(1)
        for name, share in each.shares:
            named[name] += share * each.pixels
    assert named["tyre"] == pytest.approx((labels == TYRE).sum()) and named["cardboard box"] == pytest.approx((labels == BOX).sum())
    assert sum(each.score * each.pixels for each in everything) == pytest.approx(float(anomaly[inside].sum()), abs=1e-3)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    assert sorted((*each.box, each.pixels) for each in everything) == sorted(map(tuple, statistics[1:].tolist()))


def test_the_embedded_model_finds_and_names_what_is_on_the_road():
    from vl4ad_model import image_files
    from vl4ad_model.evaluation import label_files
    from vl4ad_model.segmenter import Segmenter

    folder = Path(__file__).parent / "data/evaluation/seen"
    segmenter = Segmenter.load("tiny", offline=True, vocabulary=WORDS)
    result = segmenter.segment(image_files.read_rgb(folder / "images/900000.jpg"))
    with (folder / "frames/900000.json").open() as file:
        names = {int(number): entry["name"] for number, entry in json.load(file)["hazards"].items()}
    truth = label_files.read_label_values(folder / "labels/900000.png")
    found = detections.find(result, threshold=0.5)
    assert {each.name for each in found} == set(names.values()) == {"tyre", "cardboard box"}
    for each in found:
        number = next(number for number, name in names.items() if name == each.name)
        rows, columns = np.nonzero(truth == number)
        left, top, width, height = each.box
        across, down = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
        overlap_x = min(left + width, columns.max() + 1) - max(left, columns.min())
        overlap_y = min(top + height, rows.max() + 1) - max(top, rows.min())
        union = width * height + across * down - overlap_x * overlap_y
        assert overlap_x * overlap_y / union > 0.6
