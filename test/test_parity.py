"""The network and the scoring compute what the public FC-CLIP computes, stage by stage and end to end."""

from pathlib import Path

import parity_report
import pytest

KIT = Path(__file__).parent / "data" / "parity"


@pytest.mark.parametrize(("variant", "end_to_end"), [("r50", 1e-4), ("convnext_large", 2e-2)])
def test_every_recorded_tensor_is_within_its_tolerance(variant, end_to_end):
    result = parity_report.report(KIT / f"cases_{variant}.json")
    outside = {
        (case, name): entry
        for case, tensors in result["cases"].items()
        for name, entry in tensors.items()
        if entry["verdict"] != "ok"
    }
    assert not outside
    assert all(error <= end_to_end for error in result["sem_seg_mean_error"].values())


@pytest.mark.parametrize("reach", [1.0, 40.0])
def test_both_ways_to_add_up_samples_agree_also_outside_the_maps(reach):
    """Inference on a CPU gathers rows, everything else uses grid_sample."""
    import torch

    from vl4ad_model.network.deformable import MultiScaleDeformableAttention

    torch.manual_seed(3)
    sizes = [(9, 13), (18, 26), (36, 52)]
    length = sum(h * w for h, w in sizes)
    layer = MultiScaleDeformableAttention(32, levels=3, heads=4, points=4)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.2 * reach)
    torch.nn.init.normal_(layer.attention_weights.weight)
    query, value = torch.randn(2, length, 32), torch.randn(2, length, 32)
    points = torch.rand(length, 2)
    sampled = layer(query, points, value, sizes).detach()
    with torch.inference_mode():
        gathered = layer(query, points, value, sizes)
        assert torch.allclose(gathered, sampled, atol=2e-4)
        query[0, 5, 3] = float("nan")
        spoilt = layer(query, points, value, sizes)
    assert spoilt[0, 5].isnan().all() and torch.equal(spoilt[1], gathered[1]), "no number stays no number, and where it was"


@pytest.mark.parametrize("queries", [4, 40, 41, 90])
def test_attention_of_few_and_of_many_queries_is_torchs_own(queries):
    """Up to a number of queries the projections of keys and values are on the queries' side."""
    import torch

    from vl4ad_model.network.mask_decoder import Attention

    torch.manual_seed(queries)
    attention = Attention(128, 4)
    torch.nn.init.normal_(attention.in_proj_bias)
    query, key, value = torch.randn(2, queries, 128), torch.randn(2, 300, 128), torch.randn(2, 300, 128)
    for allowed in (None, torch.rand(2, queries, 300) > 0.6):
        blocked = None if allowed is None else (~allowed).repeat_interleave(4, dim=0)
        expected, _ = torch.nn.MultiheadAttention.forward(attention, query, key, value, attn_mask=blocked)
        assert torch.allclose(attention(query, key, value, allowed), expected, atol=1e-5)


def test_a_wrong_network_is_noticed(monkeypatch):
    """The report must be able to fail: blocking attention with the opposite sign is caught."""
    import torch

    from vl4ad_model.network import mask_decoder

    plain = mask_decoder.CrossAttentionLayer.forward
    monkeypatch.setattr(
        mask_decoder.CrossAttentionLayer,
        "forward",
        lambda self, q, p, m, k, allowed: plain(self, q, p, m, k, torch.ones_like(allowed)),
    )
    result = parity_report.report(KIT / "cases_r50.json")
    assert result["verdict"] == "OUTSIDE"
    assert result["cases"]["256x512"]["predictor.layer0.after_cross"]["verdict"] == "OUTSIDE"
    assert result["cases"]["256x512"]["pixel_decoder.mask_features"]["verdict"] == "ok"
