"""Parts of the image that never count: the vehicle's own bonnet, a lens hood, a burnt-in time."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.errors import ImageError
from vl4ad_model.image_files import MAX_SIDE, check_size
from vl4ad_model.vocabulary import VOID_ID

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from vl4ad_model.segmenter import Segmentation

_SHAPE_TOLERANCE = 0.01


class IgnoreMask:
    """Where the image is ignored: labels become void and the anomaly score 0, so that nothing is found there.

    Args:
        ignored: (H, W) bool.
        name: for messages.

    Attributes:
        share: of the image, 0..1.
    """

    def __init__(self, ignored: np.ndarray, name: str = "ignore mask") -> None:
        self.name, self.share = name, float(ignored.mean())
        self._ignored = self._resized = ignored

    @classmethod
    def read(cls, path: str | Path) -> IgnoreMask:
        """From an image file: what is white (128 to 255, or the upper half of 16 bit) is ignored. Transparent is black.

        Raises:
            ImageError: no such file, no image, one of a size that no camera has, or it ignores nothing or everything.
        """
        from PIL import ExifTags, Image

        path = Path(os.path.expanduser(path))  # a parameter of a node comes without a shell that does it
        Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ImageError(f"ignore mask {path}: not a file")  # a pipe would be waited for, for ever
            with Image.open(path) as image:
                check_size(image.height, image.width, f"ignore mask {path}")
                if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    raise ImageError(f"ignore mask {path} is turned by its EXIF orientation: save it upright, as a PNG for example")
                ignored = _is_white(image)
        except FileNotFoundError:
            raise ImageError(f"no ignore mask at {path}") from None
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # damage shows itself in many ways
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an image that can be read"
            raise ImageError(f"ignore mask {path}: {reason}") from None
        if ignored.all() or not ignored.any():
            what = "everything" if ignored.all() else "nothing"
            raise ImageError(f"ignore mask {path} ignores {what}: paint white what is to be ignored, and the rest black")
        return cls(ignored, str(path))

    def complaint(self, size: tuple[int, int]) -> str:
        """What is odd about using it for images of this size (height, width); empty where its shape is the same."""
        (height, width), (own_height, own_width) = size, self._ignored.shape
        if abs(width * own_height / (height * own_width) - 1) <= _SHAPE_TOLERANCE:
            return ""
        return f"ignore mask {self.name} is {own_width}x{own_height} but images are {width}x{height}: it is stretched"

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool at another size (height, width); the last one is kept."""
        resized = self._resized
        if resized.shape != size:
            import cv2

            whole = self._ignored.view(np.uint8)
            resized = cv2.resize(whole, (size[1], size[0]), interpolation=cv2.INTER_NEAREST).view(bool)
            self._resized = resized
        return resized

    def apply(self, result: Segmentation) -> Segmentation:
        """The same with the ignored part void and ordinary."""
        copy = dataclasses.replace(result, labels=result.labels.copy(), anomaly=result.anomaly.copy())
        self.paint_out(copy)
        return copy

    def paint_out(self, result: Segmentation) -> None:
        """As `apply`, in the result's own maps: only where nobody else holds them."""
        ignored = self.at(result.labels.shape)  # type: ignore[arg-type]
        np.putmask(result.labels, ignored, np.uint8(VOID_ID))
        np.putmask(result.anomaly, ignored, np.float32(0))


def _is_white(image: Picture) -> np.ndarray:
    """(H, W) bool."""
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow would clip at 255 and make all but black white
        values = np.asarray(image)
        return values >= (128 if values.max() < 256 else 32768)
    if "A" in image.getbands() or "transparency" in image.info:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return np.asarray(image.convert("L")) >= 128
