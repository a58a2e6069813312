"""What the network says about an image before any word is spoken: masks and embeddings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MaskProposals:
    """Mask proposals of a batch of images. They do not depend on any vocabulary; text enters only in scoring.

    Attributes:
        mask_logits: (B, N, h, w) float; h x w is `padded_size` / 4.
        query_embeddings: (B, N, D) float, not normalised; compared with text by cosine (the in-vocabulary branch).
        pooled_embeddings: (B, N, D) float, CLIP's own dense features pooled over each mask and passed through CLIP's head
            (the out-of-vocabulary branch), not normalised; None where the branch was not asked for.
        pooled_valid: (B, N) bool, False where a query's mask is empty, so that its pooled embedding means nothing;
            None where the checkpoint does not make that distinction (FC-CLIP does so for ResNet towers only).
        image_size: (H, W) of the network input without padding, in pixels.
        padded_size: (H, W) of the network input, multiples of 32, in pixels.
        images: (B, 3, H, W) RGB in grey levels, uint8 or float, what the network was given: at least `image_size`, at most
            `padded_size`; None where the network's masks are upsampled without it (`FCCLIPConfig.colour_tolerance`).
    """

    mask_logits: Tensor
    query_embeddings: Tensor
    pooled_embeddings: Tensor | None
    pooled_valid: Tensor | None
    image_size: tuple[int, int]
    padded_size: tuple[int, int]
    images: Tensor | None = None

    def image(self, index: int) -> MaskProposals:
        """The proposals of one image of the batch, as a batch of one (views, no copy)."""
        part = slice(index, index + 1)
        return MaskProposals(
            self.mask_logits[part],
            self.query_embeddings[part],
            None if self.pooled_embeddings is None else self.pooled_embeddings[part],
            None if self.pooled_valid is None else self.pooled_valid[part],
            self.image_size,
            self.padded_size,
            None if self.images is None else self.images[part],
        )

    def on(self, device: str | torch.device) -> MaskProposals:
        """The proposals on a device; themselves where they are there already."""
        return self._each(lambda tensor: tensor.to(device))

    def clone(self) -> MaskProposals:
        """A copy."""
        return self._each(lambda tensor: tensor.clone())

    def _each(self, change: Callable[[Tensor], Tensor]) -> MaskProposals:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if hasattr(value, "shape")})

    def joined_with(self, others: MaskProposals) -> MaskProposals:
        """One batch of the images of both."""
        import torch

        theirs = {field.name: getattr(others, field.name) for field in fields(others)}
        joined = {
            name: torch.cat((getattr(self, name), value.to(getattr(self, name).device)))
            for name, value in theirs.items()
            if hasattr(value, "shape")
        }
        return replace(self, **joined)
