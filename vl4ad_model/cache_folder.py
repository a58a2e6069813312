"""The folder that everything this package keeps lies in: models, compiled engines, text embeddings."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """$VL4AD_CACHE, or ~/.cache/vl4ad. Where there is no home, a folder that ends with the process."""
    wanted = os.environ.get("VL4AD_CACHE")
    try:
        return Path(wanted).expanduser() if wanted else Path.home() / ".cache" / "vl4ad"
    except RuntimeError:
        return _of_this_process()


@functools.cache
def _of_this_process() -> Path:
    # Not a name that others could guess: what lies there is run.
    folder = tempfile.mkdtemp(prefix="vl4ad-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning("there is no home folder, so nothing is kept: set VL4AD_CACHE to a writable folder")
    return Path(folder)
