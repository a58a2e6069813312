"""torchvision beside torch: one that works, as on every machine with matching builds, and one whose library does not load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OPERATORS = """
#include <torch/library.h>
TORCH_LIBRARY(torchvision, m) {
  m.def("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor");
  m.def("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor");
}
"""
# What torchvision does when it is imported.
IMPORT = """
import pathlib, torch
try:
    torch.ops.load_library(str(pathlib.Path(__file__).with_name("_C.so")))
    print("its own operators")
except OSError:
    pass
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""
SCRIPT = """
from vl4ad_model import torchvision_schemas
torchvision_schemas.define()
torchvision_schemas.define()
import torchvision
print("fine")
"""


def imported(folder: Path) -> subprocess.CompletedProcess:
    (folder / "torchvision" / "__init__.py").write_text(IMPORT)
    (folder / "timm.py").touch()  # the real one needs more of torchvision
    path = os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_torchvision_that_works_is_left_to_define_its_operators(tmp_path):
    """C++ that defines an operator a second time aborts the process: the schemas must not be there first."""
    folder, source = tmp_path / "torchvision", tmp_path / "operators.cpp"
    folder.mkdir()
    source.write_text(OPERATORS)
    of_torch = Path(torch.__file__).parent
    subprocess.run(
        ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{of_torch / 'include'}", str(source), f"-L{of_torch / 'lib'}",
         "-ltorch_cpu", "-lc10", "-o", str(folder / "_C.so")],
        check=True, timeout=250,
    )  # fmt: skip
    done = imported(tmp_path)
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-2000:]
    assert "its own operators" in done.stdout


@pytest.mark.parametrize("library", ["for another torch", "none"])
def test_beside_a_torchvision_whose_library_does_not_load_its_import_works(tmp_path, library):
    (tmp_path / "torchvision").mkdir()
    if library != "none":
        (tmp_path / "torchvision" / "_C.so").write_bytes(b"\x7fELF not for this torch")
    done = imported(tmp_path)
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-2000:]


COMPILER = """
import sys
import numpy as np
from vl4ad_model.segmenter import Segmenter
segmenter = Segmenter.load("tiny", engine="torch", device="cpu", network_size=(64, 96), offline=True)
assert segmenter.segment(np.zeros((64, 96, 3), np.uint8)).labels.shape == (64, 96)
assert not {"torch._dynamo", "sympy"} & sys.modules.keys()

from types import SimpleNamespace
from timm.models.naflexvit import NaFlexRopeIterator
def ends():  # what timm wants the compiler to leave alone
    try:
        NaFlexRopeIterator.__next__(SimpleNamespace(_depth_idx=1, depth=1))
    except StopIteration:
        return True
assert ends() and "torch._dynamo" not in sys.modules

import torch
import torchvision
boxes = torchvision.ops.roi_align.__globals__["is_compile_supported"]
assert boxes("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
assert torch.compile(lambda values: values * 2, backend="eager")(torch.ones(2)).tolist() == [2, 2]
assert ends() and "torch._dynamo" in sys.modules
"""


@pytest.mark.parametrize(
    "wanted",
    ["import torch._dynamo.config; torch._dynamo.config.verbose", "from torch._dynamo import allow_in_graph",
     "from torch._dynamo.utils import counters", "import torch; torch._dynamo.reset()"],
)  # fmt: skip
def test_another_torchvision_gets_what_it_wants_of_the_compiler(tmp_path, wanted):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(wanted)
    (tmp_path / "timm.py").touch()
    script = (
        "from vl4ad_model import torchvision_schemas as s; s.define(); import torch; print(torch.compile(abs, backend='eager'))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_compiler_is_imported_when_it_is_asked_and_not_before():
    """It takes a third of a start, and 150 MB of every process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", COMPILER], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
