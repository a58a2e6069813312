"""`vl4ad train`: train or fine-tune a mask decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    config: Annotated[Path, typer.Option(help="YAML file that describes the run; see config/training/.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; resumes if it holds a checkpoint.")] = Path("runs/train"),
) -> None:
    """Train the mask decoder of a model under its frozen CLIP.

    Several processes: `torchrun --nproc-per-node N -m vl4ad_model.cli train --config FILE --out DIR`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from vl4ad_model.errors import TrainingError
    from vl4ad_model.training.config import TrainingConfig
    from vl4ad_model.training.trainer import Trainer

    settings = TrainingConfig.from_yaml(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write to {out}: {error.strerror}") from None
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
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
    console.print(
        f"[bold]{out / 'model'}[/bold] holds the weights; try: vl4ad segment IMAGE --model {out / 'model'}", soft_wrap=True
    )
