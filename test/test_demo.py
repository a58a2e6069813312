"""The demo on a short drive, for real: it ends with its page, its numbers, and a recording that can be read back."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import write_bag

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("rosbags")

from std_msgs.msg import String

from vl4ad_model.errors import EvaluationError
from vl4ad_ros import demo, output_recording

NODE = "/vl4ad_detector"
IMAGE_TOPIC = "/camera/image"


def drive(folder, street, frames=12):
    """A short drive at 4 Hz with a labelled hazard."""
    labels = np.zeros(street.shape[:2], np.uint8)
    labels[150:200, 100:180] = 100
    messages = []
    for index in range(frames):
        stamp = 1_700_000_000_000_000_000 + index * 250_000_000
        picture = np.ascontiguousarray(np.roll(street, 4 * index, axis=1))
        messages += [(IMAGE_TOPIC, stamp, picture), ("/camera/labels", stamp, np.roll(labels, 4 * index, axis=1))]
    bag = write_bag(folder, messages)
    (bag / "hazards.json").write_text(json.dumps({"hazards": {"100": {"name": "tyre"}}}), encoding="utf-8")
    return bag


def read(bag):
    """Topic -> its messages in order, and its connection."""
    from pathlib import Path

    from rosbags.highlevel import AnyReader

    found, connections = defaultdict(list), {}
    with AnyReader([Path(bag)]) as reader:
        for connection, when, raw in reader.messages():
            found[connection.topic].append((when, reader.deserialize(raw, connection.msgtype)))
            connections[connection.topic] = connection
    return found, connections


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


@pytest.mark.slow
def test_the_demo_records_what_was_sent_and_what_came_back(tmp_path, street):
    from rosbags.interfaces import QosDurability

    bag, out = drive(tmp_path / "drive", street), tmp_path / "out"
    status = demo.run(["--bag", str(bag), "--engine", "torch", "--hazard", "tyre|tire", "--out", str(out)])
    assert status == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (out / "index.html").stat().st_size > 1000 and (out / "demo.png").stat().st_size > 1000
    (tyre,) = summary["hazards"]
    assert tyre["misnamed"] == 0, "one name was asked for"
    assert np.isnan(summary["names_right"]) or 0 <= summary["names_right"] <= 1, "NaN where nothing got a name"
    assert summary["recording"] == str(out / "recording") and summary["recording"] in (out / "index.html").read_text()

    found, connections = read(out / "recording")
    sent = [stamp_of(message) for _, message in found[IMAGE_TOPIC]]
    assert len(sent) == len(set(sent)) >= summary["frames_sent"] == 24  # and those asked for again on a slow machine
    assert {topic: len(messages) for topic, messages in found.items()} == summary["recorded"]
    for topic, encoding, bytes_per_pixel in (("segmentation", "mono8", 1), ("anomaly_score", "32FC1", 4)):
        messages = found[f"{NODE}/{topic}"]
        assert connections[f"{NODE}/{topic}"].msgtype == "sensor_msgs/msg/Image"
        assert len(messages) >= summary["frames_answered"] > 0
        stamps = [stamp_of(message) for _, message in messages]
        assert len(set(stamps)) == len(stamps) and set(stamps) <= set(sent)
        for when, message in messages:
            assert when > stamp_of(message) and message.header.frame_id == "camera"
            assert (message.encoding, message.height, message.width) == (encoding, *street.shape[:2])
            assert message.data.size == message.height * message.width * bytes_per_pixel
    words = [json.loads(message.data) for _, message in found[f"{NODE}/labels"]]
    assert [each["version"] for each in words] == sorted({each["version"] for each in words}) and len(words) >= 2
    assert any(entry["prompt"] == "tyre|tire" for each in words for entry in each["classes"] if entry["kind"] == "hazard")
    # Whoever starts listening while the bag is played gets the words too.
    (offered,) = connections[f"{NODE}/labels"].ext.offered_qos_profiles
    assert offered.durability == QosDurability.TRANSIENT_LOCAL and offered.depth == 1


def words(text, when):
    return output_recording.RecordedMessage("/words", "std_msgs/msg/String", when, String(data=text), latched=True)


def test_a_recording_replaces_an_older_one_whole(tmp_path):
    for texts in (["a", "b", "c"], ["d", "é"]):
        counts = output_recording.write_bag(tmp_path / "bag", [words(text, 9 - index) for index, text in enumerate(texts)])
        assert counts == {"/words": len(texts)}
        found, _ = read(tmp_path / "bag")
        assert [message.data for _, message in found["/words"]] == texts[::-1]  # in order of time
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_a_place_that_cannot_be_written_is_said_before_the_drive():
    with pytest.raises(EvaluationError, match="cannot write /proc/demo/recording: No such file or directory"):
        output_recording.check_place(Path("/proc/demo/recording"))


def test_what_is_no_bag_is_never_removed(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/important.txt").write_text("x")
    with pytest.raises(EvaluationError, match="is no bag"):
        output_recording.write_bag(tmp_path / "notes", [words("a", 1)])
    assert (tmp_path / "notes/important.txt").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
