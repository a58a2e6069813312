"""The GPU's kernel for deformable attention: on a GPU where there is one, and everywhere in Triton's interpreter, on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from triton_interpreter import CAPABILITIES, registers_and_spills, run_interpreted

from vl4ad_model import triton_attention
from vl4ad_model.network.deformable import MultiScaleDeformableAttention
from vl4ad_model.network.position import reference_points

# sizes, heads, points, depth, batch, spread of the offsets in cells
CASES = [
    ([(3, 5)], 2, 1, 16, 1, 1.0),
    ([(2, 4), (4, 8)], 4, 4, 32, 2, 3.0),
    ([(1, 1), (3, 2), (5, 7)], 8, 4, 32, 1, 30.0),
    ([(1, 2), (2, 4), (4, 8), (8, 16)], 2, 3, 64, 1, 1e12),
]


def case(number: int):
    sizes, heads, points, depth, batch, spread = CASES[number]
    generator = torch.Generator().manual_seed(number)
    length = sum(h * w for h, w in sizes)

    def random(*shape):
        return torch.randn(batch, length, heads, *shape, generator=generator)

    offsets = random(len(sizes), points, 2) * spread
    return random(depth), offsets, random(len(sizes) * points), reference_points(sizes), sizes


def expected(values, offsets, logits, centres, sizes):
    """Level by level with torch's grid_sample, in float64."""
    batch, length, heads, depth = values.shape
    weights = logits.double().softmax(-1).view(*offsets.shape[:-1])
    total, start = torch.zeros(batch, length, heads, depth, dtype=torch.float64), 0
    for level, (h, w) in enumerate(sizes):
        maps = values.double()[:, start : start + h * w].permute(0, 2, 3, 1).reshape(batch * heads, depth, h, w)
        start += h * w
        places = centres.double().view(1, length, 1, 1, 2) + offsets[:, :, :, level].double() / torch.tensor([w, h])
        grid = (2 * places - 1).transpose(1, 2).reshape(batch * heads, length, -1, 2)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, length, -1)
        total += (sampled * weight).sum(-1).view(batch, heads, depth, length).permute(0, 3, 1, 2)
    return total.flatten(2)


def agrees(number: int, ours) -> None:
    assert torch.allclose(ours.double(), expected(*case(number)), atol=2e-5)


INTERPRETED = """
import test_triton_attention as here
from vl4ad_model import triton_attention
for number in range(len(here.CASES)):
    here.agrees(number, triton_attention.launch(*here.case(number), tokens=16))
"""


def test_the_kernel_computes_what_grid_sample_does_in_tritons_interpreter():
    run_interpreted(INTERPRETED)


def test_without_a_gpu_the_kernel_does_not_apply():
    assert triton_attention.deformable_sum(*case(0)) is None


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_keeps_to_their_registers(capability, kind, tmp_path):
    """As the FC-CLIP networks have it: 8 heads of 32 channels, 3 levels, 4 points. One register too few is fine."""
    pytest.importorskip("triton")
    types = {name: f"*{kind}" for name in ("values", "offsets", "logits", "output")} | {"centres": "*fp32"}
    constants = {"HEADS": 8, "LEVELS": 3, "POINTS": 4, "DEPTH": 32, "TOKENS": triton_attention._TOKENS}
    kernel = triton_attention.kernels().deformable_sum
    _, spilled = registers_and_spills(kernel, types, constants, capability, tmp_path, num_warps=triton_attention._WARPS)
    assert spilled <= 16


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_kernel_computes_what_grid_sample_does_on_the_gpu(number):
    *tensors, sizes = case(number)
    agrees(number, triton_attention.deformable_sum(*[tensor.cuda() for tensor in tensors], sizes).cpu())


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-2)])
def test_attention_on_the_gpu_is_the_cpus(precision, tolerance):
    torch.manual_seed(0)
    sizes = [(4, 8), (8, 16), (16, 32)]
    attention = MultiScaleDeformableAttention(256, 3, 8, 4)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.1)
    tokens = torch.randn(2, sum(h * w for h, w in sizes), 256)
    with torch.inference_mode():
        theirs = attention(tokens, reference_points(sizes), tokens, sizes)
        moved = attention.to("cuda", precision)
        there = tokens.to("cuda", precision)
        ours = moved(there, reference_points(sizes, device=there.device), there, sizes)
    assert ours.dtype == precision and torch.allclose(ours.float().cpu(), theirs, atol=tolerance)


def test_training_in_mixed_precision_does_not_move_the_places():
    """With no offsets each token reads its own cell; half a cell beside it lies half of another number."""
    torch.manual_seed(0)
    sizes = [(2, 300)]
    attention = MultiScaleDeformableAttention(32, 1, 2, 4)
    torch.nn.init.zeros_(attention.sampling_offsets.bias)
    tokens = torch.randn(1, 2 * 300, 32)
    full = attention(tokens, reference_points(sizes), tokens, sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attention(tokens, reference_points(sizes), tokens, sizes)
    assert torch.allclose(full, attention.output_proj(attention.value_proj(tokens)), atol=1e-4)
    assert (mixed.float() - full).abs().max() < 0.1
