"""The detector under pressure: words changed at full rate, more images than it can take, signals at bad moments, many lives."""

import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from ros_fixtures import SMALL, new_domain, picture, running_detector

from vl4ad_ros.detector_client import DetectorClient, pixels
from vl4ad_ros.detector_process import DetectorProcess


class Camera(threading.Thread):
    """Sends one image at a rate until it is told to stop; a context manager."""

    def __init__(self, user, rgb, rate):
        super().__init__(daemon=True)
        self.user, self.rgb, self.period = user, rgb, 1 / rate
        self.sent, self.stopping = [], threading.Event()

    def run(self):
        due = time.monotonic()
        while not self.stopping.is_set():
            self.sent.append(self.user.send(self.rgb))
            due += self.period
            self.stopping.wait(max(0.0, due - time.monotonic()))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join()


def _start(announced: dict) -> tuple[int, int]:
    """The last stamp before words count, as a `~/labels` message says it."""
    stamp = announced["after"][""]
    return (stamp["sec"], stamp["nanosec"]) if stamp else (0, 0)


@pytest.mark.parametrize("settings", [{}, {"engine": "openvino", "parallel_images": 3}], ids=["one", "three at once"])
def test_every_output_belongs_to_exactly_one_version_of_the_words(settings):
    import cv2

    from vl4ad_model.image_files import read_rgb
    from vl4ad_model.segmenter import Segmenter

    # A street, and words near what is in it, so that every change of words moves the score.
    street = sorted((Path(__file__).parent / "data/evaluation/quiet/images").glob("*.jpg"))[4]
    rgb = cv2.resize(read_rgb(street), (96, 64), interpolation=cv2.INTER_AREA)
    choices = [[], ["asphalt road", "automobile"], ["house facade"]]
    reference = Segmenter.load("tiny", engine="torch", network_size=(64, 96), offline=True)
    expected = []
    for hazards in choices:
        reference.vocabulary = reference.vocabulary.with_hazards(hazards)
        expected.append(reference.segment(rgb))
    # The scores tell any two apart, far beyond what is allowed below, or this test could not fail.
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(expected[i].anomaly - expected[j].anomaly).max() > 0.05

    with running_detector(settings, client={"topics": ("segmentation", "anomaly_score")}) as (_, user):
        user.wait_until_built()
        with Camera(user, rgb, 30) as camera:
            for count, index in enumerate((1, 2, 0, 1), 2):
                time.sleep(1.0)
                assert user.set_parameter("hazard_prompts", choices[index])[0]
                user.wait_for(lambda c, count=count: len(c.labels) == count)  # words that come too fast replace each other
                # Frames are answered with them before the next ones come.
                user.wait_for(lambda c: sum(t > _start(c.labels[-1].content) for t in list(c.outputs["anomaly_score"])) >= 5)
        # What is under way arrives; every frame that was answered was answered on both topics.
        user.wait_for(lambda c: set(c.outputs["segmentation"]) == set(c.outputs["anomaly_score"]), timeout=5)
        outputs = user.collected.outputs
        stamps = sorted(outputs["segmentation"])
        assert stamps == sorted(outputs["anomaly_score"]) and set(stamps) <= set(camera.sent)
        announced = [labels.content for labels in user.collected.labels]
    # They come out in the order in which they went in, however many are worked on.
    assert list(outputs["segmentation"]) == stamps
    assert [content["version"] for content in announced] == list(range(1, len(announced) + 1)) and len(announced) == 5
    hazards_of = [tuple(entry["prompt"] for entry in content["classes"] if entry["kind"] == "hazard") for content in announced]
    starts = [_start(content) for content in announced]
    assert starts == sorted(starts)
    seen = set()
    for stamp in stamps:
        version = max(index for index, start in enumerate(starts) if stamp > start)
        truth = expected[choices.index(list(hazards_of[version]))]
        assert np.allclose(pixels(outputs["anomaly_score"][stamp].message), truth.anomaly, atol=1e-4), (stamp, version)
        assert (pixels(outputs["segmentation"][stamp].message) == truth.labels).mean() > 0.999
        seen.add(version)
    assert seen == set(range(5))
    # A change costs no frame: the longest silence near one is no longer than what happens anyway, give or take the machine.
    times = np.array([stamp[0] + stamp[1] * 1e-9 for stamp in stamps])
    gaps = np.diff(times)
    at_changes = [gaps[max(0, i - 2) : i + 2].max() for i in np.searchsorted(times, [s[0] + s[1] * 1e-9 for s in starts[1:]])]
    assert np.median(at_changes) < 5 * np.median(gaps) + 0.3


def test_a_threshold_set_together_with_words_begins_with_their_first_frame():
    with running_detector(client={"topics": ("anomaly_mask",)}) as (_, user):
        with Camera(user, picture(), 40) as camera:
            settings = [(["tyre"], -1000.0), ([], 1000.0), (["sofa", "ladder", "keg"], -1000.0), (["crate"], 1000.0)]
            for count, (hazards, threshold) in enumerate(settings, 2):
                time.sleep(0.7)
                assert user.set_parameters_together({"hazard_prompts": hazards, "anomaly_threshold": threshold}) == (True, "")
                user.wait_for(lambda c, count=count: len(c.labels) == count)
            time.sleep(1.0)
        # Copied at once: images that are under way still arrive in the client's thread.
        shares = {
            stamp: (pixels(received.message) == 255).mean()
            for stamp, received in user.collected.outputs["anomaly_mask"].copy().items()
        }
        after = [labels.content["after"][""] for labels in user.collected.labels]
    assert set(shares) <= set(camera.sent)
    starts = [(stamp["sec"], stamp["nanosec"]) if stamp else (0, 0) for stamp in after]
    for start, end, (_, threshold) in zip(starts[1:], [*starts[2:], (2**40, 0)], settings, strict=True):
        of_these_words = {share for stamp, share in shares.items() if start < stamp <= end}
        assert of_these_words == {1.0 if threshold < 0 else 0.0}


def test_more_images_than_it_can_take_cost_neither_memory_nor_age():
    rgb = picture(480, 640)
    client = {"topics": ("segmentation",), "keep": 200}
    with running_detector({"network_size": [128, 192]}, client=client) as (detector, user), Camera(user, rgb, 60) as camera:
        assert user.wait_for(lambda c: len(c.outputs["segmentation"]) >= 5, timeout=60)
        early = detector.memory_mb()
        start = len(user.collected.outputs["segmentation"])
        assert user.wait_for(lambda c: len(c.outputs["segmentation"]) >= start + 25, timeout=120)
        late = detector.memory_mb()
        camera.stopping.set()
        received = [(stamp, entry.when) for stamp, entry in user.collected.outputs["segmentation"].copy().items()]
        user.wait_for(lambda c: int(c.diagnostics["vl4ad_detector: camera"]["dropped (replaced by a newer image)"]) > 0, timeout=5)
        counts = user.collected.diagnostics["vl4ad_detector: camera"]
        sent = len(camera.sent)
    assert late - early < 30, f"{early:.0f} MB became {late:.0f} MB"
    # From one output to the next is a network time; an image waits for one at most, and takes one.
    whens = np.array([when for _, when in received])
    ages = whens - [stamp[0] + stamp[1] * 1e-9 for stamp, _ in received]
    network = np.diff(whens)
    assert np.median(ages[1:] / network) <= 2 and np.mean(ages[1:] <= 2 * network + 0.25) > 0.9
    dropped, published, arrived = (int(counts[key]) for key in ("dropped (replaced by a newer image)", "published", "received"))
    assert dropped > published > 0 and dropped + published <= arrived <= sent
    assert arrived - dropped - published <= 2


def said_of(detector):
    return f"status {detector.process.returncode}: {detector.log}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("delay", [0.1, 1.5])
def test_a_signal_while_the_model_is_loaded_ends_it_within_two_seconds(number, delay):
    with DetectorProcess({}, domain=new_domain()) as detector:
        detector.wait_until_said("loading model", timeout=60)
        time.sleep(delay)
        assert detector.stop(number) < 2.0, said_of(detector)
        assert detector.process.returncode == 0 and "Traceback" not in detector.log, said_of(detector)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_the_middle_of_a_frame_ends_it_within_two_seconds(number):
    # A network that takes seconds: the end must not wait for it.
    with running_detector({"network_size": [768, 1280]}, client={"topics": ("segmentation",)}) as (detector, user):
        with Camera(user, picture(), 10):
            assert user.wait_for(lambda c: len(c.outputs["segmentation"]) >= 1, timeout=120)
            time.sleep(0.3)
            assert detector.stop(number) < 2.0, said_of(detector)
        assert detector.process.returncode == 0 and "Traceback" not in detector.log, said_of(detector)


def shared_segments(detector):
    """Files of shared memory that the process has in use; alone in its domain it made them all."""
    maps = Path(f"/proc/{detector.process.pid}/maps").read_text()
    return {Path(name) for name in re.findall(r"/dev/shm/fast(?:dds|rtps)_[0-9a-f]{16}", maps)}


@pytest.mark.parametrize(("busy", "number"), [("loading", signal.SIGINT), ("idle", signal.SIGTERM)], ids=["loading", "idle"])
def test_an_end_gives_the_shared_memory_back(busy, number):
    with DetectorProcess(SMALL, domain=new_domain()) as detector:
        detector.wait_until_said("loading model", timeout=60)
        if busy == "idle":
            detector.wait_until_active()
        segments = shared_segments(detector)
        if not segments:
            pytest.skip("this middleware uses no shared memory of Fast DDS")
        assert detector.stop(number) < 2.0
        assert not [segment for segment in segments if segment.exists()], said_of(detector)


def test_a_detector_does_not_outlive_the_program_that_started_it(tmp_path):
    program = (
        "import sys, time; from vl4ad_ros.detector_process import DetectorProcess;"
        f"detector = DetectorProcess({{'engine': 'torch'}}, domain={new_domain()});"
        "detector.wait_until_said('loading model', 60); print(detector.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    detector = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{detector}").exists() and "Z" not in Path(f"/proc/{detector}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_detector_outlives_the_thread_that_started_it():
    begun = []

    def begin():
        begun.append(DetectorProcess({**SMALL, "autostart": False, "hazard_promts": ["tyre"]}, domain=new_domain()))
        begun[0].wait_until_said("did you mean 'hazard_prompts'", timeout=60)

    starter = threading.Thread(target=begin)
    starter.start()
    starter.join()
    with begun[0] as detector:
        time.sleep(1.5)
        assert detector.process.poll() is None, said_of(detector)


@pytest.mark.slow
def test_twenty_lives_leak_nothing():
    domain = new_domain()
    settings, client = {**SMALL, "autostart": False}, {"topics": ("segmentation",)}
    with DetectorProcess(settings, domain=domain) as detector, DetectorClient(domain=domain, **client) as user:
        memory = []
        for life in range(20):
            assert user.state() == "unconfigured"
            assert user.change_state("configure") and user.change_state("activate") and user.state() == "active"
            if life % 5 == 0:
                user.wait_until_connected()
                assert any(user.output("segmentation", user.send(picture()), timeout=3) for _ in range(20)), detector.log
            assert user.change_state("deactivate") and user.state() == "inactive"
            assert user.change_state("cleanup")
            memory.append(detector.memory_mb())
    # What leaks does so in every five lives; an allocator's pool that grows once, by 20 MB perhaps, does not.
    fives = [max(memory[first : first + 5]) for first in (5, 10, 15)]
    assert min(later - earlier for earlier, later in itertools.pairwise(fives)) < 5, [round(each) for each in memory]


@pytest.mark.parametrize("arguments", [["--params-file", "nowhere.yaml"], ["-p"]])
def test_ros_arguments_that_cannot_be_read_are_one_more_line_and_status_2(arguments):
    with DetectorProcess(domain=new_domain(), arguments=arguments) as detector:
        assert detector.process.wait(timeout=60) == 2
        assert "vl4ad_detector: " in detector.log and "Couldn't parse" in detector.log and "Traceback" not in detector.log


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "usage: detector [--ros-args"),
        (["--bogus"], 2, "vl4ad_detector: unknown argument '--bogus': parameters come after --ros-args"),
        (["image:=/camera", "--ros-args", "-p", "engine:=torch"], 2, "unknown argument 'image:=/camera'"),
    ],
)
def test_arguments_that_are_not_for_ros_start_no_node(arguments, status, said):
    command = [sys.executable, "-m", "vl4ad_ros.detector_node", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and said in done.stdout + done.stderr and "loading" not in done.stderr


def test_a_misspelt_parameter_is_said():
    with DetectorProcess({**SMALL, "autostart": False, "hazard_promts": ["tyre"]}, domain=new_domain()) as detector:
        detector.wait_until_said("did you mean 'hazard_prompts'", timeout=60)


@pytest.mark.parametrize(
    ("section", "ours"),
    [("detector", False), ("/robot/vl4ad_detector", False), ("vl4ad_detector", True), ("/*", True), ("/**", True)],
)
def test_a_parameter_file_for_another_node_is_said(section, ours, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{section}:\n  ros__parameters:\n    model: nowhere\n")
    # A model that does not exist ends it as soon as it has said everything; the command line's comes last.
    arguments = ["--params-file", str(tmp_path / "mine.yaml"), "-p", "model:=nowhere"]
    with DetectorProcess(domain=new_domain(), arguments=arguments) as detector:
        assert detector.process.wait(timeout=60) == 2
        said = f"mine.yaml sets parameters of /{section.strip('/')}, and none of /vl4ad_detector: write '/**:' to mean any node"
        assert (said in detector.log) != ours and ("mine.yaml" in detector.log) != ours


def test_an_empty_list_at_the_start_is_no_hazard_one_camera_and_the_default_size():
    """On a command line `[]` has no type: rclpy takes it for no value."""
    given = [word for name in ("hazard_prompts", "network_size", "cameras") for word in ("-p", f"{name}:=[]")]
    with running_detector(arguments=given) as (_, user):
        assert user.get_parameter("hazard_prompts") == []
        assert user.output("segmentation", user.send(picture()), timeout=30) is not None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "fcclip-r51"}, "no model 'fcclip-r51'"),
        ({"hazard_prompts": ["car"]}, "already belongs to class 'car'"),
        ({"engine": "fastest"}, "engine 'fastest' is unknown"),
        ({"cameras": ["front left"]}, "is no ROS name"),
        ({"network_size": [100, 100]}, "network_size is [height, width] in pixels, multiples of 32"),
        ({"network_size": 384}, "network_size is [height, width] in pixels, multiples of 32, or [0, 0], not 384"),
        ({"cameras": True}, "cameras is a list of names, \"['front', 'left']\", but True is bool"),
        ({"cameras": ["c" * 300]}, "has 300 characters, at most 100 are allowed"),
        ({"anomaly_threshold": 1e9}, "anomaly_threshold"),
        ({"parallel_images": 0}, "parallel_images must be 1 to 16, not 0"),
        ({"image_transport": "theora"}, "raw, compressed"),
        ({"model": 5}, "model"),
    ],
)
def test_a_bad_start_is_one_line_and_status_2(settings, reason):
    with DetectorProcess({**SMALL, **settings}, domain=new_domain()) as detector:
        assert detector.process.wait(timeout=60) == 2
        assert reason in detector.log and "Traceback" not in detector.log, detector.log
