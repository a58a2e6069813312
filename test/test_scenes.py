"""Rendered scenes: the same seed gives the same frame, labels are exact, and what is held out stays out of training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("moderngl", reason="rendering is an extra: pip install '.[scenes]'")

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes.classes import BICYCLE, FIRST_HAZARD, HAZARD_CLASS, MOTORCYCLE, RIDER, ROAD, VEGETATION
from vl4ad_model.scenes.cutouts import is_held_out, names_of
from vl4ad_model.scenes.dataset import Recipe, make_frame, missing
from vl4ad_model.scenes.hazard_shapes import SHAPES
from vl4ad_model.scenes.hazards import BY_NAME, GENERIC_PROMPTS, HAZARD_TYPES, HELD_OUT, SEEN
from vl4ad_model.scenes.renderer import Renderer
from vl4ad_model.scenes.world import make_world, place_hazard

pytestmark = pytest.mark.usefixtures("rendering")

SMALL = {"height": 96, "width": 160}
KNOWN = 19
ROOT = Path(__file__).resolve().parents[1]


def vl4ad(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "vl4ad_model.cli", "scenes", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of cut-outs as the npm package has them: a cow, a bucket, a sofa and a speedboat, called by code point."""
    folder = tmp_path_factory.mktemp("cutouts")
    for index, code in enumerate(("1f404", "1faa3", "1f6cb-fe0f", "1f6a4")):
        picture = Image.new("RGBA", (256, 256))
        ImageDraw.Draw(picture).ellipse((30, 40, 220, 230), fill=(40 * index + 60, 90, 200 - 40 * index, 255))
        picture.save(folder / f"{code}.png")
    return folder


def test_a_seed_gives_one_frame():
    recipe = Recipe(**SMALL)
    first = make_frame(recipe, 41)
    make_frame(recipe, 42)
    again = make_frame(recipe, 41)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert not np.array_equal(first[0], make_frame(recipe, 42)[0])


def test_labels_are_known_classes_and_numbered_hazards():
    seen_classes = np.zeros(256, bool)
    for seed in range(60, 66):
        rgb, labels, info = make_frame(Recipe(**SMALL, split="seen"), seed)
        assert rgb.shape == (96, 160, 3)
        assert rgb.dtype == labels.dtype == np.uint8
        values, counts = np.unique(labels, return_counts=True)
        seen_classes[values] = True
        numbered = {str(value): int(count) for value, count in zip(values, counts, strict=True) if value >= KNOWN}
        assert numbered == {number: hazard["pixels"] for number, hazard in info["hazards"].items()}
        assert [int(number) for number in info["hazards"]] == list(range(FIRST_HAZARD, FIRST_HAZARD + len(numbered)))
        assert {hazard["split"] for hazard in info["hazards"].values()} <= {"seen"}
    assert seen_classes[:KNOWN].all(), f"never seen: {np.flatnonzero(~seen_classes[:KNOWN])}"


def test_the_label_of_a_hazard_is_where_the_hazard_is_drawn():
    """Outside its label nothing else has changed its class, and without it there is no such label."""
    renderer = Renderer(96, 160)
    world = make_world(7, split="seen", quiet=True)
    without = renderer.render(world.at(0.0))
    ahead = world.camera.target - world.camera.position
    x, y = world.camera.position[0] + ahead[0] * 7, 7.0
    place_hazard(world, np.random.default_rng(3), "refrigerator", (x, y, 0.0))
    drawn = renderer.render(world.at(0.0))
    covered = drawn.class_ids == HAZARD_CLASS
    assert covered.sum() > 50
    assert (drawn.instances[covered] == 1).all()
    assert not (without.class_ids == HAZARD_CLASS).any()
    assert np.array_equal(drawn.class_ids[~covered], without.class_ids[~covered])


def test_quiet_frames_have_nothing_unusual(pictures):
    for seed in range(3):
        _, labels, info = make_frame(Recipe(**SMALL, split="quiet", cutouts=str(pictures)), seed)
        assert info["hazards"] == {}
        assert labels.max() < KNOWN


def test_training_never_sees_what_is_held_out(pictures):
    wanted = [name for name in names_of(pictures) if not is_held_out(name)]
    names = {name for seed in range(16) for name, _ in make_world(seed, split="train", cutout_names=wanted).hazards.values()}
    assert len(names) > 8
    assert names <= {*SEEN, "cow", "bucket"}
    for split, seeds, allowed in (("train", range(2), "seen"), ("held_out", range(2), "held_out")):
        for seed in seeds:
            _, _, info = make_frame(Recipe(**SMALL, split=split, cutouts=str(pictures)), seed)
            assert {hazard["split"] for hazard in info["hazards"].values()} <= {allowed}


def test_assemblies_have_no_name_of_a_type_and_vary():
    assert "strange object" not in BY_NAME
    shown = set()
    for seed in range(6):
        recipe = Recipe(**SMALL, split="seen", assembled=1.0, hazard_y=(5.0, 9.0))
        _, labels, info = make_frame(recipe, seed)
        for number, hazard in info["hazards"].items():
            assert (hazard["name"], hazard["kind"], hazard["split"]) == ("strange object", "assembly", "seen")
            assert int((labels == int(number)).sum()) == hazard["pixels"]
            shown.add(hazard["pixels"])
    assert len(shown) > 4
    kinds = [kind for seed in range(40) for _, kind in make_world(seed, split="seen", assembled=0.5).hazards.values()]
    assert 0.25 < np.mean([kind == "assembly" for kind in kinds]) < 0.75
    assert not any(kind == "assembly" for seed in range(40) for _, kind in make_world(seed, split="held_out").hazards.values())


def test_a_process_that_has_rendered_can_load_triton():
    """As training does through torch: both Mesa and Triton bring an LLVM."""
    pytest.importorskip("triton")
    program = "from vl4ad_model.scenes.renderer import Renderer; Renderer(96, 160); import triton; print(triton.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "triton\n"), done.stderr


def test_everyday_things_are_no_hazards_and_change_nothing_else():
    changed = []
    for seed in range(8):
        plain, labels, info = make_frame(Recipe(**SMALL, split="seen"), seed)
        full, labels_full, info_full = make_frame(Recipe(**SMALL, split="seen", everyday=1.0), seed)
        names = {number: hazard["name"] for number, hazard in info["hazards"].items()}
        assert {number: hazard["name"] for number, hazard in info_full["hazards"].items()} == names
        differs = labels != labels_full
        assert set(np.unique(labels_full[differs])) <= {ROAD, VEGETATION}  # only trees stand in front of anything
        assert (labels_full[labels == ROAD] != ROAD).mean() < 0.2
        changed.append((np.abs(plain.astype(int) - full)[labels == ROAD].max(axis=-1) > 25).mean())
    assert sum(share > 0.002 for share in changed) >= 5, "most roads show something of it"
    without, some, every = (make_frame(Recipe(**SMALL, everyday=share), 5)[0] for share in (0.0, 0.5, 1.0))
    assert np.array_equal(some, without) != np.array_equal(some, every), "a street has them all or none"


def test_more_two_wheelers_stand_before_the_same_street():
    shares = []
    for seed in range(8):
        _, labels, info = make_frame(Recipe(**SMALL, split="seen"), seed)
        _, fuller, info_fuller = make_frame(Recipe(**SMALL, split="seen", two_wheelers=1.0), seed)
        assert set(np.unique(fuller[labels != fuller])) <= {RIDER, MOTORCYCLE, BICYCLE}
        assert {hazard["name"] for hazard in info_fuller["hazards"].values()} <= {h["name"] for h in info["hazards"].values()}
        shares.append([np.isin(each, (RIDER, MOTORCYCLE, BICYCLE)).mean() for each in (labels, fuller)])
    usual, more = np.mean(shares, axis=0)
    assert more > 0.005 and more > 3 * usual


def test_cut_outs_are_named_and_split(pictures, tmp_path):
    assert set(names_of(pictures)) == {"cow", "bucket", "sofa", "speedboat"}
    assert [is_held_out(name) for name in ("cow", "sofa", "speedboat", "umbrella")] == [False, True, True, False]
    with pytest.raises(SceneError, match="fluent-emoji-3d"):
        names_of(tmp_path)


def test_the_hazard_types_are_many_and_their_words_apart():
    assert len(HAZARD_TYPES) >= 40
    assert set(SHAPES) == set(BY_NAME)
    assert len(HELD_OUT) == 12
    trained = {term for hazard in HAZARD_TYPES if not hazard.held_out for term in (hazard.name, *hazard.synonyms)}
    for hazard in HAZARD_TYPES:
        assert not trained & set(hazard.unheard)
        if hazard.held_out:
            assert not trained & {hazard.name, *hazard.synonyms}
    every = trained | {term for name in HELD_OUT for term in (name, *BY_NAME[name].synonyms)}
    assert not every & {term for prompt in GENERIC_PROMPTS for term in prompt.split("|")}
    assert not set(SEEN) & set(HELD_OUT)


def test_render_goes_on_where_it_stopped_and_workers_agree(tmp_path):
    options = ("--count", 4, "--seed", 11, "--height", 96, "--width", 160)
    done = vl4ad("render", "--out", "a", *options, "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 frames in a" in done.stdout
    folder = tmp_path / "a"
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "frames").iterdir()}
    (folder / "frames" / "000013.json").unlink()  # a frame counts as whole once its JSON is there
    before = (folder / "images" / "000013.jpg").read_bytes()
    (folder / "images" / "000013.jpg").write_bytes(before[:100])
    again = vl4ad("render", "--out", "a", *options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (folder / "images" / "000013.jpg").read_bytes() == before  # rendered again by another process: the same bytes
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "frames").iterdir()}
    assert [name for name in sorted(times) if kept[name] != times[name]] == ["000013.json"]
    _, labels, info = make_frame(Recipe(96, 160), 12)
    assert np.array_equal(np.asarray(Image.open(folder / "labels" / "000012.png")), labels)
    assert json.loads((folder / "frames" / "000012.json").read_text()) == info
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe.pop("assembled") == 0.0
    (folder / "recipe.json").write_text(json.dumps(recipe))  # as it was before there were assemblies
    assert vl4ad("render", "--out", "a", *options, cwd=tmp_path).returncode == 0
    mixed = vl4ad("render", "--out", "a", *options, "--assembled", 0.5, cwd=tmp_path)
    assert mixed.stderr.strip().splitlines()[-1] == "vl4ad: a holds frames with assembled 0.0, not 0.5: name another folder"
    other = vl4ad("render", "--out", "a", *options, "--split", "quiet", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.strip().splitlines()[-1] == "vl4ad: a holds frames with split train, not quiet: name another folder"


def test_an_interrupted_rendering_says_how_to_go_on_and_does(tmp_path):
    options = ("render", "--out", "a", "--count", "30", "--height", "96", "--width", "160")
    started = subprocess.Popen(
        [sys.executable, "-m", "vl4ad_model.cli", "scenes", *options],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.PIPE, text=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    ends = time.monotonic() + 120
    while not list((tmp_path / "a").glob("frames/*.json")) and time.monotonic() < ends:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130
    assert errors.strip().splitlines() == ["vl4ad: interrupted; the same command goes on from there"]
    assert 0 < len(list((tmp_path / "a").glob("frames/*.json"))) < 30
    assert vl4ad(*options, cwd=tmp_path).returncode == 0
    assert len(list((tmp_path / "a").glob("frames/*.json"))) == 30


def test_a_killed_process_is_said_and_does_not_hang(tmp_path):
    options = ("render", "--out", "a", "--count", "40", "--height", "96", "--width", "160", "--workers", "2")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vl4ad_model.cli", "scenes", *options]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as running:
        ends = time.monotonic() + 120
        while not list((tmp_path / "a").glob("frames/*.json")) and time.monotonic() < ends:
            time.sleep(0.05)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    assert errors.strip().splitlines()[-1] == (
        "vl4ad: a worker process was killed, most likely for lack of memory: use fewer --workers; "
        "the same command goes on from there"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("render", "--out", "x", "--split", "odd"), "split 'odd' is unknown: use train, seen, held_out, quiet"),
        (("render", "--out", "x", "--count", "0"), "'--count': Input should be greater than or equal to 1"),
        (("render", "--out", "x", "--cutouts", "."), "unpack the npm package @lobehub/fluent-emoji-3d"),
        (("render", "--out", "x", "--cutouts", "hashes"), "unpack the npm package @lobehub/fluent-emoji-3d"),
        (("bag", "--out", "x", "--hazards", "tyre,unicorn"), "hazard type 'unicorn' is unknown: use tyre, "),
        (("bag", "--out", "x", "--width", "40000", "--seconds", "0.1"), "40000x384 is too large for this OpenGL"),
        (("bag", "--out", "x", "--weather", "hail"), "weather 'hail' is unknown: use clear, "),
        (("bag", "--out", "x", "--seconds", "0"), "'--seconds': Input should be greater than or equal to 0.1"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path, arguments, words):
    (tmp_path / "hashes").mkdir()
    (tmp_path / "hashes/d41d8cd98f00b204e9800998ecf8427e.png").touch()
    done = vl4ad(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_recipe_that_is_none_is_called_damaged(tmp_path):
    for content in ("null", "[1, 2]", "{"):
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(SceneError, match=r"recipe\.json is damaged"):
            missing(Recipe(), range(1), tmp_path)


def test_a_recipe_without_a_frame_binds_nobody(tmp_path):
    missing(Recipe(height=20_000), range(1), tmp_path)
    assert missing(Recipe(), range(1), tmp_path) == [0]
    assert json.loads((tmp_path / "recipe.json").read_text())["height"] == Recipe().height


def test_frames_that_failed_are_no_success(tmp_path):
    (tmp_path / "cutouts").mkdir()
    (tmp_path / "cutouts/1faa3.png").write_bytes(b"no picture")
    options = ("--split", "seen", "--count", 3, "--seed", 2, "--height", 96, "--width", 160, "--cutouts", tmp_path / "cutouts")
    done = vl4ad("render", "--out", "a", *options, cwd=tmp_path)
    made = len(list((tmp_path / "a/frames").glob("*.json")))
    assert made < 3 and f"{made} frames in a" in done.stdout
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"vl4ad: {3 - made} of 3 frames failed: the same command tries them again"


def test_without_egl_one_line_says_what_to_install(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    done = vl4ad("render", "--out", "x", "--count", 2, cwd=tmp_path, __EGL_VENDOR_LIBRARY_DIRS=nowhere)
    assert done.returncode == 2
    assert "install libegl1 and libgl1-mesa-dri" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_moderngl_one_line_says_what_to_install(tmp_path):
    (tmp_path / "moderngl.py").write_text("raise ModuleNotFoundError(\"No module named 'moderngl'\", name='moderngl')\n")
    done = vl4ad("render", "--out", "x", "--count", 2, cwd=tmp_path, PYTHONPATH=os.pathsep.join((str(tmp_path), *sys.path)))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "vl4ad: rendering scenes needs the package 'moderngl': pip install 'vl4ad_ros[scenes]'"
    )
    assert "Traceback" not in done.stderr
