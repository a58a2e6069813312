"""The report page: everything on it, nothing fetched, several runs side by side."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from evaluation_helpers import picture, png, small_frames, vl4ad, write_folders
from PIL import Image

from vl4ad_model.evaluation.label_files import LabelMap
from vl4ad_model.evaluation.pictures import FALSE_ALARM, FOUND, MISSED, choose, file_name, strip


@pytest.fixture
def runs(tmp_path, capfd):
    """Reports of two runs over the same frames, and the frames' folder."""
    frames = small_frames(7)
    images = tmp_path / "images"
    images.mkdir()
    for index in range(7):
        (images / f"{index:03}.png").write_bytes(png(picture(seed=index)))
    reports = []
    for name, change in (("a", lambda s: s), ("b", lambda s: s + np.float32(0.4) * (s > 0.5))):
        scores, labels = write_folders(tmp_path / name, [(change(scores), label) for scores, label in frames])
        report = tmp_path / f"report_{name}"
        done = vl4ad(
            capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--images", images, "--track", "obstacle",
            "--report", report,
        )  # fmt: skip
        assert done.code == 0 and "report.html" in done.out, done.err
        reports.append(report)
    return reports


def test_the_page_holds_everything_and_asks_the_network_for_nothing(runs):
    page = (runs[0] / "report.html").read_text()
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?(\w*)""", markup)) <= {"data"}, "something is fetched"
    assert "@import" not in markup and "url(" not in markup
    for text in ("Summary", "AuPRC", "Fishyscapes FPR95", "Worst frames", "Best frames", "Exact configuration", "obstacle"):
        assert text in markup, text
    for title in ("Precision over recall", "ROC", "Scores, saved scores", "Components: F1", "Every frame"):
        assert title in page, title
    assert markup.count("data:image/jpeg;base64,") >= 6
    results = json.loads((runs[0] / "results.json").read_text())
    assert f"{results['AuPRC']:.4f}" in markup and f"{results['F1_mean']:.4f}" in markup
    assert str(runs[0].parent / "a" / "scores") in markup  # the exact configuration
    for entry in results["pictures"]:
        assert (runs[0] / entry["file"]).is_file()


def test_runs_are_compared_side_by_side_with_their_frames(runs, tmp_path, capfd):
    done = vl4ad(capfd, "evaluate", "compare", *runs, "--name", "no <hazards>", "--name", "tyre", "--report", tmp_path / "both")
    assert done.code == 0, done.err
    page = (tmp_path / "both" / "report.html").read_text()
    assert "2 runs side by side" in page and "no &lt;hazards&gt;" in page and "run by run" in page
    first, second = (json.loads((run / "results.json").read_text()) for run in runs)
    assert f"{second['AuPRC'] - first['AuPRC']:+.4f}" in page
    assert 'class="best"' not in page, "where the digits shown are the same, none is better"
    assert page.count("data:image/jpeg;base64,") >= 4


def test_the_better_of_two_runs_is_marked(runs, tmp_path, capfd):
    scores, labels = write_folders(tmp_path / "c", [(1 - score, label) for score, label in small_frames(7)])
    worse = tmp_path / "worse.json"
    assert vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", worse).code == 0
    assert vl4ad(capfd, "evaluate", "compare", runs[0], worse, "--report", tmp_path / "both").code == 0
    page = (tmp_path / "both" / "report.html").read_text()
    better = json.loads((runs[0] / "results.json").read_text())["AuPRC"]
    assert f'<td class="best">{better:.4f}</td>' in page and page.count('class="best"') > 1


def with_names(run, prompts, types):
    """The same run as if it had been asked for these prompts: each type's pixels got the name of its own prompt, half of them."""
    document = json.loads((run / "results.json").read_text())
    row = {"IoU": 0.4567, "pixels_predicted": 25_886, "on_own_types": 0.5, "on_anomaly": 0.9, "on_ordinary": 0.1}
    hazards = {name: {"prompt": name, "types": [name] if name in types else [], **row} for name in prompts}
    shares = {name: {"pixels": 1234, "named": {p: 0.42 * (p == name) for p in prompts}, "unnamed": 0.58} for name in types}
    (run / "results.json").write_text(json.dumps(document | {"naming": {"hazards": hazards, "types": shares}}))


def test_names_have_a_table_where_a_run_was_asked_for_any(runs, tmp_path, capfd):
    command = ("evaluate", "compare", *runs, "--report", tmp_path / "both")
    assert vl4ad(capfd, *command).code == 0  # results of before
    assert "<h2>Names</h2>" not in (tmp_path / "both" / "report.html").read_text()
    with_names(runs[1], ["tyre", "<box>"], ["tyre", "sofa & chair"])
    assert vl4ad(capfd, *command).code == 0
    page = (tmp_path / "both" / "report.html").read_text()
    table = re.findall(r"<h2>Names</h2>.*?</section>", page, flags=re.S)[0]
    assert table.count("<table") == 1 and "<span>&lt;box&gt;</span>" in table and "sofa &amp; chair" in table
    assert re.search(r"<th[^>]*>tyre</th><td>1.2k</td><td class=\"none\"[^>]*>58</td><td class=\"own\"[^>]*>42</td>", table)
    assert "<td>0.46</td>" in table and "<td>26k</td>" in table


def test_comparing_what_is_no_run_is_one_line(tmp_path, runs, capfd):
    (tmp_path / "other.json").write_text("{}")
    for path, message in (("none", "no result at"), ("other.json", "is no result of")):
        done = vl4ad(capfd, "evaluate", "compare", runs[0], tmp_path / path, "--report", tmp_path / "c")
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    done = vl4ad(capfd, "evaluate", "compare", *runs, "--name", "one", "--report", tmp_path / "c")
    assert done.code == 2 and "1 names for 2 runs" in done.err and not (tmp_path / "c").exists()


def test_results_of_a_model_without_weights_say_so_everywhere(tmp_path, capfd):
    from vl4ad_model import registry

    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(registry.locate("tiny", offline=True).clip.parent / "config.json", model)
    frames = small_frames(1)
    _, labels = write_folders(tmp_path, frames)
    (tmp_path / "images").mkdir()
    Image.fromarray(picture()).save(tmp_path / "images/000.png")
    using = ("--model", model, "--engine", "torch", "--network-size", "64x96", "--images", tmp_path / "images")
    done = vl4ad(capfd, "evaluate", "images", *using, "--labels", labels, "--report", tmp_path / "report")
    assert done.code == 0 and done.err.count("UNTRAINED") == 1
    document = json.loads((tmp_path / "report/results.json").read_text())
    assert "UNTRAINED" in document["configuration"]["notice"]
    assert '<p class="warning">UNTRAINED' in (tmp_path / "report/report.html").read_text()
    shutil.rmtree(labels)  # what is left is ordinary driving
    for command in (("calibrate", "--rate", 0.5, "--out", tmp_path / "c.yaml"), ("prompts", "check", "--hazard", "tyre")):
        done = vl4ad(capfd, *command, *using)
        assert done.code == 0 and done.err.count("UNTRAINED") == 1, done.err
    done = vl4ad(capfd, "models", "verify", model)
    assert done.code == 2 and "has no weights: put clip.safetensors" in done.err


def test_a_result_that_is_not_whole_says_so_on_top(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, small_frames(3))
    (scores / "001.npy").write_bytes(b"nothing")
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--report", tmp_path / "r")
    assert done.code == 3
    page = (tmp_path / "r" / "report.html").read_text()
    assert "1 of 3 frames were skipped: this result is incomplete" in page and "001.npy is damaged" in page


@pytest.mark.parametrize("kind", ["no anomaly", "all ignored"])
def test_a_report_without_defined_numbers_still_opens(tmp_path, capfd, kind):
    value = 0 if kind == "no anomaly" else 255
    scores, labels = write_folders(tmp_path, [(scores, np.full_like(label, value)) for scores, label in small_frames(2)])
    vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--report", tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    assert "undefined" in page and "No pixel is labelled an anomaly" in page


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_the_page_draws_in_a_browser_without_a_network(runs, tmp_path):
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
            "--dump-dom", (runs[0] / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.count('class="main-svg"') >= 5, done.stderr[-2000:]


# --- pictures ---------------------------------------------------------------------------------------------------------------


def test_the_overlay_tells_found_false_and_missed_apart():
    labels = np.zeros((480, 480), np.uint8)
    labels[100:200, 100:200], labels[100:200, 250:350], labels[:50] = 1, 1, 255
    scores = np.zeros((480, 480), np.float32)
    scores[100:200, 100:200], scores[300:400, 100:200], scores[:50] = 1, 1, 1
    picture_of = strip(np.zeros((480, 480, 3), np.uint8), scores, LabelMap(labels, None), threshold=0.5, score_range=(0, 1))
    overlay = picture_of[:, -480:]
    for (y, x), color in (((150, 150), FOUND), ((350, 150), FALSE_ALARM), ((150, 300), MISSED)):
        assert np.abs(overlay[y, x].astype(float) - np.array(color) * 0.75).max() <= 1
    assert (overlay[20, 20] == 0).all()  # ignored


def test_worst_and_best_frames_are_chosen_and_no_frame_twice():
    rows = [{"frame": f"f{i}", "AuPRC": i / 20, "false_positive_rate": 0.0} for i in range(20)]
    rows += [{"frame": f"q{i}", "AuPRC": None, "false_positive_rate": i / 100} for i in range(6)]
    chosen = choose(rows)
    why = {kind: [entry.frame for entry in chosen if entry.why == kind] for kind in ("worst", "best", "false alarms")}
    assert why["worst"][0] == "f0" and why["best"][0] == "f19" and why["false alarms"][0] == "q5"
    assert len({entry.frame for entry in chosen}) == len(chosen)
    assert choose([]) == []


def test_pictures_of_frames_have_safe_and_different_names():
    names = [file_name(frame) for frame in ("bag/1.5", "bag_1.5", "../../etc/passwd", "ü" * 300, "")]
    assert len(set(names)) == 5 and all(re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name) for name in names)
    assert not any(name.startswith(".") for name in names)


def test_a_picture_without_an_image_stands_on_grey():
    frame = strip(
        None, np.zeros((48, 64), np.float32), LabelMap(np.zeros((48, 64), np.uint8), None), threshold=None, score_range=(0, 1)
    )
    assert frame.shape[1] == 4 * 480 + 3 * 8 and Image.fromarray(frame).mode == "RGB"
