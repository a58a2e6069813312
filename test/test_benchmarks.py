"""The benchmark scripts: what they say of pictures whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
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


def road_obstacles(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/road_obstacles.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_road_obstacles_are_measured_where_the_outlines_are(tmp_path):
    """A rendered street stands for every photograph; the masks are those of the outlines, in a layout that the evaluation reads."""
    listed = yaml.safe_load((ROOT / "benchmarks/road_obstacles.yaml").read_text())["photographs"]
    street = Image.open(next((ROOT / "test/data/evaluation/quiet/images").iterdir()))
    for photograph in listed:
        path = tmp_path / "clones" / photograph["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        right, low = np.max(photograph["road"], axis=0) + 1
        street.resize((int(right), int(low))).save(path)
    done = road_obstacles(tmp_path / "clones", "--out", tmp_path / "out", "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    names = [name for photograph in listed for name in photograph.get("obstacles", {})]
    assert (result["photographs"], result["obstacles"]) == (len(listed), len(names))
    assert result["found"] < len(names) / 2, "there is nothing in the picture where the outlines say so"
    for photograph in listed:
        mask = np.asarray(Image.open(tmp_path / "out/labels_masks" / f"{Path(photograph['file']).stem}_labels_semantic.png"))
        assert set(np.unique(mask)) == ({0, 1, 255} if "obstacles" in photograph else {0, 255})
        for outline in photograph.get("obstacles", {}).values():
            x, y = np.mean(outline, axis=0).astype(int)
            assert mask[y, x] == 1 or len(outline) > 10, "the middle of a compact outline is obstacle"
    evaluated = subprocess.run(
        [sys.executable, "-m", "vl4ad_model.cli", "evaluate", "images", "--images", str(tmp_path / "out"), "--track", "obstacle",
         "--json", str(tmp_path / "evaluated.json")],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert abs(json.loads((tmp_path / "evaluated.json").read_text())["fishyscapes"]["AP"] - result["AP"]) < 0.01


def test_photographs_that_are_missing_are_named_with_the_command_to_get_them(tmp_path):
    done = road_obstacles(tmp_path, "--out", tmp_path / "out")
    assert done.returncode != 0 and done.stderr.count("git clone --depth 1 https://") == 3 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_following_things_through_a_drive_drops_false_alarms_and_keeps_hazards(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/tracking.py", "test/data/demo_bag", "--json", str(tmp_path / "result.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "result.json").read_text()).values()
    on_hazards, elsewhere = result["areas"]["on hazards"], result["areas"]["elsewhere"]
    assert result["images"] == 120 and on_hazards["1"] > 300
    assert on_hazards["2"] > 0.9 * on_hazards["1"] and elsewhere["2"] < 0.5 * elsewhere["1"]
    assert result["numbers"] <= 3 * result["hazards"]
    assert result["names"]["followed"]["right"] >= result["names"]["image by image"]["right"] > 250
