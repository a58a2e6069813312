"""Running out of memory costs speed, never the answer: smaller batches, smaller tiles, another engine, and a word about it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vl4ad_model import engines, native_scoring
from vl4ad_model.engines.cache import EngineCache
from vl4ad_model.engines.onnx_engine import ONNXRuntimeEngine
from vl4ad_model.engines.serving import ServingEngine
from vl4ad_model.engines.torch_engine import TorchEngine
from vl4ad_model.errors import EngineError
from vl4ad_model.network.proposals import MaskProposals
from vl4ad_model.scoring import Scorer, prepare_classifier
from vl4ad_model.vocabulary import Vocabulary

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pictures(street):
    return np.stack([street[top : top + 64, left : left + 96] for top, left in ((0, 0), (8, 30), (16, 60))])


class SmallDevice(TorchDispatchMode):
    """A device on which no tensor of more than `most` bytes can be had."""

    def __init__(self, most):
        super().__init__()
        self.most, self.refused = most, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = [*arguments, *(keywords or {}).values()]
        there = {value.untyped_storage().data_ptr() for value in given if isinstance(value, torch.Tensor)}
        result = function(*arguments, **(keywords or {}))
        new = isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in there
        if new and result.untyped_storage().nbytes() > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 4 GiB")
        return result


class SmallEngine(TorchEngine):
    """PyTorch on a device that holds `most` images at once."""

    most = 1

    def propose(self, images, image_size=None, *, pooled=True):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().propose(images, image_size, pooled=pooled)


def scored(size, queries=40):
    g = torch.Generator().manual_seed(1)
    vocabulary = Vocabulary.cityscapes().with_hazards(["tyre|tire"])
    rows = torch.nn.functional.normalize(torch.randn(sum(map(len, vocabulary.concept_groups)), 16, generator=g), dim=-1)
    words = {"classifier": "in_vocabulary", "merge_classes": True, "void": None, "in_logit_scale": 2.0, "out_logit_scale": 2.0}
    masks = torch.randn(1, queries, size[0] // 4, size[1] // 4, generator=g) * 4
    embeddings = torch.randn(1, queries, 16, generator=g)
    return MaskProposals(masks, embeddings, None, None, size, size), prepare_classifier(vocabulary, rows.numpy(), **words)


@pytest.mark.parametrize("share", [2, 7])
def test_scoring_takes_smaller_tiles_where_memory_runs_out(monkeypatch, share):
    monkeypatch.setattr(native_scoring, "library", lambda: None)
    proposals, classifier = scored((256, 512))
    expected = Scorer().score(proposals, classifier)[0]
    scorer = Scorer()
    with SmallDevice((4 << 20) // share) as device:
        maps = scorer.score(proposals, classifier)[0]
        assert device.refused and "scoring works in tiles 1/" in scorer.notice and "memory ran out on cpu" in scorer.notice
        device.refused = 0
        again = scorer.score(proposals, classifier)[0]
        assert not device.refused  # the next image begins where this one ended
    for one in (maps, again):
        assert torch.equal(one.labels, expected.labels) and torch.allclose(one.anomaly, expected.anomaly, atol=1e-5)


def test_scoring_that_fits_in_no_tile_says_so(monkeypatch):
    monkeypatch.setattr(native_scoring, "library", lambda: None)
    proposals, classifier = scored((256, 512))
    with SmallDevice(1000), pytest.raises(MemoryError, match="out of memory while scoring"):
        Scorer().score(proposals, classifier)


def test_other_errors_of_scoring_are_not_taken_for_want_of_memory():
    proposals, classifier = scored((64, 96))
    narrow = MaskProposals(proposals.mask_logits, proposals.query_embeddings[..., :9], None, None, (64, 96), (64, 96))
    with pytest.raises(RuntimeError, match="shape"):
        Scorer().score(narrow, classifier)


def test_a_batch_that_does_not_fit_is_halved(network, pictures):
    engine = ServingEngine(None, [lambda: SmallEngine(network), lambda: TorchEngine(network)], reason="as asked for")
    ours = engine.propose(pictures, pooled=True)
    theirs = TorchEngine(network).propose(pictures, pooled=True)
    assert type(engine._fallback) is SmallEngine and engine.reason == "as asked for"
    assert torch.allclose(ours.mask_logits, theirs.mask_logits, atol=1e-4)
    assert ours.pooled_embeddings.shape == theirs.pooled_embeddings.shape and ours.image_size == theirs.image_size


def test_a_batch_too_large_for_a_compiled_engine_is_halved_and_the_engine_stays(network, pictures, tmp_path):
    class Small(ONNXRuntimeEngine):
        def propose(self, images, image_size=None, *, pooled=True):
            if len(images) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().propose(images, image_size, pooled=pooled)

    compiled = Small(network, network_size=SIZE, cache=EngineCache(tmp_path))
    engine = ServingEngine(compiled, [lambda: TorchEngine(network)], reason="as asked for")
    ours = engine.propose(pictures, pooled=False)
    assert len(ours.mask_logits) == len(pictures) and engine.name == "onnx" and engine.reason == "as asked for"
    for index in range(len(pictures)):
        assert torch.equal(ours.mask_logits[index], engine.propose(pictures[index : index + 1], pooled=False).mask_logits[0])


def test_one_image_that_does_not_fit_goes_to_the_next_engine(network, pictures):
    class Full(SmallEngine):
        most = 0

    engine = ServingEngine(None, [lambda: Full(network), lambda: TorchEngine(network)], reason="as asked for")
    ours = engine.propose(pictures[:1], pooled=False)
    assert torch.equal(ours.mask_logits, TorchEngine(network).propose(pictures[:1], pooled=False).mask_logits)
    assert engine.reason == "torch on cpu; torch on cpu ran out of device memory (CUDA out of memory. Tried to allocate 2.00 GiB)"


def test_an_engine_that_does_not_fit_when_it_is_made_is_passed_over(network, pictures):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 800 MiB")

    engine = ServingEngine(None, [full, lambda: TorchEngine(network)], reason="as asked for")
    assert engine.propose(pictures[:1], pooled=False).mask_logits.isfinite().all()
    assert "ran out of device memory while it was being created (CUDA out of memory. Tried to allocate 800 MiB)" in engine.reason


@pytest.mark.parametrize("asked", ["onnx", "auto"])
def test_a_compiled_engine_that_does_not_fit_when_it_is_loaded_is_replaced(network, pictures, tmp_path, monkeypatch, asked):
    """Also one that was asked for by name: an answer from PyTorch is worth more than none."""

    def full(self, content):
        raise EngineError("tensorrt cannot load the engine on cuda: Error Code 2: OutOfMemory (Requested size was 2 GiB)")

    monkeypatch.setattr(engines, "PREFERENCE", {"cpu": ("onnx", "torch")})
    monkeypatch.setattr(ONNXRuntimeEngine, "compile", lambda self, model, report: b"content")
    monkeypatch.setattr(ONNXRuntimeEngine, "load", full)
    monkeypatch.setattr("vl4ad_model.engines.onnx_export.export", lambda *_, **__: None)
    engine = engines.create(network, engine=asked, device="cpu", network_size=SIZE, cache=EngineCache(tmp_path))
    assert engine.propose(pictures[:1], pooled=False).mask_logits.isfinite().all()
    assert engine.name == "torch" and "OutOfMemory" in engine.reason
    # And where it happens later, to the other variant, with an image under way.
    late = ServingEngine(
        ONNXRuntimeEngine(network, network_size=SIZE, cache=EngineCache(tmp_path)), [lambda: TorchEngine(network)], reason="x"
    )
    late._compiled._runners[True] = Exhausted()
    assert late.propose(pictures[:1], pooled=True).mask_logits.isfinite().all()
    assert late.name == "torch" and "onnx on cpu ran out of device memory" in late.reason


class Exhausted:
    """A loaded file whose library explains that memory ran out."""

    def run(self, images):
        raise EngineError("tensorrt cannot run: CUDA error: out of memory")

    def close(self):
        pass


LIMITED = """
import resource, sys
import numpy as np
from vl4ad_model.errors import EngineError
from vl4ad_model.segmenter import Segmenter

segmenter = Segmenter.load("tiny", engine="torch", device="cpu", offline=True, threads=1)
segmenter._engine.network_size = None  # every image at its own size
small = np.full((64, 96, 3), 90, np.uint8)
before = segmenter.segment(small)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    segmenter.segment(np.full((2048, 2048, 3), 90, np.uint8))
except EngineError as error:
    print(error)
after = segmenter.segment(small)
print(np.array_equal(before.anomaly, after.anomaly))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_process_without_memory_for_one_image_answers_the_next():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()
    assert first.startswith("not enough memory for 1 image(s) of 2048x2048 pixels in tiny: set a smaller network size")
    assert second == "True"
