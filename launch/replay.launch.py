"""The detector and the live evaluation of a bag; everything ends when the evaluation does.

ros2 launch vl4ad_ros replay.launch.py bag:=drive json:=live.json
ros2 launch vl4ad_ros replay.launch.py bag:=drive rate:=1.0 report:=out model:=fcclip-convnext-large
"""

from __future__ import annotations

import os

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from vl4ad_ros import transport

ARGUMENTS = {
    "bag": ("", "The rosbag2 recording, with images and labels."),
    "rate": ("", "Playback speed relative to the recording; empty = as fast as the detector answers, no frame lost."),
    "model": ("tiny", "Model name or folder."),
    "engine": ("auto", "auto, torch, onnx, openvino or tensorrt."),
    "hazards": ("", "Hazards in words, separated by ';': \"tyre|tire;cardboard box\"."),
    "image_topic": ("", "Image topic of the bag; empty = the only one that can be meant."),
    "label_topic": ("", "Label topic of the bag; empty = the only one whose name says so."),
    "label_values": ("", "anomaly or classes, what the labels' values mean; empty = as they look."),
    "tolerance": ("", "Seconds the stamps of an image and its label may differ."),
    "threshold": ("", "Score threshold for the components; empty = the one with the best F1."),
    "track": ("anomaly", "anomaly or obstacle."),
    "json": ("", "Write all numbers there."),
    "report": ("", "Folder for the report page."),
}


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=_actions)])


def _actions(context: LaunchContext) -> list:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if not values["bag"]:
        raise RuntimeError("say which bag: bag:=FOLDER")
    for name in ("bag", "json", "report"):
        values[name] = os.path.expanduser(values[name])  # no shell does that after bag:=
    arguments = [values["bag"]]
    for name in ARGUMENTS:
        if values[name] and name not in ("bag", "hazards"):
            arguments += [f"--{name.replace('_', '-')}", values[name]]
    for hazard in filter(None, (part.strip() for part in values["hazards"].split(";"))):
        arguments += ["--hazard", hazard]
    # The evaluation starts the detector itself: so it knows the image transport the bag needs.
    evaluation = Node(
        package="vl4ad_ros",
        executable="replay_evaluation",
        arguments=arguments,
        # No terminal: launch would print a line for every step of a progress bar.
        additional_env={**transport.large_image_environment(), "PYTHONUNBUFFERED": "1"},
        output="screen",
    )
    return [evaluation, RegisterEventHandler(OnProcessExit(target_action=evaluation, on_exit=_end))]


def _end(event: ProcessExited, context: LaunchContext) -> EmitEvent:
    """The launch ends as the evaluation did: ros2 launch has status 1 where that failed."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(f"the evaluation ended with status {event.returncode}")
    return EmitEvent(event=Shutdown(reason="the evaluation is done"))
