"""Saved score maps: .npy, .npz, 16-bit .png, and the SegmentMeIfYouCan benchmark's HDF5; kept in the type they are stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vl4ad_model.errors import EvaluationError, MissingDependencyError

SUFFIXES = (".npy", ".npz", ".png", ".hdf5", ".h5")
_KEYS = ("value", "scores", "score", "anomaly", "anomaly_p", "arr_0")


def read_scores(path: Path) -> np.ndarray:
    """(H, W) score map, higher = more anomalous.

    .npy and .npz may hold any floating-point type, integers become float32; .npz and HDF5 one array, or one named value (the
    benchmark's name), scores, score, anomaly, anomaly_p or arr_0. A 16-bit PNG means value / 65535.

    Raises:
        EvaluationError: the file is missing, damaged, or no score map.
    """
    path = Path(path)
    readers = {".npy": _read_npy, ".npz": _read_npz, ".png": _read_png, ".hdf5": _read_hdf5, ".h5": _read_hdf5}
    if path.suffix.lower() not in readers:
        raise EvaluationError(f"{path}: score maps are {', '.join(SUFFIXES)}")
    try:
        scores = readers[path.suffix.lower()](path)
    except FileNotFoundError:
        raise EvaluationError(f"no scores at {path}") from None
    except EvaluationError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and h5py each have their own way to say "damaged"
        raise EvaluationError(
            f"{path} is damaged or no score map ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None
    if scores.ndim == 3 and 1 in (scores.shape[0], scores.shape[2]):
        scores = scores[0] if scores.shape[0] == 1 else scores[..., 0]
    if scores.ndim != 2:
        raise EvaluationError(f"{path}: scores have shape {scores.shape}, a map (height, width) is needed")
    if scores.dtype.kind in "iu":
        scores = scores.astype(np.float32)
    if scores.dtype.kind != "f":
        raise EvaluationError(f"{path}: scores are {scores.dtype}, numbers are needed")
    return scores


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[_only(archive.files, path)]


def _read_hdf5(path: Path) -> np.ndarray:
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingDependencyError("h5py", "evaluation", "reading HDF5 score maps") from None
    with path.open("rb"), h5py.File(path, "r") as stored:
        names = [name for name, item in stored.items() if isinstance(item, h5py.Dataset)]
        return stored[_only(names, path)][()]


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in ("I;16", "I;16B", "I"):
            raise EvaluationError(f"{path}: a PNG score map must be one 16-bit channel, this one has mode {image.mode}")
        return (np.asarray(image).astype(np.float64) / 65535).astype(np.float32)


def _only(names: list[str], path: Path) -> str:
    if len(names) == 1:
        return names[0]
    for key in _KEYS:
        if key in names:
            return key
    raise EvaluationError(f"{path} holds {', '.join(names) or 'nothing'}: name the score map 'scores', or store one array only")
