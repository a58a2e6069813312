"""The README's picture: camera | classes with named hazards | anomaly score, for three frames of the evaluation set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vl4ad_model.errors import Vl4adError
from vl4ad_model.image_files import read_rgb, write_rgb
from vl4ad_model.segmenter import Segmenter
from vl4ad_model.visualization import anomaly_heatmap, overlay

GAP = 6
FRAMES = ["held_out/902603:", "seen/902904:concrete block|concrete barrier", "seen/900504:table|desk;refrigerator|fridge"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/example.png")
    parser.add_argument("--frame", action="append", help="part/NAME:prompt;prompt of test/data/evaluation; repeat for more rows")
    arguments = parser.parse_args()
    frames = arguments.frame or FRAMES
    segmenter = Segmenter.load(arguments.model, offline=True)
    plain = segmenter.vocabulary
    rows = []
    for frame in frames:
        name, _, prompts = frame.partition(":")
        part, _, stem = name.partition("/")
        segmenter.vocabulary = plain.with_hazards([p for p in prompts.split(";") if p])
        rgb = read_rgb(ROOT / f"test/data/evaluation/{part}/images/{stem}.jpg")
        result = segmenter.segment(rgb)
        rows.append(np.hstack([pad(rgb), pad(overlay(rgb, result)), pad(anomaly_heatmap(result.anomaly))]))
    picture = np.vstack(rows)[GAP:, GAP:]
    width = 1400
    picture = cv2.resize(picture, (width, round(picture.shape[0] * width / picture.shape[1])), interpolation=cv2.INTER_AREA)
    write_rgb(arguments.out, np.vstack([titles(width), picture]))
    print(arguments.out)


def titles(width: int) -> np.ndarray:
    """(30, width, 3) uint8: what the three columns are."""
    strip = Image.new("RGB", (width, 30), "white")
    draw = ImageDraw.Draw(strip)
    for column, text in enumerate(("camera", "classes, hazards by name", "anomaly score, black 0 to white 1")):
        draw.text((column * (width + GAP) / 3 + 4, 5), text, fill="black", font=ImageFont.load_default(size=17))
    return np.asarray(strip)


def pad(rgb: np.ndarray) -> np.ndarray:
    return np.pad(rgb, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


if __name__ == "__main__":
    try:
        main()
    except Vl4adError as error:
        sys.exit(f"example_picture: {error}")
