"""Images go on being answered: PyTorch serves while an engine is built in the background, and takes over where one fails."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vl4ad_model.engines.base import BuildProgress, Engine, ProgressCallback
from vl4ad_model.engines.compiled import CompiledEngine
from vl4ad_model.errors import EngineError, Vl4adError, one_line
from vl4ad_model.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from vl4ad_model.network.proposals import MaskProposals

log = logging.getLogger(__name__)

_SILENCE_S = 10.0  # a build that says nothing for so long is spoken for
_EXIT_CHECK_S = 1.0  # how long a finished build's watcher outlives it at most


class ServingEngine(Engine):
    """A compiled engine with PyTorch behind it.

    Args:
        compiled: the engine that is wanted; None = PyTorch alone.
        fallbacks: makers of the engines that stand in for it, best first, each made when first needed; one that cannot be made is
            passed over. The last one should need nothing that can run out.
        reason: why `compiled` was chosen.
        background: build while a fallback serves; otherwise `propose` waits for a variant that is not there yet.
        progress: called from the building thread.
    """

    def __init__(
        self,
        compiled: CompiledEngine | None,
        fallbacks: list[Callable[[], Engine]],
        *,
        reason: str,
        background: bool = False,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._compiled, self._makers, self._chosen_because = compiled, list(fallbacks), reason
        self._background, self._callback = background, progress
        self._fallback: Engine | None = None
        self._given_up: Engine | None = None  # the last one
        self._fallbacks_maker: Callable[[], Engine] | None = None
        self._builder: threading.Thread | None = None
        self._lock = threading.Lock()
        self._change = threading.RLock()  # of which engines there are: images, the building thread and diagnostics all ask
        self._pooled = False  # the variant that images want
        self._unbuildable: set[bool] = set()
        self._told: tuple[BuildProgress, float] | None = None
        self._closed = False
        self.last_error = ""
        self.network_size = compiled.network_size if compiled is not None else self._made().network_size
        if compiled is not None:
            compiled.callback = self._report

    # --- what runs now --------------------------------------------------------------------------------------------------

    # To ask is no reason to make a fallback, and never fails: diagnostics ask, also while there is none, or none any more.

    def _answers(self, compiled: CompiledEngine) -> bool:
        return compiled.ready(self._pooled) or not (self._background or self._pooled in self._unbuildable)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The engine that answers the next image."""
        compiled, fallback = self._compiled, self._fallback
        if compiled is not None and self._answers(compiled):
            return compiled.name
        return "torch" if fallback is None else fallback.name

    @property
    def device(self) -> str:  # type: ignore[override]
        """Where it runs; a fallback may run elsewhere."""
        return self._at_hand.device

    @property
    def precision(self) -> str:  # type: ignore[override]
        return self._at_hand.precision

    @property
    def _at_hand(self) -> Engine:
        """What runs now, or will; where nothing can any more, what ran last."""
        compiled, fallback = self._compiled, self._fallback
        if compiled is not None and (fallback is None or self._answers(compiled)):
            return compiled
        engine = fallback or self._given_up
        assert engine is not None
        return engine

    @property
    def reason(self) -> str:  # type: ignore[override]
        compiled = self._compiled
        if compiled is None or self._answers(compiled):
            return f"{self._chosen_because}; {self.last_error}" if self.last_error else self._chosen_because
        if self._pooled in self._unbuildable:
            return f"{self.name} on {self.device}; {self.last_error}"
        return f"{self.name} serves while {compiled.name} is built"

    # --- building -------------------------------------------------------------------------------------------------------

    def prepare(self, pooled: bool) -> None:
        """Make the compiled variant ready: at once, or in the background. A failure leaves the fallback in charge."""
        self._pooled = pooled
        if self._compiled is None or self._compiled.ready(pooled) or pooled in self._unbuildable:
            return
        if not self._background:
            self._prepare(pooled)
            return
        with self._lock:
            if self._builder is None or not self._builder.is_alive():
                self._told = (BuildProgress(self._compiled.name, "starting", 0.0, 0.0, None), time.monotonic())
                # Not a daemon: the end of the process would stop it inside the compiler, and that aborts.
                self._builder = threading.Thread(target=self._prepare, args=(pooled,), name="engine build")
                self._builder.start()
                threading.Thread(
                    target=self._cancel_at_exit, args=(self._builder,), name="end of engine build", daemon=True
                ).start()

    def _cancel_at_exit(self, builder: threading.Thread) -> None:
        """When the process ends, nobody waits for an engine: the build stops at the compiler's next step."""
        while builder.is_alive():
            threading.main_thread().join(_EXIT_CHECK_S)
            if not threading.main_thread().is_alive():
                self._closed = True
                if self._compiled is not None:
                    self._compiled.cancel()
                return

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a build in the background; returns whether none runs any more."""
        builder = self._builder
        if builder is not None:
            builder.join(timeout)
        return builder is None or not builder.is_alive()

    def _prepare(self, pooled: bool) -> None:
        compiled = self._compiled
        if compiled is None:
            return
        ended = threading.Event()
        if self._callback and self._background:
            threading.Thread(target=self._go_on_telling, args=(ended,), name="engine build progress", daemon=True).start()
        try:
            compiled.prepare(pooled)
        except Exception as error:  # a compiler may fail in any way; images go on
            failure = _Failure.of(error)
            if self._closed:
                log.info("%s was not built: %s", compiled.name, failure.text)
            elif compiled.ready(not pooled):  # the other variant works and stays
                self._unbuildable.add(pooled)
                self.last_error = f"{compiled.name} on {compiled.device} {failure.what} ({failure.text})"
                log.error("%s; PyTorch answers what needs it", self.last_error)
            else:
                try:
                    self._give_up(compiled, failure)
                except (RuntimeError, MemoryError):
                    if not self._background:  # there, the next image is told
                        raise
        finally:
            ended.set()
            self._told = None
        if self._closed:
            compiled.close()

    def _report(self, progress: BuildProgress) -> None:
        self._told = (progress, time.monotonic()) if progress.fraction < 1 else None
        if self._callback:
            self._callback(progress)

    def _go_on_telling(self, ended: threading.Event) -> None:
        """A long stage says nothing for minutes, which looks like a crash."""
        while not ended.wait(_SILENCE_S):
            progress = self.progress
            if progress is not None and self._callback:
                with contextlib.suppress(Exception):
                    self._callback(progress)

    @property
    def progress(self) -> BuildProgress | None:  # type: ignore[override]
        """How far a build is now: time has gone by since the compiler last said something."""
        told = self._told
        if told is None:
            return None
        progress, since = told[0], time.monotonic() - told[1]
        left = None if progress.eta_s is None else max(0.0, progress.eta_s - since)
        return progress._replace(elapsed_s=progress.elapsed_s + since, eta_s=left)

    # --- running --------------------------------------------------------------------------------------------------------

    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None, *, pooled: bool = True) -> MaskProposals:
        self._check_open()
        self.prepare(pooled)
        compiled = self._compiled
        if compiled is not None and compiled.ready(pooled):
            try:
                proposals = compiled.propose(images, image_size, pooled=pooled)
                if self._fallback is not None:
                    self._let_go_of_fallback()
                return proposals
            except Exception as error:
                self._check_open()
                if isinstance(error, Vl4adError) and not is_out_of_memory(error):
                    raise  # the caller's mistake, or one that the engine has explained
                failure = _Failure.of(error)
            # out here the exception no longer holds on to the device's memory
            if failure.out_of_memory and len(images) > 1:
                return self._in_halves(images, image_size, pooled)
            self._give_up(compiled, failure)
        while True:
            fallback = self._made()
            fallback.recording = self._told is None
            try:
                return fallback.propose(images, image_size, pooled=pooled)
            except Exception as error:
                if fallback is not self._fallback and not self._closed:
                    continue  # another thread has given it up, and closed it under this image
                self._check_open()
                if not isinstance(error, (RuntimeError, MemoryError)):
                    raise
                failure = _Failure.of(error)
            if failure.out_of_memory and len(images) > 1:
                return self._in_halves(images, image_size, pooled)
            if not self._makers:
                if failure.out_of_memory:
                    raise MemoryError(f"out of memory: {failure.text}")
                raise EngineError(f"engine {fallback.name} failed on {fallback.device}: {failure.text}")
            self._give_up(fallback, failure)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine was closed") from None

    def _in_halves(self, images: np.ndarray, image_size: tuple[int, int] | None, pooled: bool) -> MaskProposals:
        half = len(images) // 2
        parts = [self.propose(part, image_size, pooled=pooled) for part in (images[:half], images[half:])]
        return parts[0].joined_with(parts[1])

    def _let_go_of_fallback(self) -> None:
        """The compiled engine has taken over: what stood in for it gives its memory back, and can be made again."""
        with self._change:
            if self._fallback is None or self._fallbacks_maker is None or self._told is not None:
                return
            self._makers.insert(0, self._fallbacks_maker)
            on_gpu = self._fallback.device != "cpu"
            self._fallback = None  # not closed: another thread may be in the middle of an image
        if on_gpu:
            import torch

            torch.cuda.empty_cache()

    def _made(self) -> Engine:
        fallback = self._fallback
        if fallback is not None:
            return fallback
        with self._change:
            return self._make()

    def _make(self) -> Engine:
        while self._fallback is None:
            if not self._makers:
                raise EngineError(f"no engine is left: {self.last_error}")
            try:
                maker = self._makers.pop(0)
                self._fallback, self._fallbacks_maker = maker(), maker
            except (RuntimeError, MemoryError) as error:
                if not self._makers:
                    raise
                failure = _Failure.of(error)
                self.last_error = f"the fallback engine {failure.what} while it was being created ({failure.text})"
                log.error("%s; another takes over", self.last_error)
                continue
            if self.last_error and self._compiled is None:
                self._chosen_because = f"{self._fallback.name} on {self._fallback.device}"
        return self._fallback

    def _give_up(self, engine: Engine, failure: _Failure) -> None:
        """Never use `engine` again, say so, and free what it held. Does nothing where another thread has done so already."""
        with self._change:
            if engine not in (self._compiled, self._fallback):
                return
            self._given_up = engine
            if engine is self._compiled:
                self._compiled = None
            else:
                self._fallback = None
            self.last_error = failed = f"{engine.name} on {engine.device} {failure.what} ({failure.text})"
            with contextlib.suppress(Exception):
                engine.close()
            try:
                next_one = self._made()
            except Exception as error:
                self.last_error = f"{failed}; nothing can take over: {one_line(error)}"
                log.error("%s", self.last_error)
                raise
            self.last_error = failed
            self._chosen_because = f"{next_one.name} on {next_one.device}"
            log.error("%s; %s takes over", self.last_error, self._chosen_because)

    def close(self) -> None:
        self._closed = True
        if self._compiled is not None:
            self._compiled.cancel()
        for engine in (self._compiled, self._fallback):
            if engine is not None:
                engine.close()


class _Failure(NamedTuple):
    """What an exception said, without the exception, whose traceback keeps the tensors of the failed run alive."""

    text: str
    out_of_memory: bool

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        return cls(one_line(error), is_out_of_memory(error))

    @property
    def what(self) -> str:
        return "ran out of device memory" if self.out_of_memory else "failed"
