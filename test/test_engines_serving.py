"""What stands between images and engines while those are built, fail, or take over, from several threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from vl4ad_model import engines
from vl4ad_model.engines import serving
from vl4ad_model.engines.cache import EngineCache
from vl4ad_model.engines.onnx_engine import BoundRunner, ONNXRuntimeEngine
from vl4ad_model.engines.serving import ServingEngine
from vl4ad_model.engines.torch_engine import TorchEngine
from vl4ad_model.errors import EngineError
from vl4ad_model.network.position import sine_position_embedding, used_constants
from vl4ad_model.out_of_memory import is_out_of_memory

SIZE = (64, 96)


@pytest.fixture(scope="module")
def picture(street):
    return np.ascontiguousarray(street[None, :64, :96])


def onnx(network, cache, **options):
    return ONNXRuntimeEngine(network, network_size=SIZE, cache=cache, **options)


def assert_answers_at_once(engine, picture, expected, count):
    """As many threads ask at once, and each gets the mask logits."""
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(engine.propose(picture, pooled=False).mask_logits)) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == count and all(torch.allclose(answer, expected, atol=1e-3) for answer in answers)


def test_two_threads_that_see_the_same_engine_fail_both_get_their_answer(network, cache, picture):
    compiled = onnx(network, cache, parallel=2)
    compiled.prepare(False)
    both = threading.Barrier(2, timeout=30)

    def run(images):
        both.wait(20)
        raise RuntimeError("the device is gone")

    compiled._runners[False].run = run
    engine = ServingEngine(compiled, [lambda: TorchEngine(network)], reason="as asked for")
    expected = TorchEngine(network).propose(picture, pooled=False).mask_logits
    assert_answers_at_once(engine, picture, expected, 2)
    assert engine.name == "torch" and "the device is gone" in engine.reason
    engine.propose(picture, pooled=False)


def test_images_that_meet_the_same_fallback_as_it_fails_are_answered_by_the_next(network, picture):
    class Exhausted(TorchEngine):
        together = threading.Barrier(3, timeout=30)

        def propose(self, *arguments, **options):
            self.together.wait()
            raise MemoryError("not enough memory")

    engine = ServingEngine(None, [lambda: Exhausted(network), lambda: TorchEngine(network)], reason="as asked for")
    expected = TorchEngine(network).propose(picture, pooled=False).mask_logits
    assert_answers_at_once(engine, picture, expected, 3)


def test_a_variant_that_is_ready_answers_while_the_other_is_built(network, cache, picture, monkeypatch):
    compiled = onnx(network, EngineCache(cache.folder / "variants"), parallel=2)
    compiled.prepare(False)
    building, finish = threading.Event(), threading.Event()

    def slowly(self, content):
        building.set()
        finish.wait(60)
        raise RuntimeError("never mind")

    monkeypatch.setattr(ONNXRuntimeEngine, "load", slowly)

    def build():
        with pytest.raises(RuntimeError):
            compiled.prepare(True)

    builder = threading.Thread(target=build, daemon=True)
    builder.start()
    assert building.wait(120)
    answered = threading.Event()

    def ask():
        compiled.propose(picture, pooled=False)
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    assert answered.wait(30)
    finish.set()
    builder.join(60)


def test_a_build_that_fails_while_the_stand_in_is_still_made_uses_up_no_other(network, cache, picture, monkeypatch):
    monkeypatch.setattr(ONNXRuntimeEngine, "load", lambda self, content: 1 / 0)
    made = []

    def slowly():
        time.sleep(1.0)
        made.append("first")
        return TorchEngine(network)

    def last():
        made.append("last")
        return TorchEngine(network)

    engine = ServingEngine(onnx(network, EngineCache(cache.folder / "other")), [slowly, last], reason="", background=True)
    engine.prepare(False)
    engine.propose(picture, pooled=False)
    assert engine.wait(60)
    engine.propose(picture, pooled=False)
    assert made == ["first"] and engine.name == "torch" and "division by zero" in engine.reason


def test_a_build_fails_where_nothing_can_take_over(network, cache, picture, caplog, monkeypatch):
    """A line in the log, no traceback from the building thread, and every image is told; none is answered by what failed."""
    monkeypatch.setattr(ONNXRuntimeEngine, "load", lambda *_: (_ for _ in ()).throw(RuntimeError("never mind")))
    thrown = []
    monkeypatch.setattr(threading, "excepthook", thrown.append)

    def no_memory():
        raise MemoryError("no memory left")

    engine = ServingEngine(
        onnx(network, EngineCache(cache.folder / "nothing")), [no_memory, no_memory], reason="as asked for", background=True
    )
    engine.prepare(False)
    assert engine.wait(120) and not thrown
    assert "never mind" in caplog.text and "no memory left" in caplog.text
    for _ in range(2):
        with pytest.raises(EngineError, match="no engine is left"):
            engine.propose(picture, pooled=False)
    engine.close()


def test_a_build_is_not_done_before_its_engine_has_run(network, tmp_path, picture, monkeypatch):
    held = threading.Event()
    load = ONNXRuntimeEngine.load

    def late(self, content):
        assert held.wait(60)
        return load(self, content)

    monkeypatch.setattr(ONNXRuntimeEngine, "load", late)
    monkeypatch.setattr(serving, "_SILENCE_S", 0.05)
    seen = []
    engine = engines.create(
        network, engine="onnx", device="cpu", network_size=SIZE, cache=EngineCache(tmp_path), background=True, progress=seen.append
    )
    assert engine.progress is not None  # from the first moment on
    while not seen or seen[-1].stage != "loading":
        time.sleep(0.02)
    first = engine.progress
    time.sleep(0.3)
    second = engine.progress
    assert second.elapsed_s > first.elapsed_s + 0.25, "time goes by although the library says nothing"
    assert [report.stage for report in seen].count("loading") > 1, "and whoever listens hears of it"
    assert all(report.fraction < 1 for report in seen)
    held.set()
    assert engine.wait(60) and seen[-1].fraction == 1 and engine.progress is None and engine.name == "onnx"


def test_a_second_variant_is_named_for_what_answers_and_its_failure_leaves_the_first(network, cache, picture, monkeypatch):
    engine = engines.create(network, engine="onnx", device="cpu", network_size=SIZE, cache=cache, background=True, pooled=False)
    assert engine.wait(60) and engine.name == "onnx"
    built, asked = ONNXRuntimeEngine._built, threading.Event()

    def only_unpooled(self, pooled, report):
        if pooled:
            asked.wait(60)
            raise RuntimeError("no room for two")
        return built(self, pooled, report)

    monkeypatch.setattr(ONNXRuntimeEngine, "_built", only_unpooled)
    engine.propose(picture, pooled=True)
    assert engine.name == "torch" and engine.reason == "torch serves while onnx is built"
    asked.set()
    assert engine.wait(60)
    engine.propose(picture, pooled=True)
    assert engine.name == "torch" and "no room for two" in engine.reason
    engine.propose(picture, pooled=False)
    assert engine.name == "onnx"


def test_what_stood_in_is_let_go_of_and_made_again_when_needed(network, tmp_path, picture):
    made = []

    def maker():
        made.append(TorchEngine(network))
        return made[-1]

    engine = ServingEngine(onnx(network, EngineCache(tmp_path)), [maker], reason="", background=True)
    engine.propose(picture, pooled=False)
    assert engine.wait(60) and len(made) == 1
    engine.propose(picture, pooled=False)
    assert engine._fallback is None

    def run(images):
        raise RuntimeError("the device is gone")

    engine._compiled._runners[False].run = run
    engine.propose(picture, pooled=False)
    assert len(made) == 2 and engine.name == "torch"


def test_to_ask_what_runs_makes_no_engine_and_never_fails(network, tmp_path, picture, monkeypatch):
    """Diagnostics ask once a second, whatever has happened."""
    asked = []

    def none_left():
        asked.append(1)
        raise MemoryError("not enough memory")

    monkeypatch.setattr(ONNXRuntimeEngine, "load", lambda self, content: 1 / 0)
    engine = ServingEngine(onnx(network, EngineCache(tmp_path)), [none_left], reason="", background=True)
    assert (engine.name, engine.device, engine.precision) == ("torch", "cpu", "fp32") and not asked
    assert engine.reason == "torch serves while onnx is built"
    engine = ServingEngine(onnx(network, EngineCache(tmp_path)), [none_left], reason="")
    with pytest.raises(MemoryError):
        engine.propose(picture, pooled=False)
    with pytest.raises(EngineError, match="no engine is left"):
        engine.propose(picture, pooled=False)
    assert (engine.name, engine.device, engine.precision) == ("torch", "cpu", "fp32") and "division by zero" in engine.reason


def test_a_whole_file_that_the_library_refuses_is_built_again(network, tmp_path, picture, caplog):
    cache = EngineCache(tmp_path)
    first = onnx(network, cache)
    first.prepare(False)
    key, path = first.key(False), first.path(False)
    assert cache._write(path, key, b"no network, but whole") == ""
    again = onnx(network, cache)
    again.prepare(False)
    assert "is built again: it cannot be loaded" in caplog.text
    assert torch.equal(again.propose(picture, pooled=False).mask_logits, first.propose(picture, pooled=False).mask_logits)
    assert path.stat().st_size > 1000


def test_a_whole_file_that_is_refused_stays_until_another_takes_its_place(network, tmp_path, picture, monkeypatch):
    """Too little memory to load it is often too little to build it."""
    from vl4ad_model.engines import onnx_export

    cache = EngineCache(tmp_path)
    first = onnx(network, cache)
    first.prepare(False)
    path, again = first.path(False), onnx(network, cache)
    content = path.read_bytes()

    def fail(*_, **__):
        raise RuntimeError("the library says something new")

    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "export", fail)
        patch.setattr(again, "load", fail)
        with pytest.raises(RuntimeError, match="something new"):
            again.prepare(False)
    assert path.read_bytes() == content
    again.prepare(False)
    assert again.ready(False)


def test_who_waits_for_another_process_can_be_cancelled(network, tmp_path):
    """A program that ends waits for its builder."""
    cache = EngineCache(tmp_path)
    waiting, engine = threading.Event(), onnx(network, cache)
    engine.callback = lambda progress: waiting.set() if progress.stage.startswith("waiting") else None
    outcome = []

    def build():
        try:
            engine.prepare(False)
        except EngineError as error:
            outcome.append(str(error))

    with cache._lock(engine.path(False), None):
        builder = threading.Thread(target=build)
        builder.start()
        assert waiting.wait(30)
        engine.cancel()
        builder.join(10)
        assert not builder.is_alive() and outcome == ["the build was cancelled"]


def test_a_closed_engine_says_so_and_does_not_come_back(network, cache, picture):
    for kind in ("onnx", "torch"):
        engine = engines.create(network, engine=kind, device="cpu", network_size=SIZE, cache=cache)
        engine.propose(picture, pooled=False)
        engine.close()
        with pytest.raises(EngineError, match="the engine was closed"):
            engine.propose(picture, pooled=False)


def test_engines_of_another_library_version_are_outdated(network, tmp_path):
    cache = EngineCache(tmp_path)
    engine = onnx(network, cache)
    engine.build(False)
    assert cache.clean({"onnx": engine.library_key(), "openvino": "openvino 1"}).removed == []
    assert cache.clean({"onnx": "onnx 1, onnxruntime 0.0.1"}).removed == [engine.path(False)]


def test_bound_outputs_are_those_of_a_plain_run(network, cache, picture):
    """What ONNX Runtime does on CUDA, on the CPU: the tensors are ours, and nothing is copied through NumPy."""
    compiled = onnx(network, cache)
    content, _ = compiled.build(True)
    session = compiled.load(content)._session
    plain = session.run(None, {"images": picture})
    for ours, theirs in zip(BoundRunner(session, "cpu").run(picture), plain, strict=True):
        assert torch.equal(ours, torch.from_numpy(theirs))


def test_an_export_in_another_thread_changes_nothing_here(network, picture, monkeypatch):
    """Torch's group norm is what runs here, and what an exported graph does without."""
    from vl4ad_model.engines import onnx_export

    inside, answered = threading.Event(), threading.Event()
    plain, used = torch.nn.functional.group_norm, set()

    def group_norm(*arguments):
        used.add(threading.current_thread().name)
        return plain(*arguments)

    def wait_inside(module, arguments):
        if threading.current_thread().name == "exporting":
            inside.set()
            assert answered.wait(60)

    monkeypatch.setattr(torch.nn.functional, "group_norm", group_norm)
    hook = network.pixel_decoder.register_forward_pre_hook(wait_inside)
    try:
        sizes = {"height": 64, "width": 96}
        exporter = threading.Thread(target=onnx_export.export, args=(network,), kwargs=sizes, name="exporting")
        exporter.start()
        assert inside.wait(60)
        TorchEngine(network).propose(picture, pooled=False)
        answered.set()
        exporter.join()
    finally:
        hook.remove()
    assert used == {threading.current_thread().name}


def test_who_records_a_graph_can_hold_the_constants_it_reads():
    with used_constants() as used:
        constant = sine_position_embedding(3, 5, 8)
    assert len(used) == 1 and used[0] is constant
    sine_position_embedding(3, 6, 8)
    assert len(used) == 1


@pytest.mark.parametrize(
    "text",
    ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDNN_STATUS_ALLOC_FAILED",
     "CUDNN_STATUS_NOT_INITIALIZED", "CUDA_ERROR_OUT_OF_MEMORY", "GET was unable to find an engine to execute this computation",
     "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "Failed to allocate memory for requested buffer of size 1",
     "Available memory of 8 is smaller than requested bytes of 9",
     "Requested amount of GPU memory (1 bytes) could not be allocated.",
     "OpenCV(4.13.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 1 bytes in function 'OutOfMemoryError'"],
)  # fmt: skip
def test_every_librarys_way_to_say_that_memory_ran_out_is_known(text):
    assert is_out_of_memory(RuntimeError(text))


def test_a_divisors_least_value_does_not_become_zero_in_half_precision():
    from onnx import TensorProto, helper, numpy_helper

    from vl4ad_model.engines.onnx_graph import to_half

    least = numpy_helper.from_array(np.float32(1.2e-38), "least")
    graph = helper.make_graph(
        [helper.make_node("Max", ["x", "least"], ["bounded"]), helper.make_node("Div", ["x", "bounded"], ["y"])], "division",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [least],
    )  # fmt: skip
    half = to_half(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert numpy_helper.to_array(half.graph.initializer[0]).item() > 0


@pytest.mark.parametrize("closed", [False, True])
def test_a_program_may_end_while_an_engine_is_built(tmp_path, closed):
    """Without waiting for the engine, and without dying inside its compiler."""
    program = """
import sys, threading
from vl4ad_model import engines, registry
compiling = threading.Event()
network, _ = registry.build_network(registry.locate("tiny"))
engine = engines.create(
    network, engine="openvino", device="cpu", network_size=(192, 320), background=True,
    progress=lambda progress: progress.stage.startswith("compiling") and compiling.set(),
)
compiling.wait(120)
print("building" if engine.progress else "done")
if sys.argv[1] == "True":
    engine.close()
"""
    command = [sys.executable, "-c", program, str(closed)]
    done = subprocess.run(
        command, env={**os.environ, "VL4AD_CACHE": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "building\n"), done.stderr
