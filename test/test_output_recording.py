"""A recorded bag as other programs read it: mcap's own reader, and what rosbag2 asks of metadata.yaml before it plays."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("rosbags")

from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header, String

from vl4ad_ros import images
from vl4ad_ros.output_recording import RecordedMessage, write_bag

SCORES = np.linspace(-0.5, 1.5, 24 * 32, dtype=np.float32).reshape(24, 32)
START = 1_700_000_000_000_000_000
IMAGE, COMPRESSED, TEXT = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "std_msgs/msg/String"


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    header = Header(frame_id="camera")
    header.stamp.sec = 1_700_000_000
    jpeg = CompressedImage(header=header, format="jpeg", data=bytes(range(200)))
    messages = [
        RecordedMessage("/camera/image/compressed", COMPRESSED, START, jpeg),
        RecordedMessage("/vl4ad_detector/labels", TEXT, START + 1, String(data='{"words": "Bäume"}'), latched=True),
        RecordedMessage("/vl4ad_detector/anomaly_score", IMAGE, START + 2, images.from_array(SCORES, "32FC1", header)),
    ]
    path = tmp_path_factory.mktemp("recorded") / "bag"
    write_bag(path, messages)
    return path


def test_the_reader_of_the_mcap_project_reads_it(bag):
    reader_of = pytest.importorskip("mcap.reader", reason="mcap is not installed").make_reader
    decoder = pytest.importorskip("mcap_ros2.decoder", reason="mcap-ros2-support is not installed").DecoderFactory()
    with (bag / "bag.mcap").open("rb") as stream:
        reader = reader_of(stream, validate_crcs=True, decoder_factories=[decoder])
        assert reader.get_header().profile == "ros2"
        found = {
            channel.topic: (schema, channel, record, message) for schema, channel, record, message in reader.iter_decoded_messages()
        }
    for _, channel, _, _ in found.values():
        assert channel.message_encoding == "cdr" and yaml.safe_load(channel.metadata["offered_qos_profiles"])
    assert {topic: (each[0].name, each[0].encoding) for topic, each in found.items()} == {
        "/camera/image/compressed": (COMPRESSED, "ros2msg"),
        "/vl4ad_detector/labels": (TEXT, "ros2msg"),
        "/vl4ad_detector/anomaly_score": (IMAGE, "ros2msg"),
    }
    assert [each[2].log_time for each in found.values()] == [START, START + 1, START + 2]
    score = found["/vl4ad_detector/anomaly_score"][3]
    assert (score.encoding, score.height, score.width, score.header.frame_id) == ("32FC1", 24, 32, "camera")
    assert (np.frombuffer(score.data, np.float32).reshape(24, 32) == SCORES).all()
    assert bytes(found["/camera/image/compressed"][3].data) == bytes(range(200))
    assert json.loads(found["/vl4ad_detector/labels"][3].data) == {"words": "Bäume"}


def test_metadata_has_what_rosbag2_reads_before_it_plays(bag):
    """Fields and types as in rosbag2_storage's yaml.hpp and qos.cpp for version 8 (Iron to Rolling)."""
    about = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (about["version"], about["storage_identifier"], about["message_count"]) == (8, "mcap", 3)
    assert about["relative_file_paths"] == ["bag.mcap"] == [each["path"] for each in about["files"]]
    assert about["starting_time"] == {"nanoseconds_since_epoch": START} and about["duration"] == {"nanoseconds": 2}
    # The chunks are compressed, not the file: a compression mode here would make the player look for a plugin.
    assert (about["compression_mode"], about["compression_format"]) == ("", "") and about["ros_distro"]
    latched = {}
    for entry in about["topics_with_message_count"]:
        topic = entry["topic_metadata"]
        assert entry["message_count"] == 1 and topic["serialization_format"] == "cdr"
        assert topic["type_description_hash"] == hash_of(topic["type"])
        assert isinstance(topic["offered_qos_profiles"], str)  # YAML in a string up to version 8
        (offered,) = yaml.safe_load(topic["offered_qos_profiles"])
        infinite = {"sec": 9223372036, "nsec": 854775807}
        assert offered["deadline"] == offered["lifespan"] == offered["liveliness_lease_duration"] == infinite
        assert (offered["history"], offered["reliability"], offered["liveliness"]) == (1, 1, 1)  # rmw's numbers
        assert offered["avoid_ros_namespace_conventions"] is False and offered["depth"] >= 1
        latched[topic["name"]] = offered["durability"] == 1
    assert [name for name, is_latched in latched.items() if is_latched] == ["/vl4ad_detector/labels"]


def hash_of(message_type):
    """What this ROS computes for the type: a player compares."""
    package, _, name = message_type.split("/")
    installed_at = Path(importlib.import_module(package).__file__).parents[4]
    described = json.loads((installed_at / "share" / package / "msg" / f"{name}.json").read_text())
    return next(each["hash_string"] for each in described["type_hashes"] if each["type_name"] == message_type)
