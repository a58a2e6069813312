"""Parts of the image that never count: the vehicle's own bonnet, a lens hood, a burnt-in time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.errors import ImageError
from vl4ad_model.vocabulary import VOID_ID

if TYPE_CHECKING:
    from vl4ad_model.segmenter import Segmentation

_SHAPE_TOLERANCE = 0.01


class IgnoreMask:
    """Where the image is ignored: labels become void and the anomaly score 0, so that nothing is found there.

    Args:
        ignored: (H, W) bool.
        name: for messages.
    """

    def __init__(self, ignored: np.ndarray, name: str = "ignore mask") -> None:
        self.name, self._ignored = name, ignored
        self._resized = ignored

    @classmethod
    def read(cls, path: str | Path) -> IgnoreMask:
        """From an image file: what is white (128 to 255) is ignored.

        Raises:
            ImageError: no such file, no image, or it ignores nothing or everything.
        """
        from PIL import Image, UnidentifiedImageError

        path = Path(path).expanduser()  # a parameter of a node comes without a shell that does it
        try:
            with Image.open(path) as image:
                ignored = np.asarray(image.convert("L")) >= 128
        except FileNotFoundError:
            raise ImageError(f"no ignore mask at {path}") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an image that can be read"
            raise ImageError(f"ignore mask {path}: {reason}") from None
        if ignored.all() or not ignored.any():
            what = "everything" if ignored.all() else "nothing"
            raise ImageError(f"ignore mask {path} ignores {what}: paint white what is to be ignored, and the rest black")
        return cls(ignored, str(path))

    @property
    def share(self) -> float:
        """Of the image, 0..1."""
        return float(self._ignored.mean())

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
        ignored = self.at(result.labels.shape)  # type: ignore[arg-type]
        labels, anomaly = result.labels.copy(), result.anomaly.copy()
        np.putmask(labels, ignored, np.uint8(VOID_ID))
        np.putmask(anomaly, ignored, np.float32(0))
        return dataclasses.replace(result, labels=labels, anomaly=anomaly)
