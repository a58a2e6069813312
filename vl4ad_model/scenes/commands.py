"""`vl4ad scenes`: render training scenes and bags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vl4ad_model.errors import SceneError

app = typer.Typer(no_args_is_help=True)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for images/, labels/ and frames/.")],
    count: Annotated[int, typer.Option(help="Number of frames.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the first frame; each next frame's is one more.")] = 0,
    split: Annotated[str, typer.Option(help="train, seen, held_out or quiet.")] = "train",
    height: Annotated[int, typer.Option()] = 384,
    width: Annotated[int, typer.Option()] = 640,
    cutouts: Annotated[Path | None, typer.Option(help="assets folder of the npm package @lobehub/fluent-emoji-3d.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Render frames with exact labels. Run it again to go on where it stopped."""
    import multiprocessing

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from vl4ad_model.scenes.cutouts import names_of
    from vl4ad_model.scenes.dataset import SPLITS, Recipe, render_one

    if split not in SPLITS:
        raise SceneError(f"split '{split}' is unknown: use {', '.join(SPLITS)}")
    if count < 1 or height < 64 or width < 64:
        raise SceneError("count must be at least 1 and the size at least 64x64")
    if cutouts is not None:
        names_of(cutouts)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SceneError(f"cannot write to {out}: {error.strerror}") from None
    recipe = Recipe(height, width, split, str(cutouts) if cutouts else None)
    tasks = [(recipe, seed + index, str(out)) for index in range(count)]
    failures = []
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, multiprocessing.get_context("spawn").Pool(workers) as pool:
        bar = progress.add_task(f"rendering to {out}", total=count)
        for problem in pool.imap_unordered(render_one, tasks):
            progress.advance(bar)
            if problem:
                failures.append(problem)
                progress.console.print(problem)
                if len(failures) > 5:
                    raise SceneError(f"too many failures, the last: {problem}")
    print(f"{count - len(failures)} frames in {out}" + (f", {len(failures)} failed" if failures else ""))
