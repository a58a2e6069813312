"""The package as pip, colcon and the ros2 commands find it, and a parameters file that agrees with the node."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("vl4ad_model", "vl4ad_ros", "launch", "config", "scripts", "resource")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "README.md")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is installed, so that no build folder appears in the tree."""
    folder = tmp_path_factory.mktemp("source") / "vl4ad_ros"
    for name in SHIPPED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(*command, cwd, timeout=240, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def prefix(source, tmp_path_factory):
    """Where `pip install .` put it."""
    prefix = tmp_path_factory.mktemp("prefix")
    options = ("--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet", "--disable-pip-version-check")
    status, said = run(sys.executable, "-m", "pip", "install", *options, "--prefix", prefix, ".", cwd=source)
    assert status == 0, said
    return prefix


def site_packages(prefix):
    return next(prefix.glob("lib/python3*/site-packages"))


def test_package_xml_names_a_valid_ament_python_package():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.attrib["format"] == "3" and package.findtext("name") == "vl4ad_ros"
    assert package.findtext("export/build_type") == "ament_python"
    parser = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg (comes with colcon) is not installed")
    warnings = []
    parsed = parser.parse_package(str(ROOT / "package.xml"), warnings=warnings)
    parsed.validate()
    assert not warnings and parsed.get_build_type() == "ament_python"


def test_pip_puts_everything_where_ros2_looks(prefix):
    share = prefix / "share/vl4ad_ros"
    assert (prefix / "share/ament_index/resource_index/packages/vl4ad_ros").is_file()
    for name in ("package.xml", "launch/detector.launch.py", "launch/replay.launch.py", "config/detector.yaml"):
        assert (share / name).is_file(), name
    for name in (
        "config/fastdds_large_images.xml",
        "config/cyclonedds_large_images.xml",
        "config/detector.rviz",
        "config/foxglove_layout.json",
    ):
        assert (share / name).is_file(), name
    assert (share / "config/vocabularies/cityscapes.yaml").is_file()
    for name in ("detector", "replay_evaluation"):
        assert (prefix / "lib/vl4ad_ros" / name).stat().st_mode & stat.S_IXUSR
        assert (prefix / "bin" / name).is_file()


def test_the_installed_executable_runs_the_installed_node(prefix, tmp_path):
    pytest.importorskip("rclpy")
    path = os.pathsep.join([str(site_packages(prefix)), os.environ.get("PYTHONPATH", "")])
    status, said = run(
        sys.executable, prefix / "lib/vl4ad_ros/detector", "--ros-args", "-p", "classifier:=best", cwd=tmp_path, PYTHONPATH=path
    )
    assert status == 2 and "classifier 'best' is unknown" in said and "Traceback" not in said, said


@pytest.mark.slow
def test_colcon_sees_builds_and_installs_it(source, tmp_path):
    colcon = shutil.which("colcon") or Path(sys.executable).with_name("colcon")
    if not Path(colcon).exists():
        pytest.skip("colcon is not installed (PyPI: colcon-common-extensions)")
    workspace = tmp_path / "workspace"
    shutil.copytree(source, workspace / "src/vl4ad_ros", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    status, said = run(colcon, "list", "--base-paths", "src", cwd=workspace)
    assert status == 0 and "(ros.ament_python)" in said, said
    status, said = run(colcon, "build", "--base-paths", "src", "--executor", "sequential", cwd=workspace)
    assert status == 0, said
    installed = workspace / "install/vl4ad_ros"
    assert (installed / "share/ament_index/resource_index/packages/vl4ad_ros").is_file()
    assert (installed / "share/vl4ad_ros/launch/detector.launch.py").is_file()
    # What `ros2 run vl4ad_ros` finds; the command line is not on PATH there.
    for name in ("detector", "replay_evaluation", "vl4ad"):
        assert (installed / "lib/vl4ad_ros" / name).stat().st_mode & stat.S_IXUSR


# --- parameters file and layouts --------------------------------------------------------------------------------------------


def test_the_parameters_file_has_every_parameter_with_its_default():
    from vl4ad_ros.parameters import SPECS, settings_from

    values = yaml.safe_load((ROOT / "config/detector.yaml").read_text())["/**"]["ros__parameters"]
    assert list(values) == [spec.name for spec in SPECS]
    assert settings_from(values) == settings_from({})


def test_the_parameters_file_explains_every_parameter():
    lines = (ROOT / "config/detector.yaml").read_text().splitlines()
    for index, line in enumerate(lines):
        if line.startswith("    ") and not line.strip().startswith("#") and ":" in line:
            assert lines[index - 1].strip().startswith("#"), line


@pytest.mark.parametrize(
    ("library", "variables"),
    [
        ("libfastdds.so.3.2", {"FASTDDS_DEFAULT_PROFILES_FILE"}),  # Kilted; it warns of the other name
        ("libfastrtps.so.2.14", {"FASTRTPS_DEFAULT_PROFILES_FILE"}),  # Jazzy; it does not know the other name
    ],
)
def test_each_fast_dds_gets_the_profile_for_large_images_unless_one_is_set(tmp_path, library, variables):
    from vl4ad_ros import transport

    (tmp_path / library).touch()
    found = {"LD_LIBRARY_PATH": str(tmp_path)}
    added = {name: value for name, value in transport.large_image_environment(found).items() if "PROFILES" in name}
    assert set(added) == variables
    assert all(Path(value).name == "fastdds_large_images.xml" and Path(value).is_file() for value in added.values())
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS"):
        assert not any("PROFILES" in key for key in transport.large_image_environment({**found, name: "mine"}))


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, 16 << 20, True),
        ({}, 4 << 20, True),  # it may be the only one that is installed
        ({}, 212992, False),  # most distributions' default: large datagrams would make it worse
        ({}, None, False),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, 16 << 20, False),
        ({"CYCLONEDDS_URI": "mine"}, 16 << 20, False),
        ({"VL4AD_LARGE_IMAGES": "0"}, 16 << 20, False),
    ],
)
def test_cyclone_dds_gets_its_profile_where_the_kernel_gives_such_buffers(tmp_path, monkeypatch, given, limit, expected):
    from vl4ad_ros import transport

    monkeypatch.setattr(transport, "SOCKET_LIMIT", tmp_path / "rmem_max")
    if limit is not None:
        transport.SOCKET_LIMIT.write_text(f"{limit}\n")
    added = transport.large_image_environment(given).get("CYCLONEDDS_URI", "")
    assert bool(added) == expected
    if expected:
        assert added.startswith("file:///") and Path(added.removeprefix("file://")).name == "cyclonedds_large_images.xml"
        assert "SocketReceiveBufferSize" in Path(added.removeprefix("file://")).read_text()
    advice = transport.socket_advice("rmw_cyclonedds_cpp", transport.socket_limit())
    assert ("sysctl -w net.core.rmem_max" in advice) == (limit == 212992)
    assert transport.socket_advice("rmw_fastrtps_cpp", 212992) == ""


def test_the_layouts_show_topics_that_the_node_has():
    from vl4ad_ros.parameters import SPECS

    outputs = {"segmentation", "anomaly_score", "anomaly_mask", "overlay"}
    for name in ("detector.rviz", "foxglove_layout.json"):
        text = (ROOT / "config" / name).read_text()
        shown = {part.split('"')[0].split()[0].rstrip(",") for part in text.split("/vl4ad_detector/")[1:]}
        assert shown and shown <= outputs | {spec.name for spec in SPECS}, shown
        yaml.safe_load(text)


def test_the_layouts_follow_a_namespace_and_several_cameras(tmp_path):
    from vl4ad_ros.viewer_layouts import layout_for

    for name in ("detector.rviz", "foxglove_layout.json"):
        committed = ROOT / "config" / name
        assert layout_for(committed, tmp_path) == committed and not (tmp_path / name).exists()
        cases = (("", ("front", "left", "rear"), "/vl4ad_detector/{}/overlay"), ("/robot/", ("",), "/robot/vl4ad_detector/overlay"))
        for namespace, cameras, topic in cases:
            written = layout_for(committed, tmp_path, namespace=namespace, cameras=list(filter(None, cameras)))
            assert written.parent == tmp_path
            topics = re.findall(r"(/[\w/]*vl4ad_detector/[\w/]+)", written.read_text())
            assert [each for each in topics if each.endswith("overlay")] == [topic.format(camera) for camera in cameras]
            assert all(each.startswith(topic.split("{")[0].removesuffix("overlay")) for each in topics)
    layout = yaml.safe_load(layout_for(committed, tmp_path, cameras=["a", "b"]).read_text())
    assert panels_in(layout["layout"]) == set(layout["configById"]), "every panel is placed, and no other"


def test_the_table_of_parameters_is_the_node_s():
    from vl4ad_ros.parameters import SPECS

    section = (ROOT / "docs/ros.md").read_text(encoding="utf-8").split("\n## Parameters\n")[1].split("\n## ")[0]
    at_runtime, at_start = (re.findall(r"^\| `(\w+)` \| `(.*?)` \|", part, re.M) for part in section.split("read once, at startup"))
    documented = [
        (name, yaml.safe_load(default), read_only)
        for rows, read_only in ((at_runtime, False), (at_start, True))
        for name, default in rows
    ]
    assert documented == [(spec.name, spec.default, spec.read_only) for spec in SPECS]


def test_a_launch_finds_the_cameras_of_a_parameter_file(tmp_path):
    from vl4ad_ros.parameters import cameras_in

    def cameras_of(text, node="/robot/vl4ad_detector"):
        (tmp_path / "mine.yaml").write_text(text)
        return cameras_in(tmp_path / "mine.yaml", node)

    assert cameras_in(ROOT / "config/detector.yaml", "/vl4ad_detector") == []
    given = "{ros__parameters: {cameras: [front, left]}}"
    for text in (
        f"/**: {given}",
        f"/robot/vl4ad_detector: {given}",
        f"robot: {{vl4ad_detector: {given}}}",
        f"/**/vl4ad_detector: {given}",
    ):
        assert cameras_of(text) == ["front", "left"]
    assert cameras_of("/**: {ros__parameters: {cameras: front}}") == ["front"], "as the node takes it"
    assert cameras_of(f"camera_hub: {given}") == [] and cameras_of(f"vl4ad_detector: {given}") == [], "others' cameras"
    for text in ("[", "7", "/**: {ros__parameters: 3}", "/**: {ros__parameters: {cameras: 3}}", ""):
        assert cameras_of(text) == []
    assert cameras_in(tmp_path / "none.yaml", "/vl4ad_detector") == []


def panels_in(node):
    return {node} if isinstance(node, str) else panels_in(node["first"]) | panels_in(node["second"])


def launch_file(name):
    """A launch file as a module."""
    pytest.importorskip("launch_ros", reason="launch_ros is not installed (it is not on PyPI)")
    spec = importlib.util.spec_from_file_location(name, ROOT / f"launch/{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launched(prefix, monkeypatch):
    """The actions of detector.launch.py with arguments, and their context."""
    module = launch_file("detector")
    from launch import LaunchContext

    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{prefix}:{os.environ.get('AMENT_PREFIX_PATH', '')}")

    def with_arguments(**given):
        context = LaunchContext()
        context.launch_configurations.update({name: default for name, (default, _) in module.ARGUMENTS.items()} | given)
        return module._actions(context), context

    return with_arguments


def test_the_launch_files_say_what_each_argument_does():
    for name in ("detector", "replay"):
        module = launch_file(name)
        declared = [each for each in module.generate_launch_description().entities if hasattr(each, "default_value")]
        assert {each.name for each in declared} == set(module.ARGUMENTS) and all(each.description for each in declared)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"params_file": "/nowhere.yaml"}, "params_file:=/nowhere.yaml is no file"),
        ({"cameras": "[front"}, "is no list of names"),
        ({"cameras": "7"}, "is no list of names"),
        ({"cameras": "[front, left]", "image": "/camera/image"}, "is no topic for each of front, left"),
        ({"image": "[/a/image, /b/image]"}, "name a camera for each"),
        ({"network_size": "384x640"}, "network_size:=384x640 is no list of numbers"),
        ({"parallel_images": "two"}, "parallel_images:=two is no whole number"),
        ({"rviz": "maybe"}, "'maybe' is neither true nor false"),
    ],
)
def test_a_launch_argument_that_cannot_be_used_is_said_before_anything_starts(launched, given, said):
    with pytest.raises(RuntimeError, match=re.escape(said)):
        launched(**given)


def test_launch_arguments_reach_the_node(launched, monkeypatch, tmp_path):
    """What `ros2 launch` would put on the detector's command line."""

    def node_of(**given):
        (node, *_), context = launched(**given)
        node._perform_substitutions(context)
        parameters, files = {}, []
        for path, _ in node._Node__expanded_parameter_arguments:
            files.append(Path(path).name)
            if files[-1] == "arguments.yaml":
                parameters = yaml.safe_load(Path(path).read_text())["/vl4ad_detector"]["ros__parameters"]
        return parameters, node.expanded_remapping_rules, [name for name in files if name != "arguments.yaml"]

    parameters, rules, files = node_of(
        cameras="[front, left]", image="[/cam0/image_raw, /cam1/image_raw]", precision="fp16", network_size="[384, 640]",
        parallel_images="2", hazards="tyre|tire; sofa",
    )  # fmt: skip
    assert rules == [("front/image", "/cam0/image_raw"), ("left/image", "/cam1/image_raw")] and files == ["detector.yaml"]
    assert parameters["cameras"] == ["front", "left"] and parameters["network_size"] == [384, 640]
    assert parameters["precision"] == "fp16" and parameters["parallel_images"] == 2
    assert parameters["hazard_prompts"] == ["tyre|tire", "sofa"]
    assert not node_of()[1] and node_of(image="/camera/image_raw")[1] == [("image", "/camera/image_raw")]
    assert node_of(cameras="[front]", image="/cam0/image_raw")[1] == [("front/image", "/cam0/image_raw")]
    (tmp_path / "mine.yaml").write_text("/**: {ros__parameters: {cameras: [rear], anomaly_threshold: 0.1}}\n")
    (tmp_path / "calibrated.yaml").write_text("/**: {ros__parameters: {anomaly_threshold: 0.7}}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    _, rules, files = node_of(params_file="[~/mine.yaml, ~/calibrated.yaml]", image="[/cam9/image_raw]")
    assert files == ["mine.yaml", "calibrated.yaml"] and rules == [("rear/image", "/cam9/image_raw")]


def test_a_replay_s_files_may_be_at_home(monkeypatch, tmp_path):
    module = launch_file("replay")
    from launch import LaunchContext

    monkeypatch.setenv("HOME", str(tmp_path))
    context = LaunchContext()
    given = {"bag": "~/drive", "json": "~/live.json", "report": "~/live", "label_topic": "/cam/gt"}
    context.launch_configurations.update({name: default for name, (default, _) in module.ARGUMENTS.items()} | given)
    evaluation, _ = module._actions(context)
    words = [part[0].text for part in evaluation.cmd if part and hasattr(part[0], "text")]
    assert all(str(tmp_path / name) in words for name in ("drive", "live.json", "live"))
    assert words[words.index("--label-topic") + 1] == "/cam/gt"


# --- the real ros2 commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def ros2():
    pytest.importorskip("launch_ros", reason="launch_ros is not installed (it is not on PyPI)")
    command = shutil.which("ros2")
    if command is None:
        pytest.skip("the ros2 command is not installed (it is not on PyPI)")
    return command


@pytest.fixture
def environment(prefix):
    """Of a shell that has sourced the installation. Executables start with another Python's path, so they get this one's."""
    from ros_fixtures import new_domain

    paths = [str(site_packages(prefix)), os.environ.get("PYTHONPATH", ""), sysconfig.get_paths()["purelib"]]
    return {
        "ROS_DOMAIN_ID": str(new_domain()),
        "AMENT_PREFIX_PATH": os.pathsep.join([str(prefix), os.environ.get("AMENT_PREFIX_PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.mark.launch
@pytest.mark.slow
def test_a_bag_is_evaluated_by_its_launch_file_and_a_failure_is_its_status(ros2, environment, tmp_path):
    launch = (ros2, "launch", "vl4ad_ros", "replay.launch.py", f"json:={tmp_path / 'live.json'}")
    bag = ROOT / "test/data/demo_bag"
    status, said = run(*launch, f"bag:={bag}", "track:=obstacle", "hazards:=tyre|tire;sofa", cwd=tmp_path, **environment)
    assert status == 0 and "120 of 120 images answered" in said and len(said.splitlines()) < 60, said
    assert json.loads((tmp_path / "live.json").read_text())["live"]["answered"] == 120
    status, said = run(*launch, "bag:=/nowhere", cwd=tmp_path, **environment)
    assert status == 1 and "no bag at /nowhere" in said and "ended with status 2" in said


@pytest.mark.launch
@pytest.mark.slow
def test_ros2_launch_and_ros2_param_work_for_real(ros2, environment, prefix, tmp_path):
    assert run(ros2, "pkg", "prefix", "vl4ad_ros", cwd=tmp_path, **environment)[1].strip() == str(prefix)
    log = tmp_path / "launch.log"
    with open(log, "wb") as stream:
        launched = subprocess.Popen(
            [ros2, "launch", "vl4ad_ros", "detector.launch.py", "engine:=torch", "image:=/front/image"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while "is active, listening to /front/image" not in log.read_text():
            assert launched.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

        def param(verb, *words):
            node = ("/vl4ad_detector", *words, "--no-daemon", "--spin-time", "3")
            return run(ros2, "param", verb, *node, cwd=tmp_path, **environment)[1]

        for given, expected in (("['tyre|tire','sofa']", "['tyre|tire', 'sofa']"), ("lost cargo", "['lost cargo']"), ("[]", "[]")):
            assert "successful" in param("set", "hazard_prompts", given)
            assert expected in param("get", "hazard_prompts")
        refused = param("set", "hazard_prompts", "['car']")
        assert "failed" in refused and "already belongs to class 'car'" in refused
        param("set", "hazard_prompts", "['tyre|tire','sofa']")
        param("set", "anomaly_threshold", "0.25")
        (tmp_path / "saved.yaml").write_text(param("dump"))
        param("set", "hazard_prompts", "[]")
        param("set", "anomaly_threshold", "1")
        param("load", "saved.yaml")
        assert "['tyre|tire', 'sofa']" in param("get", "hazard_prompts") and "0.25" in param("get", "anomaly_threshold")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.pid, signal.SIGINT)
        try:
            launched.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)
            launched.wait()
    assert launched.returncode == 0 and "Traceback" not in log.read_text(), log.read_text()
