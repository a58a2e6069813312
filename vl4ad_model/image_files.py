"""Image, label and score files: read strictly, written atomically."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE, MAX_SIDE, MAX_ASPECT = 16, 16384, 20


def check_size(height: int, width: int, what: str) -> None:
    """Refuse sizes that no camera has and that would exhaust memory or leave nothing to see.

    Raises:
        ImageError: empty, a side outside 16..16384 pixels, or more than 20 times as long as wide.
    """
    if height <= 0 or width <= 0:
        raise ImageError(f"{what} is empty ({width}x{height})")
    short, long = min(height, width), max(height, width)
    if short < MIN_SIDE or long > MAX_SIDE or long > MAX_ASPECT * short:
        raise ImageError(f"{what} is {width}x{height}: sides must be {MIN_SIDE} to {MAX_SIDE} pixels and at most {MAX_ASPECT}:1")


def check_rgb(rgb: np.ndarray, what: str = "image") -> np.ndarray:
    """An (H, W, 3) uint8 array of a sensible size, C-contiguous.

    Raises:
        ImageError: another shape, type or size.
    """
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.shape[2] != 3:
        shape = getattr(rgb, "shape", type(rgb).__name__)
        raise ImageError(f"{what} must be an array (height, width, 3) of RGB, not {shape}")
    if rgb.dtype != np.uint8:
        raise ImageError(f"{what} must be 8 bit per channel (uint8), not {rgb.dtype}: scale it to 0..255 first")
    check_size(rgb.shape[0], rgb.shape[1], what)
    return np.ascontiguousarray(rgb)


def _is_16_bit(image: Image.Image, path: Path) -> bool:
    """Whether a colour file has more than 8 bit per channel: Pillow opens it as 8-bit RGB and silently drops the rest."""
    if image.format == "JPEG2000":
        return _jpeg_2000_depth(path) > 8
    layouts = [tile[3] for tile in getattr(image, "tile", ())]
    arguments = [part for layout in layouts for part in (layout if isinstance(layout, tuple) else (layout,))]
    return any(";16" in part if isinstance(part, str) else isinstance(part, int) and part == 65535 for part in arguments)


def _jpeg_2000_depth(path: Path) -> int:
    """Bits of the first channel, from the codestream's SIZ marker (ISO/IEC 15444-1, A.5.1); 0 where none is found."""
    with open(path, "rb") as stream:
        start = stream.read(1 << 16)
    _, marker, size = start.partition(b"\xff\x4f\xff\x51")
    return (size[38] & 0x7F) + 1 if marker and len(size) > 38 else 0


def read_rgb(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """Read an 8-bit colour image (PNG, JPEG, WebP, ...).

    Args:
        path: the file.
        upright: turn it by its EXIF orientation; False = as stored, to which labels belong.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is missing, no image, damaged, not 8-bit colour, or of an unusable size.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
    try:
        with Image.open(path) as image:
            check_size(image.height, image.width, str(path))
            if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
                kind = {"L": "one 8-bit channel", "1": "one bit", "LA": "grey and alpha"}.get(image.mode, "more than 8 bit")
                raise ImageError(f"{path} has {kind} per pixel (mode {image.mode}): an 8-bit colour image is needed")
            if _is_16_bit(image, path):
                raise ImageError(f"{path} has 16 bit per channel: an 8-bit colour image is needed")
            return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    except FileNotFoundError:
        raise ImageError(f"no image at {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder: name the images in it, for example {path}/*.png") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is damaged or cannot be read ({error})") from None


def is_stream(path: Path) -> bool:
    """Whether it is a pipe, a device or a file that is open already (/dev/stdout): written to as it is, never replaced."""
    return path.exists() and (not path.is_file() or os.path.abspath(path).startswith(("/dev/", "/proc/")))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all (temporary file, then rename), making its folder; a link's file, not the link."""
    path = Path(path)
    try:
        if is_stream(path) and not path.is_dir():
            with path.open("ab") as stream:
                stream.write(content)
            return
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror or error}") from None


def write_rgb(path: Path, rgb: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the file's ending."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format={".jpg": "JPEG", ".jpeg": "JPEG"}.get(Path(path).suffix.lower(), "PNG"))
    write_bytes(path, stream.getvalue())


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write (H, W) uint8 class ids as an 8-bit grey PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, format="PNG")
    write_bytes(path, stream.getvalue())


def write_scores(path: Path, scores: np.ndarray) -> None:
    """Write (H, W) float32 scores as .npy."""
    stream = io.BytesIO()
    np.save(stream, scores)
    write_bytes(path, stream.getvalue())
