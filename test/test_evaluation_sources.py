"""Where frames come from: folders in the public layouts, saved scores in every format, and bags; bad ones are named."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from evaluation_helpers import START, STEP, picture, png, scored_messages, small_frames, without_index, write_bag, write_folders
from PIL import Image

from vl4ad_model.errors import EvaluationError
from vl4ad_model.evaluation.bags import open_bag
from vl4ad_model.evaluation.folders import FolderSource, dataset_folders
from vl4ad_model.evaluation.label_files import interpret, read_label_values
from vl4ad_model.evaluation.options import image_sources
from vl4ad_model.evaluation.score_files import read_scores
from vl4ad_model.evaluation.sources import FrameFailure


def frames_of(source, **options):
    entries = source.entries()
    return list(source.frames(entries, **options))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


LABELS = np.zeros((48, 64), np.uint8)
LABELS[10:30, 20:40] = 1
LABELS[:4] = 255


# --- folders ----------------------------------------------------------------------------------------------------------------


def test_segment_me_if_you_can_layout(tmp_path):
    for name in ("validation_1", "validation_2"):
        save(tmp_path / f"images/{name}.jpg", picture())
        save(tmp_path / f"labels_masks/{name}_labels_semantic.png", LABELS)
        save(tmp_path / f"labels_masks/{name}_labels_semantic_color.png", picture())
    images, labels = dataset_folders(tmp_path)
    frames = frames_of(FolderSource(images, None, labels))
    assert [frame.name for frame in frames] == ["validation_1", "validation_2"]
    assert (frames[0].labels.anomaly == LABELS).all() and frames[0].rgb.shape == (48, 64, 3)


def test_fishyscapes_layout_with_its_own_numbers(tmp_path):
    save(tmp_path / "images/04_Maurener_Weg_8_000000_000030_leftImg8bit.png", picture())
    save(tmp_path / "labels/0000_04_Maurener_Weg_8_000000_000030_labels.png", LABELS)
    frame = frames_of(FolderSource(tmp_path / "images", None, tmp_path / "labels"))[0]
    assert frame.rgb is not None and (frame.labels.anomaly == LABELS).all()


def test_road_anomaly_layout_and_its_labels_0_and_2(tmp_path):
    save(tmp_path / "frames/animals01.jpg", picture())
    save(tmp_path / "frames/animals01.labels/labels_semantic.png", np.where(LABELS == 1, 2, 0).astype(np.uint8))
    save(tmp_path / "frames/animals01.labels/labels_semantic_color.png", picture())
    frame = frames_of(FolderSource(*_image_and_label(tmp_path)))[0]
    assert frame.name == "animals01" and (frame.labels.anomaly == (LABELS == 1)).all()


def _image_and_label(root):
    images, labels = dataset_folders(root)
    return images, None, labels


def test_rendered_frames_give_classes_and_hazards(tmp_path):
    raw = np.full((48, 64), 13, np.uint8)
    raw[10:20, 10:20], raw[20:30, 10:20], raw[:4] = 100, 101, 255
    save(tmp_path / "images/000001.jpg", picture())
    save(tmp_path / "labels/000001.png", raw)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/000001.json").write_text("{}")
    frame = frames_of(FolderSource(*_image_and_label(tmp_path)))[0]
    assert ((frame.labels.anomaly == 1) == (raw >= 100) & (raw < 255)).all()
    assert (frame.labels.classes[raw == 13] == 13).all() and (frame.labels.classes[raw != 13] == 255).all()


def test_a_folder_of_data_sets_is_all_of_them(tmp_path):
    for name in ("quiet", "seen"):
        save(tmp_path / name / "images/a.png", picture())
        save(tmp_path / name / "labels/a.png", LABELS)
    sources = image_sources([tmp_path], None, "auto", 19)
    assert [frame.name for source in sources for frame in frames_of(source)] == ["quiet/a", "seen/a"]


def test_labels_belong_to_the_stored_pixels_whatever_exif_says(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    turned = Image.Exif()
    for orientation, rgb in ((3, picture()), (6, picture(48, 64, 2))):
        turned[0x0112] = orientation
        Image.fromarray(rgb).save(tmp_path / "images/a.png", exif=turned)
        save(tmp_path / "labels/a.png", LABELS)
        stored = (tmp_path / "images/a.png").read_bytes()
        bag = write_bag(tmp_path / f"{orientation}", [("/camera/image", START, ("png", stored)), ("/camera/labels", START, LABELS)])
        for source in (FolderSource(*_image_and_label(tmp_path)), open_bag(bag)):
            assert (frames_of(source)[0].rgb == rgb).all()
        upright = np.rot90(rgb, 2 if orientation == 3 else -1)
        assert (frames_of(FolderSource(tmp_path / "images"))[0].rgb == upright).all()


def test_labels_beside_images_are_told_apart_by_their_ending(tmp_path):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "a_labels.png", LABELS)
    frames = frames_of(FolderSource(tmp_path, None, tmp_path))
    assert [frame.name for frame in frames] == ["a"] and frames[0].labels is not None


def test_images_called_color_count_and_previews_of_others_do_not(tmp_path):
    save(tmp_path / "a_color.png", picture(seed=0))  # beside a_depth, of another camera
    save(tmp_path / "b_color.jpg", picture(seed=1))
    save(tmp_path / "c.png", picture(seed=2))
    save(tmp_path / "c_color.png", picture(seed=3))
    for name in "abc":
        save(tmp_path / f"{name}_labels.png", LABELS)
        save(tmp_path / f"{name}_labels_color.png", picture())
    frames = frames_of(FolderSource(tmp_path, None, tmp_path))
    assert [frame.name for frame in frames] == ["a", "b", "c"]
    assert (frames[0].rgb == picture(seed=0)).all() and (frames[2].rgb == picture(seed=2)).all()


def test_only_files_with_a_label_count_and_a_label_without_file_fails_by_name(tmp_path):
    scores, labels = write_folders(tmp_path, small_frames(3))
    (labels / "001.png").unlink()
    (scores / "002.npy").unlink()
    source = FolderSource(None, scores, labels)
    frames = frames_of(source)
    assert [frame.name for frame in frames] == ["000", "002"] and source.unlabelled == 1
    assert isinstance(frames[1], FrameFailure) and "no scores" in frames[1].reason and "002.png" in frames[1].reason


@pytest.mark.parametrize(
    ("values", "message"),
    [([0, 1, 2], r"label values \[2\]"), ([0, 2, 3], r"label values \[3\]"), ([7], r"label values \[7\]"), ([0, 254], "254")],
)
def test_other_label_values_are_an_error_that_names_the_file(tmp_path, values, message):
    scores, labels = write_folders(tmp_path, small_frames(1))
    save(labels / "000.png", np.resize(np.array(values, np.uint8), (48, 64)))
    failure = frames_of(FolderSource(None, scores, labels))[0]
    assert isinstance(failure, FrameFailure) and "000.png" in failure.reason
    with pytest.raises(EvaluationError, match=message):
        interpret(read_label_values(labels / "000.png"), "anomaly", 19, "000.png")


def test_labels_of_another_size_are_an_error_that_names_both(tmp_path):
    scores, labels = write_folders(tmp_path, small_frames(1))
    save(labels / "000.png", LABELS[:24])
    failure = frames_of(FolderSource(None, scores, labels))[0]
    assert "000.png is 64x24" in failure.reason and "000.npy is 64x48" in failure.reason


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not an image"), (b"x" * 200, "not an image"), (png(LABELS)[:60], "damaged")]
)
def test_damaged_label_files_are_named(tmp_path, content, message):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read_label_values(tmp_path / "bad.png")
    save(tmp_path / "colour.png", picture())
    with pytest.raises(EvaluationError, match="mode RGB"):
        read_label_values(tmp_path / "colour.png")


def test_labels_of_one_bit_are_what_they_are(tmp_path):
    save(tmp_path / "mask.png", LABELS == 1)
    values = read_label_values(tmp_path / "mask.png")
    assert np.array_equal(values, (LABELS == 1).astype(np.uint8)) and values.any()


def test_folders_that_cannot_be_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    scores, labels = write_folders(tmp_path, small_frames(1))
    for folder, message in (
        (tmp_path / "none", "no folder"),
        (tmp_path / "empty", "no score maps"),
        (tmp_path / "file", "not a folder"),
    ):
        with pytest.raises(EvaluationError, match=message):
            FolderSource(None, folder, labels).entries()
    (labels / "000.png").rename(labels / "other.png")
    with pytest.raises(EvaluationError, match="paired by stem, and 'other' is not '000'"):
        FolderSource(None, scores, labels).entries()
    save(labels / "more/other.png", LABELS)
    with pytest.raises(EvaluationError, match="both frame 'other'"):
        FolderSource(None, scores, labels).entries()


# --- names of hazards -------------------------------------------------------------------------------------------------------

RAW = np.full((48, 64), 13, np.uint8)
RAW[10:20, 10:20], RAW[20:30, 10:20] = 100, 101


def named_set(root, of_frame=None, of_set=None, where=""):
    """Two frames with class labels; names of the first one's hazards, and of the whole set's."""
    for name in ("a", "b"):
        save(root / f"images/{name}.png", picture())
        save(root / f"labels/{name}.png", RAW)
    if of_frame is not None:
        (root / "frames").mkdir()
        (root / "frames/a.json").write_text(of_frame)
    if of_set is not None:
        (root / where / "hazards.json").write_text(of_set)
    return FolderSource(*_image_and_label(root), hazard_names=True)


@pytest.mark.parametrize("where", ["", "labels"])
def test_names_of_the_set_are_those_of_every_frame_and_a_frame_s_own_come_first(tmp_path, where):
    of_set = '{"hazards": {"100": "tyre", "101": {"name": " cardboard  box "}}}'
    first, second = frames_of(named_set(tmp_path, '{"hazards": {"100": {"name": "sofa"}}}', of_set, where))
    assert first.labels.hazard_names == {100: "sofa", 101: "cardboard box"}
    assert second.labels.hazard_names == {100: "tyre", 101: "cardboard box"}
    assert (second.labels.hazards[second.labels.anomaly == 1] == RAW[RAW >= 100]).all()


def test_hazards_json_alone_says_that_labels_are_classes(tmp_path):
    frame = frames_of(named_set(tmp_path, of_set='{"hazards": {}}'))[0]
    assert frame.labels.classes is not None and frame.labels.hazard_names == {}


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    frame = frames_of(named_set(tmp_path, of_set='\ufeff{"hazards": {"100": "tyre"}}'))[0]
    assert frame.labels.hazard_names == {100: "tyre"}


def test_frames_count_again_when_names_change(tmp_path):
    source = named_set(tmp_path, "{}", '{"hazards": {"100": "tyre"}}')
    for file, changed in (("hazards.json", {"a", "b"}), ("frames/a.json", {"a"})):
        before = {entry.name: entry.version for entry in source.entries()}
        os.utime(tmp_path / file, (1, 1))
        assert {entry.name for entry in source.entries() if entry.version != before[entry.name]} == changed


MALFORMED = [
    ("{", "is not JSON"),
    ("[]", "does not say what the hazards are"),
    ('{"hazards": ["tyre"]}', "does not say what the hazards are"),
    ('{"hazards": {"1": "tyre"}}', "'1' is no hazard's label: they are 100..254"),
    ('{"hazards": {"tyre": 100}}', "'tyre' is no hazard's label"),
    ('{"hazards": {"100": {"title": "tyre"}}}', "hazard 100 has no usable name"),
    ('{"hazards": {"100": " "}}', "hazard 100 has no usable name"),
    ("\xff", "is not JSON"),
    ('{"hazards": {"' + "1" * 5000 + '": "tyre"}}', "is no hazard's label"),
    ('{"hazards": {"0100": "tyre"}}', "'0100' is no hazard's label"),
    ('{"hazards": {"100": "tyre", "100": "sofa"}}', "'100' stands twice in one object"),
]


@pytest.mark.parametrize(("content", "message"), [*MALFORMED, ("{}", "does not say what the hazards are")])
def test_malformed_names_of_a_set_are_its_failure_and_those_of_a_frame_only_the_frame_s(tmp_path, content, message):
    source = named_set(tmp_path / "one", of_set=content)
    with pytest.raises(EvaluationError, match=r"hazards\.json.*" + message):
        source.entries()
    assert len(frames_of(FolderSource(*_image_and_label(tmp_path / "one")))) == 2  # nobody asked for names
    first, second = frames_of(named_set(tmp_path / "two", of_frame=content))
    assert not isinstance(second, FrameFailure) and isinstance(first, FrameFailure) == (content != "{}")
    if content != "{}":
        assert "frames/a.json" in first.reason and message in first.reason


def test_names_lie_in_the_bag_s_folder_or_beside_its_file(tmp_path):
    bag = write_bag(tmp_path / "drive", [("/camera/image", START, picture()), ("/camera/labels", START, RAW)])
    for content, names in ((None, {}), ({"100": {"name": "tyre"}, "101": "sofa"}, {100: "tyre", 101: "sofa"})):
        if content:
            (bag / "hazards.json").write_text(json.dumps({"hazards": content}))
        for path in (bag, next(bag.glob("*.mcap"))):
            assert frames_of(open_bag(path, hazard_names=True))[0].labels.hazard_names == names
            assert frames_of(open_bag(path))[0].labels.hazard_names == {}
    source = open_bag(next(bag.glob("*.mcap")), hazard_names=True)
    before = source.entries()
    os.utime(bag / "hazards.json", (1, 1))
    assert source.entries() != before
    (bag / "hazards.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"hazards\.json is not JSON"):
        source.entries()


# --- saved scores -----------------------------------------------------------------------------------------------------------


def test_every_score_format_is_read_as_it_was_stored(tmp_path):
    scores = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    np.save(tmp_path / "a.npy", scores)
    np.save(tmp_path / "half.npy", scores.astype(np.float16))
    np.save(tmp_path / "channel.npy", scores[None])
    np.savez(tmp_path / "b.npz", scores)
    np.savez_compressed(tmp_path / "c.npz", other=scores[:2], scores=scores)
    Image.fromarray(np.round(scores * 65535).astype(np.uint16)).save(tmp_path / "d.png")
    with h5py.File(tmp_path / "e.hdf5", "w") as stored:
        stored.create_dataset("value", data=scores.astype(np.float16), compression=9)
    for name in ("a.npy", "channel.npy", "b.npz", "c.npz"):
        assert (read_scores(tmp_path / name) == scores).all()
    assert np.abs(read_scores(tmp_path / "d.png") - scores).max() < 1e-5
    for name in ("half.npy", "e.hdf5"):
        read = read_scores(tmp_path / name)
        assert read.dtype == np.float16 and (read == scores.astype(np.float16)).all()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".hdf5"])
def test_damaged_score_files_are_named(tmp_path, suffix):
    path = tmp_path / f"frame{suffix}"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': garbage")
    with pytest.raises(EvaluationError, match=f"frame{suffix} is damaged"):
        read_scores(path)
    with pytest.raises(EvaluationError, match="no scores at"):
        read_scores(tmp_path / f"missing{suffix}")


def test_files_that_are_no_score_map_are_refused(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "three.npy", np.zeros((4, 5, 3), np.float32))
    np.savez(tmp_path / "two.npz", x=np.zeros((2, 2)), y=np.zeros((2, 2)))
    save(tmp_path / "grey.png", LABELS)
    for name, message in (("pickle.npy", "damaged"), ("three.npy", "shape"), ("two.npz", "x, y"), ("grey.png", "16-bit")):
        with pytest.raises(EvaluationError, match=message):
            read_scores(tmp_path / name)


def bytes_read() -> int:
    """By this process so far, from files or their cache."""
    return int(Path("/proc/self/io").read_text().partition("rchar:")[2].split()[0])


# --- bags -------------------------------------------------------------------------------------------------------------------

FRAMES = small_frames(5)


def recording(images="rgb8", labels="mono8"):
    """Messages of images and labels, one pair per stamp."""
    found = []
    for index, (_, label) in enumerate(FRAMES):
        stamp = START + index * STEP
        rgb = picture(seed=index)
        image = {"rgb8": rgb, "bgr8": ("bgr8", rgb[..., ::-1]), "jpeg": ("jpeg", png(rgb, "JPEG")), "png": ("png", png(rgb))}[
            images
        ]
        truth = {"mono8": label, "8UC1": ("8UC1", label), "png": ("mono8; png compressed", png(label))}[labels]
        found += [("/camera/image", stamp, image), ("/camera/labels", stamp, truth)]
    return found


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compression", [None, "file", "message", "storage"])
def test_every_kind_of_bag_gives_every_frame(tmp_path, storage, compression):
    if storage == "sqlite3" and compression == "storage":
        pytest.skip("sqlite3 has no compression of its own")
    bag = write_bag(tmp_path / "drive", recording(), storage=storage, compression=compression)
    source = open_bag(bag)
    frames = frames_of(source)
    assert [frame.name for frame in frames] == [f"drive/1700000000.{index}00000000" for index in range(5)]
    for index, frame in enumerate(frames):
        assert (frame.rgb == picture(seed=index)).all() and (frame.labels.anomaly == FRAMES[index][1]).all()


@pytest.mark.parametrize("images", ["rgb8", "bgr8", "jpeg", "png"])
@pytest.mark.parametrize("labels", ["mono8", "8UC1", "png"])
def test_raw_and_compressed_topics_are_read(tmp_path, images, labels):
    frames = frames_of(open_bag(write_bag(tmp_path / "drive", recording(images, labels))))
    for index, frame in enumerate(frames):
        tolerance = 12 if images == "jpeg" else 0
        assert np.abs(frame.rgb.astype(int) - picture(seed=index)).max() <= tolerance
        assert (frame.labels.anomaly == FRAMES[index][1]).all()


def test_a_single_mcap_or_db3_file_is_a_bag_too(tmp_path):
    for storage, suffix in (("mcap", ".mcap"), ("sqlite3", ".db3")):
        bag = write_bag(tmp_path / storage, recording(), storage=storage)
        frames = frames_of(open_bag(next(bag.glob("*" + suffix))))
        assert len(frames) == 5 and not any(isinstance(frame, FrameFailure) for frame in frames)


@pytest.mark.parametrize("summary", [True, False])
@pytest.mark.parametrize("last_first", [True, False])
def test_files_recorded_without_an_index_give_every_frame(tmp_path, summary, last_first):
    bag = without_index(write_bag(tmp_path / "drive", recording()), summary=summary, last_first=last_first)
    for path in (bag, next(bag.glob("*.mcap"))):
        source = open_bag(path)
        entries = source.entries()
        for chosen in (entries, entries[3:4], entries[::-2]):
            for frame in source.frames(chosen):
                index = int(frame.name.partition(".")[2][0])
                assert (frame.rgb == picture(seed=index)).all() and (frame.labels.anomaly == FRAMES[index][1]).all()
        assert len(entries) == 5


def test_of_a_file_without_an_index_only_stamps_and_the_wanted_frame_are_read(tmp_path):
    large = np.zeros((1000, 1000, 3), np.uint8)
    messages = recording() + [("/other/image", START + index, ("rgb8", large)) for index in range(20)]
    messages += [("/camera/image", START + 5 * STEP, ("rgb8", large)), ("/camera/labels", START + 5 * STEP, large[..., 0])]
    source = open_bag(without_index(write_bag(tmp_path / "drive", messages)), image_topic="/camera/image")
    read_before = bytes_read()
    entries = source.entries()[:5]
    (frame,) = source.frames(entries[-1:])
    assert (frame.rgb == picture(seed=4)).all()
    assert bytes_read() - read_before < 1_000_000, "of 64 MB"


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_damage_in_a_file_without_an_index_is_one_clear_line(tmp_path, keep):
    bag = without_index(write_bag(tmp_path / "drive", recording()), summary=False)
    file = next(bag.glob("*.mcap"))
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))] + content[-37:])
    with pytest.raises(EvaluationError, match=r"drive (is damaged|cannot be read as a rosbag2 recording): ") as caught:
        open_bag(bag).entries()
    assert "\n" not in str(caught.value)


def test_stamps_match_images_and_labels_whatever_the_order_of_recording(tmp_path):
    late = write_bag(tmp_path / "late", recording(), delay={"/camera/labels": 7 * STEP // 2})
    early = write_bag(tmp_path / "early", recording(), delay={"/camera/image": 7 * STEP // 2})
    for bag in (late, early):
        for index, frame in enumerate(frames_of(open_bag(bag))):
            assert (frame.rgb == picture(seed=index)).all() and (frame.labels.anomaly == FRAMES[index][1]).all()


def test_any_subset_and_order_of_frames_can_be_read_alone(tmp_path):
    source = open_bag(write_bag(tmp_path / "drive", recording(), delay={"/camera/labels": STEP * 2}))
    entries = source.entries()
    for chosen in ([3], [1, 4], [4, 0, 2]):
        frames = list(source.frames([entries[index] for index in chosen]))
        assert [int(frame.rgb[0, 0, 2]) for frame in frames] == [index * 40 for index in chosen]


def test_labels_on_some_images_only_and_stamps_that_differ_a_little(tmp_path):
    messages = [
        (topic, stamp + (3_000_000 if topic == "/camera/labels" else 0), payload)
        for index, (topic, stamp, payload) in enumerate(recording())
        if not (topic == "/camera/labels" and index < 4)
    ]
    bag = write_bag(tmp_path / "drive", messages)
    exact = frames_of(open_bag(bag))
    assert len(exact) == 3 and all("no message on /camera/image has this label's stamp" in failure.reason for failure in exact)
    near = frames_of(open_bag(bag, tolerance=0.005))
    assert [int(frame.rgb[0, 0, 2]) for frame in near] == [80, 120, 160]
    assert [frame.labels is not None for frame in near] == [True] * 3


def test_recorded_scores_come_back_bit_for_bit(tmp_path):
    frames = frames_of(open_bag(write_bag(tmp_path / "drive", scored_messages(FRAMES)), score_topic="/vl4ad/score"))
    for frame, (scores, labels) in zip(frames, FRAMES, strict=True):
        assert (frame.scores == scores).all() and (frame.labels.anomaly == labels).all()


def test_class_labels_are_recognised_in_a_bag_too(tmp_path):
    raw = np.full((48, 64), 8, np.uint8)
    raw[10:20, 10:20] = 100
    bag = write_bag(tmp_path / "drive", [("/camera/image", START, picture()), ("/camera/labels", START, raw)])
    frame = frames_of(open_bag(bag))[0]
    assert frame.labels.classes[0, 0] == 8 and frame.labels.anomaly[15, 15] == 1


def test_one_image_per_time_can_be_kept(tmp_path):
    bag = write_bag(tmp_path / "drive", recording())
    names = [entry.name for entry in open_bag(bag, need_labels=False, every=0.2).entries()]
    assert names == [f"drive/1700000000.{index}00000000" for index in (0, 2, 4)]


def test_topics_that_are_missing_or_cannot_be_guessed_list_what_there_is(tmp_path):
    bag = write_bag(tmp_path / "drive", [*recording(), ("/rear/image", START, picture()), ("/talk", START, "hello")])
    with pytest.raises(EvaluationError, match=r"several could be the image topic: pass --image-topic with one of /camera/image \("):
        open_bag(bag)
    with pytest.raises(EvaluationError, match=r"has no topic /none: its image topics are .*/rear/image"):
        open_bag(bag, image_topic="/none")
    with pytest.raises(EvaluationError, match=r"topic /talk carries std_msgs/msg/String"):
        open_bag(bag, image_topic="/talk")
    bare = write_bag(tmp_path / "bare", [("/camera/image", START, picture())])
    with pytest.raises(EvaluationError, match="no label topic was found"):
        open_bag(bare)


def test_broken_bags_are_one_clear_line(tmp_path):
    whole = write_bag(tmp_path / "whole", recording())
    cut = tmp_path / "cut.mcap"
    content = next(whole.glob("*.mcap")).read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(EvaluationError, match=r"cut off: .*mcap recover"):
        open_bag(cut)
    (whole / "whole.mcap").write_bytes(cut.read_bytes())
    with pytest.raises(EvaluationError, match="cut off"):
        open_bag(whole)

    bare = write_bag(tmp_path / "bare", recording(), storage="sqlite3")
    (bare / "metadata.yaml").unlink()
    with pytest.raises(EvaluationError, match=r"no metadata.yaml .*ros2 bag reindex"):
        open_bag(bare)
    for name, content in (("empty.mcap", b""), ("empty.db3", b""), ("text.db3", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EvaluationError, match=name):
            open_bag(tmp_path / name)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EvaluationError, match="is no bag"):
        open_bag(tmp_path / "nothing")
    with pytest.raises(EvaluationError, match="no bag at"):
        open_bag(tmp_path / "missing")
    with pytest.raises(EvaluationError, match="is no rosbag2 recording"):
        open_bag(cut.rename(tmp_path / "cut.bag"))


def test_damage_inside_a_bag_is_one_clear_line(tmp_path):
    bag = write_bag(tmp_path / "drive", recording(), compression="storage")
    file = next(bag.glob("*.mcap"))
    content = bytearray(file.read_bytes())
    content[120:720] = bytes(600)
    file.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"drive"):
        frames_of(open_bag(bag))
    from vl4ad_ros.demo_recording import read_recording

    with pytest.raises(EvaluationError, match=r"drive is damaged"):
        read_recording(bag)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (LABELS[:20], "the label is 64x20 but the image is 64x48"),
        (("rgb8", picture()), "encoding 'rgb8'"),
        (("jpeg", png(LABELS, "JPEG")), "JPEG changes label values"),
        (("png", b"nothing"), "damaged"),
        (np.full((48, 64), 50, np.uint8), r"label values \[50\]"),
    ],
)
def test_a_bad_label_message_fails_its_frame_and_no_other(tmp_path, label, message):
    messages = recording()
    messages[3] = ("/camera/labels", messages[3][1], label)
    if isinstance(label, tuple) and isinstance(label[1], bytes):
        messages = [m if m[0] != "/camera/labels" or m[1] == messages[3][1] else (m[0], m[1], ("png", png(m[2]))) for m in messages]
    frames = frames_of(open_bag(write_bag(tmp_path / "drive", messages), label_values="anomaly"))
    assert [isinstance(frame, FrameFailure) for frame in frames] == [False, True, False, False, False]
    assert message.replace("\\", "") in frames[1].reason and frames[1].name == "drive/1700000000.100000000"


def test_frames_of_a_simulated_clock_are_in_the_order_of_time(tmp_path):
    stamps = [int(second * 10**9) for second in (8, 9, 9.5, 10, 100)]
    messages = [(topic, stamp, payload) for stamp in stamps for topic, payload in (("/image", picture()), ("/labels", LABELS))]
    entries = open_bag(write_bag(tmp_path / "sim", messages)).entries()
    assert [entry.name for entry in entries] == [
        f"sim/{name}" for name in ("8.000000000", "9.000000000", "9.500000000", "10.000000000", "100.000000000")
    ]


def test_a_label_without_its_image_does_not_take_that_of_the_next_label(tmp_path):
    """The image of the first label was lost: the second label is 10 ms from the only image, the first 90 ms."""
    moment = 10**6
    labels = [("/labels", START, LABELS), ("/labels", START + 100 * moment, LABELS)]
    bag = write_bag(tmp_path / "drive", [*labels, ("/image", START + 90 * moment, picture())])
    found = {entry.failure == "": entry for entry in open_bag(bag, tolerance=0.1).entries()}
    assert ("/labels", START + 100 * moment) in {part[:2] for part in found[True].key}
    assert "no message on /image" in found[False].failure


def test_a_message_that_cannot_be_decoded_fails_its_frame_and_no_other(tmp_path):
    start = int(START / 10**9).to_bytes(4, "little")
    cut = b"\0\1\0\0" + start + (STEP).to_bytes(4, "little") + b"\0\0"  # a header and nothing more
    messages = scored_messages(small_frames(3))
    messages[2] = (*messages[2][:2], cut)
    source = open_bag(write_bag(tmp_path / "drive", messages), score_topic="/vl4ad/score")
    frames = list(source.frames(source.entries()))
    assert [isinstance(frame, FrameFailure) for frame in frames] == [False, True, False]
    assert "cannot be decoded" in frames[1].reason


def test_a_message_too_short_for_a_header_is_a_frame_that_failed_and_no_other(tmp_path):
    messages = [*scored_messages(FRAMES), ("/vl4ad/score", START + STEP + 5, b"\0\1\0\0")]
    source = open_bag(write_bag(tmp_path / "drive", messages), score_topic="/vl4ad/score")
    frames = frames_of(source)
    assert [isinstance(frame, FrameFailure) for frame in frames] == [False, False, True, False, False, False]
    assert frames[2].name == "drive/1700000000.100000005 on /vl4ad/score" and "too short for a header" in frames[2].reason


def test_messages_without_stamps_are_refused_and_repeated_ones_said(tmp_path):
    zero = write_bag(tmp_path / "zero", [(topic, 0, payload) for topic, _, payload in scored_messages(FRAMES)])
    with pytest.raises(EvaluationError, match=r"zero: all 5 messages on /vl4ad/score have stamp 0"):
        open_bag(zero, score_topic="/vl4ad/score").entries()
    twice = scored_messages(FRAMES)
    twice += [(topic, stamp, payload * 0) for topic, stamp, payload in twice[:4:2]]
    source = open_bag(write_bag(tmp_path / "twice", twice), score_topic="/vl4ad/score")
    assert source.left_out() == [f"{tmp_path / 'twice'}: 2 messages on /vl4ad/score repeat a stamp and are left out"]
    assert [(frame.scores == scores).all() for frame, (scores, _) in zip(frames_of(source), FRAMES, strict=True)] == [True] * 5


def test_stamps_that_nearly_match_name_the_option_and_the_difference(tmp_path):
    messages = [(topic, stamp + 3000 * (topic == "/camera/labels"), each) for topic, stamp, each in scored_messages(FRAMES)]
    bag = write_bag(tmp_path / "drive", messages)
    reasons = {frame.reason for frame in frames_of(open_bag(bag, score_topic="/vl4ad/score"))}
    assert reasons == {
        "no message on /vl4ad/score has this label's stamp: the nearest is 0.000003 s away (--tolerance 0.000003 takes it)"
    }
    near = frames_of(open_bag(bag, score_topic="/vl4ad/score", tolerance=0.000003))
    assert len(near) == 5 and not any(isinstance(frame, FrameFailure) for frame in near)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_labels_recorded_long_after_the_images_are_found(tmp_path, storage):
    messages = recording()
    messages += [(topic, stamp + 100 * STEP, payload) for topic, stamp, payload in messages if topic == "/camera/image"]
    messages += [("/camera/labels", START + 100 * STEP + index * STEP, FRAMES[index][1]) for index in range(5)]
    source = open_bag(write_bag(tmp_path / "drive", messages, storage=storage, delay={"/camera/labels": 600 * STEP}))
    entries = source.entries()
    for chosen in (entries, entries[3:4], [entries[8], entries[1]]):
        frames = list(source.frames(chosen))
        assert [frame.name for frame in frames] == [entry.name for entry in chosen]
        for frame in frames:
            index = int(frame.name[-9])
            assert (frame.rgb == picture(seed=index)).all() and (frame.labels.anomaly == FRAMES[index][1]).all()


def test_a_bag_s_hazards_json_alone_says_that_labels_are_classes(tmp_path):
    road = np.zeros((48, 64), np.uint8)
    road[:, :20] = 1  # the pavement, or an anomaly
    bag = write_bag(tmp_path / "drive", [("/camera/image", START, picture()), ("/camera/labels", START, road)])
    assert frames_of(open_bag(bag))[0].labels.classes is None
    (bag / "hazards.json").write_text('{"hazards": {"100": "tyre"}}')
    for path in (bag, next(bag.glob("*.mcap"))):
        labels = frames_of(open_bag(path))[0].labels
        assert labels.classes[0, 0] == 1 and not labels.anomaly.any()
    assert frames_of(open_bag(bag, label_values="anomaly"))[0].labels.anomaly.any()


def test_images_are_read_whatever_else_a_bag_holds_and_says_of_it(tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer

    whole = write_bag(tmp_path / "whole", scored_messages(FRAMES))
    for name, foreign, known in (("foreign", "other_msgs/Bar bar\n", None), ("broken", "int32 x =\n", None), ("bare", "", "")):
        from rosbags.highlevel import AnyReader

        with (
            AnyReader([whole]) as read,
            Writer(tmp_path / name, version=8, storage_plugin=StoragePlugin.MCAP) as writer,
        ):
            other = writer.add_connection("/my", "my_msgs/msg/Foo", msgdef=foreign, rihs01="RIHS01_0")
            writer.write(other, START, b"\0\1\0\0")
            kept = {}
            for each in read.connections:
                definition = {"typestore": read.typestore} if known is None else {"msgdef": known, "rihs01": "RIHS01_1"}
                kept[each.topic] = writer.add_connection(each.topic, each.msgtype, **definition)
            for connection, when, raw in read.messages():
                writer.write(kept[connection.topic], when, raw)
        frames = frames_of(open_bag(tmp_path / name, score_topic="/vl4ad/score"))
        assert [(frame.scores == scores).all() for frame, (scores, _) in zip(frames, FRAMES, strict=True)] == [True] * 5
    file = next(whole.glob("*.mcap"))
    file.write_bytes(file.read_bytes().replace(b"ros2msg", b"ros1msg"))
    with pytest.raises(EvaluationError, match=r"cannot be read as a rosbag2 recording: a topic is described as ros1msg: copy the"):
        open_bag(whole)
