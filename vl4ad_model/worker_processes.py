"""Worker processes that leave Ctrl-C to their parent, from their first instruction on, and do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker


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


def end_with_parent() -> None:
    """In a worker: end when the process that started it is gone, however it ended.

    A pool's workers wait for work at a pipe whose other end they hold, too, so that they would wait for ever, each with its model.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
