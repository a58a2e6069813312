"""Multi-scale deformable attention (Deformable DETR) in plain PyTorch: grid_sample, constant shapes, no custom op."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiScaleDeformableAttention(nn.Module):
    """Every token looks at `points` places on each of `levels` feature maps.

    Parameter names and layouts are those of Deformable DETR's `MSDeformAttn`, so released weights load as they are.
    """

    def __init__(self, channels: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads})")
        self.channels, self.levels, self.heads, self.points = channels, levels, heads, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as rays in `heads` directions, attention as an average (Deformable DETR, appendix)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        rays = torch.stack((angles.cos(), angles.sin()), dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = rays[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, points: Tensor, value: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Attend.

        Args:
            query: (B, L, C), L = sum of height * width over the levels.
            points: (L, 2), centres of the cells in [0, 1], x before y.
            value: (B, L, C), the levels one after another.
            sizes: (height, width) of each level, Python integers, so that an exported graph has constant shapes.

        Returns:
            (B, L, C).
        """
        batch, length, _ = query.shape
        heads, levels, count = self.heads, self.levels, self.points
        depth = self.channels // heads
        # Channels before tokens: one transpose here gives grid_sample its (B * heads, depth, h, w) maps as views.
        values = self.value_proj(value).transpose(1, 2).reshape(batch * heads, depth, length)
        offsets = self.sampling_offsets(query).view(batch, length, heads, levels, count, 2)
        weights = self.attention_weights(query).view(batch, length, heads, levels * count).softmax(-1)
        weights = weights.view(batch, length, heads, levels, count)
        centres = points.view(1, length, 1, 1, 2)

        # Every rounding below happens in Deformable DETR's order, one sum over all points included: what follows thresholds
        # masks at zero, and a last bit that differs here flips pixels there.
        parts = []
        start = 0
        for level, (height, width) in enumerate(sizes):
            area = height * width
            level_map = values[:, :, start : start + area].reshape(batch * heads, depth, height, width)
            start += area
            places = centres + offsets[:, :, :, level] / offsets.new_tensor((width, height))  # (B, L, heads, points, 2)
            grid = 2 * places - 1  # as grid_sample counts
            grid = grid.transpose(1, 2).reshape(batch * heads, length, count, 2)
            sampled = F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, length, count)
            # (B * heads, depth, L, points); in place where no gradient needs the samples: fresh memory costs time.
            parts.append(sampled * weight if torch.is_grad_enabled() else sampled.mul_(weight))
        total = torch.cat(parts, dim=-1).sum(-1)
        return self.output_proj(total.view(batch, self.channels, length).transpose(1, 2).contiguous())


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with a residual and a norm after it."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(channels, levels, heads, points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, points: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """(B, L, C) tokens and (L, C) positions to (B, L, C) tokens."""
        tokens = self.norm1(tokens + self.self_attn(tokens + position, points, tokens, sizes))
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))
