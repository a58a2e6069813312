"""The live evaluation plays a bag into a real detector; lossless it equals the offline one to the last digit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import START, STEP, png, vl4ad, write_bag
from evaluation_helpers import picture as plain_picture

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
from ros_fixtures import new_domain, picture, running_detector

DEMO_BAG = Path(__file__).parent / "data/demo_bag"

COUNT = 3
NOT_WHOLE = 3


@pytest.fixture
def bag(tmp_path):
    messages = []
    for index in range(COUNT):
        labels = np.full((120, 160), 13, np.uint8)
        labels[60:90, 40 + 8 * index : 80] = 100
        stamp, jpeg = START + index * STEP, png(picture(seed=index), "JPEG")
        messages += [("/camera/image/compressed", stamp, ("rgb8; jpeg compressed bgr8", jpeg)), ("/camera/labels", stamp, labels)]
    # One image that was cut off.
    broken, truth = (messages[2][0], START + STEP, (messages[2][2][0], messages[2][2][1][:1000])), messages[3]
    messages += [(topic, START + COUNT * STEP, each) for topic, _, each in (messages[2], truth)]
    messages[2] = broken
    path = write_bag(tmp_path / "drive", messages, compression="storage")
    (path / "hazards.json").write_text('{"hazards": {"100": "sofa"}}')
    return path


def replay(capfd, monkeypatch, *arguments):
    from vl4ad_ros import replay_evaluation

    monkeypatch.setenv("ROS_DOMAIN_ID", str(new_domain()))
    with pytest.raises(SystemExit) as ended:
        replay_evaluation.main([str(word) for word in arguments])
    out, err = capfd.readouterr()
    return ended.value.code, out, err


@pytest.mark.slow
def test_the_lossless_live_result_equals_the_offline_one(tmp_path, bag, capfd, monkeypatch):
    common = ("--hazard", "sofa|couch", "--engine", "torch", "--track", "obstacle")
    code, out, err = replay(capfd, monkeypatch, bag, *common, "--json", tmp_path / "live.json")
    assert code == NOT_WHOLE, err
    assert vl4ad(capfd, "evaluate", "bag", bag, *common, "--json", tmp_path / "offline.json").code == NOT_WHOLE
    live, offline = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("live", "offline"))
    for document in (live, offline):
        del document["configuration"]
    figures = live.pop("live")
    assert live == offline and list(live["naming"]["types"]) == ["sofa"]
    assert [each["name"] for each in live["frames"]["failures"]] == ["drive/1700000000.100000000"]
    assert (figures["sent"], figures["answered"], figures["dropped"]) == (COUNT, COUNT, 0)
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p95"] <= figures["latency_ms"]["p99"]
    assert figures["throughput_hz"] > 0 and "latency p50" in out


@pytest.mark.slow
def test_at_a_rate_dropped_images_are_counted_and_not_evaluated(tmp_path, capfd, monkeypatch):
    messages = []
    for index in range(30):
        labels = np.zeros((120, 160), np.uint8)
        labels[60:90, 40:80] = 1
        stamp = START + index * 10**7
        messages += [("/camera/image", stamp, picture(seed=index)), ("/camera/labels", stamp, labels)]
    fast = write_bag(tmp_path / "fast", messages)
    code, _, err = replay(capfd, monkeypatch, fast, "--rate", 1, "--engine", "torch", "--json", tmp_path / "live.json")
    assert code == 0, err
    document = json.loads((tmp_path / "live.json").read_text())
    live = document["live"]
    assert live["sent"] == 30 and live["answered"] + live["dropped"] == 30 and live["answered"] >= 1
    assert document["frames"]["evaluated"] == live["answered"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "status", "said"),
    [
        ("detector", signal.SIGKILL, 2, "replay_evaluation: the detector was ended by signal 9 (Killed): "),
        ("replay", signal.SIGTERM, 143, "replay_evaluation: terminated, no result was written"),
    ],
)
def test_a_replay_that_is_cut_short_is_no_result(tmp_path, whom, number, status, said):
    (tmp_path / "tmp").mkdir()
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ROS_DOMAIN_ID": str(new_domain()), "TMPDIR": str(tmp_path / "tmp"),
    }  # fmt: skip
    command = [sys.executable, "-m", "vl4ad_ros.replay_evaluation", str(DEMO_BAG), "--engine", "torch", "--rate", "0.5"]
    command += ["--json", str(tmp_path / "live.json")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        said_so_far = []
        for line in running.stderr:
            said_so_far.append(line)
            if line.startswith("playing"):
                break
        time.sleep(0.5)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        (detector,) = [int(pid) for pid in children if b"detector_node" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(detector if whom == "detector" else running.pid, number)
        _, rest = running.communicate(timeout=60)
    assert running.returncode == status, [*said_so_far, rest]
    assert said in rest and "Traceback" not in rest
    assert not (tmp_path / "live.json").exists()
    assert not list((tmp_path / "tmp").glob("vl4ad-*"))


@pytest.mark.slow
def test_at_a_rate_a_slow_detector_is_waited_for(tmp_path, capfd, monkeypatch):
    """The newest image is answered, however late."""
    labels = np.zeros((48, 64), np.uint8)
    labels[:9] = 1
    messages = []
    for index in range(4):
        stamp = START + index * STEP
        messages += [("/camera/image", stamp, plain_picture()), ("/camera/labels", stamp, labels)]
    drive = write_bag(tmp_path / "drive", messages)
    from vl4ad_ros import replay_evaluation
    from vl4ad_ros.detector_client import DetectorClient

    with running_detector({"max_rate": 0.18}, connect=False) as (detector, user):
        monkeypatch.setenv("ROS_DOMAIN_ID", str(user.domain))
        with DetectorClient(domain=user.domain, topics=(), node_name="vl4ad_detector"), pytest.raises(SystemExit) as ended:
            replay_evaluation.main([str(drive), "--attach"])
        assert ended.value.code == 2 and "2 nodes are called /vl4ad_detector: end all but one" in capfd.readouterr().err
        with pytest.raises(SystemExit) as ended:
            replay_evaluation.main([str(drive), "--attach", "--rate", "1", "--json", str(tmp_path / "live.json")])
        assert ended.value.code == 0, capfd.readouterr().err + detector.log
    live = json.loads((tmp_path / "live.json").read_text())["live"]
    assert (live["sent"], live["answered"]) == (4, 2) and live["latency_ms"]["p99"] > 5000


def test_a_domain_that_is_no_number_is_one_line(tmp_path, capfd, monkeypatch):
    from vl4ad_ros import replay_evaluation

    monkeypatch.setenv("ROS_DOMAIN_ID", "robot1")
    with pytest.raises(SystemExit) as ended:
        replay_evaluation.main([str(DEMO_BAG)])
    err = capfd.readouterr().err
    assert (
        ended.value.code == 2
        and err == "replay_evaluation: ROS_DOMAIN_ID=robot1 is no number: it must be 0 to 101 on most machines\n"
    )


MISTAKES = [
    (["none"], "no bag at"),
    (["{bag}", "--rate", "0"], "must be above 0"),
    (["{bag}", "--track", "road"], "track"),
    (["{bag}", "--tolerance", "-1"], "tolerance must be a number of seconds, not -1.0"),
    (["x" * 300], "File name too long"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line_before_anything_starts(tmp_path, capfd, monkeypatch, arguments, message):
    labels = np.zeros((48, 64), np.uint8)
    drive = write_bag(tmp_path / "drive", [("/camera/image", START, plain_picture()), ("/camera/labels", START, labels)])
    code, _, err = replay(capfd, monkeypatch, *[word.format(bag=drive) for word in arguments])
    assert code == 2 and message in err and err.count("\n") == 1
