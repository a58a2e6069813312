"""Files of this package that are no code: vocabularies, profiles."""

from __future__ import annotations

import sys
from pathlib import Path


def shared_file(relative: Path | str) -> Path | None:
    """Where such a file lies: in the source tree, or in share/ of the installation (pip or colcon); None where it is missing.

    Args:
        relative: from the root of the source tree, such as "config/vocabularies/cityscapes.yaml".
    """
    here = Path(__file__).resolve()
    roots = [here.parents[1], Path(sys.prefix) / "share" / "vl4ad_ros"]
    # colcon installs to <prefix>/lib/python3.x/site-packages (or dist-packages) beside <prefix>/share
    roots += [parent / "share" / "vl4ad_ros" for parent in here.parents]
    return next((root / relative for root in roots if (root / relative).is_file()), None)
