"""Worker processes that leave Ctrl-C to their parent, from their first instruction on, and do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from typing import Any, TypeVar

T = TypeVar("T")


class WorkerKilledError(Exception):
    """A worker process ended in the middle of its work."""


@contextmanager
def worker_processes(
    count: int, start: Callable[..., None], *arguments: Any
) -> Iterator[Callable[[Callable[[Any], T], Sequence[Any]], Iterator[T]]]:
    """Processes that share tasks.

    Args:
        count: of processes; they are started when there is work.
        start: called with `arguments` in each process first.

    Yields:
        what calls a function with every task, and gives the results as they come, in any order; it raises what the function raises,
        and WorkerKilledError where a process is gone.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=start, initargs=arguments)

    def run(function: Callable[[Any], T], tasks: Sequence[Any]) -> Iterator[T]:
        try:
            with deaf_to_interrupts():  # workers start as tasks are submitted; the parent decides what Ctrl-C means
                # In no variable: whoever holds on to the futures holds on to all results.
                coming = as_completed([pool.submit(function, task) for task in tasks])
            for done in coming:
                yield done.result()
        except BrokenProcessPool:
            raise WorkerKilledError("a worker process was killed, most likely for lack of memory: use fewer --workers") from None

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


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
