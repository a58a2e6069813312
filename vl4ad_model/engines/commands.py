"""`vl4ad export`, `vl4ad engines` and `vl4ad benchmark engines`: options in, files and a short table out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl4ad_model.errors import EngineError, Vl4adError, one_line
from vl4ad_model.out_of_memory import is_out_of_memory
from vl4ad_model.sizes import parse_size

if TYPE_CHECKING:
    from vl4ad_model.engines.base import BuildProgress
    from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig

engines_app = typer.Typer(no_args_is_help=True)
_SUFFIXES = (".onnx", ".blob", ".plan", ".engine", ".trt", ".xml", ".bin")

Model = Annotated[str, typer.Option(help="tiny, fcclip-r50, fcclip-convnext-large, or a folder.")]
Untrained = Annotated[bool, typer.Option(help="Deterministic weights: needs no download, takes the same time.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")]


def export(
    model: Model = "tiny",
    engine: Annotated[str, typer.Option(help="onnx, openvino or tensorrt.")] = "onnx",
    height: Annotated[int, typer.Option(help="Image height, a multiple of 32; 0 = the model's own.")] = 0,
    width: Annotated[int, typer.Option(help="Image width, a multiple of 32; 0 = the model's own.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Images per run.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32; fp16 (onnx and tensorrt) or bf16 (openvino).")] = "fp32",
    target: Annotated[str, typer.Option(help="GPUs to build for, as sm_86,sm_89; empty = the one in this machine.")] = "",
    pooled: Annotated[
        bool | None, typer.Option(help="Include CLIP's out-of-vocabulary branch; default: as the model needs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file or folder to write; default: the engine cache only.")] = None,
    untrained: Untrained = False,
    offline: Annotated[bool, typer.Option(help="Never download.")] = False,
) -> None:
    """Compile a model for ONNX Runtime, OpenVINO or TensorRT, without running it. Prompts are not part of it."""
    from vl4ad_model import engines
    from vl4ad_model.engines import tensorrt_engine
    from vl4ad_model.engines.cache import write_file
    from vl4ad_model.image_files import MAX_SIDE

    if engine not in engines.ENGINES[2:]:
        raise EngineError(f"engine '{engine}' cannot be exported: use {', '.join(engines.ENGINES[2:])}")
    if precision not in engines.PRECISIONS:
        raise EngineError(f"precision '{precision}' is unknown: use {', '.join(engines.PRECISIONS)}")
    if engine == "openvino" and precision == "fp16":
        raise EngineError("engine openvino runs on the CPU, in fp32 or bf16: fp16 costs accuracy there and gains nothing")
    if precision == "bf16":
        engines.check_bfloat16(engine)
    targets = [tensorrt_engine.parse_target(text) for text in target.split(",")] if target else [""]
    if target and engine != "tensorrt":
        raise EngineError("--target only applies to engine tensorrt")
    suffix = engines.compiled_class(engine).suffix
    if out is not None and out.suffix.lower() in _SUFFIXES and out.suffix != suffix:
        raise EngineError(f"--out {out}: a file for {engine} ends in {suffix}; without an ending it is a folder")
    if out is not None and out.suffix == suffix and len(targets) > 1:
        raise EngineError("several targets need a folder for --out, not a file")
    if out is None and batch > 1:
        raise EngineError(f"--batch {batch} needs --out: from the cache only engines for one image are used")
    if out is not None:
        from vl4ad_model.evaluation.outputs import check_writable

        check_writable(out, folder=out.suffix != suffix)
    engines.require(engine)
    for wanted in filter(None, targets):
        tensorrt_engine.check_target(wanted)
    if engine == "tensorrt" and not target:
        import torch

        if not torch.cuda.is_available():
            raise EngineError("no GPU here: name the one to build for: --target sm_86 (RTX 30), sm_89 (RTX 40), sm_120 (RTX 50)")
    name, network, config = _network(model, untrained, offline)
    own = config.network_size or (512, 1024)
    size = (height or own[0], width or own[1])
    if min(size) < 32 or max(size) > MAX_SIDE or any(side % 32 for side in size):
        raise EngineError(f"size {size[0]}x{size[1]} cannot be exported: height and width must be multiples of 32 up to {MAX_SIDE}")
    with_pooled = config.classifier != "in_vocabulary" if pooled is None else pooled
    for wanted in targets:
        with ProgressLine() as line:
            compiled = engines.compiled_class(engine)(
                network,
                network_size=size,
                device="cuda" if engine == "tensorrt" else "cpu",
                precision=precision,
                model_name=name,
                batch=batch,
                progress=line,
            )
            if isinstance(compiled, tensorrt_engine.TensorRTEngine):
                compiled.target_capability = wanted
            try:
                content, origin = compiled.build(with_pooled)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise EngineError(f"memory ran out at {size[0]}x{size[1]}, batch {batch}: {one_line(error)}") from None
        path = compiled.path(with_pooled)
        if out is None and origin.startswith("built, not"):
            raise EngineError(f"{path.name} was {origin}: set VL4AD_CACHE to a writable folder, or use --out")
        if out is not None:
            is_file = out.suffix == suffix
            tag = f"-{wanted}" if wanted else ""
            file_name = f"{name}-{size[0]}x{size[1]}-b{batch}-{precision}{'-pooled' if with_pooled else ''}{tag}{compiled.suffix}"
            path = out if is_file else out / file_name
            write_file(path, content)
        print(f"{path}: {len(content) / 1e6:.1f} MB, {compiled.library()}, {origin.split(' (')[0]}")


@engines_app.command("list")
def engines_list(json_file: JsonFile = None) -> None:
    """The engines that work on this machine, and the compiled files in the cache."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from vl4ad_model import engines
    from vl4ad_model.engines.cache import EngineCache
    from vl4ad_model.evaluation.outputs import write_json

    console = Console()
    table = Table("engine", "on this machine")
    here: dict[str, str] = {}
    for name in engines.ENGINES[1:]:
        here[name] = _availability(name)
        table.add_row(name, escape(here[name]))
    console.print(table)
    cache = EngineCache()
    entries = cache.entries()
    files = Table(Column("file", overflow="fold"), "MB", "for", "made", title=f"{cache.folder}")
    for entry in entries:
        key = entry.description.get("key", {})
        state = escape(str(entry.description.get("made", ""))) if entry.whole else "[red]broken, will be built again[/red]"
        files.add_row(escape(entry.path.name), f"{entry.size / 1e6:.1f}", escape(str(key.get("target", ""))), state)
    console.print(files if entries else f"no compiled engines in {cache.folder}", soft_wrap=True, highlight=False)
    if json_file:
        listed = [{"file": e.path.name, "bytes": e.size, "whole": e.whole, **e.description} for e in entries]
        write_json(json_file, {"engines": here, "folder": str(cache.folder), "files": listed})


@engines_app.command("clean")
def engines_clean(
    everything: Annotated[bool, typer.Option("--all", help="Also remove engines that could still be used.")] = False,
) -> None:
    """Remove broken and outdated compiled files from the cache."""
    from vl4ad_model import engines
    from vl4ad_model.engines.cache import EngineCache

    here = {}
    for name in engines.ENGINES[2:]:
        with contextlib.suppress(Vl4adError):  # not installed, or not whole
            engines.require(name)
            here[name] = engines.compiled_class(name).library_key()
    cleaned = EngineCache().clean(here, everything=everything)
    for path in cleaned.removed:
        print(f"removed {path.name}")
    for path, why in cleaned.kept.items():
        print(f"kept {path.name}: {why}")
    print(f"{len(cleaned.removed)} files removed")


def benchmark_engines(
    model: Model = "tiny",
    sizes: Annotated[str, typer.Option(help="HEIGHTxWIDTH, several joined by commas; default: the model's own.")] = "",
    only: Annotated[str, typer.Option("--engines", help="Some of torch,onnx,openvino,tensorrt; default: all that work here.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 (GPU) or bf16 (openvino).")] = "fp32",
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 = all.")] = 0,
    repeat: Annotated[int, typer.Option(min=3, help="Timed images per engine; engines take turns.")] = 50,
    hazards: Annotated[int, typer.Option(help="Number of hazard prompts.")] = 8,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also print a lower bound: FLOPs and mask bytes at this device's rates.")
    ] = False,
    untrained: Untrained = False,
    json_file: JsonFile = None,
) -> None:
    """Every engine that works here, side by side: backbone alone, network, scoring; ms p50 and p99, and memory."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model import engines
    from vl4ad_model.engines.benchmark import floor_of, measure
    from vl4ad_model.evaluation.outputs import check_writable, write_json
    from vl4ad_model.evaluation.results import plain

    if json_file:
        check_writable(json_file, folder=False)

    if unknown := [name for name in only.split(",") if name.strip() and name.strip() not in engines.ENGINES[1:]]:
        raise EngineError(f"engine '{unknown[0].strip()}' is unknown: use {', '.join(engines.ENGINES[1:])}")
    name, network, config = _network(model, untrained, offline=True)
    wanted = [_size(text) for text in sizes.split(",")] if sizes else [config.network_size or (512, 1024)]
    rows: list[dict[str, Any]] = []
    for size in wanted:
        with ProgressLine() as line:
            rows += measure(network, name, size, only, device, precision, threads or None, repeat, hazards, line)
    floors = [floor_of(network, size, device, precision, threads or None) for size in wanted] if floor else []
    columns = ("engine", "size", "stage", "p50 ms", "p99 ms", "CPU ms", "x backbone", "MB")
    table = Table(*columns, title=f"{model}, {precision}, {threads or 'all'} CPU threads, {repeat} images per engine")
    for row in rows:
        if row.get("error"):
            continue
        table.add_row(
            row["engine"],
            row["size"],
            row["stage"],
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['cpu_ms']:.1f}",
            f"{row['times_backbone']:.2f}",
            f"{row['memory_mb']:.0f}" if row["memory_mb"] else "",
        )
    console = Console()
    console.print(table)
    for row in rows:
        if row.get("error"):
            console.print(f"not measured: {row['error']}", highlight=False, markup=False, soft_wrap=True)
    for least in floors:
        console.print(
            f"floor at {least['size']}: network {least['network_ms']:.2f} ms ({least['flops'] / 1e9:.1f} GFLOP at the "
            f"{least['flops_per_second'] / 1e12:.2f} TFLOP/s of a large matrix product here), scoring {least['scoring_ms']:.2f} ms "
            f"({least['mask_bytes'] / 1e6:.1f} MB of masks read once at {least['bytes_per_second'] / 1e9:.0f} GB/s)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if json_file:
        write_json(json_file, plain(rows + [{"floor": least} for least in floors]))
    if all(row.get("error") for row in rows):
        raise EngineError("no engine was measured")


def _network(model: str, untrained: bool, offline: bool) -> tuple[str, FCCLIP, FCCLIPConfig]:
    """(name, network, configuration); `untrained` needs no files for the models that are fetched."""
    from vl4ad_model import registry

    info = registry.MODELS.get(model)
    if untrained and info is not None and info.folder is None:
        from vl4ad_model.network.deterministic import fill_deterministically
        from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
        from vl4ad_model.network.uninitialized import Uninitialized

        config = FCCLIPConfig.from_dict(info.config)
        with Uninitialized():
            network = FCCLIP(config).eval()
        fill_deterministically(network)
        return f"{model}-untrained", network.requires_grad_(False), config
    files = registry.locate(model, offline=offline)
    if not untrained and (files.decoder is None or files.clip is None):
        raise EngineError(f"model {files.name} has no weights (decoder.safetensors and clip.safetensors): add --untrained to go on")
    network, config = registry.build_network(files)
    return files.name, network, config


def _size(text: str) -> tuple[int, int]:
    size = parse_size(text)
    if min(size) < 32 or any(side % 32 for side in size):
        raise EngineError(f"size '{text}' must be multiples of 32, for example 384x640")
    return size


def _availability(name: str) -> str:
    import torch

    from vl4ad_model import engines

    gpu = torch.cuda.is_available()
    if name == "torch":
        return f"torch {torch.__version__} on cpu" + (" and cuda" if gpu else "")
    if lacking := engines.missing(name):
        return f"no: '{lacking}' is not installed (pip install 'vl4ad_ros[{engines.pip_extra(name)}]')"
    try:
        engines.require(name)
    except EngineError as error:
        return f"no: {error}"
    if name == "tensorrt":
        from vl4ad_model.engines.tensorrt_engine import library

        module = library()
        return f"{module.__name__} {module.__version__}" + ("" if gpu else ": builds with --target, runs only with a GPU")
    if name == "onnx":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__} on cpu"
    import openvino

    return f"openvino {openvino.__version__} on cpu"


_MANY_WORDS = 20  # fewer are encoded before anybody has read that they are


class ProgressLine:
    """Builds of engines and encoding of words on standard error: one bar on a terminal, a line per stage elsewhere, nothing where
    there is nothing to do."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=1.0)
        self._stage = ""
        self._ended = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._bar.live.is_started:
            self._bar.stop()

    def words(self, done: int, total: int) -> None:
        """That many of so many words are encoded."""
        if done == total:
            self.__exit__()
            self._ended = False
        elif self._console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, completed=done / total, description="encoding words, the first time only")
        elif not done and total >= _MANY_WORDS:
            self._console.print(f"encoding {total} words, the first time only", highlight=False)

    def __call__(self, progress: BuildProgress) -> None:
        stage, _, _ = progress.stage.partition(":")
        if self._ended:
            return
        if self._console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, completed=progress.fraction, description=f"{progress.engine}: {progress.stage}")
        elif stage not in (self._stage, "loading", "done"):
            self._console.print(str(progress), highlight=False, markup=False, soft_wrap=True)
        self._stage = stage
