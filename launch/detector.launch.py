"""The detector, with the transport for large images, and RViz or Foxglove where they are wanted and installed.

ros2 launch vl4ad_ros detector.launch.py image:=/camera/image_raw
ros2 launch vl4ad_ros detector.launch.py cameras:="[front, left]" image_transport:=compressed rviz:=true
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from vl4ad_ros import transport, viewer_layouts

ARGUMENTS = {
    "image": ("image", "Image topic of the only camera (with image_transport:=compressed its /compressed is read)."),
    "cameras": ("", "Names of several cameras, '[front, left]': reads <name>/image, publishes ~/<name>/..."),
    "image_transport": ("", "raw or compressed."),
    "model": ("", "Model name (see 'vl4ad models list') or folder."),
    "engine": ("", "auto, torch, onnx, openvino or tensorrt."),
    "device": ("", "auto, cpu, cuda or cuda:N."),
    "params_file": ("", "YAML file of parameters; empty = config/detector.yaml of this package."),
    "namespace": ("", "Namespace of the node."),
    "use_sim_time": ("", "true while a bag is played with --clock; empty = what the parameter file says, else false."),
    "large_images": ("true", "Set the Fast DDS profile for images of 1280x720 and more (for the processes started here only)."),
    "rviz": ("false", "Also start RViz with a layout for the outputs."),
    "foxglove": ("false", "Also start foxglove_bridge; the layout is config/foxglove_layout.json."),
}
YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")
PARAMETERS = ("image_transport", "model", "engine", "device")
"""Arguments that are parameters of the node: given ones win over the file's."""


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=_actions)])


def _actions(context: LaunchContext) -> list:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    share = Path(get_package_share_directory("vl4ad_ros"))
    given = {name: values[name] for name in PARAMETERS if values[name]}
    if values["use_sim_time"]:
        given["use_sim_time"] = _is_true(values["use_sim_time"])
    if values["cameras"]:
        given["cameras"] = _cameras(values["cameras"])
    if values["params_file"] and not Path(values["params_file"]).is_file():
        # launch_ros would only warn, and the node start with other words than it was given.
        raise RuntimeError(f"params_file:={values['params_file']} is no file")
    cameras = given.get("cameras") or (viewer_layouts.cameras_in(Path(values["params_file"])) if values["params_file"] else [])
    if cameras and values["image"] != "image":
        raise RuntimeError("image:= is for one camera; with several each reads <name>/image: remap at the camera drivers")
    environment = transport.large_image_environment() if _is_true(values["large_images"]) else {transport.SWITCH: "0"}
    detector = Node(
        package="vl4ad_ros",
        executable="detector",
        name="vl4ad_detector",
        namespace=values["namespace"],
        parameters=[values["params_file"] or str(share / "config" / "detector.yaml"), given],
        remappings=[("image", values["image"])] if values["image"] != "image" else [],
        additional_env=environment,
        output="screen",
        emulate_tty=True,
    )
    actions = [detector]
    if _is_true(values["rviz"]):
        layout = ["-d", _layout(share / "config" / "detector.rviz", values["namespace"], cameras)]
        actions.append(_if_installed("rviz2", "rviz2", arguments=layout, additional_env=environment))
    if _is_true(values["foxglove"]):
        layout = _layout(share / "config" / "foxglove_layout.json", values["namespace"], cameras)
        bridge = _if_installed("foxglove_bridge", "foxglove_bridge", additional_env=environment)
        actions.append(bridge)
        if isinstance(bridge, Node):
            actions.append(LogInfo(msg=f"Foxglove: connect to ws://localhost:8765 and import {layout}"))
    return actions


def _layout(committed: Path, namespace: str, cameras: list[str]) -> str:
    """One that shows the topics of this detector."""
    folder = Path(tempfile.mkdtemp(prefix="vl4ad-layout-")) if namespace or cameras else committed.parent
    return str(viewer_layouts.layout_for(committed, folder, namespace=namespace, cameras=cameras))


def _if_installed(package: str, executable: str, **arguments):
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return LogInfo(msg=f"{package} is not installed: sudo apt install ros-$ROS_DISTRO-{package.replace('_', '-')}")
    return Node(package=package, executable=executable, output="screen", **arguments)


def _cameras(text: str) -> list[str]:
    try:
        cameras = yaml.safe_load(text)
    except yaml.YAMLError:
        cameras = None
    cameras = [cameras] if isinstance(cameras, str) else cameras
    if not isinstance(cameras, list) or not all(isinstance(camera, str) for camera in cameras):
        raise RuntimeError(f'cameras:={text} is no list of names: write "cameras:=[front, left]"')
    return cameras


def _is_true(text: str) -> bool:
    given = text.strip().lower()
    if given not in YES + NO:
        raise RuntimeError(f"'{text}' is neither true nor false")
    return given in YES
