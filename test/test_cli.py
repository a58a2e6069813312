"""The `vl4ad` command as a person meets it: real processes, real files, one clear line for every mistake."""

import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vl4ad_model import cli, image_files


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
    assert vl4ad("--version", cwd=tmp_path).stdout.startswith("vl4ad ")
    for name in ("segment", "evaluate", "models", "benchmark", "export", "train", "scenes", "calibrate"):
        assert name in shown


def test_colour_files_of_every_kind_come_out_upright_rgb(tmp_path, street):
    picture = Image.fromarray(street)
    rotated = Image.Exif()
    rotated[274] = 6  # the camera lay on its side
    files = {
        "plain.png": {}, "alpha.png": {}, "palette.png": {}, "turned.jpg": {"exif": rotated, "quality": 100, "subsampling": 0},
        "lossless.webp": {"lossless": True}, "print.jpg": {}, "film.gif": {},
    }  # fmt: skip
    kinds = {"alpha.png": "RGBA", "palette.png": "P", "film.gif": "P", "print.jpg": "CMYK"}
    for name, options in files.items():
        picture.convert(kinds.get(name, "RGB")).save(tmp_path / name, **options)
        rgb = image_files.read_rgb(tmp_path / name)
        expected = np.rot90(street, -1) if name == "turned.jpg" else street
        assert rgb.dtype == np.uint8 and rgb.shape == expected.shape, name
        exact = name in ("plain.png", "alpha.png", "lossless.webp")
        assert np.abs(rgb.astype(int) - expected).mean() <= (0 if exact else 30), name


def _seconds(action):
    start = time.monotonic()
    action()
    return time.monotonic() - start


def test_segment_writes_labels_scores_and_overlay(tmp_path, street):
    Image.fromarray(street).save(tmp_path / "street.png")
    (tmp_path / "words.yaml").write_text("classes: [{name: ground, concepts: [road, floor]}, thing]\nhazards: [sofa]")
    done = vl4ad(
        "segment", "street.png", "street.png", "--vocabulary", "words.yaml", "--hazard", "tyre|tire", "--out", "out", "--legend",
        "--network-size", "192x320", "--threshold", "-1", "--min-area", "0.9", "--json", "numbers.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert [entry["name"] for entry in written["classes"]] == ["ground", "thing", "sofa", "tyre"] and written["model"] == "tiny"
    (numbers,) = written["images"]
    # A hazard that was asked for is answered, found or not.
    assert {"sofa", "tyre"} <= set(numbers["shares"]) <= {"ground", "thing", "sofa", "tyre"}
    assert "hazard sofa" in done.stdout and "hazard tyre" in done.stdout
    assert abs(sum(numbers["shares"].values()) - 1) < 1e-9
    (everything,) = numbers["hazards"]
    assert everything["box"] == [0, 0, street.shape[1], street.shape[0]] and set(everything["named"]) <= {"sofa", "tyre", "unknown"}
    labels = np.asarray(Image.open(tmp_path / "out/street_labels.png"))
    scores = np.load(tmp_path / "out/street_anomaly.npy")
    overlay = np.asarray(Image.open(tmp_path / "out/street_overlay.png"))
    assert labels.shape == scores.shape == street.shape[:2]
    assert overlay.shape[1] == street.shape[1] and overlay.shape[0] > street.shape[0]  # the legend hangs below
    assert labels.dtype == np.uint8 and labels.max() <= 3 and scores.dtype == np.float32
    assert numbers["anomaly"]["max"] == scores.max()
    assert "tiny" in done.stderr and "anomaly max" in done.stdout


def deep_colour_png() -> bytes:
    """64x64 RGB with 16 bit per channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(64 * 6) for _ in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_jpeg_2000() -> bytes:
    return cv2.imencode(".jp2", np.full((64, 64, 3), 40000, np.uint16))[1].tobytes()


BAD_IMAGES = {
    "deep.jp2": (deep_jpeg_2000(), "16 bit per channel"),
    "text.png": (b"hello", "is not an image"),
    "empty.png": (b"", "is not an image"),
    "grey.png": (np.zeros((64, 64), np.uint8), "one 8-bit channel"),
    "deep.png": (np.zeros((64, 64), np.uint16), "more than 8 bit"),
    "strip.png": (np.zeros((2, 40000, 3), np.uint8), "40000x2"),
    "deep_colour.png": (deep_colour_png(), "16 bit per channel"),
    "deep_colour.ppm": (b"P6\n64 64\n65535\n" + bytes(64 * 64 * 6), "16 bit per channel"),
    "nothing.ppm": (b"P6\n0 0\n255\n", "is not an image"),
}


@pytest.mark.parametrize("name", [*BAD_IMAGES, "broken.jpg", "missing.png", "empty"])
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
    elif name == "missing.png":
        message = "no image at"
    else:
        (tmp_path / name).mkdir()
        message = "no images in empty"
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
        (["--vocabulary", "empty.yaml"], "needs a list 'classes'"),
        (["--vocabulary", "many.yaml"], "at most 255"),
        (["--network-size", "big"], "'big' is no size"),
        (["folder/good.png"], "would be written under the same name"),
        (["--classifier", "best"], "classifier 'best' is unknown"),
        (["--scoring", "best"], "scoring 'best' is unknown: use max, normalized"),
        (["--engine", "fastest"], "engine 'fastest' is unknown"),
        (["--model", "fcclip-convnext-large", "--offline", "--engine", "fastest"], "engine 'fastest' is unknown"),  # before loading
        (["--device", "auto:1"], "device 'auto:1' is unknown"),
        (["--network-size", "33x64"], "must be multiples of 32"),
        (["--device", "cuda:77"], "cuda"),
        (["--json", "folder"], "it is a folder, name a file"),
        (["--json", "good.png/numbers.json"], "is not a folder"),
        (["--out", "good.png"], "a folder is needed"),
        (["--vocabulary", "bare.yaml"], "quotes around it"),
    ],
)
def test_a_mistaken_option_is_one_line_and_status_2(tmp_path, street, arguments, message):
    Image.fromarray(street).save(tmp_path / "good.png")
    (tmp_path / "folder").mkdir()
    Image.fromarray(street).save(tmp_path / "folder/good.png")
    (tmp_path / "latin.yaml").write_bytes("classes: [{name: café}]".encode("latin-1"))
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "bare.yaml").write_text("classes: [no, yes]")
    (tmp_path / "many.yaml").write_text("classes:\n" + "".join(f"- class {i}\n" for i in range(300)))
    done = vl4ad("segment", "good.png", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "vl4ad_out").exists()


def test_segment_takes_folders_and_leaves_labels_and_its_own_results_alone(tmp_path, street):
    (tmp_path / "drive/images").mkdir(parents=True)
    (tmp_path / "drive/labels").mkdir()
    for name in ("a", "b"):
        Image.fromarray(street).save(tmp_path / f"drive/images/{name}.png")
        Image.fromarray(street[..., 0]).save(tmp_path / f"drive/labels/{name}.png")
    options = ("--engine", "torch", "--network-size", "96x160")
    for images in ("drive", "drive/images"):
        done = vl4ad("segment", images, *options, "--out", "drive/images", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in (tmp_path / "drive/images").glob("*_labels.png")) == ["a_labels.png", "b_labels.png"]


def test_a_file_name_of_any_bytes_is_written_as_it_can_be(tmp_path, street):
    Image.fromarray(street).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    options = ("--engine", "torch", "--network-size", "96x160", "--out", "out")
    done = vl4ad("segment", ".", *options, cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0 and "caf\\udce9" in done.stdout, done.stderr
    assert len(list((tmp_path / "out").glob("*_labels.png"))) == 1


def test_a_reader_that_goes_away_is_no_success(tmp_path):
    """As `vl4ad segment FOLDER | head -1` has it."""
    command = [
        sys.executable,
        "-c",
        "import vl4ad_model.cli, time; time.sleep(1); vl4ad_model.cli.main(['models', 'fetch', 'tiny'])",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark", "network", "--height", "-32"], "'--height': Input should be greater than or equal to 0"),
        (["benchmark", "network", "--threads", "100000"], "'--threads': Input should be less than or equal to 1024"),
        (["segmnt"], "No such command 'segmnt'. Did you mean 'segment'"),
        (["segment"], "Missing argument 'images'"),
        (["evaluate", "bag", "drive", "--workers", "0"], "'--workers': Input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_in_the_command_line_itself_is_one_line_that_says_where_help_is(tmp_path, arguments, message):
    done = vl4ad(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "--help' says more" in done.stderr and done.stderr.count("\n") == 1


def test_models_are_listed_and_the_embedded_one_verifies(tmp_path):
    shown = vl4ad("models", "list", cwd=tmp_path).stdout
    assert all(name in shown for name in ("tiny", "fcclip-r50", "fcclip-convnext-large"))
    assert vl4ad("models", "verify", "tiny", cwd=tmp_path).returncode == 0
    missing = vl4ad("models", "fetch", "fcclip-r50", cwd=tmp_path, VL4AD_CACHE=str(tmp_path / "cache"))
    assert missing.returncode == 2 and "fcclip_cocopan_r50.pth" in missing.stderr
    assert not (tmp_path / "cache").exists()


def test_a_model_in_one_file_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    folder = tmp_path / "models/fcclip-r50"
    folder.mkdir(parents=True)
    names = ("clip.model.token_embedding.weight", "clip.model.visual.conv1.weight")
    save_file({name: torch.zeros(1) for name in names}, folder / "decoder.safetensors")
    assert cli.run(["models", "list"]) == 0
    assert re.search(r"fcclip-r50 +. yes", shown := capsys.readouterr().out), shown
    assert cli.run(["models", "verify"]) == 2
    assert "fcclip-r50" in capsys.readouterr().err, "it is looked at, and is not whole"


def test_the_network_benchmark_prints_every_stage(tmp_path):
    done = vl4ad("benchmark", "network", "--repeat", "1", "--json", "numbers.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in ("image backbone", "pixel decoder", "mask decoder", "scoring"):
        assert stage in done.stdout
    assert (tmp_path / "numbers.json").is_file()


def test_the_benchmark_of_words_compares_with_open_clip(tmp_path):
    done = vl4ad("benchmark", "words", "--repeat", "1", "--hazard", "lost cargo", "--json", "numbers.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["concepts"] > 100 and 0 < numbers["hazard_s"] < numbers["vocabulary_s"] and numbers["difference"] < 1e-5
    assert "lost cargo" in done.stdout
    refused = vl4ad("benchmark", "words", "--hazard", "car", cwd=tmp_path)
    assert refused.returncode == 2 and "already belongs to class 'car'" in refused.stderr


@pytest.mark.parametrize(
    ("before", "after"), [("SIG_IGN", "SIG_IGN"), ("default_int_handler", "default_int_handler"), ("SIG_DFL", "")]
)
def test_a_handler_of_sigterm_that_somebody_else_set_stays(before, after):
    program = f"""
import contextlib, signal
from vl4ad_model import cli
signal.signal(signal.SIGTERM, signal.{before})
with contextlib.suppress(SystemExit):
    cli.main(["--version"])
print(getattr(signal.getsignal(signal.SIGTERM), "__name__", "") or signal.getsignal(signal.SIGTERM).name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == (after or "<lambda>")
