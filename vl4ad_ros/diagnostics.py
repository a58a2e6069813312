"""How the node is doing: rates, drops, ages and the last thing that went wrong, as numbers and as a DiagnosticArray."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

WINDOW_SECONDS = 10.0
"""Rates and percentiles are of this long a past."""
OLD_SECONDS = 1.0
"""Images older than this when published, or from the future by more, are warned of."""
QUIET_SECONDS = 3.0
"""No image for this long is warned of, where the camera is no slow one."""
REPEAT_SECONDS = 30.0
"""The same complaint is logged again after this long."""


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else float("nan")


class CameraStatistics:
    """What happened to the images of one camera. Any thread may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals: deque[float] = deque()
        self._published: deque[tuple[float, float | None, Mapping[str, float]]] = deque()
        self._troubles: deque[tuple[float, str]] = deque()
        self._heard = False
        self._unwatched_at = -math.inf
        self.published = self.unwatched = self.failed = self.rejections = self.lost = 0
        self.last_rejection = ""
        self.image = ""

    def arrived(self) -> None:
        with self._lock:
            self._heard = True
            self._arrivals.append(time.monotonic())
            self._forget()

    def lost_some(self, count: int) -> None:
        """Images that were sent and did not arrive."""
        with self._lock:
            self.lost += count

    def published_one(self, age: float | None, stages: Mapping[str, float], image: str) -> None:
        """A frame was published.

        Args:
            age: seconds from the header's stamp; None where it has none.
            stages: seconds per stage of the work.
            image: size and encoding, for people.
        """
        with self._lock:
            self.published += 1
            self.image = image
            self._published.append((time.monotonic(), age, dict(stages)))
            self._forget()

    def rejected(self, reason: str) -> None:
        """An image that cannot be used."""
        with self._lock:
            self.rejections += 1
            self.last_rejection = reason
            self._troubles.append((time.monotonic(), reason))
            self._forget()

    def frame_failed(self, reason: str) -> None:
        """An image that the network or something after it could not cope with."""
        with self._lock:
            self.failed += 1
            self._troubles.append((time.monotonic(), reason))
            self._forget()

    def not_wanted(self) -> None:
        """An image while nobody subscribes to any output."""
        with self._lock:
            self.unwatched += 1
            self._unwatched_at = time.monotonic()

    def _forget(self) -> None:
        before = time.monotonic() - WINDOW_SECONDS
        while self._arrivals and self._arrivals[0] < before:
            self._arrivals.popleft()
        while self._published and self._published[0][0] < before:
            self._published.popleft()
        while self._troubles and self._troubles[0][0] < before:
            self._troubles.popleft()

    def snapshot(self) -> CameraSnapshot:
        with self._lock:
            self._forget()
            ages = [age for _, age, _ in self._published if age is not None]
            names = {name for _, _, stages in self._published for name in stages}
            stages = {name: percentile([each.get(name, 0.0) for _, _, each in self._published], 0.5) for name in sorted(names)}
            return CameraSnapshot(
                rate_in=_rate([*self._arrivals]),
                rate_out=_rate([when for when, _, _ in self._published]),
                heard=self._heard,
                age_p50=percentile(ages, 0.5),
                age_p99=percentile(ages, 0.99),
                stages=stages,
                published=self.published,
                unwatched=self.unwatched,
                failed=self.failed,
                rejected=self.rejections,
                lost=self.lost,
                last_rejection=self.last_rejection,
                image=self.image,
                troubled=len(self._troubles),
                trouble=self._troubles[-1][1] if self._troubles else "",
                answered=len(self._published),
                watched=time.monotonic() - self._unwatched_at > QUIET_SECONDS,
            )


def _rate(times: list[float]) -> float:
    """Events per second: intervals between the first and the last."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0


@dataclass(frozen=True)
class CameraSnapshot:
    """The numbers of one camera over the window; counts are since activation. Ages and stages are seconds, rates Hz.

    Attributes:
        heard: an image came since activation; whether one is overdue is said as the topic's problem.
        answered, troubled: images of the window that were published, and that were rejected or failed.
        trouble: the last reason.
        watched: no image was left alone lately because nobody subscribes.
    """

    rate_in: float
    rate_out: float
    heard: bool
    age_p50: float
    age_p99: float
    stages: Mapping[str, float] = field(default_factory=dict)
    published: int = 0
    unwatched: int = 0
    failed: int = 0
    rejected: int = 0
    lost: int = 0
    last_rejection: str = ""
    image: str = ""
    troubled: int = 0
    trouble: str = ""
    answered: int = 0
    watched: bool = True


class Throttle:
    """Lets the same complaint through once in a while, and only so many different ones."""

    def __init__(self, repeat_seconds: float = REPEAT_SECONDS, most: int = 100) -> None:
        self._repeat, self._most = repeat_seconds, most
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    def allows(self, cause: str) -> bool:
        """Whether to say it now. `cause` is the complaint without its numbers."""
        now = time.monotonic()
        with self._lock:
            last = self._last.get(cause)
            if last is not None and now - last < self._repeat:
                return False
            if last is None and len(self._last) >= self._most:
                self._last.pop(min(self._last, key=self._last.__getitem__))
            self._last[cause] = now
            return True


def camera_status(name: str, snapshot: CameraSnapshot, counts: Mapping[str, int], problem: str) -> DiagnosticStatus:
    """The status of one camera.

    Args:
        counts: of the worker: received, dropped, limited.
        problem: of the topic (wrong type, no publisher, ...), empty if none.
    """
    level, message = DiagnosticStatus.OK, f"{snapshot.rate_out:.1f} Hz, {_ms(snapshot.age_p50)} old"
    old = snapshot.age_p50
    if problem:
        level, message = DiagnosticStatus.WARN, problem
    elif not snapshot.heard:
        level, message = DiagnosticStatus.WARN, "no images arrive"
    elif snapshot.troubled:
        level = DiagnosticStatus.WARN if snapshot.answered else DiagnosticStatus.ERROR
        share = f"{snapshot.troubled} of {snapshot.troubled + snapshot.answered}"
        message = (
            f"{snapshot.rate_out:.1f} Hz, {share} images of the last {WINDOW_SECONDS:.0f} s could not be used: {snapshot.trouble}"
        )
    elif old > OLD_SECONDS or old < -OLD_SECONDS:
        kind = f"{old:.1f} s old" if old > 0 else f"{-old:.1f} s in the future"
        level, message = DiagnosticStatus.WARN, f"images are {kind} when published: check clocks, use_sim_time and the load"
    elif snapshot.answered and old != old:
        level = DiagnosticStatus.WARN
        message = f"{snapshot.rate_out:.1f} Hz, images have no stamp: outputs cannot be matched to them"
    elif snapshot.rate_in and not snapshot.answered:
        why = "no answer yet" if snapshot.watched else "nobody subscribes to the outputs"
        message = f"{snapshot.rate_in:.1f} Hz arrive, {why}"
    values = {
        "input rate (Hz)": f"{snapshot.rate_in:.2f}",
        "output rate (Hz)": f"{snapshot.rate_out:.2f}",
        "received": counts["received"],
        "published": snapshot.published,
        "dropped (replaced by a newer image)": counts["dropped"],
        "skipped by max_rate": counts["limited"],
        "skipped without subscriber": snapshot.unwatched,
        "lost on the way": snapshot.lost,
        "rejected": snapshot.rejected,
        "failed": snapshot.failed,
        "latency p50 (ms)": f"{snapshot.age_p50 * 1e3:.1f}",
        "latency p99 (ms)": f"{snapshot.age_p99 * 1e3:.1f}",
        **{f"{stage} p50 (ms)": f"{seconds * 1e3:.1f}" for stage, seconds in snapshot.stages.items()},
        "last image": snapshot.image,
        "last rejected": snapshot.last_rejection,
    }
    return status(name, level, message, values)


def status(name: str, level: bytes, message: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """A DiagnosticStatus; values are shown as text."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id="vl4ad", values=pairs)


def array_of(statuses: list[DiagnosticStatus], stamp) -> DiagnosticArray:
    message = DiagnosticArray(status=statuses)
    message.header.stamp = stamp
    return message


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds == seconds else "age unknown"
