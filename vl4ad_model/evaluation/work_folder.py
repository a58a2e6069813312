"""Where a run keeps what it has counted so far, so that an interrupted one goes on instead of starting over.

The folder lies beside the result (`results.json.partial`), is tied to one configuration by a fingerprint, and goes away when the
result is written. Nothing in it can be mistaken for a result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vl4ad_model.errors import EvaluationError, ImageError
from vl4ad_model.evaluation.frame_counts import FirstCounts, Shared
from vl4ad_model.evaluation.label_files import LabelMap
from vl4ad_model.evaluation.sources import Entry
from vl4ad_model.image_files import write_bytes

RESUMING = "resuming"
_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
"""What reading an archive raises that is empty, cut off or overwritten."""


class WorkFolderError(EvaluationError):
    """The work folder cannot be used: no frame's fault."""


class WorkFolder:
    """Files of one run; made by `open_work_folder`. Usable from several processes: each frame's files are its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _file(self, kind: str, entry: Entry) -> Path:
        # Frame names come from files and bags and may hold anything.
        return self.path / f"{hashlib.sha256(entry.name.encode()).hexdigest()[:24]}.{kind}"

    def has(self, entry: Entry) -> bool:
        """Whether the first round of this frame is done."""
        return self._file("counts", entry).is_file()

    def save(self, entry: Entry, counts: FirstCounts) -> None:
        """Keep the first round of a frame; written last, so that a frame that has counts is whole."""
        self._write(self._file("counts", entry), lambda stream: stream.write(counts.to_bytes()))

    def load(self, entry: Entry) -> FirstCounts:
        return FirstCounts.from_bytes(self._file("counts", entry).read_bytes())

    def save_maps(self, entry: Entry, scores: np.ndarray, labels: LabelMap) -> None:
        """Keep what a model gave for a frame, without loss: 5 bytes per pixel."""
        self._write(self._file("maps", entry), lambda stream: np.savez(stream, scores=scores, anomaly=labels.anomaly))

    def load_maps(self, entry: Entry) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and anomaly labels, or None if they were not kept."""
        path = self._file("maps", entry)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return stored["scores"], stored["anomaly"]
        except _DAMAGED:
            self._forget(entry)
            raise WorkFolderError(f"{path} is damaged: start again, and frame {entry.name} is counted anew") from None

    def forget_damaged(self, entries: Sequence[Entry], *, maps: bool) -> None:
        """Of an earlier run, as after a power cut: what cannot be read is not there.

        Args:
            entries: all frames.
            maps: whether a frame that has counts needs maps, too.
        """
        for entry in filter(self.has, entries):
            try:
                self.load(entry)
                if maps:
                    with np.load(self._file("maps", entry), allow_pickle=False) as stored:  # lists what it holds, reads none of it
                        whole = {"scores", "anomaly"} <= set(stored.files)
                    if not whole:
                        self._forget(entry)
            except _DAMAGED:
                self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        for kind in ("counts", "maps"):
            self._file(kind, entry).unlink(missing_ok=True)

    def save_shared(self, shared: Shared) -> None:
        """Keep what the second round needs; it can be large, and every task needs it."""
        threshold = np.float64(shared.threshold)
        self._write(
            self.path / "shared",
            lambda stream: np.savez(stream, threshold=threshold, distinct=shared.distinct, edges=shared.edges),
        )

    def load_shared(self) -> Shared:
        path = self.path / "shared"
        return _load_shared(path, path.stat().st_mtime_ns)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, path: Path, save: Callable[[BinaryIO], object]) -> None:
        """A file whole or not at all. It never makes the folder: where that is gone, the run has ended."""
        temporary = path.with_name(path.name + ".writing")
        try:
            with temporary.open("wb") as stream:
                save(stream)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise WorkFolderError(f"cannot write {path.parent}: {error.strerror or error}") from None


@lru_cache(maxsize=1)
def _load_shared(path: Path, modified: int) -> Shared:
    with np.load(path, allow_pickle=False) as stored:
        return Shared(float(stored["threshold"]), stored["distinct"], stored["edges"])


def fingerprint(configuration: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """Changes with anything that changes a number: the configuration, and the names and versions of all frames."""
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode())
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.key}\0{entry.version}\0".encode())
    return digest.hexdigest()


def open_work_folder(beside: Path | None, mark: str) -> tuple[WorkFolder, str]:
    """The work folder of a run, emptied if it belongs to another configuration.

    Args:
        beside: the result file; None = a temporary folder, and nothing to resume.
        mark: the fingerprint.

    Returns:
        the folder, and a word for people: "" (new), "resuming" or "starting over: ...".

    Raises:
        EvaluationError: it cannot be written.
    """
    if beside is None:
        return WorkFolder(Path(tempfile.mkdtemp(prefix="vl4ad-evaluate-"))), ""
    path = beside.with_name(beside.name + ".partial")
    seal = path / "fingerprint"
    word = ""
    if path.exists():
        try:
            old = seal.read_text()
        except OSError:
            old = ""
        if old == mark:
            word = RESUMING
        else:
            if not seal.exists() and any(path.iterdir()):
                raise EvaluationError(f"{path} is in the way and is not an evaluation's work folder: move it")
            shutil.rmtree(path)
            word = "starting over: the interrupted run had another configuration"
    try:
        write_bytes(seal, mark.encode())
    except ImageError as error:
        raise EvaluationError(str(error)) from None
    return WorkFolder(path), word
