"""Whether engines compute what PyTorch computes, on real frames: mask logits, labels, anomaly, and what it does to the ranking.

The yardstick is PyTorch in float32. Beside the engines stands PyTorch in float64: its distance from float32 is what the order of
sums alone changes, and no engine can be expected to be nearer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vl4ad_model.errors import EngineError, Vl4adError, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from vl4ad_model.engines.base import Engine, ProgressCallback
    from vl4ad_model.engines.cache import EngineCache
    from vl4ad_model.evaluation.scored_pixels import ScoredPixels
    from vl4ad_model.network.fcclip import FCCLIP
    from vl4ad_model.network.proposals import MaskProposals
    from vl4ad_model.scoring import TextClassifier

FLOAT64 = "torch float64"
# Full precision: the worst frame must be inside. Half precision: labels over all frames, and the change of average precision.
MASK_LOGITS, LABELS, ANOMALY = 1e-3, 0.999, 1e-3
HALF_LABELS, HALF_AP = 0.995, 0.005
COMPARED = {"cpu": ("onnx", "openvino"), "cuda": ("torch", "onnx", "tensorrt")}


@dataclass(frozen=True)
class Agreement:
    """One engine against PyTorch float32 over all frames.

    Attributes:
        engine: its name, or `FLOAT64`.
        mask_logits: largest difference of any frame, relative to that frame's largest logit.
        labels: share of all pixels with the same label.
        labels_worst: the same of the worst frame.
        anomaly: largest difference of any pixel, relative to the frame's largest anomaly where that is above 1.
        anomaly_p999: 99.9 % of the pixels differ by less, in the worst frame.
        average_precision, reference_precision: Fishyscapes' AP of the engine and of PyTorch float32; NaN without labels.
        frames: how many were compared.
        worst: name of the frame with the largest difference of anomaly.
        outside: tolerances that do not hold, in words; empty = agrees.
    """

    engine: str
    precision: str
    mask_logits: float
    labels: float
    labels_worst: float
    anomaly: float
    anomaly_p999: float
    average_precision: float
    reference_precision: float
    frames: int
    worst: str
    outside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A frame to compare on.

    Attributes:
        image: (H, W, 3) uint8 RGB, fitted into the network's size and padded.
        fitted: (height, width) of the part that is image.
        truth: (h, w) uint8, 0 ordinary, 1 anomaly, 255 ignore, at any size; None where there are no labels.
    """

    name: str
    image: np.ndarray
    fitted: tuple[int, int]
    truth: np.ndarray | None = None


@dataclass
class _Sums:
    """What is counted of one engine while frames come."""

    mask_logits: float = 0.0
    equal: int = 0
    pixels: int = 0
    labels_worst: float = 1.0
    anomaly: float = 0.0
    anomaly_p999: float = 0.0
    worst: str = ""
    broken: str = ""
    ranked: list[ScoredPixels] = field(default_factory=list)


def compare(
    network: FCCLIP,
    pictures: Sequence[Picture],
    classifier: TextClassifier,
    engines: Sequence[str],
    *,
    network_size: tuple[int, int],
    device: str = "cpu",
    precision: str = "fp32",
    float64: bool = True,
    model_name: str = "model",
    cache: EngineCache | None = None,
    progress: ProgressCallback | None = None,
    advance: Callable[[], Any] = lambda: None,
) -> list[Agreement]:
    """Run every engine over the same frames and words and say how far it is from PyTorch in float32 on the CPU.

    fp16 on the CPU is for comparing only: the weights are rounded to float16, but it is computed in float32. PyTorch is
    no help there: its float16 grid_sample on the CPU counts strides in 16 bits, which large maps overflow.

    Args:
        classifier: of the network's words, on the CPU.
        engines: on the CPU onnx and openvino; on a GPU torch, onnx and tensorrt. Scoring is done where an engine runs.
        device: cpu, cuda or cuda:N, of the engines.
        network_size: (height, width) of every picture.
        advance: called after every frame.

    Raises:
        EngineError: an engine is not one that can be compared, cannot be built, or does not run.
    """
    import torch

    from vl4ad_model.engines.torch_engine import TorchEngine
    from vl4ad_model.scoring import ScoreMaps, Scorer

    if not pictures:
        raise EngineError("there is no frame to compare on")
    running: dict[str, Engine] = {}
    options = {"network_size": network_size, "device": device, "precision": precision, "model_name": model_name, "cache": cache}
    for name in engines:
        running[name] = _engine(network, name, {**options, "progress": progress})
    exact = _in_float64(network) if float64 else None
    sums = {name: _Sums() for name in (*running, *((FLOAT64,) if exact else ()))}
    reference, scorer, ranked = TorchEngine(network), Scorer(), []
    with torch.inference_mode():
        for picture in pictures:
            images, pooled = picture.image[None], classifier.needs_pooled
            theirs = reference.propose(images, picture.fitted, pooled=pooled)
            (expected,) = scorer.score(theirs, classifier)
            if picture.truth is not None:
                ranked.append(_ranked(expected.anomaly, picture))
            for name, engine in running.items():
                try:
                    ours = engine.propose(images, picture.fitted, pooled=pooled)
                except Vl4adError:
                    raise
                except Exception as error:  # a library's own, of any class
                    raise EngineError(f"engine {name} does not work here: {one_line(error)}") from None
                if not ours.mask_logits.is_cuda:
                    ours = _full(ours)
                maps = ScoreMaps(*(each.cpu() for each in scorer.score(ours, classifier)[0]))
                _add(sums[name], picture, _full(ours.on("cpu")), theirs, maps, expected)
            if exact is not None:
                ours = _full(exact(images, picture.fitted, pooled))
                _add(sums[FLOAT64], picture, ours, theirs, scorer.score(ours, classifier)[0], expected)
            advance()
    reference_precision = _average_precision(ranked)
    for engine in running.values():
        engine.close()
    return [_verdict(name, precision, one, reference_precision, len(pictures)) for name, one in sums.items()]


def _engine(network: FCCLIP, name: str, options: dict[str, Any]) -> Engine:
    from vl4ad_model import engines

    possible = COMPARED["cpu" if options["device"] == "cpu" else "cuda"]
    if name not in possible:
        raise EngineError(f"engine '{name}' cannot be compared on {options['device']}: use {', '.join(possible)}")
    if name == "torch":
        from vl4ad_model.engines.torch_engine import TorchEngine

        return TorchEngine(network, **{key: options[key] for key in ("device", "precision", "network_size")})
    if options["precision"] == "bf16":
        engines.check_bfloat16(name, options["device"].partition(":")[0])
    engines.require(name)
    return engines.compiled_class(name)(network, **options)


def _in_float64(network: FCCLIP) -> Callable[[np.ndarray, tuple[int, int], bool], MaskProposals]:
    import torch

    from vl4ad_model.engines.torch_engine import image_part

    tower = image_part(network).eval()
    tower.place_image_side("cpu", torch.float64)
    return lambda images, fitted, pooled: tower(torch.from_numpy(images).permute(0, 3, 1, 2), pooled=pooled, image_size=fitted)


def _full(proposals: MaskProposals) -> MaskProposals:
    """The same proposals in float32, which scoring takes."""

    pooled = proposals.pooled_embeddings
    return replace(
        proposals,
        mask_logits=proposals.mask_logits.float(),
        query_embeddings=proposals.query_embeddings.float(),
        pooled_embeddings=None if pooled is None else pooled.float(),
    )


def _add(sums: _Sums, picture: Picture, ours: MaskProposals, theirs: MaskProposals, maps: Any, expected: Any) -> None:
    if not bool(maps.anomaly.isfinite().all()):
        sums.broken = sums.broken or picture.name
        sums.pixels += expected.labels.numel()
        sums.labels_worst, sums.worst = 0.0, picture.name
        return
    scale = float(theirs.mask_logits.abs().max())
    sums.mask_logits = max(sums.mask_logits, float((ours.mask_logits - theirs.mask_logits).abs().max()) / scale)
    equal, pixels = int((maps.labels == expected.labels).sum()), expected.labels.numel()
    sums.equal, sums.pixels = sums.equal + equal, sums.pixels + pixels
    sums.labels_worst = min(sums.labels_worst, equal / pixels)
    # With N overlapping masks p sums to more than one; relative to that sum where it is larger.
    difference = (maps.anomaly - expected.anomaly).abs().numpy() / max(1.0, float(expected.anomaly.abs().max()))
    if difference.max() >= sums.anomaly:
        sums.anomaly, sums.worst = float(difference.max()), picture.name
    sums.anomaly_p999 = max(sums.anomaly_p999, float(np.quantile(difference, 0.999)))
    if picture.truth is not None:
        sums.ranked.append(_ranked(maps.anomaly, picture))


def _ranked(anomaly: Tensor, picture: Picture) -> ScoredPixels:
    import cv2

    from vl4ad_model.evaluation.scored_pixels import split_pixels

    assert picture.truth is not None
    scores, size = anomaly.numpy(), picture.truth.shape
    if scores.shape != size:
        scores = cv2.resize(scores, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return split_pixels(scores, picture.truth, picture.name)


def _average_precision(ranked: Sequence[ScoredPixels]) -> float:
    from vl4ad_model.evaluation.exact_metrics import exact_metrics_of

    return exact_metrics_of(ranked).average_precision if ranked else float("nan")


def _verdict(name: str, precision: str, sums: _Sums, reference_precision: float, frames: int) -> Agreement:
    labels, ap = sums.equal / sums.pixels, _average_precision(sums.ranked)
    outside = []
    if sums.broken:
        outside.append(f"non-finite scores, first in {sums.broken}")
    elif precision == "fp32":
        if not sums.mask_logits <= MASK_LOGITS:
            outside.append(f"mask logits differ by more than {MASK_LOGITS:g}")
        if not sums.labels_worst >= LABELS:
            outside.append(f"labels are equal on less than {LABELS:.1%} of a frame")
        if not sums.anomaly <= ANOMALY:
            outside.append(f"anomaly differs by more than {ANOMALY:g}")
    else:
        if not labels >= HALF_LABELS:
            outside.append(f"labels are equal on less than {HALF_LABELS:.1%} of the pixels")
        if abs(ap - reference_precision) > HALF_AP:
            outside.append(f"AP differs by more than {HALF_AP:g}")
    return Agreement(
        engine=name,
        precision="fp64" if name == FLOAT64 else precision,
        mask_logits=sums.mask_logits,
        labels=labels,
        labels_worst=sums.labels_worst,
        anomaly=sums.anomaly,
        anomaly_p999=sums.anomaly_p999,
        average_precision=ap,
        reference_precision=reference_precision,
        frames=frames,
        worst=sums.worst,
        outside=tuple(outside),
    )
