"""What is ignored: void, ordinary, and counted nowhere, in every command and in the node."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import small_frames, vl4ad, write_folders
from PIL import Image

from vl4ad_model import image_files
from vl4ad_model.errors import ImageError
from vl4ad_model.ignore_mask import IgnoreMask
from vl4ad_model.segmenter import Segmentation
from vl4ad_model.vocabulary import Vocabulary

SEEN = Path(__file__).parent / "data/evaluation/seen"


def mask_file(path: Path, rows: slice, columns: slice = slice(None), shape=(384, 640)) -> Path:
    pixels = np.zeros(shape, np.uint8)
    pixels[rows, columns] = 255
    Image.fromarray(pixels).save(path)
    return path


def turned_mask(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(mask_file(path, slice(9))).save(path, exif=exif)


def test_what_is_white_becomes_void_and_ordinary_at_any_size_and_the_rest_stays(tmp_path):
    mask = IgnoreMask.read(mask_file(tmp_path / "bonnet.png", slice(288, None)))
    labels = np.arange(96 * 160, dtype=np.uint32).reshape(96, 160).astype(np.uint8) % 19
    result = Segmentation(labels, np.full((96, 160), 0.7, np.float32), Vocabulary.cityscapes(), 1)
    changed = mask.apply(result)
    assert (changed.labels[72:] == 255).all() and (changed.anomaly[72:] == 0).all()
    assert (changed.labels[:72] == labels[:72]).all() and (changed.anomaly[:72] == np.float32(0.7)).all()
    assert (result.labels == labels).all() and (result.anomaly == np.float32(0.7)).all(), "the input is left alone"
    mask.paint_out(result)
    assert (result.labels == changed.labels).all() and (result.anomaly == changed.anomaly).all()
    assert mask.share == 0.25
    assert mask.complaint((720, 1200)) == "" and "640x384 but images are 640x480: it is stretched" in mask.complaint((480, 640))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no ignore mask at"),
        (lambda path: path.write_text("hello"), "not an image that can be read"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: mask_file(path, slice(0, 0)), "ignores nothing: paint white what is to be ignored"),
        (lambda path: mask_file(path, slice(None)), "ignores everything"),
        (lambda path: os.mkfifo(path), "not a file"),
        (lambda path: turned_mask(path), "turned by its EXIF orientation: save it upright"),
        (lambda path: mask_file(path, slice(1), shape=(4, 900)), "is 900x4: sides must be"),
        (lambda path: Image.new("1", (17000, 9000)).save(path), "is 17000x9000: sides must be"),
    ],
)
def test_a_mask_that_is_none_is_refused_in_one_line(tmp_path, capfd, make, reason):
    make(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=reason):
        IgnoreMask.read(tmp_path / "mask.png")
    done = vl4ad(capfd, "calibrate", "--images", SEEN, "--ignore-mask", tmp_path / "mask.png", "--out", tmp_path / "c.yaml")
    assert done.code == 2 and reason in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "c.yaml").exists()


def test_a_home_that_nobody_has_is_a_mask_that_is_not_there(capfd):
    for option in ("--ignore-mask", "--vocabulary", "--model"):
        done = vl4ad(capfd, "segment", SEEN, option, "~nobody.at.all/file")
        assert done.code == 2 and "~nobody.at.all/file" in done.err and done.err.count("\n") == 1


def painted(kind: str) -> Image.Image:
    """A mask whose lower quarter is white, as programs save it."""
    white = np.zeros((64, 96), bool)
    white[48:] = True
    grey, alpha = np.where(white, 255, 0).astype(np.uint8), np.where(white, 255, 0).astype(np.uint8)
    if kind == "dark 16 bit":
        return Image.fromarray(np.where(white, 65535, 1000).astype(np.uint16))
    if kind == "8 bit in 16":
        return Image.fromarray(grey.astype(np.uint16))
    if kind == "white on transparent white":
        return Image.fromarray(np.dstack([np.full_like(grey, 255)] * 3 + [alpha]))
    if kind == "grey and alpha":
        return Image.fromarray(np.dstack([np.full_like(grey, 255), alpha]))
    if kind == "palette":
        picture = Image.fromarray(np.where(white, 0, 1).astype(np.uint8), "P")
        picture.putpalette([255, 255, 255, 0, 0, 0])
        return picture
    return Image.fromarray(grey).convert(kind)


KINDS = ("L", "1", "RGB", "RGBA", "palette", "dark 16 bit", "8 bit in 16", "white on transparent white", "grey and alpha")


@pytest.mark.parametrize("kind", KINDS)
def test_white_is_white_however_it_is_stored(tmp_path, kind):
    painted(kind).save(tmp_path / "mask.png")
    assert (IgnoreMask.read(tmp_path / "mask.png").at((64, 96)) == (np.arange(64)[:, None] >= 48)).all()


@pytest.fixture
def frame(tmp_path):
    """A data set of one frame whose right hazard, a tyre, is ignored; the mask's file."""
    for kind, suffix in (("images", "jpg"), ("labels", "png"), ("frames", "json")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"900000.{suffix}").write_bytes((SEEN / kind / f"900000.{suffix}").read_bytes())
    return mask_file(tmp_path / "mask.png", slice(None), slice(100, None))


def test_evaluation_counts_nothing_there(frame, capfd):
    folder = frame.parent
    using = ("--images", folder, "--hazard", "tyre", "--json", folder / "r.json", "--report", folder / "report")
    whole, part = (
        json.loads((folder / "r.json").read_text())
        for options in ((), ("--ignore-mask", frame))
        if vl4ad(capfd, "evaluate", "images", *using, *options).code == 0
    )
    labels = image_files.read_rgb(folder / "images/900000.jpg").shape[:2]
    truth = np.asarray(Image.open(folder / "labels/900000.png"))
    assert whole["pixels"]["anomaly"] == int((truth >= 100).sum()) and labels == truth.shape
    assert part["pixels"]["anomaly"] == int((truth[:, :100] >= 100).sum()) < whole["pixels"]["anomaly"]
    assert sum(part["pixels"].values()) == int((truth[:, :100] != 255).sum())
    assert set(whole["naming"]["types"]) == {"tyre", "cardboard box"} and set(part["naming"]["types"]) == {"cardboard box"}
    assert part["configuration"]["ignore_mask"] == str(frame)


@pytest.mark.parametrize("workers", [1, 2])
def test_saved_scores_count_as_if_the_labels_said_ignore(tmp_path, capfd, workers):
    """In both rounds: pixels, and components."""
    frames = small_frames(4)
    mask = mask_file(tmp_path / "mask.png", slice(None), slice(0, 30), shape=(48, 64))
    painted = [(scores, np.where(np.arange(64) < 30, np.uint8(255), labels)) for scores, labels in frames]
    results = []
    for name, data, options in (("masked", frames, ("--ignore-mask", mask)), ("painted", painted, ())):
        scores, labels = write_folders(tmp_path / name, data)
        using = ("--scores", scores, "--labels", labels, "--track", "obstacle", "--workers", workers)
        done = vl4ad(capfd, "evaluate", "scores", *using, *options, "--json", tmp_path / f"{name}.json")
        assert done.code == 0, done.err
        document = json.loads((tmp_path / f"{name}.json").read_text())
        del document["configuration"]
        results.append(document)
    assert results[0] == results[1] and 0 < results[0]["pixels"]["anomaly"] < sum(int((labels == 1).sum()) for _, labels in frames)


def test_calibration_and_prompts_look_only_at_what_is_left(frame, capfd):
    """The frame is ordinary driving once its hazards are ignored."""
    folder = frame.parent
    using = ("--images", folder, "--label-values", "classes")
    done = vl4ad(capfd, "calibrate", *using, "--rate", 0.5, "--out", folder / "c.yaml")
    assert done.code == 2 and "shows a labelled anomaly" in done.err
    everything = mask_file(folder / "hazards.png", slice(150, None), slice(0, 250))
    done = vl4ad(capfd, "calibrate", *using, "--rate", 0.5, "--out", folder / "c.yaml", "--ignore-mask", everything)
    assert done.code == 0, done.err
    assert f"ignore_mask: {everything}" in (folder / "c.yaml").read_text()
    done = vl4ad(capfd, "prompts", "check", *using, "--hazard", "tyre", "--ignore-mask", everything)
    assert done.code == 0 and "quiet" in done.out, done.err


def test_a_mask_of_another_shape_is_said_once_and_one_at_home_is_found_from_everywhere(frame, tmp_path, capfd, monkeypatch):
    wide = mask_file(tmp_path / "wide.png", slice(0, 100), shape=(200, 640))
    using = ("--images", SEEN.parent / "quiet", "--every", 7, "--rate", 0.5, "--out", tmp_path / "c.yaml")
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path).replace("~", str(tmp_path)))
    done = vl4ad(capfd, "calibrate", *using, "--ignore-mask", "~/wide.png")
    assert done.code == 0, done.err
    assert f"ignore_mask: {wide}" in (tmp_path / "c.yaml").read_text()
    shapes = "wide.png is 640x200 but images are 640x384: it is stretched"
    images = (frame.parent / "images", SEEN / "images/900102.jpg")
    done = vl4ad(capfd, "segment", *images, "--ignore-mask", wide, "--out", tmp_path / "out")
    assert done.code == 0 and done.err.count(shapes) == 1


def test_segment_paints_it_out(frame, capfd):
    folder = frame.parent
    done = vl4ad(
        capfd, "segment", folder / "images/900000.jpg", "--hazard", "tyre", "--hazard", "cardboard box", "--ignore-mask", frame,
        "--out", folder / "out", "--json", folder / "s.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (seen,) = json.loads((folder / "s.json").read_text())["images"]
    assert [each["name"] for each in seen["hazards"]] == ["cardboard box"]
    labels = np.asarray(Image.open(folder / "out/900000_labels.png"))
    assert (labels[:, 100:] == 255).all() and (np.load(folder / "out/900000_anomaly.npy")[:, 100:] == 0).all()
    assert (labels[:, :100] != 255).all()


def test_the_node_ignores_it_per_camera_and_says_so(tmp_path):
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from ros_fixtures import picture, running_detector

    from vl4ad_ros.detector_client import DetectorClient, pixels

    mask_file(tmp_path / "left.png", slice(60, None), shape=(120, 160))
    right = mask_file(tmp_path / "right.png", slice(0, 60), shape=(120, 160))
    settings = {"cameras": ["left", "right"], "ignore_mask": str(tmp_path / "{camera}.png")}
    topics = ("segmentation", "anomaly_score")
    clients = [{"image_topic": f"/{side}/image", "camera": side, "topics": topics} for side in ("left", "right")]
    with (
        running_detector(settings, client=clients[0]) as (detector, left),
        DetectorClient(domain=left.domain, **clients[1]) as other,
    ):
        other.wait_until_connected()

        def halves(user, rgb):
            """Which half is void and ordinary altogether: (upper, lower)."""
            for _ in range(20):
                stamp = user.send(rgb)
                labels, score = (user.output(topic, stamp, timeout=3.0) for topic in topics)
                if labels is not None and score is not None:
                    break
            labels, score = pixels(labels), pixels(score)
            ignored = (labels == 255) & (score == 0)
            middle = len(labels) // 2
            return bool(ignored[:middle].all()), bool(ignored[middle:].all())

        assert halves(left, picture()) == (False, True) and halves(other, picture()) == (True, False)
        assert f"50% of the image ({right})" in detector.log
        shown = left.wait_for(lambda c: c.diagnostics.get("vl4ad_detector: detector", {}).get("ignored", "").count("50.0%") == 2)
        assert shown, left.collected.diagnostics
        assert left.wait_for(lambda c: float(c.diagnostics.get("vl4ad_detector: left", {}).get("ignore p50 (ms)", 0)) > 0)

        # A file that changed is read when the same name is set again; one that is no mask is refused and the old one stays.
        mask_file(tmp_path / "left.png", slice(0, 60), shape=(120, 160))
        assert left.set_parameter("ignore_mask", settings["ignore_mask"]) == (True, "")
        assert halves(left, picture()) == (True, False)
        for wrong, reason in (("/nowhere.png", "no ignore mask at /nowhere.png"), (3, "ignore_mask must be a string")):
            successful, said = left.set_parameter("ignore_mask", wrong)
            assert not successful and reason in said
        assert halves(left, picture(160, 160)) == (True, False)
        assert left.wait_for(lambda _: "160x120 but images are 160x160: it is stretched" in detector.log)
        assert left.set_parameter("ignore_mask", "") == (True, "")
        assert halves(left, picture()) == halves(other, picture()) == (False, False)
