"""Pictures for people: what is named is seen with its name, what is not known glows, and the rest keeps its class colour."""

import numpy as np
import pytest

from vl4ad_model import visualization
from vl4ad_model.segmenter import Segmentation
from vl4ad_model.vocabulary import VOID_ID, Vocabulary

GREY = np.full((240, 320, 3), 128, np.uint8)


@pytest.fixture()
def result() -> Segmentation:
    vocabulary = Vocabulary.cityscapes().with_hazards(["sofa|couch", "冷蔵庫"])
    labels = np.zeros((240, 320), np.uint8)
    labels[:80] = 10  # sky
    labels[150:190, 60:120] = 19  # the sofa
    labels[0, 0] = VOID_ID
    anomaly = np.full((240, 320), 0.05, np.float32)
    anomaly[150:190, 60:120] = 0.95
    anomaly[150:190, 200:260] = 0.95  # something nobody has named
    return Segmentation(labels, anomaly, vocabulary, 1)


def test_labels_take_the_vocabularys_colours(result):
    picture = visualization.colorize_labels(result.labels, result.vocabulary)
    assert np.array_equal(picture, result.vocabulary.color_table()[result.labels])


def test_heat_grows_with_the_score_and_saturates():
    ramp = np.linspace(-1, 2, 300, dtype=np.float32)[None].repeat(2, axis=0)
    brightness = visualization.anomaly_heatmap(ramp)[0].astype(int).sum(axis=1)
    assert (brightness[:100] == brightness[0]).all() and (brightness[200:] == brightness[-1]).all()
    assert (np.diff(brightness) >= -1).all() and brightness[-1] > brightness[0] + 400


def test_the_unnamed_glows_and_the_named_keeps_its_colour(result):
    picture = visualization.overlay(GREY, result).astype(int)
    road = picture[220, 10]
    assert np.abs(road - (0.55 * 128 + 0.45 * np.array([128, 64, 128]))).max() <= 2
    unnamed, named = picture[170, 230], picture[170, 90]
    assert np.abs(unnamed - visualization.anomaly_heatmap(np.full((1, 1), 0.95, np.float32))[0, 0]).max() < 60
    assert np.abs(named - (0.4 * 128 + 0.6 * np.array(result.vocabulary.hazards[0].color))).max() <= 2


def test_a_hazard_is_outlined_and_named_above_itself(result):
    with_names, without = (visualization.overlay(GREY, result, names=names) for names in (True, False))
    changed = np.argwhere((with_names != without).any(axis=-1))
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    assert top > 120 and bottom < 150 and left > 40 and right < 140
    edge = without[147:152, 90].astype(int)
    assert edge.min(axis=-1).max() > 195  # white around it, seen on any ground


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 320), (320, 16), (64, 64)])
def test_small_pictures_and_hazards_at_the_border_work(result, height, width):
    labels = np.full((height, width), 20, np.uint8)
    whole = Segmentation(labels, np.ones((height, width), np.float32), result.vocabulary, 1)
    picture = visualization.overlay(GREY, whole)
    assert picture.shape == (height, width, 3)
    assert visualization.with_legend(picture, whole).shape[1] == width


def test_the_legend_names_what_is_there_and_only_that(result):
    picture = visualization.overlay(GREY, result)
    strip = visualization.with_legend(picture, result)[240:]
    table = result.vocabulary.color_table()
    shown = {tuple(color) for color in strip.reshape(-1, 3).tolist()}
    assert {tuple(table[i].tolist()) for i in (0, 10, 19)} <= shown
    assert not {tuple(table[i].tolist()) for i in (8, 13, 20)} & shown
