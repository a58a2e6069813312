"""What /diagnostics says of a camera: rates, troubles of the last seconds, and why nothing comes out."""

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus

from vl4ad_ros.diagnostics import CameraStatistics, camera_status

COUNTS = {"received": 0, "dropped": 0, "limited": 0}


def said(statistics):
    status = camera_status("camera", statistics.snapshot(), COUNTS, "")
    return status.level, status.message


def test_a_camera_of_which_nothing_can_be_used_is_an_error_with_the_reason():
    statistics = CameraStatistics()
    for _ in range(5):
        statistics.arrived()
        statistics.rejected("cause", "encoding 32FC1 is a depth image")
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
