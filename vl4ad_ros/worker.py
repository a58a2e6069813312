"""Threads that always work on the newest frame of each source: whoever brings frames never waits, memory never grows.

Knows nothing of ROS or of images; a frame is any object.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LONGEST_WAIT = 3600.0
"""Seconds that threads wait at once: Python has a limit."""


@dataclass
class FrameCounts:
    """What became of the frames of one source.

    Attributes:
        received: handed in.
        dropped: replaced by a newer one while the thread was busy.
        limited: replaced by a newer one while waiting for the rate limit.
    """

    received: int = 0
    dropped: int = 0
    limited: int = 0


class NewestFrameWorker:
    """Calls `work(source, frame)` in threads of its own, one frame at a time each, fairly among the sources.

    Args:
        work: what to do with a frame. An exception goes to `on_error` and the thread goes on.
        on_error: called with the exception, in a worker's thread.
        admit: makes what `work` gets of the frame, in the order in which frames are taken; it should be quick and must not fail.
        on_wake: called in a worker's thread before each frame that has no older one beside it, with what `admit` made of it, and
            after each `poke`, in its turn, with what `admit` makes of None.
        threads: frames that are worked on at once. What has to happen in order comes after `await_turn`.
    """

    def __init__(
        self,
        work: Callable[[str, Any], None],
        *,
        on_error: Callable[[Exception], None],
        on_wake: Callable[[Any], None] = lambda admitted: None,
        admit: Callable[[Any], Any] = lambda frame: frame,
        threads: int = 1,
        name: str = "inference",
    ) -> None:
        self._work, self._on_error, self._on_wake, self._admit = work, on_error, on_wake, admit
        self._condition = threading.Condition()
        self._turns: deque[int] = deque()  # idents of the threads that work on something, oldest first
        self._frames: dict[str, Any] = {}
        self._served: dict[str, float] = {}
        self._counts: dict[str, FrameCounts] = {}
        self._min_interval = 0.0
        self._poked = self._stopping = False
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def offer(self, source: str, frame: Any) -> None:
        """Hand in a frame; returns at once. The one that waited, if any, is dropped."""
        with self._condition:
            counts = self._counts.setdefault(source, FrameCounts())
            counts.received += 1
            if source in self._frames:
                if self._wait_of(source, time.monotonic()) > 0:
                    counts.limited += 1
                else:
                    counts.dropped += 1
            self._frames[source] = frame
            self._condition.notify_all()

    def clear(self) -> None:
        """Forget the frames that wait, and what became of the others."""
        with self._condition:
            self._frames.clear()
            self._counts.clear()

    def poke(self) -> None:
        """Have `on_wake` called soon, frame or not."""
        with self._condition:
            self._poked = True
            self._condition.notify_all()

    def limit_rate(self, frames_per_second: float) -> None:
        """At most this many frames per second of each source; 0 = no limit."""
        with self._condition:
            self._min_interval = 1.0 / frames_per_second if frames_per_second > 0 else 0.0
            self._condition.notify_all()

    def counts(self, source: str) -> FrameCounts:
        with self._condition:
            entry = self._counts.get(source, FrameCounts())
            return FrameCounts(entry.received, entry.dropped, entry.limited)

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def await_turn(self) -> None:
        """For `work`: wait until no older frame is worked on, whatever its source; the turn lasts until `work` ends."""
        me = threading.get_ident()
        with self._condition:
            self._condition.wait_for(lambda: self._turns[0] == me)

    def stop(self, timeout: float | None = None) -> bool:
        """End the threads after the frames they are working on.

        Returns:
            whether they ended within the timeout.
        """
        with self._condition:
            self._stopping = True
            self._frames.clear()
            self._condition.notify_all()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self.alive

    def _wait_of(self, source: str, now: float) -> float:
        """Seconds until the rate limit lets this source's next frame through."""
        if not self._min_interval or source not in self._served:
            return 0.0
        return self._served[source] + self._min_interval - now

    def _next(self) -> tuple[str | None, Any]:
        """The frame of the source that waited longest, or no source where only `on_wake` is due; either is this thread's turn."""
        with self._condition:
            while True:
                source = None
                if not (self._stopping or self._poked):
                    now = time.monotonic()
                    waits = {each: self._wait_of(each, now) for each in self._frames}
                    ready = [each for each, wait in waits.items() if wait <= 0]
                    if not ready:
                        self._condition.wait(min(*waits.values(), _LONGEST_WAIT) if waits else None)
                        continue
                    source = min(ready, key=lambda each: self._served.get(each, 0.0))
                    # The limit counts from slot to slot, not from frame to frame, or a 10 Hz limit on 30 Hz images gives 7.5 Hz.
                    due = self._served.get(source, now) + self._min_interval
                    self._served[source] = due if self._min_interval and 0 <= now - due < self._min_interval else now
                self._poked = self._poked and source is not None
                self._turns.append(threading.get_ident())
                return source, self._admit(None if source is None else self._frames.pop(source))

    def _run(self) -> None:
        me = threading.get_ident()
        while not self._stopping:
            source, admitted = self._next()
            try:
                # A frame beside an older one does not wait here: it says its words itself, in turn.
                if not self._stopping and (source is None or self._turns[0] == me):
                    self.await_turn()
                    self._on_wake(admitted)
                if not self._stopping and source is not None:
                    self._work(source, admitted)
            except Exception as error:
                self._on_error(error)
            finally:
                admitted = None
                with self._condition:
                    self._turns.remove(me)
                    self._condition.notify_all()


class LatestJob:
    """Runs jobs in a thread of its own; of those that wait, only the newest: whoever hands one in never waits."""

    def __init__(self, *, on_error: Callable[[Exception], None], name: str = "words") -> None:
        self._worker = NewestFrameWorker(lambda _, job: job(), on_error=on_error, name=name)
        self._worker.start()

    def submit(self, job: Callable[[], None]) -> None:
        self._worker.offer("job", job)

    def stop(self, timeout: float | None = None) -> bool:
        return self._worker.stop(timeout)
