"""Masks at stride 2: what a decoder with `detail_channels` promises, and how a trained one is given them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from vl4ad_model import registry
from vl4ad_model.errors import CheckpointError
from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
from vl4ad_model.training.narrowing import narrowed


@pytest.fixture(scope="module")
def coarse():
    """The tiny network with masks at stride 4 and random weights."""
    _, config = registry.build_network(registry.locate("tiny", offline=True))
    torch.manual_seed(3)
    return FCCLIP(dataclasses.replace(config, detail_channels=0)).eval()


@pytest.fixture(scope="module")
def images(street):
    return [torch.from_numpy(street[None, top : top + 128, :192]).permute(0, 3, 1, 2) for top in (0, 64, 100)]


def given_detail(coarse: FCCLIP, images, channels: int) -> FCCLIP:
    network = FCCLIP(dataclasses.replace(coarse.config, detail_channels=channels)).eval()
    parts = narrowed(coarse, [(image, image[0, 0] // 128) for image in images], channels, steps=100)
    network.load_state_dict({**network.state_dict(), **coarse.state_dict(), **parts})
    return network


@torch.no_grad()
def test_with_all_its_channels_a_decoder_makes_the_same_masks_at_twice_the_resolution(coarse, images):
    fine = given_detail(coarse, images, coarse.config.mask_channels)
    for image in images:
        before, after = coarse(image), fine(image)
        assert after.mask_logits.shape[-2:] == (64, 96) and after.padded_size == (128, 192)
        wide = F.interpolate(before.mask_logits, scale_factor=2, mode="bilinear", align_corners=False)
        assert torch.allclose(after.mask_logits, wide, atol=1e-3 * float(wide.abs().max()))
        assert torch.allclose(after.query_embeddings, before.query_embeddings, atol=1e-3)


@torch.no_grad()
def test_more_channels_come_nearer(coarse, images):
    wide = [F.interpolate(coarse(image).mask_logits, scale_factor=2, mode="bilinear", align_corners=False) for image in images]
    errors = []
    for channels in (4, 16, 48):
        fine = given_detail(coarse, images, channels)
        errors.append(sum(float((fine(i).mask_logits - w).square().mean()) for i, w in zip(images, wide, strict=True)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@torch.no_grad()
def test_what_masks_are_made_of_at_stride_2_changes_only_masks(coarse, images):
    fine = given_detail(coarse, images, 16)
    before = fine(images[0])
    torch.nn.init.normal_(fine.pixel_decoder.detail.back.weight)
    after = fine(images[0])
    assert not torch.allclose(after.mask_logits, before.mask_logits, atol=0.1)
    assert torch.equal(after.query_embeddings, before.query_embeddings)


def test_a_tower_without_a_map_at_stride_2_is_refused():
    with pytest.raises(CheckpointError, match="stride 2"):
        FCCLIP(FCCLIPConfig("RN50", detail_channels=16))
