"""Drives: a steady world seen from a moving camera, in bags whose topics share their stamps; and the committed data."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags")

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes.bag import IMAGE_TOPIC, INFO_TOPIC, LABEL_TOPIC, camera_matrix, write_bag
from vl4ad_model.scenes.drive import DrivePlan, frames_of, make_drive
from vl4ad_model.scenes.hazards import HELD_OUT, SEEN

DATA = Path(__file__).parent / "data"
PLAN = DrivePlan(seed=5, seconds=0.3, rate=10, height=96, width=160)


def messages(bag: Path):
    """topic -> [(bag stamp, message)]."""
    from rosbags.highlevel import AnyReader

    found = {}
    with AnyReader([bag]) as reader:
        for connection, stamp, raw in reader.messages():
            found.setdefault(connection.topic, []).append((stamp, reader.deserialize(raw, connection.msgtype)))
    return found


def test_a_bag_holds_the_frames_with_equal_stamps(tmp_path, rendering):
    world = make_drive(PLAN)
    frames = list(frames_of(PLAN, world))
    assert list(write_bag(tmp_path / "bag", PLAN, world, iter(frames))) == [1, 2, 3]
    found = messages(tmp_path / "bag")
    assert set(found) == {IMAGE_TOPIC, LABEL_TOPIC, INFO_TOPIC}
    for index in range(3):
        stamps = {(found[topic][index][0], _stamp(found[topic][index][1])) for topic in found}
        assert len(stamps) == 1
        bag_stamp, header_stamp = stamps.pop()
        assert bag_stamp == header_stamp == found[IMAGE_TOPIC][0][0] + index * 100_000_000
        label = found[LABEL_TOPIC][index][1]
        assert (label.encoding, label.height, label.width, label.step) == ("mono8", 96, 160, 160)
        assert np.array_equal(label.data.reshape(96, 160), frames[index].labels)
        info = found[INFO_TOPIC][index][1]
        assert np.allclose(info.k.reshape(3, 3), camera_matrix(world, 96, 160))
        assert len({message.header.frame_id for message in (label, info, found[IMAGE_TOPIC][index][1])}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    with pytest.raises(SceneError, match="exists already"):
        next(write_bag(tmp_path / "bag", PLAN, world, iter(frames)))


def test_an_interrupted_bag_leaves_nothing(tmp_path, rendering):
    world = make_drive(PLAN)

    def broken():
        yield next(frames_of(PLAN, world))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_bag(tmp_path / "bag", PLAN, world, broken()))
    assert not list(tmp_path.iterdir())


def test_the_camera_matrix_is_the_renderer_s():
    from vl4ad_model.scenes.renderer import look_at, perspective

    world = make_drive(PLAN)
    matrix = camera_matrix(world, 96, 160)
    view = look_at(world.camera.position, world.camera.target, world.camera.roll)
    points = np.array([[0.5, 8, 0.3, 1], [-2, 20, 1.5, 1], [1, 12, 0, 1.0]])
    in_camera = (points @ view.T)[:, :3] * (1, -1, -1)  # OpenGL looks along -z with y up; ROS along z with y down
    pixels = (in_camera @ matrix.T)[:, :2] / in_camera[:, 2:]
    clip = points @ (perspective(world.camera.horizontal_fov, 160 / 96) @ view).T
    across, down = clip[:, 0] / clip[:, 3], -clip[:, 1] / clip[:, 3]
    assert np.allclose(pixels, np.stack(((across + 1) * 80 - 0.5, (down + 1) * 48 - 0.5), axis=1))


def test_a_drive_is_steady_and_moves(rendering):
    plan = DrivePlan(seed=5, seconds=1.0, rate=8, height=96, width=160, hazards=("sofa",))
    world = make_drive(plan)
    frames = list(frames_of(plan, world))
    for one, next_one in pairwise(frames):
        assert (one.labels != next_one.labels).mean() < 0.12  # 0.6 m on
        assert np.abs(one.rgb.mean(axis=(0, 1)) - next_one.rgb.mean(axis=(0, 1))).max() < 4  # no flicker
    assert (frames[0].labels != frames[-1].labels).mean() > 0.05
    assert not np.array_equal(frames[0].rgb, next(iter(frames_of(plan, make_drive(DrivePlan(seed=6, height=96, width=160))))).rgb)
    names = {world.hazards[int(number) - 99][0] for number in np.unique(frames[0].labels) if number >= 100}
    assert names == {"sofa"}


def _stamp(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_the_demo_bag_shows_a_tyre_and_a_sofa_in_both_halves():
    bag = DATA / "demo_bag"
    assert sum(path.stat().st_size for path in bag.iterdir()) <= 8e6
    found = messages(bag)
    legend = json.loads((bag / "hazards.json").read_text())["hazards"]
    count = len(found[IMAGE_TOPIC])
    assert 100 <= count <= 200
    assert len(found[LABEL_TOPIC]) == len(found[INFO_TOPIC]) == count
    seconds = (found[IMAGE_TOPIC][-1][0] - found[IMAGE_TOPIC][0][0]) / 1e9
    assert 10 <= seconds <= 16
    shown = {half: {"tyre": 0, "sofa": 0} for half in (0, 1)}
    for index in range(count):
        assert len({_stamp(found[topic][index][1]) for topic in found}) == 1
        labels = found[LABEL_TOPIC][index][1].data
        values, pixels = np.unique(labels[labels >= 100], return_counts=True)
        for value, area in zip(values, pixels, strict=True):
            name = legend[str(value)]["name"]
            if area >= 200 and name in ("tyre", "sofa"):
                shown[index >= count // 2][name] += 1
    assert all(frames >= 10 for half in shown.values() for frames in half.values()), shown


def test_the_evaluation_set_is_small_whole_and_balanced():
    folder = DATA / "evaluation"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    names, classes, frames = {"seen": set(), "held_out": set(), "quiet": set()}, np.zeros(19, int), 0
    for split in names:
        infos = sorted((folder / split / "frames").glob("*.json"))
        frames += len(infos)
        for path in infos:
            info = json.loads(path.read_text())
            assert info["seed"] >= 900_000  # training and validation use others
            assert info["split"] == split
            with Image.open(folder / split / "images" / f"{path.stem}.jpg") as image:
                assert image.size == (640, 384)
            with Image.open(folder / split / "labels" / f"{path.stem}.png") as image:
                labels = np.asarray(image)
            counts = np.bincount(labels.ravel(), minlength=256)
            classes += counts[:19] >= 300
            assert {str(n): int(counts[n]) for n in range(19, 256) if counts[n]} == {
                number: hazard["pixels"] for number, hazard in info["hazards"].items()
            }
            assert {hazard["split"] for hazard in info["hazards"].values()} <= {split}
            names[split] |= {hazard["name"] for hazard in info["hazards"].values() if hazard["kind"] == "procedural"}
    assert frames <= 60
    assert names == {"seen": set(SEEN), "held_out": set(HELD_OUT), "quiet": set()}
    assert classes.min() >= 4
