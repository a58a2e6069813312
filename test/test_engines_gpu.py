"""PyTorch on a GPU: recorded, in half precision, with its maps in pinned memory, and what happens when memory runs out there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from vl4ad_model import engines
from vl4ad_model.engines.floor import Floor, count_flops
from vl4ad_model.engines.torch_engine import TorchEngine, image_part, without_tf32
from vl4ad_model.scoring import ScoreMaps
from vl4ad_model.segmenter import Segmenter

SIZE = (96, 160)
EVALUATION = Path(__file__).parent / "data" / "evaluation"


@pytest.fixture(scope="module")
def picture(street):
    return np.ascontiguousarray(street[:96, :160])[None]


class HostCopies(TorchFunctionMode):
    """Names the calls that copy from or to memory of the host."""

    crossing = frozenset(
        {"tensor", "as_tensor", "new_tensor", "item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "from_numpy"}
    )

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        tensors = [leaf for leaf in tree_leaves((arguments, keywords, result)) if isinstance(leaf, torch.Tensor)]
        name = getattr(function, "__name__", "")
        if name in self.crossing or any(tensor.device.type == "cpu" for tensor in tensors):
            self.seen.append(name)
        return result


@pytest.mark.parametrize("pooled", [False, True])
def test_nothing_crosses_to_or_from_the_host_while_the_network_runs(network, pooled):
    """What a CUDA graph can record; seen on torch's device without memory, which every machine has."""
    part = image_part(network).eval()
    part.place_image_side("meta")
    images = torch.empty((1, 3, *SIZE), dtype=torch.uint8, device="meta")
    with torch.enable_grad():  # the path that a GPU takes through deformable attention
        part(images, pooled=pooled)  # constants are made once
        with HostCopies() as copies:
            part(images, pooled=pooled)
    assert copies.seen == []


@pytest.mark.parametrize("newer", [False, True])
def test_convolutions_in_float32_have_no_tf32_inside_whatever_the_process_has_set(newer):
    """torch's older and newer settings must not be mixed: each is left as it was found."""
    script = "import torch; from vl4ad_model.engines.torch_engine import without_tf32; cudnn = torch.backends.cudnn\n"
    if newer:
        script += "cudnn.fp32_precision = cudnn.conv.fp32_precision = 'tf32'; cudnn.rnn.fp32_precision = 'ieee'\n"
    script += "before = cudnn.conv.fp32_precision; guard = without_tf32('cuda'); guard.__enter__()\n"
    script += "inside = cudnn.conv.fp32_precision; guard.__exit__(None, None, None)\n"
    script += "print(before, inside, cudnn.conv.fp32_precision)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    before, inside, after = done.stdout.split()
    assert before == after == "tf32" and inside != "tf32"


def test_of_two_who_want_no_tf32_the_last_one_out_brings_it_back():
    convolutions = torch.backends.cudnn
    before, first, second = convolutions.allow_tf32, without_tf32("cuda"), without_tf32("cuda")
    assert before
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not convolutions.allow_tf32
    second.__exit__(None, None, None)
    assert convolutions.allow_tf32


def test_maps_on_the_host_are_handed_over_as_they_are():
    labels, anomaly = torch.zeros((4, 6), dtype=torch.uint8), torch.rand((4, 6))
    ours = ScoreMaps(labels, anomaly).on_host()
    assert ours[0].ctypes.data == labels.data_ptr() and ours[1].ctypes.data == anomaly.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("pooled", [False, True])
def test_recorded_equals_eager(network, picture, precision, pooled):
    options = {"device": "cuda", "precision": precision, "network_size": SIZE}
    recorded, eager = TorchEngine(network, **options), TorchEngine(network, graphs=False, **options)
    first = recorded.propose(picture, (90, 160), pooled=pooled)
    assert recorded._graphs and first.mask_logits.is_cuda and first.image_size == (90, 160)
    kept = first.mask_logits.clone()
    second = recorded.propose(np.ascontiguousarray(255 - picture), pooled=pooled)
    assert torch.equal(first.mask_logits, kept) and not torch.equal(second.mask_logits, kept)
    assert (second.pooled_embeddings is not None) == pooled
    for ours, image in ((first, picture), (second, np.ascontiguousarray(255 - picture))):
        theirs = eager.propose(image, pooled=pooled)
        assert torch.allclose(ours.mask_logits, theirs.mask_logits, rtol=1e-2, atol=1e-2 if precision == "fp16" else 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.999), ("fp16", 0.995)])
def test_a_segmenter_on_the_gpu_sees_what_one_on_the_cpu_sees(precision, share):
    pictures = [
        cv2.imread(str(sorted(EVALUATION.glob(f"{part}/images/*"))[0]))[..., ::-1] for part in ("held_out", "seen", "quiet")
    ]
    here = Segmenter.load("tiny", engine="torch", device="cpu", offline=True)
    there = Segmenter.load("tiny", engine="torch", device="cuda", precision=precision, offline=True)
    for hazards in ([], ["tyre|tire", "sofa"]):
        for segmenter in (here, there):
            segmenter.vocabulary = segmenter.vocabulary.with_hazards(hazards)
        for picture in pictures:
            ours, theirs = there.segment(picture), here.segment(picture)
            assert (ours.labels == theirs.labels).mean() >= share
            # In half precision too the score has the steps of float32, not of float16.
            assert len(np.unique(ours.anomaly)) > 0.5 * len(np.unique(theirs.anomaly))
    kept = ours.anomaly.copy()
    there.segment(255 - pictures[-1])
    assert np.array_equal(ours.anomaly, kept)


@pytest.mark.gpu
def test_a_full_gpu_costs_time_and_never_the_answer(network, street):
    torch.cuda.empty_cache()
    segmenter = Segmenter.load("tiny", engine="torch", device="cuda", network_size=(384, 640), offline=True)
    expected = segmenter.segment(street)
    try:
        torch.cuda.set_per_process_memory_fraction(1e-4)
        segmenter = Segmenter.load("tiny", engine="torch", device="cuda", network_size=(384, 640), offline=True)
        result = segmenter.segment(street)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (result.labels == expected.labels).mean() > 0.999
    assert "ran out of" in segmenter.engine_reason


@pytest.mark.gpu
def test_results_are_no_page_locked_memory(street):
    """Whoever keeps results would keep the system's; and giving it back after a GPU has failed ends the process."""
    result = Segmenter.load("tiny", engine="torch", device="cuda", network_size=(384, 640), offline=True).segment(street)
    assert not any(torch.from_numpy(array).is_pinned() for array in (result.labels, result.anomaly))


@pytest.mark.gpu
def test_when_the_gpu_fails_the_cpu_answers():
    """A device-side assertion, after which nothing on that GPU works any more in this process."""
    script = """
import os
import numpy as np, torch
from vl4ad_model.segmenter import Segmenter
image = np.random.default_rng(0).integers(0, 256, (384, 640, 3), dtype=np.uint8)
segmenter = Segmenter.load("tiny", engine="torch", device="cuda", network_size=(384, 640), offline=True)
result = segmenter.segment(image)
before = result.labels.copy()
try:
    torch.zeros(2, device="cuda")[torch.full((3,), 9, device="cuda")].sum().item()
except RuntimeError:
    pass
for _ in range(3):
    result = segmenter.segment(image)
print((result.labels == before).mean(), segmenter.device, flush=True)
os._exit(0)  # as the node does: CUDA's own tidying up would fail
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    share, device = done.stdout.split()[-2:]
    assert float(share) > 0.99 and device == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.999), ("fp16", 0.995)])
def test_onnx_runtime_on_the_gpu_sees_what_pytorch_sees_on_the_cpu(precision, share, tmp_path, monkeypatch):
    providers = pytest.importorskip("onnxruntime").get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        pytest.skip("onnxruntime has no CUDA here: pip install onnxruntime-gpu")
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    here = Segmenter.load("tiny", engine="torch", device="cpu", offline=True)
    there = Segmenter.load("tiny", engine="onnx", device="cuda", precision=precision, offline=True)
    assert there.engine_name == "onnx" and there.device.startswith("cuda")
    for part in ("held_out", "seen", "quiet"):
        picture = cv2.imread(str(sorted(EVALUATION.glob(f"{part}/images/*"))[0]))[..., ::-1]
        ours, theirs = there.segment(picture), here.segment(picture)
        assert (ours.labels == theirs.labels).mean() >= share
        if precision == "fp32":
            assert np.abs(ours.anomaly - theirs.anomaly).max() < 1e-3
    assert there.engine_name == "onnx", there.engine_reason


def test_onnx_runtime_without_cuda_says_so_before_anything_is_exported(network, cache):
    from vl4ad_model.engines.onnx_engine import ONNXRuntimeEngine
    from vl4ad_model.errors import EngineError

    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    said = []
    engine = ONNXRuntimeEngine(network, network_size=SIZE, device="cuda", cache=cache, progress=said.append)
    with pytest.raises(EngineError, match="install onnxruntime-gpu"):
        engine.prepare(False)
    assert not cache.entries() and not said


@pytest.mark.gpu
def test_auto_takes_the_gpu(network, picture):
    engine = engines.create(network, network_size=SIZE)
    assert engine.device.startswith("cuda") and engine.propose(picture, pooled=False).mask_logits.is_cuda


def test_the_floor_counts_the_whole_networks_arithmetic(network):
    """EfficientNet-Lite0 has 0.40 G multiply-adds at 224 x 224 (its authors' table), which grows with the pixels."""
    whole, twice = (count_flops(network, size, pooled=False) for size in ((96, 160), (192, 160)))
    backbone = 2 * 0.40e9 * 96 * 160 / 224**2
    assert 1.1 * backbone < whole < 3 * backbone
    assert 1.8 * whole < twice < 2.2 * whole


def test_the_floor_is_what_work_and_rates_make():
    least = Floor(flops=3.9e12, mask_bytes=2e8, flops_per_second=3.9e14, bytes_per_second=1e12)
    assert least.network_ms == pytest.approx(10.0) and least.scoring_ms == pytest.approx(0.2)
