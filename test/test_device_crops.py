"""Crops made on the device: pixels and labels that belong together, things by their names, pictures as a camera makes them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl4ad_model.errors import TrainingError
from vl4ad_model.training.augmentation import CutOuts
from vl4ad_model.training.batch_pictures import Draw, blurred, camera_faults, jpeg, retexture
from vl4ad_model.training.config import DataSource, TrainingConfig
from vl4ad_model.training.data import find_frames
from vl4ad_model.training.device_crops import EACH_KIND, DeviceCrops, _keep

CPU = torch.device("cpu")
COLOURS = {0: (90, 90, 90), 2: (160, 70, 50), 10: (120, 170, 240), 18: (20, 150, 40), 100: (230, 210, 30), 255: (0, 0, 0)}


def _write(folder: Path, name: str, labels: np.ndarray, hazards: dict[int, str]) -> None:
    palette = np.zeros((256, 3), np.uint8)
    for label, colour in COLOURS.items():
        palette[label] = colour
    for part in ("images", "labels", "frames"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(palette[labels]).save(folder / "images" / f"{name}.jpg", quality=98, subsampling=0)
    Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    content = {"hazards": {str(number): {"name": hazard, "split": "seen"} for number, hazard in hazards.items()}}
    (folder / "frames" / f"{name}.json").write_text(json.dumps(content))


def _street(seed: int, size=(96, 160)) -> np.ndarray:
    """Sky, a house left or right, a road, and a sofa on it."""
    height, width = size
    r = np.random.default_rng(seed)
    labels = np.full(size, 10, np.uint8)
    labels[height // 2 :] = 0
    left = int(r.integers(0, width // 2))
    labels[20 : height // 2, left : left + width // 3] = 2
    labels[height - 34 : height - 12, width // 2 : width // 2 + 28] = 100
    return labels


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    for index in range(4):
        _write(folder, f"{index:06d}", _street(index), {100: "sofa"})
    return find_frames(DataSource("rendered", folder))


def _red_square(size: int = 60) -> CutOuts:
    picture = np.zeros((160, 160, 4), np.uint8)
    picture[80 - size // 2 : 80 + size // 2, 80 - size // 2 : 80 + size // 2] = (200, 30, 30, 255)
    return CutOuts(("chess pawn",), (picture,))


def _crops(files, **changes) -> DeviceCrops:
    options = {"crop": (64, 96), "scales": (0.8, 1.4), "batch_size": 8, "seed": 0, **changes}
    return DeviceCrops(files, 19, CPU, **options)


def _explained(rgb: np.ndarray, labels: np.ndarray) -> float:
    """Which share of an image's variance the labels account for."""
    pixels, ids = rgb.reshape(-1, 3).astype(float), labels.reshape(-1)
    kept = ids != 255
    pixels, ids = pixels[kept], ids[kept]
    within = sum(((pixels[ids == i] - pixels[ids == i].mean(axis=0)) ** 2).sum() for i in np.unique(ids))
    return 1 - within / max(((pixels - pixels.mean(axis=0)) ** 2).sum(), 1e-9)


def test_labels_lie_where_the_pixels_do(streets):
    crops = _crops(streets, cutouts=_red_square(), copied=["sofa"], most_copied=2, rare_crops=0.5)
    right, mirrored = [], []
    for _ in range(6):
        images, labels, _ = crops.batch()
        for image, of_image in zip(images.permute(0, 2, 3, 1).numpy(), labels.numpy(), strict=True):
            right.append(_explained(image, of_image))
            mirrored.append(_explained(image, of_image[:, ::-1]))
    assert np.median(right) > 0.8 > np.median(mirrored) + 0.3


def test_batches_have_the_promised_kind_and_every_label_a_meaning(streets):
    crops = _crops(streets, cutouts=_red_square(), copied=["sofa"], most_copied=2)
    names: set[str] = set()
    for _ in range(4):
        images, labels, hazards = crops.batch()
        assert images.shape == (8, 3, 64, 96) and images.dtype == torch.uint8
        assert labels.shape == (8, 64, 96) and labels.dtype == torch.uint8 and len(hazards) == 8
        for of_image, things in zip(labels, hazards, strict=True):
            present = set(of_image.unique().tolist())
            assert present <= {0, 2, 10, 255, *things}
            names |= {things[i] for i in present & set(things)}
    assert names == {"sofa", "chess pawn"}


def test_a_seed_gives_its_batches_again_and_another_gives_others(streets):
    def batches(seed: int):
        crops = _crops(streets, cutouts=_red_square(), copied=["sofa"], most_copied=1, seed=seed)
        return [crops.batch() for _ in range(2)]

    for ours, again, others in zip(batches(3), batches(3), batches(4), strict=True):
        assert torch.equal(ours[0], again[0]) and torch.equal(ours[1], again[1]) and ours[2] == again[2]
        assert not torch.equal(ours[0], others[0])
    plain, other = (_crops(streets[:1], seed=seed).batch()[1] for seed in (3, 4))
    assert not torch.equal(plain, other), "places are drawn, too, not only frames"


def test_what_is_pasted_stands_on_the_ground_with_its_own_pixels(tmp_path):
    labels = np.full((96, 160), 10, np.uint8)
    labels[60:64], labels[64:] = 0, 2
    _write(tmp_path, "strip", labels, {})
    cutouts = _red_square(120)
    cutouts.pictures[0][:, 80:, :3] = 250
    crops = _crops(find_frames(DataSource("rendered", tmp_path)), cutouts=cutouts, crop=(96, 160), scales=(1.0, 1.0), batch_size=16)
    found, spread = 0, []
    for _ in range(4):
        images, ids, hazards = crops.batch()
        for image, of_image, things in zip(images, ids, hazards, strict=True):
            pasted = [i for i in of_image.unique().tolist() if things.get(i) == "chess pawn"]
            if len(pasted) != 1:
                continue  # others may stand before it
            lowest = int(torch.nonzero((of_image == pasted[0]).any(dim=1)).max())
            assert 58 <= lowest <= 66
            spread.append(float(image[:, of_image == pasted[0]].float().std(dim=1).mean()))
            found += 1
    assert found > 8 and np.median(spread) > 15


def test_things_are_copied_with_their_labels_and_only_those_asked_for(tmp_path):
    plain = np.zeros((96, 160), np.uint8)
    _write(tmp_path, "empty", plain, {})
    full = plain.copy()
    full[40:70, 20:50], full[40:70, 80:110], full[40:70, 120:150] = 100, 18, 2
    _write(tmp_path, "full", full, {100: "sofa"})
    files = find_frames(DataSource("rendered", tmp_path))
    shown: set[str | int] = set()
    crops = _crops(files, copied=["sofa"], most_copied=3, crop=(96, 160), scales=(1.0, 1.0))
    for _ in range(8):
        _, labels, hazards = crops.batch()
        for of_image, things in zip(labels, hazards, strict=True):
            if 100 not in things:  # the empty frame
                shown |= {things.get(i, i) for i in of_image.unique().tolist()} - {0, 255}
    assert shown == {"sofa", 18}, "a house is no rare thing"


def test_what_is_copied_comes_from_all_frames():
    kept: list[int] = []
    for thing in range(4000):
        _keep(kept, thing, thing, np.random.default_rng(thing))
    assert len(set(kept)) == EACH_KIND and 1600 < np.mean(kept) < 2400 and min(kept) < 400 and max(kept) > 3600


def test_frames_that_do_not_fit_are_said_to_need_so_much(streets):
    with pytest.raises(TrainingError, match=r"crops_on_device needs 838860.8 GB for 100000000 frames of 2048x1024"):
        _crops(streets)._room(10**8, (1024, 2048))


def test_frames_smaller_than_the_crop_are_padded_and_ignored(tmp_path):
    _write(tmp_path, "small", np.zeros((32, 32), np.uint8), {})
    labels = _crops(find_frames(DataSource("rendered", tmp_path)), crop=(64, 64), scales=(1.0, 1.0)).batch()[1]
    assert 0.6 < (labels == 255).float().mean() < 0.9


def test_a_frame_listed_more_often_is_seen_more_often(tmp_path):
    for name, label in (("a", 0), ("b", 10)):
        _write(tmp_path, name, np.full((64, 96), label, np.uint8), {})
    road, sky = find_frames(DataSource("rendered", tmp_path))
    crops = _crops([road, road, road, sky], batch_size=64, scales=(1.0, 1.0))
    share = np.mean([float((crops.batch()[1] == 0).float().mean()) for _ in range(5)])
    assert 0.65 < share < 0.85


def test_rare_crops_show_more_segments(tmp_path):
    labels = np.zeros((96, 320), np.uint8)
    labels[:, 300:310], labels[:, 310:] = 18, 2
    _write(tmp_path, "wide", labels, {})
    files = find_frames(DataSource("rendered", tmp_path))

    def rich(share: float) -> int:
        crops = _crops(files, crop=(96, 96), scales=(1.0, 1.0), batch_size=60, rare_crops=share)
        return sum(len(of_image.unique()) > 1 for of_image in crops.batch()[1])

    assert rich(1.0) > 1.4 * rich(0.0) > 0


def test_frames_of_two_sizes_are_refused_and_unreadable_ones_left_out(tmp_path, caplog):
    _write(tmp_path, "a", _street(0), {100: "sofa"})
    _write(tmp_path, "b", _street(1), {100: "sofa"})
    files = find_frames(DataSource("rendered", tmp_path))
    files[1].image.write_bytes(b"no picture")
    assert _crops(files).batch()[0].shape[0] == 8 and "skipped" in caplog.text
    files[0].image.write_bytes(b"no picture")
    with pytest.raises(TrainingError, match="no training image can be read"):
        _crops(files)
    _write(tmp_path, "a", _street(0), {100: "sofa"})
    _write(tmp_path, "b", _street(1, (64, 96)), {100: "sofa"})
    with pytest.raises(TrainingError, match=r"frames of one size, but there are 160x96 and 96x64: .*b\.jpg"):
        _crops(files)


def test_nothing_waits_for_the_host_while_crops_are_made(streets, monkeypatch):
    """torch's device without memory refuses to be read, and to be mixed with the host's tensors."""

    def without_generator(self, device, seed):
        self.device, self.generator, self.on_host = device, None, np.random.default_rng(seed)

    monkeypatch.setattr(Draw, "__init__", without_generator)
    options = {"crop": (64, 96), "scales": (0.5, 1.4), "batch_size": 8, "cutouts": _red_square(), "copied": ["sofa"], "seed": 1}
    crops = DeviceCrops(streets, 19, torch.device("meta"), most_copied=2, rare_crops=0.5, **options)
    for _ in range(3):
        images, labels, _ = crops.batch()
        assert images.shape == (8, 3, 64, 96) and labels.is_meta


@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_jpeg_is_what_a_jpeg_encoder_makes(quality, seed):
    r = np.random.default_rng(seed)
    smooth = cv2.resize(r.uniform(0, 255, (6, 8, 3)), (64, 48), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(smooth + r.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=quality, subsampling=2)
    theirs = np.asarray(Image.open(stored)).astype(float)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    ours = jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
    lost = np.abs(theirs - picture).mean()
    assert np.abs(ours - theirs).mean() < 0.35 * lost + 0.6
    assert abs(np.abs(ours - picture).mean() - lost) < 0.1 * lost + 0.3


@given(st.lists(st.floats(0.4, 1.7), min_size=1, max_size=3), st.integers(0, 1000))
@settings(max_examples=20)
def test_every_image_is_blurred_by_its_own_sigma(sigmas, seed):
    images = np.random.default_rng(seed).uniform(0, 255, (len(sigmas), 32, 48, 3)).astype(np.float32)
    ours = blurred(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(sigmas)).permute(0, 2, 3, 1).numpy()
    for image, got, sigma in zip(images, ours, sigmas, strict=True):
        assert np.abs(got - cv2.GaussianBlur(image, (11, 11), sigma, borderType=cv2.BORDER_REPLICATE)).max() < 0.05


def test_only_whole_segments_get_another_texture():
    labels = torch.zeros((16, 64, 64), dtype=torch.uint8)
    labels[:, :, 32:] = 3
    grey = torch.full((16, 3, 64, 64), 128.0)
    changed = (retexture(grey, labels, Draw(CPU, 0), share=1.0) != grey).any(dim=1)
    seen = set()
    for image, ids in zip(changed, labels, strict=True):
        shares = [float(image[ids == segment].float().mean()) for segment in (0, 3)]
        assert all(share == 0 or share > 0.98 for share in shares)
        seen.add(tuple(share > 0 for share in shares))
    assert seen == {(True, False), (False, True), (True, True)}


def test_a_camera_leaves_some_pictures_as_they_are():
    images = torch.randint(0, 256, (64, 3, 32, 32)).float()
    unchanged = (camera_faults(images.clone(), Draw(CPU, 1)) == images).flatten(1).all(dim=1)
    assert 2 < int(unchanged.sum()) < 40


def test_a_run_learns_from_crops_made_on_the_device(tmp_path, streets):
    from vl4ad_model.training.trainer import Trainer

    folder = streets[0].image.parents[1]
    values = {
        "model": "tiny", "data": [{"kind": "rendered", "folder": str(folder)}], "crop": [64, 96], "scales": [0.8, 1.2],
        "anchored_queries": True, "steps": 50, "warmup_steps": 4, "batch_size": 2, "learning_rate": 0.002, "points": 512,
        "validate_every": 50, "checkpoint_every": 50, "workers": 0, "threads": 1, "name_weight": 0.5, "most_copied": 1,
        "crops_on_device": True, "compiled_backbone": False,
    }  # fmt: skip
    Trainer(TrainingConfig.from_dict(values, base=tmp_path), tmp_path / "run").run()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    totals = [line["total"] for line in lines if "total" in line]
    assert len(totals) == 2 and totals[-1] < 0.8 * totals[0]
    assert (tmp_path / "run/model/decoder.safetensors").is_file()
