"""Every engine computes what PyTorch computes, serves every prompt with one compiled file, and is chosen with a reason."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from vl4ad_model import engines, registry
from vl4ad_model.engines import onnx_export
from vl4ad_model.engines.cache import EngineCache
from vl4ad_model.engines.openvino_engine import has_bfloat16
from vl4ad_model.engines.torch_engine import TorchEngine
from vl4ad_model.errors import EngineError, MissingDependencyError
from vl4ad_model.network.deterministic import fill_deterministically
from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
from vl4ad_model.network.uninitialized import Uninitialized
from vl4ad_model.scoring import Scorer, prepare_classifier
from vl4ad_model.segmenter import Segmenter
from vl4ad_model.vocabulary import Vocabulary

COMPILED = ("onnx", "openvino")
SIZE = (96, 160)


@pytest.fixture(scope="module")
def picture(street):
    import cv2

    return cv2.resize(street, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_AREA)[None]


def score(network, proposals, classifier="in_vocabulary", hazards=("tyre|tire", "sofa")):
    """Labels and anomaly with random words: agreement must not depend on what the words mean."""
    vocabulary = Vocabulary.cityscapes().with_hazards(list(hazards))
    count = sum(map(len, vocabulary.concept_groups))
    rows = np.random.default_rng(len(hazards)).standard_normal((count, network.clip.embed_dim)).astype(np.float32)
    prepared = prepare_classifier(
        vocabulary,
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        classifier=classifier,
        merge_classes=True,
        void=network.void_embedding.weight[0],
        in_logit_scale=network.mask_decoder.logit_scale.item(),
        out_logit_scale=network.clip.logit_scale.item(),
    )
    return Scorer().score(proposals, prepared)


def assert_agrees(network, ours, theirs, classifier="in_vocabulary"):
    """The tolerances of full precision: mask logits to 1e-3 relative, labels on 99.9 % of the pixels, anomaly to 1e-3."""
    scale = theirs.mask_logits.abs().max()
    assert (ours.mask_logits - theirs.mask_logits).abs().max() <= 1e-3 * scale
    for a, b in zip(score(network, ours, classifier), score(network, theirs, classifier), strict=True):
        assert (a.labels == b.labels).float().mean() >= 0.999
        # With N overlapping masks p sums to more than one; relative to that sum where it is larger.
        assert (a.anomaly - b.anomaly).abs().max() <= 1e-3 * max(1.0, float(b.anomaly.abs().max()))


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_compiled_engine_agrees_with_pytorch(network, cache, picture, name, pooled):
    engine = engines.create(network, engine=name, device="cpu", network_size=SIZE, cache=cache)
    images = np.concatenate([picture, picture[:, ::-1]])
    ours = engine.propose(images, (90, 160), pooled=pooled)
    theirs = TorchEngine(network).propose(np.ascontiguousarray(images), (90, 160), pooled=pooled)
    assert engine.name == name and ours.image_size == theirs.image_size == (90, 160)
    assert (ours.pooled_embeddings is not None) == pooled and ours.pooled_valid is None
    assert_agrees(network, ours, theirs, "ensemble" if pooled else "in_vocabulary")


def test_proposals_stay_what_they_were_when_the_next_image_comes(network, cache, picture):
    engine = engines.create(network, engine="openvino", device="cpu", network_size=SIZE, cache=cache)
    first = engine.propose(picture, pooled=False)
    kept = first.mask_logits.clone()
    engine.propose(255 - picture, pooled=False)
    assert torch.equal(first.mask_logits, kept)


@pytest.mark.parametrize("name", ("torch", *COMPILED))
def test_new_prompts_build_nothing_and_count_from_the_next_image(tmp_path, monkeypatch, street, name):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    segmenter = Segmenter.load("tiny", engine=name, device="cpu", network_size=SIZE, offline=True)
    segmenter.segment(street)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").glob("*")} if name != "torch" else {}
    segmenter.vocabulary = segmenter.vocabulary.with_hazards(["a thing nobody has named|another of them"])
    result = segmenter.segment(street)
    assert result.vocabulary.names[19] == "a thing nobody has named"
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").glob("*")}
    assert segmenter.engine_name == name and after == made


@pytest.mark.parametrize("name", ("torch", *COMPILED))
def test_new_prompts_cost_their_encoding_and_one_frame(tmp_path, monkeypatch, street, name):
    """No build and no export, one look of the network at the image, and the processor time of a frame and of the words."""
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    segmenter = Segmenter.load("tiny", engine=name, device="cpu", network_size=SIZE, offline=True, threads=1)

    def spent(action):
        began = time.process_time()
        action()
        return time.process_time() - began

    def name_hazards(*hazards):
        segmenter.vocabulary = segmenter.vocabulary.with_hazards(list(hazards))

    segmenter.segment(street)
    frame = max(spent(lambda: segmenter.segment(street)) for _ in range(5))
    encoding = max(spent(lambda n=n: name_hazards(f"thing {n}|stuff {n}", f"matter {n}")) for n in range(3))
    before = segmenter.segment(street)

    def never(*_, **__):
        raise AssertionError("new prompts must build nothing")

    looks = []
    propose = segmenter._engine.propose
    monkeypatch.setattr(onnx_export, "export", never)
    monkeypatch.setattr(engines, "create", never)
    monkeypatch.setattr(EngineCache, "get_or_build", never)
    monkeypatch.setattr(segmenter._engine, "propose", lambda *a, **k: looks.append(1) or propose(*a, **k))
    known, results = segmenter.encoded_concepts, []
    both = spent(lambda: (name_hazards("a thing nobody named|another", "a third"), results.append(segmenter.segment(street))))
    assert segmenter.encoded_concepts == known + 3 and looks == [1] and segmenter.engine_name == name
    assert results[0].vocabulary.names[19:] == ("a thing nobody named", "a third")
    assert results[0].vocabulary_version == before.vocabulary_version + 1
    # An export takes seconds; the slack is for a busy machine.
    assert both <= 3 * (frame + encoding) + 0.2, (both, frame, encoding)


def test_auto_takes_the_fastest_and_says_so(network, cache):
    engine = engines.create(network, device="cpu", network_size=SIZE, cache=cache)
    assert engine.name == "openvino" and "the fastest here" in engine.reason


def test_auto_serves_any_size_with_pytorch_and_says_why(network):
    engine = engines.create(network, device="cpu")
    assert engine.name == "torch" and "fixed" in engine.reason


def test_auto_passes_over_what_is_missing_or_broken_and_says_so(network, cache, monkeypatch):
    monkeypatch.setattr(engines, "missing", lambda name: "openvino" if name == "openvino" else "")
    engine = engines.create(network, device="cpu", network_size=SIZE, cache=cache)
    assert engine.name == "onnx" and "'openvino', which is not installed" in engine.reason
    with pytest.raises(MissingDependencyError, match=r"pip install 'vl4ad_ros\[openvino\]'"):
        engines.create(network, engine="openvino", device="cpu", network_size=SIZE, cache=cache)
    monkeypatch.undo()
    from vl4ad_model.engines.openvino_engine import OpenVINOEngine

    monkeypatch.setattr(OpenVINOEngine, "load", lambda self, content: 1 / 0)
    engine = engines.create(network, device="cpu", network_size=SIZE, cache=cache)
    assert engine.name == "onnx" and "openvino failed: division by zero" in engine.reason
    with pytest.raises(EngineError, match="openvino does not work here: division by zero"):
        engines.create(network, engine="openvino", device="cpu", network_size=SIZE, cache=cache)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"engine": "quick"}, "use auto, torch, onnx, openvino, tensorrt"),
        ({"precision": "int4"}, "use fp32, fp16, bf16"),
        ({"precision": "bf16", "engine": "torch"}, "needs engine openvino, not torch"),
        ({"network_size": (100, 160)}, "multiples of 32"),
        ({"device": "tpu"}, "use auto, cpu, cuda"),
        ({"device": "cpu:0"}, "use auto, cpu, cuda"),
        ({"engine": "openvino"}, "needs one fixed size"),
        ({"precision": "fp16", "device": "cpu"}, "needs a GPU"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(network, wanted, message):
    with pytest.raises(EngineError, match=message) as caught:
        engines.create(network, **wanted)
    assert "\n" not in str(caught.value)


def test_bf16_is_openvinos_and_pytorch_serves_in_fp32_until_it_is_there(network, tmp_path, picture):
    options = {"precision": "bf16", "device": "cpu", "cache": EngineCache(tmp_path), "background": True}
    if not has_bfloat16():
        with pytest.raises(EngineError, match="needs a CPU with AVX-512 BF16 or AMX"):
            engines.create(network, network_size=SIZE, **options)
        return
    with pytest.raises(EngineError, match="needs one fixed size"):
        engines.create(network, **options)
    engine = engines.create(network, network_size=SIZE, **options)
    assert (engine.name, engine.precision) == ("torch", "fp32")
    exact = engine.propose(picture, pooled=False).mask_logits
    assert engine.wait(60)
    rounded = engine.propose(picture, pooled=False).mask_logits
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    full = engines.create(network, engine="openvino", device="cpu", network_size=SIZE, cache=EngineCache(tmp_path))
    apart = [float((each - exact).abs().mean() / exact.abs().mean()) for each in (full.propose(picture).mask_logits, rounded)]
    assert apart[0] < 1e-4 < 1e-3 < apart[1] < 0.2, "each has a file of its own, and the one of bf16 is rounded"


def test_an_image_of_another_size_is_refused(network, cache):
    engine = engines.create(network, engine="openvino", device="cpu", network_size=SIZE, cache=cache)
    with pytest.raises(EngineError, match="built for uint8 images of 96x160, not uint8 64x64x3"):
        engine.propose(np.zeros((1, 64, 64, 3), np.uint8))


def test_pytorch_serves_while_an_engine_is_built(network, tmp_path, picture):
    seen = []
    engine = engines.create(
        network, engine="onnx", device="cpu", network_size=SIZE, cache=EngineCache(tmp_path), background=True, progress=seen.append
    )
    first = engine.propose(picture, pooled=False)
    assert engine.name == "torch" and engine.reason == "torch serves while onnx is built"
    assert engine.wait(60)
    second = engine.propose(picture, pooled=False)
    assert engine.name == "onnx" and engine.progress is None
    assert [report.fraction for report in seen] == sorted(report.fraction for report in seen) and seen[-1].fraction == 1.0
    assert "compiling" in {report.stage for report in seen} and seen[-2].eta_s is not None
    assert_agrees(network, first, second)


def test_an_engine_that_fails_at_run_time_is_replaced_and_named(network, cache, picture):
    engine = engines.create(network, engine="onnx", device="cpu", network_size=SIZE, cache=cache, pooled=False)
    expected = engine.propose(picture, pooled=False)

    def run(images):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")

    engine._compiled._runners[False].run = run
    got = engine.propose(picture, pooled=False)
    assert engine.name == "torch"
    assert "onnx on cpu ran out of device memory (CUDA out of memory. Tried to allocate 2 GiB)" in engine.reason
    assert_agrees(network, got, expected)


def test_two_threads_may_ask_at_once(network, cache, picture):
    engine = engines.create(network, engine="openvino", device="cpu", network_size=SIZE, cache=cache)
    pictures = [picture, 255 - picture]
    expected = [engine.propose(p, pooled=False).mask_logits for p in pictures]
    wrong = []

    def ask(index):
        for _ in range(5):
            if not torch.equal(engine.propose(pictures[index], pooled=False).mask_logits, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", COMPILED)
def test_an_engine_made_for_several_images_runs_them_at_once(network, cache, picture, name):
    pictures = [picture, 255 - picture, picture[:, ::-1].copy()]
    alone = engines.compiled_class(name)(network, network_size=SIZE, cache=cache)
    expected = [alone.propose(p, pooled=False).mask_logits for p in pictures]
    engine = engines.compiled_class(name)(network, network_size=SIZE, cache=cache, parallel=3)
    engine.prepare(False)
    together, run, answers = threading.Barrier(3, timeout=30), engine._runners[False].run, {}

    def run_together(images):
        together.wait()
        return run(images)

    engine._runners[False].run = run_together

    def ask(index):
        answers[index] = engine.propose(pictures[index], pooled=False).mask_logits

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, logits in enumerate(expected):
        assert (answers[index] - logits).abs().max() <= 1e-4 * logits.abs().max()
    engine.close()
    failed = []

    def too_late():
        try:
            run(picture)
        except Exception as error:
            failed.append(error)

    late = threading.Thread(target=too_late, daemon=True)
    late.start()
    late.join(30)
    assert failed and not late.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fcclip-r50"])
@pytest.mark.parametrize("name", COMPILED)
def test_the_public_models_agree_too(model, name, tmp_path):
    """With the parity kit's deterministic weights, which need no download; both branches, because the checkpoints use both.

    On a rendered frame and a photograph.
    """
    import cv2
    from test_engines_agreement import DATA, photograph

    from vl4ad_model.image_files import read_rgb

    with Uninitialized():
        network = FCCLIP(FCCLIPConfig.from_dict(registry.MODELS[model].config)).eval()
    fill_deterministically(network)
    network.requires_grad_(False)
    files = (min((DATA / "evaluation/held_out/images").glob("*.jpg")), photograph())
    picture = np.stack([cv2.resize(read_rgb(path), (256, 128), interpolation=cv2.INTER_AREA) for path in files])
    engine = engines.create(network, engine=name, device="cpu", network_size=(128, 256), cache=EngineCache(tmp_path))
    ours, theirs = engine.propose(picture), TorchEngine(network).propose(picture)
    assert (ours.pooled_valid is not None) == network.clip.is_resnet
    assert_agrees(network, ours, theirs, network.config.classifier)
