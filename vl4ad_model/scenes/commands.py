"""`vl4ad scenes`: render training scenes and bags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vl4ad_model.errors import SceneError

app = typer.Typer(no_args_is_help=True)

Height = Annotated[int, typer.Option(min=64, help="Image height in pixels.")]
Width = Annotated[int, typer.Option(min=64, help="Image width in pixels.")]


def _progress():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    return Progress("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for images/, labels/ and frames/.")],
    count: Annotated[int, typer.Option(min=1, help="Number of frames.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first frame; each further frame adds one.")] = 0,
    split: Annotated[str, typer.Option(help="train, seen, held_out or quiet.")] = "train",
    height: Height = 384,
    width: Width = 640,
    cutouts: Annotated[Path | None, typer.Option(help="assets folder of the npm package @lobehub/fluent-emoji-3d.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    assembled: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the hazards that are random shapes without a name.")
    ] = 0.0,
    everyday: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the streets with manhole covers, puddles, leafless trees and the like.")
    ] = 0.0,
    two_wheelers: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the streets with more bicycles, motorcycles and riders than usual.")
    ] = 0.0,
) -> None:
    """Render frames with exact labels. Run it again to go on where it stopped."""
    import os

    from vl4ad_model.scenes.cutouts import names_of
    from vl4ad_model.scenes.dataset import SPLITS, Recipe, missing, render_one, start_worker
    from vl4ad_model.scenes.renderer import require_renderer
    from vl4ad_model.worker_processes import WorkerKilledError, worker_processes

    if split not in SPLITS:
        raise SceneError(f"split '{split}' is unknown: use {', '.join(SPLITS)}")
    if cutouts is not None:
        names_of(cutouts)
    require_renderer()
    recipe = Recipe(
        height, width, split, str(cutouts) if cutouts else None,
        assembled=assembled, everyday=everyday, two_wheelers=two_wheelers,
    )  # fmt: skip
    seeds = missing(recipe, range(seed, seed + count), out)
    tasks = [(recipe, number, str(out)) for number in seeds]
    failures = 0
    threads = max(1, (os.cpu_count() or 1) // workers)
    try:
        with (
            worker_processes(min(workers, max(1, len(tasks))), start_worker, threads) as in_workers,
            _progress() as progress,
        ):
            bar = progress.add_task(f"rendering to {out}", total=count, completed=count - len(tasks))
            for failure in in_workers(render_one, tasks):
                progress.advance(bar)
                if failure:
                    failures += 1
                    if failure.fatal or failures > 5:
                        raise SceneError(failure.text)
                    progress.console.print(failure.text)
    except WorkerKilledError as error:
        raise SceneError(f"{error}; the same command goes on from there") from None
    except KeyboardInterrupt:
        print("vl4ad: interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    print(f"{count - failures} frames in {out}")
    if failures:
        raise SceneError(f"{failures} of {count} frames failed: the same command tries them again")


@app.command()
def bag(
    out: Annotated[Path, typer.Option(help="Folder for the bag; must not exist yet.")],
    seed: Annotated[int, typer.Option(min=0, help="Which street, traffic and light.")] = 900006,
    seconds: Annotated[float, typer.Option(min=0.1, max=300, help="Length of the drive, seconds.")] = 12.0,
    rate: Annotated[float, typer.Option(min=0.1, max=100, help="Frames per second.")] = 10.0,
    hazards: Annotated[
        str, typer.Option(help="Hazard types along the way, joined by commas; '' for none.")
    ] = "tyre,sofa,cardboard box,ladder",
    speed: Annotated[float, typer.Option(min=0.1, max=40, help="Camera speed in m/s.")] = 5.0,
    weather: Annotated[str, typer.Option(help="clear, cloudy, overcast, rain, fog, snow, dusk or night.")] = "cloudy",
    height: Height = 384,
    width: Width = 640,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 82,
) -> None:
    """Render a drive down one street into a rosbag2 (mcap) with images, labels and camera info."""
    from vl4ad_model.scenes.bag import write_bag
    from vl4ad_model.scenes.drive import DrivePlan, frames_of, make_drive

    names = tuple(name.strip() for name in hazards.split(",") if name.strip())
    plan = DrivePlan(seed, seconds, rate, names, height, width, speed, weather)
    world = make_drive(plan)
    with _progress() as progress:
        bar = progress.add_task(f"rendering {out}", total=plan.frames)
        for _ in write_bag(out, plan, world, frames_of(plan, world), quality=quality):
            progress.advance(bar)
    print(f"{plan.frames} frames, {len(world.hazards)} hazards in {out}")


@app.command("evaluation-set")
def evaluation_set(
    out: Annotated[Path, typer.Option(help="Folder for seen/, held_out/ and quiet/.")],
    cutouts: Annotated[Path, typer.Option(help="assets folder of the npm package @lobehub/fluent-emoji-3d.")],
) -> None:
    """Render the evaluation set again that is committed in test/data/evaluation."""
    from vl4ad_model.scenes.cutouts import names_of
    from vl4ad_model.scenes.evaluation_set import wanted_frames, write_set

    names_of(cutouts)
    if out.exists() and any(out.iterdir()):
        raise SceneError(f"{out} is not empty: name another folder")
    with _progress() as progress:
        bar = progress.add_task(f"rendering {out}", total=len(wanted_frames()))
        for _ in write_set(out, cutouts):
            progress.advance(bar)
    print(f"{len(wanted_frames())} frames in {out}")
