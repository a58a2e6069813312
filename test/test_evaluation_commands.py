"""`vl4ad evaluate` as a person meets it: right numbers, every mistake one line, and nothing partial that looks whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import START, picture, png, scored_messages, small_frames, vl4ad, write_bag, write_folders
from PIL import Image
from test_evaluation_metrics import CASES, PUBLISHED

NOT_WHOLE, USER_ERROR = 3, 2


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def numbers(document: dict) -> dict:
    """What must not depend on how a run was done."""
    return {key: value for key, value in document.items() if key not in ("configuration",)}


# --- saved scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("track", ["anomaly", "obstacle"])
@pytest.mark.parametrize("name", CASES)
def test_the_published_numbers_come_out_of_the_command_line(tmp_path, capfd, name, track):
    scores, labels = write_folders(tmp_path, CASES[name])
    done = vl4ad(
        capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--track", track, "--json", tmp_path / "r.json"
    )
    assert done.code == 0, done.err
    got, published = read(tmp_path / "r.json"), PUBLISHED["cases"][name]["float32"]
    pixel = published["tie_study"]["all_ties_collapsed"]
    components = published["components_AnomalyTrack" if track == "anomaly" else "components_ObstacleTrack"]
    for key in ("AuPRC", "FPR95", "AuROC", "best_F1", "best_f1_threshold"):
        assert got[key] == pytest.approx(pixel[key], abs=1e-9), key
    for key in ("sIoU_gt_mean", "PPV_mean", "F1_mean", "n_gt", "n_pred"):
        assert got[key] == pytest.approx(components[key], abs=1e-9), key
    assert got["fishyscapes"] == pytest.approx(published["fishyscapes_exact"], abs=1e-9)
    assert list(got["per_threshold"]) == list(components["per_threshold"])
    for overlap, row in components["per_threshold"].items():
        assert {key: got["per_threshold"][overlap][key] for key in ("TP", "FN", "FP")} == {
            key: row[key] for key in ("TP", "FN", "FP")
        }
    assert got["complete"] and got["frames"]["evaluated"] == len(CASES[name])
    assert not (tmp_path / "r.json.partial").exists()


def test_a_threshold_can_be_given(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, CASES["tiny"])
    vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--threshold", 0.5, "--json", tmp_path / "r.json")
    expected = PUBLISHED["cases"]["tiny"]["float32"]["components_AnomalyTrack_fixed_threshold"]
    got = read(tmp_path / "r.json")
    assert got["component_threshold"] == 0.5
    assert got["F1_mean"] == pytest.approx(expected["F1_mean"], abs=1e-9) and got["sIoU_gt_mean"] == pytest.approx(
        expected["sIoU_gt_mean"], abs=1e-9
    )


def test_half_precision_scores_are_said_to_be_so(tmp_path, capfd):
    frames = [(scores.astype(np.float16), labels) for scores, labels in small_frames(3)]
    scores, labels = write_folders(tmp_path, frames)
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    assert "float16" in done.out and read(tmp_path / "r.json")["stored_scores"] == {"float32": 0, "float16": 3}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [(), ("--threshold", 1e38)])
def test_scores_at_the_ends_of_their_types_are_scores_like_others(tmp_path, capfd, options):
    frames = []
    for (scores, labels), kind, largest in zip(
        small_frames(3), ("float16", "float32", "float32"), (6.5e4, 3.4e38, 1e-40), strict=True
    ):
        frames.append((((scores - 0.5) / np.abs(scores - 0.5).max() * largest).astype(kind), labels))
    scores, labels = write_folders(tmp_path, frames)
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--report", tmp_path / "report")
    done = vl4ad(capfd, *command, *options)
    assert done.code == 0 and "skipped" not in done.err and "Warning" not in done.err, done.err
    assert read(tmp_path / "report/results.json")["frames"]["evaluated"] == 3


def test_processes_folders_and_bags_give_the_same_numbers(tmp_path, capfd):
    frames = small_frames(6)
    scores, labels = write_folders(tmp_path, frames)
    bag = write_bag(tmp_path / "drive", scored_messages(frames), compression="storage")
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--track", "obstacle", "--json")
    assert vl4ad(capfd, *command, tmp_path / "one.json").code == 0
    assert vl4ad(capfd, *command, tmp_path / "two.json", "--workers", 2).code == 0
    done = vl4ad(
        capfd, "evaluate", "bag", bag, "--score-topic", "/vl4ad/score", "--track", "obstacle",
        "--metrics", "pixel,components,fishyscapes", "--json", tmp_path / "bag.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    one, two, from_bag = (numbers(read(tmp_path / f"{name}.json")) for name in ("one", "two", "bag"))
    assert one == two
    for document in (one, from_bag):
        for row in document["per_frame"]:
            row["frame"] = ""
    assert one == from_bag


def test_several_bags_are_one_set(tmp_path, capfd):
    frames = small_frames(6)
    first = write_bag(tmp_path / "a", scored_messages(frames[:2]))
    second = write_bag(tmp_path / "b", scored_messages(frames[2:]))
    scores, labels = write_folders(tmp_path, frames)
    command = ("--metrics", "pixel,components,fishyscapes", "--json", tmp_path / "r.json")
    assert vl4ad(capfd, "evaluate", "bag", second, first, "--score-topic", "/vl4ad/score", *command).code == 0
    together = read(tmp_path / "r.json")
    vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, *command)
    for key in ("AuPRC", "F1_mean", "fishyscapes", "per_threshold"):
        assert together[key] == read(tmp_path / "r.json")[key]
    again = vl4ad(capfd, "evaluate", "bag", first, first, "--score-topic", "/vl4ad/score")
    assert again.code == USER_ERROR and "given twice" in again.err


def test_runs_of_different_tracks_are_compared_with_a_warning(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, small_frames(2))
    for track in ("anomaly", "obstacle"):
        command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--metrics", "pixel")
        assert vl4ad(capfd, *command, "--track", track, "--json", tmp_path / f"{track}.json").code == 0
    compare = ("evaluate", "compare", tmp_path / "anomaly.json", "--report", tmp_path / "page")
    done = vl4ad(capfd, *compare, tmp_path / "obstacle.json")
    assert done.code == 0 and "the runs have different tracks (anomaly, obstacle): the numbers of components" in done.err
    assert "tracks" not in vl4ad(capfd, *compare, tmp_path / "anomaly.json").err


# --- bad input --------------------------------------------------------------------------------------------------------------


def one_line(done, *parts):
    assert done.code == USER_ERROR, (done.code, done.err)
    last = [line for line in done.err.splitlines() if line.startswith("vl4ad: ")]
    assert len(last) == 1 and "Traceback" not in done.err
    for part in parts:
        assert part in last[0]


def test_a_failing_frame_is_named_counted_and_skipped(tmp_path, capfd):
    frames = small_frames(5)
    scores, labels = write_folders(tmp_path, frames)
    bad = frames[1][0].copy()
    bad[20, 20:23] = np.nan
    np.save(scores / "001.npy", bad)
    (scores / "003.npy").write_bytes(b"nothing")
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    done = vl4ad(capfd, *command)
    assert done.code == NOT_WHOLE and "2 of 5 frames were skipped" in done.err
    assert "001: 3 scores are NaN or infinite" in done.err and "003.npy is damaged" in done.err
    document = read(tmp_path / "r.json")
    assert not document["complete"] and document["frames"]["failed"] == 2 and document["frames"]["evaluated"] == 3
    assert [failure["name"] for failure in document["frames"]["failures"]] == ["001", "003"]
    good, good_labels = write_folders(tmp_path / "good", [frames[0], frames[2], frames[4]])
    vl4ad(capfd, "evaluate", "scores", "--scores", good, "--labels", good_labels, "--json", tmp_path / "good.json")
    assert read(tmp_path / "good.json")["AuPRC"] == document["AuPRC"]


def test_strict_stops_at_the_failing_frame_and_writes_nothing(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, small_frames(3))
    np.save(scores / "001.npy", np.full((48, 64), np.nan, np.float32))
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--strict", "--json", tmp_path / "r.json")
    one_line(done, "001", "NaN")
    assert not (tmp_path / "r.json").exists()


def test_when_every_frame_fails_there_is_no_result(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, [(np.full((48, 64), np.nan, np.float32), small_frames(1)[0][1])])
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    one_line(done, "no frame could be evaluated")
    assert not list(tmp_path.glob("r.json*"))


def test_without_any_anomaly_undefined_is_null_and_said(tmp_path, capfd):
    frames = [(scores, np.where(labels == 1, 0, labels).astype(np.uint8)) for scores, labels in small_frames(3)]
    scores, labels = write_folders(tmp_path, frames)
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    assert done.code == 0 and "no pixel is labelled an anomaly" in done.err and "undefined" in done.out
    document = read(tmp_path / "r.json")
    assert document["AuPRC"] is None and document["AuROC"] is None and document["fishyscapes"]["AP"] is None
    assert document["best_F1"] is None and document["best_f1_threshold"] is None
    assert document["sIoU_gt_mean"] is None and "NaN" not in (tmp_path / "r.json").read_text()


def test_where_everything_is_ignored_nothing_is_claimed(tmp_path, capfd):
    frames = [(scores, np.full_like(labels, 255)) for scores, labels in small_frames(2)]
    scores, labels = write_folders(tmp_path, frames)
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    assert done.code == NOT_WHOLE and "no pixel counts in any of 2 frames" in done.err
    document = read(tmp_path / "r.json")
    keys = ("AuPRC", "FPR95", "best_F1", "best_f1_threshold", "F1_mean", "per_threshold")
    assert all(document[key] is None for key in keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f | {"--scores": f["root"] / "empty"}, "no score maps in"),
        (lambda f: f | {"--scores": f["root"] / "none"}, "no folder"),
        (lambda f: f | {"--labels": f["root"] / "empty"}, "no label PNGs in"),
        (lambda f: f | {"--track": "road"}, "track 'road' is unknown"),
        (lambda f: f | {"--metrics": "pixel,iou"}, "metric 'iou' is unknown"),
        (lambda f: f | {"--metrics": ","}, "unknown"),
        (lambda f: f | {"--metrics": "miou,naming"}, "can measure nothing here, but pixel, components, fishyscapes can"),
        (lambda f: f | {"--threshold": "nan"}, "is no number"),
        (lambda f: f | {"--label-values": "colours"}, "auto, anomaly or classes"),
        (lambda f: f | {"--json": f["root"] / "file" / "r.json"}, "is not a folder"),
        (lambda f: f | {"--json": f["root"] / "empty"}, "it is a folder, name a file"),
        (lambda f: f | {"--report": f["root"] / "file"}, "a folder is needed"),
    ],
)
def test_a_mistaken_option_is_one_line_and_nothing_is_written(tmp_path, capfd, change, message):
    scores, labels = write_folders(tmp_path, small_frames(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    options = change({"root": tmp_path, "--scores": scores, "--labels": labels, "--json": tmp_path / "r.json"})
    options.pop("root")
    done = vl4ad(capfd, "evaluate", "scores", *[word for pair in options.items() for word in pair])
    one_line(done, message)
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "r.json.partial").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_said_before_any_work(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, small_frames(1))
    (tmp_path / "locked").mkdir(mode=0o500)
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "locked/r.json")
    one_line(done, "no permission")


def test_broken_bags_are_one_line(tmp_path, capfd):
    bag = write_bag(tmp_path / "drive", scored_messages(small_frames(3)))
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:5000])
    one_line(vl4ad(capfd, "evaluate", "bag", bag, "--json", tmp_path / "r.json"), "cut off", "mcap recover")
    bare = write_bag(tmp_path / "bare", scored_messages(small_frames(3)), storage="sqlite3")
    one_line(vl4ad(capfd, "evaluate", "bag", bare, "--image-topic", "/camera"), "no topic /camera", "/vl4ad/score")
    (bare / "metadata.yaml").unlink()
    one_line(vl4ad(capfd, "evaluate", "bag", bare), "no metadata.yaml")
    assert not (tmp_path / "r.json").exists()


def test_what_of_a_bag_is_not_used_is_said(tmp_path, capfd):
    messages = scored_messages(small_frames(4))
    messages = [*messages[:-1], *messages[:1]]
    bag = write_bag(tmp_path / "drive", messages)
    done = vl4ad(capfd, "evaluate", "bag", bag, "--score-topic", "/vl4ad/score", "--metrics", "pixel")
    assert done.code == 0 and f"vl4ad: {bag}: 1 messages on /vl4ad/score repeat a stamp and are left out" in done.err
    assert f"vl4ad: {bag}: 1 score maps on /vl4ad/score have no label and are left out" in done.err


# --- interruption -----------------------------------------------------------------------------------------------------------


def run_in_background(tmp_path, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "vl4ad_model.cli", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_no_result_and_goes_on_where_it_stopped(tmp_path, capfd, workers):
    frames = [(np.tile(scores, (9, 9)), np.tile(labels, (9, 9))) for scores, labels in small_frames(30)]
    scores, labels = write_folders(tmp_path, frames)
    result = tmp_path / "r.json"
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--json", result)
    running = run_in_background(tmp_path, *command, "--workers", workers)
    work, deadline = tmp_path / "r.json.partial", time.monotonic() + 60
    while len(list(work.glob("*.counts"))) < 3 and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "interrupted after" in errors and "Traceback" not in errors and not result.exists()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("*.counts")}
    assert 3 <= len(kept) < 30
    again = vl4ad(capfd, *command)
    assert again.code == 0 and f"resuming ({len(kept)} of 30 frames are counted)" in again.err
    straight = tmp_path / "straight.json"
    vl4ad(capfd, *command[:-1], straight)
    assert numbers(read(result)) == numbers(read(straight)) and not work.exists()


def test_a_run_that_is_terminated_cleans_up(tmp_path):
    frames = [(np.tile(scores, (9, 9)), np.tile(labels, (9, 9))) for scores, labels in small_frames(30)]
    scores, labels = write_folders(tmp_path, frames)
    (tmp_path / "scratch").mkdir()
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels)
    running = run_in_background(tmp_path, *command, TMPDIR=str(tmp_path / "scratch"))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("scratch/*/*.counts")) and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    running.terminate()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143 and "vl4ad: terminated" in errors and "Traceback" not in errors, errors
    assert not list((tmp_path / "scratch").glob("vl4ad-*"))


def test_work_of_another_configuration_or_of_changed_files_is_not_used(tmp_path, capfd):
    frames = small_frames(3)
    scores, labels = write_folders(tmp_path, frames)
    np.save(scores / "002.npy", np.full((48, 64), np.nan, np.float32))
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    assert vl4ad(capfd, *command, "--strict").code == USER_ERROR
    assert (tmp_path / "r.json.partial").is_dir()
    np.save(scores / "000.npy", frames[1][0])
    np.save(scores / "002.npy", frames[2][0])
    done = vl4ad(capfd, *command, "--strict")
    assert done.code == 0 and "starting over" in done.err
    changed = read(tmp_path / "r.json")
    fresh, fresh_labels = write_folders(tmp_path / "fresh", [(frames[1][0], frames[0][1]), (frames[1][0], frames[1][1]), frames[2]])
    vl4ad(capfd, "evaluate", "scores", "--scores", fresh, "--labels", fresh_labels, "--json", tmp_path / "f.json")
    assert changed["AuPRC"] == read(tmp_path / "f.json")["AuPRC"]


def test_a_strict_run_leaves_no_folder_that_the_next_one_refuses(tmp_path, capfd):
    """The other worker still counts a large frame when the first one fails."""
    (bad, label), (score, _) = small_frames(2)
    large = [(np.tile(score, (20, 20)), np.tile(label, (20, 20)))] * 3
    scores, labels = write_folders(tmp_path, [(np.where(label == 255, bad, np.float32(np.nan)), label), *large])
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--workers", 2, "--json", tmp_path / "r.json")
    one_line(vl4ad(capfd, *command, "--strict"), "000: ")
    work = tmp_path / "r.json.partial"
    assert not work.exists() or (work / "fingerprint").is_file()
    done = vl4ad(capfd, *command[:-4], "--json", tmp_path / "r.json")
    assert done.code == NOT_WHOLE and not work.exists(), done.err


def test_nothing_is_written_into_a_work_folder_that_is_gone(tmp_path):
    from vl4ad_model.evaluation.frame_counts import count_first
    from vl4ad_model.evaluation.label_files import LabelMap
    from vl4ad_model.evaluation.sources import Entry
    from vl4ad_model.evaluation.work_folder import WorkFolder, WorkFolderError

    score, label = small_frames(1)[0]
    counts = count_first("a", score, LabelMap(label, None), None, ("pixel",), 0, 0)
    work, entry = WorkFolder(tmp_path / "gone"), Entry("a", ())
    for save in (lambda: work.save(entry, counts), lambda: work.save_maps(entry, score, LabelMap(label, None))):
        with pytest.raises(WorkFolderError, match="cannot write"):
            save()
    assert not work.path.exists()
    work.path.mkdir()
    for kind, damage in (("counts", b""), ("counts", b"PK"), ("maps", b""), ("maps", None)):
        work.save_maps(entry, score, LabelMap(label, None))
        work.save(entry, counts)
        work.forget_damaged([entry], maps=True)
        assert work.has(entry)
        file = next(work.path.glob(f"*.{kind}"))
        file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
        work.forget_damaged([entry], maps=False)
        assert work.has(entry) == (kind == "maps")
        work.forget_damaged([entry], maps=True)
        assert not work.has(entry)


@pytest.mark.parametrize("cut", [0, 300, -1])
def test_a_damaged_file_of_an_interrupted_run_is_counted_anew(tmp_path, capfd, cut):
    frames = small_frames(3)
    scores, labels = write_folders(tmp_path, frames)
    np.save(scores / "002.npy", np.full((48, 64), np.nan, np.float32))
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    assert vl4ad(capfd, *command, "--strict").code == USER_ERROR
    file = min((tmp_path / "r.json.partial").glob("*.counts"))
    content = file.read_bytes()
    file.write_bytes(content[:400] + bytes(200) + content[600:] if cut < 0 else content[:cut])
    done = vl4ad(capfd, *command)
    assert done.code == NOT_WHOLE and "resuming (1 of 3 frames are counted)" in done.err, done.err
    good, good_labels = write_folders(tmp_path / "good", frames[:2])
    vl4ad(capfd, "evaluate", "scores", "--scores", good, "--labels", good_labels, "--json", tmp_path / "good.json")
    assert read(tmp_path / "good.json")["per_frame"] == read(tmp_path / "r.json")["per_frame"]


def test_a_folder_in_the_way_of_the_work_is_not_deleted(tmp_path, capfd):
    scores, labels = write_folders(tmp_path, small_frames(1))
    (tmp_path / "r.json.partial").mkdir()
    (tmp_path / "r.json.partial" / "thesis.txt").write_text("precious")
    done = vl4ad(capfd, "evaluate", "scores", "--scores", scores, "--labels", labels, "--json", tmp_path / "r.json")
    one_line(done, "in the way")
    assert (tmp_path / "r.json.partial" / "thesis.txt").read_text() == "precious"


# --- with a model -----------------------------------------------------------------------------------------------------------


def write_rendered(root: Path, count: int = 2) -> Path:
    """The layout of `vl4ad scenes`, 96 x 160."""
    for name in ("images", "labels", "frames"):
        (root / name).mkdir(parents=True)
    for index in range(count):
        raw = np.full((96, 160), 10, np.uint8)
        raw[40:] = 0
        raw[60:80, 60 + index : 90] = 100
        (root / f"images/{index:06}.png").write_bytes(png(picture(96, 160, index)))
        Image.fromarray(raw).save(root / f"labels/{index:06}.png")
        (root / f"frames/{index:06}.json").write_text('{"hazards": {"100": {"name": "sofa"}}}')
    return root


def test_images_and_the_same_frames_in_a_bag_give_the_same_numbers_and_classes(tmp_path, capfd):
    folder = write_rendered(tmp_path / "set")
    messages = []
    for index in range(2):
        raw = np.asarray(Image.open(folder / f"labels/{index:06}.png"))
        messages += [("/camera/image", START + index, picture(96, 160, index)), ("/camera/labels", START + index, raw)]
    bag = write_bag(tmp_path / "drive", messages)
    common = ("--hazard", "sofa|couch", "--track", "obstacle", "--engine", "torch")
    done = vl4ad(capfd, "evaluate", "images", "--images", folder, *common, "--json", tmp_path / "images.json")
    assert done.code == 0, done.err
    done = vl4ad(capfd, "evaluate", "bag", bag, *common, "--json", tmp_path / "bag.json")
    assert done.code == 0, done.err
    images, from_bag = read(tmp_path / "images.json"), read(tmp_path / "bag.json")
    for key in ("AuPRC", "FPR95", "AuROC", "best_F1", "F1_mean", "per_threshold", "fishyscapes", "mIoU", "IoU"):
        assert images[key] == from_bag[key], key
    assert set(images["IoU"]) >= {"road", "sky", "car"} and images["IoU"]["road"] is not None
    assert images["configuration"]["model"]["hazards"] == ["sofa|couch"]
    assert images["frames"]["with_anomaly"] == 2


DATA = Path(__file__).parent / "data"
SEEN = ("900000", "900200", "901200")
WORDS = ("--hazard", "Tire|TYRE", "--hazard", "cardboard box")


def some_seen(root: Path) -> Path:
    """Three frames of the committed set: one with a tyre and a box, two with other hazards."""
    for folder, suffix in (("images", "jpg"), ("labels", "png"), ("frames", "json")):
        (root / folder).mkdir(parents=True)
        for name in SEEN:
            shutil.copy(DATA / f"evaluation/seen/{folder}/{name}.{suffix}", root / folder)
    return root


def test_names_are_judged_by_what_the_model_says_on_typed_hazards(tmp_path, capfd, segmenter):
    from vl4ad_model.image_files import read_rgb

    folder = some_seen(tmp_path / "set")
    done = vl4ad(capfd, "evaluate", "images", "--images", folder, *WORDS, "--json", tmp_path / "r.json", "--offline")
    assert done.code == 0, done.err
    named = read(tmp_path / "r.json")["naming"]
    assert f"IoU {named['hazards']['Tire']['IoU']:.4f}" in done.out and "'cardboard box'" in done.out

    before = segmenter.vocabulary
    segmenter.vocabulary = before.with_hazards(["Tire|TYRE", "cardboard box"])
    said, truth = [], []
    try:
        for name in SEEN:
            said.append(segmenter.segment(read_rgb(folder / f"images/{name}.jpg")).labels.ravel())
            hazards = read(folder / f"frames/{name}.json")["hazards"]
            labels = np.asarray(Image.open(folder / f"labels/{name}.png")).ravel()
            truth.append(np.array([hazards[str(value)]["name"] if value >= 100 else "" for value in labels]))
    finally:
        segmenter.vocabulary = before
    said, truth = np.concatenate(said), np.concatenate(truth)
    assert set(named["types"]) == set(truth) - {""} and list(named["types"])[:2] == ["tyre", "cardboard box"]
    for name, label, kind in (("Tire", 19, "tyre"), ("cardboard box", 20, "cardboard box")):
        mine, row = said == label, named["hazards"][name]
        assert row["types"] == [kind] and row["pixels_predicted"] == mine.sum() > 0
        assert row["IoU"] == (mine & (truth == kind)).sum() / (mine | (truth == kind)).sum() > 0
        assert row["on_ordinary"] == (mine & (truth == "")).sum() / mine.sum()
        for of, entry in named["types"].items():
            assert entry["pixels"] == (truth == of).sum()
            assert entry["named"][name] == (mine & (truth == of)).sum() / entry["pixels"]
    assert all(entry["unnamed"] == pytest.approx(1 - sum(entry["named"].values())) for entry in named["types"].values())


@pytest.mark.slow
def test_names_are_the_same_from_several_processes_and_after_an_interruption(tmp_path, capfd, monkeypatch):
    from vl4ad_model.evaluation import runner

    folder = some_seen(tmp_path / "set")
    command = ("evaluate", "images", "--images", folder, *WORDS, "--offline", "--json")
    assert vl4ad(capfd, *command, tmp_path / "one.json").code == 0
    assert vl4ad(capfd, *command, tmp_path / "two.json", "--workers", 2).code == 0

    def interrupted(task):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner, "second_round", interrupted)
        assert vl4ad(capfd, *command, tmp_path / "again.json").code == 130
    done = vl4ad(capfd, *command, tmp_path / "again.json")
    assert done.code == 0 and "resuming (3 of 3 frames are counted)" in done.err
    one, two, again = (read(tmp_path / f"{name}.json")["naming"] for name in ("one", "two", "again"))
    assert one == two == again

    with monkeypatch.context() as patched:
        patched.setattr(runner, "second_round", interrupted)
        assert vl4ad(capfd, *command, tmp_path / "again.json").code == 130
    (folder / "frames/900000.json").write_text('{"hazards": {"100": {"name": "wheel"}}}')
    done = vl4ad(capfd, *command, tmp_path / "again.json")
    assert "starting over" in done.err and {"wheel", "hazard 101"} < set(read(tmp_path / "again.json")["naming"]["types"])


def test_names_in_the_demo_bag_are_judged_by_its_hazards_json(tmp_path, capfd):
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    demo = DATA / "demo_bag"
    store = get_typestore(Stores.ROS2_HUMBLE)
    with (
        AnyReader([demo], default_typestore=store) as recorded,
        Writer(tmp_path / "short", version=8, storage_plugin=StoragePlugin.MCAP) as writer,
    ):
        used = [each for each in recorded.connections if each.msgtype.endswith("Image")]
        times = sorted({time for _, time, _ in recorded.messages(used)})[10:90:40]
        kept = {each.topic: writer.add_connection(each.topic, each.msgtype, typestore=store) for each in used}
        for connection, time, raw in recorded.messages(used):
            if time in times:
                writer.write(kept[connection.topic], time, raw)
    shutil.copy(demo / "hazards.json", tmp_path / "short")
    for bag in (tmp_path / "short", tmp_path / "short/short.mcap"):
        done = vl4ad(capfd, "evaluate", "bag", bag, *WORDS, "--offline", "--json", tmp_path / "r.json")
        assert done.code == 0, done.err
        document = read(tmp_path / "r.json")
        assert document["frames"]["evaluated"] == 2 and document["naming"]["hazards"]["Tire"]["IoU"] > 0.3
        assert {"tyre", "cardboard box", "sofa", "ladder"} >= set(document["naming"]["types"]) >= {"tyre", "cardboard box"}


def test_where_labels_have_no_types_there_are_shares_and_no_iou(tmp_path, capfd):
    folder = write_rendered(tmp_path / "set", 1)
    shutil.rmtree(folder / "frames")
    raw = np.asarray(Image.open(folder / "labels/000000.png"))
    Image.fromarray((raw == 100).astype(np.uint8)).save(folder / "labels/000000.png")
    command = ("evaluate", "images", "--images", folder, "--offline", "--engine", "torch", "--json", tmp_path / "r.json")
    words = [word for index in range(10) for word in ("--hazard", f"strange thing {index}")]
    done = vl4ad(capfd, *command, *words)
    assert done.code == 0 and "'strange thing 7'" in done.out and "'strange thing 8'" not in done.out, done.err
    assert "... and 2 more" in done.out
    named = read(tmp_path / "r.json")["naming"]
    assert list(named["types"]) == ["anomaly"] and named["types"]["anomaly"]["pixels"] == (raw == 100).sum()
    assert all(row["IoU"] is None and row["types"] == [] for row in named["hazards"].values())
    assert all(row["on_ordinary"] is None for row in named["hazards"].values() if not row["pixels_predicted"])
    assert vl4ad(capfd, *command, *words, "--metrics", "pixel").code == 0 and "naming" not in read(tmp_path / "r.json")


def test_malformed_names_are_one_line_and_those_of_a_frame_skip_it(tmp_path, capfd):
    folder = write_rendered(tmp_path / "set")
    command = ("evaluate", "images", "--images", folder, "--offline", "--engine", "torch", "--json", tmp_path / "r.json")
    (folder / "frames/000001.json").write_text('{"hazards": {"100": 7}}')
    done = vl4ad(capfd, *command, *WORDS)
    assert done.code == NOT_WHOLE and "frames/000001.json: hazard 100 has no usable name: 7" in done.err
    assert list(read(tmp_path / "r.json")["naming"]["types"]) == ["sofa"]
    (tmp_path / "r.json").unlink()
    (folder / "hazards.json").write_text("{")
    one_line(vl4ad(capfd, *command, *WORDS), "hazards.json is not JSON")
    assert not (tmp_path / "r.json").exists()
    assert vl4ad(capfd, *command).code == 0 and "naming" not in read(tmp_path / "r.json")  # nobody needs names


def test_a_mistake_in_the_words_or_the_model_is_said_before_frames_are_read(tmp_path, capfd):
    folder = write_rendered(tmp_path / "set", 1)
    one_line(vl4ad(capfd, "evaluate", "images", "--images", folder, "--hazard", "car"), "'car' already belongs to class 'car'")
    one_line(vl4ad(capfd, "evaluate", "images", "--images", folder, "--model", "none"), "no model 'none'")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(png(picture()))
    one_line(vl4ad(capfd, "evaluate", "images", "--images", tmp_path / "plain"), "no labels were found", "--labels")


def test_the_benchmark_prints_every_metric(tmp_path, capfd):
    done = vl4ad(capfd, "benchmark", "metrics", "--frames", 1, "--repeat", 1, "--json", tmp_path / "b.json")
    assert done.code == 0 and "pixel metrics" in done.out and "Fishyscapes" in done.out
    rows = json.loads((tmp_path / "b.json").read_text())
    # The public code takes 2.3 s, 2.0 s and 21 s for 20 frames; a twentieth of a second per frame leaves room for a busy machine.
    assert all(row["cpu_seconds"] < 0.2 for row in rows[:3]), rows


def test_edited_words_start_over_and_other_workers_or_strictness_do_not(tmp_path):
    from vl4ad_model.evaluation.runner import ModelSettings, Settings, _deciding

    file = tmp_path / "words.yaml"
    file.write_text("classes: [road, car]")

    def decides(**changes):
        model = ModelSettings(vocabulary=str(file), threads=changes.pop("threads", None))
        return _deciding(Settings(model=model, **changes))

    before = decides()
    assert before == decides(threads=1, strict=True)
    file.write_text("classes: [road, car, bus]")
    assert before != decides()


def test_results_go_into_what_is_open_already_and_through_links(tmp_path, capfd):
    """A pipe or /dev/stdout is written to as it is, and never replaced by a file; a link stays one."""
    scores, labels = write_folders(tmp_path, small_frames(2))
    command = ("evaluate", "scores", "--scores", scores, "--labels", labels, "--json")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("sub/real.json")
    assert vl4ad(capfd, *command, tmp_path / "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink() and "AuPRC" in json.loads((tmp_path / "sub/real.json").read_text())
    done = vl4ad(capfd, *command, "/dev/stdout")  # a file here, in which other things are said too
    assert done.code == 0 and '"AuPRC": ' in done.out and "─" in done.out
    reading, writing = os.pipe()
    with open(reading) as pipe:
        assert vl4ad(capfd, *command, f"/dev/fd/{writing}").code == 0
        os.close(writing)
        assert "AuPRC" in json.loads(pipe.read())


def test_workers_do_not_outlive_a_run_that_is_killed(tmp_path):
    program = tmp_path / "run.py"
    program.write_text(
        "import os, time\nfrom vl4ad_model.evaluation.runner import mapper\n"
        "def say(seconds):\n    print(os.getpid(), flush=True)\n    time.sleep(seconds)\n"
        "if __name__ == '__main__':\n    with mapper(2) as map_tasks:\n        list(map_tasks(say, [0.0, 0.0, 600.0]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment) as running:
        workers = {int(running.stdout.readline()) for _ in range(3)}
        running.kill()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_memory_does_not_grow_with_what_workers_have_answered():
    from vl4ad_model.evaluation.runner import mapper

    def resident_mb():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    with mapper(2) as map_tasks:
        answers = map_tasks(np.ones, [1_000_000] * 40)  # 8 MB each
        assert next(answers).nbytes == 8_000_000
        before = resident_mb()
        assert sum(answer.size for answer in answers) == 39_000_000
        assert resident_mb() - before < 100


def test_a_worker_that_is_killed_is_said_and_does_not_hang():
    from vl4ad_model.errors import EvaluationError
    from vl4ad_model.evaluation.runner import mapper

    with pytest.raises(EvaluationError, match="use fewer --workers"), mapper(2) as map_tasks:
        list(map_tasks(os._exit, [1, 1, 1]))
