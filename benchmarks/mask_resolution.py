"""What the resolution of masks and images costs the embedded model: `python benchmarks/mask_resolution.py [--model tiny]`.

First the mIoU that perfect masks would reach at a stride: each class's share of every cell, upsampled bilinearly and, at stride 4,
along the image's edges. Then the model on images that are scaled up, at their own size: mIoU of the known classes, AP and FPR95 of
held-out hazards.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from embedded_model import FIRST_HAZARD, Model

from vl4ad_model.evaluation.exact_metrics import exact_metrics_of
from vl4ad_model.evaluation.label_metrics import LabelMetrics, confusion_matrix, label_metrics
from vl4ad_model.evaluation.scored_pixels import split_pixels
from vl4ad_model.network.upsampling import STRIDE, blend_cells, cell_colours, nearest_cells, weights_by_colour
from vl4ad_model.training.config import DataSource
from vl4ad_model.training.data import IGNORED, Frame, find_frames, read_frame
from vl4ad_model.vocabulary import Vocabulary

KNOWN = 19


def known(frame: Frame) -> np.ndarray:
    return np.where(frame.labels < KNOWN, frame.labels, IGNORED).astype(np.uint8)


def perfect(frames: list[Frame], stride: int, tolerance: float = 0.0) -> LabelMetrics:
    """The metrics of labels that were averaged over cells of `stride` pixels and upsampled again.

    Args:
        tolerance: in grey levels; above 0 along the image's edges (`vl4ad_model.network.upsampling`), from stride 4.
    """
    counts = np.zeros((KNOWN, KNOWN + 1), np.int64)
    for frame in frames:
        labels = torch.from_numpy(frame.labels.astype(np.int64))
        shares = F.avg_pool2d(torch.stack([(labels == k).float() for k in range(KNOWN)])[None], stride)
        if tolerance:
            cells, width = (int(shares.shape[-2]), int(shares.shape[-1])), labels.shape[1]
            image, points = torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)[None], torch.arange(labels.numel())[None]
            index, bilinear = nearest_cells(points, width, cells)
            weights = weights_by_colour(image, cell_colours(image, cells), points, index, bilinear, tolerance)
            again = blend_cells(shares, index, weights)[0].argmax(0).view(labels.shape)
        else:
            again = F.interpolate(shares, scale_factor=stride, mode="bilinear", align_corners=False)[0].argmax(0)
        counts += confusion_matrix(again.numpy().astype(np.uint8), known(frame), KNOWN)
    return label_metrics(counts)


def scaled(model: Model, parts: dict[str, list[Frame]], scale: float) -> tuple[LabelMetrics, float, float]:
    """mIoU of all frames, AP and FPR95 of `held_out`, with images that many times as large."""
    words = model.words(Vocabulary.cityscapes())
    counts, ranked = np.zeros((KNOWN, KNOWN + 1), np.int64), []
    for part, frames in parts.items():
        for frame in frames:
            height, width = frame.labels.shape
            size = (round(width * scale), round(height * scale))
            larger = Frame(cv2.resize(frame.rgb, size, interpolation=cv2.INTER_CUBIC), frame.labels, frame.hazards)
            labels, anomaly = model.maps(model.look([larger])[0], words)
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            counts += confusion_matrix(labels, known(frame), KNOWN)
            if part == "held_out":
                anomaly = cv2.resize(anomaly, (width, height), interpolation=cv2.INTER_AREA)
                truth = np.where(frame.labels == IGNORED, IGNORED, frame.labels >= FIRST_HAZARD).astype(np.uint8)
                ranked.append(split_pixels(anomaly, truth))
    exact = exact_metrics_of(ranked)
    return label_metrics(counts), exact.average_precision, exact.fpr95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1] / "test/data/evaluation")
    parser.add_argument("--scales", type=float, nargs="*", default=[1.0, 1.5])
    arguments = parser.parse_args()
    parts = {
        part: [read_frame(f) for f in find_frames(DataSource("rendered", arguments.data / part))]
        for part in ("seen", "held_out", "quiet")
    }
    names = Vocabulary.cityscapes().names
    model = Model(arguments.model)
    every, tolerance = [frame for frames in parts.values() for frame in frames], model.config.colour_tolerance
    bounds = {f"perfect masks at stride {stride}": perfect(every, stride) for stride in (4, 2)}
    if tolerance:
        bounds["perfect masks at stride 4, along the image's edges"] = perfect(every, STRIDE, tolerance)
    for what, result in bounds.items():
        lowest = sorted(zip(result.iou.tolist(), names, strict=False))[:4]
        print(f"{what}: mIoU {result.miou:.3f}; " + ", ".join(f"{n} {v:.2f}" for v, n in lowest))
    for scale in arguments.scales:
        result, ap, fpr95 = scaled(model, parts, scale)
        print(f"images x {scale:g}: mIoU {result.miou:.3f}; held-out AP {ap:.3f}, FPR95 {fpr95:.3f}")


if __name__ == "__main__":
    main()
