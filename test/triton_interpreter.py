"""A GPU's kernels without a GPU: computed in Triton's interpreter, or compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def run_interpreted(script: str) -> None:
    """The script, which may import this folder's tests, must end well; skips the test where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


CAPABILITIES = (80, 89, 90, 120)
"""Of the GPUs that kernels are compiled for: A100, RTX 40, H100, RTX 50."""


def registers_and_spills(kernel, types: dict, constants: dict, capability: int, folder: Path, **options) -> tuple[int, int]:
    """Compile a kernel, and say what NVIDIA's assembler says: registers of a thread, and bytes that do not fit into them.

    Args:
        types: of the arguments, as Triton writes them; "i32" for those that are not there.
        constants: the constexpr arguments.
        options: num_warps, num_stages.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32), options=options)
    source = folder / "kernel.ptx"
    source.write_text(compiled.asm["ptx"])
    architecture = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin" / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    arguments = [assembler, "-v", f"-arch={architecture}", source, "-o", folder / "kernel.cubin"]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1]), int(re.search(r"(\d+) bytes spill stores", said)[1])
