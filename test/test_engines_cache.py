"""A compiled file is built once, whole or not at all, and never run when it is not exactly what was asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vl4ad_model.engines.cache import EngineCache, EngineKey, code_digest

KEY = EngineKey("w" * 8, code_digest(), "onnx", "onnx 1", "any", 96, 160, 1, "fp32", False)
NAME, SUFFIX = "model", ".onnx"


def build_counted(cache, key=KEY, content=b"compiled"):
    calls = []

    def build():
        calls.append(key)
        return content

    return *cache.get_or_build(key, NAME, SUFFIX, build), len(calls)


def test_a_file_is_built_once_and_then_read(tmp_path):
    cache = EngineCache(tmp_path)
    assert build_counted(cache)[::2] == (b"compiled", 1)
    content, origin, calls = build_counted(cache)
    assert (content, calls) == (b"compiled", 0) and origin.startswith("from cache")
    assert [entry.whole for entry in cache.entries()] == [True]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineKey)])
def test_everything_in_the_key_leads_to_another_file(tmp_path, field):
    cache = EngineCache(tmp_path)
    build_counted(cache)
    value = getattr(KEY, field)
    other = dataclasses.replace(KEY, **{field: not value if isinstance(value, bool) else value * 2})
    assert build_counted(cache, other, b"other")[::2] == (b"other", 1)
    assert build_counted(cache)[::2] == (b"compiled", 0)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _change(path):
    path.write_bytes(b"Compiled")


def _forget(path):
    path.with_name(path.name + ".json").unlink()


def _garble(path):
    path.with_name(path.name + ".json").write_text("{")


def _foreign(path):
    description = path.with_name(path.name + ".json")
    content = json.loads(description.read_text())
    content["key"]["target"] = "another GPU"
    description.write_text(json.dumps(content))


@pytest.mark.parametrize("spoil", [_truncate, _change, _forget, _garble, _foreign])
def test_a_file_that_is_not_what_was_asked_for_is_built_again(tmp_path, spoil):
    cache = EngineCache(tmp_path)
    build_counted(cache)
    spoil(cache.path(KEY, NAME, SUFFIX))
    assert build_counted(cache)[::2] == (b"compiled", 1)
    assert build_counted(cache)[::2] == (b"compiled", 0)


def test_a_folder_that_cannot_be_written_costs_the_cache_and_nothing_else(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    content, origin, calls = build_counted(EngineCache(blocked))
    assert (content, calls) == (b"compiled", 1) and "not cached" in origin
    assert "set VL4AD_CACHE to a writable folder" in caplog.text


def test_a_folder_that_may_not_be_entered_costs_the_cache_and_nothing_else(tmp_path, caplog):
    """Root may enter all: as another user then."""
    folder = tmp_path / "of somebody else"
    folder.mkdir(mode=0o700)
    root = os.geteuid() == 0
    os.seteuid(54321) if root else folder.chmod(0)
    try:
        content, origin, calls = build_counted(EngineCache(folder))
    finally:
        os.seteuid(0) if root else folder.chmod(0o700)
    assert (content, calls) == (b"compiled", 1) and origin.startswith("built, not cached (Permission denied")
    assert "set VL4AD_CACHE to a writable folder" in caplog.text


def test_models_with_long_names_are_kept_too(tmp_path):
    cache, name = EngineCache(tmp_path), "ö" * 200
    assert cache.get_or_build(KEY, name, SUFFIX, lambda: b"compiled")[1].startswith("built (")
    content, origin = cache.get_or_build(KEY, name, SUFFIX, lambda: b"again")
    assert content == b"compiled" and origin.startswith("from cache")


def test_what_is_built_anew_replaces_what_is_there_only_when_it_is_whole(tmp_path):
    cache = EngineCache(tmp_path)
    build_counted(cache)

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.get_or_build(KEY, NAME, SUFFIX, fail, rebuild=True)
    assert build_counted(cache)[::2] == (b"compiled", 0)
    assert cache.get_or_build(KEY, NAME, SUFFIX, lambda: b"better", rebuild=True)[0] == b"better"
    assert build_counted(cache)[::2] == (b"better", 0)


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '{"key": 5}', '{"key": {}, "size": "8", "made": 3}', ""])
def test_a_description_that_is_none_makes_a_file_broken_and_nothing_worse(tmp_path, text):
    cache = EngineCache(tmp_path)
    build_counted(cache)
    path = cache.path(KEY, NAME, SUFFIX)
    path.with_name(path.name + ".json").write_text(text)
    (tmp_path / "download.part").touch()
    assert [entry.whole for entry in cache.entries()] == [False, False]
    assert build_counted(cache)[::2] == (b"compiled", 1)
    assert cache.clean().removed == [tmp_path / "download.part"]


def test_clean_says_what_it_could_not_remove_and_goes_on(tmp_path):
    cache = EngineCache(tmp_path)
    for height in (32, 64, 96):
        build_counted(cache, dataclasses.replace(KEY, height=height))
    held = cache.path(dataclasses.replace(KEY, height=64), NAME, SUFFIX)
    with cache._lock(held, None):
        cleaned = cache.clean(everything=True)
    assert len(cleaned.removed) == 2 and cleaned.kept == {held: "another process is building it"}
    assert [entry.path for entry in cache.entries()] == [held]


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    content, origin, _ = build_counted(EngineCache(tmp_path))
    assert content == b"compiled" and "No space left on device" in origin
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from vl4ad_model.engines.cache import EngineCache
from test_engines_cache import KEY, NAME, SUFFIX
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build():
    with open(folder / "builds.txt", "a") as stream:
        stream.write("x")
    time.sleep(seconds)
    return b"compiled"
content, origin = EngineCache(folder / "engines").get_or_build(KEY, NAME, SUFFIX, build)
assert content == b"compiled"
"""


def _start(folder: Path, seconds: float) -> subprocess.Popen:
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    return subprocess.Popen([sys.executable, "-c", _SLOW_BUILD, str(folder), str(seconds)], env=environment)


def _wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_two_processes_build_once(tmp_path):
    both = [_start(tmp_path, 1.0), _start(tmp_path, 1.0)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert (tmp_path / "builds.txt").read_text() == "x"


def test_a_killed_build_stands_in_nobodys_way(tmp_path):
    process = _start(tmp_path, 100)
    _wait_for(tmp_path / "builds.txt")
    left = tmp_path / "engines" / (EngineCache(tmp_path / "engines").path(KEY, NAME, SUFFIX).name + ".build-abc.part")
    left.write_bytes(b"half")
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache = EngineCache(tmp_path / "engines")
    assert build_counted(cache)[::2] == (b"compiled", 1)
    assert not left.exists()


def test_clean_removes_what_can_never_be_used_and_only_that(tmp_path):
    cache = EngineCache(tmp_path)
    build_counted(cache)
    old = dataclasses.replace(KEY, code="older")
    broken = dataclasses.replace(KEY, height=64)
    build_counted(cache, old)
    build_counted(cache, broken)
    _truncate(cache.path(broken, NAME, SUFFIX))
    assert set(cache.clean().removed) == {cache.path(old, NAME, SUFFIX), cache.path(broken, NAME, SUFFIX)}
    assert build_counted(cache)[2] == 0
    assert len(cache.clean(everything=True).removed) == 1 and not cache.entries()
