"""The detector, with the transport for large images, and RViz or Foxglove where they are wanted and installed.

ros2 launch vl4ad_ros detector.launch.py image:=/camera/image_raw
ros2 launch vl4ad_ros detector.launch.py image:=/camera/image_raw hazards:="tyre|tire;cardboard box" device:=cuda precision:=fp16
ros2 launch vl4ad_ros detector.launch.py cameras:="[front, left]" image:="[/cam0/image_raw, /cam1/image_raw]" rviz:=true
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.logging import launch_config
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from vl4ad_ros import parameters as node_parameters
from vl4ad_ros import transport, viewer_layouts

ARGUMENTS = {
    "image": (
        "image",
        "Image topic; '[/a, /b]': one for each camera. With image_transport:=compressed its /compressed is read.",
    ),
    "cameras": ("", "Names of several cameras, '[front, left]': reads <name>/image or what image:= says, publishes ~/<name>/..."),
    "image_transport": ("", "raw or compressed."),
    "model": ("", "Model name (see 'vl4ad models list') or folder."),
    "engine": ("", "auto, torch, onnx, openvino or tensorrt."),
    "device": ("", "auto, cpu, cuda or cuda:N."),
    "precision": ("", "fp32; fp16 for a GPU; bf16 for OpenVINO on a CPU that has it."),
    "network_size": ("", "[height, width] the network works at, multiples of 32; compiled engines of fcclip-* need one."),
    "parallel_images": ("", "Images worked on at once, 1 to 16: more per second, each later."),
    "hazards": ("", "Hazards in words, separated by ';': \"tyre|tire;cardboard box\". They can be changed while the node runs."),
    "params_file": (
        "",
        "YAML file of parameters, or several, '[mine.yaml, calibrated.yaml]': the later wins; empty = defaults.",
    ),
    "namespace": ("", "Namespace of the node."),
    "use_sim_time": ("", "true while a bag is played with --clock; empty = what the parameter file says, else false."),
    "large_images": (
        "true",
        "Set the profiles of Fast DDS or CycloneDDS for images of 1280x720 and more (for the processes started here only).",
    ),
    "rviz": ("false", "Also start RViz with a layout for the outputs."),
    "foxglove": ("false", "Also start foxglove_bridge; the layout is config/foxglove_layout.json."),
}
YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")
PARAMETERS = ("image_transport", "model", "engine", "device", "precision")
"""Arguments that are parameters of the node: given ones win over the file's."""


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=_actions)])


def _actions(context: LaunchContext) -> list:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    share = Path(get_package_share_directory("vl4ad_ros"))
    files = _files(values["params_file"])
    given = {name: values[name] for name in PARAMETERS if values[name]}
    if values["use_sim_time"]:
        given["use_sim_time"] = _is_true(values["use_sim_time"])
    if values["network_size"]:
        given["network_size"] = _list("network_size", values["network_size"], int, "[384, 640]")
    if values["parallel_images"]:
        given["parallel_images"] = _whole_number("parallel_images", values["parallel_images"])
    if values["hazards"]:
        given["hazard_prompts"] = [part.strip() for part in values["hazards"].split(";") if part.strip()]
    if values["cameras"]:
        given["cameras"] = _list("cameras", values["cameras"], str, "[front, left]")
    node = _full_name(values["namespace"])
    named = [node_parameters.cameras_in(file, node) for file in files]
    cameras = given.get("cameras") or next(filter(None, reversed(named)), [])
    environment = transport.large_image_environment() if _is_true(values["large_images"]) else {transport.SWITCH: "0"}
    detector = Node(
        package="vl4ad_ros",
        executable="detector",
        name="vl4ad_detector",
        namespace=values["namespace"],
        parameters=[*map(str, files or [share / "config" / "detector.yaml"]), *_winning(given, node)],
        remappings=_remappings(values["image"], cameras),
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
    folder = _new_folder("vl4ad-layout-") if namespace or cameras else committed.parent
    return str(viewer_layouts.layout_for(committed, folder, namespace=namespace, cameras=cameras))


def _if_installed(package: str, executable: str, **arguments):
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return LogInfo(msg=f"{package} is not installed: sudo apt install ros-$ROS_DISTRO-{package.replace('_', '-')}")
    return Node(package=package, executable=executable, output="screen", **arguments)


def _whole_number(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise RuntimeError(f"{name}:={text} is no whole number, such as 2")
    return int(text)


def _full_name(namespace: str) -> str:
    return "/".join(["", *filter(None, namespace.split("/")), "vl4ad_detector"])


def _winning(given: dict, node: str) -> list[str]:
    """A parameter file, if any, of what was given as arguments.

    launch_ros would put them under /** only, and lose them to a file that names the node, as `ros2 param dump` writes one.
    """
    if not given:
        return []
    path = _new_folder("vl4ad-arguments-") / "arguments.yaml"
    # One after the other: rcl reads no anchors, which a dump of both at once would have.
    path.write_text("".join(node_parameters.section(name, given) for name in ("/**", node)), encoding="utf-8")
    return [str(path)]


def _new_folder(prefix: str) -> Path:
    """Beside this launch's logs: kept, and cleared away, with them."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=launch_config.log_dir))


def _files(text: str) -> list[Path]:
    names = [text] if text else []
    if text.strip().startswith("["):
        names = _list("params_file", text, str, "[mine.yaml, calibrated.yaml]")
    files = [Path(os.path.expanduser(name)) for name in names]  # no shell does that after params_file:=
    for file in files:
        if not file.is_file():
            # launch_ros would only warn, and the node start with other words than it was given.
            raise RuntimeError(f"params_file:={file} is no file")
    return files


def _remappings(image: str, cameras: list[str]) -> list[tuple[str, str]]:
    """What the node reads from where the drivers publish it."""
    if image == ARGUMENTS["image"][0]:
        return []
    if not cameras and not image.strip().startswith("["):
        return [("image", image)]
    topics = _list("image", image, str, "[/front/image_raw, /left/image_raw]")
    if not cameras:
        raise RuntimeError(f'image:={image} lists topics: name a camera for each, "cameras:=[front, left]"')
    if len(topics) != len(cameras):
        raise RuntimeError(
            f'image:={image} is no topic for each of {", ".join(cameras)}: write "image:=[/a/image_raw, /b/image_raw]"'
        )
    return [(f"{camera}/image", topic) for camera, topic in zip(cameras, topics, strict=True)]


def _list(name: str, text: str, kind: type, example: str) -> list:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise RuntimeError(f'{name}:={text} is no list of {"names" if kind is str else "numbers"}: write "{name}:={example}"')
    return values


def _is_true(text: str) -> bool:
    given = text.strip().lower()
    if given not in YES + NO:
        raise RuntimeError(f"'{text}' is neither true nor false")
    return given in YES
