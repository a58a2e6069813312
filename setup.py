"""Packaging for both pip and colcon (ament_python): one list of files, one list of dependencies and why each is here."""

import os
from glob import glob

from setuptools import find_packages, setup

PACKAGE = "vl4ad_ros"

MODEL = [
    "torch>=2.4",  # the network
    "torchvision>=0.19",  # imported by open_clip and timm
    "open_clip_torch>=3.3",  # CLIP models, tokenizer and their public weights
    "timm>=1.0.15",  # image towers
    "safetensors>=0.4",  # weights on disk
    "huggingface_hub>=0.24",  # resumable, checksummed downloads of public weights
    "opencv-python-headless>=4.8",  # resize, JPEG, Bayer, connected components
    "pillow>=10",  # reading image and label files exactly
    "typer>=0.12",  # the command line
    "rich>=13",  # progress bars and tables
]
EVALUATION = [
    "rosbags>=0.10.6",  # rosbag2 in mcap and sqlite3 without a ROS installation
    "numpy>=2",  # np.trapezoid
    "h5py>=3.10",  # the SegmentMeIfYouCan benchmark's score files
    "plotly>=5.20",  # interactive report, self-contained
    "matplotlib>=3.8",  # figures
]
EXTRAS = {
    "model": MODEL,
    "ros": [  # ROS 2 as wheels, for machines without a ROS installation; never together with a sourced one
        "ros-rclpy",
        "ros-rmw-fastrtps-cpp",
        "ros-sensor-msgs",
        "ros-std-msgs",
        "ros-std-srvs",
        "ros-diagnostic-msgs",
        "ros-rcl-interfaces",
        "ros-lifecycle-msgs",
        "ros-rosgraph-msgs",
    ],
    "images": ["rosbags-image>=0.10"],  # image decoding where the distribution's cv_bridge is missing or broken
    "evaluation": EVALUATION,
    "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
    "openvino": ["onnx>=1.16", "openvino>=2024.4"],  # the fastest CPU engine
    "tensorrt": [
        "onnx>=1.16",
        "tensorrt-rtx-cu13>=1.2",
    ],  # builds engines without a GPU; or the tensorrt package of JetPack and data-centre GPUs
    "train": ["scipy>=1.11"],  # Hungarian matching
    "scenes": ["moderngl>=5.10", "rosbags>=0.10.6"],  # rendering training scenes and bags
    "ray": ["ray>=2.9"],  # evaluation over many bags on many machines
    # mcap-ros2-support: a reader of bags that is not the one we write them with; triton: its interpreter runs the GPU's kernels
    # (a torch for CUDA brings its own)
    "dev": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        "types-PyYAML",
        "mcap-ros2-support",
        "triton>=3.3; sys_platform == 'linux'",
    ],
    "packaging": ["colcon-common-extensions", "wheel"],  # does colcon see, build and install the package?
}


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """Every file below `folder`, each into the same place below share/."""
    found = []
    for directory, _, names in os.walk(folder):
        files = [os.path.join(directory, name) for name in sorted(names) if not name.endswith(".pyc")]
        if files and "__pycache__" not in directory:
            found.append((os.path.join("share", PACKAGE, directory), files))
    return found


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Open-vocabulary anomaly segmentation for ROS 2: name new hazards in words while the vehicle runs",
    long_description=open("README.md", encoding="utf-8").read() if os.path.exists("README.md") else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    maintainer="VL4AD maintainers",
    maintainer_email="maintainers@vl4ad.example.org",
    python_requires=">=3.11",
    packages=find_packages(include=["vl4ad_model", "vl4ad_model.*", "vl4ad_ros", "vl4ad_ros.*"]),
    package_data={"vl4ad_model": ["*.c", "models/**/*", "evaluation/*.css"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + PACKAGE]),
        ("share/" + PACKAGE, ["package.xml"]),
        *tree("launch"),
        *tree("config"),
        # pip ignores setup.cfg's install_scripts; `ros2 run` looks in lib/<package>
        ("lib/" + PACKAGE, sorted(glob("scripts/*"))),
    ],
    # Messages, launch files and parameters need no network: torch and friends are extras.
    install_requires=["setuptools", "numpy>=1.26", "PyYAML>=6"],
    extras_require={
        **EXTRAS,
        "test": sorted({*EXTRAS["dev"], *EXTRAS["packaging"], *MODEL, *EVALUATION, *EXTRAS["images"], *EXTRAS["train"]}),
    },
    entry_points={
        "console_scripts": [
            "vl4ad = vl4ad_model.cli:main",
            "detector = vl4ad_ros.detector_node:main",
            "replay_evaluation = vl4ad_ros.replay_evaluation:main",
        ]
    },
    zip_safe=False,
)
