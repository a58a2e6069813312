"""Everything the metrics need of one frame, counted in two rounds, small enough to keep for every frame.

The first round stands alone. The second needs what the first gives for the whole set: the threshold of F1* for the component
metrics, and the distinct anomalous scores for Fishyscapes' metrics.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vl4ad_model.evaluation import component_metrics, exact_metrics, pixel_metrics
from vl4ad_model.evaluation.component_metrics import Components, Track
from vl4ad_model.evaluation.exact_metrics import AnomalousScores, OrdinaryCounts
from vl4ad_model.evaluation.label_files import LabelMap
from vl4ad_model.evaluation.label_metrics import confusion_matrix
from vl4ad_model.evaluation.naming_metrics import NamingCounts, count_names
from vl4ad_model.evaluation.pixel_metrics import PixelCounts
from vl4ad_model.evaluation.scored_pixels import as_stored, split_pixels

METRICS = ("pixel", "components", "fishyscapes", "miou", "naming")
HISTOGRAM_BINS = 80


class FirstCounts(NamedTuple):
    """First round of one frame.

    Attributes:
        pixels: the benchmark's bins.
        anomalous: distinct anomalous scores; empty unless Fishyscapes' metrics are wanted.
        auprc: of this frame alone, NaN without anomalies: ranks frames in reports.
        low, high: lowest and highest score that counts, NaN where none does.
        stored_dtype: "float16" or "float32".
        confusion: (K, K + 1) int64, or None where no classes are labelled or predicted.
        naming: which names hazards were given, or None where none can be given or nothing is predicted.
    """

    pixels: PixelCounts
    anomalous: AnomalousScores
    auprc: float
    low: float
    high: float
    stored_dtype: str
    confusion: np.ndarray | None
    naming: NamingCounts | None

    def to_bytes(self) -> bytes:
        """As an .npz archive, for interrupted runs."""
        stream = io.BytesIO()
        arrays = {} if self.confusion is None else {"confusion": self.confusion}
        if self.naming is not None:
            arrays["types"] = np.array(list(self.naming.types), np.str_)
            arrays["named"] = np.stack([self.naming.ordinary, *self.naming.types.values()])
        arrays |= dict(
            thresholds=self.pixels.thresholds,
            true_positives=self.pixels.true_positives,
            false_positives=self.pixels.false_positives,
            sizes=np.array([self.pixels.positives, self.pixels.negatives], np.int64),
            distinct=self.anomalous.distinct,
            distinct_pixels=self.anomalous.pixels,
            numbers=np.array([self.auprc, self.low, self.high]),
            stored_dtype=np.array(self.stored_dtype),
        )
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> FirstCounts:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            positives, negatives = stored["sizes"].tolist()
            auprc, low, high = stored["numbers"].tolist()
            naming = None
            if "named" in stored.files:
                ordinary, *vectors = stored["named"]
                naming = NamingCounts(ordinary, dict(zip(stored["types"].tolist(), vectors, strict=True)))
            return cls(
                PixelCounts(stored["thresholds"], stored["true_positives"], stored["false_positives"], positives, negatives),
                AnomalousScores(stored["distinct"], stored["distinct_pixels"]),
                auprc,
                low,
                high,
                str(stored["stored_dtype"]),
                stored["confusion"] if "confusion" in stored.files else None,
                naming,
            )


class Shared(NamedTuple):
    """What the second round needs of the whole set.

    Attributes:
        threshold: for the components; NaN = there is none, and no components.
        distinct: (T,) float32 distinct anomalous scores of all frames.
        edges: (HISTOGRAM_BINS + 1,) float64, or empty.
    """

    threshold: float
    distinct: np.ndarray
    edges: np.ndarray


class FrameComponents(NamedTuple):
    """Second round of one frame, what reports show of it.

    Attributes:
        name: the frame.
        components: sIoU and PPV of its components.
        true_positives, false_positives: pixels above the threshold.
    """

    name: str
    components: Components
    true_positives: int
    false_positives: int


class SecondCounts(NamedTuple):
    """Second round of any number of frames.

    Attributes:
        ordinary: for Fishyscapes' metrics.
        histogram: (2, HISTOGRAM_BINS) int64, ordinary and anomalous pixels per score bin.
        frames: one each.
    """

    ordinary: OrdinaryCounts
    histogram: np.ndarray
    frames: tuple[FrameComponents, ...]


def count_first(
    name: str,
    scores: np.ndarray,
    labels: LabelMap,
    predicted: np.ndarray | None,
    metrics: Collection[str],
    class_count: int,
    hazard_count: int,
) -> FirstCounts:
    """First round of one frame.

    Args:
        name: for error messages.
        scores: (H, W) floating point.
        labels: ground truth.
        predicted: (H, W) uint8 ids of classes and hazards, or None.
        metrics: which of `METRICS` are wanted.
        class_count: K.
        hazard_count: how many hazards could be predicted.

    Raises:
        EvaluationError: the frame cannot be evaluated.
    """
    pixels = split_pixels(scores, labels.anomaly, name)
    counted = pixel_metrics.count_pixels(pixels)
    parts = [part for part in (pixels.anomalous, pixels.ordinary) if part.size]
    confusion = None
    if "miou" in metrics and predicted is not None and labels.classes is not None:
        confusion = confusion_matrix(predicted, labels.classes, class_count, name)
    naming = None
    if "naming" in metrics and predicted is not None and hazard_count:
        naming = count_names(predicted, labels, class_count, hazard_count, name)
    return FirstCounts(
        counted,
        exact_metrics.count_anomalous(pixels) if "fishyscapes" in metrics else exact_metrics.merge_anomalous([]),
        pixel_metrics.pixel_metrics(counted).auprc,
        min((part.low for part in parts), default=float("nan")),
        max((part.high for part in parts), default=float("nan")),
        str(pixels.stored_dtype),
        confusion,
        naming,
    )


def gather(counts: Iterable[tuple[str, FirstCounts]]) -> tuple[dict[str, FirstCounts], AnomalousScores]:
    """First round of all frames by name, without their anomalous scores, and these of all frames together."""
    kept: dict[str, FirstCounts] = {}
    nothing = exact_metrics.merge_anomalous([])

    def scores() -> Iterator[AnomalousScores]:
        for name, count in counts:
            kept[name] = count._replace(anomalous=nothing)
            yield count.anomalous

    anomalous = exact_metrics.merge_anomalous(scores())
    return kept, anomalous


def share(counts: Iterable[FirstCounts], anomalous: AnomalousScores, threshold: float | None) -> Shared:
    """What the second round needs; `threshold` overrides that of F1*."""
    counts = list(counts)
    if threshold is None:
        metrics = pixel_metrics.pixel_metrics(pixel_metrics.merge_pixel_counts(count.pixels for count in counts))
        threshold = metrics.best_f1_threshold
    ends = np.array([(count.low, count.high) for count in counts]).reshape(-1, 2)
    low, high = (np.nanmin(ends[:, 0]), np.nanmax(ends[:, 1])) if np.isfinite(ends).any() else (np.nan, np.nan)
    edges = np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS + 1) if np.isfinite(low) else np.empty(0)
    return Shared(float(threshold), anomalous.distinct, edges)


def count_second(
    name: str, scores: np.ndarray, labels: LabelMap, shared: Shared, track: Track, metrics: Collection[str]
) -> SecondCounts:
    """Second round of one frame."""
    pixels = split_pixels(scores, labels.anomaly, name)
    components = Components(np.empty(0), np.empty(0))
    above = [0, 0]
    if np.isfinite(shared.threshold):
        # Compared in the stored type, as the components are.
        limit = as_stored(shared.threshold, pixels.stored_dtype).astype(np.float32).reshape(1)
        above = [part.size - int(part.count_below(limit, or_equal=True)[0]) for part in (pixels.anomalous, pixels.ordinary)]
        if "components" in metrics:
            components = component_metrics.match_components(scores, labels.anomaly, shared.threshold, track, name)
    ordinary = exact_metrics.count_ordinary(pixels, shared.distinct)
    histogram = np.zeros((2, HISTOGRAM_BINS), np.int64)
    if shared.edges.size:
        for row, part in enumerate((pixels.ordinary, pixels.anomalous)):
            places = part.count_below(shared.edges[1:-1].astype(np.float32))
            histogram[row] = np.diff(np.concatenate([[0], places, [part.size]]))
    return SecondCounts(ordinary, histogram, (FrameComponents(name, components, above[0], above[1]),))


def merge_second(parts: Iterable[SecondCounts]) -> SecondCounts:
    """One partial result from many, in any order; only the sums are held, frames come out sorted by name."""
    histogram = np.zeros((2, HISTOGRAM_BINS), np.int64)
    frames: list[FrameComponents] = []

    def ordinary() -> Iterator[OrdinaryCounts]:
        nonlocal histogram
        for part in parts:
            histogram = histogram + part.histogram
            frames.extend(part.frames)
            yield part.ordinary

    merged = exact_metrics.merge_ordinary(ordinary())
    return SecondCounts(merged, histogram, tuple(sorted(frames, key=lambda frame: frame.name)))
