"""Rendered drives as rosbag2 files (mcap): camera, exact labels and calibration, with equal stamps."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vl4ad_model.errors import MissingDependencyError, SceneError
from vl4ad_model.image_files import write_bytes
from vl4ad_model.scenes.drive import DriveFrame, DrivePlan
from vl4ad_model.scenes.hazards import BY_NAME
from vl4ad_model.scenes.world import World

IMAGE_TOPIC, LABEL_TOPIC, INFO_TOPIC = "/camera/image/compressed", "/camera/labels", "/camera/camera_info"
FRAME_ID = "camera"
START = 1_700_000_000  # seconds; a fixed date, so that the same plan gives the same bag
LEGEND = "hazards.json"


def camera_matrix(world: World, height: int, width: int) -> np.ndarray:
    """3x3 pinhole matrix in pixels; the renderer has no distortion and its axis goes through the middle."""
    focal = width / 2 / np.tan(world.camera.horizontal_fov / 2)
    return np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1.0]])


def write_bag(path: Path, plan: DrivePlan, world: World, frames: Iterable[DriveFrame], *, quality: int = 82) -> Iterator[int]:
    """Write a drive; yields after every frame how many are written. The bag appears at `path` only when it is whole.

    Topics: CompressedImage (JPEG), Image mono8 with the labels, CameraInfo. Beside the mcap, `hazards.json` says what labels
    from 100 on are. Chunks are compressed with zstd, which makes the label images small.

    Raises:
        SceneError: the path exists or cannot be written.
        MissingDependencyError: rosbags is not installed.
    """
    try:
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError:
        raise MissingDependencyError("rosbags", "scenes", "writing bags") from None
    path = Path(path)
    if path.exists():
        raise SceneError(f"{path} exists already: name another place or remove it")
    store = get_typestore(Stores.ROS2_HUMBLE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise SceneError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        # version 8 of the metadata is what Humble to Rolling all read
        writer = Writer(scratch / path.name, version=8, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        with writer:
            connections = {
                topic: writer.add_connection(topic, message, typestore=store)
                for topic, message in (
                    (IMAGE_TOPIC, "sensor_msgs/msg/CompressedImage"),
                    (LABEL_TOPIC, "sensor_msgs/msg/Image"),
                    (INFO_TOPIC, "sensor_msgs/msg/CameraInfo"),
                )
            }
            for count, frame in enumerate(frames, start=1):
                stamp = START * 10**9 + round(frame.seconds * 1e9)
                for topic, message in _messages(store.types, plan, world, frame, stamp, quality).items():
                    writer.write(connections[topic], stamp, store.serialize_cdr(message, message.__msgtype__))
                yield count
        write_bytes(scratch / path.name / LEGEND, json.dumps(legend(plan, world), indent=1).encode())
        (scratch / path.name).replace(path)
    except OSError as error:
        raise SceneError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def legend(plan: DrivePlan, world: World) -> dict:
    """What the labels of a drive mean, and the plan that makes it again."""
    hazards = {
        str(100 + instance - 1): {"name": name, "split": "held_out" if BY_NAME[name].held_out else "seen"}
        for instance, (name, _) in world.hazards.items()
    }
    settings = {"seed": plan.seed, "seconds": plan.seconds, "rate": plan.rate, "speed": plan.speed, "weather": plan.weather}
    return {"labels": "0..18 Cityscapes train ids, 255 ignored, 100.. hazards", "hazards": hazards, "plan": settings}


def _messages(types: dict, plan: DrivePlan, world: World, frame: DriveFrame, stamp: int, quality: int) -> dict:
    from PIL import Image

    height, width = frame.labels.shape
    time = types["builtin_interfaces/msg/Time"](stamp // 10**9, stamp % 10**9)
    header = types["std_msgs/msg/Header"](time, FRAME_ID)
    jpeg = io.BytesIO()
    Image.fromarray(frame.rgb).save(jpeg, "JPEG", quality=quality)
    data = np.frombuffer(jpeg.getvalue(), np.uint8)
    matrix = camera_matrix(world, height, width)
    projection = np.concatenate((matrix, np.zeros((3, 1))), axis=1)
    region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return {
        IMAGE_TOPIC: types["sensor_msgs/msg/CompressedImage"](header, "rgb8; jpeg compressed bgr8", data),
        LABEL_TOPIC: types["sensor_msgs/msg/Image"](header, height, width, "mono8", 0, width, frame.labels.ravel()),
        INFO_TOPIC: types["sensor_msgs/msg/CameraInfo"](
            header, height, width, "plumb_bob", np.zeros(5), matrix.ravel(), np.eye(3).ravel(), projection.ravel(), 0, 0, region
        ),
    }
