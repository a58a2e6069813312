"""Calibration keeps its promise for a finite number of frames; the prompt check shows a prompt that cries wolf."""

import bisect
import json

import numpy as np
import pytest
import yaml
from evaluation_helpers import START, STEP, picture, png, vl4ad, write_bag

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.calibration import calibrate, frame_tail
from vl4ad_model.evaluation.prompt_check import compare, summarize
from vl4ad_model.segmenter import Segmentation
from vl4ad_model.vocabulary import Vocabulary


def frame(rng, size=(40, 60)):
    """A frame of its own difficulty: frames are exchangeable, pixels of a frame are not."""
    return (rng.normal(rng.normal(0, 0.3), 0.1, size)).astype(np.float32)


def false_alarm(scores, threshold, kind, alarm_pixels):
    above = np.count_nonzero(scores > np.float32(threshold))
    return above / scores.size if kind == "pixel" else float(above >= alarm_pixels)


@pytest.mark.parametrize(
    ("kind", "rate", "count"), [("pixel", 0.05, 30), ("frame", 0.1, 30), ("frame", 0.05, 19), ("pixel", 0.2, 7)]
)
def test_the_false_alarm_rate_on_new_frames_is_at_most_what_was_wanted(kind, rate, count):
    rng = np.random.default_rng(count)
    seen = []
    for _ in range(150):
        tails = [frame_tail("f", frame(rng), kind, 20) for _ in range(count)]
        threshold = calibrate(tails, rate, kind).threshold
        seen += [false_alarm(frame(rng), threshold, kind, 20) for _ in range(5)]
    # The mean over everything is the promise; four standard errors of room.
    assert np.mean(seen) <= rate + 4 * np.std(seen) / np.sqrt(len(seen))
    assert np.mean(seen) > rate / 5  # and the threshold is not simply sky-high


@pytest.mark.parametrize("kind", ["pixel", "frame"])
def test_the_threshold_is_the_lowest_with_the_guarantee(kind):
    rng = np.random.default_rng(1)
    frames = [frame(rng) for _ in range(40)]
    result = calibrate([frame_tail("f", scores, kind, 20) for scores in frames], 0.1, kind)

    def risk(threshold):
        return (sum(false_alarm(scores, threshold, kind, 20) for scores in frames) + 1) / 41

    assert risk(result.threshold) <= 0.1
    candidates = np.unique(np.concatenate([scores.ravel() for scores in frames]))
    lowest = candidates[bisect.bisect_left(candidates, True, key=lambda value: risk(value) <= 0.1)]
    assert lowest <= result.threshold <= np.quantile(candidates, min(1, np.mean(candidates <= lowest) + 0.003))
    if kind == "frame":
        assert result.threshold == lowest
        assert 0.1 < result.upper_bound < 0.3 and result.measured <= 0.1


def test_adding_one_frame_of_only_alarms_never_lowers_the_threshold():
    rng = np.random.default_rng(2)
    tails = [frame_tail("f", frame(rng), "pixel", 1) for _ in range(30)]
    wild = frame_tail("f", np.full((40, 60), 9, np.float32), "pixel", 1)
    assert calibrate([*tails, wild], 0.1, "pixel").threshold >= calibrate(tails, 0.1, "pixel").threshold


def test_a_rate_that_needs_more_frames_is_refused_with_the_number():
    tails = [frame_tail("f", np.zeros((4, 5), np.float32), "frame", 1)] * 30
    with pytest.raises(EvaluationError, match=r"30 frames cannot guarantee a rate of 0.01: at least 99 are needed"):
        calibrate(tails, 0.01, "frame")
    assert calibrate(tails * 4, 0.01, "frame").threshold == 0
    assert calibrate(tails[:9], 0.1, "frame").frames == 9  # exactly enough
    for rate in (0, 1, -1, float("nan")):
        with pytest.raises(EvaluationError, match="not between 0 and 1"):
            calibrate(tails, rate, "frame")
    with pytest.raises(EvaluationError, match="f7: 1 scores are NaN"):
        frame_tail("f7", np.array([[np.nan, 0]], np.float32), "pixel", 1)


# --- prompts ----------------------------------------------------------------------------------------------------------------


def test_a_prompt_that_takes_pixels_from_the_road_cries_wolf_and_says_where():
    base = Vocabulary.cityscapes()
    words = base.with_hazards(["tarmac"])
    plain_labels = np.zeros((20, 50), np.uint8)
    plain_labels[:5] = 10
    anomaly = np.full((20, 50), 0.1, np.float32)
    taken_labels, raised = plain_labels.copy(), anomaly.copy()
    taken_labels[10:14] = 19
    raised[10:14] = 0.9
    plain = Segmentation(plain_labels, anomaly, base, 1)
    loud = compare("lane/1", plain, Segmentation(taken_labels, raised, words, 1), 0.5)
    quiet = compare("lane/2", plain, Segmentation(plain_labels, anomaly, words, 1), 0.5)
    row = summarize("tarmac", [quiet, loud], base.names, 0.001)
    assert row["cries_wolf"] and row["share_taken"] == pytest.approx(200 / 2000)
    assert row["taken_from"]["road"] == {"share_of_taken": 1.0, "share_of_class": pytest.approx(200 / 1500)}
    assert row["worst_frames"] == [{"frame": "lane/1", "share_taken": pytest.approx(0.2)}] and row["frames_touched"] == 1
    assert (row["false_positive_rate_before"], row["false_positive_rate_after"]) == (0, pytest.approx(0.1))
    assert not summarize("tyre", [quiet], base.names, 0.001)["cries_wolf"]


def test_one_look_under_several_words_equals_a_look_for_each(segmenter, street):
    base = segmenter.vocabulary
    words = [base, base.with_hazards(["sofa"]), base.with_hazards(["tyre|tire", "box"])]
    together = segmenter.segment_with(street, words)
    assert segmenter.vocabulary == base
    for vocabulary, result in zip(words, together, strict=True):
        segmenter.vocabulary = vocabulary
        alone = segmenter.segment(street)
        assert (alone.labels == result.labels).all() and (alone.anomaly == result.anomaly).all()
    segmenter.vocabulary = base


# --- the commands -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ordinary(tmp_path):
    (tmp_path / "drive").mkdir()
    for index in range(3):
        (tmp_path / "drive" / f"{index}.png").write_bytes(png(picture(96, 160, index)))
    return tmp_path / "drive"


def test_calibrate_writes_a_parameters_file_that_holds_what_it_promises(tmp_path, ordinary, capfd):
    out, numbers = tmp_path / "node.yaml", tmp_path / "c.json"
    done = vl4ad(
        capfd, "calibrate", "--images", ordinary, "--rate", 0.5, "--hazard", "sofa|couch", "--engine", "torch",
        "--network-size", "96x160", "--out", out, "--json", numbers,
    )  # fmt: skip
    assert done.code == 0 and "anomaly_threshold" in done.out, done.err
    parameters = yaml.safe_load(out.read_text())["/**"]["ros__parameters"]
    assert parameters["hazard_prompts"] == ["sofa|couch"] and parameters["model"] == "tiny"
    assert "at most 0.5 (50 %) of the pixels" in done.out and "hazard_prompts: 'sofa|couch'" in done.out
    assert parameters["anomaly_threshold"] == json.loads(numbers.read_text())["threshold"]
    words = (parameters["vocabulary_file"], parameters["classifier"], parameters["scoring"])
    assert words == ("", "auto", "auto"), "no word of another file stays"
    assert (parameters["network_size"], parameters["precision"]) == ([96, 160], "fp32"), "scores change with the size"
    assert "exchangeable" in out.read_text()
    rclpy = pytest.importorskip("rclpy.parameter", reason="rclpy is not installed")
    loaded = rclpy.parameter_dict_from_yaml_file(str(out), use_wildcard=True, target_nodes=["/vl4ad_detector"])
    assert loaded["anomaly_threshold"].value.double_value == parameters["anomaly_threshold"]
    assert list(loaded["hazard_prompts"].value.string_array_value) == ["sofa|couch"]


def test_prompts_check_does_not_call_words_quiet_that_it_does_not_know(ordinary, capfd, tmp_path):
    prompts = ("--hazard", "asdkjh", "--hazard", "tyre")
    done = vl4ad(capfd, "prompts", "check", "--images", ordinary, *prompts, "--engine", "torch", "--json", tmp_path / "p.json")
    assert done.code == 0, done.err
    strange, known = json.loads((tmp_path / "p.json").read_text())["prompts"]
    assert strange["unknown_words"] == "'asdkjh'" and known["unknown_words"] == ""
    assert "what gets the name is a guess: 'asdkjh'" in " ".join(done.out.split())
    assert "not known" in done.out or strange["cries_wolf"]


def test_prompts_check_reads_a_bag_and_reports_every_prompt(tmp_path, capfd):
    messages = [("/camera/image", START + index * STEP, picture(96, 160, index)) for index in range(3)]
    bag = write_bag(tmp_path / "drive", messages)
    done = vl4ad(
        capfd, "prompts", "check", "--bag", bag, "--every", 0.2, "--hazard", "sofa", "--hazard", "tyre|tire",
        "--engine", "torch", "--json", tmp_path / "p.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["frames"] == 2 and [row["prompt"] for row in document["prompts"]] == ["sofa", "tyre|tire"]
    assert all(0 <= row["share_taken"] <= 1 for row in document["prompts"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate"], "pass --bag BAG or --images FOLDER"),
        (["calibrate", "--images", "none"], "no folder none"),
        (["calibrate", "--images", "{ordinary}", "--rate", "2"], "not between 0 and 1"),
        (["calibrate", "--images", "{ordinary}", "--rate", "0.01", "--model", "none"], "at least 99 are needed"),
        (["calibrate", "--images", "{ordinary}", "--label-values", "depth"], "anomaly or classes"),
        (["calibrate", "--images", "{ordinary}", "--per", "day"], "--per is pixel or frame"),
        (["calibrate", "--images", "{ordinary}", "--every", "1.5"], "a whole number is needed"),
        (["calibrate", "--images", "{ordinary}", "--hazard", "car"], "already belongs"),
        (["prompts", "check", "--images", "{ordinary}"], "pass --hazard WORDS"),
        (["prompts", "check", "--images", "{ordinary}", "--hazard", "road"], "already belongs"),
        (["prompts", "check", "--images", "{ordinary}", "--hazard", "sofa", "--threshold", "nan"], "threshold nan is no number"),
        (["prompts", "check", "--images", "{ordinary}", "--hazard", "sofa", "--limit", "inf"], "limit inf is no number"),
        (["segment", "{ordinary}", "--threshold", "nan"], "threshold nan is no number"),
        (["segment", "{ordinary}", "--network-size", "99968x99968"], "a side of more than 16384 pixels"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, ordinary, capfd, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = vl4ad(capfd, *[word.format(ordinary=ordinary) for word in arguments])
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "calibrated.yaml").exists()


def test_a_frame_with_a_labelled_anomaly_is_no_ordinary_driving(tmp_path, capfd):
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
    labels = np.zeros((96, 160), np.uint8)
    labels[50:60, 50:60] = 1
    (tmp_path / "set/images/a.png").write_bytes(png(picture(96, 160)))
    (tmp_path / "set/labels/a.png").write_bytes(png(labels))
    done = vl4ad(capfd, "calibrate", "--images", tmp_path / "set", "--engine", "torch", "--rate", 0.5, "--out", tmp_path / "o.yaml")
    assert done.code == 2 and "shows a labelled anomaly" in done.err and not (tmp_path / "o.yaml").exists()


def test_frames_of_a_bag_with_a_labelled_hazard_are_skipped_and_those_without_a_label_said(tmp_path, capfd):
    labels = np.zeros((4, 96, 160), np.uint8)
    labels[1, 50:60, 50:60] = 1
    messages = [("/camera/image", START + index * STEP, picture(96, 160, index)) for index in range(5)]
    messages += [("/camera/labels", START + index * STEP, labels[index]) for index in range(4)]
    bag = write_bag(tmp_path / "drive", messages)
    command = ("calibrate", "--engine", "torch", "--rate", 0.5, "--out", tmp_path / "o.yaml", "--json", tmp_path / "c.json")
    done = vl4ad(capfd, *command, "--bag", bag)
    assert done.code == 0 and "drive/1700000000.100000000 shows a labelled anomaly" in done.err, done.err
    assert "1 images on /camera/image have no label and are left out" in done.err
    assert json.loads((tmp_path / "c.json").read_text())["frames"] == 3
    coloured = write_bag(tmp_path / "coloured", [*messages[:5], ("/semantic/colours", START, picture(96, 160))])
    assert vl4ad(capfd, *command, "--bag", coloured).code == 0
    assert json.loads((tmp_path / "c.json").read_text())["frames"] == 5
