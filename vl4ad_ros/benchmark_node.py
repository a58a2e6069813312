"""`vl4ad benchmark node`: what the ROS node adds to the network's time, measured in a real node over DDS."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from vl4ad_model.errors import MissingDependencyError, Vl4adError

INSIDE = ("decode", "resize", "scoring", "encode", "publish")
GOAL_MS = 15.0


@dataclass(frozen=True)
class NodeBenchmark:
    """Median times in ms. Stages are measured in the node, latency from an image's stamp to its anomaly score in another process.

    Attributes:
        engine: what ran the network, and where.
        stages: decode, resize, network, scoring, encode, publish.
        outside: all but the network.
        rate_in, rate_out: Hz.
        dropped: images that a newer one replaced.
        node_cpu, own_cpu: processor time of the node, and of this benchmark's sender and receiver, in ms per image answered.
    """

    image: str
    engine: str
    stages: dict[str, float]
    outside: float
    latency_p50: float
    latency_p99: float
    rate_in: float
    rate_out: float
    dropped: int
    node_cpu: float
    own_cpu: float


def benchmark_node(
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "tiny",
    engine: Annotated[str, typer.Option(help="auto, torch, onnx, openvino or tensorrt.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 (GPU) or bf16 (OpenVINO on a CPU that has it).")] = "fp32",
    height: Annotated[int, typer.Option(min=16, help="Image height in pixels.")] = 720,
    width: Annotated[int, typer.Option(min=16, help="Image width in pixels.")] = 1280,
    rate: Annotated[float, typer.Option(min=0.1, help="Images per second.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long images are sent, in seconds.")] = 12.0,
    hazards: Annotated[int, typer.Option(min=0, help="Number of hazard prompts.")] = 8,
    resolution: Annotated[str, typer.Option(help="publish_resolution: input or network.")] = "input",
    parallel: Annotated[int, typer.Option(min=1, max=16, help="parallel_images: images worked on at once.")] = 1,
    outputs: Annotated[
        str,
        typer.Option(
            help="Outputs that are subscribed to: segmentation, anomaly_score, anomaly_mask, overlay, overlay/compressed, hazards."
        ),
    ] = "segmentation,anomaly_score",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Send rgb8 images to a real node in another process and print where the time goes."""
    from rich.console import Console
    from rich.table import Table

    from vl4ad_model.evaluation.outputs import check_writable, write_json

    if json_file:
        check_writable(json_file, folder=False)
    result = measure_node(
        model=model,
        engine=engine,
        precision=precision,
        size=(height, width),
        rate=rate,
        seconds=seconds,
        hazards=hazards,
        resolution=resolution,
        parallel=parallel,
        topics=tuple(outputs.split(",")),
    )
    table = Table("stage", "p50, ms", title=f"{model}, {result.image} at {rate:g} Hz, {result.engine}", title_justify="left")
    for stage, milliseconds in result.stages.items():
        table.add_row(stage, f"{milliseconds:.1f}")
    table.add_section()
    table.add_row(f"outside the network (goal {GOAL_MS:g} ms)", f"{result.outside:.1f}")
    table.add_row("latency, stamp to anomaly score received, p50", f"{result.latency_p50:.1f}")
    table.add_row("latency p99", f"{result.latency_p99:.1f}")
    table.add_row("images in / out, Hz", f"{result.rate_in:.1f} / {result.rate_out:.1f}")
    table.add_row("dropped", str(result.dropped))
    table.add_row("processor time per image answered: node", f"{result.node_cpu:.1f}")
    table.add_row("processor time per image answered: sender and receiver", f"{result.own_cpu:.1f}")
    Console().print(table)
    if json_file:
        write_json(json_file, asdict(result))


def measure_node(
    *,
    model: str,
    engine: str,
    precision: str,
    size: tuple[int, int],
    rate: float,
    seconds: float,
    hazards: int,
    resolution: str,
    parallel: int,
    topics: tuple[str, ...],
) -> NodeBenchmark:
    """Run the node and measure.

    Raises:
        MissingDependencyError: no rclpy.
        Vl4adError: the node does not start, or answers nothing.
    """
    try:
        from vl4ad_ros import images
        from vl4ad_ros.detector_client import DetectorClient
    except ModuleNotFoundError:
        raise MissingDependencyError("rclpy", "ros", "the node's benchmark") from None
    import numpy as np
    from std_msgs.msg import Header

    from vl4ad_ros.outputs import TYPES

    if unknown := [name for name in topics if name not in TYPES]:
        raise Vl4adError(f"output '{unknown[0]}' is unknown: use {', '.join(TYPES)}")

    from vl4ad_ros.detector_process import DetectorProcess, own_domain

    domain = own_domain()
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    picture = np.stack((x % 256, y % 256, (x + y) % 256), axis=-1).astype(np.uint8)
    settings = {
        "model": model,
        "engine": engine,
        "precision": precision,
        "publish_resolution": resolution,
        "parallel_images": parallel,
        "hazard_prompts": [f"hazard {i}|danger {i}" for i in range(hazards)] or "",
    }
    with DetectorProcess(settings, domain=domain) as detector:
        detector.wait_until_active()
        with DetectorClient(domain=domain, topics=topics, stamps_only=True) as user:
            image = images.from_array(picture, "rgb8", Header(frame_id="camera"))
            user.wait_until_connected()
            # An engine that is compiled first is waited for; what is measured is the steady state.
            user.wait_until_built()
            _send(user, image, rate, 2.0)
            for kept in user.collected.outputs.values():
                kept.clear()
            node_cpu, own_cpu = detector.cpu_seconds(), time.process_time()
            sent, took = _send(user, image, rate, seconds)
            node_cpu, own_cpu = detector.cpu_seconds() - node_cpu, time.process_time() - own_cpu
            user.wait_for(lambda c: sent[-1] in c.outputs[topics[-1]], timeout=5)
            # The next diagnostics message covers the last ten seconds.
            user.collected.diagnostics.pop("vl4ad_detector: camera", None)
            camera = user.wait_for(lambda c: c.diagnostics.get("vl4ad_detector: camera"), timeout=5) or {}
            node = _node(user.collected)
            received = user.collected.outputs[topics[-1]]
            ages = [received[stamp].when - (stamp[0] + stamp[1] * 1e-9) for stamp in sent if stamp in received]
    if not ages:
        raise Vl4adError("the detector answered no image")
    stages = {name: float(camera[f"{name} p50 (ms)"]) for name in (*INSIDE[:2], "network", *INSIDE[2:])}
    return NodeBenchmark(
        image=f"{size[1]}x{size[0]} rgb8",
        engine=f"{node.get('engine')} on {node.get('device')}, {node.get('precision')}",
        stages=stages,
        outside=sum(stages[name] for name in INSIDE),
        latency_p50=float(np.percentile(ages, 50)) * 1e3,
        latency_p99=float(np.percentile(ages, 99)) * 1e3,
        rate_in=len(sent) / took,
        rate_out=len(ages) / took,
        dropped=len(sent) - len(ages),
        node_cpu=1e3 * node_cpu / len(ages),
        own_cpu=1e3 * own_cpu / len(ages),
    )


def _node(collected) -> dict[str, str]:
    return collected.diagnostics.get("vl4ad_detector: detector", {})


def _send(user, image, rate: float, seconds: float) -> tuple[list[tuple[int, int]], float]:
    """Send one message at a steady rate, stamped anew, as a camera's driver does; the stamps, and how long it took."""
    stamps, began = [], time.monotonic()
    for index in range(max(1, round(rate * seconds))):
        time.sleep(max(0.0, began + index / rate - time.monotonic()))
        image.header.stamp = user.now()
        stamps.append(user.send_message(image))
    return stamps, max(time.monotonic() - began, len(stamps) / rate)
