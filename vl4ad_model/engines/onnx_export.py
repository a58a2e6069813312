"""The network as an ONNX file: static shapes, normalisation inside, no word of any vocabulary.

Input `images`: (B, H, W, 3) uint8 RGB. Outputs, in this order and with these names for ever:
`mask_logits` (B, N, H/4, W/4), `query_embeddings` (B, N, D) and, where asked for, `pooled_embeddings` (B, N, D) and
`pooled_valid` (B, N) bool. Floats are float32, or float16 in half precision. See `MaskProposals` for what they mean.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from vl4ad_model.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from vl4ad_model.network.fcclip import FCCLIP

OPSET = 17  # the first with LayerNormalization; every runtime since 2023 reads it
INPUT = "images"
OUTPUTS = ("mask_logits", "query_embeddings", "pooled_embeddings", "pooled_valid")


def output_names(pooled: bool) -> tuple[str, ...]:
    """Names of the outputs, in order."""
    return OUTPUTS if pooled else OUTPUTS[:2]


def export(
    network: FCCLIP, *, height: int, width: int, batch: int = 1, precision: str = "fp32", pooled: bool = False
) -> onnx.ModelProto:
    """Export the network.

    Args:
        network: in float32, on the CPU.
        height, width: of the images, multiples of 32.
        batch: images per run.
        precision: fp32 or fp16; a graph for bf16 is one for fp32, whose numbers OpenVINO rounds as it runs.
        pooled: with the out-of-vocabulary branch (`pooled_embeddings` and `pooled_valid`).

    Returns:
        a model that passed ONNX's checker, and strict shape inference before any change of precision.

    Raises:
        EngineError: the size is unusable or the graph did not come out as promised.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingDependencyError("onnx", "onnx", "exporting a network")
    if min(height, width) < 32 or height % 32 or width % 32:
        raise EngineError(f"size {height}x{width} cannot be exported: height and width must be multiples of 32")
    if batch < 1:
        raise EngineError(f"batch {batch} cannot be exported: it must be at least 1")

    return _traced(
        network,
        lambda normalized: network.proposal_tensors(normalized, pooled=pooled),
        (batch, height, width, 3),
        list(output_names(pooled)),
        precision,
    )


def export_backbone(network: FCCLIP, *, height: int, width: int, precision: str = "fp32") -> onnx.ModelProto:
    """The frozen image tower alone, with the same input: the yardstick of `vl4ad benchmark engines`."""
    names = [f"stride_{stride}" for stride in (4, 8, 16, 32)]
    return _traced(network, lambda normalized: network.clip(normalized).pyramid, (1, height, width, 3), names, precision)


def _traced(
    network: FCCLIP, compute: Callable[[Tensor], tuple[Tensor, ...]], shape: tuple[int, ...], names: list[str], precision: str
) -> onnx.ModelProto:
    import onnx
    import torch

    from vl4ad_model.engines import onnx_graph
    from vl4ad_model.network.exporting import exporting

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # To float before anything else: TensorRT casts uint8 inputs and does nothing more with them. Normalised as rows of
            # pixels: a CPU engine keeps maps channels-last, so that turning them round afterwards is a matter of names.
            mean, std = (values.view(1, 1, 1, 3) for values in (network.pixel_mean, network.pixel_std))
            return compute(((images.to(mean.dtype) - mean) / std).permute(0, 3, 1, 2))

    stream = io.BytesIO()
    wrapped = Exported().eval()
    with torch.no_grad(), exporting(half=precision == "fp16"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every size that becomes a constant, which is what is wanted
        # The tracing exporter: the newer one knows no opset below 18 and needs a further package.
        torch.onnx.export(
            wrapped,
            (torch.zeros(shape, dtype=torch.uint8),),
            stream,  # type: ignore[arg-type]
            opset_version=OPSET,
            dynamo=False,
            input_names=[INPUT],
            output_names=names,
        )
    model = onnx_graph.fold(onnx.load_model_from_string(stream.getvalue()))
    if precision == "fp16":
        model = onnx_graph.to_half(model)
    model.producer_name = "vl4ad"
    check(model)
    return model


def check(model: onnx.ModelProto) -> None:
    """Make sure a model is what this module promises.

    Raises:
        EngineError: ONNX's checker refuses it, a shape is not static, or an operator depends on data.
    """
    import onnx

    from vl4ad_model.engines import onnx_graph

    try:
        if model.ByteSize() < 1 << 31:
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise EngineError(f"the exported graph is not valid ONNX: {error}") from None
    operators = {node.op_type for node in model.graph.node}
    bad = sorted(operators & {*onnx_graph.FORBIDDEN, *onnx_graph.SIZE_ARITHMETIC})
    if bad:
        raise EngineError(f"the exported graph has operators whose size depends on data: {', '.join(bad)}")
    for value in (*model.graph.input, *model.graph.output):
        if not all(dimension.dim_value > 0 for dimension in value.type.tensor_type.shape.dim):
            raise EngineError(f"the exported graph's '{value.name}' has no static shape")
