"""What all compiled engines share: build or load a file per variant, check the image, run it in batches of the built size."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vl4ad_model.engines.base import BuildProgress, Engine, ProgressCallback, pinned
from vl4ad_model.engines.cache import EngineCache, EngineKey, code_digest, network_digest
from vl4ad_model.errors import EngineError
from vl4ad_model.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from vl4ad_model.network.fcclip import FCCLIP
    from vl4ad_model.network.proposals import MaskProposals

log = logging.getLogger(__name__)


class Runner(Protocol):
    """A loaded file."""

    def run(self, images: np.ndarray) -> list[Tensor]:
        """(batch, H, W, 3) uint8 to the outputs of `onnx_export.output_names`, new tensors every time."""
        ...

    def close(self) -> None: ...


class CompiledEngine(Engine):
    """An engine that runs a compiled file of fixed size.

    There are two variants, with and without the out-of-vocabulary branch; each is built when first needed and kept in the cache.
    Words are in neither, so no change of words builds anything.

    Args:
        network: in float32 on the CPU; read when a variant must be built.
        network_size: (height, width).
        model_name: for file names and messages.
        batch: images per run of the file.
        threads: of the CPU; None = the library's default. OpenVINO divides them among runs at once, ONNX Runtime shares them.
        parallel: runs at once, where the library can do that on this device.
    """

    suffix: str
    export_share = 0.7  # of a build's time, measured: tracing and folding take longer than a CPU library's compiler

    def __init__(
        self,
        network: FCCLIP,
        *,
        network_size: tuple[int, int],
        device: str = "cpu",
        precision: str = "fp32",
        model_name: str = "model",
        batch: int = 1,
        threads: int | None = None,
        parallel: int = 1,
        cache: EngineCache | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.network_size, self.device, self.precision = network_size, device, precision
        self.model_name, self.batch, self.threads = model_name, batch, threads
        self.parallel = parallel if self.runs_in_parallel(device) else 1
        self._network, self._cache, self.callback = network, cache or EngineCache(), progress
        self._runners: dict[bool, Runner] = {}
        self._build_lock, self._close_lock = threading.Lock(), threading.Lock()
        self._runs = threading.BoundedSemaphore(self.parallel)
        self._cancelled = threading.Event()
        self._weights = ""

    # --- what a library has to say --------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def library() -> str:
        """Name and version of the library, part of the cache key."""

    @staticmethod
    def runs_in_parallel(device: str) -> bool:
        """Whether a runner on this device may be asked by several threads at once."""
        return False

    @abstractmethod
    def target(self) -> str:
        """The hardware a file is for, part of the cache key."""

    @abstractmethod
    def compile(self, model: onnx.ModelProto, report: Reporter) -> bytes:
        """An ONNX model to the content of a compiled file."""

    @abstractmethod
    def load(self, content: bytes) -> Runner:
        """The content of a compiled file, ready to run."""

    # --- building -------------------------------------------------------------------------------------------------------

    def ready(self, pooled: bool) -> bool:
        """Whether `propose` with this `pooled` runs at once."""
        return pooled in self._runners or (not pooled and True in self._runners)

    @classmethod
    def library_key(cls) -> str:
        """The versions of all libraries that shape a file: what compiles it, and what the graph was traced through."""
        return ", ".join((cls.library(), *_traced_with()))

    def key(self, pooled: bool) -> EngineKey:
        """What names the compiled file of a variant."""
        self._weights = self._weights or network_digest(self._network)
        assert self.network_size is not None
        return EngineKey(
            weights=self._weights,
            code=code_digest(),
            engine=self.name,
            library=self.library_key(),
            target=self.target(),
            height=self.network_size[0],
            width=self.network_size[1],
            batch=self.batch,
            precision=self.precision,
            pooled=pooled,
        )

    def path(self, pooled: bool) -> Path:
        """Where the compiled file of a variant lies in the cache, or will."""
        return self._cache.path(self.key(pooled), self.model_name, self.suffix)

    def build(self, pooled: bool) -> tuple[bytes, str]:
        """The compiled file of a variant, from the cache or built into it: its content and where it came from."""
        report = self._reporter()
        content, origin = self._built(pooled, report)
        report("done", 1.0)
        return content, origin

    def _built(self, pooled: bool, report: Reporter, *, rebuild: bool = False) -> tuple[bytes, str]:
        def make() -> bytes:
            from vl4ad_model.engines import onnx_export

            assert self.network_size is not None
            log.info("compiling %s for %s at %dx%d, once", self.model_name, self.name, *self.network_size)
            report("exporting", 0.0)
            model = onnx_export.export(
                self._network,
                height=self.network_size[0],
                width=self.network_size[1],
                batch=self.batch,
                precision=self.precision,
                pooled=pooled,
            )
            self._check_cancelled()
            report("compiling", report.export_share)
            return self.compile(model, report)

        def wait() -> None:
            self._check_cancelled()
            report("waiting for another process that builds it", 0.0)

        return self._cache.get_or_build(
            self.key(pooled),
            self.model_name,
            self.suffix,
            make,
            waiting=wait,
            rebuild=rebuild,
        )

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise EngineError("the build was cancelled")

    def _reporter(self) -> Reporter:
        return Reporter(self.name, self.callback, self.export_share, self._cancelled)

    def cancel(self) -> None:
        """Let a build that is under way in another thread fail soon; libraries that cannot be stopped finish it first."""
        self._cancelled.set()

    def prepare(self, pooled: bool) -> None:
        """Make a variant ready to run.

        Raises:
            EngineError: it cannot be built or run here.
        """
        if self.ready(pooled):  # the other variant may be built meanwhile
            return
        with self._build_lock:
            if self.ready(pooled):
                return
            report = self._reporter()
            content, origin = self._built(pooled, report)
            problem, runner = "", None
            try:
                runner = self._loaded(content, report)
            except Exception as error:
                if not origin.startswith("from cache") or is_out_of_memory(error):
                    raise
                problem = str(error).partition("\n")[0]
            if runner is None:  # out here the exception no longer holds on to what was loaded
                # What this machine's library or driver refuses would be refused at every start.
                log.warning("%s is built again: it cannot be loaded (%s)", self.path(pooled).name, problem)
                content, origin = self._built(pooled, report, rebuild=True)
                runner = self._loaded(content, report)
            self._runners[pooled] = runner
            log.info("%s: %s", self.name, origin)
            report("done", 1.0)

    def _loaded(self, content: bytes, report: Reporter) -> Runner:
        """A runner that has run once, because the first run allocates."""
        assert self.network_size is not None
        report("loading", 0.95)
        runner = self.load(content)
        runner.run(np.zeros((self.batch, *self.network_size, 3), np.uint8))
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)  # errors of a GPU come late
        return runner

    # --- running --------------------------------------------------------------------------------------------------------

    def propose(self, images: np.ndarray, image_size: tuple[int, int] | None = None, *, pooled: bool = True) -> MaskProposals:
        import torch

        from vl4ad_model.network.proposals import MaskProposals

        assert self.network_size is not None
        if images.shape[1:] != (*self.network_size, 3) or images.dtype != np.uint8:
            raise EngineError(
                f"{self.name} was built for uint8 images of {self.network_size[0]}x{self.network_size[1]}, "
                f"not {images.dtype} {'x'.join(map(str, images.shape[1:]))}"
            )
        self.prepare(pooled)
        with self._runs:
            runner = self._runners.get(pooled) or self._runners.get(True)
            if runner is None:
                raise EngineError(f"{self.name} was closed")
            parts = [runner.run(chunk)[:] for chunk in self._chunks(images)]
        count = len(images)
        guide = None
        if self._network.config.colour_tolerance:
            # On a GPU scoring takes it along without waiting for the network.
            pixels = pinned(images) if self.device.startswith("cuda") else torch.from_numpy(images)
            guide = pixels.permute(0, 3, 1, 2)
        tensors = parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        tensors = [tensor[:count] for tensor in tensors]
        return MaskProposals(
            mask_logits=tensors[0],
            query_embeddings=tensors[1],
            pooled_embeddings=tensors[2] if pooled else None,
            pooled_valid=tensors[3] if pooled and self._network.clip.is_resnet else None,
            image_size=image_size or self.network_size,
            padded_size=self.network_size,
            images=guide,
        )

    def _chunks(self, images: np.ndarray):
        for first in range(0, len(images), self.batch):
            chunk = images[first : first + self.batch]
            missing = self.batch - len(chunk)
            yield np.concatenate((chunk, np.zeros((missing, *chunk.shape[1:]), np.uint8))) if missing else chunk

    def close(self) -> None:
        with self._close_lock, contextlib.ExitStack() as runs:
            for _ in range(self.parallel):  # those under way end first
                runs.enter_context(self._runs)
            for runner in self._runners.values():
                runner.close()
            self._runners.clear()


@functools.cache
def _traced_with() -> tuple[str, ...]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "open_clip_torch", "timm", "onnx"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name).split('+')[0]}")
    return tuple(found)


class Reporter:
    """Turns "this stage, this far" into `BuildProgress` with an estimate of what is left.

    Attributes:
        cancelled: set when nobody wants the build any more; who compiles looks at it.
    """

    def __init__(
        self, engine: str, callback: ProgressCallback | None, export_share: float, cancelled: threading.Event | None = None
    ) -> None:
        self._engine, self._callback, self._start = engine, callback, time.monotonic()
        self.export_share, self.cancelled = export_share, cancelled or threading.Event()
        self.used = False
        self._last = -1.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Report; calls within half a second of the last one are dropped, but for the end."""
        now = time.monotonic()
        if self.used and fraction < 1 and now - self._last < 0.5 and ":" in stage:
            return
        self.used, self._last = True, now
        elapsed = time.monotonic() - self._start
        eta = elapsed * (1 - fraction) / fraction if fraction > 0.02 else None
        if self._callback:
            with contextlib.suppress(Exception):  # whoever listens must not break the build
                self._callback(BuildProgress(self._engine, stage, fraction, elapsed, eta))
