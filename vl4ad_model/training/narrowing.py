"""A trained decoder's masks, made of fewer numbers per pixel (`FCCLIPConfig.detail_channels`), as nearly the same as can be."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from vl4ad_model.network.fcclip import FCCLIP
from vl4ad_model.training.losses import sample_points

PIXELS = 512  # of each image
STEPS, IMAGES_PER_STEP, LEARNING_RATE = 1500, 16, 3e-3
LEAST = 1e-9  # variance


@torch.no_grad()
def narrowed(network: FCCLIP, frames: Iterable[tuple[Tensor, Tensor]], channels: int, *, steps: int = STEPS) -> dict[str, Tensor]:
    """State of the parts that change when a decoder gets `detail_channels`.

    A mask logit is the product of a query's mask embedding and a pixel's mask features. The best products of `channels` numbers in
    the mean square come from a singular value decomposition; from there both linear maps are fitted to the masks' probabilities,
    because a square cares most about how surely a far pixel is outside. Pixels in and beside small segments count as much as those
    of large ones.

    Args:
        network: with masks at stride 4.
        frames: images (1, 3, H, W) RGB in 0..255 and labels (H, W) int64 in 0..255; more than a few dozen add little.

    Returns:
        The last layer of `mask_embed`, and `Detail.narrow`, by their names in the network.
    """
    decoder = network.mask_decoder
    embeddings: list[Tensor] = []
    pixels: list[Tensor] = []
    hook = decoder.mask_embed.register_forward_hook(lambda module, inputs, output: embeddings.append(output[0]))
    try:
        for image, labels in frames:
            features = network.pixel_decoder(network.clip(network.normalize(image)).pyramid)
            decoder(features)
            del embeddings[len(pixels) : -1]  # the last head's count
            rows = features.mask_features[0].flatten(1).T
            height, width = features.mask_features.shape[-2:]
            small = F.interpolate(labels[None, None].float(), size=(height, width)).long()[0]
            pixels.append(rows[sample_points(small, PIXELS, beside=True)[0]])
    finally:
        hook.remove()
    of_queries, of_pixels = fit(torch.stack(embeddings), torch.stack(pixels), channels, steps)
    last = len(decoder.mask_embed.layers) - 1
    linear = decoder.mask_embed.layers[last]
    name = f"mask_decoder.mask_embed.layers.{last}"
    return {
        f"{name}.weight": of_queries @ linear.weight,
        f"{name}.bias": of_queries @ linear.bias,
        "pixel_decoder.detail.narrow.weight": of_pixels[..., None, None],
    }


def fit(embeddings: Tensor, pixels: Tensor, channels: int, steps: int) -> tuple[Tensor, Tensor]:
    """Two maps (channels, C) of embeddings (M, N, C) and pixels (M, P, C) whose products make masks like theirs."""
    root_q, root_p = _root(embeddings.flatten(0, 1).double()), _root(pixels.flatten(0, 1).double())
    left, sizes, right = torch.linalg.svd(root_q @ root_p)
    share = sizes[:channels].sqrt()
    queries = torch.linalg.solve(root_q, left[:, :channels] * share).float()
    features = torch.linalg.solve(root_p, right[:channels].T * share).float()
    if not steps or channels >= embeddings.shape[-1]:
        return queries.T, features.T
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        queries, features = queries.requires_grad_(), features.requires_grad_()
        optimizer = torch.optim.Adam([queries, features], lr=LEARNING_RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            some = torch.randint(len(embeddings), (IMAGES_PER_STEP,))
            target = (embeddings[some] @ pixels[some].transpose(1, 2)).sigmoid()
            made = (embeddings[some] @ queries) @ (pixels[some] @ features).transpose(1, 2)
            loss = F.binary_cross_entropy_with_logits(made, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return queries.detach().T, features.detach().T


def _root(rows: Tensor) -> Tensor:
    """Symmetric root of the second moments of (n, C) rows."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return (vectors * values.clamp_min(LEAST).sqrt()) @ vectors.T
