"""The Segmenter: images in, maps out, words changed at any time without half measures."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from vl4ad_model import registry
from vl4ad_model.errors import EngineError, ImageError, Vl4adError, VocabularyError
from vl4ad_model.image_files import read_rgb
from vl4ad_model.network.clip import tokenizer
from vl4ad_model.segmenter import Segmenter, fit_image, fit_inside
from vl4ad_model.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]


def test_maps_have_the_size_and_types_they_promise(segmenter, street):
    result = segmenter.segment(street)
    assert result.labels.shape == result.anomaly.shape == (240, 320)
    assert result.labels.dtype == np.uint8 and result.anomaly.dtype == np.float32
    assert np.isfinite(result.anomaly).all() and result.labels.max() < 19
    assert segmenter.segment(street, output_size="network").labels.shape == (384, 512)
    assert segmenter.segment(street, output_size=(100, 90)).anomaly.shape == (100, 90)


def test_the_same_image_gives_the_same_maps_alone_and_in_a_batch(segmenter, street):
    other = street[::-1].copy()
    small = street[:200, :300].copy()
    alone = [segmenter.segment(image) for image in (street, small, other)]
    together = segmenter.segment_batch([street, small, other])
    for a, b in zip(alone, together, strict=True):
        assert np.abs(a.anomaly - b.anomaly).max() < 1e-3
        assert (a.labels != b.labels).mean() < 1e-3


def test_new_words_cost_their_own_encoding_only_and_take_effect_at_once(segmenter, street):
    version, before = segmenter.vocabulary_version, segmenter.encoded_concepts
    plain = segmenter.vocabulary
    try:
        segmenter.vocabulary = plain.with_hazards(["a tyre nobody has named before|an unheard-of tire"])
        assert segmenter.vocabulary_version == version + 1
        assert segmenter.encoded_concepts == before + 2
        assert segmenter.segment(street).vocabulary.names[19] == "a tyre nobody has named before"
        segmenter.vocabulary = plain
        segmenter.vocabulary = plain.with_hazards(["an unheard-of tire"])
        assert segmenter.encoded_concepts == before + 2
    finally:
        segmenter.vocabulary = plain


def test_bad_words_are_refused_and_the_old_ones_stay(segmenter):
    words, version = segmenter.vocabulary, segmenter.vocabulary_version
    with pytest.raises(VocabularyError):
        segmenter.reconfigure(vocabulary=words.with_hazards(["word " * 39]), classifier="in_vocabulary")
    with pytest.raises(VocabularyError, match="classifier 'best' is unknown"):
        segmenter.reconfigure(classifier="best")
    assert segmenter.vocabulary is words and segmenter.vocabulary_version == version


def test_no_image_ever_sees_half_a_change(segmenter, street):
    plain = segmenter.vocabulary
    choices = [plain.with_hazards(["sofa", "tyre"]), plain.with_hazards(["cow"])]
    made = {segmenter.vocabulary_version: plain}
    stop = threading.Event()

    def change():
        index = 0
        while not stop.is_set():
            version = segmenter.reconfigure(vocabulary=choices[index % 2])
            made[version] = choices[index % 2]
            index += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        results = [segmenter.segment(street[:64, :96], output_size="network") for _ in range(6)]
    finally:
        stop.set()
        thread.join()
        segmenter.vocabulary = plain
    for result in results:
        assert made[result.vocabulary_version] == result.vocabulary
        assert result.labels.max() < 19 + result.vocabulary.hazard_count


def test_every_classifier_and_merging_runs(segmenter, street):
    original = segmenter.classifier, segmenter.merge_classes
    try:
        for name in ("in_vocabulary", "out_of_vocabulary", "ensemble"):
            for merge in (True, False):
                segmenter.reconfigure(classifier=name, merge_classes=merge)
                assert np.isfinite(segmenter.segment(street).anomaly).all()
    finally:
        segmenter.reconfigure(classifier=original[0], merge_classes=original[1])


def test_either_score_suits_the_same_labels_and_the_checkpoint_says_which(segmenter, street):
    assert segmenter.scoring == segmenter.default_scoring == "normalized"
    normalized = segmenter.segment(street)
    try:
        segmenter.reconfigure(scoring="max")
        largest = segmenter.segment(street)
    finally:
        segmenter.reconfigure(scoring="normalized")
    assert np.array_equal(normalized.labels, largest.labels)
    assert largest.vocabulary_version == normalized.vocabulary_version + 1
    assert normalized.anomaly.min() >= 0 and normalized.anomaly.max() <= 1
    with pytest.raises(VocabularyError, match="scoring 'best' is unknown: use max, normalized"):
        segmenter.reconfigure(scoring="best")


def test_the_borders_of_an_ordinary_street_are_dark_in_the_normalized_score(segmenter):
    image = read_rgb(sorted((ROOT / "test/data/evaluation/quiet/images").iterdir())[0])
    normalized = segmenter.segment(image)
    segmenter.reconfigure(scoring="max")
    try:
        largest = segmenter.segment(image)
    finally:
        segmenter.reconfigure(scoring="normalized")
    labels = normalized.labels.astype(int)
    border = np.zeros(labels.shape, bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    assert border.sum() > 1000
    assert normalized.anomaly[border].mean() < 0.5 * largest.anomaly[border].mean()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((10, 10), np.uint8), "of RGB"),
        (np.zeros((0, 0, 3), np.uint8), "empty"),
        (np.zeros((64, 64, 1), np.uint8), "of RGB"),
        (np.zeros((64, 64, 3), np.uint16), "uint16"),
        (np.zeros((2, 40000, 3), np.uint8), "40000x2"),
        ("file.png", "of RGB"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(segmenter, image, message):
    with pytest.raises(ImageError, match=message):
        segmenter.segment(image)


@pytest.mark.parametrize("parallel", [1, 3])
def test_several_threads_may_segment_at_once(segmenter, street, parallel):
    images = [np.roll(street, shift, axis=1) for shift in (0, 40, 90, 200)]
    alone = [segmenter.segment(image) for image in images]
    several = segmenter if parallel == 1 else Segmenter.load("tiny", engine=segmenter.engine_name, parallel=parallel, offline=True)
    together: dict[int, object] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: several.segment(images[i])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        if parallel == 1:
            assert np.array_equal(together[index].labels, expected.labels)
            assert np.array_equal(together[index].anomaly, expected.anomaly)
        else:  # fewer threads for each make other sums
            assert (together[index].labels == expected.labels).mean() > 0.999
            assert np.abs(together[index].anomaly - expected.anomaly).max() < 1e-3
    if parallel > 1:
        several.close()


def test_a_thread_that_comes_while_another_computes_alone_learns_the_right_number_of_threads():
    from vl4ad_model import scoring

    before, counts = torch.get_num_threads(), []

    def come():
        scoring.know_thread_count()
        counts.append(torch.get_num_threads())

    torch.set_num_threads(3)
    try:
        with scoring._this_thread_alone():
            newcomer = threading.Thread(target=come)
            newcomer.start()
            newcomer.join(0.2)
        newcomer.join(20)
        assert counts == [3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_no_image_at_a_time_is_refused():
    with pytest.raises(Vl4adError, match="parallel must be at least 1, not 0"):
        Segmenter.load("tiny", parallel=0, offline=True)


def test_words_that_were_asked_for_before_a_change_can_still_be_used(segmenter, street):
    before, vocabulary = segmenter.words, segmenter.vocabulary
    old = segmenter.segment(street)
    try:
        segmenter.vocabulary = vocabulary.with_hazards(["sofa", "asphalt road"])
        later = segmenter.segment(street, words=before)
        assert later.vocabulary_version == before.version < segmenter.vocabulary_version
        assert later.vocabulary is old.vocabulary and np.array_equal(later.anomaly, old.anomaly)
        assert segmenter.segment(street).vocabulary_version == segmenter.vocabulary_version
    finally:
        segmenter.vocabulary = vocabulary


@pytest.mark.parametrize("size", ["inputs", (10,), (0, 10), (10, 10**6), None, ("a", "b")])
def test_an_output_size_that_is_none_is_refused(segmenter, street, size):
    with pytest.raises(Vl4adError, match="output_size"):
        segmenter.segment(street, output_size=size)


class BrokenEngine:
    """The engine of a segmenter with its proposals spoilt."""

    def __init__(self, engine, spoil):
        self._engine, self._spoil = engine, spoil

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def propose(self, *arguments, **keywords):
        return self._spoil(self._engine.propose(*arguments, **keywords))


def run_out_of_memory(_):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: dataclasses.replace(p, query_embeddings=p.query_embeddings * torch.nan), "produced non-finite scores"),
        (lambda p: dataclasses.replace(p, mask_logits=p.mask_logits + torch.nan), "produced non-finite scores"),
        (run_out_of_memory, "not enough memory for 1 image.* set a smaller network size"),
    ],
)
def test_what_an_engine_cannot_do_is_an_error_and_never_a_map(segmenter, street, monkeypatch, spoil, message):
    monkeypatch.setattr(segmenter, "_engine", BrokenEngine(segmenter._engine, spoil))
    with pytest.raises(EngineError, match=message):
        segmenter.segment(street)


def test_the_text_tower_stays_as_it_is_wherever_images_run():
    """Embeddings are cached under the weights alone, so a GPU or half precision must not change them."""
    network, config = registry.build_network(registry.locate("tiny"))
    tokens = tokenizer(config.clip_model, config.clip_config)[0](["a photo of a tyre."])
    with torch.inference_mode():
        before, key = network.clip.encode_text(tokens), network.clip.text_weights_key()
        network.place_image_side("meta", torch.float16)
        assert torch.equal(network.clip.encode_text(tokens), before) and network.clip.text_weights_key() == key
    moved = {
        (p.device.type, p.dtype) for k, p in network.named_parameters() if k.startswith(("clip.model.visual", "pixel", "mask"))
    }
    assert moved == {("meta", torch.float16)}


def test_one_resize_rule_keeps_the_shape_and_pads_below_and_right():
    assert fit_inside((720, 1280), (384, 640)) == (360, 640)
    assert fit_inside((1000, 500), (384, 640)) == (384, 192)
    assert fit_inside((31, 77), None) == (31, 77)
    image = np.full((720, 1280, 3), 200, np.uint8)
    fitted = fit_image(image, (360, 640), (384, 640), (1, 2, 3))
    assert fitted.shape == (384, 640, 3)
    assert (fitted[:360] == 200).all() and (fitted[360:] == (1, 2, 3)).all()


def test_a_vocabulary_of_ones_own(segmenter, street, tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("classes: [{name: ground, concepts: [road, floor]}, {name: rest, concepts: [thing]}]")
    plain = segmenter.vocabulary
    try:
        segmenter.vocabulary = Vocabulary.from_yaml(path)
        assert segmenter.segment(street).labels.max() <= 1
    finally:
        segmenter.vocabulary = plain
