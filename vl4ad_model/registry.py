"""Model names to files: embedded in this package, downloaded with a checksum, or a folder of the user's."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl4ad_model.cache_folder import cache_root
from vl4ad_model.errors import CheckpointError, ModelNotFoundError

if TYPE_CHECKING:
    from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig

CHECKSUMS = "SHA256SUMS"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_PARTIAL = ".download"  # inside a model's folder: broken downloads, which resume
_EMBEDDED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelInfo:
    """One entry of the registry.

    Attributes:
        name: what `--model` takes.
        summary: one line for people.
        licence: of the weights, in words.
        folder: where the embedded model lies; None for models that are fetched.
        config: network configuration of a fetched model (see `FCCLIPConfig`).
        clip_pretrained: open_clip's (model, tag) whose image and text towers belong to it.
        decoder_repository, decoder_file: where the hub has the decoder; empty where there is none to download.
        decoder_names: file names that are accepted in the model's folder, in this order.
        by_hand: what to do where no download is possible.
    """

    name: str
    summary: str
    licence: str
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    clip_pretrained: tuple[str, str] | None = None
    decoder_repository: str = ""
    decoder_file: str = ""
    decoder_names: tuple[str, ...] = ("decoder.safetensors",)
    by_hand: str = ""


# FC-CLIP ignores the out-of-vocabulary branch of empty masks for ResNets; FCCLIP derives that from the tower.
MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        ModelInfo(
            name="tiny",
            summary="embedded, about 20 images/s on two CPU cores; trained on rendered scenes, for demonstration and tests",
            licence="Apache-2.0 (see NOTICE for the sources of its weights)",
            folder=_EMBEDDED / "tiny",
        ),
        ModelInfo(
            name="fcclip-r50",
            summary="FC-CLIP, ResNet-50 CLIP, trained on COCO panoptic; 0.5 GB",
            licence="decoder Apache-2.0 (bytedance/fc-clip), CLIP MIT (OpenAI)",
            # The quick-GELU variant is the one OpenAI trained; the plain name would bend every text embedding.
            config={"clip_model": "RN50-quickgelu"},
            clip_pretrained=("RN50-quickgelu", "openai"),
            decoder_names=("decoder.safetensors", "fcclip_cocopan_r50.pth"),
            by_hand="download the ResNet50 checkpoint from the model zoo of github.com/bytedance/fc-clip and save it as "
            "{folder}/fcclip_cocopan_r50.pth",
        ),
        ModelInfo(
            name="fcclip-convnext-large",
            summary="FC-CLIP, ConvNeXt-Large CLIP, trained on COCO panoptic; 1.5 GB",
            licence="decoder Apache-2.0 (bytedance/fc-clip), CLIP MIT (LAION)",
            config={"clip_model": "convnext_large_d_320"},
            clip_pretrained=("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"),
            decoder_repository="Voxel51/fc-clip",
            decoder_file="model.safetensors",
            decoder_names=("decoder.safetensors", "fcclip_cocopan.pth"),
            by_hand="download the ConvNeXt-Large checkpoint from the model zoo of github.com/bytedance/fc-clip and save it as "
            "{folder}/fcclip_cocopan.pth",
        ),
    )
}


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's parts lie on this machine.

    Attributes:
        name: of the model or folder.
        config: values of `FCCLIPConfig`.
        decoder: weights of everything but CLIP; None = none exist, deterministic untrained ones are made.
        clip: open_clip weights; the decoder's own file where that holds all of CLIP; None likewise.
        notice: one line that says what the model is, for logs and reports.
    """

    name: str
    config: dict[str, Any]
    decoder: Path | None
    clip: Path | None
    notice: str


def cache_folder() -> Path:
    """Where fetched models lie: $VL4AD_CACHE/models, or ~/.cache/vl4ad/models."""
    return cache_root() / "models"


def is_offline(offline: bool) -> bool:
    """Whether downloads are out of the question: asked for, or by the hub's own HF_HUB_OFFLINE."""
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def locate(name_or_folder: str | Path, *, offline: bool = False) -> ModelFiles:
    """Find a model's files, downloading what is missing.

    Args:
        name_or_folder: a name from `MODELS`, or a folder with `config.json`.
        offline: never download.

    Raises:
        ModelNotFoundError: the name is unknown, or files are missing and cannot be had; the message says what to do.
        CheckpointError: a folder's configuration or checksum is wrong.
    """
    info = MODELS.get(str(name_or_folder))
    if info is None:
        folder = Path(os.path.expanduser(name_or_folder))
        if not folder.is_dir():
            known = ", ".join(MODELS)
            raise ModelNotFoundError(f"no model '{name_or_folder}': known are {known}, or give a folder with a config.json")
        name = folder.resolve().name  # also of "."
        return _from_folder(folder, name, notice=f"model folder {name}")
    if info.folder is not None:
        return _from_folder(info.folder, info.name, notice=f"{info.name}: {info.summary}")
    folder = cache_folder() / info.name
    decoder, clip = _files_of(info, folder)
    if decoder is None or clip is None:
        fetch(info, offline=offline)
        decoder, clip = _files_of(info, folder)
    verify_folder(folder, {path.name for path in (decoder, clip) if path})
    return ModelFiles(info.name, dict(info.config), decoder, clip, f"{info.name}: {info.summary}")


def _files_of(info: ModelInfo, folder: Path) -> tuple[Path | None, Path | None]:
    """A fetched model's decoder and CLIP, None where they are missing."""
    decoder = next((folder / name for name in info.decoder_names if (folder / name).is_file()), None)
    return decoder, _clip_of(folder, decoder)


def is_here(info: ModelInfo) -> bool:
    """Whether a model's weights are on this machine, right or not."""
    folder = info.folder or cache_folder() / info.name
    try:
        return None not in (_weights_in(folder) if info.folder else _files_of(info, folder))
    except CheckpointError:
        return True


def _clip_of(folder: Path, decoder: Path | None) -> Path | None:
    from vl4ad_model.network.checkpoint import holds_clip

    clip = folder / "clip.safetensors"
    if clip.is_file():
        return clip
    return decoder if decoder is not None and holds_clip(decoder) else None


def _from_folder(folder: Path, name: str, *, notice: str) -> ModelFiles:
    config = _read_object(folder / "config.json")
    clip_config = folder / "open_clip_config.json"
    if clip_config.is_file() and config.get("clip_config") is None:
        values = _read_object(clip_config)
        config["clip_config"] = values.get("model_cfg", values)
    verify_folder(folder)
    decoder, clip = _weights_in(folder)
    if None in (decoder, clip):
        notice = f"{notice}; {UNTRAINED}"
    return ModelFiles(name, config, decoder, clip, notice)


UNTRAINED = "UNTRAINED: deterministic weights stand in for missing files, results mean nothing"


def _weights_in(folder: Path) -> tuple[Path | None, Path | None]:
    """Files of the decoder's and CLIP's weights, None where they are missing."""
    decoders = [folder / "decoder.safetensors", *sorted(folder.glob("*.pth"))]
    decoder = next((path for path in decoders if path.is_file()), None)
    return decoder, _clip_of(folder, decoder)


def untrained_notice(name_or_folder: str | Path) -> str:
    """That a model folder lacks weights and what that means, one line; empty for others and for models by name."""
    folder = Path(os.path.expanduser(name_or_folder))
    return "" if str(name_or_folder) in MODELS or not folder.is_dir() or None not in _weights_in(folder) else UNTRAINED


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold one JSON object")
    return content


def _listed_checksums(folder: Path) -> dict[str, str]:
    """File name -> digest of the folder's SHA256SUMS; empty where there is none."""
    listing = folder / CHECKSUMS
    if not listing.is_file():
        return {}
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{listing} cannot be read ({error}): fetch the model again") from None
    digests = {}
    for number, line in enumerate(lines, 1):
        if match := re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line.strip()):
            digests[match[2]] = match[1].lower()
        elif line.strip():
            raise CheckpointError(f"{listing}, line {number}: no checksum and file name as sha256sum writes them")
    return digests


def verify_folder(folder: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Check every file that the folder's SHA256SUMS lists.

    Args:
        names: of the files that count, where not all do.

    Returns:
        file name -> digest; empty where there is no list.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    from vl4ad_model.network.checkpoint import sha256_of

    digests = {name: digest for name, digest in _listed_checksums(folder).items() if names is None or name in names}
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is listed in {CHECKSUMS} but missing: fetch the model again")
        if sha256_of(path) != digest:
            raise CheckpointError(
                f"{path} has the wrong sha256: it is damaged or was changed; delete it and fetch it again "
                f"(if it is what you want, delete its line in {CHECKSUMS})"
            )
    return digests


def write_checksums(folder: Path, known: Mapping[str, str] | None = None, names: Collection[str] | None = None) -> None:
    """Write SHA256SUMS over the folder's weights and configuration files (atomic).

    Args:
        known: file name -> digest of files that are not hashed again: a file that was changed since must not be blessed.
        names: of the files that are listed, if they are there; None = all weights and configuration files.
    """
    from vl4ad_model.image_files import write_bytes
    from vl4ad_model.network.checkpoint import sha256_of

    there = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pth", ".json"))
    digests = {name: (known or {}).get(name) or sha256_of(folder / name) for name in there if names is None or name in names}
    write_bytes(folder / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode())


def fetch(info: ModelInfo, *, offline: bool = False) -> Path:
    """Download what is missing of a model into the cache, resuming broken downloads, and check every sha256.

    The hub publishes the sha256 of each large file; the file on disk must match it. The digests are kept beside the files in
    SHA256SUMS, so that `vl4ad models verify` works without a network.

    Raises:
        ModelNotFoundError: offline, no network, or nothing to download; the message says how to bring the file by hand.
        CheckpointError: a download has the wrong sha256.
    """
    if info.folder is not None:
        return info.folder
    folder = cache_folder() / info.name
    by_hand = info.by_hand.format(folder=folder)
    decoder, clip = _files_of(info, folder)
    needed: list[tuple[str, tuple[str, ...], str]] = []
    if decoder is None:
        if not info.decoder_repository:
            raise ModelNotFoundError(f"{info.name}: its decoder is not on a hub; {by_hand}")
        needed.append((info.decoder_repository, (info.decoder_file,), info.decoder_names[0]))
    if clip is None:
        assert info.clip_pretrained is not None
        needed.append((*_clip_source(*info.clip_pretrained), "clip.safetensors"))
    if not needed:
        used = {path.name for path in (decoder, clip) if path}
        if used - verify_folder(folder, used).keys():
            _list_checksums(folder, used, _listed_checksums(folder))
        return folder
    if is_offline(offline):
        names = ", ".join(target for _, _, target in needed)
        raise ModelNotFoundError(f"{info.name}: {names} not in {folder} and downloads are off; go online once, or {by_hand}")
    known = _listed_checksums(folder)
    for repository, files, target in needed:
        known.pop(target, None)
        _download(repository, files, folder / target, by_hand)
    _list_checksums(folder, {path.name for path in _files_of(info, folder) if path}, known)
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
    return folder


def _list_checksums(folder: Path, names: set[str], known: Mapping[str, str]) -> None:
    """What was brought by hand is listed as it is, so that later damage is noticed; but not if it is damaged already."""
    from vl4ad_model.network.checkpoint import tensor_names

    for name in names - known.keys():
        tensor_names(folder / name)
    write_checksums(folder, known, names)


def _clip_source(model: str, tag: str) -> tuple[str, tuple[str, ...]]:
    """The hub repository and candidate file names of one of open_clip's pretrained tags."""
    from vl4ad_model import torchvision_schemas

    torchvision_schemas.define()
    import open_clip

    entry = open_clip.get_pretrained_cfg(model, tag)
    if not entry or not entry.get("hf_hub"):
        raise ModelNotFoundError(f"open_clip {open_clip.__version__} has no pretrained tag '{tag}' for '{model}'")
    repository, _, name = entry["hf_hub"].rpartition("/")
    return repository, (name,) if name else ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


def _download(repository: str, files: tuple[str, ...], target: Path, by_hand: str) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from vl4ad_model.network.checkpoint import sha256_of

    last: Exception | None = None
    for name in files:
        try:
            # Asked first: without a network it says so at once, the download only after trying for 20 seconds.
            expected = get_hf_file_metadata(hf_hub_url(repository, name)).etag or ""
            # Resumes from its own partial file and shows its progress bar.
            path = Path(hf_hub_download(repository, name, local_dir=target.parent / _PARTIAL))
        except Exception as error:
            # LocalEntryNotFoundError, a kind of EntryNotFoundError, is what the hub's client says without a network.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                last = error
                continue
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise ModelNotFoundError(f"{repository}/{name} cannot be stored in {target.parent}: {error.strerror}") from None
            raise ModelNotFoundError(
                f"{repository}/{name} could not be downloaded ({type(error).__name__}): "
                f"check the network and try again, or {by_hand}"
            ) from None
        if len(expected) == 64 and sha256_of(path) != expected:
            path.unlink()
            raise CheckpointError(f"{repository}/{name} arrived with the wrong sha256 and was deleted: try again")
        os.replace(path, target)
        return
    raise ModelNotFoundError(f"{repository} has none of {', '.join(files)} ({type(last).__name__}); {by_hand}")


def _source(files: ModelFiles) -> str:
    """The model and where its weights are, for an error."""
    paths = dict.fromkeys(str(path) for path in (files.decoder, files.clip) if path)
    return f"{files.name} ({', '.join(paths)})" if paths else files.name


def build_network(files: ModelFiles) -> tuple[FCCLIP, FCCLIPConfig]:
    """Build the network and load its weights.

    Raises:
        CheckpointError: configuration or weights do not fit.
    """
    from vl4ad_model.network import checkpoint
    from vl4ad_model.network.deterministic import fill_deterministically
    from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
    from vl4ad_model.network.uninitialized import Uninitialized

    config = FCCLIPConfig.from_dict(files.config)
    try:
        with Uninitialized():  # every weight is loaded or filled below
            network = FCCLIP(config).eval()
    except (ValueError, TypeError, AssertionError, RuntimeError, KeyError, AttributeError, ZeroDivisionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{files.name}: config.json describes no network that can be built ({reason})") from None
    if files.decoder is None or files.clip is None:
        fill_deterministically(network)
    tensors = dict(network.state_dict()) if files.decoder is None or files.clip is None else {}
    if files.decoder is not None:
        tensors = {key: value for key, value in tensors.items() if key.startswith("clip.")}
    if files.clip is not None:
        tensors = {key: value for key, value in tensors.items() if not key.startswith("clip.")}
    if files.clip not in (None, files.decoder):
        tensors.update(checkpoint.clip_keys(checkpoint.read_tensors(files.clip)))
    if files.decoder is not None:
        tensors.update(checkpoint.network_keys(checkpoint.read_tensors(files.decoder)))
    checkpoint.load_network_weights(network, tensors, source=_source(files))
    network.requires_grad_(False)
    return network, config
