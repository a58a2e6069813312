"""What the detector says besides maps: the hazards in view with their boxes, and the overlay as a JPEG."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

pytest.importorskip("rclpy", reason="rclpy is not installed")

from builtin_interfaces.msg import Time
from ros_fixtures import running_detector

from vl4ad_model import detections, image_files
from vl4ad_model.segmenter import Segmentation
from vl4ad_model.vocabulary import Vocabulary
from vl4ad_ros import outputs
from vl4ad_ros.detector_client import DetectorClient, pixels

STREET = Path(__file__).parent / "data/evaluation/seen/images/900000.jpg"
PROMPTS = ["tyre|tire", "cardboard box"]
MAPS = ("segmentation", "anomaly_score")


@pytest.fixture(scope="module")
def running():
    settings = {"hazard_prompts": PROMPTS, "network_size": [192, 320]}
    with running_detector(settings, client={"topics": (*MAPS, outputs.HAZARDS)}) as pair:
        yield pair


@pytest.fixture
def user(running):
    detector, user = running
    yield user
    assert detector.process.poll() is None, detector.log


def test_no_two_things_of_a_process_have_the_same_id():
    """Not even after the node was configured anew: whoever remembers ids would take one for the other."""
    settings = {"hazard_prompts": PROMPTS, "network_size": [192, 320]}
    street = image_files.read_rgb(STREET)

    def ids(user, second):
        message = answer(user, street, second)[outputs.HAZARDS]
        return {thing["id"] for thing in message["hazards"]}

    with running_detector(settings, client={"topics": (outputs.HAZARDS,)}) as (_, user):
        before = ids(user, 100)
        for transition in ("deactivate", "cleanup", "configure", "activate"):
            assert user.change_state(transition)
        after = ids(user, 200)
        assert before and after and not before & after


def test_the_example_of_a_consumer_says_what_comes_into_view(running, user, tmp_path):
    detector, _ = running
    example = Path(__file__).parents[1] / "examples/hazard_watch.py"
    environment = {**os.environ, "ROS_DOMAIN_ID": str(user.domain), "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "said").open("w") as stream:
        watching = subprocess.Popen([sys.executable, example], env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        street, deadline = image_files.read_rgb(STREET), time.monotonic() + 40
        while "labelled" not in (tmp_path / "said").read_text() and time.monotonic() < deadline:
            answer(user, street)
    finally:
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    said = (tmp_path / "said").read_text()
    assert re.search(r"(tyre|cardboard box|unknown) \(0\.\d\d\), \d+ x \d+ pixels, on [\w' ]+, labelled \w+", said), (
        said + detector.log
    )
    assert "Traceback" not in said


def answer(user, rgb, second=None):
    """The outputs of one image, by topic; `second` = when it was taken, where that is not now."""
    for attempt in range(20):
        taken = None if second is None else Time(sec=int(second), nanosec=int(second % 1 * 1e9) + attempt * 1_000_000)
        stamp = user.send(rgb, stamp=taken)
        found = {topic: user.output(topic, stamp, timeout=3.0) for topic in user.collected.outputs}
        if None not in found.values():
            return found
    raise AssertionError("no answer")


def found_in(answered, **arguments):
    """What the published maps say is in view."""
    words = Vocabulary.cityscapes().with_hazards(PROMPTS)
    result = Segmentation(pixels(answered["segmentation"]), pixels(answered["anomaly_score"]), words, 1)
    return [alone(each.to_json_dict()) for each in detections.find(result, **{"threshold": 0.5, **arguments})]


def alone(entry):
    """What an entry says of its own image."""
    return {key: entry[key] for key in ("name", "score", "box", "pixels")}


def test_hazards_are_those_of_the_maps_in_pixels_of_the_camera_image(user):
    rgb = image_files.read_rgb(STREET)
    answered = answer(user, rgb)
    content = answered[outputs.HAZARDS]
    assert {entry["name"] for entry in content["hazards"]} >= {"tyre", "cardboard box"}
    assert [alone(entry) for entry in content["hazards"]] == found_in(answered)
    header = answered["segmentation"].header
    assert content["stamp"] == {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec}
    assert content["frame_id"] == header.frame_id == "camera" and (content["width"], content["height"]) == (640, 384)
    assert content["version"] == user.collected.labels[-1].content["version"]

    assert user.set_parameter("publish_resolution", "network")[0]
    small = answer(user, rgb)
    assert user.set_parameter("publish_resolution", "input")[0]
    assert small["segmentation"].width == 320 and small[outputs.HAZARDS]["width"] == 640
    assert [alone(entry) for entry in small[outputs.HAZARDS]["hazards"]] == found_in(small, size=(384, 640))


def test_a_thing_keeps_its_number_and_is_listed_from_the_image_on_that_was_asked_for(user):
    rgb, began = image_files.read_rgb(STREET), user.now().sec
    first, second = (answer(user, rgb, began + tenth / 10)[outputs.HAZARDS]["hazards"] for tenth in (0, 1))
    assert len(first) == len(second) >= 2
    assert [entry["id"] for entry in second] == [entry["id"] for entry in first]
    assert len({entry["id"] for entry in first}) == len(first) and 0 not in {entry["id"] for entry in first}
    assert all(after["images"] > before["images"] for before, after in zip(first, second, strict=True))

    assert user.set_parameter("min_hazard_images", 3)[0]
    began += 10  # a pause, after which everything is new
    lengths, counted = [], []
    for tenth in range(3):
        entries = answer(user, rgb, began + tenth / 10)[outputs.HAZARDS]["hazards"]
        lengths.append(len(entries))
        counted += [entry["images"] for entry in entries]
    assert lengths[0] == 0 and lengths[-1] == len(first) and min(counted) == 3
    for wrong in (0, 1.5, "many"):
        successful, said = user.set_parameter("min_hazard_images", wrong)
        assert not successful and "min_hazard_images" in said
    assert user.set_parameter("min_hazard_images", 1)[0]


def test_an_empty_road_is_said_too_and_the_limits_can_be_set(user):
    rgb = image_files.read_rgb(STREET)
    assert user.set_parameter("min_hazard_area", 1)[0]
    assert answer(user, rgb)[outputs.HAZARDS]["hazards"] == []
    assert user.set_parameters_together({"min_hazard_area": 0.0, "anomaly_threshold": -1})[0]
    (everything,) = answer(user, rgb)[outputs.HAZARDS]["hazards"]
    assert everything["box"] == [0, 0, 640, 384] and everything["pixels"] == 640 * 384
    for wrong in (-0.1, 1.5, "small"):
        successful, said = user.set_parameter("min_hazard_area", wrong)
        assert not successful and "min_hazard_area" in said
    assert user.set_parameters_together({"min_hazard_area": detections.MIN_AREA, "anomaly_threshold": 0.5})[0]


def test_the_overlay_comes_as_a_jpeg_too(running):
    _, other = running
    with DetectorClient(domain=other.domain, topics=("overlay", outputs.JPEG), node_name="viewer") as user:
        user.wait_until_connected()
        answered = answer(user, image_files.read_rgb(STREET))
        message, raw = answered[outputs.JPEG], answered["overlay"]
        shown = np.asarray(PillowImage.open(BytesIO(bytes(message.data))))
        assert message.header == raw.header and message.format == "rgb8; jpeg compressed bgr8"
        assert shown.shape == (384, 640, 3) and len(message.data) < len(raw.data) / 3
        assert np.abs(shown.astype(int) - pixels(raw)).mean() < 4


@pytest.mark.skipif(importlib.util.find_spec("vision_msgs") is not None, reason="vision_msgs is installed")
def test_without_vision_msgs_there_are_no_detections(user):
    assert "/vl4ad_detector/detections" not in dict(user.node.get_topic_names_and_types())


def test_detections_say_the_same_in_the_messages_that_other_nodes_read(user):
    messages = pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")
    came = {}

    def keep(message):
        came[message.header.stamp.sec, message.header.stamp.nanosec] = message

    subscription = user.node.create_subscription(messages.Detection2DArray, "/vl4ad_detector/detections", keep, outputs.MAPS_QOS)
    for _ in range(20):
        content = answer(user, image_files.read_rgb(STREET))[outputs.HAZARDS]
        array = user.wait_for(lambda _, stamp=content["stamp"]: came.get((stamp["sec"], stamp["nanosec"])), timeout=3)
        if array:
            break
    user.node.destroy_subscription(subscription)
    assert array.header.frame_id == "camera" and len(array.detections) == len(content["hazards"]) >= 2
    for detection, entry in zip(array.detections, content["hazards"], strict=True):
        left, top, width, height = entry["box"]
        box, (first, *_) = detection.bbox, detection.results
        assert (box.center.position.x, box.center.position.y) == (left + width / 2, top + height / 2)
        assert (box.size_x, box.size_y) == (width, height) and detection.header == array.header
        assert first.hypothesis.class_id == entry["name"] and detection.id == str(entry["id"])
        assert sum(each.hypothesis.score for each in detection.results) == pytest.approx(entry["score"], rel=0.05)
