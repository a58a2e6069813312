"""`vl4ad train`: train or fine-tune a mask decoder. `vl4ad train-names`: give it a branch for names it was not trained with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vl4ad_model.errors import TrainingError, Vl4adError
from vl4ad_model.out_of_memory import is_out_of_memory


@contextlib.contextmanager
def _too_little_memory_said() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, (Vl4adError, OSError)):
            raise
        if "DataLoader worker" in str(error):  # torch's words, whatever the reason was
            raise TrainingError("a process that loads images was killed, mostly for lack of memory: use fewer workers") from None
        if not is_out_of_memory(error):
            raise
        raise TrainingError("not enough memory: use a smaller batch_size, crop or points") from None


def train(
    config: Annotated[Path, typer.Option(help="YAML file that describes the run; see config/training/.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; resumes if it holds a checkpoint.")] = Path("runs/train"),
) -> None:
    """Train the mask decoder of a model under its frozen CLIP.

    Several processes: `torchrun --nproc-per-node N -m vl4ad_model.cli train --config FILE --out DIR`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from vl4ad_model.errors import MissingDependencyError
    from vl4ad_model.training.config import TrainingConfig
    from vl4ad_model.training.trainer import Trainer

    if find_spec("scipy") is None:
        raise MissingDependencyError("scipy", "train", "training")
    settings = TrainingConfig.from_yaml(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write to {out}: {error.strerror}") from None
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with _too_little_memory_said(), Progress(*columns, console=console) as progress:
        bar = progress.add_task("loading", total=settings.steps)

        def report(line: dict[str, Any]) -> None:
            progress.update(bar, completed=line["step"])
            if "total" in line:
                progress.update(bar, description=f"loss {line['total']:.3f}")
            if "validation" in line:
                numbers = ", ".join(f"{name} {'-' if value is None else value}" for name, value in line["validation"].items())
                progress.console.print(f"step {line['step']}: {numbers}{' (best so far)' if line.get('best') else ''}")
            if "resumed" in line:
                changed = ", ".join(f"{name} {value}" for name, value in line.get("changed", {}).items())
                progress.console.print(f"step {line['step']}: resumed{f', now with {changed}' if changed else ''}")
            if "stopped" in line:
                progress.console.print(f"step {line['step']}: stopped, {line['stopped']}")

        trainer = Trainer(settings, out, report)
        try:
            trainer.run()
        except KeyboardInterrupt:
            kept = (out / "checkpoint.pt").is_file()
            progress.console.print(
                f"interrupted at step {trainer.step}: " + ("the same command resumes" if kept else "before the first checkpoint")
            )
            raise
    if (out / "model/decoder.safetensors").is_file():
        console.print(
            f"[bold]{out / 'model'}[/bold] holds the weights; try: vl4ad segment IMAGE --model {out / 'model'}", soft_wrap=True
        )


def train_names(
    config: Annotated[Path, typer.Option(help="The YAML file that the decoder was trained with: its frames, cut-outs and crops.")],
    model: Annotated[Path, typer.Option(help="Folder of the trained model; its decoder.safetensors and config.json are replaced.")],
    crops: Annotated[int, typer.Option(min=1, help="Crops to look at.")] = 2000,
) -> None:
    """Fit the branch that judges words the decoder was not trained with, to things it was trained with.

    It takes minutes and leaves everything else of the decoder as it is. Fit it again after further training.
    """
    import dataclasses
    import json
    import tempfile

    from rich.console import Console
    from rich.progress import Progress

    from vl4ad_model import registry
    from vl4ad_model.image_files import write_bytes
    from vl4ad_model.network import checkpoint
    from vl4ad_model.training.config import TrainingConfig
    from vl4ad_model.training.trainer import Trainer

    if not (model / "decoder.safetensors").is_file():
        raise TrainingError(f"{model} is no folder of a trained model: it has no decoder.safetensors")
    settings = dataclasses.replace(TrainingConfig.from_yaml(config), model=str(model), start_from_weights=True, validation=())
    with (
        _too_little_memory_said(),
        tempfile.TemporaryDirectory() as unused,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        bar = progress.add_task("loading", total=crops)
        trainer = Trainer(settings, Path(unused))
        things = trainer.fit_naming(crops, lambda done: progress.update(bar, description="looking at crops", completed=done))
    checkpoint.save_decoder(trainer.network, model / "decoder.safetensors", half=True)
    write_bytes(model / "config.json", (json.dumps(trainer.config_values(), indent=1) + "\n").encode())
    if (model / registry.CHECKSUMS).is_file():
        registry.write_checksums(model)
    print(f"{model} can judge names it was not trained with: fitted to {things} things in {crops} crops")
