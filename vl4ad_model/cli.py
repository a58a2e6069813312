"""The `vl4ad` command. Each sub-command's module is imported only when that sub-command is used."""

from __future__ import annotations

import importlib
import io
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl4ad_model.detections import MIN_AREA
from vl4ad_model.errors import ImageError, ModelNotFoundError, Vl4adError

if TYPE_CHECKING:
    import numpy as np

    from vl4ad_model.segmenter import Segmentation

USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
UsageError: Any = typer.BadParameter.__mro__[1]  # what the command line's own mistakes have in common; typer does not export it

# name -> (module, attribute, one line of help). The attribute is a typer app or a function.
LAZY: dict[str, tuple[str, str, str]] = {
    "evaluate": ("vl4ad_model.evaluation.commands", "evaluate_app", "Benchmark metrics on score maps, images or bags."),
    "calibrate": (
        "vl4ad_model.evaluation.commands",
        "calibrate",
        "The anomaly threshold for a wanted false-alarm rate.",
    ),
    "prompts": ("vl4ad_model.evaluation.commands", "prompts_app", "Check hazard prompts against ordinary driving."),
    "export": ("vl4ad_model.engines.commands", "export", "Compile a model for ONNX Runtime, OpenVINO or TensorRT."),
    "engines": ("vl4ad_model.engines.commands", "engines_app", "Look at and clean the cache of compiled engines."),
    "train": ("vl4ad_model.training.commands", "train", "Train or fine-tune a mask decoder."),
    "train-names": ("vl4ad_model.training.commands", "train_names", "Give a trained decoder a branch for new names."),
    "train-clip": ("vl4ad_model.training.clip_commands", "app", "Make the embedded model's CLIP from published files."),
    "scenes": ("vl4ad_model.scenes.commands", "app", "Render road scenes and bags with exact labels."),
}
BENCHMARKS: dict[str, tuple[str, str, str]] = {
    "network": ("vl4ad_model.benchmark", "benchmark_network", "Time and memory of every stage of a model."),
    "words": ("vl4ad_model.benchmark_words", "benchmark_words", "What encoding new words costs."),
    "metrics": ("vl4ad_model.evaluation.commands", "benchmark_metrics", "Speed of the anomaly metrics."),
    "engines": ("vl4ad_model.engines.commands", "benchmark_engines", "Every engine that works here, side by side."),
    "agreement": ("vl4ad_model.engines.agreement_command", "benchmark_agreement", "How far every engine is from PyTorch."),
    "node": ("vl4ad_ros.benchmark_node", "benchmark_node", "What the ROS node adds to the network's time."),
}


def build_app(arguments: list[str]) -> typer.Typer:
    """The command tree: real where `arguments` point, a line of help elsewhere."""
    words = [word for word in arguments if not word.startswith("-")]
    first, second = ([*words, "", ""])[:2]
    app = typer.Typer(
        help="VL4AD: segment every pixel, score how anomalous it is, and name new hazards in words.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command("segment")(segment)
    app.add_typer(models_app, name="models", help="List, fetch and verify models.")
    for name, entry in LAZY.items():
        _add(app, name, entry, wanted=name == first)
    benchmark = typer.Typer(no_args_is_help=True)
    for name, entry in BENCHMARKS.items():
        _add(benchmark, name, entry, wanted=first == "benchmark" and name == second)
    app.add_typer(benchmark, name="benchmark", help="Measure speed and memory on this machine.")
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from vl4ad_model.evaluation.outputs import version

        print(f"vl4ad {version()}")
        raise typer.Exit


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which version.")] = False,
) -> None:
    del version


def _add(app: typer.Typer, name: str, entry: tuple[str, str, str], *, wanted: bool) -> None:
    module, attribute, line = entry
    if not wanted:
        app.command(name, help=line)(lambda: None)
        return
    target: Any = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name, help=line)
    else:
        app.command(name)(target)


Images = Annotated[list[Path], typer.Argument(help="Image files, and folders of them.", show_default=False)]
Model = Annotated[str, typer.Option(help="tiny, fcclip-r50, fcclip-convnext-large, or a folder.")]
Hazards = Annotated[
    list[str] | None, typer.Option("--hazard", help="A hazard in words, alternatives joined by '|'; repeat for more.")
]


def segment(
    images: Images,
    model: Model = "tiny",
    hazard: Hazards = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="YAML file with the known classes; its hazards stay, --hazard adds to them.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("vl4ad_out"),
    classifier: Annotated[str | None, typer.Option(help="in_vocabulary, out_of_vocabulary or ensemble.")] = None,
    merge: Annotated[bool, typer.Option(help="Score classes of one superclass as one.")] = True,
    scoring: Annotated[str | None, typer.Option(help="Anomaly score: max or normalized; default: what suits the model.")] = None,
    network_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Fit images into this size, multiples of 32, such as 512x1024.")
    ] = None,
    legend: Annotated[bool, typer.Option("--legend", help="Add a colour legend below the overlay.")] = False,
    ignore_mask: Annotated[
        Path | None,
        typer.Option("--ignore-mask", help="Image that is white where nothing counts, such as the own bonnet."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="--json lists the areas that score above this, and those that a hazard names.")
    ] = 0.5,
    min_area: Annotated[float, typer.Option(min=0.0, max=1.0, help="Smallest of them, as a share of the image.")] = MIN_AREA,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, torch, onnx, openvino or tensorrt.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 (GPU) or bf16 (OpenVINO on a CPU that has it).")] = "fp32",
    offline: Annotated[bool, typer.Option(help="Never download.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Segment images: a label PNG, a score .npy and an overlay for each."""
    import json
    import math

    from rich.console import Console
    from rich.markup import escape

    from vl4ad_model import detections, image_files, visualization
    from vl4ad_model.engines.commands import ProgressLine
    from vl4ad_model.evaluation.outputs import check_writable
    from vl4ad_model.ignore_mask import IgnoreMask
    from vl4ad_model.segmenter import Segmenter
    from vl4ad_model.sizes import parse_size
    from vl4ad_model.vocabulary import Vocabulary

    size = parse_size(network_size) if network_size is not None else None
    if not math.isfinite(threshold):
        raise Vl4adError(f"threshold {threshold} is no number")
    check_writable(out, folder=True)
    if json_file:
        check_writable(json_file, folder=False)
    words = Vocabulary.from_yaml(vocabulary) if vocabulary else Vocabulary.cityscapes()
    words = words.adding_hazards(hazard or [])
    ignored = IgnoreMask.read(ignore_mask) if ignore_mask else None
    if ignored:
        print(f"ignored: {ignored.share:.0%} of the image ({ignored.name})")
    pictures = _pictures(images)
    with ProgressLine() as line:
        segmenter = Segmenter.load(
            model,
            device=device,
            engine=engine,
            precision=precision,
            network_size=size,
            vocabulary=words,
            classifier=classifier,
            merge_classes=merge,
            scoring=scoring,
            offline=offline,
            progress=line,
            words_progress=line.words,
        )
    Console(stderr=True).print(
        f"{escape(segmenter.notice)} [dim]({segmenter.engine_name}: {escape(segmenter.engine_reason)})[/dim]",
        highlight=False,
        soft_wrap=True,
    )
    if segmenter.unknown_words:
        print(segmenter.unknown_words)
    numbers, said = [], {""}
    for path, rgb in pictures:
        result = segmenter.segment(rgb)
        if ignored:
            if (complaint := ignored.complaint(rgb.shape[:2])) not in said:
                said.add(complaint)
                print(f"vl4ad: {complaint}", file=sys.stderr)
            result = ignored.apply(result)
        picture = visualization.overlay(rgb, result)
        image_files.write_labels(out / f"{path.stem}_labels.png", result.labels)
        image_files.write_scores(out / f"{path.stem}_anomaly.npy", result.anomaly)
        image_files.write_rgb(out / f"{path.stem}_overlay.png", visualization.with_legend(picture, result) if legend else picture)
        shares = _shares(result)
        score = {"max": float(result.anomaly.max()), "mean": float(result.anomaly.mean())}
        named = {entry.name: shares.get(entry.name, 0.0) for entry in words.hazards}
        if json_file:
            found = [each.to_json_dict() for each in detections.find(result, threshold=threshold, min_area=min_area)]
            numbers.append({"image": str(path), "shares": shares | named, "anomaly": score, "hazards": found})
        frequent = ", ".join(f"{name} {share:.0%}" for name, share in [(n, s) for n, s in shares.items() if n not in named][:4])
        asked = "".join(f"; hazard {name} {share:.1%}" for name, share in named.items())
        print(f"{path}: {frequent}{asked}; anomaly max {score['max']:.2f}, mean {score['mean']:.2f}")
    if json_file:
        content = {"model": segmenter.model_name, **words.to_json_dict(), "images": numbers}
        image_files.write_bytes(json_file, json.dumps(content, indent=1).encode())
    print(f"wrote labels, scores and overlays to {out}")


def _pictures(paths: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Every image once, in order. All are read before the first is returned, so that a bad one among many leaves no half-done
    folder; those that do not fit into memory are read again when their turn comes."""
    from vl4ad_model.evaluation.folders import find_images
    from vl4ad_model.image_files import read_rgb

    files = [file for path in paths for file in (find_images(path) if path.is_dir() else [path])]
    by_stem: dict[str, Path] = {}
    for path in dict.fromkeys(files):
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise Vl4adError(f"{other} and {path} would be written under the same name: give each its own --out")
    kept: dict[Path, np.ndarray] = {}
    room = 512 << 20
    bad: list[str] = []
    for path in by_stem.values():
        try:
            rgb = read_rgb(path)
        except ImageError as error:
            bad.append(str(error))
            continue
        if rgb.nbytes <= room:
            kept[path] = rgb
            room -= rgb.nbytes
    if bad:
        more = f" (and {len(bad) - 1} more: {'; '.join(bad[1:4])}{' ...' if len(bad) > 4 else ''})" if len(bad) > 1 else ""
        raise ImageError(f"{bad[0]}{more}")
    return ((path, kept.pop(path) if path in kept else read_rgb(path)) for path in by_stem.values())


def _shares(result: Segmentation) -> dict[str, float]:
    """Name -> share of the pixels, largest first, without those that are not there."""
    import numpy as np

    counts = np.bincount(result.labels.ravel(), minlength=256)
    order = sorted((i for i in range(len(result.vocabulary.names)) if counts[i]), key=lambda i: -counts[i])
    return {result.vocabulary.names[i]: int(counts[i]) / result.labels.size for i in order}


models_app = typer.Typer(no_args_is_help=True)


@models_app.command("list")
def models_list() -> None:
    """The models by name, what they are, and whether their files are here."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model.registry import MODELS, is_here

    table = Table("model", "here", "what it is", "licence")
    for info in MODELS.values():
        table.add_row(info.name, "yes" if is_here(info) else "no", info.summary, info.licence)
    Console().print(table)


@models_app.command("fetch")
def models_fetch(
    names: Annotated[list[str], typer.Argument(help="Model names.")],
    offline: Annotated[bool, typer.Option(help="Never download; only say what is missing.")] = False,
) -> None:
    """Download models into the cache; broken downloads resume, every file's sha256 is checked."""
    from vl4ad_model import registry

    for name in names:
        print(f"{name}: {registry.fetch(_info(name), offline=offline)}")


@models_app.command("verify")
def models_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Model names or folders; all that are here if none.")] = None,
) -> None:
    """Check the sha256 of every file of the models that are on this machine, and that the weights fit the network."""
    from vl4ad_model import registry

    for name in names or [name for name, info in registry.MODELS.items() if registry.is_here(info)]:
        if registry.untrained_notice(name):
            raise ModelNotFoundError(f"{name} has no weights: put clip.safetensors and decoder.safetensors (or a .pth) there")
        files = registry.locate(name, offline=True)
        registry.build_network(files)
        used = [path for path in (files.decoder, files.clip) if path]
        by_name = name in registry.MODELS and registry.MODELS[name].folder is None
        count = len(registry.verify_folder(used[0].parent, {path.name for path in used} if by_name else None))
        compared = f"{count} checksums and" if count else "no checksums to compare,"
        print(f"{name}: {compared} all tensors are right")


def _info(name: str):
    from vl4ad_model.registry import MODELS

    if name not in MODELS:
        raise ModelNotFoundError(f"no model '{name}': known are {', '.join(MODELS)}")
    return MODELS[name]


def run(arguments: list[str], app: typer.Typer | None = None) -> int:
    """Run a command; a user's mistake becomes one line on standard error and status 2, Ctrl-C status 130.

    Args:
        arguments: the words after the command's name.
        app: the command; None = `vl4ad`.

    Returns:
        the exit status.
    """
    try:
        command, name = (build_app(arguments), "vl4ad") if app is None else (app, None)
        status = command(arguments, prog_name=name, standalone_mode=False) or 0
        if status == INTERRUPTED:  # typer makes this of Ctrl-C, without a word
            print("vl4ad: interrupted", file=sys.stderr)
        return status
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "vl4ad"
        message = " ".join(error.format_message().split()).rstrip(".")
        if message:  # empty where a group without a command has just printed its help
            print(f"vl4ad: {message} ('{path} --help' says more)", file=sys.stderr)
        return USER_ERROR
    except typer.Abort:
        print("vl4ad: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Vl4adError as error:
        print(f"vl4ad: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("vl4ad: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has enough, and not all may be done: 1, as typer itself ends then
        return 1
    except OSError as error:  # no room, no permission, no such folder
        where = f"{error.filename}: " if error.filename else ""
        print(f"vl4ad: {where}{error.strerror or error}", file=sys.stderr)
        return USER_ERROR
    except SystemExit as stop:
        if stop.code == TERMINATED:
            print("vl4ad: terminated", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except ModuleNotFoundError as error:
        print(
            f"vl4ad: the package '{error.name}' is not installed: run 'make setup', or see 'ROS 2 quick start' in README.md",
            file=sys.stderr,
        )
        return USER_ERROR
    except Exception as error:
        from vl4ad_model.out_of_memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print("vl4ad: not enough memory: try smaller images or a smaller model", file=sys.stderr)
        return USER_ERROR


def hear_sigterm() -> None:
    """From here on SIGTERM ends this process as any error does, so that it cleans up; worker processes do not come through here."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `vl4ad` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be any bytes
    hear_sigterm()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
