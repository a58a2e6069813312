"""cv_bridge where a distribution has it: the same pictures as without it, and no harm where its build is broken."""

import importlib.util
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from encoded_pictures import HEIGHT, WIDTH, pack, send, smooth_picture
from ros_fixtures import running_detector
from sensor_msgs.msg import Image

from vl4ad_model.image_encoding import decode_raw
from vl4ad_ros import images

IN_BOTH = ["mono16", "rgb16", "bgr16", "rgba16", "bgra16", "yuv422", "yuv422_yuy2"] + [
    f"bayer_{pattern}{bits}" for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)
]


def _missing():
    if importlib.util.find_spec("cv_bridge") is None:
        return "cv_bridge is not installed"
    problem = images.problem_of_cv_bridge()
    return f"cv_bridge does not work here: {problem}" if problem else ""


needs_cv_bridge = pytest.mark.skipif(bool(_missing()), reason=_missing())


def message_of(encoding, *, padding=0, big=False):
    data, step = send(pack(smooth_picture(), encoding), padding, big)
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, is_bigendian=int(big), step=step, data=data)
    message.header.frame_id = "camera"
    return message


@needs_cv_bridge
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", IN_BOTH)
def test_an_uncommon_encoding_goes_through_cv_bridge_and_gives_the_picture_ours_gives(encoding, big):
    message = message_of(encoding, big=big)
    through = images._through_cv_bridge(message)
    if through is None:
        assert big and np.__version__[0] != "1", "cv_bridge swaps bytes with a method that numpy 2 no longer has"
        pytest.skip("this cv_bridge cannot swap bytes under numpy 2")
    ours = decode_raw(message.data, height=HEIGHT, width=WIDTH, encoding=encoding, step=message.step, is_bigendian=big)
    assert np.abs(through.astype(int) - ours).max() <= 1  # 16-bit Bayer: before or after the interpolation rounded
    assert (images.to_rgb(message) == through).all()


@needs_cv_bridge
@pytest.mark.parametrize("encoding", ["rgb16", "bayer_rggb16", "yuv422"])
def test_rows_padded_by_part_of_a_pixel_are_not_skewed(encoding):
    assert np.abs(images.to_rgb(message_of(encoding, padding=2)).astype(int) - images.to_rgb(message_of(encoding))).max() <= 1


def answered(user, message):
    for _ in range(20):
        message.header.stamp = user.now()
        output = user.output("segmentation", user.send_message(message), timeout=5.0)
        if output is not None:
            return output
    raise AssertionError("no answer")


@needs_cv_bridge
def test_the_running_detector_uses_it():
    with running_detector() as (detector, user):
        output = answered(user, message_of("bayer_rggb16"))
        assert (output.height, output.width) == (HEIGHT, WIDTH)
        assert "uncommon encodings are read with cv_bridge" in detector.log


def test_a_cv_bridge_that_crashes_at_import_costs_one_warning_and_no_image(tmp_path):
    package = tmp_path / "cv_bridge"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with running_detector(environment={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}) as (detector, user):
        for encoding in ("bayer_rggb8", "yuv422", "bayer_rggb8"):
            assert answered(user, message_of(encoding)).encoding == "mono8"
        assert detector.process.poll() is None
        assert detector.log.count("cv_bridge is installed but does not work") == 1 and "signal 11" in detector.log
