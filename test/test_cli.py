"""The `vl4ad` command as a person meets it: real processes, real files, one clear line for every mistake."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


def vl4ad(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "vl4ad_model.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_answers_at_once(tmp_path):
    best = min(_seconds(lambda: vl4ad("--help", cwd=tmp_path)) for _ in range(3))
    assert best < 1.0  # 0.25 s here; imports of torch or open_clip would take several
    shown = vl4ad("--help", cwd=tmp_path).stdout
    for name in ("segment", "evaluate", "models", "benchmark", "export", "train", "scenes", "calibrate"):
        assert name in shown


def _seconds(action):
    start = time.monotonic()
    action()
    return time.monotonic() - start


def test_segment_writes_labels_scores_and_overlay(tmp_path, street):
    Image.fromarray(street).save(tmp_path / "street.png")
    done = vl4ad("segment", "street.png", "--hazard", "tyre|tire", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "out/street_labels.png"))
    scores = np.load(tmp_path / "out/street_anomaly.npy")
    overlay = np.asarray(Image.open(tmp_path / "out/street_overlay.png"))
    assert labels.shape == scores.shape == overlay.shape[:2] == street.shape[:2]
    assert labels.dtype == np.uint8 and labels.max() <= 19 and scores.dtype == np.float32
    assert "tiny" in done.stderr and "anomaly max" in done.stdout


BAD_IMAGES = {
    "text.png": (b"hello", "is not an image"),
    "empty.png": (b"", "is not an image"),
    "grey.png": (np.zeros((64, 64), np.uint8), "one 8-bit channel"),
    "deep.png": (np.zeros((64, 64), np.uint16), "more than 8 bit"),
    "strip.png": (np.zeros((2, 40000, 3), np.uint8), "40000x2"),
}


@pytest.mark.parametrize("name", [*BAD_IMAGES, "broken.jpg", "missing.png", "."])
def test_a_bad_image_is_one_line_status_2_and_nothing_written(tmp_path, street, name):
    Image.fromarray(street).save(tmp_path / "good.png")
    if name in BAD_IMAGES:
        content, message = BAD_IMAGES[name]
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            Image.fromarray(content).save(tmp_path / name)
    elif name == "broken.jpg":
        Image.fromarray(street).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:3000])
        message = "damaged"
    else:
        message = "no image at" if name == "missing.png" else "is a folder"
    done = vl4ad("segment", "good.png", name, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("vl4ad: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "vl4ad_out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "fcclip-r51"], "no model 'fcclip-r51'"),
        (["--model", "fcclip-convnext-large", "--offline"], "downloads are off"),
        (["--hazard", "car"], "'car' already belongs to class 'car'"),
        (["--vocabulary", "none.yaml"], "cannot be read"),
        (["--vocabulary", "latin.yaml"], "not UTF-8"),
        (["--classifier", "best"], "classifier 'best' is unknown"),
        (["--engine", "fastest"], "engine 'fastest' is unknown"),
        (["--device", "cuda:77"], "cuda"),
    ],
)
def test_a_mistaken_option_is_one_line_and_status_2(tmp_path, street, arguments, message):
    Image.fromarray(street).save(tmp_path / "good.png")
    (tmp_path / "latin.yaml").write_bytes("classes: [{name: café}]".encode("latin-1"))
    done = vl4ad("segment", "good.png", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "vl4ad_out").exists()


def test_an_output_folder_that_cannot_be_is_said(tmp_path, street):
    Image.fromarray(street).save(tmp_path / "good.png")
    (tmp_path / "file").write_text("x")
    done = vl4ad("segment", "good.png", "--out", "file/out", cwd=tmp_path)
    assert done.returncode == 2 and "cannot write" in done.stderr and "Traceback" not in done.stderr


def test_models_are_listed_and_the_embedded_one_verifies(tmp_path):
    shown = vl4ad("models", "list", cwd=tmp_path).stdout
    assert all(name in shown for name in ("tiny", "fcclip-r50", "fcclip-convnext-large"))
    assert vl4ad("models", "verify", "tiny", cwd=tmp_path).returncode == 0
    missing = vl4ad("models", "fetch", "fcclip-r50", cwd=tmp_path, VL4AD_CACHE=str(tmp_path / "cache"))
    assert missing.returncode == 2 and "fcclip_cocopan_r50.pth" in missing.stderr
    assert not (tmp_path / "cache").exists()


def test_the_network_benchmark_prints_every_stage(tmp_path):
    done = vl4ad("benchmark", "network", "--repeat", "1", "--json", "numbers.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in ("image backbone", "pixel decoder", "mask decoder", "scoring"):
        assert stage in done.stdout
    assert (tmp_path / "numbers.json").is_file()
