"""The numbers of a whole run, from the counts of its frames, as a JSON document. Undefined is null, never 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.evaluation import component_metrics, exact_metrics, label_metrics, naming_metrics, pixel_metrics
from vl4ad_model.evaluation.exact_metrics import AnomalousScores
from vl4ad_model.evaluation.frame_counts import FirstCounts, SecondCounts, Shared
from vl4ad_model.evaluation.sources import FrameFailure
from vl4ad_model.vocabulary import Hazard

FORMAT = 1
CURVE_POINTS = 400


class Run(NamedTuple):
    """A finished run.

    Attributes:
        counts: first round by frame name, without anomalous scores.
        anomalous: those of all frames.
        second: second round of all frames.
        shared: what the second round was given.
        failures: frames that were skipped.
        metrics: which were wanted.
        class_names: of the known classes.
        hazards: what the model was asked for in words.
        configuration: exactly what was evaluated, plain values.
    """

    counts: Mapping[str, FirstCounts]
    anomalous: AnomalousScores
    second: SecondCounts
    shared: Shared
    failures: Sequence[FrameFailure]
    metrics: Sequence[str]
    class_names: Sequence[str]
    hazards: Sequence[Hazard]
    configuration: Mapping[str, Any]


def to_document(run: Run) -> dict[str, Any]:
    """The JSON document of a run; see docs/evaluation.md for every field."""
    counts = list(run.counts.values())
    merged = pixel_metrics.merge_pixel_counts(count.pixels for count in counts)
    pixel = pixel_metrics.pixel_metrics(merged)
    document: dict[str, Any] = {
        "format": FORMAT,
        "complete": not run.failures,
        "frames": {
            "evaluated": len(counts),
            "failed": len(run.failures),
            "with_anomaly": sum(count.pixels.positives > 0 for count in counts),
            "nothing_counts": sum(count.pixels.positives + count.pixels.negatives == 0 for count in counts),
            "failures": [failure._asdict() for failure in run.failures],
        },
        "pixels": {"anomaly": merged.positives, "ordinary": merged.negatives},
        "stored_scores": {kind: sum(count.stored_dtype == kind for count in counts) for kind in ("float32", "float16")},
    }
    if "pixel" in run.metrics:
        document |= {
            "AuPRC": pixel.auprc,
            "FPR95": pixel.fpr95,
            "AuROC": pixel.auroc,
            # The benchmark's code says 0 where there is nothing to find.
            "best_F1": pixel.best_f1 if merged.positives else None,
            "best_f1_threshold": pixel.best_f1_threshold if merged.positives else None,
            "tpr95_threshold": pixel.tpr95_threshold,
        }
    if "components" in run.metrics:
        document |= _components(run)
    if "fishyscapes" in run.metrics:
        exact = exact_metrics.exact_metrics(run.anomalous, run.second.ordinary)
        document["fishyscapes"] = {"AP": exact.average_precision, "FPR95": exact.fpr95, "AuROC": exact.auroc}
    labelled = [count.confusion for count in counts if count.confusion is not None]
    if "miou" in run.metrics and labelled:
        classes = label_metrics.label_metrics(np.sum(labelled, axis=0))
        document["mIoU"] = classes.miou
        document["pixel_accuracy"] = classes.accuracy
        document["IoU"] = dict(zip(run.class_names, classes.iou.tolist(), strict=True))
    named = [count.naming for count in counts if count.naming is not None]
    if "naming" in run.metrics and named:
        document["naming"] = _naming(naming_metrics.naming_metrics(naming_metrics.merge_names(named), run.hazards), run.hazards)
    document["configuration"] = dict(run.configuration)
    document["curves"] = _curve(pixel.curve)
    document["histogram"] = {
        "edges": run.shared.edges.tolist(),
        "ordinary": run.second.histogram[0].tolist(),
        "anomaly": run.second.histogram[1].tolist(),
    }
    document["per_frame"] = _per_frame(run)
    return plain(document)


def _components(run: Run) -> dict[str, Any]:
    merged = component_metrics.merge_components(frame.components for frame in run.second.frames)
    result = component_metrics.component_metrics(merged)
    defined = math.isfinite(run.shared.threshold)
    rows = zip(
        result.overlaps,
        result.true_positives.tolist(),
        result.false_negatives.tolist(),
        result.false_positives.tolist(),
        result.f1.tolist(),
        strict=True,
    )
    return {
        "component_threshold": run.shared.threshold,
        "n_gt": result.ground_truth,
        "n_pred": result.predicted,
        "sIoU_gt_mean": result.siou_gt_mean,
        "PPV_mean": result.ppv_mean,
        "F1_mean": result.f1_mean,
        "per_threshold": {
            f"{overlap:.2f}": {"TP": found, "FN": missed, "FP": false, "F1": f1} for overlap, found, missed, false, f1 in rows
        }
        if defined
        else None,
    }


def _naming(metrics: naming_metrics.NamingMetrics, hazards: Sequence[Hazard]) -> dict[str, Any]:
    return {
        "hazards": {
            hazard.name: {
                "prompt": hazard.prompt,
                "types": metrics.own_types[index],
                "IoU": metrics.iou[index],
                "pixels_predicted": metrics.predicted[index],
                "on_anomaly": metrics.on_anomaly[index],
                "on_ordinary": metrics.on_ordinary[index],
                "on_own_types": metrics.on_own_types[index],
            }
            for index, hazard in enumerate(hazards)
        },
        "types": {
            name: {
                "pixels": metrics.pixels[index],
                "named": {hazard.name: share for hazard, share in zip(hazards, metrics.shares[index], strict=False)},
                "unnamed": metrics.shares[index, -1],
            }
            for index, name in enumerate(metrics.types)
        },
    }


def _curve(curve: pixel_metrics.Curve) -> dict[str, list[float]]:
    """The curve at no more than `CURVE_POINTS` points, chosen evenly along both axes; for plots, the numbers use all of it."""
    size = curve.thresholds.size
    keep = np.arange(size)
    if size > CURVE_POINTS:
        along = np.nan_to_num(curve.recall) + np.nan_to_num(curve.false_positive_rate) + np.linspace(0, 0.2, size)
        wanted = np.linspace(along[0], along[-1], CURVE_POINTS)
        keep = np.unique(np.concatenate([[0, size - 1], np.searchsorted(along, wanted).clip(0, size - 1)]))
    fields = {
        "threshold": curve.thresholds,
        "recall": curve.recall,
        "precision": curve.precision,
        "false_positive_rate": curve.false_positive_rate,
        "F1": curve.f1,
    }
    return {name: values[keep].tolist() for name, values in fields.items()}


def _per_frame(run: Run) -> list[dict[str, Any]]:
    second = {frame.name: frame for frame in run.second.frames}
    rows = []
    for name, count in run.counts.items():
        frame = second[name]
        negatives = count.pixels.negatives
        rows.append(
            {
                "frame": name,
                "AuPRC": count.auprc,
                "anomaly_pixels": count.pixels.positives,
                "false_positive_rate": frame.false_positives / negatives if negatives else None,
                "recall": frame.true_positives / count.pixels.positives if count.pixels.positives else None,
                "sIoU": frame.components.siou.tolist(),
                "PPV": frame.components.ppv.tolist(),
            }
        )
    return rows


def plain(value: Any) -> Any:
    """JSON's own types: numpy numbers become Python's, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
