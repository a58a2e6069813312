"""One thread that always works on the newest frame of each source: whoever brings frames never waits, memory never grows.

Knows nothing of ROS or of images; a frame is any object.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class FrameCounts:
    """What became of the frames of one source.

    Attributes:
        received: handed in.
        taken: given to the work function.
        dropped: replaced by a newer one while the thread was busy.
        limited: replaced by a newer one while waiting for the rate limit.
    """

    received: int = 0
    taken: int = 0
    dropped: int = 0
    limited: int = 0


class NewestFrameWorker:
    """Calls `work(source, frame)` in a thread of its own, one frame at a time, fairly among the sources.

    Args:
        work: what to do with a frame. An exception goes to `on_error` and the thread goes on.
        on_error: called with the exception, in the worker's thread.
        on_wake: called in the worker's thread before each frame and after each `poke`.
    """

    def __init__(
        self,
        work: Callable[[str, Any], None],
        *,
        on_error: Callable[[Exception], None],
        on_wake: Callable[[], None] = lambda: None,
        name: str = "inference",
    ) -> None:
        self._work, self._on_error, self._on_wake = work, on_error, on_wake
        self._condition = threading.Condition()
        self._frames: dict[str, Any] = {}
        self._served: dict[str, float] = {}
        self._counts: dict[str, FrameCounts] = {}
        self._min_interval = 0.0
        self._poked = self._stopping = self._busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

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
            self._condition.notify()

    def clear(self) -> None:
        """Forget the frames that wait, and what became of the others."""
        with self._condition:
            self._frames.clear()
            self._counts.clear()

    def poke(self) -> None:
        """Have `on_wake` called soon, frame or not."""
        with self._condition:
            self._poked = True
            self._condition.notify()

    def limit_rate(self, frames_per_second: float) -> None:
        """At most this many frames per second of each source; 0 = no limit."""
        with self._condition:
            self._min_interval = 1.0 / frames_per_second if frames_per_second > 0 else 0.0
            self._condition.notify()

    def counts(self, source: str) -> FrameCounts:
        with self._condition:
            entry = self._counts.get(source, FrameCounts())
            return FrameCounts(entry.received, entry.taken, entry.dropped, entry.limited)

    @property
    def busy(self) -> bool:
        """Whether a frame is being worked on."""
        return self._busy

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread after the frame it is working on.

        Returns:
            whether it ended within the timeout.
        """
        with self._condition:
            self._stopping = True
            self._frames.clear()
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _wait_of(self, source: str, now: float) -> float:
        """Seconds until the rate limit lets this source's next frame through."""
        if not self._min_interval or source not in self._served:
            return 0.0
        return self._served[source] + self._min_interval - now

    def _next(self) -> tuple[str, Any] | None:
        """The frame of the source that waited longest; None = no frame, but `on_wake` is due."""
        with self._condition:
            while True:
                if self._stopping:
                    return None
                if self._poked:
                    self._poked = False
                    return None
                now = time.monotonic()
                waits = {source: self._wait_of(source, now) for source in self._frames}
                ready = [source for source, wait in waits.items() if wait <= 0]
                if ready:
                    source = min(ready, key=lambda each: self._served.get(each, 0.0))
                    # The limit counts from slot to slot, not from frame to frame, or a 10 Hz limit on 30 Hz images gives 7.5 Hz.
                    due = self._served.get(source, 0.0) + self._min_interval
                    self._served[source] = due if self._min_interval and now - due < self._min_interval else now
                    self._counts[source].taken += 1
                    self._busy = True
                    return source, self._frames.pop(source)
                self._condition.wait(min(waits.values()) if waits else None)

    def _run(self) -> None:
        while not self._stopping:
            chosen = self._next()
            try:
                if not self._stopping:
                    self._on_wake()
                    if chosen is not None:
                        self._work(*chosen)
            except Exception as error:
                self._on_error(error)
            finally:
                self._busy = False
                chosen = None


class LatestJob:
    """Runs jobs in a thread of its own; of those that wait, only the newest: whoever hands one in never waits."""

    def __init__(self, *, on_error: Callable[[Exception], None], name: str = "words") -> None:
        self._worker = NewestFrameWorker(lambda _, job: job(), on_error=on_error, name=name)
        self._worker.start()

    def submit(self, job: Callable[[], None]) -> None:
        self._worker.offer("job", job)

    def stop(self, timeout: float | None = None) -> bool:
        return self._worker.stop(timeout)
