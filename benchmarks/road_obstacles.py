"""The embedded model on photographs of real obstacles: `python benchmarks/road_obstacles.py CLONES --out FOLDER [--model tiny]`.

CLONES holds clones of the repositories that road_obstacles.yaml names. Their photographs and masks made from our outlines are
written to FOLDER in SegmentMeIfYouCan's layout, so that `vl4ad evaluate images --images FOLDER --track obstacle` reads them, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vl4ad_model.evaluation.exact_metrics import exact_metrics_of
from vl4ad_model.evaluation.scored_pixels import split_pixels
from vl4ad_model.image_files import read_rgb, write_labels, write_rgb
from vl4ad_model.segmenter import Segmenter
from vl4ad_model.visualization import anomaly_heatmap, overlay

MARGIN = 3  # pixels around an outline that are not evaluated
IGNORED = 255


def filled(shape: tuple[int, int], outline: list[list[int]]) -> np.ndarray:
    """(H, W) bool: inside the outline."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.asarray(outline, np.int32)], 1)
    return mask.astype(bool)


def truth_of(photograph: dict[str, Any], shape: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(H, W) uint8 with 0 road, 1 obstacle, 255 not evaluated; and each obstacle's mask."""
    obstacles = {name: filled(shape, outline) for name, outline in photograph.get("obstacles", {}).items()}
    truth = np.where(filled(shape, photograph["road"]), 0, IGNORED).astype(np.uint8)
    for outline in photograph.get("ignored", []):
        truth[filled(shape, outline)] = IGNORED
    for mask in obstacles.values():
        truth[cv2.dilate(mask.astype(np.uint8), np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0] = IGNORED
    for mask in obstacles.values():
        truth[mask] = 1
    return truth, obstacles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threshold", type=float, default=0.5, help="an obstacle is found if half of its pixels score above it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    listed = yaml.safe_load((Path(__file__).parent / "road_obstacles.yaml").read_text())
    missing = sorted({p["file"].partition("/")[0] for p in listed["photographs"] if not (arguments.clones / p["file"]).is_file()})
    if missing:
        commands = "\n".join(f"  git clone --depth 1 {listed['repositories'][name]} {arguments.clones / name}" for name in missing)
        raise SystemExit(f"photographs are missing in {arguments.clones}; get them with\n{commands}")
    for folder in ("images", "labels_masks", "pictures"):
        (arguments.out / folder).mkdir(parents=True, exist_ok=True)
    segmenter = Segmenter.load(arguments.model, offline=True)
    pixels, found, alarms = [], {}, {}
    for photograph in listed["photographs"]:
        rgb = read_rgb(arguments.clones / photograph["file"])
        truth, obstacles = truth_of(photograph, rgb.shape[:2])
        result = segmenter.segment(rgb)
        pixels.append(split_pixels(result.anomaly, truth))
        stem = Path(photograph["file"]).stem
        for name, mask in obstacles.items():
            found[f"{stem}: {name}"] = float((result.anomaly[mask] > arguments.threshold).mean())
        alarms[stem] = float((result.anomaly[truth == 0] > arguments.threshold).mean())
        write_rgb(arguments.out / "images" / f"{stem}.png", rgb)
        write_labels(arguments.out / "labels_masks" / f"{stem}_labels_semantic.png", truth)
        outlined = rgb.copy()
        outlined[truth == IGNORED] //= 2
        outlined[truth == 1] = (255, 220, 0)
        write_rgb(
            arguments.out / "pictures" / f"{stem}.png",
            np.hstack([rgb, outlined, overlay(rgb, result), anomaly_heatmap(result.anomaly)]),
        )
    metrics = exact_metrics_of(pixels)
    summary = {
        "photographs": len(alarms),
        "obstacles": len(found),
        "found": sum(share > 0.5 for share in found.values()),
        "AP": metrics.average_precision,
        "FPR95": metrics.fpr95,
        "road_above_threshold": alarms,
        "share_of_obstacle_above_threshold": found,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=1))
    for name, share in found.items():
        print(f"{share:6.1%} of {name}")
    for name, share in alarms.items():
        print(f"{share:7.2%} of the road of {name}")
    ranked = f"AP {metrics.average_precision:.3f}, FPR95 {metrics.fpr95:.4f}"
    print(f"{summary['found']} of {len(found)} obstacles found; pixels of roads and obstacles: {ranked}")


if __name__ == "__main__":
    main()
