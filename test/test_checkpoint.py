"""Weights are loaded strictly: the released layouts load, and whatever does not fit is named before anything is changed."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import parity_report
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from vl4ad_model import registry
from vl4ad_model.errors import CheckpointError, ModelNotFoundError
from vl4ad_model.network import checkpoint
from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
from vl4ad_model.segmenter import Segmenter

KIT = Path(__file__).parent / "data" / "parity"


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return parity_report.released_state_dict(KIT, "r50")


def clip_part(released):
    prefix = "backbone.clip_model."
    return {key[len(prefix) :]: value for key, value in released.items() if key.startswith(prefix)}


def decoder_part(released):
    return {key: value for key, value in released.items() if not key.startswith("backbone.")}


@pytest.fixture()
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VL4AD_CACHE", str(tmp_path))
    return tmp_path / "models"


@pytest.mark.parametrize("layout", ["pth", "pth with part of CLIP", "safetensors"])
def test_the_released_files_load_and_give_the_recorded_result(cache, released, layout):
    folder = cache / "fcclip-r50"
    folder.mkdir(parents=True)
    save_file(clip_part(released), folder / "clip.safetensors")
    decoder = decoder_part(released)
    if layout == "safetensors":
        save_file(decoder, folder / "decoder.safetensors")
    else:
        if "CLIP" in layout:  # whatever part of CLIP a file has is loaded over open_clip's
            decoder["backbone.clip_model.visual.conv1.weight"] = released["backbone.clip_model.visual.conv1.weight"] * 2
        torch.save({"model": decoder, "iteration": torch.tensor(0)}, folder / "fcclip_cocopan_r50.pth")
    network, config = registry.build_network(registry.locate("fcclip-r50", offline=True))
    assert config.clip_model == "RN50-quickgelu"
    state = network.state_dict()
    for key, own in checkpoint.network_keys(released).items():
        if "num_batches" in key:
            continue
        expected = own * 2 if "CLIP" in layout and key == "clip.model.visual.conv1.weight" else own
        assert torch.equal(state[key], expected), key


def test_the_large_released_decoder_has_exactly_the_networks_keys():
    with torch.device("meta"):
        network = FCCLIP(FCCLIPConfig(clip_model="convnext_large_d_320"))
    manifest = json.loads((KIT / "manifest_convnext_large.json").read_text())
    shapes = {e["key"]: torch.empty(e["shape"], device="meta") for e in manifest["entries"]}
    renamed = checkpoint.network_keys(shapes)
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in renamed.items()} == own


def test_a_wrapped_network_and_open_clips_older_files_load(released):
    wrapped = checkpoint.network_keys({f"module.{key}": value for key, value in decoder_part(released).items()})
    assert set(wrapped) == set(checkpoint.network_keys(decoder_part(released)))
    older = clip_part(released) | {"attn_mask": torch.zeros(77, 77), "logit_scale": torch.full((1,), 4.7)}
    keys = checkpoint.clip_keys(older)
    assert "clip.model.attn_mask" not in keys and keys["clip.model.logit_scale"].shape == ()


@pytest.fixture()
def small():
    """A network of the smallest size and its state."""
    config = json.loads((Path(registry.__file__).parent / "models/tiny/config.json").read_text())
    config |= {"channels": 32, "queries": 4, "encoder_layers": 1, "decoder_layers": 1}
    network = FCCLIP(FCCLIPConfig.from_dict(config)).eval()
    return network, {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mask_decoder.query_feat.weight"), "1 keys missing: mask_decoder.query_feat.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda t: t.update({"void_embedding.weight": torch.zeros(2, 3)}),
            "these are the weights of another variant of the network",
        ),
        (
            lambda t: t.update({"void_embedding.weight": torch.zeros(2, 3)}),
            "void_embedding.weight (2, 3) instead of (1, ",
        ),
        (
            lambda t: t["pixel_decoder.mask_features.bias"].fill_(torch.nan),
            "hold NaN or infinity: pixel_decoder.mask_features",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(small, change, message):
    network, tensors = small
    before = {key: value.clone() for key, value in tensors.items()}
    for value in tensors.values():
        if value.is_floating_point():
            value.add_(1)
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_network_weights(network, tensors, source="test.safetensors")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_large_finite_numbers_are_accepted(small):
    """Their sum is infinite in float32."""
    network, tensors = small
    tensors["pixel_decoder.mask_features.bias"].fill_(3e38)
    checkpoint.load_network_weights(network, tensors, source="test.safetensors")
    assert network.state_dict()["pixel_decoder.mask_features.bias"].eq(3e38).all()


@pytest.mark.parametrize("missing", ["decoder", "clip", "nothing"])
def test_nothing_of_a_network_is_left_to_what_memory_held(tmp_path, small, missing):
    """Weights come from files, or from their names where there is none: two networks of one folder are equal, buffers and all."""
    write_model(tmp_path, small[0])
    (tmp_path / registry.CHECKSUMS).unlink()
    (tmp_path / f"{missing}.safetensors").unlink(missing_ok=True)
    first, second = (registry.build_network(registry.locate(tmp_path))[0] for _ in range(2))
    for tensors in (first.state_dict(), dict(first.named_buffers())):
        others = {**second.state_dict(), **dict(second.named_buffers())}
        assert all(torch.equal(value, others[key]) for key, value in tensors.items())
        assert all(value.isfinite().all() for key, value in tensors.items() if "attn_mask" not in key)
    assert torch.equal(first.pixel_mean, small[0].pixel_mean)


def write_model(folder: Path, network: FCCLIP) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(network.config.to_json())
    checkpoint.save_decoder(network, folder / "decoder.safetensors", half=True)
    clip = {k.removeprefix("clip.model."): v for k, v in network.state_dict().items() if k.startswith("clip.")}
    checkpoint.write_safetensors(clip, folder / "clip.safetensors")
    registry.write_checksums(folder)


def test_a_folder_round_trips_and_half_precision_on_disk_is_enough(tmp_path, small):
    network, tensors = small
    write_model(tmp_path / "mine", network)
    loaded, _ = registry.build_network(registry.locate(tmp_path / "mine"))
    for key, value in loaded.state_dict().items():
        assert torch.allclose(value, tensors[key], rtol=1e-3, atol=1e-6), key
    assert not list((tmp_path / "mine").glob("*.part"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "decoder.safetensors").write_bytes((f / "decoder.safetensors").read_bytes()[:-100]),
            "wrong sha256",
        ),
        (lambda f: (f / "decoder.safetensors").unlink(), "is listed in SHA256SUMS but missing"),
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, small, damage, message):
    write_model(tmp_path / "mine", small[0])
    damage(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=message):
        registry.locate(tmp_path / "mine")


def test_fetching_again_never_blesses_a_file_that_was_changed(cache, released):
    """The list of checksums grows by what was downloaded; what was there before is held against its own line."""
    folder = cache / "fcclip-r50"
    folder.mkdir(parents=True)
    for name, tensors in (("clip.safetensors", clip_part(released)), ("decoder.safetensors", decoder_part(released))):
        save_file({key: tensors[key] for key in list(tensors)[:2]}, folder / name)
    assert registry.fetch(registry.MODELS["fcclip-r50"], offline=True) == folder
    listed = registry.verify_folder(folder)
    assert sorted(listed) == ["clip.safetensors", "decoder.safetensors"]
    (folder / "decoder.safetensors").write_bytes(b"something else")
    for again in (lambda: registry.fetch(registry.MODELS["fcclip-r50"], offline=True), lambda: registry.locate("fcclip-r50")):
        with pytest.raises(CheckpointError, match="wrong sha256"):
            again()
    registry.write_checksums(folder, listed)
    with pytest.raises(CheckpointError, match="wrong sha256"):
        registry.verify_folder(folder)


def test_a_bad_file_brought_by_hand_gives_way_to_a_good_one(cache, released):
    """A web page saved under the decoder's name, then the right file, then one of another day."""
    folder = cache / "fcclip-r50"
    folder.mkdir(parents=True)
    save_file({key: clip_part(released)[key] for key in list(clip_part(released))[:2]}, folder / "clip.safetensors")
    decoder = folder / "fcclip_cocopan_r50.pth"
    decoder.write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="no PyTorch file"):
        registry.fetch(registry.MODELS["fcclip-r50"], offline=True)
    torch.save({"model": {"a": torch.zeros(1)}}, decoder)
    assert registry.fetch(registry.MODELS["fcclip-r50"], offline=True) == folder
    assert sorted(registry.verify_folder(folder)) == ["clip.safetensors", decoder.name]
    torch.save({"model": {"a": torch.ones(1)}}, decoder)
    with pytest.raises(CheckpointError, match=r"if it is what you want, delete its line in SHA256SUMS"):
        registry.locate("fcclip-r50", offline=True)
    listing = folder / registry.CHECKSUMS
    listing.write_text("".join(line for line in listing.read_text().splitlines(keepends=True) if ".pth" not in line))
    assert registry.locate("fcclip-r50", offline=True).decoder == decoder
    assert registry.fetch(registry.MODELS["fcclip-r50"], offline=True) == folder and decoder.name in registry.verify_folder(folder)


def test_a_decoder_that_took_anothers_place_does_not_need_the_others_checksum(cache, released):
    folder = cache / "fcclip-r50"
    folder.mkdir(parents=True)
    for name in ("clip.safetensors", "decoder.safetensors"):
        save_file({"a": torch.zeros(1)}, folder / name)
    registry.fetch(registry.MODELS["fcclip-r50"], offline=True)
    (folder / "decoder.safetensors").unlink()
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "fcclip_cocopan_r50.pth")
    assert registry.locate("fcclip-r50", offline=True).decoder == folder / "fcclip_cocopan_r50.pth"
    registry.fetch(registry.MODELS["fcclip-r50"], offline=True)
    assert sorted(registry.verify_folder(folder)) == ["clip.safetensors", "fcclip_cocopan_r50.pth"]


@pytest.mark.parametrize("listing", ["{digest} *decoder.safetensors\n", "\n{DIGEST}  decoder.safetensors\n"])
def test_checksums_in_every_form_of_sha256sum_are_compared(tmp_path, small, listing):
    write_model(tmp_path, small[0])
    path = tmp_path / "decoder.safetensors"
    digest = checkpoint.sha256_of(path)
    (tmp_path / registry.CHECKSUMS).write_text(listing.format(digest=digest, DIGEST=digest.upper()))
    assert registry.verify_folder(tmp_path) == {path.name: digest}
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="wrong sha256"):
        registry.verify_folder(tmp_path)


def test_one_file_with_all_of_clip_is_a_whole_model(tmp_path, small):
    network, tensors = small
    write_model(tmp_path, network)
    for name in ("clip.safetensors", registry.CHECKSUMS):
        (tmp_path / name).unlink()
    save_file(tensors, tmp_path / "decoder.safetensors")
    files = registry.locate(tmp_path)
    assert "UNTRAINED" not in files.notice and not registry.untrained_notice(tmp_path)
    state = registry.build_network(files)[0].state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())


def test_a_checkpoint_with_all_of_clip_needs_no_download(cache, released):
    folder = cache / "fcclip-r50"
    folder.mkdir(parents=True)
    torch.save({"model": released}, folder / "fcclip_cocopan_r50.pth")
    state = registry.build_network(registry.locate("fcclip-r50", offline=True))[0].state_dict()
    for key, value in checkpoint.network_keys(released).items():
        assert torch.equal(state[key], value), key


def test_a_truncated_safetensors_file_is_called_damaged(tmp_path, small):
    write_model(tmp_path / "mine", small[0])
    path = tmp_path / "mine" / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "mine" / registry.CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        Segmenter.load(tmp_path / "mine", offline=True)


class Dangerous:
    def __reduce__(self):
        return os.system, ("echo this must never run > /tmp/vl4ad_pickle_ran",)


def test_a_pickled_function_is_never_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": {"a": Dangerous()}}, path)
    with pytest.raises(CheckpointError, match="only files with nothing but tensors"):
        checkpoint.read_tensors(path)
    path.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(CheckpointError):
        checkpoint.read_tensors(path)
    assert not Path("/tmp/vl4ad_pickle_ran").exists()


def test_an_unknown_model_and_a_model_that_is_not_here_say_what_to_do(cache):
    with pytest.raises(ModelNotFoundError, match="known are tiny, fcclip-r50, fcclip-convnext-large"):
        registry.locate("fcclip-r51")
    with pytest.raises(ModelNotFoundError, match=r"fcclip_cocopan_r50\.pth"):
        registry.locate("fcclip-r50", offline=True)
    with pytest.raises(ModelNotFoundError, match="go online once, or download"):
        registry.locate("fcclip-convnext-large", offline=True)
    assert not list(cache.rglob("*.*")) if cache.exists() else True


HUB_FILES: dict[str, bytes] = {}
HUB_ETAGS: dict[str, str] = {}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub's protocol that a download uses: HEAD and ranged GET of /<repo>/resolve/main/<file>."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        content = HUB_FILES.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{HUB_ETAGS[self.path]}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture()
def hub():
    HUB_FILES.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch_in_a_process(endpoint, cache):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "VL4AD_CACHE": str(cache), "HF_HOME": str(cache / "hf")}
    environment.pop("HF_HUB_OFFLINE")
    return subprocess.run(
        [sys.executable, "-m", "vl4ad_model.cli", "models", "fetch", "fcclip-convnext-large"],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )


CLIP_REPOSITORY = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"


@pytest.mark.parametrize("broken", [False, True])
def test_a_download_is_checked_by_its_sha256(hub, tmp_path, broken):
    for path in (
        "Voxel51/fc-clip/resolve/main/model.safetensors",
        f"{CLIP_REPOSITORY}/resolve/main/open_clip_pytorch_model.safetensors",
    ):
        HUB_FILES["/" + path] = save({"tensor": torch.arange(9.0)})
        HUB_ETAGS["/" + path] = hashlib.sha256(HUB_FILES["/" + path] + (b"x" if broken else b"")).hexdigest()
    done = fetch_in_a_process(hub, tmp_path)
    folder = tmp_path / "models" / "fcclip-convnext-large"
    if broken:
        assert done.returncode == 2 and "arrived with the wrong sha256" in done.stderr
        assert not (folder / "decoder.safetensors").exists() and not (folder / registry.CHECKSUMS).exists()
    else:
        assert done.returncode == 0, done.stderr
        assert sorted(registry.verify_folder(folder)) == ["clip.safetensors", "decoder.safetensors"]


@pytest.mark.slow
def test_without_a_network_the_last_line_says_what_to_do(tmp_path):
    done = fetch_in_a_process("http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "check the network and try again, or download" in done.stderr.splitlines()[-1]


def test_a_model_without_files_says_that_its_results_mean_nothing(tmp_path):
    source = Path(registry.__file__).parent / "models/tiny/config.json"
    (tmp_path / "bare").mkdir()
    shutil.copy(source, tmp_path / "bare/config.json")
    files = registry.locate(tmp_path / "bare")
    assert "UNTRAINED" in files.notice
    one, two = (registry.build_network(files)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"clip_model": "RN50", "channels": "wide"}', "channels must be a whole number"),
        ("config.json", '{"clip_model": "RN50", "channels": 96, "encoder_heads": 7}', "96.* must be a multiple of heads"),
        ("config.json", '{"clip_model": "no such model"}', "knows no model 'no such model'"),
        ("config.json", '{"clip_model": "ViT-B-32"}', "VisionTransformer is no image tower of convolutions"),
        ("config.json", '{"clip_model": "hf-hub:somebody/clip"}', "knows no model 'hf-hub:somebody/clip'"),
        ("config.json", '{"clip_model": "RN50", "encoder_heads": 0}', "encoder_heads must be a whole number of 1 or more, not 0"),
        ("config.json", '{"clip_model": "RN50", "queries": 0}', "queries must be a whole number of 1 or more, not 0"),
        ("config.json", '{"clip_model": "RN50", "alpha": 7}', "alpha must be a number from 0 to 1, not 7"),
        ("config.json", '{"clip_model": "RN50", "colour_tolerance": -3}', "colour_tolerance must be a number of 0 or more"),
        ("config.json", "[1]", "must hold one JSON object"),
        ("open_clip_config.json", "{", "not readable JSON"),
        ("open_clip_config.json", "[]", "must hold one JSON object"),
        ("SHA256SUMS", b"\xff\xfe", "SHA256SUMS cannot be read"),
        ("SHA256SUMS", "SHA256 (clip.safetensors) = 00\n", "SHA256SUMS, line 1: no checksum and file name"),
    ],
)
def test_a_folder_that_describes_nothing_is_one_clear_line(tmp_path, name, content, message):
    (tmp_path / "config.json").write_text('{"clip_model": "RN50"}')
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        registry.build_network(registry.locate(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_config_with_a_typo_names_it():
    with pytest.raises(CheckpointError, match="unknown entries: chanels"):
        FCCLIPConfig.from_dict({"clip_model": "RN50", "chanels": 3})
    for name, value in {
        "network_size": "384x640", "pixel_std": [0, 1, 1], "pixel_mean": [float("nan"), 1, 1], "alpha": "x", "queries": 1.5,
        "classifier": "best", "scoring": "zz", "refined": 1, "extra_blocks": [1, 2], "training_concepts": "car",
        "colour_tolerance": "a",
    }.items():  # fmt: skip
        with pytest.raises(CheckpointError, match=f"{name} must be"):
            FCCLIPConfig.from_dict({"clip_model": "RN50", name: value})
    written = FCCLIPConfig.from_dict({"clip_model": "RN50", "colour_tolerance": 13, "queries": 100})
    assert type(written.colour_tolerance) is float and type(written.queries) is int


def test_safetensors_are_what_is_written(tmp_path, small):
    checkpoint.save_decoder(small[0], tmp_path / "d.safetensors", half=True)
    stored = load_file(tmp_path / "d.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values())
    assert not any(key.startswith("clip.") for key in stored)
