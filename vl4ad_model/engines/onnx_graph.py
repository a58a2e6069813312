"""Rewrites of an exported ONNX graph that change no number: sizes become constants, or all floats become half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# Operators whose output size depends on data (TensorRT and most compilers refuse or slow down), and control flow.
FORBIDDEN = ("NonZero", "ScatterND", "ScatterElements", "Loop", "If", "Scan")
# What is left of size arithmetic after folding would be a bug here.
SIZE_ARITHMETIC = ("Shape", "Size", "ConstantOfShape", "Range", "NonZero")
_LARGE = 4096  # elements; larger constants are weights, not sizes
_FOLDED_LIMIT = 1 << 22  # elements; folding must not blow the file up


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every size and every other constant expression an initializer, but for what would blow the file up.

    Torch's exporter leaves hundreds of Shape, Gather and Concat nodes although all sizes are known. Weights are set aside
    meanwhile, so that shape inference copies kilobytes and not the whole network.

    Args:
        model: is changed.
    """
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    weights = {i.name: i for i in graph.initializer if np.prod(i.dims, dtype=np.int64) > _LARGE}
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.name not in weights}
    light = onnx.ModelProto()
    light.ir_version, light.producer_name = model.ir_version, model.producer_name
    light.opset_import.extend(model.opset_import)
    light.graph.name = graph.name
    light.graph.input.extend(graph.input)
    light.graph.output.extend(_without_shape(output) for output in graph.output)
    light.graph.input.extend(onnx.helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in weights.values())
    nodes = list(graph.node)
    outputs = {output.name for output in graph.output}
    same: dict[str, str] = {}  # copies of weights, by the weight's name

    changed = True
    while changed:
        changed = False
        del light.graph.node[:], light.graph.initializer[:], light.graph.value_info[:]
        light.graph.node.extend(nodes)
        light.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
        shapes = _static_shapes(inferred.graph)
        kept = []
        for node in nodes:
            for position, name in enumerate(node.input):
                node.input[position] = same.get(name, name)
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Shape" and node.input[0] in shapes:
                constants[node.output[0]] = _sliced_shape(node, shapes[node.input[0]])
            elif node.op_type == "Identity" and node.input[0] in constants:
                constants[node.output[0]] = constants[node.input[0]]
            elif node.op_type == "Identity" and node.input[0] in weights and node.output[0] not in outputs:
                same[node.output[0]] = node.input[0]
            elif node.input and all(name == "" or name in constants or name in weights for name in node.input):
                large = [name for name in node.input if name in weights]
                if any(np.prod(shapes.get(name, (0,)), dtype=np.int64) > _FOLDED_LIMIT for name in (*large, *node.output)):
                    kept.append(node)
                    continue
                feeds = {name: constants[name] for name in node.input if name in constants}
                feeds |= {name: numpy_helper.to_array(weights[name]) for name in large}
                results = ReferenceEvaluator(_single_node_model(node, feeds, model)).run(None, feeds)
                for name, value in zip(node.output, map(np.asarray, results), strict=True):
                    if value.size > _LARGE:
                        weights[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
                        described = onnx.helper.make_tensor_value_info(name, weights[name].data_type, list(value.shape))
                        light.graph.input.append(described)
                    else:
                        constants[name] = value
            else:
                kept.append(node)
                continue
            changed = True
        nodes = kept

    nodes = _alive(nodes, {output.name for output in graph.output})
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del light.graph.node[:], light.graph.initializer[:], light.graph.value_info[:], light.graph.input[:]
    light.graph.node.extend(nodes)
    light.graph.input.extend(graph.input)
    light.graph.initializer.extend(numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in constants.items() if k in used)
    light.graph.initializer.extend(value for key, value in weights.items() if key in used)
    shapes = _output_shapes(light, weights)
    for output in light.graph.output:
        _set_shape(output, shapes[output.name])
    return light


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with float16 weights and arithmetic, but for what float16 cannot hold: sums over masks, and places in a map.

    Half precision is written into the graph, because strongly typed compilers (TensorRT for RTX) take the types as they are.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    full, ends = (masks | places for masks, places in zip(_mask_means(graph), _sampled_places(graph), strict=True))
    # Resize keeps its scales in float32 whatever it resizes.
    scales = {node.input[2] for node in graph.node if node.op_type == "Resize" and len(node.input) > 2 and node.input[2]}
    floats = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in scales:
            floats[tensor.name] = numpy_helper.to_array(tensor)
            values = np.clip(floats[tensor.name], -65504, 65504).astype(np.float16)
            if values.size == 1 and not values.any() and floats[tensor.name].any():  # the least value of a divisor must not be zero
                values = np.full_like(values, np.copysign(np.finfo(np.float16).tiny, floats[tensor.name].item()))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        inside = node.output[0] in full or node.output[0] in ends
        if node.op_type == "Cast" and not inside:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        if inside and node.op_type in (*_ARITHMETIC, *_MOVES):
            for position, name in enumerate(node.input if node.op_type in _ARITHMETIC else node.input[:1]):
                if name in floats and node.op_type != "ReduceSum":
                    node.input[position] = name + "_full"
                    if all(tensor.name != name + "_full" for tensor in graph.initializer):
                        graph.initializer.append(numpy_helper.from_array(floats[name], name + "_full"))
                elif name not in full and name not in _names(graph.initializer):
                    node.input[position] = f"{name}_full_{len(nodes)}"
                    nodes.append(onnx.helper.make_node("Cast", [name], [node.input[position]], to=TensorProto.FLOAT))
        if node.output[0] in ends:
            name = node.output[0]
            node.output[0] = name + "_full"
            nodes.append(node)
            nodes.append(onnx.helper.make_node("Cast", [name + "_full"], [name], to=TensorProto.FLOAT16))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for output in graph.output:
        if output.type.tensor_type.elem_type == TensorProto.FLOAT:
            output.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


_ARITHMETIC = ("ReduceSum", "MatMul", "Add", "Sub", "Mul", "Div", "GridSample")
_SUMS = ("ReduceSum", "MatMul", "Add", "Div")
_MOVES = ("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Unsqueeze")


def _names(values: Any) -> set[str]:
    return {value.name for value in values}


def _sampled_places(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Where maps are sampled, from the offsets on, which stay float32, and the samples, with which float16 goes on.

    Between -1 and 1 float16 has steps of up to an eighth of a cell of a map that is 256 cells wide.
    """
    users: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            users.setdefault(name, []).append((node, position))
    full: set[str] = set()
    for node in reversed(graph.node):
        follow = users.get(node.output[0], [])
        if node.op_type in (*_ARITHMETIC, *_MOVES) and node.op_type != "MatMul" and follow and all(
            user.output[0] in full or (user.op_type == "GridSample" and position == 1) for user, position in follow
        ):  # fmt: skip
            full.add(node.output[0])
    return full, {node.output[0] for node in graph.node if node.op_type == "GridSample"}


def _mask_means(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Tensors of the means over masks that stay float32, and the means themselves, where they end.

    A mask of a 1024 x 2048 image has up to 131072 cells, and float16 ends at 65504. The network sums masks in float32 for that
    reason (`pool_over_masks`); in its graph that is a cast of a comparison that is summed, and then either multiplied with features
    and divided by the sum, or divided by the sum and multiplied with features.
    """
    users: dict[str, list[Any]] = {}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    full: set[str] = set()
    ends: set[str] = set()
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None or source.op_type != "Greater":
            continue
        masks = {node.output[0]}
        for user in users.get(node.output[0], []):
            if user.op_type in ("Reshape", "Flatten"):
                masks.add(user.output[0])
        kinds = {user.op_type for name in masks for user in users.get(name, [])}
        if "ReduceSum" not in kinds or not kinds & {"MatMul", "Div"}:
            continue
        full |= masks
        shares: set[str] = set()  # masks divided by their areas
        pending = [user for name in masks for user in users.get(name, [])]
        while pending:
            user = pending.pop()
            output = user.output[0]
            of_share = any(name in shares for name in user.input)
            if (user.op_type == "Div" and user.input[0] not in masks) or (user.op_type == "MatMul" and of_share):
                ends.add(output)
            elif output not in full and (user.op_type in _SUMS or (user.op_type in ("Transpose", "Reshape") and of_share)):
                full.add(output)
                if user.op_type == "Div" or of_share:
                    shares.add(output)
                pending += users.get(output, [])
    return full, ends


def _without_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    import onnx

    return onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    del value.type.tensor_type.shape.dim[:]
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _static_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return shapes


def _output_shapes(model: onnx.ModelProto, weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of everything, inferred with the weights set aside."""
    import onnx

    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            light.graph.initializer.append(tensor)
    return _static_shapes(onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True).graph)


def _sliced_shape(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    span = {attribute.name: attribute.i for attribute in node.attribute}
    return np.asarray(shape[span.get("start", 0) : span.get("end", len(shape))], dtype=np.int64)


def _single_node_model(node: onnx.NodeProto, constants: dict[str, np.ndarray], model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(constants[name].dtype), None)
        for name in dict.fromkeys(node.input)
        if name
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _alive(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    alive = []
    wanted = set(wanted)
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            alive.append(node)
            wanted.update(name for name in node.input if name)
    return alive[::-1]
