"""Many bags on Ray: one task per bag, and the numbers of the local run."""

import importlib.util
import json

import pytest
from evaluation_helpers import scored_messages, small_frames, vl4ad, write_bag

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'vl4ad_ros[ray]'")


@needs_ray
@pytest.mark.slow
def test_a_local_ray_gives_the_numbers_of_the_local_run(tmp_path, capfd):
    frames = small_frames(6)
    bags = [write_bag(tmp_path / name, scored_messages(frames[2 * i : 2 * i + 2])) for i, name in enumerate("abc")]
    command = ("evaluate", "bag", *bags, "--score-topic", "/vl4ad/score", "--track", "obstacle", "--json")
    done = vl4ad(capfd, *command, tmp_path / "ray.json", "--ray", "local")
    assert done.code == 0, done.err
    assert vl4ad(capfd, *command, tmp_path / "local.json").code == 0
    on_ray, local = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ray", "local"))
    assert on_ray == local and on_ray["frames"]["evaluated"] == 6


def test_workers_in_another_folder_find_what_was_named_by_relative_paths(tmp_path, monkeypatch):
    from vl4ad_model.evaluation.runner import ModelSettings

    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    named = ModelSettings(model="mine", vocabulary="words.yaml", ignore_mask="~/mask.png").with_absolute_paths()
    assert named == ModelSettings(
        model=str(tmp_path / "mine"), vocabulary=str(tmp_path / "words.yaml"), ignore_mask=str(tmp_path / "mask.png")
    )
    assert ModelSettings(model="tiny").with_absolute_paths() == ModelSettings(model="tiny")


def test_without_ray_or_a_shared_place_for_the_work_it_is_said(tmp_path, capfd):
    bag = write_bag(tmp_path / "a", scored_messages(small_frames(2)))
    command = ("evaluate", "bag", bag, "--score-topic", "/vl4ad/score", "--ray", "local")
    done = vl4ad(capfd, *command)
    assert done.code == 2 and "--ray needs --json FILE" in done.err
    if importlib.util.find_spec("ray") is None:
        done = vl4ad(capfd, *command, "--json", tmp_path / "r.json")
        assert done.code == 2 and "vl4ad_ros[ray]" in done.err and not (tmp_path / "r.json").exists()
