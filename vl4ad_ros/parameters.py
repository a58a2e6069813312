"""Every parameter of the node in one table: default, meaning, allowed values, and how a value becomes settings.

Imports no ROS until `declare`, so that the command line and the tests can read the table.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl4ad_model.choices import CLASSIFIERS, SCORINGS
from vl4ad_model.detections import MIN_AREA
from vl4ad_model.engines import ENGINES, PRECISIONS
from vl4ad_model.errors import Vl4adError, VocabularyError, did_you_mean
from vl4ad_model.ignore_mask import IgnoreMask
from vl4ad_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.parameter import Parameter


class ParameterError(Vl4adError):
    """A parameter's value is not usable; the message names the parameter and what is allowed."""


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter.

    Attributes:
        default: its type is the parameter's.
        description: for `ros2 param describe`, one sentence.
        read_only: set once, when the node starts.
        choices: allowed strings; empty = any.
        minimum, maximum: range of a number.
    """

    name: str
    default: Any
    description: str
    read_only: bool = False
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf

    @property
    def dynamic(self) -> bool:
        """Takes a value of any type: `normalized` brings it into shape, and what is wrong is said in our words, not rclpy's."""
        return not self.read_only


AUTOMATIC = "auto"

SPECS: tuple[ParameterSpec, ...] = (
    ParameterSpec(
        "hazard_prompts",
        [],
        "Hazards in words, beside those of the vocabulary file: a list, each entry with its alternatives separated by '|'. "
        "A bare string is one hazard; [] or [''] is none.",
    ),
    ParameterSpec("vocabulary_file", "", "YAML file with the known classes; empty = the 19 Cityscapes classes."),
    ParameterSpec("merge_classes", True, "Score the known classes of one superclass as one; labels stay apart."),
    ParameterSpec(
        "classifier",
        AUTOMATIC,
        "Which branch classifies masks; auto = what the model was made for.",
        choices=(AUTOMATIC, *CLASSIFIERS),
    ),
    ParameterSpec(
        "scoring",
        AUTOMATIC,
        "Anomaly score: max is VL4AD's, 1 - the largest p of a known class; normalized is the part of the masks' confidence at a "
        "pixel that goes to no known class; auto = what suits the model.",
        choices=(AUTOMATIC, *SCORINGS),
    ),
    ParameterSpec(
        "anomaly_threshold",
        0.5,
        "anomaly_mask is 255 where the score is above this, and hazards has areas there.",
        minimum=-1e3,
        maximum=1e3,
    ),
    ParameterSpec(
        "ignore_mask",
        "",
        "Image file that is white where nothing counts, such as the vehicle's own bonnet: void there, and no anomaly. "
        "{camera} in it stands for the camera's name; empty = none.",
    ),
    ParameterSpec(
        "void_anomalies",
        False,
        "Write void (255) into segmentation where the score is above anomaly_threshold and no hazard gave its name, instead of the "
        "known class that fits least badly.",
    ),
    ParameterSpec(
        "min_hazard_area",
        MIN_AREA,
        "Smallest area in hazards and detections, as a share of the image.",
        minimum=0.0,
        maximum=1.0,
    ),
    ParameterSpec(
        "min_hazard_images",
        1,
        "Images in which a thing must have been seen to be in hazards and detections: with 2 or 3, far fewer false alarms, each of "
        "the others one or two images later.",
        minimum=1,
        maximum=100,
    ),
    ParameterSpec(
        "publish_resolution",
        "input",
        "Size of the output images: the camera image's, or the one the network saw (cheaper).",
        choices=("input", "network"),
    ),
    ParameterSpec("max_rate", 0.0, "Maximum images per second and camera; 0 = as many as possible.", minimum=0.0, maximum=1000.0),
    ParameterSpec("model", "tiny", "Model name (see 'vl4ad models list') or a folder with config.json.", read_only=True),
    ParameterSpec("engine", "auto", "What runs the network; auto = the first that works here.", read_only=True, choices=ENGINES),
    ParameterSpec("device", "auto", "auto, cpu, cuda or cuda:N.", read_only=True),
    ParameterSpec(
        "precision",
        "fp32",
        "Number format of the network; fp16 for GPUs, bf16 for OpenVINO on CPUs that have it.",
        read_only=True,
        choices=PRECISIONS,
    ),
    ParameterSpec(
        "network_size",
        [0, 0],
        "[height, width] the network works at, multiples of 32; [0, 0] = the model's own.",
        read_only=True,
    ),
    ParameterSpec(
        "parallel_images",
        1,
        "Images worked on at once, published in order: more images per second where several cores, or several cameras, keep them "
        "busy, but each takes longer.",
        read_only=True,
        minimum=1,
        maximum=16,
    ),
    ParameterSpec(
        "cameras",
        [""],
        "Names of several cameras: reads <name>/image, publishes ~/<name>/...; [''] = one camera on 'image'.",
        read_only=True,
    ),
    ParameterSpec("image_transport", "raw", "Type of the input images.", read_only=True, choices=("raw", "compressed")),
    ParameterSpec(
        "qos_reliability",
        "auto",
        "Reliability of the input; auto = reliable unless a publisher of the topic offers best effort only.",
        read_only=True,
        choices=("auto", "reliable", "best_effort"),
    ),
    ParameterSpec(
        "autostart",
        True,
        "Configure and activate at start; false = wait for a lifecycle manager.",
        read_only=True,
    ),
)
BY_NAME = {spec.name: spec for spec in SPECS}


@dataclass(frozen=True)
class Settings:
    """The values in use. Immutable: a frame takes one whole set with it."""

    hazard_prompts: tuple[str, ...]
    vocabulary_file: str
    merge_classes: bool
    classifier: str
    scoring: str
    anomaly_threshold: float
    ignore_mask: str
    void_anomalies: bool
    min_hazard_area: float
    min_hazard_images: int
    publish_resolution: str
    max_rate: float
    model: str
    engine: str
    device: str
    precision: str
    network_size: tuple[int, int] | None
    parallel_images: int
    cameras: tuple[str, ...]
    image_transport: str
    qos_reliability: str
    autostart: bool

    def same_words(self, other: Settings) -> bool:
        """Whether scoring is the same."""
        words = ("hazard_prompts", "vocabulary_file", "merge_classes", "classifier", "scoring")
        return all(getattr(self, name) == getattr(other, name) for name in words)

    @property
    def classifier_or_none(self) -> str | None:
        return None if self.classifier == AUTOMATIC else self.classifier

    @property
    def scoring_or_none(self) -> str | None:
        return None if self.scoring == AUTOMATIC else self.scoring

    def read_vocabulary(self) -> Vocabulary:
        """The known classes and hazards of the file, without `hazard_prompts`.

        Raises:
            VocabularyError: the file is not usable.
        """
        file = os.path.expanduser(self.vocabulary_file)
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for, and the node with it
            raise VocabularyError(f"vocabulary file {file}: not a file")
        return Vocabulary.from_yaml(self.vocabulary_file) if self.vocabulary_file else Vocabulary.cityscapes()

    def read_ignore_masks(self) -> dict[str, IgnoreMask]:
        """By camera ("" where there is one); empty where nothing is ignored.

        Raises:
            ImageError: a file is not usable.
        """
        if not self.ignore_mask:
            return {}
        return {camera: IgnoreMask.read(self.ignore_mask.replace("{camera}", camera)) for camera in self.cameras or ("",)}


def prompts_from(value: Any) -> tuple[str, ...]:
    """Hazard prompts from whatever arrives: a list of strings, a bare string, an empty array of any type, or [''], which is
    how many ROS nodes write an empty list.

    Raises:
        ParameterError: numbers, bools or bytes.
    """
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        items = list(value)
        if all(isinstance(item, str) for item in items):
            return () if items == [""] else tuple(items)
        wrong = next(item for item in items if not isinstance(item, str))
    else:
        wrong = value
    raise ParameterError(
        f"hazard_prompts is a list of strings, but {wrong!r:.40} is {type(wrong).__name__}: put quotes around it, "
        "\"['tyre|tire', 'cardboard box']\""
    )


def checked(name: str, value: Any) -> Any:
    """One value in the form `Settings` holds.

    Raises:
        ParameterError: unknown name, wrong type, or outside what is allowed.
    """
    spec = BY_NAME.get(name)
    if spec is None:
        raise ParameterError(f"no parameter '{name}': known are {', '.join(BY_NAME)}")
    if name == "hazard_prompts":
        return prompts_from(value)
    if isinstance(spec.default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(spec.default, list):
        return _sides(value) if name == "network_size" else _camera_names(value)
    if type(value) is not type(spec.default):
        raise ParameterError(f"{name} must be {_KINDS[type(spec.default)]}, not {value!r:.40}")
    if spec.choices and value not in spec.choices:
        raise ParameterError(f"{name} '{value:.40}' is unknown: use {', '.join(spec.choices)}")
    if isinstance(value, (int, float)) and not spec.minimum <= value <= spec.maximum:
        raise ParameterError(f"{name} must be {spec.minimum:g} to {spec.maximum:g}, not {value:g}")
    return value


_KINDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def _items(value: Any) -> list[Any]:
    """A list, or an array of rclpy's; what is neither as a list of one."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if several or hasattr(value, "tolist") else [value]


def _sides(value: Any) -> tuple[int, int] | None:
    sides = _items(value)
    if sides in ([], [0, 0]):
        return None
    given = sides[0] if len(sides) == 1 else sides
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= 16384 and side % 32 == 0 for side in sides):
        raise ParameterError(f"network_size is [height, width] in pixels, multiples of 32, or [0, 0], not {given!r:.60}")
    return sides[0], sides[1]


_CAMERA_NAME = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
_CAMERA_CHARACTERS = 100
"""A topic has 247 at most, with the namespace and what is published."""


def _camera_names(value: Any) -> tuple[str, ...]:
    given = _items(value)
    for name in given:
        if not isinstance(name, str):
            raise ParameterError(f"cameras is a list of names, \"['front', 'left']\", but {name!r:.40} is {type(name).__name__}")
    names = [name for name in (each.strip().strip("/") for each in given) if name]
    for name in names:
        if not _CAMERA_NAME.fullmatch(name):
            raise ParameterError(f"camera '{name:.40}' is no ROS name: letters, digits, _ and / only")
        if len(name) > _CAMERA_CHARACTERS:
            raise ParameterError(f"camera '{name:.40}...' has {len(name)} characters, at most {_CAMERA_CHARACTERS} are allowed")
        if names.count(name) > 1:
            raise ParameterError(f"camera '{name}' is listed twice")
    return tuple(names)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """All settings; what is missing has its default.

    Raises:
        ParameterError: a value is not allowed.
    """
    return Settings(**{spec.name: checked(spec.name, values.get(spec.name, spec.default)) for spec in SPECS})


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with some values changed; names that are not ours are left alone.

    Raises:
        ParameterError: a value is not allowed.
    """
    ours = {name: checked(name, value) for name, value in values.items() if name in BY_NAME}
    return dataclasses.replace(settings, **ours)


# --- with rclpy -----------------------------------------------------------------------------------------------------------


def declare(node: Node) -> None:
    """Declare every parameter, with description, range and constraints; values given at start are taken as they are."""
    from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
    from rclpy.parameter import Parameter

    for spec in SPECS:
        described = f"{spec.description} Default: {json.dumps(spec.default)}."
        descriptor = ParameterDescriptor(description=described, read_only=spec.read_only)
        if spec.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(spec.choices)
        if spec.name == "hazard_prompts":
            descriptor.additional_constraints = "a list of strings, a string, or []"
        if spec.dynamic or isinstance(spec.default, list):
            # "[]" arrives as an empty bool array, a bare word as a string, 1 as an integer: were the parameter statically typed,
            # they would be rejected before any callback of ours runs.
            descriptor.dynamic_typing = True
        if math.isfinite(spec.minimum) and isinstance(spec.default, int):
            # As text: rclpy's own refusal of a range would be a second way of saying it.
            descriptor.additional_constraints = f"{spec.minimum:g} to {spec.maximum:g}"
        elif math.isfinite(spec.minimum):
            descriptor.floating_point_range = [FloatingPointRange(from_value=spec.minimum, to_value=spec.maximum, step=0.0)]
        if node.declare_parameter(spec.name, spec.default, descriptor).type_ == Parameter.Type.NOT_SET:
            # "[]" of a command line or a parameter file has no type, so that rclpy takes it for no value at all.
            if not isinstance(spec.default, list):
                raise ParameterError(f"{spec.name} must be {_KINDS[type(spec.default)]}, not []")
            if not spec.read_only:
                node.undeclare_parameter(spec.name)
                node.declare_parameter(spec.name, spec.default, descriptor, ignore_override=True)
    # A dynamic parameter's type is what it was last set to: bring those given at start into their own form.
    node.set_parameters(
        normalized(Parameter(spec.name, value=node.get_parameter(spec.name).value) for spec in SPECS if spec.dynamic)
    )


def unknown_at_start(node: Node) -> list[str]:
    """A line for every parameter given at the start that the node does not have: rclpy ignores them."""
    given = getattr(node, "_parameter_overrides", {})  # rclpy has no public way to ask
    names = [name for name in given if not node.has_parameter(name) and not name.startswith("qos_overrides.")]
    return [f"no parameter '{name}', it is ignored: {did_you_mean(name, BY_NAME)}" for name in names]


def files_for_others(arguments: Sequence[str], node: str) -> list[str]:
    """A line for every parameter file on the command line of which nothing is for this node: rcl takes nothing of it, silently.

    Args:
        arguments: of the command line.
        node: the node's full name.
    """
    import yaml

    lines = []
    for flag, path in itertools.pairwise(arguments):
        if flag != "--params-file":
            continue
        try:
            with open(path, encoding="utf-8") as file:
                sections = [name for name, _ in _sections(yaml.safe_load(file))]
        except (OSError, ValueError, yaml.YAMLError):  # rcl has said so, or reads more than we do
            continue
        if sections and not any(_names(section, node) for section in sections):
            lines.append(f"{path} sets parameters of {', '.join(sections)}, and none of {node}: write '/**:' to mean any node")
    return lines


def cameras_in(path: Path, node: str) -> list[str]:
    """The `cameras` that a parameter file gives a node; empty where it names none, or cannot be read (the node says why).

    Args:
        node: its full name.
    """
    import yaml

    found: tuple[str, ...] = ()
    try:
        for section, inside in _sections(yaml.safe_load(path.read_text(encoding="utf-8"))):
            if _names(section, node) and "cameras" in inside:
                found = _camera_names(inside["cameras"])
    except (OSError, ValueError, yaml.YAMLError, TypeError, ParameterError):
        return []
    return list(found)


def section(name: str, values: Mapping[str, Any]) -> str:
    """YAML that gives a node, or /** any node, these values. Strings are quoted: rcl reads more words as numbers than others do."""
    import yaml

    class Quoting(yaml.SafeDumper):
        pass

    Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
    return yaml.dump({name: {"ros__parameters": dict(values)}}, Dumper=Quoting, allow_unicode=True)


def _sections(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Full names, which may have wildcards, of the nodes that a parameter file is about, and what it gives them."""
    for name, inside in content.items() if isinstance(content, Mapping) else ():
        full = "/".join((above, str(name).strip("/")))
        if isinstance(inside, Mapping) and "ros__parameters" in inside:
            yield full, inside["ros__parameters"]
        else:
            yield from _sections(inside, full)


def _names(section: str, node: str) -> bool:
    pattern = re.escape(section).replace(r"/\*\*", "(/.*)?").replace(r"\*", "[^/]*")
    return re.fullmatch(pattern, node) is not None


def normalized(parameters: Iterable[Parameter]) -> list[Parameter]:
    """What people write, in the parameter's own type: a bare string as a list, an integer as a float. Others unchanged."""
    from rclpy.parameter import Parameter

    result = []
    for parameter in parameters:
        spec = BY_NAME.get(parameter.name)
        if spec is not None and spec.dynamic and parameter.type_ != Parameter.Type.NOT_SET:
            try:
                value = checked(parameter.name, parameter.value)
            except ParameterError:
                pass  # the next callback says what is wrong
            else:
                if spec.name == "hazard_prompts":
                    parameter = Parameter(spec.name, Parameter.Type.STRING_ARRAY, list(value))
                else:
                    parameter = Parameter(spec.name, value=value)
        result.append(parameter)
    return result


def values_of(node: Node) -> dict[str, Any]:
    """The values the node has now; those without one are left out."""
    values = {spec.name: node.get_parameter(spec.name).value for spec in SPECS}
    return {name: value for name, value in values.items() if value is not None}
