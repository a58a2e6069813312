"""What all tests share: their own cache folder, one small network, and skipping GPU tests where there is no GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).resolve().parent))


# Tests with a running node, a deadline or a memory limit have the machine to themselves. `make test` runs the others first, two at
# a time; VL4AD_TEST_PART says which part it is.
ALONE = {
    "test_cv_bridge", "test_demo", "test_diagnostics", "test_engines_memory", "test_label_info", "test_node",
    "test_node_load", "test_output_recording", "test_packaging", "test_replay_evaluation",
}  # fmt: skip


def pytest_configure(config):
    import tempfile

    if "PYTEST_XDIST_WORKER" in os.environ:  # two processes on two cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Nothing a test caches may come from, or stay in, the user's own cache; nothing may be downloaded.
    os.environ["VL4AD_CACHE"] = tempfile.mkdtemp(prefix="vl4ad-test-")
    os.environ["TRITON_CACHE_DIR"] = os.path.join(os.environ["VL4AD_CACHE"], "triton")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # How long an example takes is the machine's business.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


def pytest_unconfigure(config):
    import shutil

    # Engines of a run are 100 MB.
    shutil.rmtree(os.environ["VL4AD_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    part = os.environ.get("VL4AD_TEST_PART")
    if part:
        left_out = [item for item in items if (item.path.stem in ALONE) != (part == "alone")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA GPU"))


@pytest.fixture(scope="session")
def street() -> np.ndarray:
    """A (240, 320, 3) image with structure."""
    y, x = np.mgrid[0:240, 0:320]
    image = np.stack((x * 255 // 320, y * 255 // 240, (x // 32 + y // 32) % 2 * 200), axis=-1).astype(np.uint8)
    image[150:200, 100:180] = (250, 60, 20)
    return image


@pytest.fixture(scope="module")
def network():
    """The embedded model's network at its own weights, in float32 on the CPU."""
    from vl4ad_model import registry

    return registry.build_network(registry.locate("tiny", offline=True))[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """An engine cache of the module's own."""
    from vl4ad_model.engines.cache import EngineCache

    return EngineCache(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def segmenter():
    """The embedded model, loaded once. A test that changes its words puts them back."""
    from vl4ad_model.segmenter import Segmenter

    return Segmenter.load("tiny", device="cpu", offline=True)


@pytest.fixture(scope="session")
def rendering():
    """Skips where nothing can be rendered; with VL4AD_TEST_RENDERING=1, as in .ci/run, such a test fails."""
    from vl4ad_model.errors import Vl4adError
    from vl4ad_model.scenes.renderer import Renderer

    try:
        Renderer(96, 160)
    except Vl4adError as error:
        if os.environ.get("VL4AD_TEST_RENDERING") == "1":
            raise
        pytest.skip(str(error))
