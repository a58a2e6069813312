"""What computing large maps strip by strip brings with OpenVINO: `python benchmarks/strips.py [--model tiny] [--size 384x640]`.

The frozen backbone and the whole network, each with and without (vl4ad_model/engines/strips.py), with one thread and with two; all
take turns. Their outputs are compared, too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vl4ad_model import registry
from vl4ad_model.engines import onnx_export
from vl4ad_model.engines.strips import in_strips
from vl4ad_model.errors import Vl4adError
from vl4ad_model.sizes import parse_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", default="384x640", help="HEIGHTxWIDTH")
    parser.add_argument("--repeat", type=int, default=60)
    arguments = parser.parse_args()
    height, width = parse_size(arguments.size)

    import openvino
    from rich.console import Console
    from rich.table import Table

    network, _ = registry.build_network(registry.locate(arguments.model, offline=True))
    network.eval()
    core = openvino.Core()
    models = {
        "backbone alone": onnx_export.export_backbone(network, height=height, width=width),
        "network": onnx_export.export(network, height=height, width=width, pooled=True),
    }
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    requests = {}
    for threads, (name, model), cut in itertools.product((1, 2), models.items(), (False, True)):
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        content = (in_strips(model) if cut else model).SerializeToString()
        compiled = core.compile_model(core.read_model(content), "CPU", options | {"INFERENCE_NUM_THREADS": threads})
        requests[threads, name, cut] = compiled.create_infer_request()
    answers = {key: [array.copy() for array in request.infer({0: image}).values()] for key, request in requests.items()}
    seconds: dict[tuple[int, str, bool], list[float]] = {key: [] for key in requests}
    for _ in range(arguments.repeat):
        for key, request in requests.items():
            began = time.perf_counter()
            request.infer({0: image})
            seconds[key].append(time.perf_counter() - began)

    table = Table("threads", "", "whole maps, p50 ms", "strips, p50 ms", "ratio", "largest difference")
    for threads, name in itertools.product((1, 2), models):
        whole, strips = (1e3 * float(np.median(seconds[threads, name, cut])) for cut in (False, True))
        pairs = zip(answers[threads, name, False], answers[threads, name, True], strict=True)
        difference = max(float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) for a, b in pairs)
        table.add_row(str(threads), name, f"{whole:.1f}", f"{strips:.1f}", f"{strips / whole:.3f}", f"{difference:.1e}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except Vl4adError as error:
        sys.exit(f"strips: {error}")
