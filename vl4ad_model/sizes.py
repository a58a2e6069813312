"""Image sizes as people write them."""

from __future__ import annotations

from vl4ad_model.errors import Vl4adError
from vl4ad_model.image_files import MAX_SIDE


def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" as (height, width) in pixels.

    Raises:
        Vl4adError: it is no size, or a side is larger than any image.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise Vl4adError(f"'{text}' is no size: give HEIGHTxWIDTH, for example 512x1024")
    if max(len(part) for part in parts) > 6 or max(map(int, parts)) > MAX_SIDE:
        raise Vl4adError(f"size '{text:.40}' has a side of more than {MAX_SIDE} pixels")
    return int(parts[0]), int(parts[1])
