"""Weights into the network: the released layouts and ours, checked key by key before anything is used.

Three layouts are read:

- ours: `clip.safetensors` with open_clip's keys and `decoder.safetensors` with `pixel_decoder.`, `mask_decoder.` and
  `void_embedding.`, beside a `config.json`;
- the public safetensors file of the FC-CLIP decoder;
- `fcclip_cocopan*.pth` as detectron2 wrote it: {"model": state_dict}, read with `weights_only=True`.

The last two share the keys of bytedance/fc-clip. They are known to lack CLIP, in part or altogether; it comes from open_clip
and whatever part of it a file does have is loaded over that. A key that is missing for any other reason, unexpected, of the
wrong shape or not finite is an error that names it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vl4ad_model.errors import CheckpointError

if TYPE_CHECKING:
    from vl4ad_model.network.fcclip import FCCLIP

RELEASED_PREFIXES = {
    "backbone.clip_model.": "clip.model.",
    "sem_seg_head.pixel_decoder.": "pixel_decoder.",
    "sem_seg_head.predictor.": "mask_decoder.",
    "void_embedding.": "void_embedding.",
}
# In released files for training only, or derivable from the configuration.
RELEASED_EXTRAS = ("criterion.empty_weight", "pixel_mean", "pixel_std", "backbone.clip_model.attn_mask")
# Likewise in open_clip's files, by its age: the causal mask, and OpenAI's sizes as tensors.
CLIP_EXTRAS = ("attn_mask", "input_resolution", "context_length", "vocab_size")
# Wrappers that trainers put around a whole network.
WRAPPERS = ("module.", "model.")
_LISTED = 6


def tensor_names(path: Path) -> list[str]:
    """Names of all tensors in a file that `read_tensors` reads, without reading them.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return list(read_tensors(path, mmap=True))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            return list(stream.keys())
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or not a safetensors file ({error}): fetch it again")


def holds_clip(path: Path) -> bool:
    """Whether a decoder's file has CLIP's image and text towers, too.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    keys = network_keys(dict.fromkeys(tensor_names(path), torch.empty(0)))
    return "clip.model.token_embedding.weight" in keys and any(key.startswith("clip.model.visual.") for key in keys)


def read_tensors(path: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """All tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file, on the CPU.

    Args:
        path: the file.
        mmap: read what is used, when it is used; for looking at names.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise _damaged(path, error) from None
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise CheckpointError(f"{path} has an unknown ending; weights are .safetensors or .pth")
    with path.open("rb") as stream:
        if not stream.read(4).startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of old
            raise CheckpointError(f"{path} is no PyTorch file (a saved web page?): download it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
    except Exception as error:
        reason = "it holds pickled code" if "weights_only" in str(error) or "Unsupported" in str(error) else "it is damaged"
        raise CheckpointError(f"{path} was not loaded: {reason}; only files with nothing but tensors are accepted") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no named tensors")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content):
        odd = next(str(key) for key, value in content.items() if not isinstance(value, Tensor))
        raise CheckpointError(f"{path}: entry '{odd}' is no tensor")
    return tensors


def network_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released or own key names to the network's. Unknown keys stay as they are, so that the strict check names them.

    A prefix that all keys share because the network was wrapped (`module.`, `model.`) is taken off first.
    """
    for wrapper in WRAPPERS:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key[len(wrapper) :]: tensor for key, tensor in tensors.items()}
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in RELEASED_EXTRAS:
            continue
        for released, own in RELEASED_PREFIXES.items():
            if key.startswith(released):
                key = own + key[len(released) :]
                break
        renamed[key] = tensor
    return renamed


def clip_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's key names to the network's. The logit scale is a scalar in some of its files and a row of one in others."""
    kept = {key: tensor for key, tensor in tensors.items() if key not in CLIP_EXTRAS}
    if "logit_scale" in kept and kept["logit_scale"].numel() == 1:
        kept["logit_scale"] = kept["logit_scale"].reshape(())
    return {f"clip.model.{key}": tensor for key, tensor in kept.items()}


def load_network_weights(network: FCCLIP, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `tensors` (network keys) into `network`, all of them or none.

    Args:
        network: the target; its dtypes are kept (half-precision files are widened).
        tensors: exactly the network's keys. Batch-norm counters may be absent: inference does not read them.
        source: what to call the weights in an error.

    Raises:
        CheckpointError: keys are missing, unexpected, misshapen or not finite; the message lists them.
    """
    target = network.state_dict()
    required = {key for key in target if not key.endswith("num_batches_tracked")}
    problems = []
    missing = sorted(required - set(tensors))
    unexpected = sorted(set(tensors) - set(target))
    misshapen = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(target[key].shape)}"
        for key in sorted(set(target) & set(tensors))
        if tensors[key].shape != target[key].shape
    ]
    if missing:
        problems.append(f"{len(missing)} keys missing: {_listed(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_listed(unexpected)}")
    if misshapen:
        problems.append(f"{len(misshapen)} of the wrong shape: {_listed(misshapen)}")
    if not problems:
        broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
        if broken:
            problems.append(f"{len(broken)} hold NaN or infinity: {_listed(sorted(broken))}")
    if misshapen and not missing and not unexpected:
        problems.append("these are the weights of another variant of the network")
    if problems:
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems)}")
    with torch.no_grad():
        for key, tensor in tensors.items():
            target[key].copy_(tensor)


def _is_finite(tensor: Tensor) -> bool:
    """A sum is finite only where all of its terms are, and takes a tenth of the time; a sum that overflows is looked at closely."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def save_decoder(network: FCCLIP, path: Path, *, half: bool = False) -> None:
    """Write everything but CLIP as safetensors, atomically; with `half` in float16."""
    tensors = {key: value for key, value in network.state_dict().items() if not key.startswith("clip.")}
    write_safetensors(tensors, path, half=half)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, *, half: bool = False) -> None:
    """Write tensors to a temporary file and rename it to `path`, so that no half-written file is ever seen.

    Raises:
        CheckpointError: it cannot be written, such as where the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    ready = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for key, value in tensors.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            save_file(ready, name)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
