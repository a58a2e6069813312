"""Engines agree with PyTorch where it counts: on rendered frames, a bag and a photograph; half precision keeps the ranking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl4ad_model import cli
from vl4ad_model.engines.openvino_engine import has_bfloat16

DATA = Path(__file__).parent / "data"


def run(arguments, tmp_path, monkeypatch, capsys):
    """Exit status, rows of the JSON file by engine, and what was printed."""
    monkeypatch.setenv("COLUMNS", "200")
    result = tmp_path / "agreement.json"
    arguments = ["benchmark", "agreement", *map(str, arguments), "--json", str(result)]
    status = cli.run(arguments)
    printed = capsys.readouterr()
    rows = {row["engine"]: row for row in json.loads(result.read_text())} if result.exists() else {}
    return status, rows, printed.out + printed.err


def photograph() -> Path:
    """The one photograph that a dependency brings: matplotlib's sample, a portrait by the US Navy, in the public domain."""
    import matplotlib

    source = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not source.exists():
        pytest.skip("this matplotlib came without its sample photograph")
    return source


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / photograph().name).write_bytes(photograph().read_bytes())
    return folder


def assert_full_precision(row):
    assert row["mask_logits"] <= 1e-3 and row["labels_worst"] >= 0.999 and row["anomaly"] <= 1e-3 and not row["outside"], row


@pytest.mark.slow
def test_full_precision_agrees_on_rendered_frames_and_a_photograph(photographs, tmp_path, monkeypatch, capsys):
    """`fcclip-r50` is compared in test_engines.py."""
    folders = ["--images", DATA / "evaluation/held_out", "--images", photographs]
    status, rows, printed = run([*folders, "--every", 8, "--no-float64"], tmp_path, monkeypatch, capsys)
    assert status == 0 and set(rows) == {"onnx", "openvino"}, printed
    for row in rows.values():
        assert row["frames"] == 3
        assert_full_precision(row)


@pytest.mark.slow
def test_half_precision_keeps_labels_and_ranking(tmp_path, monkeypatch, capsys):
    """Every third frame of the held-out set, as ONNX Runtime computes the half-precision file; docs/engines.md has all frames."""
    options = ["--precision", "fp16", "--engines", "onnx", "--every", 3, "--no-float64"]
    status, rows, printed = run(["--images", DATA / "evaluation/held_out", *options], tmp_path, monkeypatch, capsys)
    row = rows["onnx"]
    assert status == 0 and row["frames"] == 6, printed
    assert row["labels"] >= 0.995 and abs(row["average_precision"] - row["reference_precision"]) <= 0.005


@pytest.mark.slow
def test_bf16_keeps_labels_and_ranking(tmp_path, monkeypatch, capsys):
    """Every third frame of the held-out set; docs/engines.md has all frames."""
    options = ["--precision", "bf16", "--every", 3, "--no-float64"]
    status, rows, printed = run(["--images", DATA / "evaluation/held_out", *options], tmp_path, monkeypatch, capsys)
    if not has_bfloat16():
        assert status == 2 and "needs a CPU with AVX-512 BF16 or AMX" in printed
        return
    (row,) = rows.values()
    assert status == 0 and row["frames"] == 6, printed
    assert 0.995 <= row["labels"] < 1 and abs(row["average_precision"] - row["reference_precision"]) <= 0.005


def test_an_engine_that_is_off_is_named_and_fails_the_command(tmp_path, monkeypatch, capsys):
    """A network whose masks are off by one per cent."""
    from vl4ad_model.engines.onnx_engine import _ONNXRunner

    honest = _ONNXRunner.run
    monkeypatch.setattr(_ONNXRunner, "run", lambda self, images: [1.01 * tensor for tensor in honest(self, images)])
    options = ["--engines", "onnx", "--size", "64x96", "--every", 16, "--no-float64"]
    status, rows, printed = run(["--images", DATA / "evaluation/held_out", *options], tmp_path, monkeypatch, capsys)
    assert status == 1 and rows["onnx"]["mask_logits"] == pytest.approx(0.01, rel=0.01)
    assert "onnx: mask logits differ by more than 0.001" in printed


def test_an_engine_that_does_not_run_is_one_line(tmp_path, monkeypatch, capsys):
    from vl4ad_model.engines.onnx_engine import _ONNXRunner

    def broken(self, images):
        raise RuntimeError("Non-zero status code while running Sub node")

    monkeypatch.setattr(_ONNXRunner, "run", broken)
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path / "cache"))
    options = ["--engines", "onnx", "--size", "64x96", "--every", "16", "--no-float64"]
    status = cli.run(["benchmark", "agreement", "--images", str(DATA / "evaluation/held_out"), *options])
    said = capsys.readouterr().err
    assert status and "engine onnx does not work here: Non-zero status code while running Sub node" in " ".join(said.split())
    assert "Traceback" not in said


def test_frames_of_a_bag(tmp_path, monkeypatch, capsys):
    options = ["--engines", "onnx", "--size", "64x96", "--every", 6, "--no-float64"]
    status, rows, printed = run(["--bag", DATA / "demo_bag", *options], tmp_path, monkeypatch, capsys)
    assert status == 0 and rows["onnx"]["frames"] >= 2, printed
    assert_full_precision(rows["onnx"])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gpu_agrees_on_rendered_frames(precision, tmp_path, monkeypatch, capsys):
    options = ["--device", "cuda", "--precision", precision, "--every", 4, "--no-float64"]
    status, rows, printed = run(["--images", DATA / "evaluation/held_out", *options], tmp_path, monkeypatch, capsys)
    assert status == 0 and rows["torch"]["frames"] == 4, printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass --images FOLDER or --bag BAG"),
        (
            ["--images", DATA / "evaluation/held_out", "--every", 16, "--engines", "tensorrt"],
            "'tensorrt' cannot be compared",
        ),
        (["--precision", "int8"], "use fp32, fp16"),
        (
            ["--images", DATA / "evaluation/held_out", "--every", 16, "--engines", "onnx", "--precision", "bf16"],
            "needs engine openvino",
        ),
        (["--device", "tpu"], "use auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    status, rows, printed = run(arguments, tmp_path, monkeypatch, capsys)
    assert status == 2 and message in printed and not rows
