"""The embedded model on real streets, which it never saw: `python benchmarks/photographs.py CAMVID [--cutouts ASSETS]`.

CAMVID is the folder with test/ and testannot/ of CamVid (Brostow et al., 2009) in the 11 classes and 480x360 pixels that SegNet's
authors published; nothing of it is part of this repository. Cityscapes' classes are mapped to CamVid's. With the cut-outs of
docs/scenes.md, things of held-out types are pasted on the photographs, as Fishyscapes Static does, and the anomaly score is ranked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from embedded_model import FIRST_HAZARD, Model, ranking

from vl4ad_model.evaluation.label_metrics import confusion_matrix, label_metrics
from vl4ad_model.scenes.cutouts import is_held_out, names_of
from vl4ad_model.training.augmentation import CutOuts, paste
from vl4ad_model.training.data import IGNORED, Frame
from vl4ad_model.vocabulary import Vocabulary

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
# Cityscapes' 19 classes in CamVid's 11: walls are buildings there, lights are signs, grass is tree, lorries and buses are cars.
TO_CAMVID = np.array([3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10])
# The other way round, for pasting on the ground and for telling known from unknown.
TO_CITYSCAPES = np.array([10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12] + [IGNORED] * 245, np.uint8)


def photographs(folder: Path, every: int) -> list[Frame]:
    """Test pictures with their labels, the latter in Cityscapes' ids."""
    frames = []
    for image in sorted((folder / "test").glob("*.png"))[::every]:
        labels = np.asarray(Image.open(folder / "testannot" / image.name))
        frames.append(Frame(np.asarray(Image.open(image).convert("RGB")), TO_CITYSCAPES[labels], {}))
    if not frames:
        raise SystemExit(
            f"{folder} has no test/*.png: it must hold test/ and testannot/ of CamVid as SegNet's authors published it"
        )
    return frames


def held_out_cutouts(folder: Path) -> CutOuts:
    """The cut-outs that no training may see."""
    found = {name: path for name, path in names_of(folder).items() if is_held_out(name)}
    pictures = [np.asarray(Image.open(path).convert("RGBA").resize((160, 160))) for path in found.values()]
    return CutOuts(tuple(found), tuple(pictures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--cutouts", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--every", type=int, default=1, help="use every n-th photograph")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of OpenVINO; default: PyTorch")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, base = Model(arguments.model, arguments.precision), Vocabulary.cityscapes()
    words, frames = model.words(base), photographs(arguments.camvid, arguments.every)
    counts = np.zeros((len(CAMVID), len(CAMVID) + 1), np.int64)
    scores = []
    for seen in model.look(frames):
        labels, anomaly = model.maps(seen, words)
        told = np.append(TO_CAMVID, [IGNORED] * (256 - len(TO_CAMVID)))[labels].astype(np.uint8)
        known = seen.frame.labels != IGNORED
        truth = np.where(known, np.append(TO_CAMVID, [0] * (256 - len(TO_CAMVID)))[seen.frame.labels], IGNORED).astype(np.uint8)
        counts += confusion_matrix(told, truth, len(CAMVID))
        scores.append(anomaly[known][::7])
    metrics = label_metrics(counts)
    result = {
        "model": model.notice,
        "photographs": len(frames),
        "miou": metrics.miou,
        "accuracy": float(np.trace(counts[:, : len(CAMVID)]) / counts.sum()),
        "iou": dict(zip(CAMVID, metrics.iou.tolist(), strict=True)),
        "anomaly_above_half": float((np.concatenate(scores) > 0.5).mean()),
    }
    if arguments.cutouts:
        things, r = held_out_cutouts(arguments.cutouts), np.random.default_rng(0)
        pasted = [paste(frame, things, r) for frame in frames]
        looked = model.look(pasted)
        result["pasted_things"] = sum(len(frame.hazards) for frame in pasted)
        result["pasted_ap"], result["pasted_fpr95"] = ranking(model, looked, words)
        labels = np.stack([frame.labels for frame in pasted])
        result["pasted_share"] = float(((labels >= FIRST_HAZARD) & (labels != IGNORED)).sum() / (labels != IGNORED).sum())
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
