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
