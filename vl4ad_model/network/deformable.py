"""Multi-scale deformable attention (Deformable DETR) in plain PyTorch: grid_sample, constant shapes, no custom op."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model import triton_attention
from vl4ad_model.network.exporting import is_exporting
from vl4ad_model.network.position import cell_counts

CHUNK = 512  # tokens at a time in inference on a CPU: what lies between two steps stays in its cache


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
            points: (L, 2) float32, centres of the cells in [0, 1], x before y.
            value: (B, L, C), the levels one after another.
            sizes: (height, width) of each level, Python integers, so that an exported graph has constant shapes.

        Returns:
            (B, L, C).
        """
        plain = not (torch.is_grad_enabled() or is_exporting() or query.is_cuda)
        if plain and query.dtype == torch.float32:
            return self.output_proj(self._gather_rows(query, points, self.value_proj(value), sizes))
        batch, length, _ = query.shape
        heads, levels, count = self.heads, self.levels, self.points
        depth = self.channels // heads
        values = self.value_proj(value)
        offsets = self.sampling_offsets(query).view(batch, length, heads, levels, count, 2)
        logits = self.attention_weights(query).view(batch, length, heads, levels * count)
        if query.is_cuda and not (torch.is_grad_enabled() or is_exporting()):
            by_head = values.view(batch, length, heads, depth)
            total = triton_attention.deformable_sum(by_head, offsets, logits, points, sizes)
            if total is not None:
                return self.output_proj(total)
        # Channels before tokens: one transpose here gives grid_sample its (B * heads, depth, h, w) maps as views.
        values = values.transpose(1, 2).reshape(batch * heads, depth, length)
        weights = logits.softmax(-1).view(batch, length, heads, levels, count)
        # In mixed precision tokens are float32 and their places must be, too: half precision would move them by half a cell.
        centres = points.to(query.dtype).view(1, length, 1, 1, 2)

        parts = []
        start = 0
        for level, (height, width) in enumerate(sizes):
            area = height * width
            level_map = values[:, :, start : start + area].reshape(batch * heads, depth, height, width)
            start += area
            cells = cell_counts(height, width, device=offsets.device).to(offsets.dtype)
            places = centres + offsets[:, :, :, level] / cells  # (B, L, heads, points, 2)
            grid = 2 * places - 1  # as grid_sample counts
            grid = grid.transpose(1, 2).reshape(batch * heads, length, count, 2)
            sampled = F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, length, count)
            # (B * heads, depth, L, points); in place where no gradient needs the samples: fresh memory costs time.
            parts.append(sampled * weight if torch.is_grad_enabled() else sampled.mul_(weight))
        level_by_level = is_exporting()  # engines copy what they concatenate
        summed = reduce(torch.add, [part.sum(-1) for part in parts]) if level_by_level else torch.cat(parts, dim=-1).sum(-1)
        return self.output_proj(summed.view(batch, self.channels, length).transpose(1, 2).contiguous())

    def _gather_rows(self, query: Tensor, points: Tensor, values: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """The same sum for float32 inference on a CPU: bags of weighted rows of `values`, one bag per token and head.

        The four neighbours of a place are rows, their bilinear weight times the attention weight is the row's weight, and
        `embedding_bag` adds them up without ever storing a sample. Sums are rounded in another order than grid_sample's.
        A border of zeros around every map makes places outside it count as zero.

        Args:
            query, points, sizes: as in `forward`.
            values: (B, L, C), projected.

        Returns:
            (B, L, C), before the output projection.
        """
        batch, length, channels = query.shape
        heads, levels, count = self.heads, self.levels, self.points
        columns = (heads, levels, count)  # what lies beside one another in a row of the tensors below
        wide = heads * levels * count

        def per_level(numbers: list[int]) -> Tensor:
            return points.new_tensor(numbers).view(1, levels, 1).expand(columns).reshape(wide)

        widths, heights = per_level([w for _, w in sizes]), per_level([h for h, _ in sizes])
        starts = [0]
        for h, w in sizes:
            starts.append(starts[-1] + (h + 2) * (w + 2))
        start, stride = per_level(starts[:-1]), widths + 2
        head = torch.arange(heads, dtype=torch.int32).view(heads, 1, 1).expand(columns).reshape(wide)
        row_step = (stride * heads).int()
        # A place is its token's centre plus an offset, in cells, counted from the border: all x, then all y.
        spread = torch.stack((torch.cat((widths, torch.zeros_like(widths))), torch.cat((torch.zeros_like(heights), heights))))
        order = torch.arange(wide * 2).view(wide, 2).T.flatten()
        weight, bias = self.sampling_offsets.weight[order], self.sampling_offsets.bias[order] + 0.5
        last = torch.cat((widths, heights)) + 1
        result = torch.empty_like(values)
        for image in range(batch):
            maps = values[image].split([h * w for h, w in sizes])
            padded = [
                F.pad(level.view(h, w, channels), (0, 0, 1, 1, 1, 1)).flatten(0, 1)
                for level, (h, w) in zip(maps, sizes, strict=True)
            ]
            # Beyond the last border, where a weight of zero may still point.
            padded.append(values.new_zeros(sizes[-1][1] + 4, channels))
            table = torch.cat(padded).view(-1, channels // heads)
            beside = table[heads:]
            for first in range(0, length, CHUNK):
                tokens = query[image, first : first + CHUNK]
                size = tokens.shape[0]
                places = F.linear(tokens, weight, bias).addmm_(points[first : first + CHUNK], spread)
                places = torch.minimum(places, last).clamp_(min=0)
                cell = places.floor()
                right, down = places.sub_(cell).split(wide, dim=1)
                rows = torch.addcmul(start, cell[:, wide:], stride).add_(cell[:, :wide]).int()
                rows = rows.clamp_(0, starts[-1]).mul_(heads).add_(head)  # no number has a row; its weight keeps it no number
                bags = rows.view(size * heads, -1)
                attention = self.attention_weights(tokens).view(size * heads, -1).softmax(-1).view(size, wide)
                lower = attention * down
                upper = attention.sub_(lower)
                total: Tensor | None = None
                for rows_weight in (upper, lower):
                    weights = rows_weight * right
                    for source, row_weights in ((table, rows_weight.sub_(weights)), (beside, weights)):
                        part = F.embedding_bag(bags, source, per_sample_weights=row_weights.view(size * heads, -1), mode="sum")
                        total = part if total is None else total.add_(part)
                    bags = rows.add_(row_step).view(size * heads, -1)
                result[image, first : first + size] = total.view(size, channels)
        return result


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
        if torch.is_grad_enabled() or is_exporting() or tokens.is_cuda:
            return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))
        # In parts that stay in a CPU's cache, in place.
        parts = tokens.split(CHUNK, dim=1)
        return torch.cat([self.norm2(self.linear2(self.linear1(part).relu_()).add_(part)) for part in parts], dim=1)
