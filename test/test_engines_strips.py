"""Inverted residual blocks computed strip by strip: the same numbers, and the same graph where that is not safe."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vl4ad_model import registry
from vl4ad_model.engines import onnx_export
from vl4ad_model.engines.strips import in_strips

BYTES = {"large_map": 0}


def block(
    *, height=23, width=9, kernel=3, step=1, pads=(1, 1, 1, 1), by_node=False, pad_value=0.0, pad_mode="constant",
    activation="Clip", also_wanted="",
):  # fmt: skip
    """A graph with one block: 3 channels, widened to 6, filtered and narrowed to 2. `also_wanted` becomes an output, too."""
    r = np.random.default_rng(7)

    def values(name, array):
        return numpy_helper.from_array(np.asarray(array), name)

    def float32(*shape):
        return r.standard_normal(shape).astype(np.float32)

    constants = [
        values("w1", float32(6, 3, 1, 1)), values("b1", float32(6)),
        values("w2", float32(6, 1, kernel, kernel)), values("b2", float32(6)),
        values("w3", float32(2, 6, 1, 1)), values("b3", float32(2)), values("low", np.float32(0)), values("high", np.float32(1.5)),
    ]  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["wide"], name="widen", kernel_shape=[1, 1])]

    def activate(name):
        if activation:
            inputs = [name, "low", "high"] if activation == "Clip" else [name]
            nodes.append(helper.make_node(activation, inputs, [f"{name} active"]))
            return f"{name} active"
        return name

    last, top, left, bottom, right = activate("wide"), *pads
    if by_node:
        constants += [values("amounts", np.array([0, 0, top, left, 0, 0, bottom, right])), values("value", np.float32(pad_value))]
        nodes.append(helper.make_node("Pad", [last, "amounts", "value"], ["padded"], mode=pad_mode))
        last, pads = "padded", (0, 0, 0, 0)
    nodes.append(
        helper.make_node(
            "Conv", [last, "w2", "b2"], ["filtered"], kernel_shape=[kernel] * 2, strides=[step] * 2, pads=list(pads), group=6
        )
    )
    nodes.append(helper.make_node("Conv", [activate("filtered"), "w3", "b3"], ["y"], kernel_shape=[1, 1]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", also_wanted) if name]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, height, width])
    graph = helper.make_graph(nodes, "block", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def answers(model, x):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(7, 40),
    width=st.integers(5, 12),
    kernel=st.sampled_from([1, 3, 5]),
    step=st.sampled_from([1, 2, 3]),
    data=st.data(),
    by_node=st.booleans(),
    activation=st.sampled_from(["Clip", "Relu", ""]),
    rows=st.integers(1, 12),
)
def test_strips_change_no_number(height, width, kernel, step, data, by_node, activation, rows):
    pads = data.draw(st.tuples(*[st.integers(0, kernel - 1)] * 4))
    model = block(height=height, width=width, kernel=kernel, step=step, pads=pads, by_node=by_node, activation=activation)
    x = np.random.default_rng(height).standard_normal((1, 3, height, width)).astype(np.float32)
    before = model.SerializeToString()
    cut = in_strips(model, strip=rows * 4 * 6 * width, **BYTES)
    assert model.SerializeToString() == before
    onnx.checker.check_model(cut, full_check=True)
    (expected,), (got,) = answers(model, x), answers(cut, x)
    assert got.shape == expected.shape and np.allclose(got, expected, rtol=1e-5, atol=1e-5)
    # A strip makes the rows it was allowed, and what the filter looks at beyond them.
    assert all(shape[2] <= rows + step + kernel for shape in wide_maps(cut))


@pytest.mark.parametrize(
    "unsafe",
    [
        {"also_wanted": "wide"},
        {"also_wanted": "wide active"},
        {"also_wanted": "filtered"},
        {"by_node": True, "pad_value": 1.0},
        {"by_node": True, "pad_mode": "reflect"},
        {"pads": (3, 1, 0, 1)},
        {"pads": (0, 1, 3, 1)},
    ],
    ids=str,
)
def test_what_somebody_else_wants_or_is_padded_otherwise_stays(unsafe):
    model = block(**unsafe)
    assert in_strips(model, strip=1, **BYTES) is model


def test_of_blocks_that_share_a_convolution_one_is_cut():
    """Widen, filter, mix, filter, narrow, as in MobileNet's first version."""
    model = block()
    (second,) = (node for node in block().graph.node if list(node.output) == ["filtered"])
    second.input[0], second.output[0] = "mixed", "filtered again"
    narrow = model.graph.node[-1]
    mix = helper.make_node("Conv", [narrow.input[0], "mixing"], ["mixed"], kernel_shape=[1, 1])
    last = helper.make_node("Conv", ["filtered again", "w3", "b3"], ["y"], kernel_shape=[1, 1])
    del model.graph.node[-1]
    model.graph.node.extend([mix, second, last])
    mixing = np.random.default_rng(3).standard_normal((6, 6, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mixing, "mixing"))
    model = onnx.shape_inference.infer_shapes(model)
    x = np.random.default_rng(4).standard_normal((1, 3, 23, 9)).astype(np.float32)
    cut = in_strips(model, strip=1, **BYTES)
    onnx.checker.check_model(cut, full_check=True)
    assert any(node.op_type == "Slice" for node in cut.graph.node)
    assert np.allclose(answers(cut, x)[0], answers(model, x)[0], rtol=1e-5, atol=1e-5)


def test_small_maps_stay():
    model = block()
    assert in_strips(model, large_map=4 * 6 * 23 * 9, strip=1) is model
    assert in_strips(model, large_map=4 * 6 * 23 * 9 - 1, strip=1) is not model


def test_the_embedded_models_largest_maps_are_never_whole_and_its_answers_the_same(street):
    import cv2
    import openvino

    network, _ = registry.build_network(registry.locate("tiny", offline=True))
    model = onnx_export.export_backbone(network.eval(), height=128, width=160)
    cut = in_strips(model, large_map=200_000, strip=100_000)
    assert len(cut.graph.node) > len(model.graph.node)
    image = cv2.resize(street, (160, 128), interpolation=cv2.INTER_AREA)[None]
    core, options = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    expected, got = (
        core.compile_model(core.read_model(each.SerializeToString()), "CPU", options)(image).to_tuple() for each in (model, cut)
    )
    assert len(expected) == len(got) == 4
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    first, *widened = wide_maps(cut)  # what filters the stem's map widens nothing
    assert max(4 * np.prod(shape) for shape in widened) <= 200_000 < 4 * np.prod(first)


def wide_maps(model):
    """Shapes of what depthwise convolutions filter, in the order of the graph."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    return [
        shapes[node.input[0]]
        for node in inferred.node
        if node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
