"""The frozen CLIP: an open_clip model seen as an image pyramid, a dense feature map with its head, and a text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model import torchvision_schemas
from vl4ad_model.errors import CheckpointError
from vl4ad_model.network.mask_decoder import pool_over_masks

STRIDES = (4, 8, 16, 32)


class ClipFeatures(NamedTuple):
    """pyramid: maps at strides 4, 8, 16, 32; dense: the map (B, C, H/32, W/32) that CLIP's own head pools."""

    pyramid: tuple[Tensor, Tensor, Tensor, Tensor]
    dense: Tensor


def build_open_clip(name: str, config: dict[str, Any] | None = None) -> nn.Module:
    """An open_clip CLIP with random weights.

    Args:
        name: one of open_clip's model names, or any name together with `config`.
        config: an open_clip model config (`embed_dim`, `vision_cfg`, `text_cfg`) for a model open_clip does not know.

    Raises:
        CheckpointError: open_clip knows no such model.
    """
    torchvision_schemas.define()
    import open_clip

    if config is None:
        # With a scheme ("hf-hub:...") it would be looked for elsewhere.
        config = None if ":" in name else open_clip.get_model_config(name)
        if config is None:
            raise CheckpointError(f"open_clip {open_clip.__version__} knows no model '{name}': see open_clip.list_models()")
    config = {key: value for key, value in config.items() if key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    vision = dict(config["vision_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # weights come from a checkpoint, never from a silent download
    # Built as open_clip itself builds it, on CPU in float32.
    return open_clip.CLIP(**{**config, "vision_cfg": vision})


def tokenizer(name: str, config: dict[str, Any] | None = None) -> tuple[Callable[[list[str]], Tensor], int]:
    """CLIP's byte-pair tokenizer for a model: texts to ids (L, context), and the id that ends every text."""
    torchvision_schemas.define()
    import open_clip

    if config is None:
        config = open_clip.get_model_config(name) or {}
    simple = open_clip.SimpleTokenizer(context_length=int(config.get("text_cfg", {}).get("context_length", 77)))
    return simple, simple.eot_token_id


class FrozenClip(nn.Module):
    """An open_clip model that only ever infers: always in evaluation mode, no parameter takes gradients.

    Image towers: `ModifiedResNet`, and `TimmModel` around any timm convolutional network with maps at strides 4 to 32.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        visual = model.visual
        self.kind = "resnet" if hasattr(visual, "attnpool") else "timm"
        if self.kind == "resnet":
            width = visual.conv3.out_channels
            self.pyramid_channels = (width * 4, width * 8, width * 16, width * 32)
        elif hasattr(visual, "trunk"):
            self.pyramid_channels, self._feature_indices = _timm_levels(visual.trunk)
        else:
            raise CheckpointError(f"{type(visual).__name__} is no image tower of convolutions (ConvNeXt, ResNet, others of timm's)")
        self.requires_grad_(False)
        self.eval()

    @property
    def embed_dim(self) -> int:
        """D, the dimension of the joint space of images and text."""
        return int(self.model.text_projection.shape[-1])

    @property
    def is_resnet(self) -> bool:
        """True for CLIP's own ResNets with attention pooling."""
        return self.kind == "resnet"

    def train(self, mode: bool = True) -> FrozenClip:
        """Stay in evaluation mode whatever is asked: batch statistics of a frozen network must not move."""
        return super().train(False)

    def forward(self, images: Tensor) -> ClipFeatures:
        """Normalised images (B, 3, H, W), H and W multiples of 32, to `ClipFeatures`."""
        visual = self.model.visual
        if self.kind == "resnet":
            x = visual.act1(visual.bn1(visual.conv1(images)))
            x = visual.act2(visual.bn2(visual.conv2(x)))
            x = visual.avgpool(visual.act3(visual.bn3(visual.conv3(x))))
            res2 = visual.layer1(x)
            res3 = visual.layer2(res2)
            res4 = visual.layer3(res3)
            res5 = visual.layer4(res4)
            return ClipFeatures((res2, res3, res4, res5), res5)
        trunk = visual.trunk
        if hasattr(trunk, "stages"):  # ConvNeXt: its forward_intermediates would normalise the maps
            x, maps = trunk.stem(images), []
            for stage in trunk.stages:
                x = stage(x)
                maps.append(x.contiguous())  # timm leaves them channels-last, which bends the last bits of all that follows
            return ClipFeatures(tuple(maps), trunk.norm_pre(x))
        dense, maps = trunk.forward_intermediates(images, indices=self._feature_indices)
        return ClipFeatures(tuple(maps), dense)

    def pool(self, dense: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's embedding of what lies inside each mask.

        Args:
            dense: (B, C, h, w), `ClipFeatures.dense`.
            mask_logits: (B, N, H', W'); resized to h x w (bilinear), inside where > 0.

        Returns:
            embeddings (B, N, D), not normalised, and valid (B, N) bool: False where no cell is inside.
        """
        masks = F.interpolate(mask_logits, size=dense.shape[-2:], mode="bilinear", align_corners=False)
        inside = (masks > 0).flatten(2)  # (B, N, h * w)
        valid = inside.any(dim=-1)
        if self.kind == "resnet":
            return self._attention_pool(dense, inside.to(dense.dtype)), valid
        pooled = pool_over_masks(dense, masks)
        batch, count, channels = pooled.shape
        visual = self.model.visual
        embeddings = visual.head(visual.trunk.forward_head(pooled.reshape(batch * count, channels, 1, 1)))
        return embeddings.view(batch, count, -1), valid

    def _attention_pool(self, dense: Tensor, inside: Tensor) -> Tensor:
        """CLIP's attention pooling restricted to each mask.

        The query (mean feature plus its position) is the same for all masks, so attention is one row of scores per head and
        each mask takes a weighted mean of the values with the weights that lie inside it.
        """
        pool = self.model.visual.attnpool
        batch, channels, height, width = dense.shape
        heads = pool.num_heads
        embedding = pool.positional_embedding.to(dense.dtype)
        side = round((int(embedding.shape[0]) - 1) ** 0.5)
        grid = embedding[1:].T.reshape(1, channels, side, side)
        grid = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
        tokens = dense.flatten(2).transpose(1, 2)  # (B, L, C)
        placed = tokens + grid.flatten(2).transpose(1, 2)
        query = tokens.mean(dim=1, keepdim=True) + embedding[:1]
        depth = channels // heads

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, heads, depth).transpose(1, 2)  # (B, heads, L, depth)

        scores = split(pool.q_proj(query)) @ split(pool.k_proj(placed)).transpose(2, 3) * depth**-0.5  # (B, heads, 1, L)
        # In float32: a mask on which the shared query hardly looks has weights that float16 takes for zero. A graph that is
        # exported in half precision computes them in half precision nevertheless.
        weights = (scores - scores.amax(dim=-1, keepdim=True)).float().exp()
        masked = inside[:, None].float() * weights  # (B, heads, N, L)
        total = masked.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        pooled = ((masked @ split(pool.v_proj(placed)).float()) / total).to(dense.dtype)
        return pool.c_proj(pooled.transpose(1, 2).flatten(2))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids (L, context) to text embeddings (L, D), not normalised.

        The causal mask keeps what follows a text's end from reaching it, so the padding, most of the context, is left out: the same
        result but for rounding, in a fraction of the time.
        """
        model = self.model
        if model.attn_mask is None or model.text_pool_type != "argmax":
            return model.encode_text(tokens)
        ends = tokens.argmax(dim=-1)  # the end token has the largest id
        length = int(ends.max()) + 1
        x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return x[torch.arange(len(x), device=x.device), ends] @ model.text_projection

    def text_weights_key(self) -> str:
        """SHA-256 over the text tower's weights and layers: names the cache of text embeddings.

        The layers count because the same weights mean something else under another activation (RN50 and RN50-quickgelu) or another
        number of heads.
        """
        digest = hashlib.sha256(repr(self.model.transformer).encode())
        digest.update(str([block.attn.num_heads for block in self.model.transformer.resblocks]).encode())
        for key, tensor in self.model.state_dict().items():
            if not key.startswith("visual."):
                digest.update(key.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def logit_scale(self) -> Tensor:
        """CLIP's own logit scale (logarithm), used by the out-of-vocabulary branch."""
        return self.model.logit_scale  # type: ignore[return-value]


def _timm_levels(trunk: nn.Module) -> tuple[tuple[int, int, int, int], list[int]]:
    """Channels at strides 4, 8, 16, 32 of a timm network and which of its features they are."""
    info = trunk.feature_info
    entries = info.info if hasattr(info, "info") else info
    by_stride = {entry["reduction"]: (entry["num_chs"], index) for index, entry in enumerate(entries)}
    missing = [stride for stride in STRIDES if stride not in by_stride]
    if missing:
        raise CheckpointError(f"image tower {type(trunk).__name__} has no feature map at stride {missing[0]}")
    levels = [by_stride[stride] for stride in STRIDES]
    return tuple(channels for channels, _ in levels), [index for _, index in levels]  # type: ignore[return-value]
