"""What ids mean, as vision_msgs users read it; without that package `~/labels` says the same alone."""

import importlib.util

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from ros_fixtures import picture, running_detector

from vl4ad_ros import outputs

TOPIC = "/vl4ad_detector/label_info"


@pytest.mark.skipif(importlib.util.find_spec("vision_msgs") is not None, reason="vision_msgs is installed")
def test_without_vision_msgs_there_is_no_such_topic():
    with running_detector() as (_, user):
        topics = dict(user.node.get_topic_names_and_types())
        assert TOPIC not in topics and "/vl4ad_detector/labels" in topics


def test_label_info_names_every_id_first_and_again_when_something_changes():
    pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")
    from vision_msgs.msg import LabelInfo

    with running_detector() as (_, user):
        came = []
        user.node.create_subscription(LabelInfo, TOPIC, came.append, outputs.LATCHED)
        first = user.wait_for(lambda c: came and c.labels and came[-1])
        assert names_of(first) == names_in(user.collected.labels[-1]) and first.threshold == 0.5
        assert first.header.stamp.sec > 0

        assert user.set_parameter("hazard_prompts", ["tyre|tire", "Sofa"])[0]
        assert user.wait_for(lambda c: len(came) == 2 and len(c.labels) == 2)
        assert names_of(came[1]) == names_in(user.collected.labels[-1])
        assert len(came[1].class_map) == len(first.class_map) + 2

        # Latched: also without any image; and only once.
        assert user.set_parameter("anomaly_threshold", 0.25)[0]
        assert user.wait_for(lambda _: len(came) == 3)
        assert came[2].threshold == 0.25 and came[2].class_map == came[1].class_map
        stamp = user.send(picture())
        user.output("segmentation", stamp)
        assert len(came) == 3 and len(user.collected.labels) == 2


def names_of(info):
    return {entry.class_id: entry.class_name for entry in info.class_map}


def names_in(labels):
    return {entry["id"]: entry["name"] for entry in labels.content["classes"]}
