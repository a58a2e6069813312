"""Compiled engines on disk: named by everything that shaped them, written whole or not at all, checked before every use.

An entry is two files in $VL4AD_CACHE/engines: the compiled file itself, as its library wrote it, and a `.json` beside it with the
key, size and sha256. The JSON is written last, so a file without one, or of another size, sum or key, was left by a killed or
foreign process and is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vl4ad_model.cache_folder import cache_root
from vl4ad_model.errors import EngineError

if TYPE_CHECKING:
    from vl4ad_model.network.fcclip import FCCLIP

log = logging.getLogger(__name__)

FORMAT = 1
_PARTIAL = ".part"
_NAME_BYTES = 80


@dataclass(frozen=True)
class EngineKey:
    """Everything that shapes a compiled file. Two equal keys give interchangeable files; no prompt is in it.

    Attributes:
        weights: sha256 over configuration and weights of what is compiled (see `network_digest`).
        code: sha256 over the network's and the exporter's source.
        engine: onnx, openvino or tensorrt.
        library: name and version of the library that compiled it, and of torch, which exported it.
        target: where it runs: CPU model, or GPU model, compute capability and CUDA version. A file that the driver refuses is
            built again.
        height, width, batch, precision, pooled: see `onnx_export.export`.
    """

    weights: str
    code: str
    engine: str
    library: str
    target: str
    height: int
    width: int
    batch: int
    precision: str
    pooled: bool

    @property
    def digest(self) -> str:
        """Names the file."""
        return hashlib.sha256(json.dumps({**asdict(self), "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class CacheEntry:
    """A file in the cache: path, what its JSON says about it (empty where it has none), size in bytes, and whether it is whole."""

    path: Path
    description: dict
    size: int
    whole: bool


class Cleaned(NamedTuple):
    """What `EngineCache.clean` removed, and what it could not, with the reason."""

    removed: list[Path]
    kept: dict[Path, str]


def default_folder() -> Path:
    """$VL4AD_CACHE/engines, or ~/.cache/vl4ad/engines."""
    return cache_root() / "engines"


def network_digest(network: FCCLIP) -> str:
    """sha256 over configuration and all weights that are compiled; the text tower is none of them."""
    digest = hashlib.sha256(network.config.to_json().encode())
    for key, tensor in sorted(network.state_dict().items()):
        if key.startswith("clip.model.") and not key.startswith("clip.model.visual."):
            continue
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().numpy()).cast("B") if tensor.numel() else b"")
    return digest.hexdigest()


@functools.cache
def code_digest() -> str:
    """sha256 over the sources that decide what a compiled graph computes, as they were when this process first asked."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in (
        *sorted((package / "network").glob("*.py")),
        package / "engines/onnx_export.py",
        package / "engines/onnx_graph.py",
        package / "engines/openvino_engine.py",
        package / "engines/strips.py",
        package / "engines/tensorrt_engine.py",
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class EngineCache:
    """A folder of compiled engines, shared by all processes of a user.

    Args:
        folder: None = `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(folder) if folder else default_folder()

    def path(self, key: EngineKey, name: str, suffix: str) -> Path:
        """Where the file of `key` lies: readable parts first, then the digest."""
        pooled = "-pooled" if key.pooled else ""
        short = Path(name).name.encode()[:_NAME_BYTES].decode(errors="ignore")  # a file's name has 255 bytes at most
        return self.folder / f"{short}-{key.engine}-{key.height}x{key.width}-{key.precision}{pooled}-{key.digest}{suffix}"

    def get_or_build(
        self,
        key: EngineKey,
        name: str,
        suffix: str,
        build: Callable[[], bytes],
        *,
        waiting: Callable[[], None] | None = None,
        rebuild: bool = False,
    ) -> tuple[bytes, str]:
        """The compiled file of `key`, built at most once on this machine however many processes ask.

        Args:
            name: of the model, for people.
            suffix: of the file, with its dot.
            build: makes the file's content; called with the lock held.
            waiting: called now and then while another process builds the same file; it may raise.
            rebuild: build whatever is there, which stays until the new file takes its place.

        Returns:
            content, and one line on where it came from. Where the cache cannot be written the content is built all the same and
            the line says why it was not kept.
        """
        path = self.path(key, name, suffix)
        content, why = self._read(path, key)
        if content is not None and not rebuild:
            return content, f"from cache ({path.name})"
        try:
            with self._lock(path, waiting):
                content, why = self._read(path, key)  # another process may have built it meanwhile
                if content is not None and not rebuild:
                    return content, f"from cache ({path.name})"
                if why:
                    log.warning("%s is built again: %s", path.name, why)
                self._remove_partial(path)
                content = build()
                problem = self._write(path, key, content)
        except _CannotLock as error:
            content, problem = build(), str(error)
        if problem:
            log.warning("compiled engine not kept in %s: %s; set VL4AD_CACHE to a writable folder", self.folder, problem)
            return content, f"built, not cached ({problem})"
        return content, f"built ({path.name})"

    def entries(self) -> list[CacheEntry]:
        """Everything in the folder but locks, whole or not."""
        paths = sorted(self.folder.glob("*")) if self.folder.is_dir() else []
        found = (_entry(path) for path in paths if path.suffix not in (".json", ".lock"))
        return [entry for entry in found if entry is not None]

    def clean(self, libraries: dict[str, str] | None = None, *, everything: bool = False) -> Cleaned:
        """Remove what can never be used again: broken files, and engines of another version of this package or of their library.

        Args:
            libraries: engine -> `EngineKey.library` as it is here now; engines that are not in it keep their files.
            everything: remove all engines.

        Returns:
            what was removed and what was not; files that another process builds right now stay.
        """
        removed: list[Path] = []
        kept: dict[Path, str] = {}
        current = code_digest()

        def useless(entry: CacheEntry) -> bool:
            key = entry.description.get("key", {})
            library = (libraries or {}).get(key.get("engine"), key.get("library"))
            return everything or not entry.whole or key.get("code") != current or key.get("library") != library

        for entry in self.entries():
            if not useless(entry):
                continue
            # The lock of a partial file is that of the engine it was to become, or to describe.
            base = entry.path.with_name(entry.path.name.partition(".build-")[0].removesuffix(".json"))
            try:
                with self._lock(base, None, wait=False):
                    again = _entry(entry.path)  # who held the lock may have finished it
                    if again is not None and useless(again):
                        entry.path.unlink(missing_ok=True)
                        entry.path.with_name(entry.path.name + ".json").unlink(missing_ok=True)
                        removed.append(entry.path)
            except _CannotLock as error:
                kept[entry.path] = str(error)
            except OSError as error:
                kept[entry.path] = error.strerror or str(error)
        return Cleaned(removed, kept)

    def _read(self, path: Path, key: EngineKey) -> tuple[bytes | None, str]:
        """(content, ""), or (None, why the file that is there cannot be used); ("" where there is none)."""
        try:
            if not path.is_file():
                return None, ""
        except OSError as error:  # a folder that others may not enter
            return None, f"it cannot be read ({error.strerror})"
        description = _read_json(path.with_name(path.name + ".json"))
        if not description:
            return None, "it has no description, so its writing was interrupted"
        if description.get("key") != asdict(key):
            return None, "it was made for something else"
        try:
            content = path.read_bytes()
        except OSError as error:
            return None, f"it cannot be read ({error.strerror})"
        if len(content) != description.get("size"):
            return None, f"it has {len(content)} bytes instead of {description.get('size')}"
        if hashlib.sha256(content).hexdigest() != description.get("sha256"):
            return None, "its content was changed"
        return content, ""

    def _write(self, path: Path, key: EngineKey, content: bytes) -> str:
        """Write both files atomically; returns why that failed, or an empty string."""
        description = {
            "key": asdict(key),
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        try:
            # Nothing that is there is touched before both files are written. Between the two, the old description does not fit.
            _replace((path, content), (path.with_name(path.name + ".json"), json.dumps(description, indent=1).encode()))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    @contextlib.contextmanager
    def _lock(self, path: Path, waiting: Callable[[], None] | None, *, wait: bool = True) -> Iterator[None]:
        """Hold the entry's lock. The kernel drops it with the process, however that ends, so no stale lock can remain."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path.with_name(path.name + ".lock"), "a")
        except OSError as error:
            raise _CannotLock(error.strerror or str(error)) from None
        with stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not wait:
                        raise _CannotLock("another process is building it") from None
                    if waiting:
                        waiting()
                    time.sleep(0.2)
                except OSError as error:  # file systems without locks
                    raise _CannotLock(error.strerror or str(error)) from None
            yield

    def _remove_partial(self, path: Path) -> None:
        for left in self.folder.glob(glob.escape(path.name) + ".build-*" + _PARTIAL):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _entry(path: Path) -> CacheEntry | None:
    """What lies there; None where no file does, or no longer."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        size = None
    if size is None:
        return None
    description = _read_json(path.with_name(path.name + ".json"))
    return CacheEntry(path, description, size, not path.name.endswith(_PARTIAL) and description.get("size") == size)


class _CannotLock(Exception):
    """The cache folder cannot be used; the text says why."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        EngineError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace((path, content))
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from None


def _replace(*files: tuple[Path, bytes]) -> None:
    """Write all of them beside where they belong, and only then move them there, in order."""
    written: list[tuple[str, Path]] = []
    try:
        for path, content in files:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".build-", suffix=_PARTIAL)
            written.append((name, path))
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
        for name, path in written:
            os.replace(name, path)
    except BaseException:
        for name, _ in written:
            Path(name).unlink(missing_ok=True)
        raise


def _read_json(path: Path) -> dict:
    """A description; empty where it is none, whatever is there instead."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("key"), dict) else {}
