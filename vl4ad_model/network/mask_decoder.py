"""The mask decoder of FC-CLIP: learned queries look at the image and become masks with embeddings.

Against the public implementation three kinds of work are left out, none of which changes the result: class embeddings of
all prediction heads but the last; full-resolution masks where only an attention mask is wanted (a mask is linear in the
mask features, so resizing the features once per level replaces resizing N masks per layer); index lists for fully
blocked rows (`where` instead, which also exports).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model.network.exporting import is_exporting
from vl4ad_model.network.pixel_decoder import PixelFeatures
from vl4ad_model.network.position import sine_position_embedding


class QueryMasks(NamedTuple):
    """What a prediction head says.

    Attributes:
        mask_logits: (B, N, h, w), or (B, N, P) at points.
        query_embeddings: (B, N, D), the in-vocabulary branch.
        named: (B, N, D), the out-of-vocabulary branch of a decoder that has one (`MaskDecoder.naming`); else None.
    """

    mask_logits: Tensor
    query_embeddings: Tensor
    named: Tensor | None = None


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Attention(nn.MultiheadAttention):
    """Multi-head attention with torch's parameter layout, batch first, and a mask shared by all heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads, batch_first=True)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B, N, C) queries, (B, L, C) keys and values, `allowed` (B, N, L) bool: True where a query may look."""
        channels, heads = self.embed_dim, self.num_heads
        weight, bias = self.in_proj_weight, self.in_proj_bias
        on_cpu = query.device.type == "cpu"  # FLOPs are counted on torch's device "meta", as a GPU computes
        if on_cpu and heads * query.shape[1] <= channels + query.shape[1]:
            return self._of_few_queries(query, key, value, allowed)

        def project(x: Tensor, part: int) -> Tensor:
            rows = slice(part * channels, (part + 1) * channels)
            y = F.linear(x, weight[rows], bias[rows])
            return y.view(y.shape[0], y.shape[1], heads, channels // heads).transpose(1, 2)

        q, k, v = project(query, 0), project(key, 1), project(value, 2)
        if q.is_cuda:
            mask = None if allowed is None else allowed[:, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            # torch's fused attention is faster on a CPU but rounds otherwise, and what follows thresholds masks at zero:
            # spelt out, it is FC-CLIP's own order.
            scores = (q * math.sqrt(heads / channels)) @ k.transpose(-2, -1)
            if allowed is not None:
                scores.masked_fill_(~allowed[:, None], float("-inf"))
            y = scores.softmax(-1) @ v
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _of_few_queries(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        """The same with the projections of keys and values on the queries' side.

        No more multiplications where the queries are few, and no map is projected, copied and turned round head by head: on a CPU
        that is a third of the time. A key's bias adds the same to all scores of a query and drops out of the softmax.
        """
        batch, count, channels, heads = query.shape[0], query.shape[1], self.embed_dim, self.num_heads
        width = channels // heads
        of_query, of_key, of_value = self.in_proj_weight.view(3, channels, channels).unbind()
        q = F.linear(query, of_query, self.in_proj_bias[:channels]) * math.sqrt(1 / width)
        q = q.view(batch, count, heads, width).transpose(1, 2)
        wide = (q @ of_key.view(heads, width, channels)).flatten(1, 2)
        scores = (wide @ key.transpose(1, 2)).view(batch, heads, count, -1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        looked = (scores.softmax(-1).flatten(1, 2) @ value).view(batch, heads, count, channels)
        y = looked @ of_value.view(heads, width, channels).transpose(1, 2) + self.in_proj_bias[2 * channels :].view(heads, 1, width)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, query_position: Tensor, memory: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
        return self.norm(queries + self.multihead_attn(queries + query_position, key, memory, allowed))


class SelfAttentionLayer(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        placed = queries + query_position
        return self.norm(queries + self.self_attn(placed, placed, queries))


class FeedForwardLayer(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))


def pool_over_masks(features: Tensor, mask_logits: Tensor) -> Tensor:
    """Mean of `features` (B, C, h, w) where each of the `mask_logits` (B, N, h, w) is positive: (B, N, C); 0 if nowhere.

    Summed in float32 whatever the precision of the features: in half precision a sum of cells ends at 65504 (a 1024 x 2048 image
    has 131072) and 1e-8 is zero, which made NaN of every empty mask.
    """
    inside = (mask_logits.detach() > 0).float().flatten(2)
    weights = inside / (inside.sum(-1, keepdim=True) + 1e-8)
    if is_exporting():
        # Rows of pixels, as the masks themselves are made: a CPU engine holds maps channels-last and would turn this one round.
        return torch.bmm(weights, _pixel_rows(features).float()).to(features.dtype)
    return torch.bmm(features.flatten(2).float(), weights.transpose(1, 2)).transpose(1, 2).to(features.dtype)


def _pixel_rows(features: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C)."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


class MaskDecoder(nn.Module):
    """Masked-attention transformer decoder (Mask2Former) with FC-CLIP's class embedding.

    Args:
        channels: width of queries and feature maps.
        embed_dim: D, the dimension of CLIP's joint space.
        layers: decoder layers; layer i looks at level i modulo 3.
        linear_naming: have an out-of-vocabulary branch of its own, `naming`: a linear map of the mask features pooled in a mask,
            fitted by `training.naming`.
    """

    def __init__(
        self,
        channels: int,
        embed_dim: int,
        *,
        queries: int,
        layers: int,
        heads: int,
        feedforward: int,
        class_hidden: int,
        mask_channels: int,
        linear_naming: bool = False,
    ) -> None:
        super().__init__()
        self.num_layers = layers
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(channels, heads) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(channels, heads) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(channels, feedforward) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(queries, channels)
        self.query_embed = nn.Embedding(queries, channels)
        self.level_embed = nn.Embedding(3, channels)
        self.mask_embed = MLP(channels, channels, mask_channels, 3)
        self._mask_pooling_proj = nn.Sequential(nn.LayerNorm(mask_channels), nn.Linear(mask_channels, channels))
        self.class_embed = MLP(channels, class_hidden, embed_dim, 3)
        self.naming = nn.Linear(mask_channels, embed_dim) if linear_naming else None
        # ln(1 / 0.07), CLIP's start; lives here because the released checkpoints keep it here.
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    def start_as_identity(self, first: int) -> None:
        """Let the layers from `first` on add nothing yet: a trained decoder that is given further layers goes on from where it was.

        Each then ends with a layer norm alone, which `decoder_norm` undoes: it is another one.
        """
        for layer in range(first, self.num_layers):
            for last in (
                self.transformer_cross_attention_layers[layer].multihead_attn.out_proj,
                self.transformer_self_attention_layers[layer].self_attn.out_proj,
                self.transformer_ffn_layers[layer].linear2,
            ):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def embed_queries(self, decoded: Tensor, pooled: Tensor) -> Tensor:
        """The class embedding of a query: what it has become, and the mean of the mask features inside its mask.

        Args:
            decoded: (B, N, C), after `decoder_norm`.
            pooled: (B, N, mask channels), from `pool_over_masks`.

        Returns:
            (B, N, D), not normalised.
        """
        return self.class_embed(self._mask_pooling_proj(pooled) + decoded)

    def forward(
        self, features: PixelFeatures, *, every_head: bool = False, point_features: Tensor | None = None
    ) -> list[QueryMasks]:
        """Decode.

        Args:
            features: what the pixel decoder made.
            every_head: also return the predictions before the first and after every layer but the last, which only
                training with deep supervision wants.
            point_features: (B, C, P) mask features sampled at points; the masks are then returned there. A mask is linear in
                the mask features, so this is the whole mask sampled at these points, and the gradient of 15,000 pixels per
                mask need not be computed for 4,000 points.

        Returns:
            The last head's `QueryMasks`, or those of all heads in order.
        """
        mask_features = features.mask_features
        batch, channels = mask_features.shape[0], self.query_feat.weight.shape[1]
        memories, keys, small_features = [], [], []
        for index, level in enumerate(features.levels):
            height, width = int(level.shape[-2]), int(level.shape[-1])
            position = sine_position_embedding(height, width, channels, device=level.device).to(level.dtype)
            memory = level.flatten(2).transpose(1, 2) + self.level_embed.weight[index]
            memories.append(memory)
            keys.append(memory + position.flatten(1).T)
            small = F.interpolate(mask_features, size=(height, width), mode="bilinear", align_corners=False)
            small_features.append(_pixel_rows(small))
        pixel_rows = _pixel_rows(mask_features)
        query_position = self.query_embed.weight[None]
        queries = self.query_feat.weight[None].expand(batch, -1, -1)

        heads: list[QueryMasks] = []
        for layer in range(self.num_layers + 1):
            decoded = self.decoder_norm(queries)
            mask_embedding = self.mask_embed(decoded)
            last = layer == self.num_layers
            if last or every_head:
                with torch.set_grad_enabled(torch.is_grad_enabled() and point_features is None):
                    mask_logits = torch.bmm(mask_embedding, pixel_rows.transpose(1, 2)).view(
                        batch, -1, mask_features.shape[-2], mask_features.shape[-1]
                    )
                pooled = pool_over_masks(mask_features, mask_logits)
                named = self.naming(pooled) if self.naming is not None and point_features is None else None
                at_points = mask_logits if point_features is None else torch.bmm(mask_embedding, point_features)
                heads.append(QueryMasks(at_points, self.embed_queries(decoded, pooled), named))
            if last:
                break
            level_index = layer % len(memories)
            with torch.no_grad():
                # sigmoid(x) < 0.5 blocks; a query that is blocked everywhere may look everywhere.
                allowed = torch.bmm(mask_embedding, small_features[level_index].transpose(1, 2)) >= 0
                allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
            queries = self.transformer_cross_attention_layers[layer](
                queries, query_position, memories[level_index], keys[level_index], allowed
            )
            queries = self.transformer_self_attention_layers[layer](queries, query_position)
            queries = self.transformer_ffn_layers[layer](queries)
        return heads
