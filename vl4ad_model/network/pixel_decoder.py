"""The pixel decoder of FC-CLIP: CLIP's pyramid in, per-pixel mask features and three refined levels out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model.network.deformable import DeformableEncoderLayer
from vl4ad_model.network.exporting import is_exporting, is_exporting_half
from vl4ad_model.network.position import reference_points, sine_position_embedding


class PixelFeatures(NamedTuple):
    """mask_features (B, C, H/4, W/4); levels: three maps (B, C, h, w) at strides 32, 16, 8, in that order."""

    mask_features: Tensor
    levels: list[Tensor]


class GroupNorm(nn.GroupNorm):
    """Group norm as per-channel sums: the same numbers, but an exported graph never reshapes the map.

    Torch exports a group norm as reshape, instance norm, reshape, and a CPU engine that keeps maps channels-last pays for that with
    two transposes of the whole map: at stride 4 of the tiny model 12 ms of 155.
    """

    def forward(self, input: Tensor) -> Tensor:
        # In half precision squares could end at infinity; a compiler's own instance norm adds up in float32.
        if not is_exporting() or is_exporting_half():
            return super().forward(input)
        batch, channels = int(input.shape[0]), self.num_channels
        grouped = (batch, self.num_groups, channels // self.num_groups)
        channel_mean = input.mean(dim=(2, 3), keepdim=True)
        group_mean = channel_mean.view(grouped).mean(dim=2, keepdim=True).expand(grouped).reshape(batch, channels, 1, 1)
        centred = input - group_mean
        variance = (centred * centred).mean(dim=(2, 3)).view(grouped).mean(dim=2, keepdim=True).expand(grouped)
        scale = (variance.reshape(batch, channels, 1, 1) + self.eps).rsqrt() * self.weight.view(1, -1, 1, 1)
        return centred * scale + self.bias.view(1, -1, 1, 1)


class ConvNorm(nn.Conv2d):
    """A convolution with a group norm as its child `norm`, the key layout that detectron2's checkpoints use."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm_groups: int, *, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = GroupNorm(norm_groups, outputs)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))


class DeformableEncoder(nn.Module):
    """A stack of deformable layers over the tokens of all levels."""

    def __init__(self, channels: int, layers: int, levels: int, heads: int, points: int, feedforward: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            DeformableEncoderLayer(channels, levels, heads, points, feedforward) for _ in range(layers)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        sizes = [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        channels = tokens.shape[-1]
        position = torch.cat(
            [
                sine_position_embedding(h, w, channels, device=tokens.device).flatten(1).T + self.level_embed[level]
                for level, (h, w) in enumerate(sizes)
            ]
        ).to(tokens.dtype)
        points = reference_points(sizes, device=tokens.device)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, points, sizes)
        parts = tokens.split([h * w for h, w in sizes], dim=1)
        return [part.transpose(1, 2).reshape(-1, channels, h, w) for part, (h, w) in zip(parts, sizes, strict=True)]


class Refinement(nn.Module):
    """A residual block: a depthwise 3x3 convolution, then every pixel through a hidden layer.

    It starts as the identity, so that a trained decoder can be given one and go on from where it was. It has no norm: what it is
    given comes from one, and at these resolutions a norm is another walk through the whole map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.hidden = nn.Conv2d(channels, channels, kernel_size=1)
        self.back = nn.Conv2d(channels, channels, kernel_size=1)
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.relu(self.hidden(self.around(x))))


class PixelDecoder(nn.Module):
    """Deformable attention over strides 32, 16 and 8, then one FPN step (bilinear) to stride 4.

    Args:
        in_channels: channels of the pyramid at strides 4, 8, 16, 32.
        channels: width of all feature maps.
        depthwise_fpn: use a depthwise 3x3 convolution in the FPN. FC-CLIP's full one is as much work as the whole image
            tower of the tiny model.
        encoder_levels: 3, or 2 to attend over strides 32 and 16 only and reach stride 8 by another FPN step: the tokens of
            stride 8 are three quarters of all, and of the encoder's time.
        mask_channels: width of the mask features; 0 = `channels`. Everything at stride 4 is bound by memory, so this is its price.
        refined: a `Refinement` each at strides 8 and 4; a depthwise FPN alone hardly mixes what it adds up.
        extra_blocks: further ones at strides 16, 8 and 4.
    """

    def __init__(
        self,
        in_channels: tuple[int, int, int, int],
        channels: int,
        *,
        layers: int,
        heads: int,
        points: int,
        feedforward: int,
        norm_groups: int = 32,
        depthwise_fpn: bool = False,
        encoder_levels: int = 3,
        mask_channels: int = 0,
        refined: bool = False,
        extra_blocks: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        if encoder_levels not in (2, 3):
            raise ValueError(f"encoder_levels is 2 or 3, not {encoder_levels}")
        self.encoder_levels = encoder_levels
        fine = mask_channels or channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, channels, kernel_size=1), GroupNorm(norm_groups, channels))
            for inputs in in_channels[: 3 - encoder_levels : -1]
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = DeformableEncoder(channels, layers, encoder_levels, heads, points, feedforward)
        if encoder_levels == 2:
            self.adapter_2 = ConvNorm(in_channels[1], channels, 1, norm_groups)
            self.layer_2 = ConvNorm(channels, channels, 3, norm_groups, groups=channels if depthwise_fpn else 1)
        self.refine_2 = Refinement(channels) if refined else nn.Identity()
        self.refine_1 = Refinement(fine) if refined else nn.Identity()
        self.extra_3, self.extra_2, self.extra_1 = (
            nn.Sequential(*(Refinement(width) for _ in range(count)))
            for width, count in zip((channels, channels, fine), extra_blocks, strict=True)
        )
        # Narrower mask features: the step from `channels` down is taken at stride 8, where it is cheap.
        self.narrow = nn.Conv2d(channels, fine, kernel_size=1) if fine != channels else nn.Identity()
        self.adapter_1 = ConvNorm(in_channels[0], fine, 1, norm_groups)
        self.layer_1 = ConvNorm(fine, fine, 3, norm_groups, groups=fine if depthwise_fpn else 1)
        self.mask_features = nn.Conv2d(fine, fine, kernel_size=1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, pyramid: tuple[Tensor, Tensor, Tensor, Tensor]) -> PixelFeatures:
        """Pyramid maps at strides 4, 8, 16, 32 to `PixelFeatures`."""
        res2, res3, res4, res5 = pyramid
        maps = [project(m) for project, m in zip(self.input_proj, (res5, res4, res3)[: self.encoder_levels], strict=True)]
        levels = self.transformer(maps)
        levels[1] = self.extra_3(levels[1])
        if self.encoder_levels == 2:
            lateral = self.adapter_2(res3)
            middle = lateral + F.interpolate(levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            levels.append(F.relu(self.layer_2(middle)))
        levels[-1] = self.extra_2(self.refine_2(levels[-1]))
        lateral = self.adapter_1(res2)
        coarse = self.narrow(levels[-1])
        fine = lateral + F.interpolate(coarse, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return PixelFeatures(self.mask_features(self.extra_1(self.refine_1(F.relu(self.layer_1(fine))))), levels)
