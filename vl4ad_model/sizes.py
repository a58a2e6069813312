"""Image sizes as people write them."""

from __future__ import annotations

from vl4ad_model.errors import Vl4adError


def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" as (height, width) in pixels.

    Raises:
        Vl4adError: it is no size.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise Vl4adError(f"'{text}' is no size: give HEIGHTxWIDTH, for example 512x1024")
    return int(parts[0]), int(parts[1])
