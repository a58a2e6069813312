"""FC-CLIP: one frozen convolutional CLIP that both proposes masks and names them (Yu et al., NeurIPS 2023)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model.errors import CheckpointError
from vl4ad_model.image_files import MAX_SIDE
from vl4ad_model.network.clip import FrozenClip, build_open_clip
from vl4ad_model.network.mask_decoder import MaskDecoder, QueryMasks
from vl4ad_model.network.pixel_decoder import PixelDecoder
from vl4ad_model.network.proposals import MaskProposals

SIZE_MULTIPLE = 32
OPENAI_MEAN = (122.7709383, 116.7460125, 104.09373615)
OPENAI_STD = (68.5005327, 66.6321579, 70.32316305)


@dataclass(frozen=True)
class FCCLIPConfig:
    """Everything that shapes an FC-CLIP network.

    Attributes:
        clip_model: open_clip model name.
        clip_config: an open_clip model config where `clip_model` is not one of open_clip's own.
        pixel_mean, pixel_std: RGB, in grey levels 0..255.
        channels: width of pixel and mask decoder.
        encoder_levels: 3, or 2 = deformable attention over strides 32 and 16 only (see `PixelDecoder`).
        mask_channels: width of the mask features at stride 4; 0 = `channels`.
        refined: residual blocks at strides 8 and 4 (see `PixelDecoder`).
        extra_blocks: how many more of them at strides 16, 8 and 4.
        anchored_queries: in training, query k stood for known class k; whoever trains on should know.
        class_hidden: hidden width of the class embedding; 0 = `channels`.
        linear_naming: the out-of-vocabulary branch is the mask decoder's own (`MaskDecoder.naming`), not CLIP's pooled features.
        classifier: what the checkpoint was made for: in_vocabulary, out_of_vocabulary or ensemble.
        alpha, beta: weight of the out-of-vocabulary branch for names seen and unseen in training.
        training_concepts: the words the decoder was trained with; decides between alpha and beta.
        related_words: cosine from which a word that training did not use is also read as the nearest trained one; 0 = never.
            Above 0, the network has `training_rows`, the text embeddings of `training_concepts`.
        rival_margin: cosine by which another word of the training must fit a query better than a hazard's own trained words to
            keep it from that name; 0 = none does. Needs `related_words`.
        related_rival_margin: the same for hazards without a trained word that are read as one.
        scoring: the anomaly score that suits the checkpoint, "max" or "normalized" (see `prepare_classifier`).
        network_size: (height, width) the model works at by default; None = the image's own size.
        colour_tolerance: in grey levels; above 0 masks are upsampled along the image's edges (`network.upsampling`), 0 = bilinear
            interpolation, as in FC-CLIP.
        resize_masks: where output and network size differ, resize the masks before they are combined (as FC-CLIP does); False
            resizes the finished maps, at a fraction of the cost.
    """

    clip_model: str
    clip_config: dict[str, Any] | None = None
    pixel_mean: tuple[float, float, float] = OPENAI_MEAN
    pixel_std: tuple[float, float, float] = OPENAI_STD
    channels: int = 256
    norm_groups: int = 32
    depthwise_fpn: bool = False
    encoder_layers: int = 6
    encoder_heads: int = 8
    encoder_points: int = 4
    encoder_feedforward: int = 1024
    encoder_levels: int = 3
    mask_channels: int = 0
    refined: bool = False
    extra_blocks: tuple[int, int, int] = (0, 0, 0)
    anchored_queries: bool = False
    queries: int = 250
    decoder_layers: int = 9
    decoder_heads: int = 8
    decoder_feedforward: int = 2048
    class_hidden: int = 0
    linear_naming: bool = False
    classifier: str = "ensemble"
    alpha: float = 0.4
    beta: float = 0.8
    training_concepts: tuple[str, ...] = ()
    related_words: float = 0.0
    rival_margin: float = 0.0
    related_rival_margin: float = 0.0
    scoring: str = "max"
    network_size: tuple[int, int] | None = None
    colour_tolerance: float = 0.0
    resize_masks: bool = True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FCCLIPConfig:
        """From JSON values.

        Raises:
            CheckpointError: an entry is unknown or not of its kind, or `clip_model` is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise CheckpointError(f"config.json has unknown entries: {', '.join(unknown)}")
        if "clip_model" not in values:
            raise CheckpointError("config.json names no clip_model")
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        for field in dataclasses.fields(cls):
            if field.name in frozen:
                # People write 13 for 13.0; a compiled kernel takes a whole number for another kind of argument.
                if field.type == "float" and type(frozen[field.name]) is int:
                    frozen[field.name] = float(frozen[field.name])
                if wanted := _wanted(field.name, str(field.type), frozen[field.name]):
                    raise CheckpointError(f"config.json: {field.name} must be {wanted}, not {values[field.name]!r:.60}")
        return cls(**frozen)

    def to_json(self) -> str:
        """Stable JSON text, readable and usable as part of a cache key."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


_SHARES = ("alpha", "beta")
_MAY_BE_NONE = ("encoder_layers", "mask_channels", "class_hidden")


def _wanted(name: str, kind: str, value: Any) -> str:
    """What an entry of `FCCLIPConfig` should be; empty where the value is that."""
    from vl4ad_model.scoring import CLASSIFIERS, SCORINGS  # which needs other parts of this package

    choices = {"classifier": CLASSIFIERS, "scoring": SCORINGS}

    def numbers(count: int, sort: type | tuple[type, ...]) -> bool:
        right = isinstance(value, tuple) and len(value) == count
        return right and all(isinstance(part, sort) and not isinstance(part, bool) and math.isfinite(part) for part in value)

    if name == "network_size":
        multiples = numbers(2, int) and all(32 <= side <= MAX_SIDE and side % 32 == 0 for side in value)
        return "" if value is None or multiples else f"null or [height, width], multiples of 32 up to {MAX_SIDE}"
    if name in choices:
        return "" if value in choices[name] else f"one of {', '.join(choices[name])}"
    if kind == "float":
        number = isinstance(value, float) and math.isfinite(value)
        if name in _SHARES:
            return "" if number and 0 <= value <= 1 else "a number from 0 to 1"
        return "" if number and value >= 0 else "a number of 0 or more"
    if kind == "int":
        least = 0 if name in _MAY_BE_NONE else 1
        return "" if type(value) is int and value >= least else f"a whole number of {least} or more"
    if kind == "bool":
        return "" if isinstance(value, bool) else "true or false"
    if kind == "str":
        return "" if isinstance(value, str) else "a string"
    if kind == "tuple[str, ...]":
        return "" if isinstance(value, tuple) and all(isinstance(part, str) for part in value) else "a list of strings"
    if kind == "tuple[int, int, int]":
        return "" if numbers(3, int) and min(value) >= 0 else "three whole numbers"
    if kind == "tuple[float, float, float]":
        positive = name == "pixel_std"
        right = numbers(3, (int, float)) and not (positive and min(value) <= 0)
        return "" if right else "three numbers" + " above 0" * positive
    return ""


class FCCLIP(nn.Module):
    """The network: images to `MaskProposals`. Text is encoded by its CLIP but enters only in scoring."""

    pixel_mean: Tensor
    pixel_std: Tensor
    training_rows: Tensor

    def __init__(self, config: FCCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = FrozenClip(build_open_clip(config.clip_model, config.clip_config))
        self.pixel_decoder = PixelDecoder(
            self.clip.pyramid_channels,
            config.channels,
            layers=config.encoder_layers,
            heads=config.encoder_heads,
            points=config.encoder_points,
            feedforward=config.encoder_feedforward,
            norm_groups=config.norm_groups,
            depthwise_fpn=config.depthwise_fpn,
            encoder_levels=config.encoder_levels,
            mask_channels=config.mask_channels,
            refined=config.refined,
            extra_blocks=config.extra_blocks,
        )
        self.mask_decoder = MaskDecoder(
            config.channels,
            self.clip.embed_dim,
            queries=config.queries,
            layers=config.decoder_layers,
            heads=config.decoder_heads,
            feedforward=config.decoder_feedforward,
            class_hidden=config.class_hidden or config.channels,
            mask_channels=config.mask_channels or config.channels,
            linear_naming=config.linear_naming,
        )
        self.void_embedding = nn.Embedding(1, self.clip.embed_dim)
        if config.related_words:
            self.register_buffer("training_rows", torch.zeros(len(config.training_concepts), self.clip.embed_dim))
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    def place_image_side(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Move everything that sees images to a device and precision; CLIP's text tower stays on the CPU in float32.

        Text is small work done once per word, and its embeddings are cached: they must not depend on what the images run on.
        """
        for part in (self.clip.model.visual, self.pixel_decoder, self.mask_decoder):
            part.to(device=device, dtype=dtype)
        self.pixel_mean = self.pixel_mean.to(device=device, dtype=dtype)
        self.pixel_std = self.pixel_std.to(device=device, dtype=dtype)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 or float RGB (B, 3, H, W) in 0..255 to normalised float, zero-padded at bottom and right to multiples of 32."""
        dtype = self.pixel_mean.dtype
        normalized = (images.to(dtype) - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        pad_bottom, pad_right = -height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE
        return F.pad(normalized, (0, pad_right, 0, pad_bottom)) if pad_bottom or pad_right else normalized

    def decode(self, normalized: Tensor, *, every_head: bool = False) -> tuple[list[QueryMasks], Tensor]:
        """Normalised, padded images to the mask decoder's heads and CLIP's dense map. What training differentiates."""
        with torch.no_grad():
            features = self.clip(normalized)
        return self.mask_decoder(self.pixel_decoder(features.pyramid), every_head=every_head), features.dense

    def proposal_tensors(self, normalized: Tensor, *, pooled: bool = True) -> tuple[Tensor, ...]:
        """Normalised, padded images to (mask_logits, query_embeddings[, pooled_embeddings, pooled_valid]): what is exported."""
        heads, dense = self.decode(normalized)
        mask_logits, query_embeddings, named = heads[-1]
        if not pooled:
            return mask_logits, query_embeddings
        if named is not None:
            return mask_logits, query_embeddings, named, (mask_logits > 0).flatten(2).any(dim=-1)
        pooled_embeddings, valid = self.clip.pool(dense, mask_logits)
        return mask_logits, query_embeddings, pooled_embeddings, valid

    def forward(self, images: Tensor, *, pooled: bool = True, image_size: tuple[int, int] | None = None) -> MaskProposals:
        """Propose masks.

        Args:
            images: (B, 3, H, W) RGB in 0..255, uint8 or float.
            pooled: also compute the out-of-vocabulary branch.
            image_size: (height, width) of the part that is image, where the caller has padded already.

        Returns:
            `MaskProposals` of the batch.
        """
        normalized = self.normalize(images)
        tensors = self.proposal_tensors(normalized, pooled=pooled)
        height, width = image_size or (int(images.shape[-2]), int(images.shape[-1]))
        return MaskProposals(
            mask_logits=tensors[0],
            query_embeddings=tensors[1],
            pooled_embeddings=tensors[2] if pooled else None,
            # FC-CLIP ignores empty masks for ResNet towers only; for the others the pooled zero vector goes through the head.
            pooled_valid=tensors[3] if pooled and self.clip.is_resnet else None,
            image_size=(height, width),
            padded_size=(int(normalized.shape[-2]), int(normalized.shape[-1])),
            images=images if self.config.colour_tolerance else None,
        )
