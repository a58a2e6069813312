"""What following things over time brings: `python benchmarks/tracking.py BAG ... [--hazard "tyre|tire"]`.

For recorded drives with labels (images and class labels with the same stamps and `hazards.json`, as `vl4ad scenes bag` writes them)
the areas that the node would list, by the number of images in which a thing must have been seen (`min_hazard_images`): on labelled
hazards (a fifth of their pixels or more) and elsewhere. Then what the former are called, in each image for itself and followed;
right for a hazard that no prompt names is no name.

The drives of docs/ros.md are test/data/demo_bag and those of

    vl4ad scenes bag --seconds 20 --seed 910001 --weather clear --hazards "tyre,sofa,cardboard box,ladder" --out clear
    vl4ad scenes bag --seconds 20 --seed 910002 --weather overcast --hazards "suitcase,traffic cone,dog,wheelbarrow" --out overcast
    vl4ad scenes bag --seconds 20 --seed 910003 --weather rain --hazards "refrigerator,chair,trash can,bathtub" --out rain
    vl4ad scenes bag --seconds 20 --seed 910004 --weather dusk --hazards "" --out dusk
    vl4ad scenes bag --seconds 20 --seed 910005 --weather cloudy --hazards "deer,barrel,rock,table" --out cloudy
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vl4ad_model import detections
from vl4ad_model.detections import Detection
from vl4ad_model.errors import Vl4adError
from vl4ad_model.evaluation import bags
from vl4ad_model.evaluation.scored_pixels import ANOMALY, IGNORE
from vl4ad_model.evaluation.sources import FrameFailure
from vl4ad_model.segmenter import Segmenter
from vl4ad_model.tracking import Tracker

MIN_SHARE = 0.2
MIN_IMAGES = (1, 2, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG")
    parser.add_argument("--model", default="tiny")
    parser.add_argument(
        "--hazard", action="append", default=[], help="A prompt; without any, the bag's hazards that training knew, by name."
    )
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--json", type=Path, help="Write the numbers here.")
    arguments = parser.parse_args()
    try:
        segmenter = Segmenter.load(arguments.model, offline=True)
        results = {str(bag): measure(segmenter, bag, arguments.hazard, arguments.threshold) for bag in arguments.bags}
    except Vl4adError as error:
        sys.exit(f"tracking: {error}")
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(segmenter: Segmenter, bag: Path, prompts: list[str], threshold: float) -> dict:
    """One drive: counts of areas, and of names."""
    source = bags.open_bag(bag, label_values="classes", hazard_names=True)
    if not prompts:
        if source.hazards_file() is None:
            raise Vl4adError(f"{bag} has no hazards.json: say what to look for with --hazard")
        hazards = json.loads((bag / "hazards.json").read_text())["hazards"].values()
        prompts = sorted({hazard["name"] for hazard in hazards if hazard["split"] == "seen"})
    segmenter.vocabulary = segmenter.vocabulary.with_hazards(prompts)
    named = {alternative for hazard in segmenter.vocabulary.hazards for alternative in hazard.alternative_concepts}
    tracker = Tracker()
    areas = {"on hazards": Counter(), "elsewhere": Counter()}
    names = {"image by image": Counter(), "followed": Counter()}
    last: dict[tuple[str, int], str] = {}
    numbers: dict[int, set[int]] = defaultdict(set)
    images = 0
    for time_s, alone, truths, hazard_names in answers(segmenter, source, threshold):
        images += 1
        for area, thing, truth in zip(alone, tracker.update(alone, time_s), truths, strict=True):
            for way, name in (("image by image", area.name), ("followed", thing.name)):
                names[way]["changes"] += last.setdefault((way, thing.number), name) != name
                last[way, thing.number] = name
            for least in MIN_IMAGES:
                areas["elsewhere" if truth is None else "on hazards"][least] += thing.images >= least
            if truth is None:
                continue
            numbers[truth].add(thing.number)
            for way, name in (("image by image", area.name), ("followed", thing.name)):
                right = name == hazard_names[truth] if hazard_names[truth] in named else name == detections.UNNAMED
                names[way]["right" if right else "unnamed" if name == detections.UNNAMED else "wrong"] += 1
    return {
        "images": images,
        "areas": {kind: {str(least): count[least] for least in MIN_IMAGES} for kind, count in areas.items()},
        "names": {way: {kind: count[kind] for kind in ("right", "unnamed", "wrong", "changes")} for way, count in names.items()},
        "hazards": len(numbers),
        "numbers": sum(map(len, numbers.values())),
    }


def answers(
    segmenter: Segmenter, source: bags.BagSource, threshold: float
) -> Iterator[tuple[float, list[Detection], list[int | None], dict[int, str]]]:
    """Of each image: when it was taken, the areas in it, the labelled hazard that each lies on, and what those are called."""
    for frame in source.frames([entry for entry in source.entries() if not entry.failure]):
        if isinstance(frame, FrameFailure):
            raise Vl4adError(str(frame))
        result = segmenter.segment(frame.rgb)
        found = detections.find(result, threshold=threshold)
        # What is ignored belongs to no area, in the boxes below.
        known = segmenter.vocabulary.known_count
        inside = (result.anomaly > threshold) | ((result.labels >= known) & (result.labels != 255))
        label = np.where(frame.labels.anomaly == ANOMALY, frame.labels.hazards, 0)
        truths: list[int | None] = []
        for area in found:
            left, top, width, height = map(int, area.box)
            box = np.s_[top : top + height, left : left + width]
            counted = label[box][inside[box] & (frame.labels.anomaly[box] != IGNORE)]
            (largest, count), *_ = Counter(counted[counted > 0].tolist()).most_common(1) or [(None, 0)]
            truths.append(largest if count >= MIN_SHARE * max(1, counted.size) else None)
        yield float(frame.name.rpartition("/")[2]), found, truths, dict(frame.labels.hazard_names)


def show(results: dict[str, dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    areas = Table(
        "drive", "images", *map(str, MIN_IMAGES), "numbers", title="areas on labelled hazards + elsewhere, seen in so many images"
    )
    names = Table("drive", "each image for itself", "followed", title="names: right, none, wrong; changes of a thing's name")
    for bag, result in results.items():
        counts = (
            f"{result['areas']['on hazards'][least]} + {result['areas']['elsewhere'][least]}" for least in map(str, MIN_IMAGES)
        )
        areas.add_row(Path(bag).name, str(result["images"]), *counts, f"{result['numbers']} for {result['hazards']}")
        counted = ("{right}, {unnamed}, {wrong}; {changes}".format(**ways) for ways in result["names"].values())
        names.add_row(Path(bag).name, *counted)
    Console().print(areas, names)


if __name__ == "__main__":
    main()
