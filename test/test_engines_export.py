"""Exported files: static, named as documented, valid, and free of words; TensorRT builds from them without a GPU."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import vl4ad_model
from vl4ad_model import cli, registry
from vl4ad_model.engines import onnx_export, onnx_graph
from vl4ad_model.engines.torch_engine import TorchEngine
from vl4ad_model.errors import EngineError, VocabularyError
from vl4ad_model.network.deterministic import fill_deterministically
from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
from vl4ad_model.network.uninitialized import Uninitialized
from vl4ad_model.segmenter import Segmenter
from vl4ad_model.vocabulary import Vocabulary

HEIGHT, WIDTH = 96, 160


def build_network(name: str) -> FCCLIP:
    """A model with deterministic weights, which need no download."""
    info = registry.MODELS[name]
    if info.folder is not None:
        return registry.build_network(registry.locate(name, offline=True))[0]
    with Uninitialized():
        network = FCCLIP(FCCLIPConfig.from_dict(info.config)).eval()
    fill_deterministically(network)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    return build_network("tiny")


@pytest.fixture(scope="module")
def exported(tiny):
    return onnx_export.export(tiny, height=HEIGHT, width=WIDTH, batch=2, pooled=True)


def tensors(values):
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def test_names_and_shapes_are_the_documented_ones(tiny, exported):
    config = tiny.config
    queries, dimension = config.queries, tiny.clip.embed_dim
    assert tensors(exported.graph.input) == {"images": (2, HEIGHT, WIDTH, 3)}
    assert tensors(exported.graph.output) == {
        "mask_logits": (2, queries, HEIGHT // 4, WIDTH // 4),
        "query_embeddings": (2, queries, dimension),
        "pooled_embeddings": (2, queries, dimension),
        "pooled_valid": (2, queries),
    }
    assert exported.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert exported.opset_import[0].version == onnx_export.OPSET


def test_a_graph_is_valid_static_and_folded(exported):
    onnx.checker.check_model(exported, full_check=True)
    operators = {node.op_type for node in exported.graph.node}
    assert not operators & {*onnx_graph.FORBIDDEN, *onnx_graph.SIZE_ARITHMETIC}
    constants = {tensor.name for tensor in exported.graph.initializer}
    assert not [node.name for node in exported.graph.node if node.input and set(node.input) <= constants | {""}], "folded"
    assert constants <= {name for node in exported.graph.node for name in node.input}, "all are used"
    assert {value.domain for value in exported.opset_import} == {""}


def test_openvino_never_turns_a_large_map_round(tiny, exported):
    """Maps lie channels-last there; turning those of stride 4, or the image, round took a tenth of the network's time."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(exported.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    moved = {}
    for op in compiled.get_runtime_model().get_ops():
        kind = op.get_rt_info()["layerType"]
        # "fake" is OpenVINO's own word for a change of names without a copy.
        if str(getattr(kind, "value", kind)) in ("Reorder", "Transpose", "Concatenation") and "fake" not in op.get_friendly_name():
            moved[op.get_friendly_name()] = int(np.prod(op.get_output_partial_shape(0).to_shape()))
    assert moved  # small ones there are
    map_size = 2 * (tiny.config.mask_channels or tiny.config.channels) * HEIGHT * WIDTH // 16
    assert {name: size for name, size in moved.items() if size >= min(map_size, 2 * 3 * HEIGHT * WIDTH)} == {}


def test_no_weight_of_the_text_tower_and_no_word_is_inside(tiny, exported):
    names = {tensor.name for tensor in exported.graph.initializer}
    assert not [name for name in names if "token_embedding" in name or "text_projection" in name]
    vocabulary_size = tiny.clip.model.token_embedding.num_embeddings
    assert not [tensor.name for tensor in exported.graph.initializer if vocabulary_size in tensor.dims]


def test_half_precision_agrees(tiny):
    """On a rendered street; on a picture of nothing, where no class is likely, labels are a toss of coins."""
    import cv2
    import onnxruntime
    from test_engines import score

    from vl4ad_model.image_files import read_rgb
    from vl4ad_model.network.proposals import MaskProposals

    model = onnx_export.export(tiny, height=HEIGHT, width=WIDTH, precision="fp16")
    assert {v.type.tensor_type.elem_type for v in model.graph.output} == {onnx.TensorProto.FLOAT16}
    frame = read_rgb(sorted((Path(__file__).parent / "data/evaluation/seen/images").glob("*.jpg"))[0])
    picture = cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[None]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the CPU has no half-precision kernels and says so for every node
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    masks, queries = (torch.from_numpy(array).float() for array in session.run(None, {"images": picture}))
    half = MaskProposals(masks, queries, None, None, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    full = TorchEngine(tiny).propose(picture, pooled=False)
    (a,), (b,) = score(tiny, half), score(tiny, full)
    assert (a.labels == b.labels).float().mean() >= 0.995


@pytest.mark.parametrize("clips_own", [False, True])
def test_means_over_large_masks_stay_in_full_precision(tiny, exported, clips_own):
    """131072 cells, a mask of a 1024 x 2048 image, are more than float16 can count: of mask features, and of CLIP's own."""
    model = onnx.ModelProto()
    if clips_own:
        network = copy.deepcopy(tiny)
        network.mask_decoder.naming = None
        exported = onnx_export.export(network, height=HEIGHT, width=WIDTH, pooled=True)
    model.CopyFrom(exported)
    half = onnx_graph.to_half(model)
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    producers = {name: node for node in half.graph.node for name in node.output}
    areas = [
        node.input[0]
        for node in half.graph.node
        if node.op_type == "Add" and producers.get(node.input[0], node).op_type == "ReduceSum"
    ]
    areas = [name for name in areas if "self_attn" not in name]  # sums over a dozen sampling points
    assert len(areas) == 1 + clips_own and all(types[name] == onnx.TensorProto.FLOAT for name in areas)


def test_places_in_maps_stay_in_full_precision(exported):
    """Float16 would move them by up to an eighth of a cell of a map that is 256 cells wide."""
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    half = onnx_graph.to_half(model)
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    producers = {name: node for node in half.graph.node for name in node.output}
    samples = [node for node in half.graph.node if node.op_type == "GridSample"]
    assert samples
    for sample in samples:
        assert {types[name] for name in sample.input} == {onnx.TensorProto.FLOAT}
        node = producers[sample.input[1]]
        while node.op_type != "Add":  # back to where offsets are added to the cells' centres
            assert node.op_type != "Cast"
            node = producers[node.input[0]]
        assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("size", "message"), [((100, 160), "multiples of 32"), ((0, 160), "multiples of 32"), ((96, 160, 0), "batch 0")]
)
def test_sizes_that_cannot_be(tiny, size, message):
    with pytest.raises(EngineError, match=message):
        onnx_export.export(tiny, height=size[0], width=size[1], batch=size[2] if len(size) > 2 else 1)


def run_cli(arguments, capsys):
    status = cli.run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_writes_a_file_and_lists_and_cleans_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path / "cache"))
    arguments = ["export", "--engine", "onnx", "--height", "64", "--width", "96", "--out", str(tmp_path / "out")]
    status, out, _ = run_cli(arguments, capsys)
    path = tmp_path / "out" / "tiny-64x96-b1-fp32-pooled.onnx"
    assert status == 0 and str(path) in out
    assert tensors(onnx.load(path).graph.input) == {"images": (1, 64, 96, 3)}
    status, out, _ = run_cli(["engines", "list", "--json", str(tmp_path / "list.json")], capsys)
    listed = json.loads((tmp_path / "list.json").read_text())
    assert status == 0 and [entry["key"]["height"] for entry in listed["files"]] == [64]
    assert set(listed["engines"]) == {"torch", "onnx", "openvino", "tensorrt"}
    status, out, _ = run_cli(["engines", "clean", "--all"], capsys)
    assert status == 0 and out.endswith("1 files removed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "torch"], "use onnx, openvino, tensorrt"),
        (["--precision", "int8"], "use fp32, fp16"),
        (["--engine", "openvino", "--precision", "fp16"], "fp32 or bf16"),
        (["--engine", "onnx", "--precision", "bf16"], "needs engine openvino, not onnx"),
        (["--height", "100"], "multiples of 32"),
        (["--height", "1000000", "--width", "1000000"], "multiples of 32 up to 16384"),
        (["--out", f"{__file__}/tiny.onnx"], "is not a folder"),
        (["--batch", "2"], "--batch 2 needs --out"),
        (["--target", "sm_86"], "--target only applies to engine tensorrt"),
        (["--engine", "tensorrt", "--target", "fast"], "no compute capability: write it as sm_86"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, capsys):
    status, _, error = run_cli(["export", *arguments], capsys)
    assert status == 2 and message in error and error.count("\n") == 1


def test_an_engine_that_could_not_be_kept_is_no_success(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path / "file"))
    status, out, error = run_cli(["export", "--engine", "onnx", "--height", "64", "--width", "96"], capsys)
    assert status == 2 and not out and "set VL4AD_CACHE to a writable folder" in error.splitlines()[-1]


def test_a_model_of_ones_own_is_measured_with_its_engines_in_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path / "cache"))
    shutil.copytree(Path(vl4ad_model.__file__).parent / "models/tiny", tmp_path / "mine")
    options = ["--sizes", "64x96", "--engines", "onnx", "--repeat", "3"]
    status, _, error = run_cli(["benchmark", "engines", "--model", str(tmp_path / "mine"), *options], capsys)
    assert status == 0, error
    assert [path.name.startswith("mine-onnx-64x96") for path in (tmp_path / "cache/engines").glob("*.onnx")] == [True]
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "mine"}


def test_the_engine_is_built_for_the_classifier_that_was_chosen_and_for_words_that_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    options = {"engine": "onnx", "device": "cpu", "network_size": (64, 96)}
    words = Vocabulary.cityscapes()
    with pytest.raises(VocabularyError, match="too long for the text encoder"):
        Segmenter.load("tiny", vocabulary=words.with_hazards(["a b c d e f g h i j k l m n o p " * 6]), **options)
    assert not list((tmp_path / "engines").glob("*.onnx")), "a mistake in the words costs no compiling"
    segmenter = Segmenter.load("tiny", classifier="ensemble", **options)
    segmenter.segment(np.zeros((64, 96, 3), np.uint8))
    assert ["-pooled-" in path.name for path in (tmp_path / "engines").glob("*.onnx")] == [True]


# --- TensorRT ---------------------------------------------------------------------------------------------------------------


def tensorrt():
    return pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install tensorrt-rtx-cu13")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "fcclip-r50"])
def test_tensorrt_builds_without_a_gpu(name, tmp_path):
    """A real engine for a GPU that is not here. Loading it needs one; what can be checked without is checked."""
    trt = tensorrt()
    from vl4ad_model.engines import tensorrt_engine
    from vl4ad_model.engines.cache import EngineCache

    network = build_network(name)
    pooled = network.config.classifier != "in_vocabulary"
    seen = []
    engine = tensorrt_engine.TensorRTEngine(
        network, network_size=(512, 1024), device="cuda", precision="fp16", model_name=name,
        cache=EngineCache(tmp_path), progress=seen.append,
    )  # fmt: skip
    engine.target_capability = "sm_86"
    models = []
    compile_model = engine.compile
    engine.compile = lambda model, report: models.append(model) or compile_model(model, report)
    plan, origin = engine.build(pooled)
    assert origin.startswith("built") and plan[:4] == b"vtrt"
    assert bytes([*map(int, trt.__version__.split(".")[:3])]) in plan[:64], "the plan's header carries the library's version"
    fractions = [report.fraction for report in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 3
    queries, dimension = network.config.queries, network.clip.embed_dim
    expected = {
        "images": ((1, 512, 1024, 3), "uint8"),
        "mask_logits": ((1, queries, 128, 256), "half"),
        "query_embeddings": ((1, queries, dimension), "half"),
    }
    if pooled:
        expected["pooled_embeddings"] = ((1, queries, dimension), "half")
        expected["pooled_valid"] = ((1, queries), "bool")
    assert tensorrt_engine.describe(models[0]) == expected
    for binding in expected:
        assert binding.encode() in plan
    again, origin = engine.build(pooled)
    assert origin.startswith("from cache") and again == plan and len(models) == 1


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: a shell starts its background jobs with it ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("by", ["closing", "ctrl-c"])
def test_a_tensorrt_build_can_be_stopped_and_leaves_nothing(tiny, by, tmp_path, interruptible):
    tensorrt()
    from vl4ad_model.engines import tensorrt_engine
    from vl4ad_model.engines.cache import EngineCache

    def stop(progress):
        if progress.stage.startswith("compiling: "):
            signal.raise_signal(signal.SIGINT) if by == "ctrl-c" else engine.cancel()

    engine = tensorrt_engine.TensorRTEngine(
        tiny, network_size=(HEIGHT, WIDTH), device="cuda", model_name="tiny", cache=EngineCache(tmp_path), progress=stop
    )
    engine.target_capability = "sm_86"
    with pytest.raises(KeyboardInterrupt if by == "ctrl-c" else EngineError) as stopped:
        engine.build(False)
    assert by == "ctrl-c" or str(stopped.value) == "the build was cancelled"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not engine._cache.entries()


def test_tensorrt_says_what_it_cannot_build_for():
    tensorrt()
    from vl4ad_model.engines import tensorrt_engine

    assert [tensorrt_engine.parse_target(text) for text in ("sm_86", "SM120", "8.9", "75")] == ["sm_86", "sm_120", "sm_89", "sm_75"]
    with pytest.raises(EngineError, match="cannot build for sm_50: it knows sm_75"):
        tensorrt_engine.check_target("sm_50")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_runs_and_agrees(tiny, street, precision, tmp_path):
    """Written without a GPU at hand: never run so far."""
    pytest.importorskip("tensorrt_rtx" if not _has("tensorrt") else "tensorrt")
    import cv2
    from test_engines import score

    from vl4ad_model import engines
    from vl4ad_model.engines.cache import EngineCache

    if not _has("tensorrt"):
        from vl4ad_model.engines import tensorrt_engine

        capability = "sm_{}{}".format(*torch.cuda.get_device_capability())
        try:
            tensorrt_engine.check_target(capability)
        except EngineError as error:
            pytest.skip(f"TensorRT for RTX does not run on this GPU ({error}): install tensorrt")
    picture = cv2.resize(street, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[None]
    engine = engines.create(
        tiny, engine="tensorrt", device="cuda", precision=precision, network_size=(HEIGHT, WIDTH), cache=EngineCache(tmp_path)
    )
    ours = engine.propose(np.ascontiguousarray(picture), pooled=False)
    theirs = TorchEngine(tiny).propose(picture, pooled=False)
    assert ours.mask_logits.is_cuda and engine.name == "tensorrt"
    moved = type(ours)(ours.mask_logits.float().cpu(), ours.query_embeddings.float().cpu(), None, None, *[(HEIGHT, WIDTH)] * 2)
    (a,), (b,) = score(tiny, moved), score(tiny, theirs)
    assert (a.labels == b.labels).float().mean() >= (0.999 if precision == "fp32" else 0.995)


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
