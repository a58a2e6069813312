"""The detector as a subscriber meets it: a real process, real messages over DDS, no mocks."""

import json
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as PillowImage

pytest.importorskip("rclpy", reason="rclpy is not installed")

from builtin_interfaces.msg import Time
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from ros_fixtures import SMALL, detector_here, new_domain, picture, running_detector
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vl4ad_model.errors import Vl4adError
from vl4ad_model.vocabulary import Vocabulary
from vl4ad_ros import images
from vl4ad_ros.detector_client import DetectorClient, pixels, stamp_of
from vl4ad_ros.detector_process import DetectorProcess


@pytest.fixture(scope="module")
def running():
    """One detector for the tests that leave it as they found it."""
    with running_detector() as pair:
        yield pair


@pytest.fixture
def user(running):
    detector, user = running
    yield user
    assert detector.process.poll() is None, detector.log
    assert user.set_parameter("hazard_prompts", [])[0]
    words_of(user, lambda content: not hazards_of(content))


def answered(user, rgb, topic="segmentation", **arguments):
    """Send until the detector answers; a frame may be replaced by the next one."""
    for _ in range(20):
        stamp = user.send(rgb, **arguments)
        message = user.output(topic, stamp, timeout=3.0)
        if message is not None:
            return message
    raise AssertionError("no answer")


def words_of(user, condition, timeout=30.0):
    """The content of the newest announcement, once it meets the condition."""
    found = user.wait_for(lambda c: c.labels and condition(c.labels[-1].content) and c.labels[-1].content, timeout)
    assert found, user.collected.labels[-1:]
    return found


def hazards_of(content):
    return [entry["prompt"] for entry in content["classes"] if entry["kind"] == "hazard"]


# --- images in, maps out ----------------------------------------------------------------------------------------------------


def test_every_output_has_the_header_size_and_encoding(user):
    rgb = picture(120, 160)
    segmentation = answered(user, rgb, frame="front_camera_optical")
    stamp = stamp_of(segmentation.header)
    maps = {name: user.output(name, stamp) for name in ("segmentation", "anomaly_score", "anomaly_mask", "overlay")}
    for name, (encoding, size) in {
        "segmentation": ("mono8", 1),
        "anomaly_score": ("32FC1", 4),
        "anomaly_mask": ("mono8", 1),
        "overlay": ("rgb8", 3),
    }.items():
        message = maps[name]
        assert message.header == segmentation.header and message.header.frame_id == "front_camera_optical"
        assert (message.height, message.width, message.encoding) == (120, 160, encoding)
        assert message.step == 160 * size and len(message.data) == 120 * message.step
    labels, score, mask = (pixels(maps[name]) for name in ("segmentation", "anomaly_score", "anomaly_mask"))
    known = len(Vocabulary.cityscapes().classes)
    assert labels.max() < known and np.isfinite(score).all()
    assert ((mask == 255) == (score > 0.5)).all() and set(np.unique(mask)) <= {0, 255}


def test_maps_equal_those_of_the_segmenter(user):
    from vl4ad_model.segmenter import Segmenter

    rgb = picture(96, 128, seed=3)
    expected = Segmenter.load("tiny", engine="torch", network_size=(64, 96), offline=True).segment(rgb)
    message = answered(user, rgb)
    score = user.output("anomaly_score", stamp_of(message.header))
    assert (pixels(message) == expected.labels).mean() > 0.999
    assert np.allclose(pixels(score), expected.anomaly, atol=1e-4)


@pytest.mark.parametrize(("encoding", "channels"), [("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 0])])
def test_other_encodings_and_padded_rows_give_the_same_labels(user, encoding, channels):
    rgb = picture(seed=5)
    expected = pixels(answered(user, rgb))
    message = images.from_array(rgb[..., channels], encoding, Header(frame_id="camera"))
    rows = np.pad(np.frombuffer(message.data, np.uint8).reshape(message.height, message.step), ((0, 0), (0, 7)))
    message.step += 7
    message.data = rows.tobytes()
    for _ in range(20):
        message.header.stamp = user.now()
        output = user.output("segmentation", user.send_message(message), timeout=3.0)
        if output is not None:
            break
    assert (pixels(output) == expected).all()


def test_the_labels_topic_says_what_ids_mean_to_late_subscribers(running):
    with DetectorClient(domain=running[1].domain, topics=(), node_name="late") as late:
        content = late.wait_for(lambda c: c.labels and c.labels[0].content, timeout=30)
    classes = content["classes"]
    assert [entry["id"] for entry in classes] == list(range(len(classes))) and content["void"] == 255
    assert classes[0]["name"] == "road" and {"name", "color", "kind"} <= set(classes[0])
    assert content["model"] == "tiny" and content["version"] >= 1


def test_the_resolution_of_the_network_can_be_asked_for(user):
    assert user.set_parameter("publish_resolution", "network")[0]
    message = answered(user, picture(120, 160))
    assert user.set_parameter("publish_resolution", "input")[0]
    assert (message.height, message.width) == (64, 85)


# --- words while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["tyre|tire", "sofa"], ["tyre|tire", "sofa"]),
        ("lost cargo", ["lost cargo"]),
        ([], []),
        ([""], []),
        (["Reifen für Öl", "轮胎"], ["Reifen für Öl", "轮胎"]),
        ("   ", []),
    ],
)
def test_prompts_as_people_write_them(user, given, expected):
    user.set_parameter("hazard_prompts", ["something else"])
    words_of(user, lambda content: hazards_of(content) == ["something else"])
    assert user.set_parameter("hazard_prompts", given) == (True, "")
    words_of(user, lambda content: hazards_of(content) == expected)
    assert user.get_parameter("hazard_prompts") == expected


BAD_PROMPTS = {
    "known class": (["car"], "already belongs to class 'car'"),
    "twice": (["sofa", "Sofa|couch"], "already belongs to hazard"),
    "only spaces": (["sofa", "   "], "hazard prompt 2 is empty"),
    "10,000 characters": (["x" * 10_000], "10000 characters"),
    "long for the text encoder": ([" ".join(f"word{i}" for i in range(30))], "too long for the text encoder"),
    "300 prompts": ([f"thing {i}" for i in range(300)], "300 hazard prompts"),
    "numbers": ([1, 2], "list of strings"),
    "a number": (3.5, "list of strings"),
    "not printable": (["so\u0007fa"], "cannot be printed"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts_are_refused_with_a_reason_and_the_old_ones_stay(user, name):
    given, reason = BAD_PROMPTS[name]
    assert user.set_parameter("hazard_prompts", ["tyre"])[0]
    before = words_of(user, lambda content: hazards_of(content) == ["tyre"])
    successful, said = user.set_parameter("hazard_prompts", given)
    assert not successful and reason in said and "\n" not in said
    assert user.get_parameter("hazard_prompts") == ["tyre"]
    answered(user, picture())
    assert user.collected.labels[-1].content["version"] == before["version"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("classifier", "best", "in_vocabulary, out_of_vocabulary, ensemble"),
        ("scoring", "best", "auto, max, normalized"),
        ("publish_resolution", "4k", "input, network"),
        ("max_rate", -1.0, "out of range"),
        ("anomaly_threshold", "high", "a number"),
        ("anomaly_threshold", float("nan"), ""),
        ("merge_classes", "yes", "true or false"),
        ("vocabulary_file", 5, "a string"),
        ("vocabulary_file", "/nowhere.yaml", "cannot be read"),
        ("model", "fcclip-r50", "read-only"),
        ("no_such_parameter", 1, "undeclared"),
    ],
)
def test_other_bad_values_are_refused_with_a_reason(user, name, value, reason):
    successful, said = user.set_parameter(name, value)
    assert not successful and reason in said


@pytest.mark.slow
def test_a_classifier_that_needs_another_branch_of_the_engine_loses_no_image():
    """The engine was built without the out-of-vocabulary branch: PyTorch answers while it is built again."""
    pytest.importorskip("openvino")
    status = "vl4ad_detector: detector"
    with running_detector({"engine": "openvino", "classifier": "in_vocabulary"}) as (detector, user):
        for classifier in ("out_of_vocabulary", "ensemble", "in_vocabulary"):
            assert user.set_parameter("classifier", classifier) == (True, "")
            assert user.wait_for(lambda c, name=classifier: c.diagnostics.get(status, {}).get("classifier") == name, 30)
            for _ in range(3):
                assert user.output("anomaly_score", user.send(picture()), timeout=30) is not None
        assert user.collected.diagnostics[status]["last error"] == "" and detector.process.poll() is None


def test_the_threshold_takes_effect_without_new_words(user):
    version = user.collected.labels[-1].content["version"]
    for threshold, share in ((-1000, 1.0), (1000, 0.0)):  # integers, as people type them
        assert user.set_parameter("anomaly_threshold", threshold)[0]
        assert (pixels(answered(user, picture(), "anomaly_mask")) == 255).mean() == share
    assert user.set_parameter("anomaly_threshold", 0.5)[0]
    assert user.collected.labels[-1].content["version"] == version


def test_the_score_can_be_chosen_and_diagnostics_say_which_and_how_words_are_read(running, user):
    status = "vl4ad_detector: detector"

    def said(name, value):
        assert user.wait_for(lambda c: value in c.diagnostics.get(status, {}).get(name, ""), 30), user.collected.diagnostics

    normalized = pixels(answered(user, picture(), "anomaly_score"))
    assert user.set_parameter("scoring", "max") == (True, "")
    said("scoring", "max")
    assert np.abs(pixels(answered(user, picture(), "anomaly_score")) - normalized).max() > 0.1
    assert user.set_parameters_together({"scoring": "auto", "hazard_prompts": ["storage crate"]}) == (True, "")
    said("scoring", "normalized")
    said("words read as", "'storage crate' (read as 'crate', too)")
    said("words not known", "")
    assert user.set_parameter("hazard_prompts", ["storage crate", "asdkjh"]) == (True, "")
    said("words not known", "'asdkjh'")
    guess = "with nothing near that no other hazard has, so that what gets the name is a guess: 'asdkjh'"
    assert f"training: 'storage crate' (read as 'crate', too); {guess}" in running[0].log
    assert "not among the words of tiny's training: 'storage crate' (read as 'crate', too)" in running[0].log


@pytest.mark.parametrize("name", ["vocabulary_file", "ignore_mask"])
def test_a_pipe_is_no_file_to_wait_for(user, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    successful, said = user.set_parameter(name, str(tmp_path / "pipe"))
    assert not successful and "not a file" in said
    answered(user, picture())


def test_a_vocabulary_file_can_be_changed_reloaded_and_lost(user, tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("name: first\nclasses: [ground, wall]\n")
    assert user.set_parameter("vocabulary_file", str(file)) == (True, "")
    content = words_of(user, lambda content: content["vocabulary"] == "first")
    assert [entry["name"] for entry in content["classes"]] == ["ground", "wall"]
    assert pixels(answered(user, picture())).max() <= 1
    file.write_text("name: second\nclasses: [ground, wall, sky]\nhazards: [ladder]\n")
    successful, said = user.reload_vocabulary()
    assert successful and "3 classes and 1 hazards" in said
    assert hazards_of(words_of(user, lambda content: content["vocabulary"] == "second")) == ["ladder"]
    # Setting it again reads it again; what says the same is no change.
    file.write_text("name: again\nclasses: [ground, wall, sky]\nhazards: [ladder]\n")
    assert user.set_parameter("vocabulary_file", str(file)) == (True, "")
    version = words_of(user, lambda content: content["vocabulary"] == "again")["version"]
    file.write_text("name: second\nclasses: [ground, wall, sky]\nhazards: [ladder]\n")
    for _ in range(3):
        assert user.set_parameter("vocabulary_file", str(file)) == (True, "")
    assert words_of(user, lambda content: content["vocabulary"] == "second")["version"] == version + 1
    # An editor that is in the middle of it: other words change, the file's own stay as they were read.
    file.write_text("name: third\nclasses: [ground, {name: wall\n")
    assert user.set_parameter("hazard_prompts", ["bollard"]) == (True, "")
    content = words_of(user, lambda content: hazards_of(content) == ["ladder", "bollard"])
    assert content["vocabulary"] == "second"
    file.unlink()
    assert user.set_parameter("hazard_prompts", []) == (True, "")
    successful, said = user.reload_vocabulary()
    assert not successful and "cannot be read" in said and "old words stay" in said
    answered(user, picture())
    assert user.collected.labels[-1].content["vocabulary"] == "second"
    assert user.set_parameter("vocabulary_file", "")[0]
    words_of(user, lambda content: content["vocabulary"] == "cityscapes")


def test_several_values_change_as_one(user):
    version = user.collected.labels[-1].content["version"]
    assert user.set_parameters_together({"hazard_prompts": ["tyre"], "merge_classes": False}) == (True, "")
    content = words_of(user, lambda content: hazards_of(content) == ["tyre"])
    assert content["version"] == version + 1
    successful, _ = user.set_parameters_together({"merge_classes": True, "hazard_prompts": ["car"]})
    assert not successful and user.get_parameter("merge_classes") is False
    assert user.set_parameter("merge_classes", True)[0]


def test_a_refused_change_does_not_come_through_with_a_later_one(user, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("classes: [road, car]")
    assert user.set_parameter("vocabulary_file", str(file)) == (True, "")
    before = words_of(user, lambda content: len(content["classes"]) == 2)
    file.write_text("classes: [road, car, bus]")
    changes = {"vocabulary_file": str(file), "ignore_mask": "/nowhere.png"}
    assert user.set_parameters_together(changes) == (False, "no ignore mask at /nowhere.png")
    assert user.set_parameter("max_rate", 50.0) == (True, "")
    answered(user, picture())
    assert user.collected.labels[-1].content["version"] == before["version"]
    assert user.set_parameters_together({"vocabulary_file": "", "max_rate": 0.0}) == (True, "")
    words_of(user, lambda content: len(content["classes"]) > 3)


def test_a_request_that_nobody_can_read_does_not_end_the_node(user, running):
    request = SetParameters.Request(parameters=[ParameterMessage(name="max_rate", value=ParameterValue(type=42))])
    with pytest.raises(Vl4adError, match="did not answer"):
        user.call(SetParameters, "set_parameters", request, timeout=1.0)
    assert "a request could not be answered: ValueError: 42" in running[0].log
    assert user.set_parameter("max_rate", 0.0) == (True, "")
    answered(user, picture())


def test_where_no_hazard_has_a_name_segmentation_may_say_void(user):
    def maps():
        message = answered(user, picture(seed=3))
        return pixels(message), pixels(user.output("anomaly_mask", stamp_of(message.header)))

    assert user.set_parameters_together({"hazard_prompts": ["tyre"], "anomaly_threshold": 0.2}) == (True, "")
    words_of(user, lambda content: hazards_of(content) == ["tyre"])
    labels, mask = maps()
    assert labels.max() < 255 and 0 < np.count_nonzero(mask) < mask.size
    assert user.set_parameter("void_anomalies", True) == (True, "")
    marked, _ = maps()
    assert (marked == np.where((mask == 255) & (labels < 19), 255, labels)).all()
    assert user.set_parameters_together({"void_anomalies": False, "hazard_prompts": [], "anomaly_threshold": 0.5}) == (True, "")


def test_a_bag_that_begins_again_has_the_words_of_the_latest_announcement():
    """`after` of the words tells frames apart by their stamps, and in a second round those are earlier."""

    def send(second, topic="segmentation"):
        return answered(user, picture(), topic, stamp=Time(sec=second))

    # Names that rcl would read as something else than strings, were they not quoted.
    settings = {"cameras": ["n", "e"], "hazard_prompts": ["1e3", "y"]}
    with running_detector(settings, client={"camera": "n", "image_topic": "/n/image", "topics": ("segmentation",)}) as (_, user):
        assert hazards_of(words_of(user, lambda content: True)) == ["1e3", "y"]
        for second in (100, 101, 102):
            send(second)
        assert user.set_parameter("hazard_prompts", ["tyre"])[0]
        words = words_of(user, lambda content: hazards_of(content) == ["tyre"])
        assert words["after"] == {"n": {"sec": 102, "nanosec": 0}, "e": None}
        send(103)
        assert user.collected.labels[-1].content == words
        send(100)
        assert words_of(user, lambda content: content["after"]["n"] is None) == {**words, "after": {"n": None, "e": None}}
        assert user.set_parameter("hazard_prompts", [])[0]
        assert words_of(user, lambda content: not hazards_of(content))["after"]["n"] == {"sec": 100, "nanosec": 0}


def test_versions_go_on_over_every_state_and_so_does_what_was_seen_before_them():
    def activated(condition):
        came = len(user.collected.labels)
        assert user.change_state("activate")
        return words_of(user, lambda content: len(user.collected.labels) > came and condition(content))

    with running_detector(client={"topics": ("segmentation",)}) as (_, user):
        first = words_of(user, lambda content: True)
        assert first["after"] == {"": None}
        stamp = answered(user, picture()).header.stamp
        seen = {"": {"sec": stamp.sec, "nanosec": stamp.nanosec}}
        assert user.change_state("deactivate") and user.set_parameter("hazard_prompts", ["tyre"])[0]
        second = activated(hazards_of)
        assert (second["version"], second["after"]) == (first["version"] + 1, seen)
        # The same words again: they began when they began.
        answered(user, picture())
        assert user.change_state("deactivate") and activated(hazards_of) == second
        assert user.change_state("deactivate") and user.change_state("cleanup") and user.change_state("configure")
        third = activated(hazards_of)
        assert (third["version"], third["after"]) == (second["version"] + 1, {"": None})


def test_words_that_fail_after_all_are_a_warning_until_others_are_in_use(monkeypatch):
    from vl4ad_model.segmenter import Segmenter

    def fail(self, **_):
        raise RuntimeError("not enough\nmemory")

    status = "vl4ad_detector: detector"
    with detector_here() as (_, user):
        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "reconfigure", fail)
            assert user.set_parameter("hazard_prompts", ["tyre"]) == (True, "")
            warned = (1, "the words that were set last are not in use: not enough memory")
            assert user.wait_for(lambda c: c.messages.get(status) == warned, 20), user.collected.messages
            assert not hazards_of(user.collected.labels[-1].content) and answered(user, picture())
        assert user.set_parameter("hazard_prompts", ["tyre"]) == (True, "")
        assert words_of(user, hazards_of)
        assert user.wait_for(lambda c: c.messages[status] == (0, "active"), 20), user.collected.messages


# --- bad input --------------------------------------------------------------------------------------------------------------


def good(user, **changes):
    message = images.from_array(picture(48, 64), "rgb8", Header(frame_id="camera", stamp=user.now()))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


BAD_IMAGES = {
    "unknown encoding": ({"encoding": "rgb9"}, "encoding 'rgb9' is unknown"),
    "depth": ({"encoding": "32FC1"}, "depth or float"),
    "cut off": ({"height": 50}, "cut off"),
    "no data": ({"data": b""}, "cut off"),
    "no size": ({"height": 0, "width": 0}, "empty"),
    "short step": ({"step": 100}, "step 100 is less than"),
    "huge": ({"height": 2**31, "width": 2**31}, "sides must be"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_said_once_and_the_next_good_one_is_answered(running, user, name):
    detector, _ = running
    changes, reason = BAD_IMAGES[name]
    for _ in range(3):
        user.send_message(good(user, **changes))
        time.sleep(0.05)
        assert answered(user, picture(48, 64))
    lines = [line for line in detector.log.splitlines() if "image rejected" in line and reason in line]
    assert len(lines) == 1 and "Traceback" not in detector.log
    shown = user.wait_for(lambda c: reason in c.diagnostics.get("vl4ad_detector: camera", {}).get("last rejected", ""))
    assert shown, user.collected.diagnostics


def test_an_image_without_stamp_is_answered_and_said(running, user):
    detector, _ = running
    user.send_message(images.from_array(picture(), "rgb8", Header(frame_id="camera")))
    assert user.output("segmentation", (0, 0)) is not None
    assert user.wait_for(lambda _: "header has no stamp" in detector.log, timeout=5)


def test_a_camera_may_change_size_and_encoding_in_mid_stream(user):
    for height, width, encoding in ((120, 160, "rgb8"), (200, 120, "bgr8"), (64, 640, "rgb8"), (120, 160, "mono8")):
        values = picture(height, width)
        message = answered(user, values[..., 0] if encoding == "mono8" else values, encoding=encoding)
        assert (message.height, message.width) == (height, width)


def test_a_topic_of_another_type_is_said():
    with running_detector(client={"image_topic": "/elsewhere"}, connect=False) as (detector, user):
        user.node.create_publisher(CompressedImage, "/image", 1)
        said = user.wait_for(lambda _: "carries sensor_msgs/msg/CompressedImage" in detector.log, timeout=15)
        assert said and "start the detector with -p image_transport:=compressed" in detector.log


def test_a_camera_that_publishes_the_other_kind_of_image_on_the_other_topic_is_said():
    for transport, kind, topic in (("raw", CompressedImage, "/image/compressed"), ("compressed", Image, "/image")):
        with running_detector({"image_transport": transport}, client={"image_topic": "/elsewhere"}, connect=False) as (
            detector,
            user,
        ):
            user.node.create_publisher(kind, topic, 1)
            other = "compressed" if transport == "raw" else "raw"
            hint = f"but on {topic}: start the detector with -p image_transport:={other}"
            assert user.wait_for(lambda _, hint=hint, detector=detector: hint in detector.log, timeout=15), detector.log


# --- diagnostics ------------------------------------------------------------------------------------------------------------


def test_a_model_without_its_weights_is_a_warning(tmp_path):
    from vl4ad_model import registry

    shutil.copy(registry.locate("tiny", offline=True).clip.parent / "config.json", tmp_path)
    with running_detector({"model": str(tmp_path)}) as (_, user):
        status = "vl4ad_detector: detector"
        assert user.wait_for(lambda c: "UNTRAINED" in c.messages.get(status, ("", ""))[1], 20), user.collected.messages
        assert "UNTRAINED" in user.collected.diagnostics[status]["model notice"]


def test_a_state_that_cannot_be_told_is_an_error_and_the_node_goes_on(monkeypatch):
    from vl4ad_model.segmenter import Segmenter

    status = "vl4ad_detector: detector"
    with detector_here() as (spinning, user):
        assert user.wait_for(lambda c: c.messages.get(status) == (0, "active"), 20), user.collected.messages
        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "engine_reason", property(lambda self: 1 / 0))
            error = (2, "the state cannot be told: ZeroDivisionError: division by zero")
            assert user.wait_for(lambda c: c.messages[status] == error, 20), user.collected.messages
        assert user.wait_for(lambda c: c.messages[status] == (0, "active"), 20)
        assert answered(user, picture()) and spinning.is_alive()


def test_diagnostics_tell_rates_latency_model_engine_and_words(user):
    user.set_parameter("hazard_prompts", ["tyre"])
    version = words_of(user, lambda content: hazards_of(content) == ["tyre"])["version"]
    user.wait_for(lambda c: c.diagnostics.get("vl4ad_detector: detector", {}).get("vocabulary version") == str(version))
    for _ in range(5):
        answered(user, picture())
    assert user.wait_for(lambda c: "Hz" in c.messages.get("vl4ad_detector: camera", (0, ""))[1], timeout=10)
    node, camera = (user.collected.diagnostics[f"vl4ad_detector: {name}"] for name in ("detector", "camera"))
    assert node["model"] == "tiny" and node["engine"] == "torch" and node["hazards"] == "tyre"
    assert node["vocabulary version"] == str(version)
    assert 0 < float(camera["latency p50 (ms)"]) <= float(camera["latency p99 (ms)"]) < 60_000
    assert float(camera["output rate (Hz)"]) > 0 and int(camera["received"]) >= int(camera["published"]) > 0


# --- other ways to run it ---------------------------------------------------------------------------------------------------


def test_compressed_cameras_and_broken_jpegs():
    stream = BytesIO()
    PillowImage.fromarray(picture()).save(stream, "JPEG")
    jpeg = stream.getvalue()
    client = {"image_topic": "/left/image", "compressed": True, "camera": "left", "topics": ("segmentation",)}
    right = {**client, "image_topic": "/right/image", "camera": "right", "node_name": "other"}
    settings = {"image_transport": "compressed", "cameras": ["left", "right"]}
    with running_detector(settings, client=client) as (detector, user), DetectorClient(domain=user.domain, **right) as other:
        other.wait_until_connected()
        for _ in range(3):
            for side in (user, other):
                for _ in range(10):
                    message = CompressedImage(format="jpeg", data=jpeg, header=Header(frame_id="c", stamp=side.now()))
                    output = side.output("segmentation", side.send_message(message), timeout=3.0)
                    if output is not None:
                        break
                assert (output.height, output.width) == (120, 160) and output.header == message.header
            user.send_message(CompressedImage(format="jpeg", data=jpeg[:-300], header=Header(stamp=user.now())))
        assert user.wait_for(lambda _: detector.log.count("cut off (no end marker)") == 1, timeout=10)


def test_two_cameras_whose_cables_are_swapped_can_be_swapped_back():
    """In a namespace, too, which the names in /diagnostics tell: several detectors share that topic."""
    swapped = ["-r", "left/image:=/right/image", "-r", "right/image:=/left/image", "-r", "__ns:=/robot"]
    domain, client = new_domain(), {"image_topic": "/right/image", "camera": "left", "topics": ("segmentation",)}
    with DetectorProcess({**SMALL, "cameras": ["left", "right"]}, domain=domain, arguments=swapped) as detector:
        detector.wait_until_active()
        assert "listening to /right/image, /left/image" in detector.log
        with DetectorClient(domain=domain, detector="/robot/vl4ad_detector", **client) as user:
            user.wait_until_connected()
            assert answered(user, picture()) is not None
            status = "robot/vl4ad_detector: left"
            assert user.wait_for(lambda c: int(c.diagnostics.get(status, {}).get("published", 0)) > 0, timeout=10)
            assert user.wait_until_built()["engine"] == "torch"


def test_a_best_effort_camera_is_heard_and_its_large_images_arrive():
    client = {"reliable": False, "topics": ("segmentation", "anomaly_score"), "keep": 5}
    with running_detector({"publish_resolution": "input"}, client=client) as (_, user):
        large = np.tile(picture(), (6, 8, 1))
        message = answered(user, large)
        assert (message.height, message.width) == (720, 1280)


def test_images_that_are_lost_on_the_way_are_counted_and_said(monkeypatch):
    """Large ones from a best-effort camera, where neither it nor the detector has the profile for them."""
    program = (
        "import sys, time\n"
        "from ros_fixtures import picture\n"
        "from vl4ad_ros.detector_client import DetectorClient\n"
        "with DetectorClient(domain=int(sys.argv[1]), topics=(), reliable=False) as camera:\n"
        "    image = picture(720, 1280)\n"
        "    for _ in range(600):\n"
        "        camera.send(image)\n"
        "        time.sleep(0.1)\n"
    )
    for name in [name for name in os.environ if name.startswith(("FASTDDS", "FASTRTPS"))]:
        monkeypatch.delenv(name)
    environment = {"VL4AD_LARGE_IMAGES": "0"}
    plain = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}  # the client here sets the profile for itself
    with running_detector(client={"topics": ("segmentation",)}, environment=environment, connect=False) as (detector, user):
        command = [sys.executable, "-c", program, str(user.domain)]
        camera = subprocess.Popen(command, env=plain, stderr=subprocess.DEVNULL)
        try:
            status = "vl4ad_detector: camera"
            said = " images on /image were lost on the way in 10 s: large images need the transport profile"
            assert user.wait_for(lambda c: said in c.messages.get(status, (0, ""))[1], 40), detector.log
            assert user.collected.messages[status][0] == 1
            assert int(user.collected.diagnostics[status]["lost on the way"]) >= 3
            assert said in detector.log
        finally:
            camera.kill()
            camera.wait()


def test_without_a_subscriber_nothing_is_computed():
    with running_detector(client={"topics": ()}) as (_, user):
        for _ in range(10):
            user.send(picture())
            time.sleep(0.05)
        counts = user.wait_for(
            lambda c: (
                int(c.diagnostics.get("vl4ad_detector: camera", {}).get("skipped without subscriber", 0)) > 0
                and c.diagnostics["vl4ad_detector: camera"]
            )
        )
        assert counts and counts["published"] == "0"


def test_the_rate_can_be_limited():
    with running_detector({"max_rate": 4.0}, client={"topics": ("segmentation",)}) as (_, user):
        answered(user, picture())
        began, start = time.monotonic(), len(user.collected.outputs["segmentation"])
        while time.monotonic() - began < 3.0:
            user.send(picture())
            time.sleep(0.03)
        assert len(user.collected.outputs["segmentation"]) - start <= 4 * 3 + 2


def test_simulated_time_without_a_clock_is_said_and_with_one_is_used():
    status = "vl4ad_detector: camera"
    with running_detector({"use_sim_time": True}, client={"topics": ("segmentation",)}) as (detector, user):
        assert answered(user, picture())
        assert user.wait_for(lambda c: "nothing publishes /clock" in c.messages.get(status, (0, ""))[1], timeout=10)
        assert detector.log.count("nothing publishes /clock") == 1
        clock = user.node.create_publisher(ClockMessage, "/clock", 1)
        played = Time(sec=1_500_000_000)
        for tick in range(40):
            # 50 ms after the image was taken, by the played clock.
            played.nanosec = tick * 10_000_000
            clock.publish(ClockMessage(clock=Time(sec=played.sec, nanosec=played.nanosec + 50_000_000)))
            time.sleep(0.1)
            assert user.output("segmentation", user.send(picture(), stamp=played))
        shown = user.wait_for(
            lambda c: "Hz" in c.messages[status][1] and 0 < float(c.diagnostics[status]["latency p50 (ms)"]) <= 60, timeout=10
        )
        assert shown, (user.collected.messages, user.collected.diagnostics[status])


def test_json_of_labels_is_plain_json(user):
    assert user.wait_for(lambda c: c.labels)
    json.dumps(user.collected.labels[-1].content, allow_nan=False)
