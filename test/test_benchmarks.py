"""The benchmark scripts: what they say of pictures whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vl4ad_model.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
CAMVID_NAMES = {
    "road": 3, "sidewalk": 4, "building": 1, "wall": 1, "fence": 7, "pole": 2, "traffic light": 6, "traffic sign": 6,
    "vegetation": 5, "terrain": 5, "sky": 0, "person": 9, "rider": 10, "car": 8, "truck": 8, "bus": 8, "train": 8,
    "motorcycle": 10, "bicycle": 10,
}  # fmt: skip


def photographs(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/photographs.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_photographs_are_measured_in_camvids_classes(tmp_path):
    """Rendered frames in CamVid's layout stand for the photographs: tiny knows them, so every large class must come out right."""
    table = np.full(256, 11, np.uint8)
    for number, name in enumerate(Vocabulary.cityscapes().names):
        table[number] = CAMVID_NAMES[name]
    for folder in ("test", "testannot"):
        (tmp_path / folder).mkdir()
    source = ROOT / "test/data/evaluation/quiet"
    for image in sorted((source / "images").iterdir())[:2]:
        Image.open(image).save(tmp_path / "test" / f"{image.stem}.png")
        labels = np.asarray(Image.open(source / "labels" / f"{image.stem}.png"))
        Image.fromarray(table[labels]).save(tmp_path / "testannot" / f"{image.stem}.png")
    done = photographs(tmp_path, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["photographs"] == 2
    assert result["accuracy"] > 0.85
    assert min(result["iou"][name] for name in ("road", "sky", "building", "tree")) > 0.7
    assert result["anomaly_above_half"] < 0.1, "nothing unusual is in view"


def test_a_folder_without_photographs_is_named(tmp_path):
    done = photographs(tmp_path)
    assert done.returncode != 0 and "test/ and testannot/" in done.stderr and "Traceback" not in done.stderr
