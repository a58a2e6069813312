"""`vl4ad benchmark metrics`: seconds for 20 frames of 1024 x 2048, single process, with few and with very many components."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vl4ad_model.evaluation import component_metrics, exact_metrics, pixel_metrics
from vl4ad_model.evaluation.scored_pixels import split_pixels

FRAMES, HEIGHT, WIDTH = 20, 1024, 2048
# What the public SegmentMeIfYouCan code takes for the same kind of frames on a 2-core EPYC server, for comparison.
PUBLIC = {"pixel metrics": "2.3 to 2.7", "few components": "2.0", "many components": "21 to 25"}
FEW, MANY = 7, 1090


def synthetic_frame(seed: int, raw_components: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """A frame with four objects, the upper eighth ignored, and about so many separate regions above 0.5.

    Returns:
        scores (H, W) float32 and labels (H, W) uint8.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    scores = rng.random((height, width), dtype=np.float32) * np.float32(0.4)
    for index in range(4):
        top, left = int(rng.integers(height // 4, height - 120)), width // 4 * index + int(rng.integers(0, width // 4 - 160))
        labels[top : top + 90, left : left + 140] = 1
    scores[labels == 1] += 0.45
    labels[: height // 8] = 255
    # On a grid, so that regions do not grow together.
    cells = [(row, column) for row in range(height // 8 + 8, height - 16, 16) for column in range(8, width - 16, 16)]
    for place in rng.permutation(len(cells))[: max(0, raw_components - 4)]:
        row, column = cells[place]
        if not labels[row - 2 : row + 12, column - 2 : column + 12].any():
            scores[row : row + 9, column : column + 9] += np.float32(0.5)
    return scores, labels


def measure(repeat: int = 3, frames: int = FRAMES) -> list[dict[str, Any]]:
    """Rows of {what, seconds, cpu_seconds, public} for all frames together, best of `repeat`; on a busy machine only the CPU
    seconds mean something."""
    few = [synthetic_frame(seed, FEW) for seed in range(frames)]
    many = [synthetic_frame(seed, MANY) for seed in range(frames)]
    track = component_metrics.TRACKS["obstacle"]

    def pixel() -> Any:
        counts = (pixel_metrics.count_pixels(split_pixels(scores, labels)) for scores, labels in few)
        return pixel_metrics.pixel_metrics(pixel_metrics.merge_pixel_counts(counts))

    def components(of: list[tuple[np.ndarray, np.ndarray]]) -> Any:
        parts = (component_metrics.match_components(scores, labels, 0.5, track) for scores, labels in of)
        return component_metrics.component_metrics(component_metrics.merge_components(parts))

    rows: list[tuple[str, str, Callable[[], Any]]] = [
        ("pixel metrics", PUBLIC["pixel metrics"], pixel),
        (f"component metrics, {FEW} raw components per frame", PUBLIC["few components"], lambda: components(few)),
        (
            f"component metrics, {_raw_components(many[0])} raw components per frame",
            PUBLIC["many components"],
            lambda: components(many),
        ),
        (
            "Fishyscapes, exact",
            "not measured",
            lambda: exact_metrics.exact_metrics_of([split_pixels(scores, labels) for scores, labels in few]),
        ),
    ]
    return [{"what": what, **_best(action, repeat), "public": public} for what, public, action in rows]


def _raw_components(frame: tuple[np.ndarray, np.ndarray]) -> int:
    import cv2

    scores, labels = frame
    return cv2.connectedComponents(((scores > 0.5) & (labels != 255)).astype(np.uint8), connectivity=8)[0] - 1


def _best(action: Callable[[], Any], repeat: int) -> dict[str, float]:
    wall, cpu = [], []
    for _ in range(repeat):
        began, began_cpu = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {"seconds": min(wall), "cpu_seconds": min(cpu)}
