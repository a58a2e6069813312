"""What /diagnostics says of a camera: rates, troubles of the last seconds, and why nothing comes out."""

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from ros_fixtures import new_domain
from sensor_msgs.msg import Image

from vl4ad_ros import inputs
from vl4ad_ros.diagnostics import CameraStatistics, camera_status, percentile
from vl4ad_ros.parameters import settings_from

COUNTS = {"received": 0, "dropped": 0, "limited": 0}


def said(statistics):
    status = camera_status("camera", statistics.snapshot(), COUNTS, "")
    return status.level, status.message


def test_a_camera_of_which_nothing_can_be_used_is_an_error_with_the_reason():
    statistics = CameraStatistics()
    for _ in range(5):
        statistics.arrived()
        statistics.rejected("encoding 32FC1 is a depth image")
    level, message = said(statistics)
    assert level == DiagnosticStatus.ERROR and "5 of 5 images" in message and "encoding 32FC1" in message


def test_some_bad_images_are_a_warning_of_the_last_seconds_only(monkeypatch):
    from vl4ad_ros import diagnostics

    statistics = CameraStatistics()
    statistics.frame_failed("RuntimeError: once")
    statistics.arrived()
    statistics.published_one(0.05, {}, "64x48 rgb8")
    level, message = said(statistics)
    assert level == DiagnosticStatus.WARN and "1 of 2 images" in message and "RuntimeError: once" in message
    later = diagnostics.time.monotonic() + diagnostics.WINDOW_SECONDS + 1
    monkeypatch.setattr(diagnostics.time, "monotonic", lambda: later)
    statistics.arrived()
    statistics.published_one(0.05, {}, "64x48 rgb8")
    assert said(statistics)[0] == DiagnosticStatus.OK


def test_images_without_stamps_are_a_warning():
    statistics = CameraStatistics()
    statistics.arrived()
    statistics.published_one(None, {}, "64x48 rgb8")
    level, message = said(statistics)
    assert level == DiagnosticStatus.WARN and "images have no stamp" in message and "unknown" not in message


def test_one_answer_in_the_window_is_an_answer():
    statistics = CameraStatistics()
    for _ in range(3):
        statistics.arrived()
    statistics.published_one(9.0, {}, "64x48 rgb8")
    assert "no answer yet" not in said(statistics)[1]


def test_counts_begin_anew_when_a_node_is_activated_again():
    from vl4ad_ros.worker import NewestFrameWorker

    worker = NewestFrameWorker(lambda source, frame: None, on_error=lambda error: None)
    worker.offer("left", 1)
    worker.offer("left", 2)
    assert (worker.counts("left").received, worker.counts("left").dropped) == (2, 1)
    worker.clear()
    assert (worker.counts("left").received, worker.counts("left").dropped) == (0, 0)


def test_nobody_subscribes_is_said_only_where_it_is_so():
    statistics = CameraStatistics()
    for _ in range(3):
        statistics.arrived()
    assert "no answer yet" in said(statistics)[1]
    statistics.not_wanted()
    assert "nobody subscribes" in said(statistics)[1]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_the_smallest_value_that_this_share_does_not_exceed(share, expected):
    assert percentile([4, 2, 1, 3], share) == expected


class Topic:
    """An input whose topic is published by whom a test says, and looked after as often as it says; its clock is the test's."""

    def __init__(self, monkeypatch, **settings):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.seconds = 100.0
        monkeypatch.setattr(inputs.time, "monotonic", lambda: self.seconds)
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=new_domain())
        self.node = rclpy.create_node("node", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.came = 0
        self.input = inputs.CameraInput(self.node, "", settings_from(settings), self.count, lambda count: None)

    def count(self, *_):
        self.came += 1

    def publisher(self, quality=1):
        publisher = self.node.create_publisher(Image, "/image", quality)
        while not self.node.get_publishers_info_by_topic("/image"):
            self.executor.spin_once(0.05)
        return publisher

    def receive(self, publisher):
        for _ in range(200):
            if publisher.get_subscription_count():
                break
            self.executor.spin_once(0.05)
        before = self.came
        publisher.publish(Image())
        for _ in range(200):
            if self.came > before:
                return
            self.executor.spin_once(0.05)
        raise AssertionError("the image did not come")

    def after(self, seconds):
        """What is said in each of these seconds."""
        said = []
        for _ in range(seconds):
            self.seconds += 1
            said.append(self.input.look_after())
        return said


@pytest.fixture
def topic(monkeypatch):
    topic = Topic(monkeypatch)
    yield topic
    topic.node.destroy_node()
    topic.context.try_shutdown()


def test_a_camera_that_is_started_late_or_is_slow_is_not_suspected_of_anything(topic):
    assert "no publisher on /image" in topic.after(30)[-1]
    camera = topic.publisher()
    assert topic.after(5) == [""] * 5
    for _ in range(4):
        topic.receive(camera)
        assert topic.after(5) == [""] * 5


def test_a_camera_that_never_sends_gets_advice_and_one_that_stops_does_not(topic):
    camera = topic.publisher()
    assert "has a publisher but no image arrives: is it sending? If so: large images need" in topic.after(6)[-1]
    for _ in range(3):
        topic.receive(camera)
        topic.seconds += 0.1
    said = topic.after(4)
    assert said[:2] == ["", ""] and said[-1] == "no image came on /image for 4 s"
    topic.receive(camera)
    assert topic.after(1) == [""]
    # Another camera in its place begins anew.
    topic.node.destroy_publisher(camera)
    while topic.node.get_publishers_info_by_topic("/image"):
        topic.executor.spin_once(0.05)
    assert "no publisher" in topic.after(30)[-1]
    topic.publisher()
    assert topic.after(5) == [""] * 5 and "large images need" in topic.after(1)[0]


def test_a_slow_camera_s_status_is_calm(monkeypatch):
    from vl4ad_ros import diagnostics

    statistics = CameraStatistics()
    assert said(statistics) == (DiagnosticStatus.WARN, "no images arrive")
    statistics.arrived()
    statistics.published_one(0.05, {}, "64x48 rgb8")
    later = diagnostics.time.monotonic() + diagnostics.WINDOW_SECONDS + 1
    monkeypatch.setattr(diagnostics.time, "monotonic", lambda: later)
    assert said(statistics)[0] == DiagnosticStatus.OK
