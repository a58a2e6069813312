"""Worker processes that leave Ctrl-C to their parent, from their first instruction on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that this thread starts meanwhile never hear SIGINT; one for this thread waits until the end of the block.

    A terminal sends Ctrl-C to all of its processes. A worker that ignores it in its initializer only has still its imports before
    that, seconds in which it would end with a traceback.
    """
    resource_tracker.ensure_running()  # otherwise the first worker starts it, which unblocks the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
