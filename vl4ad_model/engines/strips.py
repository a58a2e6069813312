"""Widened maps strip by strip: a rewrite of an exported graph that changes no number.

An inverted residual block (MobileNet, EfficientNet) widens a map by six, filters it depthwise and narrows it again. At strides 2
and 4 the wide map is larger than a CPU's caches, so that the three convolutions write and read main memory, and wait for it.
Computed for a few rows at a time, what is between them stays in the cache. Strips share a row or two, which are computed twice.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx

LARGE_MAP = 6 << 20  # bytes; smaller maps stay in a cache as they are
STRIP = 3 << 20  # bytes of the wide map that one strip makes
_ACTIVATIONS = ("Clip", "Relu")


class _Block(NamedTuple):
    """1x1 convolution, activation, padding, depthwise convolution, activation, 1x1 convolution; what a graph lacks is None.

    padding: zeros above, left of, below and right of what the depthwise convolution filters.
    """

    widen: onnx.NodeProto
    first: onnx.NodeProto | None
    pad: onnx.NodeProto | None
    depthwise: onnx.NodeProto
    second: onnx.NodeProto | None
    narrow: onnx.NodeProto
    padding: tuple[int, int, int, int]

    @property
    def convolutions(self) -> list[onnx.NodeProto]:
        """With their activations, in order."""
        return [node for node in (self.widen, self.first, self.depthwise, self.second, self.narrow) if node is not None]


def in_strips(model: onnx.ModelProto, *, large_map: int = LARGE_MAP, strip: int = STRIP) -> onnx.ModelProto:
    """The same graph with the large inverted residual blocks computed strip by strip.

    Args:
        model: float32, static shapes, no control flow; it is not changed.
        large_map: rewrite blocks whose wide map has more bytes than this.
        strip: bytes of the wide map to make at a time.

    Returns:
        a model with the same inputs, outputs and numbers; `model` itself where no block is large.
    """
    import onnx

    blocks = _blocks(model.graph)
    shapes = _shapes(model) if blocks else {}  # which takes seconds for large models
    replaced: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    constants: list[onnx.TensorProto] = []
    for block in blocks:
        wide = shapes.get(block.widen.output[0], ())
        if len(wide) != 4 or 4 * math.prod(wide) <= large_map:
            continue
        height, rows = shapes[block.narrow.output[0]][2], 4 * math.prod(wide) / shapes[block.narrow.output[0]][2]
        count = math.ceil(height / max(1, round(strip / rows)))
        if count < 2:
            continue
        parts = {node.output[0] for node in (*block.convolutions, block.pad) if node is not None}
        if parts & gone:  # its first convolution is the last of a block that is in strips already
            continue
        nodes, numbers = _strips(block, int(wide[2]), int(height), count)
        replaced[block.narrow.output[0]] = nodes
        constants += numbers
        gone |= parts
    if not replaced:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if node.output[0] in replaced:
            result.graph.node.extend(replaced[node.output[0]])
        elif node.output[0] not in gone:
            result.graph.node.append(node)
    del result.graph.value_info[:]
    result.graph.initializer.extend(constants)
    return result


def _blocks(graph: onnx.GraphProto) -> list[_Block]:
    made = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    used_by = {name: node for node in graph.node for name in node.input}

    def before(name: str, kinds: tuple[str, ...]) -> onnx.NodeProto | None:
        """Who makes it, where nobody else wants it."""
        node = made.get(name)
        return node if node is not None and node.op_type in kinds and uses[name] == 1 else None

    def after(name: str, kinds: tuple[str, ...]) -> onnx.NodeProto | None:
        node = used_by.get(name)
        return node if node is not None and node.op_type in kinds and node.input[0] == name and uses[name] == 1 else None

    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = []
    for depthwise in graph.node:
        if depthwise.op_type != "Conv" or not _is_depthwise(depthwise, weights.get(depthwise.input[1], ())):
            continue
        pad = before(depthwise.input[0], ("Pad",))
        first = before((pad or depthwise).input[0], _ACTIVATIONS)
        widen = before((first or pad or depthwise).input[0], ("Conv",))
        second = after(depthwise.output[0], _ACTIVATIONS)
        narrow = after((second or depthwise).output[0], ("Conv",))
        if widen is None or narrow is None or not (_is_pointwise(widen) and _is_pointwise(narrow)):
            continue
        padding = _padding(depthwise, pad, graph)
        # More zeros than the filter is high would make strips of nothing else.
        if padding is not None and max(padding[0], padding[2]) < _attributes(depthwise)["kernel_shape"][0]:
            found.append(_Block(widen, first, pad, depthwise, second, narrow, padding))
    return found


def _attributes(node: onnx.NodeProto) -> dict:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_pointwise(node: onnx.NodeProto) -> bool:
    values = _attributes(node)
    plain = values.get("strides", [1, 1]) == [1, 1] and not any(values.get("pads", [0])) and "auto_pad" not in values
    return plain and values.get("kernel_shape") == [1, 1] and values.get("group", 1) == 1


def _is_depthwise(node: onnx.NodeProto, weight: tuple[int, ...]) -> bool:
    values = _attributes(node)
    plain = values.get("dilations", [1, 1]) == [1, 1] and "auto_pad" not in values and "kernel_shape" in values
    return plain and len(weight) == 4 and weight[1] == 1 and values.get("group", 1) == weight[0] > 1


def _padding(depthwise: onnx.NodeProto, pad: onnx.NodeProto | None, graph: onnx.GraphProto) -> tuple[int, int, int, int] | None:
    """`_Block.padding`; None where something else than zeros is around the map."""
    from onnx import numpy_helper

    top, left, bottom, right = _attributes(depthwise).get("pads", [0, 0, 0, 0])
    if pad is None:
        return top, left, bottom, right
    values = {tensor.name: tensor for tensor in graph.initializer}
    given = [values.get(name) for name in pad.input[1:]]
    if not given or any(tensor is None for tensor in given) or _attributes(pad).get("mode", b"constant") != b"constant":
        return None
    amounts, *value = (numpy_helper.to_array(tensor) for tensor in given if tensor is not None)
    if amounts.shape != (8,) or amounts.min() < 0 or amounts[[0, 1, 4, 5]].any() or any(np.any(v) for v in value):
        return None
    return top + int(amounts[2]), left + int(amounts[3]), bottom + int(amounts[6]), right + int(amounts[7])


def _strips(block: _Block, wide_height: int, height: int, count: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that compute the block in `count` strips of the `height` rows that it makes."""
    import onnx
    from onnx import numpy_helper

    top, left, _, right = block.padding
    values = _attributes(block.depthwise)
    step, kernel = values.get("strides", [1, 1])[0], values["kernel_shape"][0]
    name = block.narrow.output[0]
    nodes: list[onnx.NodeProto] = []
    made: list[str] = []
    constants = [numpy_helper.from_array(np.array([2], np.int64), f"{name}/strips/axis")]
    edges = [round(index * height / count) for index in range(count + 1)]
    for index, (begin, end) in enumerate(itertools.pairwise(edges)):
        low, high = begin * step - top, (end - 1) * step - top + kernel
        rows = np.array([max(low, 0)], np.int64), np.array([min(high, wide_height)], np.int64)
        mark = f"{name}/strips/{index}"
        constants += [numpy_helper.from_array(row, f"{mark}/{what}") for row, what in zip(rows, ("begin", "end"), strict=True)]
        nodes.append(
            onnx.helper.make_node(
                "Slice",
                [block.widen.input[0], f"{mark}/begin", f"{mark}/end", f"{name}/strips/axis"],
                [f"{mark}/rows"],
                name=f"{mark}/rows",
            )
        )
        last = f"{mark}/rows"
        for part in block.convolutions:
            node = onnx.NodeProto()
            node.CopyFrom(part)
            node.name = f"{mark}{part.name or part.output[0]}"
            node.input[0], last = last, node.name
            node.output[0] = last
            if part is block.depthwise:
                del node.attribute[:]
                values["pads"] = [max(0, -low), left, max(0, high - wide_height), right]
                node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in values.items())
            nodes.append(node)
        made.append(last)
    nodes.append(onnx.helper.make_node("Concat", made, [name], name=f"{name}/strips", axis=2))
    return nodes, constants


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        found[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return found
