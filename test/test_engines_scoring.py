"""The compiled scoring computes what the tiles compute, and the tiles serve where it cannot."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl4ad_model import native_scoring
from vl4ad_model.network.proposals import MaskProposals
from vl4ad_model.scoring import SCORINGS, Scorer, prepare_classifier
from vl4ad_model.vocabulary import Vocabulary

compiled = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here: scoring runs in PyTorch"
)


def make(queries, size, image, seed, spread, merge=True, hazards=("tyre|tire",), scale=2.0, scoring="max", tolerance=0.0):
    g = torch.Generator().manual_seed(seed)
    vocabulary = Vocabulary.cityscapes().with_hazards(list(hazards))
    rows = torch.randn(sum(map(len, vocabulary.concept_groups)), 16, generator=g)
    classifier = prepare_classifier(
        vocabulary,
        torch.nn.functional.normalize(rows, dim=-1).numpy(),
        classifier="in_vocabulary",
        merge_classes=merge,
        void=torch.randn(16, generator=g),
        in_logit_scale=scale,
        out_logit_scale=2.0,
        scoring=scoring,
        colour_tolerance=tolerance,
    )
    masks = torch.randn(1, queries, *size, generator=g) * spread
    embeddings, padded = torch.randn(1, queries, 16, generator=g), (4 * size[0], 4 * size[1])
    guide = torch.randint(0, 256, (1, *padded, 3), generator=g, dtype=torch.uint8).permute(0, 3, 1, 2)
    # As large as what is scored, or as the network's input.
    guide = guide[..., : image[0], : image[1]] if seed % 2 else guide
    proposals = MaskProposals(masks, embeddings, None, None, image, padded, guide if tolerance else None)
    return proposals, classifier


def without_native(monkeypatch_context, proposals, classifier):
    with monkeypatch_context() as patch:
        patch.setattr(native_scoring, "library", lambda: None)
        return Scorer().score(proposals, classifier)[0]


def assert_nothing_changed(proposals, classifier):
    ours = Scorer().score(proposals, classifier)[0]
    theirs = without_native(pytest.MonkeyPatch.context, proposals, classifier)
    assert (ours.anomaly - theirs.anomaly).abs().max() <= 1e-5
    assert (ours.labels != theirs.labels).float().mean() <= 1e-3


@compiled
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(1, 70), st.integers(0, 31), st.integers(0, 31),
    st.sampled_from([0.0, 1.0, 30.0]), st.booleans(), st.sampled_from(SCORINGS), st.integers(1, 3), st.integers(0, 2**31),
    st.sampled_from([0.0, 13.0]),
)  # fmt: skip
def test_compiled_scoring_equals_the_tiles(queries, h, w, cut_bottom, cut_right, spread, merge, scoring, threads, seed, tolerance):
    image = (max(1, 4 * h - cut_bottom), max(1, 4 * w - cut_right))
    proposals, classifier = make(queries, (h, w), image, seed, spread, merge, scoring=scoring, tolerance=tolerance)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = Scorer().score(proposals, classifier)[0]
        theirs = without_native(pytest.MonkeyPatch.context, proposals, classifier)
    finally:
        torch.set_num_threads(before)
    assert native_scoring.library() is not None
    assert ours.labels.shape == theirs.labels.shape == image
    assert (ours.anomaly - theirs.anomaly).abs().max() <= 1e-5 * max(1.0, float(theirs.anomaly.abs().max()))
    # Two classes that float32 cannot tell apart may change places; where no mask is, all are nothing.
    different = (ours.labels != theirs.labels) & (theirs.anomaly < 1 - 1e-6)
    assert different.float().mean() <= max(1e-3, 1 / ours.labels.numel() if spread else 1.0)


@compiled
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("scale", [2.0, 60.0])
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("tolerance", [0.0, 13.0])
def test_leaving_out_what_cannot_matter_changes_nothing(merge, scale, scoring, tolerance):
    """A street as a trained model sees it: confident masks side by side with soft edges, most classes nowhere near winning."""
    for seed in range(2 if tolerance else 4):
        proposals, classifier = make(40, (48, 80), (190, 318), seed, 1.0, merge, scale=scale, scoring=scoring, tolerance=tolerance)
        g = torch.Generator().manual_seed(seed)
        centre = torch.rand(40, 2, 1, 1, generator=g) * torch.tensor([48.0, 80.0])[:, None, None]
        y, x = torch.meshgrid(torch.arange(48.0), torch.arange(80.0), indexing="ij")
        distance = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
        proposals.mask_logits[0] = 9.0 - 1.5 * distance
        assert_nothing_changed(proposals, classifier)


@compiled
def test_a_class_that_wins_by_little_is_not_left_out():
    """Every query sure of its class, every mask unsure and gently sloped: who wins changes within every block of columns."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(96.0), indexing="ij")
    for seed in range(6):
        proposals, classifier = make(12, (24, 96), (96, 384), seed, 1.0, False, scale=60.0)
        g = torch.Generator().manual_seed(seed)
        wave, turn, phase = (torch.rand(3, 12, 1, 1, generator=g) * torch.tensor([0.3, 0.3, 6.0])[:, None, None, None]).unbind()
        proposals.mask_logits[0] = torch.sin(wave * x + turn * y + phase)
        assert_nothing_changed(proposals, classifier)


@compiled
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("tolerance", [0.0, 13.0])
def test_a_nan_in_a_mask_is_not_hidden(scoring, tolerance):
    proposals, classifier = make(8, (8, 8), (32, 32), 0, 3.0, scoring=scoring, tolerance=tolerance)
    proposals.mask_logits[0, 3, 4, 4] = float("nan")
    assert Scorer().score(proposals, classifier)[0].anomaly.isnan().any()


def test_without_a_compiler_the_tiles_serve_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(native_scoring.shutil, "which", lambda name: None)
    native_scoring.library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            proposals, classifier = make(8, (8, 8), (32, 32), 0, 3.0)
            maps = Scorer().score(proposals, classifier)[0]
        assert np.isfinite(maps.anomaly.numpy()).all() and "no C compiler here" in caplog.text
    finally:
        native_scoring.library.cache_clear()


def test_a_library_that_is_refused_is_compiled_again_and_kept(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    native_scoring.library.cache_clear()
    try:
        if native_scoring.library() is None:
            pytest.skip("no C compiler here")
        (path,) = (tmp_path / "engines").glob("*.so")
        whole, junk = path.read_bytes(), b"no library, but as its description says"
        description = path.with_name(path.name + ".json")
        values = json.loads(description.read_text())
        description.write_text(json.dumps(values | {"size": len(junk), "sha256": hashlib.sha256(junk).hexdigest()}))
        path.write_bytes(junk)
        native_scoring.library.cache_clear()
        assert native_scoring.library() is not None and "built again: it cannot be loaded" in caplog.text
        assert len(path.read_bytes()) == len(whole)
    finally:
        native_scoring.library.cache_clear()


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(native_scoring.OFF, "0")
    native_scoring.library.cache_clear()
    assert native_scoring.library() is None
    native_scoring.library.cache_clear()


@compiled
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_only_the_masks_are_shared_between_threads():
    """Torch's threads spin after every small product that they share, and keep a core from the masks."""

    def foreign_threads():
        ours = {str(thread.native_id) for thread in threading.enumerate()}
        return {entry.name for entry in Path("/proc/self/task").iterdir()} - ours

    proposals, classifier = make(40, (24, 40), (96, 160), seed=0, spread=5.0)
    seen = []

    def score():  # torch makes other threads for every thread that shares work with them
        torch.set_num_threads(2)
        before = foreign_threads()
        Scorer().score(proposals, classifier)
        seen.extend([foreign_threads() - before, torch.get_num_threads()])

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert seen == [set(), 2]
