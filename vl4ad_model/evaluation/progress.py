"""Progress bars on standard error with rate and remaining time, and one line for every frame that fails."""

from __future__ import annotations

from types import TracebackType

from vl4ad_model.evaluation.sources import FrameFailure

SHOWN_FAILURES = 20


class ConsoleProgress:
    """Use as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: int | None = None
        self.done = self.total = self.failures = 0

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, what: str, total: int, done: int) -> None:
        """Begin a stage of `total` frames of which `done` are there already."""
        self._bar.start()
        self.total, self.done = total, done
        self._task = self._bar.add_task(what, total=total, completed=done, rate="")

    def advance(self, frames: int) -> None:
        self.done += frames
        if self._task is not None:
            self._bar.advance(self._task, frames)  # type: ignore[arg-type]
            speed = self._bar.tasks[-1].speed
            self._bar.update(self._task, rate=f"{speed:.1f} frames/s" if speed else "")  # type: ignore[arg-type]

    def failed(self, failure: FrameFailure) -> None:
        """Say which frame failed; after 20 only count."""
        self.failures += 1
        if self.failures <= SHOWN_FAILURES:
            self.say(f"skipped: {failure}")
        elif self.failures == SHOWN_FAILURES + 1:
            self.say("more frames fail; the result names them all")

    def say(self, text: str) -> None:
        # Straight to the console: long paths must not be wrapped or taken for markup.
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
