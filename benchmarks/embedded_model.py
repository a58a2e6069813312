"""The embedded model against its goals, on the committed evaluation set: `python benchmarks/embedded_model.py [--model tiny]`.

Every number of the table in docs/embedded_model.md comes from here. The network runs once per frame; only the words change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vl4ad_model import engines, prompts, registry
from vl4ad_model.evaluation.exact_metrics import exact_metrics_of
from vl4ad_model.evaluation.label_metrics import LabelMetrics, confusion_matrix, label_metrics
from vl4ad_model.evaluation.scored_pixels import split_pixels
from vl4ad_model.network.clip import tokenizer
from vl4ad_model.network.fcclip import SIZE_MULTIPLE
from vl4ad_model.network.proposals import MaskProposals
from vl4ad_model.network_words import classifier_for
from vl4ad_model.scenes.hazards import BY_NAME, GENERIC_PROMPTS
from vl4ad_model.scoring import Scorer, query_class_probabilities
from vl4ad_model.training.config import DataSource
from vl4ad_model.training.data import IGNORED, Frame, find_frames, read_frame
from vl4ad_model.vocabulary import Vocabulary

FIRST_HAZARD = 100
SMALLEST = 150  # pixels of a hazard that is asked for its name
# Synonyms never trained whose kind `vl4ad train-clip kinds` took from WordNet; of the others no dictionary told the text tower.
TOLD = frozenset(
    ("package", "keg", "rubble", "stool", "dining table", "icebox", "baby buggy", "heifer", "fawn", "wether", "tub", "sunshade")
)


@dataclass(frozen=True)
class Seen:
    """A frame, and what the network proposed for it."""

    frame: Frame
    proposals: MaskProposals


class Model:
    """The network and its words, scored on proposals that are computed once.

    Args:
        precision: OpenVINO computes them, in this precision; None = PyTorch.
    """

    def __init__(self, name: str, precision: str | None = None) -> None:
        files = registry.locate(name, offline=True)
        self.notice = files.notice
        self.network, self.config = registry.build_network(files)
        tokenize, end = tokenizer(self.config.clip_model, self.config.clip_config)
        self._text = prompts.TextEncoder(
            self.network.clip.encode_text, tokenize, weights_key=self.network.clip.text_weights_key(), end_token=end,
            cache_folder=prompts.default_cache_folder(),
        )  # fmt: skip
        self._scorer = Scorer()
        self.edges = True  # off: masks are upsampled bilinearly
        self._precision, self._engines = precision, {}

    def look(self, frames: Sequence[Frame]) -> list[Seen]:
        with torch.inference_mode():
            if self._precision is not None:
                return [Seen(f, self._compiled(f.rgb)) for f in frames]
            return [
                Seen(f, self.network(torch.from_numpy(f.rgb.copy()).permute(2, 0, 1)[None], image_size=f.rgb.shape[:2]))
                for f in frames
            ]

    def _compiled(self, rgb: np.ndarray) -> MaskProposals:
        height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in rgb.shape[:2])
        if (height, width) not in self._engines:
            self._engines[height, width] = engines.create(
                self.network, engine="openvino", precision=self._precision, network_size=(height, width), model_name="benchmark"
            )
        image = np.empty((1, height, width, 3), np.uint8)
        image[:] = np.round(self.config.pixel_mean)
        image[0, : rgb.shape[0], : rgb.shape[1]] = rgb
        return self._engines[height, width].propose(image, rgb.shape[:2])

    def words(self, vocabulary: Vocabulary, *, merge: bool = True, classifier: str | None = None, scoring: str | None = None):
        rows = self._text.encode_concepts([concept for group in vocabulary.concept_groups for concept in group])
        words = classifier_for(self.network, vocabulary, rows, classifier=classifier, merge_classes=merge, scoring=scoring)
        return words if self.edges else replace(words, colour_tolerance=0.0)

    def maps(self, seen: Seen, words) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            result = self._scorer.score(seen.proposals, words)[0]
        return result.labels.numpy(), result.anomaly.numpy()

    def class_map(self, seen: Seen, words) -> np.ndarray:
        with torch.inference_mode():
            return self._scorer.class_map(seen.proposals, words).numpy()

    def query_names(self, seen: Seen, words) -> np.ndarray:
        with torch.inference_mode():
            p = seen.proposals
            return query_class_probabilities(
                words, p.query_embeddings[0], None if p.pooled_embeddings is None else p.pooled_embeddings[0], None
            ).numpy()


def ranking_of(frames: list[Seen], score: Callable[[Seen], np.ndarray]) -> tuple[float, float]:
    """AP and FPR95 of hazards against everything known, pixels of all frames pooled (Fishyscapes' definition)."""
    ranked = []
    for seen in frames:
        truth = np.where(seen.frame.labels == IGNORED, 255, (seen.frame.labels >= FIRST_HAZARD)).astype(np.uint8)
        ranked.append(split_pixels(score(seen), truth))
    exact = exact_metrics_of(ranked)
    return exact.average_precision, exact.fpr95


def ranking(model: Model, frames: list[Seen], words) -> tuple[float, float]:
    """AP and FPR95 of the anomaly score under these words."""
    return ranking_of(frames, lambda seen: model.maps(seen, words)[1])


def baselines(model: Model, held_out: list[Seen], seen: list[Seen], base: Vocabulary) -> list[dict[str, Any]]:
    """The method's two scores of the same network beside others'."""
    plain, normalized = (model.words(base, scoring=scoring) for scoring in ("max", "normalized"))

    def softmax(frame: Seen) -> np.ndarray:
        p = np.maximum(model.class_map(frame, plain), 1e-6)
        return p / p.sum(axis=0)

    def entropy(frame: Seen) -> np.ndarray:
        p = softmax(frame)
        return -(p * np.log(p)).sum(axis=0)

    scores: dict[str, Callable[[Seen], np.ndarray]] = {
        "constant (chance)": lambda frame: np.zeros(frame.frame.labels.shape, np.float32),
        "1 - max softmax": lambda frame: 1 - softmax(frame).max(axis=0),
        "entropy of the softmax": entropy,
        "max (VL4AD): 1 - max p": lambda frame: model.maps(frame, plain)[1],
        "sum (as RbA): 1 - sum p": lambda frame: 1 - model.class_map(frame, plain)[: plain.known_count].sum(axis=0),
        "normalized": lambda frame: model.maps(frame, normalized)[1],
    }
    rows = []
    for name, score in scores.items():
        (ap, fpr), (ap_seen, fpr_seen) = ranking_of(held_out, score), ranking_of(seen, score)
        rows.append({"score": name, "held-out AP": ap, "held-out FPR95": fpr, "seen AP": ap_seen, "seen FPR95": fpr_seen})
    return rows


def known_iou(model: Model, frames: list[Seen], words) -> LabelMetrics:
    counts = np.zeros((19, 20), np.int64)
    for seen in frames:
        truth = np.where(seen.frame.labels < 19, seen.frame.labels, IGNORED).astype(np.uint8)
        counts += confusion_matrix(model.maps(seen, words)[0], truth, 19)
    return label_metrics(counts)


def named_iou(
    model: Model, frames: list[Seen], base: Vocabulary, say: Callable[[str], str], *, all_at_once: bool
) -> dict[str, float]:
    """IoU of each named hazard type, pixels pooled over frames.

    Args:
        say: hazard name -> its prompt.
        all_at_once: prompts for every type of the set in every frame; False = the prompts of what is in view.
    """
    types = sorted({n for seen in frames for n in seen.frame.hazards.values() if n in BY_NAME})
    inside, union = dict.fromkeys(types, 0), dict.fromkeys(types, 0)
    for seen in frames:
        here = types if all_at_once else sorted({n for n in seen.frame.hazards.values() if n in BY_NAME})
        if not here:
            continue
        labels = model.maps(seen, model.words(base.with_hazards([say(n) for n in here])))[0]
        valid = seen.frame.labels != IGNORED
        for position, name in enumerate(here):
            truth = np.isin(seen.frame.labels, [i for i, n in seen.frame.hazards.items() if n == name])
            called = (labels == 19 + position) & valid
            inside[name] += int((truth & called).sum())
            union[name] += int((truth | called).sum())
    return {name: inside[name] / union[name] for name in types if union[name]}


def named_alone(
    model: Model, frames: list[Seen], base: Vocabulary, say: Callable[[str], str], types: Sequence[str], *, rivals: bool
) -> tuple[float, float]:
    """Every hazard named alone, in all frames, whatever is in view: mean IoU, and the share of the named pixels that are right.

    Args:
        rivals: False = a hazard is named wherever it beats the known classes.
    """
    inside, called, union = (dict.fromkeys(types, 0) for _ in range(3))
    for name in types:
        words = model.words(base.with_hazards([say(name)]))
        words = words if rivals else replace(words, rival_rows=None, rival_margins=None)
        for seen in frames:
            named = (model.maps(seen, words)[0] == 19) & (seen.frame.labels != IGNORED)
            truth = np.isin(seen.frame.labels, [i for i, n in seen.frame.hazards.items() if n == name])
            inside[name] += int((truth & named).sum())
            called[name] += int(named.sum())
            union[name] += int((truth | named).sum())
    iou = float(np.mean([inside[name] / union[name] for name in types]))
    return iou, sum(inside.values()) / max(1, sum(called.values()))


def forced_choice(
    model: Model, frames: list[Seen], base: Vocabulary, *, choices: int = 8, classifier: str | None = None
) -> tuple[float, int]:
    """How often a hazard's own prompt collects more of p inside its true mask than those of seven other held-out types."""
    held_out = sorted(n for n, h in BY_NAME.items() if h.held_out)
    right = asked = 0
    for seen in frames:
        for number, name in seen.frame.hazards.items():
            inside = seen.frame.labels == number
            if name not in held_out or inside.sum() < SMALLEST:
                continue
            others = [n for n in held_out if n != name]
            start = held_out.index(name) * 5
            options = [name] + [others[(start + i) % len(others)] for i in range(choices - 1)]
            p = model.class_map(seen, model.words(base.with_hazards(options), classifier=classifier))
            right += int(p[19:, inside].sum(axis=1).argmax() == 0)
            asked += 1
    return right / max(asked, 1), asked


def measure(name: str, folder: Path) -> dict[str, Any]:
    model = Model(name)
    base = Vocabulary.cityscapes()
    parts = {
        part: model.look([read_frame(f) for f in find_frames(DataSource("rendered", folder / part))])
        for part in ("seen", "held_out", "quiet")
    }
    seen, held_out, quiet = parts["seen"], parts["held_out"], parts["quiet"]
    plain, generic = model.words(base), model.words(base.with_hazards(GENERIC_PROMPTS))
    result: dict[str, Any] = {"model": model.notice, "frames": {k: len(v) for k, v in parts.items()}}
    known = known_iou(model, seen + held_out + quiet, plain)
    result["known_miou"] = known.miou
    result["known_iou"] = dict(zip(base.names, known.iou.tolist(), strict=True))
    result["held_out_ap"], result["held_out_fpr95"] = ranking(model, held_out, plain)
    result["held_out_generic_ap"], result["held_out_generic_fpr95"] = ranking(model, held_out, generic)
    heard = named_iou(model, seen, base, lambda n: "|".join((n, *BY_NAME[n].synonyms)), all_at_once=False)
    unheard = {n: v for n, v in named_iou(model, seen, base, lambda n: (BY_NAME[n].unheard or (n,))[0], all_at_once=False).items()}
    crowded = named_iou(model, seen, base, lambda n: "|".join((n, *BY_NAME[n].synonyms)), all_at_once=True)
    types = sorted(heard)
    for rivals in (False, True):
        iou, right = named_alone(model, seen + held_out, base, lambda n: "|".join((n, *BY_NAME[n].synonyms)), types, rivals=rivals)
        suffix = "" if rivals else "_without_rivals"
        result[f"named_alone_iou{suffix}"], result[f"named_alone_right{suffix}"] = iou, right
    named = base.with_hazards(["|".join((n, *BY_NAME[n].synonyms)) for n in types])
    result["seen_named_iou"] = float(np.mean(list(heard.values())))
    result["seen_named_iou_all_prompts_at_once"] = float(np.mean(list(crowded.values())))
    result["seen_iou"] = heard
    result["seen_ap_unnamed"], _ = ranking(model, seen, plain)
    result["seen_ap_named"], _ = ranking(model, seen, model.words(named))
    trained = named_iou(model, seen, base, lambda n: n, all_at_once=False)
    told = {name for name in trained if TOLD.intersection(BY_NAME[name].unheard)}
    for key, chosen in (("", set(trained)), ("_told", told), ("_not_told", set(trained) - told)):
        kept, of = sum(unheard.get(name, 0.0) for name in chosen), sum(trained[name] for name in chosen)
        result[f"synonym_share{key}"] = float(kept / max(of, 1e-9))
    result["forced_choice_of_8"], result["forced_choice_asked"] = forced_choice(model, held_out, base)
    for classifier in ("in_vocabulary", "out_of_vocabulary", "ensemble"):
        result[f"forced_choice_{classifier}"], _ = forced_choice(model, held_out, base, classifier=classifier)

    # A threshold that one ordinary pixel in 400 exceeds on every other quiet frame, tried on the rest.
    def scores(frames: list[Seen]) -> np.ndarray:
        return np.concatenate([model.maps(s, plain)[1][s.frame.labels != IGNORED] for s in frames])

    threshold = float(np.quantile(scores(quiet[::2]), 1 - 1 / 400))
    result["calibrated_threshold"] = threshold
    result["quiet_above_threshold"] = float((scores(quiet[1::2]) > threshold).mean())
    hits = [(model.maps(s, plain)[1] > threshold)[s.frame.labels >= FIRST_HAZARD] for s in held_out]
    result["held_out_recall_at_threshold"] = float(np.concatenate(hits).mean())
    first_only = Vocabulary(
        base.name, tuple(type(c)(c.name, c.alternative_concepts[:1], c.superclass, c.color) for c in base.classes)
    )
    result["baselines"] = baselines(model, held_out, seen, base)
    result["ablation"] = []
    parts_on = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1))
    for scoring, (ensembling, merging, prompted) in itertools.product(("max", "normalized"), parts_on):
        vocabulary = base if ensembling else first_only
        vocabulary = vocabulary.with_hazards(GENERIC_PROMPTS) if prompted else vocabulary
        words = model.words(vocabulary, merge=bool(merging), scoring=scoring)
        ap, fpr = ranking(model, held_out, words)
        ap_seen, fpr_seen = ranking(model, seen, words)
        result["ablation"].append(
            {
                "score": scoring,
                "max-logit ensembling": bool(ensembling),
                "class merging": bool(merging),
                "generic hazard prompts": bool(prompted),
                "held-out AP": ap,
                "held-out FPR95": fpr,
                "seen AP": ap_seen,
                "seen FPR95": fpr_seen,
                "mIoU": known_iou(model, seen + held_out + quiet, words).miou,
            }
        )
    result["edges"] = []
    for model.edges in (False, True):
        words = model.words(base)
        ap, fpr = ranking(model, held_out, words)
        named_types = named_iou(model, seen, base, lambda n: "|".join((n, *BY_NAME[n].synonyms)), all_at_once=False)
        result["edges"].append(
            {
                "masks": "along the image's edges" if model.edges else "bilinear",
                "mIoU": known_iou(model, seen + held_out + quiet, words).miou,
                "held-out AP": ap,
                "held-out FPR95": fpr,
                "IoU of the named hazard": float(np.mean(list(named_types.values()))),
            }
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1] / "test/data/evaluation")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.data)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    show(result)


def show(result: dict[str, Any]) -> None:
    """Print the goals, and what each part of the method brings."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "goal", "measured", title=f"{result['model']}\n{result['frames']}")
    rows = [
        ("mIoU, known classes", ">= 0.75", f"{result['known_miou']:.3f}"),
        (
            "held-out types, no prompts, AP / FPR95",
            ">= 0.75 / <= 0.08",
            f"{result['held_out_ap']:.3f} / {result['held_out_fpr95']:.3f}",
        ),
        ("the same with 8 generic prompts, AP", ">= 0.85", f"{result['held_out_generic_ap']:.3f}"),
        ("seen types named: IoU / AP", ">= 0.6 / >= 0.93", f"{result['seen_named_iou']:.3f} / {result['seen_ap_named']:.3f}"),
        ("  all prompts of the set at once: IoU", "", f"{result['seen_named_iou_all_prompts_at_once']:.3f}"),
        (
            "  each alone, in all frames of seen and held-out types: IoU / share of the named pixels that are right",
            "",
            f"{result['named_alone_iou']:.3f} / {result['named_alone_right']:.3f}",
        ),
        (
            "  the same without rivals",
            "",
            f"{result['named_alone_iou_without_rivals']:.3f} / {result['named_alone_right_without_rivals']:.3f}",
        ),
        ("synonym never trained: share of that IoU", ">= 0.8", f"{result['synonym_share']:.3f}"),
        (
            "  of words whose kind WordNet told / of others",
            "",
            f"{result['synonym_share_told']:.3f} / {result['synonym_share_not_told']:.3f}",
        ),
        (
            f"held-out types, forced choice of 8 ({result['forced_choice_asked']} asked)",
            ">= 0.5",
            f"{result['forced_choice_of_8']:.3f}",
        ),
        ("nothing unusual: pixels above the threshold", "<= 0.5 %", f"{result['quiet_above_threshold']:.2%}"),
        ("  recall of held-out pixels at that threshold", "", f"{result['held_out_recall_at_threshold']:.3f}"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for title, part in (
        ("other scores of the same network", "baselines"),
        ("what each part brings", "ablation"),
        ("edges", "edges"),
    ):
        columns = Table(*result[part][0], title=title)
        for row in result[part]:
            columns.add_row(*map(_cell, row.values()))
        Console().print(columns)
    print("IoU:", ", ".join(f"{name} {value:.2f}" for name, value in result["known_iou"].items()))
    print("IoU named:", ", ".join(f"{name} {value:.2f}" for name, value in result["seen_iou"].items()))
    print({k: round(v, 3) for k, v in result.items() if k.startswith("forced_choice_")})


def _cell(value: bool | float | str) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else value if isinstance(value, str) else f"{value:.3f}"


if __name__ == "__main__":
    main()
