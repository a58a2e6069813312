"""Runs a script in Triton's interpreter, which computes a GPU's kernels on the CPU, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
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
